"""The discriminator: size, shapes, and the order of its layers."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from tracing import IMAGES, compiles_once, exports

from hida import ops
from hida.config import DiscriminatorConfig
from hida.models import build_discriminator
from hida.models.discriminator import _halved
from hida.ops import OpError, library
from hida.ops.layout import channels_last


def test_the_released_width_has_the_released_number_of_parameters():
    with torch.device("meta"):
        module = build_discriminator("released")
    assert sum(p.numel() for p in module.parameters()) == 2_763_713


def test_a_patch_map_of_35():
    module = build_discriminator(DiscriminatorConfig(base_width=2))
    image = torch.rand(2, 1, 256, 256)
    assert module(image, image).shape == (2, 1, 35, 35)
    assert module(image[:, :, :, :128], image[:, :, :, :128]).shape == (2, 1, 35, 19)


def test_the_layers_written_out():
    torch.manual_seed(0)
    module = build_discriminator(DiscriminatorConfig(base_width=2)).double()
    depth, sketch = torch.rand(2, 2, 1, 64, 64, dtype=torch.float64)
    convolutions = [layer for layer in module.layers if isinstance(layer, torch.nn.Conv2d)]
    x = torch.cat((depth, sketch), 1)
    for index, (layer, stride) in enumerate(zip(convolutions, (2, 2, 2, 1, 1), strict=True)):
        x = functional.conv2d(x, layer.weight, layer.bias, stride, 2)
        if index < 3:
            x = functional.instance_norm(functional.leaky_relu(x, 0.2))
        elif index == 3:
            x = functional.leaky_relu(functional.instance_norm(functional.leaky_relu(x, 0.2)), 0.2)
    torch.testing.assert_close(module(depth, sketch), x)


@pytest.mark.parametrize(
    ("depth", "sketch"),
    [(torch.ones(1, 1, 64, 64), torch.ones(1, 1, 64, 32)), (torch.ones(1, 3, 64, 64),) * 2, (torch.ones(64, 64),) * 2],
)
def test_wrong_shapes_are_refused(depth, sketch):
    module = build_discriminator(DiscriminatorConfig(base_width=1))
    with pytest.raises(OpError, match="depth and sketch must both have shape"):
        module(depth, sketch)


def test_further_scales_see_the_picture_made_smaller():
    torch.manual_seed(0)
    module = build_discriminator(DiscriminatorConfig(base_width=2, scales=3)).double()
    depth, sketch = torch.rand(2, 2, 1, 64, 64, dtype=torch.float64)
    logits = module.logits(depth, sketch)
    assert torch.equal(logits[0], module(depth, sketch))
    image = torch.cat((depth, sketch), 1)
    for found, layers in zip(logits[1:], module.coarser, strict=True):
        inner = functional.pad(image, (1, 1, 1, 1))
        count = functional.pad(torch.ones_like(image), (1, 1, 1, 1))
        sums = [t.unfold(2, 3, 2).unfold(3, 3, 2).sum((-1, -2)) for t in (inner, count)]
        image = sums[0] / sums[1]
        torch.testing.assert_close(found, layers(image))
    single = build_discriminator(DiscriminatorConfig(base_width=2))
    assert sum(p.numel() for p in module.parameters()) == 3 * sum(p.numel() for p in single.parameters())


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_the_gradient_at_further_scales_in_nhwc(device):
    """PyTorch's own gradient of a padded mean in NHWC was wrong on a GPU."""
    torch.manual_seed(0)
    image = torch.rand(2, 5, 34, 47, dtype=torch.float64)
    right, found = image.clone().requires_grad_(), image.to(device, memory_format=torch.channels_last).requires_grad_()
    expected = _halved(right)
    upstream = torch.rand_like(expected)
    expected.backward(upstream)
    made = _halved(found)
    assert made.is_contiguous(memory_format=torch.channels_last)
    made.backward(upstream.to(device))
    torch.testing.assert_close(made.cpu(), expected)
    torch.testing.assert_close(found.grad.cpu(), right.grad)


@pytest.mark.skipif(not torch.version.cuda, reason="a CPU build of torch has no tensors without memory on a GPU")
def test_on_a_gpu_no_padded_mean_is_in_nhwc():
    layouts = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "avg_pool2d" in str(function):
                layouts.append(channels_last(args[0]))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode():
        image = torch.rand(2, 5, 64, 64, device="cuda").to(memory_format=torch.channels_last)
        with Watch():
            assert channels_last(_halved(image))
    assert layouts == [False]


def test_features_are_what_the_norms_give_and_the_logits():
    module = build_discriminator(DiscriminatorConfig(base_width=2, scales=2))
    depth, sketch = torch.rand(2, 2, 1, 64, 64)
    seen = []
    hooks = [
        m.register_forward_hook(lambda *given: seen.append(given[2]))
        for m in module.modules()
        if "Norm" in str(type(m))
    ]
    found = module.features(depth, sketch)
    for hook in hooks:
        hook.remove()
    assert [len(scale) for scale in found] == [5, 5]
    assert all(torch.equal(a, b) for a, b in zip([*found[0][:-1], *found[1][:-1]], seen, strict=True))
    assert [f.shape[1] for f in found[0]] == [2, 4, 8, 16, 1]
    logits = module.logits(depth, sketch)
    assert all(torch.equal(scale[-1], last) for scale, last in zip(found, logits, strict=True))


