"""The generator: size, shapes, styles, and that everything in it takes part."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_set import inputs
from torch.export import Dim
from tracing import compiles_once, exports

from hida import ops
from hida.config import DiscriminatorConfig, GeneratorConfig, load_preset
from hida.errors import HidaError
from hida.models import build_generator
from hida.ops import OpError, library

TINY = GeneratorConfig(base_width=2)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_generator(TINY).eval()


def test_a_configuration_and_a_preset_name_build_the_same():
    with torch.device("meta"):
        built = [build_generator(given) for given in ("small", load_preset("small"), load_preset("small").generator)]
    shapes = [{name: p.shape for name, p in module.named_parameters()} for module in built]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 256, 256), (1, 256, 512), (1, 512, 256)])
def test_sketch_and_depth_have_the_size_of_the_photo(generator, batch, height, width):
    with torch.inference_mode():
        sketch, depth_hat = generator(*inputs(batch, height, width))
    assert sketch.shape == depth_hat.shape == (batch, 1, height, width)
    assert sketch.abs().max() <= 1
    assert sketch.std() > 0


def test_level_shapes_follow_the_table():
    torch.manual_seed(0)
    module = build_generator(GeneratorConfig(base_width=4)).eval()
    sizes = {}

    def note(name):
        return lambda _module, _given, result: sizes.__setitem__(name, tuple(result.shape[1:]))

    for kind in ("encoder", "decoder"):
        for index, level in enumerate(getattr(module, kind)):
            level.register_forward_hook(note((kind, index)))
    with torch.inference_mode():
        module(*inputs())
    encoder = [(8, 64), (16, 32), (32, 16), (32, 8), (32, 4), (32, 2), (32, 1)]
    decoder = [(32, 2), (32, 4), (32, 8), (32, 16), (16, 32), (8, 64), (4, 128)]
    assert sizes == {
        (kind, index): (channels, side, side)
        for kind, table in (("encoder", encoder), ("decoder", decoder))
        for index, (channels, side) in enumerate(table)
    }


@pytest.mark.parametrize("side", [300, 128, 0])
def test_other_sizes_are_refused_with_the_reason(generator, side):
    with pytest.raises(OpError, match="multiples of 256, since the encoder halves them eight times"):
        generator(*inputs(1, side, 256))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("photo", lambda p, d, s: (p[:, :1], d, s)),
        ("photo", lambda p, d, s: (p[0], d, s)),
        ("depth", lambda p, d, s: (p, d[:, :, ::2], s)),
        ("depth", lambda p, d, s: (p, p, s)),
        ("photo", lambda p, d, s: (None, d, s)),
        ("photo", lambda p, d, s: (p.to_sparse(), d, s)),
        ("photo", lambda p, d, s: (p.byte(), d, s)),
        ("depth", lambda p, d, s: (p, 1.0, s)),
        ("style", lambda p, d, s: (p, d, torch.zeros(1, 4))),
        ("style", lambda p, d, s: (p, d, None)),
        ("style", lambda p, d, s: (p, d, 1.0)),
        ("style", lambda p, d, s: (p, d, torch.tensor(1))),
        ("style", lambda p, d, s: (p, d, torch.tensor([True]))),
        ("style", lambda p, d, s: (p, d, torch.tensor([1 + 0j]))),
    ],
)
def test_a_wrong_argument_is_named(generator, name, change):
    with pytest.raises(OpError, match=f"^{name} must"):
        generator(*change(*inputs()))


def test_style_numbers_equal_one_hot_weights_and_mixtures_differ(generator):
    photo, depth, _ = inputs()
    with torch.inference_mode():
        drawn = {style: generator(photo, depth, torch.tensor([style]))[0] for style in range(3)}
        for style in range(3):
            one_hot = torch.eye(3)[style : style + 1]
            torch.testing.assert_close(generator(photo, depth, one_hot)[0], drawn[style], rtol=0, atol=0)
        mixed = generator(photo, depth, torch.tensor([[0.5, 0.5, 0.0]]))[0]
    differences = [(a - b).abs().max() for a, b in ((drawn[0], drawn[1]), (drawn[1], drawn[2]), (mixed, drawn[0]))]
    assert min(differences) > 1e-6


def test_pairs_of_a_batch_do_not_touch_each_other(generator):
    photo, depth, style = inputs(2)
    with torch.inference_mode():
        both = generator(photo, depth, style)[0]
        alone = generator(photo[1:], depth[1:], style[1:])[0]
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_an_empty_batch(generator):
    with torch.inference_mode():
        assert generator(*inputs(0))[0].shape == (0, 1, 256, 256)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    module = build_generator(dataclasses.replace(TINY, dropout=0.0))
    with torch.no_grad():
        # A zero convolution passes no gradient back; its own gradient is what is wanted here.
        for level in module.decoder[:2]:
            assert not level.up.offset_mask.weight.any()
    sketch, depth_hat = module(*inputs(2))
    (sketch.square().mean() + depth_hat.square().mean()).backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_dropout_is_behind_the_three_innermost_levels():
    module = build_generator(TINY)
    assert [level.dropout.p for level in module.decoder] == [0.5, 0.5, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize("levels", [(), (0, 1), (2, 3, 4), tuple(range(7))])
def test_dog_stands_where_the_configuration_says(levels):
    with torch.device("meta"):
        module = build_generator(dataclasses.replace(TINY, dog_levels=levels))
    found = tuple(k for k, level in enumerate(module.decoder) if type(level.up).__name__ == "DOG")
    assert found == levels


def test_the_condition_is_depth_then_style_then_appearance(generator):
    # Style channels stand at 1..3 of the first condition convolution: zeroing them there removes the style.
    photo, depth, _ = inputs()
    weight = generator.decoder[0].adaptation.embed.weight
    assert weight.shape[1] == 4  # no appearance at the innermost level
    assert all(level.adaptation.embed.weight.shape[1] == 5 for level in generator.decoder[1:])
    kept = [level.adaptation.embed.weight.detach().clone() for level in generator.decoder]
    with torch.inference_mode():
        for level in generator.decoder:
            level.adaptation.embed.weight[:, 1:4] = 0
        a, b = (generator(photo, depth, torch.tensor([style]))[0] for style in (0, 2))
        for level, saved in zip(generator.decoder, kept, strict=True):
            level.adaptation.embed.weight.copy_(saved)
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [None, 3, b"small", DiscriminatorConfig()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_configuration_is_refused(wrong):
    with pytest.raises(HidaError, match=r"^config must be a Config, a GeneratorConfig or a preset's name"):
        build_generator(wrong)


def test_without_values_it_gives_the_sizes():
    with torch.device("meta"):
        photo, depth, style = torch.empty(2, 3, 512, 256), torch.empty(2, 1, 512, 256), torch.empty(2, 3)
        sketch, depth_hat = build_generator(TINY)(photo, depth, style)
    assert sketch.shape == depth_hat.shape == (2, 1, 512, 256)


def steered(kind, n, h, w):
    photo, depth, style = inputs(n, h, w)
    if kind == "weights":
        style = torch.rand(n, 3)
    return photo, depth, torch.rand(n, 3, h // 4, w // 4) if kind == "map" else style


# 512 at least: at 256 the bottleneck is one pixel, and torch takes a size of 1 as a constant of the graph.
SIZES = (2, 512, 768), (1, 768, 512), (5, 512, 512)
on_backends = pytest.mark.parametrize(
    "backend",
    ["reference", pytest.param("native", marks=pytest.mark.skipif(not library.loaded, reason="no native library"))],
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "change", "strict"),
    [
        ("index", {}, True),
        ("weights", {"residual": "input"}, False),
        ("map", {"depth_per_level": "gaussian"}, True),
    ],
)
@on_backends
def test_an_export_takes_any_number_of_photos_and_any_multiple_of_256(style, change, backend, strict):
    torch.manual_seed(0)
    module, rows, columns = build_generator(dataclasses.replace(TINY, **change)).eval(), Dim("rows"), Dim("columns")
    images = {0: Dim("N"), 2: 256 * rows, 3: 256 * columns}
    third = {"map": {0: images[0], 2: 64 * rows, 3: 64 * columns}}.get(style, {0: images[0]})
    with ops.backend(backend), torch.no_grad():
        program = exports(module, lambda *size: steered(style, *size), (images, images, third), SIZES, strict)
        unguarded = program.module(check_guards=False)
        for size in ((1, 256, 256), (3, 256, 512)):
            given = steered(style, *size)
            torch.testing.assert_close(unguarded(*given), module(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@on_backends
def test_it_is_compiled_once_for_all_sizes(backend):
    torch.manual_seed(0)
    module = build_generator(TINY).eval()
    with ops.backend(backend), torch.no_grad():
        compiles_once(module, lambda *size: steered("index", *size), [(2, 512, 768), (4, 768, 512), (2, 1024, 512)])
