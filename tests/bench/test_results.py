"""bench/results.py, bench/report.py and bench/goals.py, on made-up numbers: none of them was measured."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from bench import results
from bench.goals import verdicts
from bench.report import goals

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
    """Results in the form of the benchmarks', by the names of their files."""
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
    files = {f"{n}.json": {"machines": [machine], "rows": r} for n, r in rows.items()}
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
        (folder / ("logs" if name.endswith(".log") else ".") / name).write_text(text_of(content), encoding="utf-8")
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
    assert (less.found, less.wanted, less.holds) == (0.95, None, None)
    wrong = [r for r in rows if r["method"] != "native"] + [{k: v for k, v in rows[3].items() if k != "median_ms"}]
    assert list(verdicts([*wrong, floor(of, 0.95, 1e8)])) == []


@pytest.mark.parametrize(
    ("of", "direction", "rival", "wanted"),
    [
        (case("deform_conv2d", 64), "fwd", "torchvision", 10.0),
        (case("deform_conv2d", 64), "bwd", "torchvision", 8.0),
        (case("deform_conv2d", 64, dtype="tf32"), "bwd", "torchvision", 2.0),
        (case("deform_conv2d", 64, 4), "fwd", "torchvision", None),
        (case("deform_conv2d", 64, dtype="float32"), "fwd", "torchvision", None),
        (case("deform_conv2d", 4, 4), "bwd", "torchvision", 4.0),
        (case("deform_conv2d", 4, 16), "fwd", "torchvision", None),
        (case("deform_conv2d", 128, 1) | {"memory": "kept"}, "fwd", "torchvision", 8.0),
        (case("ida", 32), "fwd", "compile", 1.0),
        (case("ida", 128) | {"memory": "fresh"}, "fwd+bwd", "reference", 5.0),
    ],
)
def test_a_rival_is_told_everywhere_and_a_goal_where_there_is_one(of, direction, rival, wanted):
    (found,) = verdicts([row(of, rival, 9.0, direction), row(of, "native", 2.0, direction)])
    assert (found.found, found.wanted) == (4.5, wanted)
    assert found.holds == (None if wanted is None else wanted <= 4.5)


def test_what_may_be_at_most_so_large_is_furthest_where_it_is_largest():
    rows = []
    for side, ms in ((4, 1.0), (64, 3.0)):
        of = case("deform_conv2d", side)
        rows += [row(of, "native", 1.0), row(of, "native, zero offsets", ms), row(of, "convolution", 1.0)]
    line = goals(rows)[2]
    assert "zero offsets, of a convolution ≤ 1.5 | 1.00 to 3.00 | 1 of 2 | deform_conv2d 64@64² B16" in line


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


def test_the_tables_say_what_the_checks_said(told):
    assert "smoke test 3,000 passed, 1 failed;" in told
    assert "test-gpu 4 passed, 1 failed, 2 skipped;" in told
    assert "memcheck 0 errors in 33 calls; racecheck not finished, nothing found in 20 calls." in told
    assert "copy 4.00 TB/s; products bfloat16 900 TFLOP/s." in told


def test_goals_have_a_row_for_each_layout(told):
    for line in (
        "ida fwd, nchw | × eager ≥ 7.5 | 8.00 to 9.00 | 2 of 2 | ida 64@32² B16 bfloat16 nchw",
        "ida fwd, nchw | × torch.compile ≥ 1.35 | 1.40 | 1 of 1 | ida 64@128² B16 bfloat16 nchw",
        "ida fwd, nchw | of the floor ≥ 0.9 | 0.85 | 0 of 1 | ida 64@128² B16 bfloat16 nchw",
        "ida fwd, nhwc | × eager ≥ 7.5 | 1.25 | 0 of 1 | ida 64@128² B16 bfloat16 nhwc",
        "deform_conv2d fwd, nchw | × torchvision ≥ 4 | 5.00 | 1 of 1 | deform_conv2d 1024→512@4² B4 float16 nchw",
        "deform_conv2d fwd, nchw | same bits ≥ 1 | 1.00 | 1 of 1 | deform_conv2d 1024→512@4² B4 float16 nchw",
    ):
        assert f"| {line} |" in told


def test_every_case_shows_its_share_of_the_floor(told):
    names = (f"ida 64@{of} fwd" for of in ("128² B16 bfloat16 nchw", "128² B16 bfloat16 nhwc", "32² B16 bfloat16 nchw"))
    large, nhwc, small = (cells(told, name) for name in names)
    assert [c["of the floor"] for c in (large, nhwc, small)] == ["0.85", "0.20", "(0.50)"]
    assert (large["µs"], large["× torch.compile"], large["error"]) == ("1000.0", "1.40", "1e-03")
    assert (small["× torch.compile"], "× torchvision" in small) == ("–", False)
    assert "In brackets: less than 100 MB move" in told


