"""Imports run one way: what docs/architecture.md says of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hida

ROOT = Path(hida.__file__).parent
ORDER = [
    {"version", "errors", "files", "documents", "assets", "presets"},
    {"fields", "config", "device", "images", "ops"},
    {"nn"},
    {"models"},
    {"weights"},
    {"depth", "matte"},
    {"data"},
    {"drawing"},
    {"metrics"},
    {"training"},
    {"cli"},
    {"__main__", "train", "sketch", "evaluate"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# What imports less than its place in the order allows.
ONLY = {
    "version": set(),
    "errors": set(),
    "files": {"errors"},
    "documents": {"errors"},
    "fields": {"errors"},
    "config": {"errors", "fields"},
    "device": {"errors"},
    "ops": {"errors"},
    "images": {"errors", "files"},
}
SHARED_BY_COMMANDS = {"run", "output", "parsing", "photos", "targets", "jobs", "figures", "rendering"}


def part(module: str) -> str:
    return module.split(".")[0]


def imported(module: str, node: ast.AST) -> list[str]:
    """Return the modules that a statement or a call in ``module`` (a dotted name without ``hida.``) imports."""
    if isinstance(node, ast.Import):
        return [a.name.removeprefix("hida").removeprefix(".") for a in node.names if part(a.name) == "hida"]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text = str(node.args[0].value)
        return [text.removeprefix("hida.")] if name in ("import_module", "__import__") and part(text) == "hida" else []
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:  # the package that the dots lead to
        base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
    elif part(node.module or "") == "hida":
        base = (node.module or "").removeprefix("hida").removeprefix(".")
    else:
        return []
    found = []
    for name in (alias.name for alias in node.names):
        inside = ROOT / base.replace(".", "/") / name
        below = inside.is_dir() or inside.with_suffix(".py").is_file()
        found.append(f"{base}.{name}".strip(".") if below else base)
    return [name for name in found if name]


def imports() -> list[tuple[str, str]]:
    """Return (importing module, imported module), both without ``hida.``, of every import anywhere."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += [(module, name) for name in imported(module, node)]
    return found


FOUND = imports()


def test_nothing_imports_upwards():
    assert len(FOUND) > 300
    upwards = [pair for pair in FOUND if part(pair[0]) != "__init__" and RANK[part(pair[0])] < RANK[part(pair[1])]]
    assert upwards == []


def test_the_lowest_know_next_to_nothing():
    for name, allowed in ONLY.items():
        known = {part(imported) for module, imported in FOUND if part(module) == name} - {name}
        assert known <= allowed, name


def test_modules_import_in_no_circle():
    wanted: dict[str, set[str]] = {}
    for module, name in FOUND:
        inside = (ROOT / name.replace(".", "/")).is_dir()
        wanted.setdefault(module, set()).add(f"{name}.__init__" if inside else name)
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, path
        if module not in done:
            for name in wanted.get(module, ()):
                follow(name, (*path, module))
            done.add(module)

    for module in wanted:
        follow(module, ())


@pytest.mark.parametrize(
    "line",
    [
        "import hida.cli.run",
        "import hida.cli.run as quiet",
        "from hida import cli",
        "from hida.cli import run",
        "from hida.cli.run import run_command",
        "from ..cli import run",
        "from ..cli.run import run_command",
        "from .. import cli",
        "import_module('hida.cli.run')",
        "importlib.import_module('hida.cli.run')",
        "__import__('hida.cli.run')",
    ],
)
def test_every_way_to_import_is_seen(line):
    found = [name for node in ast.walk(ast.parse(line)) for name in imported("ops.ida", node)]
    assert [part(name) for name in found] == ["cli"]


def test_no_command_imports_another():
    between = [(a, b) for a, b in FOUND if part(a) == part(b) == "cli"]
    assert [pair for pair in between if pair[1].removeprefix("cli.") not in SHARED_BY_COMMANDS] == []


def test_an_init_re_exports_and_holds_nothing_else():
    for path in ROOT.rglob("*/__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text(encoding="utf-8")).body}
        assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign}, path


def test_the_root_stays_small():
    files = [path.name for path in ROOT.iterdir() if path.suffix in (".py", ".typed")]
    assert len(files) <= 12, files
