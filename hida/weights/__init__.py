"""Weights that HIDA uses: what they are, where they are searched, and how a command fetches them.

    hida weights list
    hida weights fetch mb05 tri
    hida weights fetch bfm --accept-licence

Searched in order: an explicit path, the folders of ``HIDA_WEIGHTS`` (a list like PATH), the cache
(``HIDA_CACHE``, else ``XDG_CACHE_HOME/hida``, else ``~/.cache/hida``), the files packaged with HIDA. Nothing is
downloaded unless :func:`fetch` is called.
"""

from hida.weights.assets import ASSETS, GENERATORS, GROUPS, Asset
from hida.weights.fetching import fetch
from hida.weights.locate import (
    cache_folder,
    fetch_command,
    find,
    find_all,
    generator_path,
    get,
    is_available,
    search_folders,
)

__all__ = [
    "ASSETS",
    "GENERATORS",
    "GROUPS",
    "Asset",
    "cache_folder",
    "fetch",
    "fetch_command",
    "find",
    "find_all",
    "generator_path",
    "get",
    "is_available",
    "search_folders",
]