def test_the_network_the_training_and_its_kernels(told):
    network = cells(told, "generator fwd B1 bfloat16 nhwc")
    assert network == {"native": "1.250", "shares of native": "ida 25 %, rest 75 %"}
    small, released = cells(told, "small B16"), cells(told, "released B4")
    assert small == {"native, NHWC": "800 (20.0 ms, 2,000 MiB)", "native, NCHW": "1,280 (12.5 ms, 2,000 MiB)"}
    assert released == {"native, NHWC": "80 (50.0 ms, 2,000 MiB)", "native, NCHW": "–"}
    kernels = cells(told, "small B16, native, NCHW")
    assert (kernels["kernels"], kernels["sum"]) == ("1,200", "4.25")
    assert kernels["the longest"].startswith("`gemm` 2.50, `hida::forward` 1.75, ")


def test_what_failed_and_what_was_not_measured_is_said_in_a_line_each(told):
    lines = told.splitlines()
    assert "- deform_conv2d 1024→512@4² B4 float16 nchw, compile: OutOfMemoryError: made up" in lines
    assert "- released B4, bf16 with reference ops: no memory, made up" in lines
    assert "- info_acon 64@64² B16 bfloat16 nchw, native: wrong by 2e-01, therefore no time" in lines
    (line,) = (line for line in lines if line.startswith("Not measured: "))
    absent = line.removeprefix("Not measured: ").removesuffix(".").split("; ")
    assert absent[:7] == [
        *("synccheck", "initcheck", "op info_acon", "op instance_norm_modulate", "batch 64"),
        *("dtype float32", "dtype tf32"),
    ]
    assert "training of released: native, NCHW" in absent
    assert not {"training of small: native, NCHW", "kernels of a training iteration"} & set(absent)


def test_cases_that_fail_for_one_reason_share_a_line(command, tmp_path):
    rows = [{"case": case("ida", side), "method": "compile", "failed": "made up"} for side in (16, 32, 64)]
    done = command(folder_of(tmp_path / "a", {"ops.json": {"machines": [MACHINE], "rows": rows}}))
    assert "- ida 64@16² B16 bfloat16 nchw and 2 more, compile: made up\n" in done.stdout
    assert "| ida" not in done.stdout


def test_an_archive_is_as_good_as_a_folder_and_a_folder_may_hold_archives(command, tmp_path, told):
    archive = archive_of(tmp_path / "out/first.tar.gz", made_up())
    assert command(archive).stdout == told
    assert command(archive.parent).stdout == told
    (archive.parent / "first.json").write_text('{"parts": []}', encoding="utf-8")
    assert command(archive.parent, archive).stdout == told


def test_one_file_and_the_document_are_written(command, tmp_path):
    folder, document, written = folder_of(tmp_path / "a", made_up()), tmp_path / "kernels.md", tmp_path / "r/h200.json"
    document.write_text((ROOT / "docs/kernels.md").read_text(encoding="utf-8"), encoding="utf-8")
    words = ("--write", "--results", written, "--document", document)
    printed = command(folder, *words).stdout.strip()
    content = json.loads(written.read_text(encoding="utf-8"))
    assert (content["device"], len(content["ops"]["rows"])) == ("NVIDIA H200", 12)
    assert content["smoke"] == {"passed": 3000, "failed": 1, "left": 0, "stopped": ""}
    assert content["ops"]["machines"][0]["command"] == ["bench/ops.py", "--json", "ops.json"]
    first = document.read_text(encoding="utf-8")
    assert f"### NVIDIA H200\n\n{printed}\n\n<!-- end" in first  # of the file, which therefore keeps all of it
    assert command(folder, *words).returncode == 0
    assert document.read_text(encoding="utf-8") == first
    assert first.split("<!-- GPU")[0] == (ROOT / "docs/kernels.md").read_text(encoding="utf-8").split("<!-- GPU")[0]


def test_the_document_has_every_chips_tables(command, tmp_path):
    document = tmp_path / "kernels.md"
    document.write_text((ROOT / "docs/kernels.md").read_text(encoding="utf-8"), encoding="utf-8")
    for name, device in (("h200", "NVIDIA H200"), ("h100", "NVIDIA H100 80GB HBM3")):
        folder = folder_of(tmp_path / name, named(device, made_up()))
        words = ("--write", "--results", tmp_path / f"results/{name}.json", "--document", document)
        assert command(folder, *words).returncode == 0
    text = document.read_text(encoding="utf-8")
    assert text.index("### NVIDIA H100 80GB HBM3") < text.index("### NVIDIA H200")
    assert text.count("8.00 to 9.00") == 2


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
    shown = (ROOT / "docs/kernels.md").read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()
    assert shown == results.document(ROOT / "bench/results")
