"""The whole generator on a GPU: the native ops draw what the reference draws, compiled and captured too."""

from __future__ import annotations

import pytest
import torch

from hida import ops
from hida.models import build_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not ops.available()["cuda"], reason="the native CUDA library is not built"),
]

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_products():
    """TF32 would hide what is compared here."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def layout(request):
    return request.param


def network(layout=torch.contiguous_format):
    torch.manual_seed(0)
    generator = build_generator("small").eval()
    for name, parameter in generator.named_parameters():  # offsets start at zero: move them
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return generator.to(DEVICE, memory_format=layout)


def inputs(layout=torch.contiguous_format, seed=0, batch=2):
    random = torch.Generator().manual_seed(seed)
    photo, depth = (torch.rand(batch, c, 256, 256, generator=random) for c in (3, 1))
    style = torch.arange(batch).to(DEVICE) % 3
    return (photo * 2 - 1).to(DEVICE, memory_format=layout), depth.to(DEVICE, memory_format=layout), style


def outcome(generator, given):
    """The sketch, the depth, and all gradients of the parameters in one vector."""
    sketch, depth_hat = generator(*given)
    parameters = [p for p in generator.parameters() if p.requires_grad]
    found = torch.autograd.grad(sketch.float().mean() + depth_hat.float().square().mean(), parameters)
    return sketch.detach(), depth_hat.detach(), torch.cat([g.flatten() for g in found])


def distance(found, right):
    return float((found.double() - right.double()).norm() / right.double().norm())


def test_the_same_sketch_and_gradients(layout):
    generator, given = network(layout), inputs(layout)
    with ops.backend("native"):
        found = outcome(generator, given)
    with ops.backend("reference"):
        right = outcome(generator, given)
    assert (found[0] - right[0]).abs().max() <= 1e-4
    assert distance(found[1], right[1]) <= 1e-4
    assert distance(found[2], right[2]) <= 1e-3


def test_under_autocast_it_is_no_further_from_float32_than_the_reference_is(layout):
    generator, given = network(layout), inputs(layout)
    with ops.backend("reference"):
        right = outcome(generator, given)
    results = {}
    for name in ("native", "reference"):
        with ops.backend(name), torch.autocast("cuda", torch.bfloat16):
            results[name] = outcome(generator, given)
    for found, theirs, exact in zip(results["native"], results["reference"], right, strict=True):
        assert distance(found, exact) <= 2 * distance(theirs, exact)


def test_compiles_as_one_graph():
    generator, given = network(), inputs()
    with ops.backend("native"):
        expected = outcome(generator, given)
        compiled = torch.compile(generator, fullgraph=True, dynamic=False)
        sketch, depth_hat = compiled(*given)
    assert (sketch.detach() - expected[0]).abs().max() <= 1e-4
    assert distance(depth_hat.detach(), expected[1]) <= 1e-4


def test_a_graph_draws_other_photos_when_it_is_replayed(layout):
    generator, static = network(layout), inputs(layout)
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
            fresh = inputs(layout, seed)
            for t, new in zip(static, fresh, strict=True):
                t.copy_(new)
            graph.replay()
            expected = generator(*fresh)
            assert (captured[0] - expected[0]).abs().max() <= 1e-5
            assert distance(captured[1], expected[1]) <= 1e-5
