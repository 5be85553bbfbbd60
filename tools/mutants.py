"""One plausible fault in each of more than thirty modules: say which tests notice it, and which faults nobody does.

    python tools/mutants.py                 all of them, about ten minutes
    python tools/mutants.py scoot layout    those of some modules

A copy of the checkout gets one fault at a time, and the tests that mirror the module run in it until one fails. The
exit status is 1 when a fault survives, and 2 when a line that a fault replaces is gone: then the list must follow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """A fault: in ``hida/MODULE.py``, ``old`` becomes ``new``; ``tests`` are the files that should notice."""

    module: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant("ops/info_acon", "(p1.to(dtype) - base) * value", "(p1.to(dtype) + base) * value", "ops"),
    Mutant("ops/instance_norm_modulate", "(1 + gamma.to(dtype)) *", "gamma.to(dtype) *", "ops"),
    Mutant("ops/deform_conv2d", "top + down, left + right", "top + right, left + down", "ops"),
    Mutant("ops/dispatch", "_override.reset(token)", "pass", "ops/test_dispatch.py"),
    Mutant("nn/activation", "max(16, channels // 16)", "max(16, channels // 8)", "nn models"),
    Mutant("nn/adaptation", 'self.residual == "input"', 'self.residual == "activated"', "nn models"),
    Mutant("nn/dog", "mask=mask.sigmoid()", "mask=mask", "nn models"),
    Mutant("models/generator", "dropout=level < 3", "dropout=level < 2", "models"),
    Mutant(
        "models/conditions",
        "4 * (second + fourth) + 6 * third) / 16",
        "6 * (second + fourth) + 2 * third) / 16",
        "models",
    ),
    Mutant(
        "models/discriminator",
        "nn.Conv2d(2, width, 4, stride=2, padding=2)",
        "nn.Conv2d(2, width, 4, stride=2, padding=1)",
        "models",
    ),
    Mutant("models/cost", "(side // 2) ** 2", "side ** 2", "models"),
    Mutant(
        "weights/checkpoint",
        'checkpoint.part("ema") or checkpoint.part("generator")',
        'checkpoint.part("generator")',
        "weights training/test_run.py",
    ),
    Mutant("weights/pickled", "self.admitted.get(name)", "self.admitted.get(name, list)", "weights"),
    Mutant("weights/torch_file", "last >= storage.values", "last > storage.values", "weights"),
    Mutant("weights/verified", "hashlib.sha256()", "hashlib.sha1()", "weights"),
    Mutant("weights/package_index", "_origin(address) == _origin(page)", "address != page", "weights"),
    Mutant(
        "weights/locate",
        "[*listed, *([cache] if cache else []), ASSET_FOLDER]",
        "[*([cache] if cache else []), *listed, ASSET_FOLDER]",
        "weights",
    ),
    Mutant("data/spawning", 'os.environ[_SAFE] = "1"', 'os.environ[_SAFE] = ""', "data"),
    Mutant("weights/released/layout", "_THEIR_STYLES = (2, 0, 1)", "_THEIR_STYLES = (1, 2, 0)", "weights/released"),
    Mutant(
        "images/alignment",
        "factor = np.sum(np.conj(source) * target) / spread",
        "factor = np.sum(source * target) / spread",
        "images",
    ),
    Mutant("images/io", "255 - levels if picture.inverted else levels", "levels", "images/test_opening.py"),
    Mutant("images/opening", "formats=_formats()", "formats=None", "images/test_opening.py"),
    Mutant("images/opening", "image.transpose(turn), True", "image, True", "images/test_io.py"),
    Mutant("images/repair", "not _last_scan_is_exact(data)", "False", "images/test_repair.py"),
    Mutant("images/colour", '_EXACT if mode == "L" else 0', "0", "images/test_colour.py"),
    Mutant("depth/maps", "np.iinfo(values.dtype).max", "255", "depth"),
    Mutant("depth/morphable", "return output * self.std + self.mean", "return output * self.std", "depth"),
    Mutant(
        "data/dataset",
        "order[holdout:].sort().values, order[:holdout].sort().values",
        "order[holdout:].sort().values, order[holdout:].sort().values",
        "data",
    ),
    Mutant(
        "data/framing",
        'depth = crop(pairs.depth, frame, "black", index)',
        'depth = crop(pairs.depth, frame, "replicate", index)',
        "data",
    ),
    Mutant("drawing/styles", "weights[number - 1] = weight", "weights[number - 2] = weight", "drawing"),
    Mutant(
        "drawing/views",
        "round(k * (room - side) / (count - 1)) - RIM",
        "round(k * (room - side) / (count - 1))",
        "drawing",
    ),
    Mutant(
        "metrics/scoot",
        "(step[:, None] - step[None, :]).square()",
        "(step[:, None] - step[None, :]).abs()",
        "metrics/test_scoot.py",
    ),
    Mutant(
        "metrics/fsim",
        "_LAMBDA = 0.85, 160.0, 200.0, 200.0, 0.03",
        "_LAMBDA = 0.85, 160.0, 200.0, 200.0, 0.3",
        "metrics/test_fsim.py",
    ),
    Mutant(
        "metrics/lpips",
        "x = (image - self.shift) / self.scale",
        "x = image / self.scale - self.shift",
        "metrics/test_lpips.py",
    ),
    Mutant("metrics/frechet", "np.sqrt(len(a) - 1)", "np.sqrt(len(a))", "metrics/test_frechet.py"),
    Mutant("metrics/bootstrap", "[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]", "metrics"),
    Mutant("training/schedule", "(end - now) / (end - begin)", "(end - now) / end", "training/test_schedule.py"),
    Mutant("training/losses", "add(1e-7).sqrt()", "sqrt().add(1e-7)", "training/test_losses.py"),
    Mutant("training/state", "10 + self.iteration", "1 + self.iteration", "training/test_state.py"),
    Mutant("files", "os.replace(temporary, target)", "shutil.copy(temporary, target)", "test_files.py"),
    Mutant("cli/photos", "if target.resolve() in originals:", "if target in originals:", "cli"),
]


def killed_by(folder: Path, mutant: Mutant) -> str:
    """Run the mutant's tests in ``folder``; return the first that fails, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [f"tests/{name}" for name in mutant.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rfE", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0] if failed else ("collection" if done.returncode not in (0, 1) else "")


def copy(folder: Path) -> None:
    """Copy what git lists, and the libraries that are built in place."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "hida").glob("*.so")]
    for name in [*filter(None, listed.split("\0")), *built]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def main() -> int:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(word in m.module for word in sys.argv[1:])]
    unknown = [word for word in sys.argv[1:] if not any(word in m.module for m in MUTANTS)]
    if unknown:
        print(f"there is no fault in a module named {unknown[0]!r}; without words all are tried", file=sys.stderr)
        return 2
    survived = stale = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        for mutant in chosen:
            path, began = folder / "hida" / f"{mutant.module}.py", time.monotonic()
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.old) != 1:
                print(f"{mutant.module:<28} STALE: {text.count(mutant.old)} times: {mutant.old}", flush=True)
                stale += 1
                continue
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            found = killed_by(folder, mutant)
            path.write_text(text, encoding="utf-8")
            survived += not found
            print(f"{mutant.module:<28} {found or 'SURVIVED'}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(chosen) - survived - stale} of {len(chosen)} faults are noticed")
    return 2 if stale else int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
