"""Train the paper's ablations under one budget, score them, and put the results into one table.

    hida ablate --data data/fs2k --budget 600
    hida ablate --data data/fs2k --presets leaky metaacon infoacon --budget 600 --seeds 0 1 2
    hida ablate --data data/fs2k --budget 4 --base-width 12 --limit 100

Every network is trained for the same number of iterations, on the same pairs in the same order, by one recipe; only the
generator is the preset's. The number follows from the budget and from the speed of all networks in their first
iterations. OUT receives plan.json, runs/, table.md, table.json and figure.png. The same command continues an ablation
that was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hida.cli.parsing import read_command
from hida.config import ConfigError
from hida.errors import HidaError
from hida.files import folder_lock, require_folder_place
from hida.training.options import LENGTH_UNKNOWN, AblationOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida ablate``."""
    options: AblationOptions = read_command(AblationOptions, argv, "hida ablate", __doc__)
    _require(options)
    require_folder_place(options.out)
    from hida.device import choose_device
    from hida.training.ablation import FILES, ablate

    device = choose_device(options.device)
    with folder_lock(options.out, "hida ablate"):
        try:
            text = ablate(options, device)
        except ConfigError as error:
            if not error.field.endswith(".base_width"):
                raise
            raise HidaError(f"--base-width{str(error).removeprefix(error.field)}") from None
    print(text)
    print(f"written: {', '.join(str(options.out / name) for name in FILES)}")


def _require(options: AblationOptions) -> None:
    if (options.budget is None) == (options.iterations is None):
        raise HidaError(LENGTH_UNKNOWN)
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise HidaError(f"--budget must be a number of minutes above 0; it is {options.budget:g}.")
    if options.iterations is not None and options.iterations < 1:
        raise HidaError(f"--iterations must be 1 or more; it is {options.iterations}.")
    for name, value, least in (("batch", options.batch, 1), ("limit", options.limit, 0)):
        if value < least:
            raise HidaError(f"--{name} must be {least} or more; it is {value}.")
    if any(seed < 0 for seed in options.seeds):
        raise HidaError(f"--seeds must be 0 or more; one of them is {min(options.seeds)}.")
    for name in ("presets", "seeds", "metrics"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise HidaError(f"--{name} must name one or more, each once; give other values.")
