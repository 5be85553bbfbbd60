"""What a discriminator sees: shifted, with a hole, in another tone, and all pictures of a batch alike."""

from __future__ import annotations

import torch

from hida.training.augmentation import BRIGHTNESS, CONTRAST, HOLE, SHIFT, Augmentation

SIZE = (64, 48)


def drawn(seed=0, n=3):
    torch.manual_seed(seed)
    return Augmentation.draw(n, SIZE, torch.device("cpu"))


def test_pictures_are_shifted_by_whole_pixels_and_have_a_square_hole():
    rows, columns = torch.meshgrid(*(torch.arange(float(length)) for length in SIZE), indexing="ij")
    image = (1 + rows * 1000 + columns).expand(3, 1, *SIZE)
    shifts = set()
    for seed in range(40):
        change = drawn(seed)
        moved = change.moved(image)
        for k in range(3):
            seen = moved[k, 0] != 0
            hole = (~seen).nonzero()
            area = len(hole)
            assert 0 < area <= (SIZE[0] * HOLE + 1) * (SIZE[1] * HOLE + 1)
            spans = hole.amax(0) - hole.amin(0) + 1
            assert area == spans[0] * spans[1]
            original = moved[k, 0] - 1
            down = (original // 1000 - rows)[seen & (original // 1000 > 0) & (original // 1000 < SIZE[0] - 1)].unique()
            assert len(down) == 1
            shifts.add(int(down))
            edge = torch.cat((original[0][seen[0]], original[-1][seen[-1]]))
            assert ((edge % 1000 < SIZE[1]) & (edge >= 0)).all()  # the edge is repeated, nothing else comes in
    most = int(SIZE[0] * SHIFT)
    assert min(shifts) < -most / 2
    assert max(shifts) > most / 2
    assert all(-most <= shift <= most for shift in shifts)


def test_all_pictures_are_changed_alike_and_only_sketches_in_tone():
    change = drawn()
    sketch = torch.rand(3, 1, *SIZE) * 2 - 1
    photo = sketch.expand(-1, 3, -1, -1)
    assert torch.equal(change.moved(photo), change.moved(sketch).expand(-1, 3, -1, -1))
    toned, moved, seen = change.toned(sketch), change.moved(sketch), change.moved(torch.ones_like(sketch))
    for k in range(3):
        inside = seen[k] == 1
        factor = (toned[k][inside] - toned[k][inside].mean()).norm() / (
            moved[k][inside] - moved[k][inside].mean()
        ).norm()
        assert abs(factor.item() - 1) <= CONTRAST + 1e-5
        mean = sketch[k].mean()
        expected = (moved[k] - mean) * factor + mean
        lift = (toned[k] - expected)[inside]
        assert lift.std() < 1e-5
        assert lift.mean().abs() <= BRIGHTNESS + 1e-5
        assert (toned[k][~inside] == 0).all()


def test_the_gradient_goes_through_the_change():
    change = drawn()
    sketch = (torch.rand(3, 1, *SIZE, dtype=torch.float64) * 2 - 1).requires_grad_()
    change.toned(sketch).square().sum().backward()
    assert sketch.grad is not None
    assert (sketch.grad != 0).double().mean() > 0.5


def test_every_draw_is_another_one():
    tones = [drawn(seed).brightness.flatten().tolist() for seed in range(5)]
    assert len({round(t, 9) for tone in tones for t in tone}) == 15
