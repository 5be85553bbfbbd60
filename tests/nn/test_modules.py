"""The modules built on the ops, against their parts written out with torch.nn.functional."""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
from torch.nn import functional
from tracing import IMAGES, compiles_once, exports

from hida import ops
from hida.nn import DOG, DynamicAdaptation, DySPADE, InfoACON, InstanceNorm, MetaACON
from hida.ops import library


@pytest.mark.parametrize(("channels", "hidden"), [(1, 16), (64, 16), (256, 16), (512, 32)])
def test_metaacon_squeezes_to_a_sixteenth_but_not_below_sixteen(channels, hidden):
    module = MetaACON(channels)
    assert module.squeeze.weight.shape == (hidden, channels, 1, 1)
    parameters = 2 * channels * hidden + hidden + channels + 2 * channels
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_metaacon_switches_a_whole_channel_by_its_mean():
    torch.manual_seed(0)
    module, x = MetaACON(3).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    matrices = [layer.weight.detach().flatten(1) for layer in (module.squeeze, module.expand)]
    hidden = x.mean((2, 3)) @ matrices[0].T + module.squeeze.bias
    logits = (hidden @ matrices[1].T + module.expand.bias)[:, :, None, None]
    torch.testing.assert_close(module(x), oracle.info_acon(x, logits, module.p1, module.p2))
    torch.testing.assert_close(module.products(x.mean((2, 3), keepdim=True)), logits)


def fused(module, h, logits, gamma, beta):
    return oracle.ida(h, logits, gamma, beta, module.p1, module.p2, module.residual)


def modulated(module, h, gamma, beta):
    return oracle.instance_norm_modulate(h, gamma, beta, h if module.residual == "input" else None)


def switched(module, h, logits):
    return oracle.instance_norm_modulate(oracle.info_acon(h, logits, module.p1, module.p2), 0, 0)


@pytest.mark.parametrize(
    ("make", "formula"),
    [
        *[((DynamicAdaptation, 4, 5, residual), fused) for residual in ("activated", "input", "none")],
        *[((DySPADE, 4, 5, *more), modulated) for more in itertools.product(("input", "none"), ("meta_acon", "relu"))],
        ((InfoACON, 4, 5), switched),
    ],
    ids=str,
)
def test_an_adaptation_is_one_convolution_of_the_condition_to_its_maps_in_their_order(make, formula):
    torch.manual_seed(0)
    kind, *arguments = make
    module, (h, condition) = kind(*arguments).double(), (torch.randn(2, c, 6, 6, dtype=torch.float64) for c in (4, 5))
    hidden = module.activation(functional.conv2d(condition, module.embed.weight, module.embed.bias, padding=1))
    maps = functional.conv2d(hidden, module.modulation.weight, module.modulation.bias, padding=1).split(4, 1)
    torch.testing.assert_close(module(h, condition), formula(module, h, *maps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_norm_without_native_ops_whatever_the_layout_of_its_gradient(batch, layout):
    """Of planes with a spread like the root of eps, which shows where eps is added."""
    torch.manual_seed(0)
    x, upstream = 3e-3 * torch.randn(batch, 16, 4, 4), torch.randn(batch, 16, 4, 4)
    given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    with ops.backend("reference"):
        found = InstanceNorm(0.2, 0.4)(given)
        found.backward(upstream.contiguous(memory_format=layout))
    rest = torch.where(exact > 0, exact, 0.2 * exact)
    rest = rest - rest.mean((2, 3), keepdim=True)
    unit = rest / (rest.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    right = torch.where(unit > 0, unit, 0.4 * unit)
    right.backward(upstream.double())
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=1e-5, atol=1e-5 * float(exact.grad.abs().max()))


def test_dog_starts_as_an_ordinary_convolution_with_half_weights():
    torch.manual_seed(0)
    module, x = DOG(4, 3), torch.randn(2, 4, 3, 5)
    assert module.offset_mask.weight.shape == (54, 4, 3, 3)
    large = functional.interpolate(x, size=(6, 10), mode="bilinear", align_corners=False)
    expected = functional.conv2d(large, module.weight / 2, module.bias, padding=1)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_dog_takes_offsets_first_and_mask_logits_last():
    torch.manual_seed(0)
    module, x = DOG(4, 3), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        module.offset_mask.bias[:36:2] = 100.0  # the rows of every tap, far outside
        torch.testing.assert_close(module(x), module.bias[None, :, None, None].expand(1, 3, 8, 8))
        module.offset_mask.bias.zero_()
        module.offset_mask.bias[36:45] = 100.0  # the first deformable group's masks: 1
        module.offset_mask.bias[45:] = -100.0  # the second's: 0
        large = functional.interpolate(x, scale_factor=2, mode="bilinear")
        expected = functional.conv2d(large[:, :2], module.weight[:, :2], module.bias, padding=1)
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_dog_learns_where_to_look_from_its_first_step():
    torch.manual_seed(0)
    module, x = DOG(2, 2).double(), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    module(x).square().sum().backward()
    gradient = module.offset_mask.bias.grad.clone()
    with torch.no_grad():
        # One-sided difference: at whole offsets the slope is that of the cell behind the point.
        for channel in (0, 1, 17, 35, 36, 53):
            values = []
            for step in (0.0, 1e-6):
                module.offset_mask.bias.zero_()
                module.offset_mask.bias[channel] = step
                values.append(module(x).square().sum())
            slope = (values[1] - values[0]) / 1e-6
            torch.testing.assert_close(gradient[channel], slope, rtol=1e-3, atol=1e-4)


def test_dog_keeps_its_coordinates_in_full_precision_under_autocast():
    module, x = DOG(4, 4), torch.randn(1, 4, 3, 3)
    torch.nn.init.normal_(module.offset_mask.weight)
    seen = []
    module.offset_mask.register_forward_hook(lambda _module, given, result: seen.append((given[0].dtype, result.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x.bfloat16())
    assert seen == [(torch.float32, torch.float32)]
    assert y.dtype == torch.bfloat16


# C, 6, is more and less than H.
SIZES = (5, 7, 9), (1, 1, 1), (2, 17, 3), (7, 40, 33)
MODULES = {
    "metaACON": lambda: MetaACON(6),
    "adaptation": lambda: DynamicAdaptation(6, 4, "activated"),
    "DySPADE": lambda: DySPADE(6, 4, "input", "relu"),
    "InfoACON": lambda: InfoACON(6, 4),
    "DOG": lambda: DOG(6, 5),
    "norm": lambda: InstanceNorm(0.2, 0.2),
}
QUICK = ("metaACON", "adaptation")
by_name = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODULES]
)
by_backend = pytest.mark.parametrize(
    "backend",
    ["reference", pytest.param("native", marks=pytest.mark.skipif(not library.loaded, reason="no native library"))],
)


def given(name, n, h, w):
    image = torch.randn(n, 6, h, w)
    return (image, torch.randn(n, 4, h, w)) if name in ("adaptation", "DySPADE", "InfoACON") else (image,)


@by_name
@by_backend
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_module_takes_any_number_of_images_and_any_size(name, backend, strict):
    torch.manual_seed(0)
    with ops.backend(backend):
        kinds = [IMAGES] * len(given(name, 1, 1, 1))
        exports(MODULES[name](), lambda *size: given(name, *size), kinds, SIZES, strict)


@by_name
@by_backend
@pytest.mark.slow
def test_a_compiled_module_is_compiled_once_for_all_sizes(name, backend):
    torch.manual_seed(0)
    with ops.backend(backend):
        compiles_once(MODULES[name](), lambda *size: given(name, *size), [s for s in SIZES if 1 not in s])
