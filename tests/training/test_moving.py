"""An average moves by the share that its tensor holds."""

from __future__ import annotations

import pytest
import torch

from hida.training.moving import move_towards


@pytest.mark.parametrize("share", [0.002, 0.4, 1.0])
def test_tensors_move_by_the_share_that_is_in_memory_then(share):
    targets, tensors = ([torch.randn(3, 5, 2, 2), torch.randn(7)] for _ in range(2))
    targets[0], tensors[0] = (t.contiguous(memory_format=torch.channels_last) for t in (targets[0], tensors[0]))
    kept, on_device = [t.clone() for t in targets], torch.zeros(())
    expected = [(1 - share) * a.double() + share * b.double() for a, b in zip(tensors, targets, strict=True)]
    on_device.fill_(-share)
    move_towards(targets, tensors, on_device)
    for found, exact, target, same in zip(tensors, expected, targets, kept, strict=True):
        torch.testing.assert_close(found, exact.float(), rtol=1e-6, atol=1e-6)
        assert torch.equal(target, same)
