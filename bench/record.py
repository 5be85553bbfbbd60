"""A benchmark's table and JSON. A row whose error is too large prints no time."""

from __future__ import annotations

import json
from pathlib import Path

from timing import DIRECTIONS, Times, summary
from tqdm import tqdm

LIMITS = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 4e-3}
"""‖Δ‖/‖exact‖ that the native ops may have, in the worst of result and gradients"""
LENIENCE = 20
"""others may be so much worse: it only makes them faster, and stands beside their time"""


def rows_of(path: Path | None) -> list[dict]:
    """Return the rows of a file of results, none if there is no file."""
    return json.loads(path.read_text())["rows"] if path is not None and path.exists() else []


class Report:
    """Rows of times with their errors, kept in a file that a later run of the same benchmark goes on with."""

    def __init__(self, title: str, machine: dict, ceilings: dict[str, float], path: Path | None) -> None:
        self.path, self.rows = path, []
        self.head = {"title": title, "machines": [machine], "ceilings": [ceilings]}
        if path is not None and path.exists():
            before = json.loads(path.read_text())
            self.rows = before["rows"]
            for name in ("machines", "ceilings"):
                self.head[name] = before[name] + self.head[name]
        self.unit, self.factor = ("µs", 1e3) if "capability" in machine else ("ms", 1.0)
        tqdm.write(
            f"{title}\n{'case':<56}{'method':<22}{'median ' + self.unit:>11}{'IQR':>9}{'launched':>10}"
            f"{'error':>9}{'speed-up':>10}"
        )

    def add(
        self,
        case: dict,
        name: str,
        method: str,
        times: Times,
        error: float,
        launched: Times | None = None,
        note: str = "",
        **more: float,
    ) -> None:
        """Add the rows of a method at a case, one a direction; ``launched`` beside the times inside a graph."""
        limit = LIMITS[case["dtype"]] * (1 if method.startswith("native") else LENIENCE)
        for direction in DIRECTIONS:
            row = {"case": case, "direction": direction, "method": method, "error": error, **more}
            shown = "wrong: no time"
            if error <= limit:
                row["median_ms"], row["iqr_ms"] = summary(times[direction])
                row["rounds"] = len(times[direction])
                if launched is not None:
                    row["launched_ms"] = summary(launched[direction])[0]
                base = self.median(case, direction, "reference")
                shown = f"{self.factor * row['median_ms']:>11.3f}{self.factor * row['iqr_ms']:>9.3f}"
                shown += f"{self.factor * row['launched_ms']:>10.2f}" if launched is not None else f"{'':>10}"
                shown += f"{error:>9.1e}" + (f"{base / row['median_ms']:>9.2f}×" if base else "")
            else:
                shown = f"{'wrong, no time':>21}{'':>9}{error:>9.1e}"
            if note:
                row["note"], shown = note, f"{shown}  {note}"
            self.rows.append(row)
            tqdm.write(f"{name + ' ' + direction:<56}{method:<22}{shown}")

    def floor(self, case: dict, name: str, floors: dict[str, dict[str, float]]) -> None:
        """Add what nothing can be faster than, in ms, and the bytes that must be moved."""
        for direction, floor in floors.items():
            row = {"case": case, "direction": direction, "method": "floor", "median_ms": floor["ms"]}
            self.rows.append(row | {"bytes": floor["bytes"]})
            tqdm.write(f"{name + ' ' + direction:<56}{'floor':<22}{self.factor * floor['ms']:>11.3f}")

    def failed(self, case: dict, name: str, method: str, reason: str) -> None:
        """Add a method that could not be measured."""
        self.rows.append({"case": case, "method": method, "failed": reason})
        tqdm.write(f"{name:<56}{method:<22}not measured: {reason}")

    def median(self, case: dict, direction: str, method: str) -> float | None:
        return next(
            (
                row.get("median_ms")
                for row in self.rows
                if row["method"] == method and row.get("direction") == direction and row["case"] == case
            ),
            None,
        )

    def write(self, end: dict | None = None) -> None:
        """Write the file, with what the machine says at the end."""
        if self.path is None:
            return
        if end is not None:
            self.head["machines"][-1]["nvidia_smi_at_the_end"] = end
        self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1, ensure_ascii=False) + "\n")