def test_noise_on_the_sketch_in_training_alone():
    plain, noisy = (build_discriminator(DiscriminatorConfig(base_width=2, scales=2, noise=n)) for n in (0.0, 0.1))
    noisy.load_state_dict(plain.state_dict())
    depth, sketch = torch.rand(2, 1, 1, 64, 64)
    torch.manual_seed(3)
    found = noisy.logits(depth, sketch)
    torch.manual_seed(3)
    expected = plain.logits(depth, sketch + 0.1 * torch.randn(1, 1, 64, 64))
    for a, b, c in zip(found, expected, plain.logits(depth, sketch), strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.equal(a, c)
    for a, b in zip(noisy.eval().logits(depth, sketch), plain.logits(depth, sketch), strict=True):
        assert torch.equal(a, b)


def test_photo_and_style_are_further_planes():
    torch.manual_seed(0)
    module = build_discriminator(DiscriminatorConfig(base_width=2, scales=2, photo=True, styles=3)).double()
    depth, sketch = torch.rand(2, 2, 1, 64, 48, dtype=torch.float64)
    photo = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    planes = torch.zeros(2, 3, 64, 48, dtype=torch.float64)
    planes[0, 2] = planes[1, 0] = 1
    image = torch.cat((depth, sketch, photo, planes), 1)
    for found in (module(depth, sketch, photo, torch.tensor([2, 0])), module(depth, sketch, photo, planes[:, :, 0, 0])):
        torch.testing.assert_close(found, module.layers(image))
    nhwc = build_discriminator(module.config).double().to(memory_format=torch.channels_last)
    nhwc.load_state_dict(module.state_dict())
    for a, b in zip(
        module.logits(depth, sketch, photo, planes), nhwc.logits(depth, sketch, photo, planes), strict=True
    ):
        torch.testing.assert_close(a, b)
    alone = build_discriminator(DiscriminatorConfig(base_width=2, styles=3)).double()
    torch.testing.assert_close(
        alone(depth, sketch, style=torch.tensor([2, 0])), alone.layers(torch.cat((depth, sketch, planes), 1))
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"style": torch.zeros(1, dtype=torch.int64)}, "sees the photo; give it as photo"),
        ({"photo": torch.rand(1, 3, 64, 64)}, "is told the style; give it as style"),
        ({"photo": torch.rand(1, 3, 64, 32), "style": torch.zeros(1, dtype=torch.int64)}, "photo must have shape"),
        ({"photo": torch.rand(1, 3, 64, 64), "style": torch.zeros(2, dtype=torch.int64)}, "style must be"),
    ],
)
def test_what_it_is_told_has_to_be_given(given, told):
    module, image = build_discriminator(DiscriminatorConfig(1, photo=True, styles=3)), torch.rand(1, 1, 64, 64)
    with pytest.raises(OpError, match=told):
        module(image, image, **given)


SIZES = (5, 64, 80), (1, 32, 33), (7, 40, 33), (1, 64, 64)
backends = pytest.mark.parametrize(
    "backend",
    [
        pytest.param("reference", marks=pytest.mark.slow),
        pytest.param("native", marks=pytest.mark.skipif(not library.loaded, reason="no native library")),
    ],
)


@backends
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_export_takes_any_number_of_sketches_of_any_size(backend, strict):
    torch.manual_seed(0)
    module = build_discriminator(DiscriminatorConfig(base_width=2)).to(memory_format=torch.channels_last)
    with ops.backend(backend):
        exports(module, lambda n, h, w: tuple(torch.randn(2, n, 1, h, w)), (IMAGES, IMAGES), SIZES, strict)


@backends
@pytest.mark.slow
def test_it_is_compiled_once_for_all_sizes(backend):
    module = build_discriminator(DiscriminatorConfig(base_width=2))
    with ops.backend(backend):
        compiles_once(
            module, lambda n, h, w: tuple(torch.randn(2, n, 1, h, w)), [(5, 64, 80), (7, 40, 33), (2, 90, 50)]
        )


@pytest.mark.parametrize("wrong", [None, 1.0, torch.rand(1, 1, 64, 64).to_sparse()], ids=["None", "number", "sparse"])
def test_what_is_no_dense_tensor_is_named(wrong):
    module, image = build_discriminator(DiscriminatorConfig(base_width=1)), torch.rand(1, 1, 64, 64)
    for name, pair in (("depth", (wrong, image)), ("sketch", (image, wrong))):
        with pytest.raises(OpError, match=f"^{name} must be a"):
            module(*pair)
