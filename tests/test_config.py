"""Configurations: the presets say what the documents say, and a wrong entry is named."""

from __future__ import annotations

import dataclasses
import json
import operator
from typing import get_args

import pytest

from hida import config
from hida.config import Config, ConfigError, from_dict, load_preset, presets

# The table of choices: (field, the released code, the paper's text).
CHOICES = [
    ("generator.base_width", 64, 64),
    ("generator.styles", 3, 3),
    ("generator.residual", "activated", "input"),
    ("generator.depth_per_level", "nearest", "gaussian"),
    ("generator.dog_levels", (0, 1), (0, 1)),
    ("generator.dropout", 0.5, 0.5),
    ("discriminator.base_width", 64, 64),
    ("loss.adversarial", "hinge", "cross_entropy"),
    ("loss.mean_difference", 2 * 0.5, 0.0),
    ("loss.fake_depth", "given", "reconstructed"),
    ("loss.texture", "prewitt_photo", "sobel_sketch"),
    ("loss.geometry", "rmse", "mse"),
    ("loss.weight_adversarial", 1.0, 1.0),
    ("loss.weight_pixel", 4.0, 4.0),
    ("loss.weight_texture", 1.0, 1.0),
    ("loss.weight_geometry", 4.0, 4.0),
    ("optimizer.name", "adamw", "adam"),
    ("optimizer.learning_rate", 2e-4, 1e-4),
    ("optimizer.beta1", 0.5, 0.5),
    ("optimizer.beta2", 0.999, 0.999),
    ("optimizer.weight_decay", 0.01, 0.0),
    ("optimizer.constant_epochs", 400, 800),
    ("train.epochs", 800, 800),
    ("train.batch", 4, 4),
    ("augment.flip", True, True),
    ("augment.pad", (286 - 250) // 2, (286 - 250) // 2),
    ("augment.fill_photo", "black", "replicate"),
    ("augment.fill_sketch", "black", "white"),
]


@pytest.mark.parametrize(("path", "released", "paper"), CHOICES, ids=[row[0] for row in CHOICES])
def test_the_presets_are_the_table(path, released, paper):
    get = operator.attrgetter(path)
    assert (get(load_preset("released")), get(load_preset("paper"))) == (released, paper)


def test_every_preset_loads_under_its_name_and_survives_json():
    assert {"paper", "released", "small"} <= set(presets())
    for name in presets():
        config = load_preset(name)
        assert config.name == name
        values = config.to_dict()
        assert json.loads(json.dumps(values)) == values
        assert from_dict(values) == config


def test_small_is_the_same_network_but_narrower():
    small, released = load_preset("small").generator, load_preset("released").generator
    assert small.base_width < released.base_width
    assert dataclasses.replace(small, base_width=released.base_width) == released


def test_an_empty_configuration_is_the_released_one():
    released = load_preset("released")
    assert dataclasses.replace(Config(), name="released") == released


def test_integers_are_taken_for_numbers_and_become_floats():
    config = from_dict({"train": {"epochs": 900}, "generator": {"dog_levels": [0, 3]}})
    assert config.train.epochs == 900.0
    assert isinstance(config.train.epochs, float)
    assert config.generator.dog_levels == (0, 3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"generator": {"width": 3}}, r"generator\.width"),
        ({"colour": 1}, "colour"),
        ({"generator": 3}, "generator"),
        ([], "root"),
        ({"generator": {"base_width": 2.0}}, r"generator\.base_width must be an integer; it is 2\.0"),
        ({"generator": {"base_width": True}}, r"generator\.base_width must be an integer"),
        ({"generator": {"base_width": "64"}}, r"generator\.base_width"),
        ({"generator": {"residual": "sum"}}, r"generator\.residual must be one of activated, input, none; it is 'sum'"),
        ({"generator": {"residual": ["input"]}}, r"generator\.residual"),
        ({"generator": {"dog_levels": 1}}, r"generator\.dog_levels must be a list of integers"),
        ({"generator": {"dog_levels": [0.0]}}, r"generator\.dog_levels"),
        ({"augment": {"flip": 1}}, r"augment\.flip must be true or false"),
        ({"train": {"epochs": True}}, r"train\.epochs must be a number"),
        ({"train": {"epochs": None}}, r"train\.epochs"),
        ({"name": 3}, "name must be a text"),
        ({"generator": {"base_width": 3}}, "base_width must be an even number"),
        ({"generator": {"base_width": 0}}, "base_width"),
        ({"generator": {"styles": 0}}, "styles"),
        ({"generator": {"dog_levels": [7]}}, "dog_levels"),
        ({"generator": {"dropout": 1.0}}, "dropout"),
        ({"discriminator": {"base_width": 0}}, "base_width"),
        ({"discriminator": {"styles": -1}}, "styles"),
        ({"discriminator": {"styles": 2}}, r"styles must be 0 or the generator's number of styles \(3\)"),
        ({"loss": {"weight_pixel": -1.0}}, "weight_pixel"),
        ({"loss": {"mean_difference": float("nan")}}, "mean_difference"),
        ({"optimizer": {"name": "adam"}}, "weight_decay has no effect with adam"),
        ({"optimizer": {"learning_rate": 0}}, "learning_rate"),
        ({"optimizer": {"learning_rate": float("inf")}}, "learning_rate"),
        ({"optimizer": {"beta1": 1.0}}, "beta1"),
        ({"optimizer": {"weight_decay": -0.1}}, "weight_decay"),
        ({"optimizer": {"constant_epochs": -1}}, "constant_epochs"),
        ({"optimizer": {"constant_epochs": 900}}, "constant_epochs must not exceed train.epochs"),
        ({"augment": {"pad": 2}}, "pad"),
        ({"augment": {"jitter": 1.5}}, "jitter"),
        ({"augment": {"scale": 1}}, "scale"),
        ({"augment": {"rotate": float("nan")}}, "rotate"),
        ({"train": {"batch": 0}}, "batch"),
        ({"train": {"epochs": 0}}, "epochs"),
        ({"train": {"epochs": float("inf")}}, "epochs"),
        ({"train": {"seed": -1}}, "seed"),
        ({"train": {"holdout": -1}}, "holdout"),
        ({"train": {"ema": 1.0}}, "ema"),
        ({"train": {"keep": 0}}, "keep"),
        ({"train": {"log_every": 0}}, "log_every"),
        ({"train": {"checkpoint_minutes": 0}}, "checkpoint_minutes"),
        ({"train": {"threads": -1}}, "threads"),
        ({"train": {"clip": -1}}, "clip"),
        ({"train": {"precision": "half"}}, r"train\.precision"),
        ({"train": {"cudnn_benchmark": -1}}, "cudnn_benchmark"),
        ({"train": {"minutes": -1}}, "minutes"),
        ({"train": {"minutes": float("inf")}}, "minutes"),
        ({"train": {"minutes": 5}}, r"train\.minutes is 5 but .* add --optimizer\.schedule elapsed"),
        ({"optimizer": {"schedule": "elapsed"}}, r"train\.minutes is 0; give --train\.minutes"),
        ({"optimizer": {"schedule": "steps"}}, r"optimizer\.schedule must be one of epochs, elapsed"),
        ({"optimizer": {"decay_share": 1.1}}, "decay_share must be in"),
        ({"optimizer": {"warmup_epochs": 500}}, "warmup_epochs must be in"),
        ({"generator": {"activation": "relu"}}, "residual has no activated map"),
        ({"generator": {"modulation": "none"}}, "residual belongs to DySPADE"),
        ({"generator": {"modulation": "none", "residual": "input"}}, "residual belongs to DySPADE"),
        ({"generator": {"activation": "relu", "modulation": "none", "residual": "none"}}, "style_map has no effect"),
        ({"generator": {"depth": False, "depth_per_level": "gaussian"}}, "depth_per_level has no effect"),
        ({"generator": {"depth": False, "style_map": False}}, "depth and style_map cannot both"),
        ({"generator": {"depth": False}}, "weight_geometry has no effect"),
    ],
)
def test_a_wrong_entry_is_named(values, named):
    with pytest.raises(ConfigError, match=named):
        from_dict(values)


