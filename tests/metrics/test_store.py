"""The store of results: shared by processes, never torn, and never what ends a computation."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from runs import PROCESS

from hida.errors import HidaError
from hida.metrics import store as module
from hida.metrics.store import Kind, Store

ONE = Kind(1, 10.0)


@pytest.fixture
def impatient(monkeypatch):
    """Waits are short; what was waited for is what happens afterwards."""
    for name in ("_WAIT_AT_OPENING", "_WAIT_AT_WORK", "_WAIT_AT_END", "_WAIT_AT_INTERRUPTION"):
        monkeypatch.setattr(module, name, 0.3)


def results(path) -> dict[str, float]:
    with sqlite3.connect(path) as database:
        found = {key: float(np.frombuffer(value)[0]) for key, value in database.execute("SELECT * FROM result")}
    database.close()
    return found


# Only this module: the package of the metrics loads torch, which takes seconds.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store", {module.__file__!r})
sys.modules["store"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["store"])
"""


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=PROCESS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def test_results_are_read_back_before_and_after_they_are_committed(tmp_path):
    with Store(tmp_path / "s") as store:
        store.put("a", np.array([1.5]))
        assert store.get("a", ONE) == 1.5
        assert results(tmp_path / "s") == {}
        store.commit()
        assert results(tmp_path / "s") == {"a": 1.5}
        assert store.get("a", ONE) == 1.5
        store.put("a", np.array([2.5]))
        assert store.get("a", ONE) == 2.5
        assert store.get("a", Kind(1, 2.0)) is None  # out of range, pending as much as stored
        assert store.get("a", Kind(2, 10.0)) is None
    assert results(tmp_path / "s") == {"a": 2.5}
    assert Store().get("a", ONE) is None


