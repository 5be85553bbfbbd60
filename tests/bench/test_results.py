"""bench/results.py, bench/report.py and bench/goals.py, on made-up numbers: none of them was measured."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from bench import results
from bench.goals import table, verdicts

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"device": "NVIDIA H200", "torch": "0.0 (made up)", "nvidia_smi": {"clocks.sm": "0 MHz (made up)"}}
SMOKE = {"device": "NVIDIA H200", "passed": 3000, "failed": 1, "left": 0, "stopped": "", "cases": [{"op": "ida"}] * 9}
MEMCHECK = "========= COMPUTE-SANITIZER\n20 calls, up to a\n33 calls, all finite\n========= ERROR SUMMARY: 0 errors\n"
RACECHECK = "========= COMPUTE-SANITIZER\n20 calls, up to a\n"


def case(op, side, batch=16, dtype="bfloat16", channels=64, out=64, layout="nchw"):
    return {
        **{"op": op, "channels": channels, "out": out, "side": side, "batch": batch},
        **{"dtype": dtype, "layout": layout, "memory": "gpu"},
    }


def row(of, method, ms, direction="fwd", **more):
    return {"case": of, "direction": direction, "method": method, "median_ms": ms, "error": 1e-3, **more}


def floor(of, ms, moved, direction="fwd"):
    return {"case": of, "direction": direction, "method": "floor", "median_ms": ms, "bytes": moved}


def trained(method, batch, ms, preset="small"):
    speed = {"images_per_second": 1e3 * batch / ms, "ms": ms, "iqr_ms": 0.0, "memory_mib": 2000.0, "graph": True}
    return {"preset": preset, "method": method, "batch": batch, **speed}


def made_up():
    """Results in the form of the benchmarks', marked as made up, by the names of their files."""
    ida, small, other = case("ida", 128), case("ida", 32), case("ida", 128, layout="nhwc")
    own = case("deform_conv2d", 4, 4, "float16", 1024, 512)
    ops = [row(ida, "reference", 9.0), row(ida, "compile", 2.0), row(ida, "max-autotune", 1.4), row(ida, "native", 1.0)]
    ops += [floor(ida, 0.85, 2e8), row(small, "reference", 0.8), row(small, "native", 0.1), floor(small, 0.05, 9e7)]
    ops += [row(other, "reference", 5.0), row(other, "native", 4.0), floor(other, 0.8, 2e8)]
    deform = [row(own, "torchvision", 5.0), row(own, "native", 1.0, same_bits=True, workspace_share=0.5)]
    deform += [{"case": own, "method": "compile", "failed": "OutOfMemoryError: made up"}]
    wrong = row(case("info_acon", 64), "native", 1.0, error=0.25)
    ops.append({k: v for k, v in wrong.items() if k != "median_ms"})
    piece = {"piece": "generator", "direction": "fwd", "batch": 1, "dtype": "bfloat16", "layout": "nhwc"}
    sketch = [{"case": piece, "method": "native", "median_ms": 1.25, "shares_ms": {"ida": 1.0, "rest": 3.0}}]
    step = [trained("ours", 16, 20.0), trained("nchw", 16, 12.5), trained("ours", 4, 50.0, "released")]
    step.append({"preset": "released", "method": "bf16", "batch": 4, "failed": "no memory, made up"})
    names = {"void hida::(anonymous namespace)::forward<float, 8>(hida::Map, int)": [4, 1.5], "gemm": [2, 2.5]}
    names |= {"void hida::(anonymous namespace)::forward<float, 4>(hida::Map, int)": [1, 0.25], "rest": [1193, 0.0]}
    trace = [{"method": "nchw", "preset": "small", "batch": 16, "count": 1200, "ms": 4.25, "kernels": names}]
    machine = MACHINE | {"command": ["bench/ops.py", "--json", "/somewhere/ops.json"]}
    rows = {"ops": ops, "deform": deform, "sketch": sketch, "train_step": step}
    files = {f"{n}.json": {"made_up": True, "machines": [machine], "rows": r} for n, r in rows.items()}
    files["ops.json"]["ceilings"] = [{"copy": 4e9, "bfloat16": 9e11}]
    counts = 'tests="7" failures="1" errors="0" skipped="2"'
    texts = {"test-gpu.xml": f"<testsuites><testsuite {counts}/></testsuites>"}
    return (
        files | {"smoke.json": SMOKE, "trace.json": trace, "memcheck.log": MEMCHECK, "racecheck.log": RACECHECK} | texts
    )