def test_epochs_set_no_bounds_where_the_time_does():
    values = {
        "optimizer": {"schedule": "elapsed", "constant_epochs": 3, "warmup_epochs": 4},
        "train": {"epochs": 2, "minutes": 5},
    }
    assert from_dict(values).seconds == 300
    assert Config().seconds == float("inf")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[generator]\nbase_width = 8\n[train]\nepochs = 400\n", encoding="utf-8")
    config = load_preset(str(path))
    assert (config.name, config.generator.base_width, config.train.epochs) == ("mine", 8, 400)


@pytest.mark.parametrize("content", [b"[generator\n", b"\xff\xfe", None])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.toml' cannot be read"):
        load_preset(str(path))


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no preset 'large'; choose one of .*paper, released, small"):
        load_preset("large")


def test_choices_that_are_repeated_to_load_without_torch_are_the_same():
    from hida.cli.photos import Frame
    from hida.drawing.sketcher import Frame as OfSketcher
    from hida.metrics.protocol import METRICS
    from hida.nn.activation import Activation
    from hida.ops.ida import Residual
    from hida.training.options import METRICS as OFFERED

    assert get_args(config.Activation) == get_args(Activation)
    assert get_args(config.Residual) == get_args(Residual)
    assert get_args(Frame) == get_args(OfSketcher)
    assert tuple(metric.key for metric in METRICS if metric.usual) == OFFERED
