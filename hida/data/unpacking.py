"""Read a packed set, which may come from anywhere: what it unpacks to is bounded, and stays in its own folder.

FILE is unpacked into FILE.unpacked next to it, whole or not at all: the pictures that its index names, the index, and
packed.json, by which an unpacked folder is known to be that of FILE. Members with other names are left out, so that a
pack may be zipped again by any program: with entries for folders, in a folder of its own, with a Mac's notes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

from hida.data.packed import RECORD
from hida.data.prepared import FOLDERS, INDEX, PreparedSet
from hida.documents import DocumentError, parse_json, require_name
from hida.documents.values import LARGEST as LARGEST_TEXT
from hida.errors import HidaError, first_line, shown
from hida.files import is_ours, make_usual, named_as, temporary_folder
from hida.files.locks import hold

LARGEST = 16 << 20
"""bytes of one picture; a 250×250 WebP has some 10,000"""
MEMBERS = 200_000
# WebP does not become smaller in a ZIP: pictures that unpack to much more than the file are no pictures. An index is a
# small part of what it describes, and is never larger than the file.
_RATIO, _SPARE = 4, 4 << 20
_LIST = 16 << 20  # bytes of the list of members
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others decompress without a bound
_PIECE = 1 << 20


def prepared_folder(path: Path) -> Path:
    """Return the folder of a prepared set: ``path`` itself, or, of a pack, the folder that it is unpacked into.

    Raises:
        HidaError: if the file is damaged, is no pack, or would unpack to more than a pack does.
    """
    if not path.is_file():
        return path
    folder = path.with_name(f"{path.name}.unpacked")
    try:
        with path.open("rb") as raw:
            pack = _Pack(raw)
            if not pack.is_in(folder):
                hold(raw.fileno(), path, wait=True)  # another process, of torchrun say, may unpack it
                if not pack.is_in(folder):
                    _unpack(pack, folder)
    except DocumentError as error:
        raise HidaError(f"'{path}' is no packed data set, or damaged ({error}); make it with hida pack.") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise HidaError(f"the name of '{path}' is too long, .unpacked is added to it; shorten it.") from None
    return folder


def _unpack(pack: _Pack, folder: Path) -> None:
    """Write the pack's files beside ``folder``, then put them in its place."""
    place = Path(os.path.realpath(folder))  # a link to another disk stays one
    if folder.is_symlink() and not place.exists():
        raise HidaError(f"'{folder}', where the pack is unpacked, is a link to nothing; remove it, or make its target.")
    index = pack.read(INDEX, pack.text)
    loaded = PreparedSet.read_index(parse_json(index), folder)
    names = list(dict.fromkeys(file for pair in loaded.pairs for file in (pair.photo, pair.sketch, pair.depth)))
    _require_ours(folder, place, names, index)
    with contextlib.ExitStack() as stack:
        with named_as(folder):
            temporary = stack.enter_context(temporary_folder(place.parent, place.name))
        for kind in FOLDERS:
            (temporary / kind).mkdir()
        room = _RATIO * pack.size + _SPARE
        for name in names:
            if name.split("/")[0] not in FOLDERS or name.count("/") != 1:
                raise DocumentError(f"{shown(name)} is in none of the folders {', '.join(FOLDERS)}")
            picture = pack.read(name, min(LARGEST, room))
            room -= len(picture)
            (temporary / name).write_bytes(picture)
        (temporary / RECORD).write_bytes(pack.stamp)
        (temporary / INDEX).write_bytes(index)
        if hasattr(os, "sync"):
            os.sync()  # once: thousands of fsyncs take ten times as long
        make_usual(temporary, 0o777)
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)


