"""A pack is unpacked whole or not at all, within bounds, and nothing in it can reach outside its folder."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import tracemalloc
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_set import prepared

from hida.data import unpacking
from hida.data.packed import RECORD, pack
from hida.data.prepared import INDEX, PreparedSet
from hida.data.unpacking import prepared_folder
from hida.errors import HidaError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The members of a pack of three pairs, by name."""
    folder = tmp_path_factory.mktemp("made")
    prepared(folder / "set", 3)
    pack(PreparedSet.load(folder / "set"), folder / "set.zip")
    with zipfile.ZipFile(folder / "set.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return path


def changed_index(members, change):
    index = json.loads(members[INDEX])
    change(index)
    return {**members, INDEX: json.dumps(index)}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(path, says):
    """Check that a pack is refused in one sentence, and leaves nothing."""
    before = files(path.parent)
    with pytest.raises(HidaError, match=says) as caught:
        prepared_folder(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
    assert str(path) in str(caught.value)
    assert files(path.parent) == before


def test_a_folder_stays_itself_and_a_second_look_unpacks_nothing(made, tmp_path):
    assert prepared_folder(tmp_path) == tmp_path
    out = write(tmp_path / "set.zip", made)
    folder = prepared_folder(out)
    assert sorted(files(folder)) == sorted([*made, "photo", "sketch", "depth"])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepared_folder(out) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    write(out, {**made, "photo/p0.webp": made["photo/p1.webp"]})
    assert (prepared_folder(out) / "photo/p0.webp").read_bytes() == made["photo/p1.webp"]


@pytest.mark.parametrize(
    "way", ["folders", "mac", "deflated", "in a folder", "mac, in a folder", "dots", "backslashes", "unpacked again"]
)
def test_a_pack_may_be_zipped_again_by_another_program(made, tmp_path, way):
    folders = [(f"{kind}/", b"") for kind in ("photo", "sketch", "depth")]
    mac = [("__MACOSX/", b""), ("__MACOSX/photo/._p0.webp", b"x"), ("photo/.DS_Store", b"x"), (".DS_Store", b"x")]
    members = list(made.items())
    if way == "unpacked again":  # its packed.json is that of the unpacked folder
        shutil.move(prepared_folder(write(tmp_path / "a.zip", made)), tmp_path / "again")
        shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "again")
    else:
        top = "train/" if "in a folder" in way else ""
        members = (folders if "folder" in way else []) + members + (mac if "mac" in way else [])
        members = [(name if name.startswith("__MACOSX") else top + name, data) for name, data in members]
        if way in ("dots", "backslashes"):
            members = [("./" + n if way == "dots" else n.replace("/", "\\"), data) for n, data in members]
        write(tmp_path / "set.zip", members, zipfile.ZIP_DEFLATED if way == "deflated" else zipfile.ZIP_STORED)
    folder = prepared_folder(tmp_path / "set.zip")
    assert len(PreparedSet.load(folder).pairs) == 3
    assert {name for name in files(folder) if "." in name} == set(made)
    assert prepared_folder(tmp_path / "set.zip") == folder


def test_names_with_accents_are_found_as_a_mac_writes_them(made, tmp_path):
    name = unicodedata.normalize("NFC", "Zoë")
    members = changed_index(made, lambda index: index["pairs"][0].update(name=name, photo=f"photo/{name}.webp"))
    data = members.pop("photo/p0.webp")
    utf8 = unicodedata.normalize("NFD", f"photo/{name}.webp").encode()
    out = write(tmp_path / "set.zip", {**members, "photo/" + "x" * (len(utf8) - 6): data})
    # UTF-8 without the flag that says so.
    out.write_bytes(out.read_bytes().replace(b"photo/" + b"x" * (len(utf8) - 6), utf8))
    assert PreparedSet.load(prepared_folder(out)).pairs[0].name == name


def test_only_what_the_index_names_is_written(made, tmp_path):
    evil = (
        "photo/../../evil.webp",
        "photo/a/b.webp",
        "/evil.webp",
        "photo/..\\evil.webp",
        "evil.webp",
        "photo/..",
        "..",
    )
    folder = prepared_folder(write(tmp_path / "set.zip", {**dict.fromkeys(evil, b"x"), **made}))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        tmp_path / "set.zip",
        *(folder / name for name in made),
    }