def text_of(content):
    return content if isinstance(content, str) else json.dumps(content)


def folder_of(folder, files):
    (folder / "logs").mkdir(parents=True)
    for name, content in files.items():
        (folder / ("logs" if name.endswith(".log") else ".") / name).write_text(text_of(content))
    return folder


def archive_of(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"logs/{name}" if name.endswith(".log") else name)
            data = text_of(content).encode()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def named(device, files):
    """The files as another device's."""
    return {
        name: content
        if name.endswith((".log", ".xml"))
        else json.loads(json.dumps(content).replace(MACHINE["device"], device))
        for name, content in files.items()
    }


@pytest.fixture(scope="module")
def command(call):
    return lambda *words: call("bench/results.py", *words)


def test_goals_are_compared_with_the_better_rival_and_only_where_they_apply():
    of = case("ida", 128)
    rows = [row(of, "reference", 7.6), row(of, "compile", 2.0), row(of, "max-autotune", 1.3), row(of, "native", 1.0)]
    found = {v.goal: v for v in verdicts([*rows, floor(of, 0.95, 1e8)])}
    assert (found["× eager"].holds, found["× torch.compile"].holds, found["of the floor"].holds) == (True, False, True)
    assert found["× torch.compile"].found == 1.3
    (less,) = (v for v in verdicts([*rows, floor(of, 0.95, 9e7)]) if v.goal == "of the floor")  # bound by its launch
    assert (less.found, less.wanted, less.holds, str(less)) == (0.95, None, None, "of the floor 0.95 (no goal)")
    wrong = [r for r in rows if r["method"] != "native"] + [{k: v for k, v in rows[3].items() if k != "median_ms"}]
    assert verdicts([*wrong, floor(of, 0.95, 1e8)]) == []


@pytest.mark.parametrize(
    ("of", "direction", "wanted"),
    [
        (case("deform_conv2d", 64), "fwd", 10.0),
        (case("deform_conv2d", 64), "bwd", 8.0),
        (case("deform_conv2d", 64, dtype="tf32"), "bwd", 2.0),
        (case("deform_conv2d", 64, 4), "fwd", None),
        (case("deform_conv2d", 64, dtype="float32"), "fwd", None),
        (case("deform_conv2d", 4, 4), "bwd", 4.0),
        (case("deform_conv2d", 4, 16), "fwd", None),
    ],
)
def test_torchvision_is_told_everywhere_and_a_goal_where_there_is_one(of, direction, wanted):
    rows = [row(of, "torchvision", 9.0, direction), row(of, "native", 2.0, direction)]
    (found,) = verdicts(rows)
    assert (found.goal, found.found, found.wanted) == ("× torchvision", 4.5, wanted)
    assert found.holds == (None if wanted is None else wanted <= 4.5)


def test_a_small_map_of_ida_must_not_be_slower_than_the_compiler():
    of = case("ida", 32)
    found = verdicts([row(of, "compile", 1.1), row(of, "native", 1.0)])
    assert [(v.goal, v.wanted, v.holds) for v in found] == [("× torch.compile", 1.0, True)]


