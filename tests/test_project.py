"""What is written twice in the project's own files is the same in both."""

from __future__ import annotations

import re
from pathlib import Path

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
