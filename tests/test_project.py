"""What is written twice in the project's own files is the same in both."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from hida import __version__

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_and_the_changelog_have_the_version():
    assert f"\nversion: {__version__}\n" in text("CITATION.cff")
    assert f"\n## [{__version__}] - " in text("CHANGELOG.md")


def test_pre_commit_uses_the_tools_of_the_test_extra():
    pinned = re.findall(r'"((?:ruff|clang-format)==[^"]+)"', text("pyproject.toml"))
    assert len(pinned) == 2
    assert set(re.findall(r'additional_dependencies: \["([^"]+)"\]', text(".pre-commit-config.yaml"))) == set(pinned)


def test_relative_links_of_the_documents_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/*.md"), *ROOT.glob("hida/assets/*.md")]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not link.startswith("mailto:") and not (page.parent / link).exists():
                broken.append((page.name, link))
    assert broken == []


def test_what_is_beside_the_modules_is_packaged():
    lines = re.findall(r'^"(hida[.\w]*)" = (\[.*\])$', text("pyproject.toml"), re.MULTILINE)
    packaged = {path for package, names in lines for name in ast.literal_eval(names) for path in
                (ROOT / package.replace(".", "/")).glob(name)}  # fmt: skip
    beside = {path for path in (ROOT / "hida").rglob("*.*") if path.is_file()}
    assert [path for path in beside - packaged if path.suffix not in (".py", ".pyc", ".so")] == []
    assert ROOT / "hida/images/gallery.html" in packaged


def test_files_of_tests_have_names_of_their_own():
    """Pytest imports them by their names alone: of two that share one it refuses the second."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_the_list_of_faults_quotes_lines_that_are_there():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from mutants import read_list
    finally:
        sys.path.remove(str(ROOT / "tools"))
    listed = read_list()
    assert [m for m in listed if text(m.path).count(m.old) != 1] == []
    assert [name for m in listed for name in m.tests if not (ROOT / "tests" / name).exists()] == []


PLACES = [*(ROOT / name for name in ("hida", "bench", "tools", "tests")), ROOT / "setup.py"]


def encodings_left_out(source: str) -> list[int]:
    """Return the lines of the calls that read or write text in the encoding that the machine happens to prefer."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        words = [value.value for value in (*node.args, given.get("mode")) if isinstance(value, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and re.fullmatch(r"[rwaxbt+]{1,3}", word)]
        unknown = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)  # of a mode in a variable
        text = {
            "read_text": not node.args,
            "write_text": len(node.args) < 2,
            "open": (isinstance(node.func, ast.Name) and not unknown) or bool(modes) or not (node.args or given),
            "fdopen": True,
            "TextIOWrapper": len(node.args) < 2,
            "NamedTemporaryFile": bool(modes),
        }.get(name, any(isinstance(given.get(key), ast.Constant) for key in ("text", "universal_newlines")))
        if text and not any("b" in mode for mode in modes) and not {"encoding", None} & given.keys():
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("path.read_text()", 1),
        ("path.write_text(text)", 1),
        ("open(path)", 1),
        ("open(path, 'w')", 1),
        ("path.open()", 1),
        ("path.open('a')", 1),
        ("os.fdopen(3, 'w')", 1),
        ("io.TextIOWrapper(raw)", 1),
        ("tempfile.NamedTemporaryFile('w')", 1),
        ("subprocess.run(command, text=True)", 1),
        ("path.read_text('utf-8')", 0),
        ("path.write_text(text, encoding='utf-8')", 0),
        ("open(path, 'rb')", 0),
        ("path.open(mode='wb')", 0),
        ("open(path, mode)", 0),
        ("Image.open(path)", 0),
        ("archive.open(member)", 0),
        ("tarfile.open(fileobj=file, mode='r|')", 0),
        ("subprocess.run(command, text=True, encoding='utf-8')", 0),
    ],
)
def test_a_call_without_an_encoding_is_seen(line, counts):
    assert len(encodings_left_out(line)) == counts


def test_text_is_read_and_written_in_an_encoding_that_the_code_names():
    files = [file for place in PLACES for file in (place.rglob("*.py") if place.is_dir() else [place])]
    assert len(files) > 200
    found = [f"{file}:{line}" for file in files for line in encodings_left_out(file.read_text(encoding="utf-8"))]
    assert found == []
