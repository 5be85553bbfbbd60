"""bench/results.py and bench/targets.py, on made-up numbers: none of them was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"device": "NVIDIA H200", "torch": "0.0 (made up)", "nvidia_smi": {"clocks.sm": "0 MHz (made up)"}}


def case(op, side, batch=16, dtype="bfloat16", channels=64, out=64):
    return {
        **{"op": op, "channels": channels, "out": out, "side": side, "batch": batch},
        **{"dtype": dtype, "layout": "nchw", "memory": "gpu"},
    }


def row(of, method, ms, direction="fwd", **more):
    return {"case": of, "direction": direction, "method": method, "median_ms": ms, "error": 1e-3, **more}


def made_up(folder, **more):
    """Results in the form of the benchmarks', marked as made up."""
    ida, own = case("ida", 128), case("deform_conv2d", 4, 4, "float16", 1024, 512)
    ops = [row(ida, "reference", 9.0), row(ida, "compile", 2.0), row(ida, "max-autotune", 1.4), row(ida, "native", 1.0)]
    ops += [{"case": ida, "direction": "fwd", "method": "floor", "median_ms": 0.85, "bytes": 2e8}]
    deform = [row(own, "torchvision", 5.0), row(own, "native", 1.0, same_bits=True, workspace_share=0.5)]
    deform += [{"case": own, "method": "compile", "failed": "OutOfMemoryError: made up"}]
    piece = {"piece": "generator", "direction": "fwd", "batch": 1, "dtype": "bfloat16", "layout": "nhwc"}
    sketch = [{"case": piece, "method": "native", "median_ms": 1.25, "shares_ms": {"ida": 1.0, "rest": 3.0}}]
    step = [{"method": "ours", "batch": 4, "images_per_second": 100.4, "ms": 1.0, "memory_mib": 10.0}]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("ops", ops), ("deform", deform), ("sketch", sketch), ("train_step", step)):
        content = {"made_up": True, "machines": [{**MACHINE, **more}], "rows": rows}
        (folder / f"{name}.json").write_text(json.dumps(content))
    counts = 'tests="7" failures="1" errors="0" skipped="2"'
    (folder / "test-gpu.xml").write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    return folder


def command(*words):
    line = [sys.executable, str(ROOT / "bench/results.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_goals_are_compared_with_the_better_rival_and_only_where_they_apply(bench):
    verdicts = bench("targets").verdicts
    of = case("ida", 128)
    rows = [row(of, "reference", 7.6), row(of, "compile", 2.0), row(of, "max-autotune", 1.3), row(of, "native", 1.0)]
    floor = {"case": of, "direction": "fwd", "method": "floor", "median_ms": 0.95}
    found = {v.goal: v for v in verdicts([*rows, {**floor, "bytes": 1e8}])}
    assert (found["× eager"].holds, found["× torch.compile"].holds, found["of the floor"].holds) == (True, False, True)
    assert found["× torch.compile"].found == 1.3
    assert "of the floor" not in {v.goal for v in verdicts([*rows, {**floor, "bytes": 9e7}])}  # bound by its launch
    wrong = [r for r in rows if r["method"] != "native"] + [{k: v for k, v in rows[3].items() if k != "median_ms"}]
    assert verdicts([*wrong, floor]) == []
    assert not verdicts([row(case("deform_conv2d", 64, 4), m, t) for m, t in (("torchvision", 9.0), ("native", 1.0))])


def test_a_small_map_of_ida_must_not_be_slower_than_the_compiler(bench):
    of = case("ida", 32)
    found = bench("targets").verdicts(
        [row(of, "compile", 1.1), row(of, "native", 1.0), row(of, "floor", 0.9, bytes=1.0)]
    )
    assert [(v.goal, v.wanted, v.holds) for v in found] == [("× torch.compile", 1.0, True)]


def test_the_tables_of_made_up_results_say_that_they_are_made_up(tmp_path):
    done = command(made_up(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert text.startswith("**MADE UP")
    assert "| ida fwd | ≥ 7.5×: 9.00–9.00×, 1 of 1 | ≥ 1.35× (from 128² on; below ≥ 1×): 1.40–1.40×, 1 of 1 " in text
    assert "| ≥ 90%: 85.0–85.0 %, 0 of 1 |" in text
    assert "| HIDA's own layers, B4, against torchvision | ≥ 4×: 5.00–5.00×, 1 of 1 | ≥ 4×: not measured |" in text
    assert "the same bits in three runs | 1 of 1 cases" in text
    assert "| 64, 128² | not measured | 1000.0 of 850.0, 1e-03 |" in text
    assert "| generator fwd, B1, bfloat16 | not measured | not measured | not measured | 1.250 | not measured |" in text
    assert "ida 25%, rest 75%" in text
    assert "| B4 | not measured | not measured | not measured | 100 (10) |" in text
    assert "test-gpu: 7 tests, 1 failures, 0 errors, 2 skipped" in text


def test_one_file_and_the_document_are_written(tmp_path):
    folder, document, results = made_up(tmp_path / "a"), tmp_path / "kernels.md", tmp_path / "results/h200.json"
    document.write_text((ROOT / "docs/kernels.md").read_text())
    words = ("--write", "--results", results, "--document", document)
    assert command(folder, *words).returncode == 0
    content = json.loads(results.read_text())
    assert (content["device"], content["made_up"], len(content["ops"]["rows"])) == ("NVIDIA H200", True, 5)
    first = document.read_text()
    assert "9.00–9.00×" in first
    assert command(folder, *words).returncode == 0
    assert document.read_text() == first
    assert first.split("<!-- GPU")[0] == (ROOT / "docs/kernels.md").read_text().split("<!-- GPU")[0]


def test_made_up_results_never_reach_the_project(tmp_path):
    before = (ROOT / "docs/kernels.md").read_text()
    done = command(made_up(tmp_path / "a"), "--write")
    assert done.returncode == 2
    assert "made up" in done.stderr
    assert (ROOT / "docs/kernels.md").read_text() == before


@pytest.mark.parametrize(
    ("files", "said"),
    [({"ops.json": "{"}, "is not a benchmark's result"), ({}, "there are no results")],
)
def test_mistakes_are_one_sentence(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = command(tmp_path, "--write", "--results", tmp_path / "r.json", "--document", tmp_path / "none.md")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.json").exists()


def test_results_that_were_gone_on_with_count_once(bench, tmp_path):
    results = bench("results")
    once = results.gather([made_up(tmp_path / "a")])
    twice = results.gather([tmp_path / "a", made_up(tmp_path / "b")])
    assert [twice[part]["rows"] for part in results.PARTS] == [once[part]["rows"] for part in results.PARTS]


def test_results_of_two_devices_do_not_mix(tmp_path):
    done = command(made_up(tmp_path / "a"), made_up(tmp_path / "b", device="NVIDIA H100 80GB HBM3"))
    assert done.returncode == 2
    assert "different devices" in done.stderr


def test_the_document_shows_the_committed_results(bench):
    results = bench("results")
    text, kept = (ROOT / "docs/kernels.md").read_text(), ROOT / "bench/results/h200.json"
    found = json.loads(kept.read_text()) if kept.exists() else results.gather([])
    begin, end = results.MARKS
    assert text.split(begin)[1].split(end)[0].strip() == results.tables(found)
