"""What the C++ files include: torch in csrc/operators only; csrc/cpu and csrc/cuda know nothing of one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FILES = sorted(path.relative_to(CSRC) for end in ("h", "cpp", "cu") for path in CSRC.rglob(f"*.{end}"))
# Of what is in csrc, a file in a folder may include what is in these; "." is csrc itself.
KNOWS = {".": {"."}, "cpu": {".", "cpu"}, "cuda": {".", "cuda"}, "operators": {".", "cpu", "cuda", "operators"}}


def included(file: Path) -> list[str]:
    """Return what a file includes: its own files relative to csrc, others in angle brackets."""
    found = re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', (CSRC / file).read_text(encoding="utf-8"), re.MULTILINE)
    own = [name.strip('"') for name in found if name[0] == '"']
    paths = [(CSRC / file.parent / name).resolve() for name in own]
    assert all(path.is_file() for path in paths), f"{file} includes a file that its folder does not lead to: {own}"
    return [*(str(path.relative_to(CSRC)) for path in paths), *(name for name in found if name[0] == "<")]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_includes_what_its_folder_may_know(file):
    names = included(file)
    assert {str(Path(name).parent) for name in names if name[0] != "<"} <= KNOWS[str(file.parent)]
    if file.parent.name != "operators":
        assert not [name for name in names if re.match(r"<(torch|ATen|c10)/", name)]


def test_the_operators_are_seen_to_include_torch():
    assert "<torch/csrc/stable/tensor.h>" in included(Path("operators/tensors.h"))
