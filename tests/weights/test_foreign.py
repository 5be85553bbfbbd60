"""Files of weights are data: nothing that one names is ever called."""

from __future__ import annotations

import builtins
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hida.errors import HidaError
from hida.weights.foreign import fill, load_arrays, load_state


class Attack:
    """Unpickling this calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


# The published files are of these two protocols.
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    values = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "t": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(3, 2)),
        "u": np.array([7], np.uint8),
        "e": np.empty((0, 3)),
    }
    path.write_bytes(pickle.dumps(values, protocol))
    got = load_arrays(path)
    assert got.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(got[name], value)
        assert got[name].dtype == value.dtype
    path.write_bytes(pickle.dumps(values["t"], protocol))
    np.testing.assert_array_equal(load_arrays(path), values["t"])


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_either_numpy_generation_come_back(tmp_path, module):
    path = tmp_path / "a.pkl"
    raw = pickle.dumps(np.arange(3.0), 3)
    ours = np.empty(0).__reduce__()[0].__module__.encode()
    assert ours in raw
    path.write_bytes(raw.replace(ours, module.encode()))
    np.testing.assert_array_equal(load_arrays(path), [0, 1, 2])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.mkdir, os.system, builtins.eval, builtins.exec, builtins.__import__])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, function, protocol):
    trace = tmp_path / "ran"
    argument = {
        os.mkdir: str(trace),
        os.system: f"mkdir '{trace}'",
        builtins.eval: f"__import__('os').mkdir({str(trace)!r})",
        builtins.exec: f"__import__('os').mkdir({str(trace)!r})",
        builtins.__import__: "antigravity",
    }[function]
    path = tmp_path / "a.pkl"
    # Inside a good dictionary, behind a good array: refused on sight all the same.
    path.write_bytes(pickle.dumps({"mean": np.zeros(2), "std": Attack(function, argument)}, protocol))
    with pytest.raises(HidaError, match="not a pickle of plain arrays"):
        load_arrays(path)
    assert not trace.exists()
    if function is os.mkdir:
        with path.open("rb") as file:
            pickle.load(file)
        assert trace.exists()  # the attack does work on a reader that trusts it


@pytest.mark.parametrize("module", ["numpy", "numpy.core.multiarray", "numpy._core.multiarray"])
def test_other_functions_of_numpy_are_refused_and_not_run(tmp_path, module):
    path, trace = tmp_path / "a.pkl", tmp_path / "ran"
    call = f"cnumpy\nsavetxt\n(V{trace}\n(lI0\natR.".encode()  # protocol 0, written out: savetxt(trace, [0])
    path.write_bytes(call)
    with path.open("rb") as file:
        pickle.load(file)
    assert trace.exists()  # the attack does work on a reader that trusts it
    trace.unlink()
    path.write_bytes(call.replace(b"cnumpy", b"c" + module.encode()))
    with pytest.raises(HidaError, match=f"it refers to {module}.savetxt"):
        load_arrays(path)
    assert not trace.exists()


def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(2), "more": Attack(os.mkdir, str(trace))}, path)
    with pytest.raises(HidaError, match="cannot be read as weights"):
        load_state(path)
    assert not trace.exists()


def test_code_in_an_object_array_is_refused_and_not_run(tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "a.pkl"
    array = np.empty(1, object)
    array[0] = Attack(os.mkdir, str(trace))
    path.write_bytes(pickle.dumps(array, 4))
    with pytest.raises(HidaError, match="not a pickle of plain arrays"):
        load_arrays(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [3, "text", [np.zeros(2)], {"a": 1}, np.array([None]), {"a": np.array(["x", None])}])
def test_other_contents_are_refused(tmp_path, value):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, 4))
    with pytest.raises(HidaError, match="other than numeric arrays"):
        load_arrays(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("keep", [0, 1, 20, 60, 150])
def test_torn_files_are_named(tmp_path, keep):
    path = tmp_path / "torn.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(100.0)}, 4)[:keep])
    with pytest.raises(HidaError, match=r"torn\.pkl"):
        load_arrays(path)
    for name in ("torn.pth", "torn.safetensors"):
        (tmp_path / name).write_bytes(path.read_bytes())
        with pytest.raises(HidaError, match=name):
            load_state(tmp_path / name)


def test_states_lose_their_wrapping(tmp_path):
    weight, steps = torch.randn(3, 2).half(), torch.tensor(5)
    torch.save({"epoch": 3, "state_dict": {"module.weight": weight, "module.steps": steps}}, tmp_path / "a.pth")
    save_file({"weight": weight, "steps": steps}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        state = load_state(tmp_path / name)
        assert state.keys() == {"weight", "steps"}
        assert state["weight"].dtype == torch.float32
        assert torch.equal(state["weight"], weight.float())
        assert state["steps"].dtype == torch.int64


def test_states_of_something_else_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(HidaError, match="no named tensors"):
        load_state(tmp_path / "a.pth")
    with pytest.raises(HidaError, match=r"b\.pth is not a file of Linear weights"):
        fill(torch.nn.Linear(2, 3), {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, "b.pth")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "absent.pth")