def test_what_was_put_is_kept_after_some_seconds_without_a_commit(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    store = Store(tmp_path / "s")
    store.put("a", np.array([1.0]))
    assert results(tmp_path / "s") == {}
    now += module._LONGEST_PENDING + 0.1
    store.put("b", np.array([2.0]))
    assert results(tmp_path / "s") == {"a": 1.0, "b": 2.0}


def test_no_lock_is_held_between_commits(tmp_path):
    first, second = Store(tmp_path / "s"), Store(tmp_path / "s")
    first.put("a", np.array([1.0]))
    second.put("a", np.array([2.0]))
    second.put("b", np.array([3.0]))
    began = time.monotonic()
    second.commit()
    first.commit()
    assert time.monotonic() - began < 5
    assert results(tmp_path / "s") == {"a": 1.0, "b": 3.0}
    assert first.get("b", ONE) == 3.0  # what another process commits is seen


WRITER = f"""{LOAD}
import sys, numpy as np
from store import Kind, Store
with Store(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for k in range(20):
        store.put("common" + str(k), np.array([k / 10]))
        store.put(sys.argv[2] + " " + str(k), np.array([k / 10]))
        store.commit()
"""


def test_processes_write_the_same_keys_at_once(tmp_path):
    writers = [python(WRITER, tmp_path / "s", name) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0, 0]
    assert results(tmp_path / "s") == {f"{name}{k}": k / 10 for name in ("common", "a ", "b ") for k in range(20)}
    assert os.listdir(tmp_path) == ["s"]


KILLED = f"""{LOAD}
import sys, numpy as np
from store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
for k in range(10**6):
    store.put(str(k), np.full(2048, 1.0))
    if k % 20 == 0:
        store.commit()
"""


@pytest.mark.parametrize("delay", [0.003, 0.05, 0.11])
def test_a_killed_process_leaves_a_readable_store_and_no_journal_that_stays(tmp_path, delay):
    process = python(KILLED, tmp_path / "s")
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.kill()
    process.communicate()
    with Store(tmp_path / "s") as store:
        store.put("new", np.array([1.0]))
    with sqlite3.connect(tmp_path / "s") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count = database.execute("SELECT count(*) FROM result").fetchone()[0]
    database.close()
    assert (count - 1) % 20 in (0, 1)  # whole transactions: the first has one result, others have twenty
    assert os.listdir(tmp_path) == ["s"]


HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    database.execute(statement).fetchone()
print("held", flush=True)
sys.stdin.readline()
"""
READER = ("BEGIN", "SELECT * FROM result")
WAITING_READER = ("BEGIN IMMEDIATE",)
ALONE = ("BEGIN EXCLUSIVE",)


def end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def held(tmp_path):
    """Have another process hold a lock of the store, until it is told to end."""
    Store(tmp_path / "s").close()
    started = []

    def hold(*statements):
        started.append(python(HOLDER, tmp_path / "s", *statements))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        end(process)


@pytest.mark.parametrize("statements", [READER, WAITING_READER, ALONE], ids=["reader", "writer", "exclusive"])
def test_work_goes_on_while_another_process_holds_the_store(tmp_path, impatient, held, statements):
    store = Store(tmp_path / "s")
    holder = held(*statements)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        store.put("a", np.array([1.0]))
        store.commit()
        store.put("b", np.array([2.0]))
        store.commit()
        assert store.get("a", ONE) == 1.0
        assert store.get("nothing", ONE) is None
    (text,) = (str(warning.message) for warning in told)
    assert re.search(r"locked by another process.*wait.*--cache none", text)
    assert "delete" not in text
    end(holder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.close()
    assert results(tmp_path / "s") == {"a": 1.0, "b": 2.0}


def test_a_store_that_stays_locked_is_said_with_what_is_lost(tmp_path, impatient, held):
    store = Store(tmp_path / "s")
    held(*WAITING_READER)
    store.put("a", np.array([1.0]))
    with pytest.warns(UserWarning, match=r"locked by another process.*1 result") as told:
        store.close()
    assert len(told) == 1
    assert results(tmp_path / "s") == {}


def test_a_store_locked_from_the_beginning_is_one_sentence(tmp_path, impatient, held):
    held(*ALONE)
    with pytest.raises(HidaError, match=r"locked by another process; wait.*--cache none") as error:
        Store(tmp_path / "s")
    assert "delete" not in str(error.value)


def test_waiting_for_a_lock_can_be_interrupted(tmp_path, held):
    store = Store(tmp_path / "s")
    holder = held(*ALONE)
    script = f"import os, signal, time; time.sleep(0.3); os.kill({os.getpid()}, signal.SIGINT)"
    store.put("a", np.array([1.0]))
    interrupter = python(script)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.commit()
    assert time.monotonic() - began < 5
    interrupter.communicate(timeout=30)
    end(holder)
    store.close()
    assert results(tmp_path / "s") == {"a": 1.0}


@pytest.mark.parametrize("damage", ["foreign", "torn", "other table"])
def test_a_damaged_store_is_said_as_damaged(tmp_path, damage):
    path = tmp_path / "store.sqlite"
    if damage == "foreign":
        path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    elif damage == "torn":
        with Store(path) as store:
            for k in range(300):
                store.put(str(k), np.full(20, 1.0))
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    else:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE result (x, y)")
        database.close()
    with pytest.raises(HidaError, match=r"store\.sqlite cannot be used.*damaged.*delete it.*--cache none"):
        Store(path).get("7", ONE)


def test_what_is_no_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(HidaError, match=r"no regular file.*--cache none"):
            Store(path)


def _small_disk(folder, script):
    """Run a script as root of its own namespace, with a disk of 300 KiB at ``folder``."""
    mount = 'mount -t tmpfs -o size=300k,mode=755 none "$0" && exec "$1" -c "$2" "$0"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(folder), sys.executable, script]
    return subprocess.run(command, env=PROCESS, capture_output=True, encoding="utf-8")


def _may_mount(tmp_path_factory=None):
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not _may_mount(), reason="needs a name space of its own")

FULL = f"""{LOAD}
import os, sys, numpy as np
from store import Kind, Store
with Store(sys.argv[1] + "/s") as store:
    for k in range(200):
        store.put(str(k), np.full(2048, 1.0))
        store.commit()
    print(*set(store.get(str(k), Kind(2048, 1.0)).sum() for k in range(200)))
print(os.listdir(sys.argv[1]))
with Store(sys.argv[1] + "/s") as store:
    print(store.get("0", Kind(2048, 1.0)).sum())
"""

READ_ONLY = f"""{LOAD}
import os, subprocess, sys, numpy as np
from store import Kind, Store
folder = sys.argv[1]
with Store(folder + "/s") as store:
    store.put("a", np.array([1.0]))
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for name in ("/s", "/new", "/below/new"):
    with Store(folder + name) as store:
        print(store.get("a", Kind(1, 1.0)))
        store.put("b", np.array([0.5]))
        store.commit()
        print(store.get("b", Kind(1, 1.0)))
print(os.listdir(folder))
"""


@needs_mount
def test_on_a_full_disk_work_goes_on_with_one_warning(tmp_path):
    done = _small_disk(tmp_path, FULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2048.0", "['s']", "2048.0"]
    assert done.stderr.count("HidaWarning") == 1
    assert "full" in done.stderr
    assert "not kept" in done.stderr


@needs_mount
def test_a_read_only_store_is_read_and_one_warning_says_that_nothing_is_kept(tmp_path):
    done = _small_disk(tmp_path, READ_ONLY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[1.]", "[0.5]", "None", "[0.5]", "None", "[0.5]", "['s']"]
    assert done.stderr.count("HidaWarning") == 3  # one for each store
    assert done.stderr.count("not kept.\n") == 3