def test_the_log_of_a_benchmark_tells_what_has_no_goal_but_does_not_count_it():
    of = case("ida", 128)
    lines = table([row(of, "reference", 9.0), row(of, "native", 1.0), floor(of, 0.5, 9e7)])
    (line,) = (line for line in lines if line.startswith("ida 64@128² B16 bfloat16 nchw fwd"))
    assert line.endswith("× eager 9.00 (≥ 7.5) holds; of the floor 0.50 (no goal)")
    assert not any(line.startswith("ida fwd, of the floor") for line in lines)


def cells(text, start):
    """Return the columns of the one table line that begins so, by the names in its head."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    ((head, line),) = ((lines[0], line) for lines in tables for line in lines[2:] if line.startswith(f"| {start} |"))
    names, values = ([cell.strip() for cell in one.strip("|").split("|")] for one in (head, line))
    return dict(zip(names[1:], values[1:], strict=True))


@pytest.fixture(scope="module")
def told(tmp_path_factory, command):
    done = command(folder_of(tmp_path_factory.mktemp("told") / "a", made_up()))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tables_say_first_that_results_are_made_up_and_what_the_checks_said(told):
    assert told.startswith("**MADE UP")
    assert "smoke test 3,000 passed, 1 failed;" in told
    assert "test-gpu 4 passed, 1 failed, 2 skipped;" in told
    assert "memcheck 0 errors in 33 calls; racecheck not finished, nothing found in 20 calls." in told
    assert "copy 4.00 TB/s; products bfloat16 900 TFLOP/s." in told


def test_goals_have_a_row_for_each_layout(told):
    assert cells(told, "ida fwd, NCHW") == {
        "cases": "bf16; B16; 32², 128²",
        "against eager": "≥ 7.5×: 8.00–9.00×, 2 of 2",
        "against torch.compile": "≥ 1.35× (from 128² on; below ≥ 1×): 1.40×, 1 of 1",
        "of the floor, ≥ 100 MB moved": "≥ 90 %: 85.0 %, 0 of 1",
        "of the floor, less moved: no goal": "50.0 %",
    }
    other = cells(told, "ida fwd, NHWC")
    assert (other["cases"], other["against eager"]) == ("bf16; B16; 128²", "≥ 7.5×: 1.25×, 0 of 1")
    assert (other["against torch.compile"], other["of the floor, ≥ 100 MB moved"]) == ("–", "≥ 90 %: 20.0 %, 0 of 1")
    assert cells(told, "HIDA's own layers, B4, NCHW, against torchvision") == {"forward": "≥ 4×: 5.00×, 1 of 1"}
    assert cells(told, "the same bits in three runs, NCHW") == {"forward": "1 of 1 cases"}
    assert "| ida bwd" not in told
    assert "not measured |" not in told.lower()


def test_every_case_shows_its_share_of_the_floor(told):
    large, nhwc, small = (cells(told, f"64 @ {of}") for of in ("128², B16, NCHW", "128², B16, NHWC", "32², B16, NCHW"))
    assert [c["fwd, of the floor"] for c in (large, nhwc, small)] == ["85 %", "20 %", "(50 %)"]
    assert (large["fwd, µs"], large["fwd, × torch.compile"], large["error"]) == ("1000.0", "1.40×", "1e-03")
    assert small["fwd, × torch.compile"] == "–"
    assert not any(name.startswith("bwd") for name in large)
    assert "In brackets: less than 100 MB move" in told
    layer = cells(told, "1024→512 @ 4², B4, NCHW")
    assert (layer["fwd, × torchvision"], "fwd, of the floor" in layer) == ("5.00×", False)


def test_training_has_a_row_for_each_preset_and_batch_and_a_column_for_each_method(told):
    small, released = cells(told, "small, B16"), cells(told, "released, B4")
    assert small == {"native, NHWC": "800 (20.0 ms, 2,000 MiB)", "native, NCHW": "1,280 (12.5 ms, 2,000 MiB)"}
    assert released == {"native, NHWC": "80 (50.0 ms, 2,000 MiB)", "native, NCHW": "–"}
    assert told.index("| small, B16") < told.index("| released, B4")


def test_the_network_and_the_kernels_of_a_step(told):
    network = cells(told, "generator fwd, B1, bf16, NHWC")
    assert network == {"native": "1.250", "shares of native": "ida 25 %, rest 75 %"}
    kernels = cells(told, "small, B16, native, NCHW")
    assert (kernels["kernels"], kernels["sum"]) == ("1,200", "4.25")
    assert kernels["the longest"].startswith("`gemm` 2.50, `hida::forward` 1.75, ")


def test_what_failed_and_what_was_not_measured_is_said_in_a_line_each(told):
    lines = told.splitlines()
    assert "- deform_conv2d 1024→512@4² B4 float16 nchw, compile: OutOfMemoryError: made up" in lines
    assert "- training of released, B4, bf16 with reference ops: no memory, made up" in lines
    assert "- info_acon 64@64² B16 bfloat16 nchw, native: wrong by 2e-01, therefore no time" in lines
    (line,) = (line for line in lines if line.startswith("Not measured: "))
    absent = line.removeprefix("Not measured: ").removesuffix(".").split("; ")
    assert absent == [
        *("synccheck", "initcheck", "info_acon", "instance_norm_modulate", "the ops in B64, fp32, TF32"),
        "training of small with released recipe, bf16 with reference ops, HIDA_OPS=reference, torch.compile",
        "training of released with released recipe, bf16 with reference ops, HIDA_OPS=reference, torch.compile, "
        "native, NCHW",
    ]


def test_cases_that_fail_for_one_reason_share_a_line(command, tmp_path):
    rows = [{"case": case("ida", side), "method": "compile", "failed": "made up"} for side in (16, 32, 64)]
    done = command(folder_of(tmp_path / "a", {"ops.json": {"machines": [MACHINE], "rows": rows}}))
    assert "- ida 64@16² B16 bfloat16 nchw and 2 more, compile: made up\n" in done.stdout
    assert "| ida" not in done.stdout


def test_an_archive_is_as_good_as_a_folder_and_a_folder_may_hold_archives(command, tmp_path, told):
    archive = archive_of(tmp_path / "out/first.tar.gz", made_up())
    assert command(archive).stdout == told
    assert command(archive.parent).stdout == told
    (archive.parent / "first.json").write_text('{"parts": []}')
    assert command(archive.parent, archive).stdout == told


def test_one_file_and_the_document_are_written(command, tmp_path):
    folder, document, written = folder_of(tmp_path / "a", made_up()), tmp_path / "kernels.md", tmp_path / "r/h200.json"
    document.write_text((ROOT / "docs/kernels.md").read_text())
    words = ("--write", "--results", written, "--document", document)
    printed = command(folder, *words).stdout.strip()
    content = json.loads(written.read_text())
    assert (content["device"], content["made_up"], len(content["ops"]["rows"])) == ("NVIDIA H200", True, 12)
    assert content["smoke"] == {"passed": 3000, "failed": 1, "left": 0, "stopped": ""}
    assert content["ops"]["machines"][0]["command"] == ["bench/ops.py", "--json", "ops.json"]
    first = document.read_text()
    assert f"### NVIDIA H200\n\n{printed}\n\n<!-- end" in first  # of the file, which therefore keeps all of it
    assert command(folder, *words).returncode == 0
    assert document.read_text() == first
    assert first.split("<!-- GPU")[0] == (ROOT / "docs/kernels.md").read_text().split("<!-- GPU")[0]


def test_the_document_has_every_chips_tables(command, tmp_path):
    document = tmp_path / "kernels.md"
    document.write_text((ROOT / "docs/kernels.md").read_text())
    for name, device in (("h200", "NVIDIA H200"), ("h100", "NVIDIA H100 80GB HBM3")):
        folder = folder_of(tmp_path / name, named(device, made_up()))
        words = ("--write", "--results", tmp_path / f"results/{name}.json", "--document", document)
        assert command(folder, *words).returncode == 0
    text = document.read_text()
    assert text.index("### NVIDIA H100 80GB HBM3") < text.index("### NVIDIA H200")
    assert text.count("8.00–9.00×") == 2


def test_made_up_results_never_reach_the_project(command, tmp_path):
    before = (ROOT / "docs/kernels.md").read_text()
    done = command(folder_of(tmp_path / "a", made_up()), "--write")
    assert done.returncode == 2
    assert "made up" in done.stderr
    assert (ROOT / "docs/kernels.md").read_text() == before


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ops.json": "{"}, "ops.json is not a benchmark's result"),
        ({"ops.json": {"rows": []}}, "ops.json is not a benchmark's result"),
        ({"test-gpu.xml": "<testsuites/>"}, "test-gpu.xml is not a benchmark's result"),
        ({"smoke.json": []}, "smoke.json is not a benchmark's result"),
        ({}, "there are no results"),
    ],
)
def test_mistakes_are_one_sentence(command, tmp_path, files, said):
    folder = folder_of(tmp_path / "a", files)
    done = command(folder, "--write", "--results", tmp_path / "r.json", "--document", tmp_path / "none.md")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.json").exists()


def test_what_is_neither_a_folder_nor_an_archive_is_refused(command, tmp_path):
    (tmp_path / "first.tar.gz").write_text("no archive")
    for path in (tmp_path / "first.tar.gz", tmp_path / "nothing"):
        done = command(path)
        assert done.returncode == 2
        assert f"'{path}' is neither a folder nor an archive" in done.stderr


def test_what_was_measured_again_counts_once_and_as_it_was_then(tmp_path):
    files = made_up()
    once = results.gather([folder_of(tmp_path / "a", files)])
    of = case("ida", 128)
    files["ops.json"]["rows"] = [row(of, "native", 0.5), row(of, "native", 1.5, "bwd")]
    files["deform.json"]["rows"] = [row(case("deform_conv2d", 4, 4, "float16", 1024, 512), "compile", 3.0)]
    files["train_step.json"]["rows"] = [trained("ours", 16, 10.0)]
    twice = results.gather([tmp_path / "a", archive_of(tmp_path / "b.tar.gz", files)])
    assert len(twice["ops"]["rows"]) == len(once["ops"]["rows"]) + 1  # the backward
    native = [r for r in twice["ops"]["rows"] if r["method"] == "native" and r["case"] == of]
    assert [(r["direction"], r["median_ms"]) for r in native] == [("fwd", 0.5), ("bwd", 1.5)]
    assert not any("failed" in r for r in twice["deform"]["rows"])
    step = {(r["preset"], r["method"], r["batch"]): r.get("ms") for r in twice["train_step"]["rows"]}
    assert step == {
        **{("small", "ours", 16): 10.0, ("small", "nchw", 16): 12.5},
        **{("released", "ours", 4): 50.0, ("released", "bf16", 4): None},
    }


def test_results_of_two_devices_do_not_mix(command, tmp_path):
    other = folder_of(tmp_path / "b", named("NVIDIA H100 80GB HBM3", made_up()))
    done = command(folder_of(tmp_path / "a", made_up()), other)
    assert done.returncode == 2
    assert "different devices" in done.stderr


def test_a_sanitizer_that_found_something_says_so():
    sanitizer = results.sanitizer
    race = "========= COMPUTE-SANITIZER\n20 calls, up to a\n========= Error: Race reported\n"
    assert sanitizer(race) == {"calls": 20, "summary": None, "told": 1}
    race += "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    assert sanitizer(race)["summary"] == "1 hazard displayed (1 error, 0 warnings)"
    assert sanitizer("bash: compute-sanitizer: command not found") == {}


def test_the_document_shows_the_committed_results():
    begin, end = results.MARKS
    shown = (ROOT / "docs/kernels.md").read_text().split(begin)[1].split(end)[0].strip()
    assert shown == results.document(ROOT / "bench/results")
