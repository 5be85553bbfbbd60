"""Networks that are built, and their outlines."""

import pytest
import torch

from hida.config import DiscriminatorConfig, GeneratorConfig
from hida.models import Discriminator, Generator, build_discriminator, build_generator
from hida.models.build import outline


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(base_width=2),
        GeneratorConfig(base_width=2, activation="relu", residual="input", depth=False, dog_levels=()),
        DiscriminatorConfig(base_width=1),
    ],
    ids=["whole", "ablated", "discriminator"],
)
def test_an_outline_has_the_names_and_shapes_of_the_network_and_no_memory(config):
    is_generator = isinstance(config, GeneratorConfig)
    build, network = (build_generator, Generator) if is_generator else (build_discriminator, Discriminator)
    built = build(config).state_dict()
    before = torch.get_rng_state()
    found = outline(network, config).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in built.items()
    }
    assert all(tensor.is_meta for tensor in found.values())
    again = build(config)  # the outline has left nothing switched off
    assert again.state_dict().keys() == built.keys()
    assert all(tensor.device.type == "cpu" for tensor in again.state_dict().values())
    assert not torch.equal(torch.get_rng_state(), before)
