"""Show what is installed, built and found: the first thing to paste into a bug report."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from hida.cli.parsing import read_command
from hida.version import __version__


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida info``."""
    read_command(_nothing, argv, "hida info")
    import numpy as np
    import torch

    from hida import ops, weights
    from hida.config import presets
    from hida.ops.dispatch import selected

    built = [name for name, there in ops.available().items() if there]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = [name for name in weights.ASSETS if weights.is_available(name)]
    missing = [name for name in weights.ASSETS if name not in found]
    rows = {
        "hida": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}",
        "CUDA": f"{torch.version.cuda or 'not in this build of torch'}; GPUs: {', '.join(gpus) or 'none usable'}",
        "native ops": f"{_native(built)} (selected: {selected()})",
        "presets": ", ".join(presets()),
        "weights found": ", ".join(found) or "none",
        "not found": ", ".join(missing) or "none",
    }
    for name, value in rows.items():
        print(f"{name:<14}{value}")


def _native(built: list[str]) -> str:
    from hida.ops import library

    if not built:
        return library.why_not
    cuda = "built" if library.loaded_cuda else library.why_not_cuda
    return f"{', '.join(built)}; CPU kernels: {library.instruction_set()}; CUDA kernels: {cuda}"


def _nothing() -> None:
    """Show versions, devices, native ops and the weights found."""
