"""Find weights on this machine; nothing is downloaded here.

Searched in order: an explicit path, the folders of ``HIDA_WEIGHTS`` (a list like PATH), the cache (``HIDA_CACHE``, else
``XDG_CACHE_HOME/hida``, else ``~/.cache/hida``), the files packaged with HIDA.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hida.errors import HidaError
from hida.weights.assets import ASSETS, GENERATORS, Alternative, Asset
from hida.weights.verified import remembered_sha256

ASSET_FOLDER = Path(__file__).parent.parent / "assets"


def cache_folder() -> Path:
    """Return where fetched weights are kept; the folder need not exist.

    Raises:
        HidaError: nothing says where the home folder is.
    """
    try:
        if os.environ.get("HIDA_CACHE"):
            return Path(os.environ["HIDA_CACHE"]).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "hida"
    except RuntimeError:
        raise HidaError("the home folder is not known; set HIDA_CACHE to a folder for weights and results.") from None


def search_folders() -> list[Path]:
    """Return the folders of ``HIDA_WEIGHTS`` in order, then the cache, then the packaged files."""
    listed = [_expanded(part) for part in os.environ.get("HIDA_WEIGHTS", "").split(os.pathsep) if part]
    cache = _cache_if_known()
    return [*listed, *([cache] if cache else []), ASSET_FOLDER]


def _cache_if_known() -> Path | None:
    # Built-in weights need no cache.
    try:
        return cache_folder()
    except HidaError:
        return None


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # '~' of a user that is not known: a name like any other
        return Path(path)


def get(name: str) -> Asset:
    """Return the asset of that name.

    Raises:
        HidaError: there is none; it lists the known names.
    """
    try:
        return ASSETS[name]
    except KeyError:
        raise HidaError(f"there are no weights named {name!r}; choose one of {', '.join(ASSETS)}.") from None


def find(name: str, path: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of an asset on this machine.

    Args:
        name: a key of ``ASSETS``.
        path: a file, or a folder that holds it; nothing else is searched then.

    Raises:
        HidaError: it is nowhere, or only a damaged copy is: names the file, the places and the command that fetches it.
    """
    asset = get(name)
    rejected = []
    if path is not None:
        explicit = _expanded(path)
        if explicit.is_file():
            # A file named outright may carry any name; only its contents count.
            faults = [_fault(explicit, expected) for expected in asset.files]
            if None in faults:
                return explicit
            raise HidaError(
                f"{explicit} is not the {asset.description} {asset.filename}: it {faults[0]}; give another, or run "
                f"`{fetch_command(asset)}`."
            )
        folders = [explicit]
    else:
        folders = search_folders()
    for folder in folders:
        for expected in asset.files:
            candidate = folder / expected.filename
            if candidate.is_file():
                fault = _fault(candidate, expected)
                if fault is None:
                    return candidate
                rejected.append(f"{candidate} {fault}")
    names = " or ".join(file.filename for file in asset.files)
    what = f"the {asset.description} ({names}) was not found in {', '.join(map(str, folders))}"
    if rejected:
        what += f" ({'; '.join(rejected)})"
    raise HidaError(f"{what}; run `{fetch_command(asset)}`, or add a folder that holds it to HIDA_WEIGHTS.")


def generator_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a generator's weights: a file's or folder's, as it is, or those built in under a name.

    Raises:
        HidaError: there is neither.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise HidaError(f"the weights are {name!r}; give the name 'small', or the path of a file or a run's folder.")
    path = Path(name)
    if path.exists():
        return path
    if path.suffix or path.name != str(name):
        raise HidaError(f"there is no weights file '{name}'; check the path, or use 'small', the built-in one.")
    if str(name) not in GENERATORS:
        raise HidaError(f"there are no weights named '{name}'; give a path or one of: {', '.join(GENERATORS)}.")
    return find(str(name))


def find_all(names: Sequence[str], path: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the files of several assets, as :func:`find` does for one.

    Raises:
        HidaError: some are missing: names all of them, and the commands that fetch them.
    """
    found, missing, faults = [], [], []
    for name in names:
        try:
            found.append(find(name, path))
        except HidaError as error:
            missing.append(get(name))
            faults.append(error)
    if len(missing) == 1:
        raise faults[0]
    if missing:
        files = ", ".join(asset.filename for asset in missing)
        accept = " --accept-licence" if any(asset.restricted for asset in missing) else ""
        command = f"hida weights fetch {' '.join(asset.name for asset in missing)}{accept}"
        raise HidaError(
            f"{len(missing)} files are missing or damaged: {files}; run `{command}`, or add a folder that has them to "
            "HIDA_WEIGHTS."
        )
    return found


def is_available(*names: str) -> bool:
    """Say whether every named asset is on this machine."""
    try:
        for name in names:
            find(name)
    except HidaError:
        return False
    return True


def fetch_command(asset: Asset) -> str:
    """Return the command that fetches an asset."""
    return f"hida weights fetch {asset.name}" + (" --accept-licence" if asset.restricted else "")


def _fault(path: Path, expected: Alternative) -> str | None:
    """Return why a file is not the expected one, or None: by its size, then by its sha256, where they are known."""
    try:
        size = path.stat().st_size
        if expected.size is not None and size != expected.size:
            return f"is damaged or another version: {size} bytes instead of {expected.size}"
        if not expected.sha256:
            return None
        actual = remembered_sha256(path, _cache_if_known())
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if not actual.startswith(expected.sha256):
        return f"is damaged or another version: its sha256 begins {actual[:12]}, not {expected.sha256[:12]}"
    return None
