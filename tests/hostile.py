"""A folder in which everything that a program might import by mistake leaves a mark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hida

HOSTILE = (
    "pip",
    "torch",
    "json",
    "sitecustomize",
    "usercustomize",
    "pickle",
    "socket",
    "multiprocessing",
    "numpy",
    "os",
)


def hostile_folder(tmp_path):
    """Return a folder of modules that write to the file ``ran`` beside it when they run."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n", encoding="utf-8")
    return folder


def run_in(folder, *words, **more):
    """Run the script, the first of ``words``, in the folder."""
    # The package is found by PYTHONPATH, as in a source folder, and never by the current one.
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PIP_FIND_LINKS")},
        "PYTHONPATH": str(Path(hida.__file__).parent.parent),
        "HIDA_CACHE": str(folder.parent / "cache"),
        "HIDA_WEIGHTS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        **more,
    }
    script, *arguments = words
    path = folder.parent / "script.py"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=120)
