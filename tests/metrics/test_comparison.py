"""Evaluations side by side: the table, paired differences, the paper's row, refusals."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from hida.cli import compare as cli_compare
from hida.errors import HidaError
from hida.metrics import comparison as compare


def evaluation(label: str, shift: float = 0.0, count: int = 60) -> dict:
    """Scores whose difference between two shifts is the shift, up to a little noise by image."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.5, count)
    noise = np.random.default_rng(1).normal(0, 0.01, count) * (shift != 0)
    values = base + shift + noise
    pairs = [
        {"name": f"n{i}", "style": 1 + i % 2, "target": f"h{i}", "lpips": float(v), "scoot": float(v), "fsim": float(v)}
        for i, v in enumerate(values)
    ]
    entry = {"value": float(values.mean()), "low": float(values.mean() - 0.02), "high": float(values.mean() + 0.02)}
    group = {"n": count, "fid": {"value": 30 + shift}, "lpips": entry, "scoot": entry, "fsim": entry}
    return {
        "schema": 1,
        "label": label,
        "metrics": ["fid", "lpips", "scoot", "fsim"],
        "protocol": {"name": "fs2k-v1", "rules": [], "deviations": []},
        "groups": {"overall": group, "style 1": {**group, "n": count // 2}},
        "pairs": pairs,
    }


def test_differences_are_of_the_same_images():
    first, second = evaluation("a"), evaluation("b", 0.05)
    second["pairs"].reverse()
    n, values = compare.paired_differences(first, second, "overall", ["lpips"])
    assert n == 60
    mean, low, high = values["lpips"]
    expected = np.mean([r["lpips"] for r in second["pairs"]]) - np.mean([r["lpips"] for r in first["pairs"]])
    assert mean == pytest.approx(expected)
    # Paired, the spread between images cancels: the interval is that of the small noise.
    assert high - low == pytest.approx(2 * 1.96 * 0.01 / np.sqrt(60), rel=0.3)
    assert compare.paired_differences(first, second, "style 2", ["lpips"])[0] == 30


def test_the_table_says_better_worse_or_neither():
    text = compare.comparison([evaluation("a"), evaluation("b", 0.05), evaluation("c", 0.0)])
    differences = text.split("paired by image:")[1].splitlines()
    row_b = next(line for line in differences if line.startswith("| b | overall"))
    assert "+0.05" in row_b
    # Larger is worse for LPIPS, better for SCOOT and FSIM.
    assert [word for word in row_b.replace("|", " ").split() if word in ("better", "worse")] == [
        "worse",
        "better",
        "better",
    ]
    row_c = next(line for line in differences if line.startswith("| c | overall"))
    assert row_c.count("≈") == 3


def test_the_paper_s_row_is_marked_as_reported():
    text = compare.comparison([evaluation("a")])
    row = next(line for line in text.splitlines() if line.startswith("| HIDA (paper)"))
    assert row.count("(as reported)") == 4
    assert "15.06" in row
    assert "another protocol" in text
    assert "paper" not in compare.comparison([evaluation("a")], paper=False)


def test_fid_of_unequal_n_is_not_compared():
    first, second = evaluation("a"), evaluation("b", count=40)
    text = compare.comparison([first, second])
    assert "overall: n differs" in text
    row = text.split("paired by image:")[1].splitlines()[4]
    assert row.startswith("| b | overall | 40 | n differs")


def test_equal_labels_are_numbered_and_one_pair_has_no_interval():
    one = evaluation("a", count=1)
    other = copy.deepcopy(one)
    other["pairs"][0]["fsim"] += 0.125
    text = compare.comparison([one, other])
    assert "| a (1) |" in text
    assert "| a (2) |" in text
    assert "+0.125 |" in text


def test_different_targets_are_refused():
    first, second = evaluation("a"), evaluation("b")
    second["pairs"][7]["target"] = "other"
    with pytest.raises(HidaError, match=r"different targets \(first: n7\)"):
        compare.comparison([first, second])
    first["pairs"][7]["name"] = second["pairs"][7]["name"] = "\x1b[31m\n\u202e\udcff"
    with pytest.raises(HidaError, match=r"first: \\x1b\[31m\\n\\u202e\\udcff\)"):
        compare.comparison([first, second])


def test_the_command_reads_files_and_folders_and_writes(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/scores.json").write_text(json.dumps(evaluation("a")), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(evaluation("b", 0.1)), encoding="utf-8")
    cli_compare.main([str(tmp_path / "a"), str(tmp_path / "b.json"), "--out", str(tmp_path / "table.md")])
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| b | overall | 60 |" in written
    assert written in capsys.readouterr().out
