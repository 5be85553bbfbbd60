"""Imports run one way: what docs/architecture.md says of it."""

from __future__ import annotations

import ast
from pathlib import Path

import hida

ROOT = Path(hida.__file__).parent
ORDER = [
    {"version", "errors", "files"},
    {"fields", "config", "device", "images", "ops"},
    {"nn"},
    {"models"},
    {"weights"},
    {"depth"},
    {"data"},
    {"drawing"},
    {"metrics"},
    {"training"},
    {"cli"},
    {"__main__", "train", "sketch", "evaluate"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# What imports less than its place in the order allows.
ONLY = {"errors": set(), "fields": {"errors"}, "config": {"errors", "fields"}, "ops": {"errors"}, "device": {"errors"}}
SHARED_BY_COMMANDS = {"run", "photos", "figures"}


def part(module: str) -> str:
    return module.split(".")[0]


def imports() -> list[tuple[str, str]]:
    """Return (importing module, imported module), both without ``hida.``, of every import statement anywhere."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and part(node.module) == "hida":
                base = node.module.removeprefix("hida").removeprefix(".")
                names = [alias.name for alias in node.names]
                inside = [name for name in names if (ROOT / base.replace(".", "/") / f"{name}.py").is_file()]
                found += [(module, f"{base}.{name}".strip(".")) for name in inside]
                found += [(module, base)] if base and len(inside) < len(names) else []
                packages = [name for name in names if not base and (ROOT / name).is_dir()]
                found += [(module, name) for name in packages]
            elif isinstance(node, ast.Import):
                found += [(module, a.name[5:]) for a in node.names if a.name.startswith("hida.")]
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
