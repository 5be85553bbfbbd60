"""Names from documents that become names of files: one check for all of them."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from hida.errors import HidaError, shown

LONGEST = 250
"""bytes (UTF-8) of a name; with ".webp" it is 255, which file systems take"""
_DEEPEST = 8  # folders in a path
# Control characters, halves of surrogate pairs, separators of lines and paragraphs.
_NEVER = {"Cc", "Cs", "Zl", "Zp"}


class DocumentError(HidaError):
    """What is wrong in a document, and where in it; the reader of the file adds its name and what to do."""


def require_name(name: object) -> str:
    """Return ``name`` if it is a single component of a path, on any system, with room for a suffix.

    Raises:
        DocumentError: if it is no text, is empty, begins with a dot, is too long, or contains a separator, a colon (as
            drives do), or a character that does not print.
    """
    return _component(name, LONGEST)


def require_path(path: object) -> str:
    """Return ``path`` if it is relative, with "/" between its components, and stays in its folder on any system.

    Raises:
        DocumentError: if it has a component that is no name (which here includes its suffix), or very many.
    """
    if not isinstance(path, str) or path.count("/") >= _DEEPEST:
        raise DocumentError(f"{shown(path)} is no path of a file in the folder")
    try:
        for part in path.split("/"):
            _component(part, LONGEST + len(".webp"))
    except DocumentError as error:
        raise DocumentError(f"{shown(path)} names a file outside the folder, or none: {error}") from None
    return path


def _component(name: object, longest: int) -> str:
    if not isinstance(name, str) or not name:
        raise DocumentError(f"{shown(name)} is no name")
    if any(character in name for character in "/\\:"):
        raise DocumentError(f"the name {shown(name)} contains a separator of folders or drives")
    if name.startswith("."):
        raise DocumentError(f"the name {shown(name)} begins with a dot")
    if any(unicodedata.category(character) in _NEVER for character in name):
        raise DocumentError(f"the name {shown(name)} contains characters that no file name may have")
    if len(name.encode()) > longest:
        raise DocumentError(f"the name {shown(name)} is longer than {longest} bytes")
    return name


def safe_name(text: str) -> str:
    """Return a name like ``text`` of characters that every file system takes, which :func:`require_name` accepts."""
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text))
    name = f"_{name}" if name.startswith(".") or not name else name
    if len(name.encode()) <= LONGEST:
        return name
    # What was cut off still tells names apart.
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name.encode()[: LONGEST - 17].decode('utf-8', 'ignore')}-{digest}"
