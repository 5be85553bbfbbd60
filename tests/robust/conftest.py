from __future__ import annotations

import subprocess

import pytest
from commands import make_inputs
from stage import Server, Source, Stage

ISOLATED = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    source = Source(tmp_path_factory.mktemp("source") / "files")
    yield source
    source.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, server, source):
    folder = tmp_path_factory.mktemp("inputs")
    stage = Stage(server, folder, source, tmp_path_factory.mktemp("making"))

    def hida(*words):
        ended = stage.run(list(words), folder, out=f"{folder}.out", err=f"{folder}.err")
        assert ended.status == 0, (words, ended)

    make_inputs(folder, hida)
    return folder


@pytest.fixture(scope="session")
def stage(tmp_path_factory, server, inputs, source):
    return Stage(server, inputs, source, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def isolated(tmp_path_factory, inputs, source):
    """A stage whose processes are in a mount namespace, in which file systems can be mounted."""
    try:
        tried = subprocess.run(
            [*ISOLATED, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, encoding="utf-8", check=False
        )
        refused = tried.stderr if tried.returncode else ""
    except OSError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"no mount namespace is permitted here ({refused.strip()})")
    server = Server(tmp_path_factory.mktemp("server"), ISOLATED)
    yield Stage(server, inputs, source, tmp_path_factory.mktemp("isolated"))
    server.close()
