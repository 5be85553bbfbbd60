"""The whole generator: the native ops draw what the reference draws; on a GPU compiled and captured too."""

from __future__ import annotations

import pytest
import small_set
import torch

from hida import ops
from hida.models import build_discriminator, build_generator
from hida.ops import library

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not ops.available()["cuda"], reason="the native CUDA library is not built"),
]
native = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
on_a_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])


@pytest.fixture(autouse=True)
def exact_products():
    """TF32 would hide what is compared here."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def network(device, layout=torch.contiguous_format):
    torch.manual_seed(0)
    generator = build_generator("small").eval()
    for name, parameter in generator.named_parameters():  # offsets start at zero: move them
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return generator.to(device, memory_format=layout)


def inputs(device, layout=torch.contiguous_format, seed=0):
    photo, depth, style = small_set.inputs(1 if device == "cpu" else 2, seed=seed)
    return photo.to(device, memory_format=layout), depth.to(device, memory_format=layout), style.to(device)


def outcome(generator, given):
    """The sketch, the depth, and all gradients of the parameters in one vector."""
    sketch, depth_hat = generator(*given)
    parameters = [p for p in generator.parameters() if p.requires_grad]
    found = torch.autograd.grad(sketch.float().mean() + depth_hat.float().square().mean(), parameters)
    return sketch.detach(), depth_hat.detach(), torch.cat([g.flatten() for g in found])


def distance(found, right):
    return float((found.double() - right.double()).norm() / right.double().norm())


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=native), pytest.param("cuda", marks=gpu)])
@layouts
def test_the_same_sketch_and_gradients(device, layout):
    generator, given = network(device, layout), inputs(device, layout)
    discriminator, results = build_discriminator("small").to(device, memory_format=layout).eval(), []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            results.append(outcome(generator, given))
            logits = torch.cat([scale.flatten() for scale in discriminator.logits(given[1], given[0][:, :1])])
            slopes = torch.autograd.grad(logits.square().mean(), discriminator.parameters())
            results[-1] += logits.detach(), torch.cat([g.flatten() for g in slopes])
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
    assert results[1][0].abs().max() > 0
    for found, right, limit in zip(*(r[1:] for r in results), (1e-4, 1e-3, 1e-4, 1e-3), strict=True):
        assert distance(found, right) <= limit


@on_a_gpu
@layouts
def test_under_autocast_it_is_no_further_from_float32_than_the_reference_is(device, layout):
    generator, given = network(device, layout), inputs(device, layout)
    with ops.backend("reference"):
        right = outcome(generator, given)
    results = {}
    for name in ("native", "reference"):
        with ops.backend(name), torch.autocast("cuda", torch.bfloat16):
            results[name] = outcome(generator, given)
    for found, theirs, exact in zip(results["native"], results["reference"], right, strict=True):
        assert distance(found, exact) <= 2 * distance(theirs, exact)


@on_a_gpu
def test_compiles_as_one_graph(device):
    generator, given = network(device), inputs(device)
    with ops.backend("native"):
        expected = outcome(generator, given)
        compiled = torch.compile(generator, fullgraph=True, dynamic=False)
        sketch, depth_hat = compiled(*given)
    assert (sketch.detach() - expected[0]).abs().max() <= 1e-4
    assert distance(depth_hat.detach(), expected[1]) <= 1e-4


@on_a_gpu
@layouts
def test_a_graph_draws_other_photos_when_it_is_replayed(device, layout):
    generator, static = network(device, layout), inputs(device, layout)
    with ops.backend("native"), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            generator(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = generator(*static)
        for seed in (1, 2):
            fresh = inputs(device, layout, seed)
            for t, new in zip(static, fresh, strict=True):
                t.copy_(new)
            graph.replay()
            expected = generator(*fresh)
            assert (captured[0] - expected[0]).abs().max() <= 1e-5
            assert distance(captured[1], expected[1]) <= 1e-5
