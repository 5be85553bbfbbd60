"""Archives: what they would unpack to is bounded, and what is damaged is one sentence."""

from __future__ import annotations

import gzip
import tarfile
import zipfile

import pytest
from fuzzing import withstand

from hida.weights.archives import open_member


@pytest.mark.parametrize("make", ["zip", "tar", "tar of headers", "tar of members"])
def test_an_archive_that_would_unpack_to_more_is_refused(tmp_path, make):
    path, big, mode = tmp_path / "a", 300 << 20, "w"
    if make == "zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open("m", mode) as member,
        ):
            for _ in range(big >> 20):
                member.write(bytes(1 << 20))
    else:
        with gzip.open(path, "wb", 1) as file:
            entry = tarfile.TarInfo("n" if make == "tar of members" else "m")
            entry.size = big
            entry.type = tarfile.GNUTYPE_LONGNAME if make == "tar of headers" else tarfile.REGTYPE
            file.write(entry.tobuf(tarfile.GNU_FORMAT))
            for _ in range(big >> 20):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 3 << 20

    def read(path):
        with open_member(path, "m", 1 << 20) as stream:
            return stream.read()

    assert withstand(read, [path], memory=600 << 20) == 0
