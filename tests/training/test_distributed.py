"""Joining the other processes of a run: what the environment must say."""

import pytest

from hida.errors import HidaError
from hida.training.distributed import World

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WORLD_SIZE", value) for value in ("x", "0", "-1", "2.0")),
        *(("RANK", value) for value in ("x", "-1", "2")),
        *(("MASTER_PORT", value) for value in ("x", "-1", "65536")),
        ("LOCAL_RANK", "x"),
    ],
)
def test_a_variable_that_is_no_such_number_is_named(name, value, monkeypatch):
    for variable, whole in {**WHOLE, name: value}.items():
        monkeypatch.setenv(variable, whole)
    with pytest.raises(HidaError, match=f"^{name} is '{value}'.*torchrun.*unset WORLD_SIZE"):
        World.join("cpu")


@pytest.mark.parametrize("size", ["", "1", None])
def test_without_torchrun_it_is_one_process(size, monkeypatch):
    for variable in WHOLE:
        monkeypatch.delenv(variable, raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    world = World.join("cpu")
    assert (world.rank, world.size, world.leads) == (0, 1, True)