def _require_ours(folder: Path, place: Path, names: list[str], index: bytes) -> None:
    """Check that nothing is lost when ``place`` is replaced: it holds what was unpacked before, or would be now."""
    if not place.exists():
        return
    if not place.is_dir():
        raise HidaError(f"'{folder}' is a file, and is where the pack is unpacked; move it away.")
    if (place / RECORD).is_file():
        others = sorted({path.name for path in place.iterdir() if not is_ours(path.name)} - {*FOLDERS, INDEX, RECORD})
    else:
        ours = {unicodedata.normalize("NFC", name) for name in names}
        if (place / INDEX).is_file() and (place / INDEX).read_bytes() == index:
            ours.add(INDEX)
        below = [path for path in sorted(place.rglob("*")) if path.is_symlink() or not path.is_dir()]
        others = [path.relative_to(place).as_posix() for path in below]
        others = [name for name in others if unicodedata.normalize("NFC", name) not in ours]
    if others:
        raise HidaError(
            f"'{folder}' holds other files (first: {shown(others[0])}), and is where the pack is unpacked; "
            "move it away."
        )


class _Pack:
    """The members of a ZIP by name, without those that are no part of a pack.

    Raises:
        DocumentError: from the constructor and from :meth:`read`, if the file cannot be read as a pack.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self.size = os.fstat(raw.fileno()).st_size
        try:
            self._archive = zipfile.ZipFile(_Bounded(raw))
        except Exception as error:  # zipfile raises what it likes on damaged files
            raise _damage(error) from None
        found = self._archive.infolist()
        if len(found) > MEMBERS:
            raise DocumentError(f"it holds {len(found):,} files")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in found:
            name = _name(member)
            if name.endswith("/") or name.startswith("__MACOSX/"):
                continue
            if name in self._members:
                raise DocumentError(f"it holds {shown(name)} twice")
            self._members[name] = member
        self._top = self._folder()
        self.text = min(LARGEST_TEXT, self.size + _SPARE)
        record = parse_json(self.read(RECORD, self.text))
        checks = sorted((m.filename, m.CRC) for m in found if not m.filename.endswith("/"))
        self.stamp = json.dumps([record.raw, checks]).encode()

    def _folder(self) -> str:
        """Return the folder that the pack is in inside of the ZIP, with its slash, or nothing."""
        if INDEX in self._members:
            return ""
        tops = [
            name.removesuffix(INDEX) for name in self._members if name.endswith(f"/{INDEX}") and name.count("/") == 1
        ]
        if len(tops) != 1:
            raise DocumentError(f"it holds no {INDEX}")
        require_name(tops[0][:-1])
        return tops[0]

    def is_in(self, folder: Path) -> bool:
        """Return whether ``folder`` holds what this pack unpacks to."""
        record = folder / RECORD
        # The record and the index are written last.
        return (folder / INDEX).is_file() and record.is_file() and record.read_bytes() == self.stamp

    def read(self, name: str, largest: int) -> bytes:
        """Return a member; what it says of its own size is not believed."""
        member = self._members.get(self._top + unicodedata.normalize("NFC", name))
        if member is None:
            raise DocumentError(f"it lacks {shown(name)}")
        if member.flag_bits & 0x1:
            raise DocumentError(f"{shown(name)} is encrypted")
        if member.compress_type not in _METHODS:
            raise DocumentError(f"{shown(name)} is compressed by method {member.compress_type}, which no pack has")
        pieces, total = [], 0
        try:
            with self._archive.open(member) as file:
                while piece := file.read(_PIECE):
                    total += len(piece)
                    if total > largest:
                        break
                    pieces.append(piece)
        except Exception as error:
            raise _damage(error, name) from None
        if total > largest:
            raise DocumentError(f"{shown(name)} unpacks to more than a file of a pack does")
        return b"".join(pieces)


class _Bounded:
    """A file that reads little at once: :mod:`zipfile` reads a list of members of any length into memory."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, _LIST + 1) if size >= 0 else _LIST + 1)
        if len(data) > _LIST:
            raise zipfile.BadZipFile("its list of members is too long")
        return data


def _name(member: zipfile.ZipInfo) -> str:
    """Return a member's name as packs have it, to be found by: it is never a path that something is written to.

    A Mac writes UTF-8 without saying so, and accents as characters of their own; others write "./" or backslashes.
    """
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _damage(error: Exception, name: str = "") -> DocumentError:
    return DocumentError(f"{shown(name)}: {first_line(error)}" if name else first_line(error))