@pytest.mark.parametrize(
    "name", ["../../evil.webp", "/evil.webp", "photo/..\\evil.webp", "evil.webp", "photo/a/b.webp"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(made, tmp_path, name):
    members = changed_index(made, lambda index: index["pairs"][0].update(photo=name))
    refused(write(tmp_path / "set.zip", {**members, name: b"x"}), "outside the folder|in none of the folders")
    members = changed_index(made, lambda index: index["pairs"][0].update(name=name.removesuffix(".webp") + "/"))
    refused(write(tmp_path / "set.zip", members), r"pairs\[0\]\.name")


def test_other_files_are_refused(made, tmp_path):
    out = tmp_path / "set.zip"
    out.write_text("hello", encoding="utf-8")
    refused(out, "no packed data set, or damaged")
    refused(write(out, {"a.txt": "a"}), "it holds no index.json")
    refused(write(out, {name: data for name, data in made.items() if name != "depth/p1.webp"}), "lacks 'depth/p1.webp'")
    refused(write(out, {name: data for name, data in made.items() if name != RECORD}), "lacks 'packed.json'")
    refused(write(out, {**made, INDEX: "[" * 100_000}), "nested too deeply")
    with pytest.warns(UserWarning, match="Duplicate"):
        write(out, [*made.items(), ("photo/p0.webp", b"x")])
    refused(out, "holds 'photo/p0.webp' twice")
    out.write_bytes(write(out, made).read_bytes()[:-200])
    refused(out, "damaged")


@pytest.mark.parametrize(
    ("offset", "value", "says"), [(8, 1, "' is encrypted"), (10, 12, "method 12"), (10, 99, "method 99")]
)
@pytest.mark.parametrize("name", ["photo/p0.webp", INDEX])
def test_encrypted_members_and_other_methods_are_said(made, tmp_path, offset, value, says, name):
    out = write(tmp_path / "set.zip", made)
    data = bytearray(out.read_bytes())
    entry = data.rfind(name.encode()) - 46  # in the list of members
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + offset : entry + offset + 2] = struct.pack("<H", value)
    out.write_bytes(data)
    refused(out, says)


def bomb(path, members, declared):
    """Write deflated members that say they are ``declared`` bytes long."""
    write(path, members, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        if declared is not None and data[place + 46 :].startswith(b"photo"):
            data[place + 24 : place + 28] = struct.pack("<I", declared)
        place = data.find(b"PK\x01\x02", place + 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("declared", [None, 100])
def test_one_picture_is_bounded_whatever_it_says_of_its_size(made, tmp_path, declared):
    path = bomb(tmp_path / "set.zip", {**made, "photo/p0.webp": b"\0" * (8 * unpacking.LARGEST)}, declared)
    tracemalloc.start()
    refused(path, "unpacks to more|damaged|CRC")
    assert tracemalloc.get_traced_memory()[1] < 2 * unpacking.LARGEST
    tracemalloc.stop()


def test_all_pictures_together_are_bounded_by_the_file(made, tmp_path):
    members = {name: data if data[:1] == b"{" else b"\0" * (2 << 20) for name, data in made.items()}
    refused(write(tmp_path / "set.zip", members, zipfile.ZIP_DEFLATED), "unpacks to more")


def test_the_index_and_the_number_of_members_are_bounded(made, tmp_path, monkeypatch):
    out = tmp_path / "set.zip"
    refused(write(out, {**made, INDEX: b" " * (5 << 20)}, zipfile.ZIP_DEFLATED), "'index.json' unpacks to more")
    refused(write(out, {**made, RECORD: b" " * (5 << 20)}, zipfile.ZIP_DEFLATED), "'packed.json' unpacks to more")
    monkeypatch.setattr(unpacking, "MEMBERS", 10)
    refused(write(out, made), "it holds 11 files")
    monkeypatch.setattr(unpacking, "_LIST", 100)
    refused(out, "list of members is too long")


def test_a_folder_of_someone_else_is_not_replaced(made, tmp_path):
    out, folder = write(tmp_path / "set.zip", made), tmp_path / "set.zip.unpacked"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(HidaError, match="holds other files"):
        prepared_folder(out)
    assert files(folder) == ["thesis.txt"]
    shutil.rmtree(folder)
    (tmp_path / "disk").mkdir()
    folder.symlink_to(tmp_path / "disk")
    assert prepared_folder(out) == folder
    assert folder.is_symlink()
    assert len(PreparedSet.load(folder).pairs) == 3


@pytest.mark.parametrize(
    "name", ["photo/mine.jpg", "photo/album/mine.jpg", "thesis.txt", "index.json", "depth/\x1b[31m"]
)
def test_a_file_that_no_pack_has_put_there_is_never_deleted(made, tmp_path, name):
    out, folder = write(tmp_path / "set.zip", made), tmp_path / "set.zip.unpacked"
    (folder / name).parent.mkdir(parents=True)
    (folder / "sketch").mkdir(exist_ok=True)
    (folder / "sketch/p0.webp").write_bytes(made["sketch/p0.webp"])
    (folder / name).write_text("precious", encoding="utf-8")
    refused(out, "holds other files .*move it away")
    assert (folder / name).read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("names", [[], ["photo/p0.webp", "index.json"], ["photo/old.webp", RECORD]])
def test_what_a_pack_has_put_there_or_would_is_replaced(made, tmp_path, names):
    folder = tmp_path / "set.zip.unpacked"
    for kind in ("photo", "sketch"):
        (folder / kind).mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(made[name] if name == INDEX else b"old")
    assert sorted(files(prepared_folder(write(tmp_path / "set.zip", made)))) == sorted(
        [*made, "photo", "sketch", "depth"]
    )


def test_a_link_to_nothing_and_a_file_in_the_folder_s_place_are_refused(made, tmp_path):
    out, folder = write(tmp_path / "set.zip", made), tmp_path / "set.zip.unpacked"
    folder.symlink_to(tmp_path / "disk" / "gone")
    refused(out, "is a link to nothing")
    folder.unlink()
    (folder / "photo").mkdir(parents=True)
    (folder / "photo/album").symlink_to(tmp_path)
    refused(out, "first: 'photo/album'")
    shutil.rmtree(folder)
    folder.write_text("mine", encoding="utf-8")
    refused(out, "is a file")


@pytest.mark.parametrize("name", ["字" * 80, "😀" * 60, "x" * 242], ids=["three bytes", "four bytes", "one byte"])
def test_long_names_of_packs_are_counted_in_bytes(made, tmp_path, name):
    assert len(PreparedSet.load(prepared_folder(write(tmp_path / f"{name}.zip", made))).pairs) == 3
    refused(write(tmp_path / f"{'y' * 250}.zip", made), "name of .* is too long")


def test_a_stop_while_unpacking_leaves_nothing(made, tmp_path, monkeypatch):
    out = write(tmp_path / "set.zip", made)
    monkeypatch.setattr(os, "umask", lambda mask: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepared_folder(out)
    assert files(tmp_path) == ["set.zip"]


def test_whoever_comes_second_waits_and_unpacks_nothing(made, tmp_path, monkeypatch):
    out, began, real = write(tmp_path / "set.zip", made), [], unpacking.temporary_folder

    def slow(*place):
        began.append(place)
        time.sleep(0.2)
        return real(*place)

    monkeypatch.setattr(unpacking, "temporary_folder", slow)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(prepared_folder, [out] * 3))
    assert len(began) == 1
    assert all(len(PreparedSet.load(folder).pairs) == 3 for folder in folders)
