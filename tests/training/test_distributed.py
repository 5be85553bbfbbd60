"""The processes of a run: what the environment must say, and what they tell each other."""

import pytest
import torch

from hida.errors import HidaError
from hida.training import distributed
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


@pytest.fixture
def world(monkeypatch):
    """One of two processes; the other one sends three times what this one does, plus one."""
    monkeypatch.setattr(distributed.distributed, "all_reduce", lambda values: values.mul_(4).add_(1))
    return World(1, 2, torch.device("cpu"))


def test_values_become_their_mean_over_the_processes(world):
    assert world.average(torch.tensor([1.0, 3.0])).tolist() == [2.5, 6.5]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), (1,))]
    parameters[0].grad, parameters[2].grad = torch.ones(2, 2), torch.full((1,), 5.0)
    world.average_gradients(parameters)
    assert parameters[0].grad.tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert (parameters[1].grad, parameters[2].grad.tolist()) == (None, [10.5])


def test_a_flag_of_any_process_counts(world):
    assert world.any(False)  # the other one's is raised
    assert World(0, 1, torch.device("cpu")).any(False) is False
