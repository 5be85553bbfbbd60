"""Train the built-in depth predictor: photos in, 3DDFA_V2's depth, mask and points as the teacher.

    hida train-depth --photos FS2K --out depth.safetensors

A folder that holds anno_train.json is read as FS2K: its training pairs only, and 100 test photos for the final report.
Needs the 3DDFA weights (`hida weights fetch tddfa --accept-licence`). 1,058 photos and 1,150 steps take 20 minutes on
one CPU core.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hida.cli.parsing import read_command
from hida.depth.builtin.options import Options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida train-depth``."""
    options: Options = read_command(Options, argv, "hida train-depth", __doc__)
    from hida.depth.builtin.train import run

    print(json.dumps(run(options), indent=2))
