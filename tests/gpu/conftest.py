"""What the contract of the ops has in store is here too: arguments, calls, comparisons."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops" / "contract"))
