"""The whole network draws the same sketch on the native ops and on the reference."""

from __future__ import annotations

import pytest
import torch

from hida import ops
from hida.models import build_generator
from hida.ops import library


@pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
def test_the_same_sketch_and_gradients():
    torch.manual_seed(0)
    generator = build_generator("small").eval()
    for name, parameter in generator.named_parameters():  # offsets start at zero: move them
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    photo, depth, style = torch.rand(1, 3, 256, 256) * 2 - 1, torch.rand(1, 1, 256, 256), torch.tensor([1])
    results = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            sketch, depth_hat = generator(photo, depth, style)
        generator.zero_grad()
        (sketch.mean() + depth_hat.square().mean()).backward()
        gradients = torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])
        results.append((sketch.detach(), depth_hat.detach(), gradients))
    assert all(t.abs().max() > 0 for t in results[1])
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
    assert (results[0][1] - results[1][1]).norm() <= 1e-4 * results[1][1].norm()
    assert (results[0][2] - results[1][2]).norm() <= 1e-3 * results[1][2].norm()
