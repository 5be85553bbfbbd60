"""A numpy file from anywhere: read as data only, and not before its size is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hida.errors import HidaError, first_line

LARGEST = 1 << 25
"""values of a map, some 5,800×5,800; read and scaled they take less than a gigabyte"""


def read_array(path: Path) -> np.ndarray:
    """Map the array of a ``.npy`` file, which is not loaded until it is used.

    Raises:
        HidaError: if there is none, or it holds Python objects or more than ``LARGEST`` values.
    """
    if not path.is_file():
        reason = "is no regular file; give a .npy file" if path.exists() else "does not exist; check the path"
        raise HidaError(f"the depth map {path} {reason}.")
    try:
        # Unlike np.load: no pickles, no archives, and nothing is allocated for what the header promises.
        values = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        if error.strerror:
            raise
        raise _damage(path, error) from None
    except Exception as error:  # numpy parses the header as Python does, and raises what that raises
        raise _damage(path, error) from None
    if values.size > LARGEST:
        shape = "×".join(map(str, values.shape))
        raise HidaError(f"the depth map {path} holds {shape} values, above {LARGEST:,}; scale it down first.")
    return values


def _damage(path: Path, error: Exception) -> HidaError:
    return HidaError(f"the depth map {path} cannot be read as a numpy array ({first_line(error)}); save it again.")
