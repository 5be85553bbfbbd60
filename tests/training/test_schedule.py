"""Order, seeds and rate follow from the number of images, or the rate from the time."""

from __future__ import annotations

import functools
import itertools

import pytest

from hida.config import Config, OptimizerConfig, TrainConfig
from hida.training.schedule import batch_indices, learning_rate, learning_rates, mixed_seed


@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_every_epoch_is_another_permutation(size):
    epochs = [batch_indices(epoch * size, size, size, 3).tolist() for epoch in range(6)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 20])
def test_batches_of_any_size_run_through_the_same_order(batch):
    size, total = 7, 60
    order = batch_indices(0, total, size, 0).tolist()
    pieces = [batch_indices(start, batch, size, 0).tolist() for start in range(0, total, batch)]
    assert list(itertools.chain(*pieces))[:total] == order


def test_seeds_give_different_orders():
    assert len({tuple(batch_indices(0, 20, 20, seed).tolist()) for seed in range(8)}) == 8


def test_mixed_seeds_differ_and_fit():
    numbers = list(itertools.product((0, 1, 2**40), range(3), range(50), (1, 2, 3, 4)))
    seeds = {mixed_seed(*entry) for entry in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # splitmix64's published first output for the state 0 (Vigna, 2015)
    assert mixed_seed(0) == 0xE220A8397B1DCDAF >> 1


def configured(epochs=20, minutes=0, batch=4, **options):
    optimizer = OptimizerConfig(**{"learning_rate": 2e-4, "constant_epochs": 10, **options})
    return Config(optimizer=optimizer, train=TrainConfig(epochs=epochs, minutes=minutes, batch=batch))


timed = functools.partial(configured, epochs=1, minutes=5, schedule="elapsed", constant_epochs=0)
CONSTANT_THEN_FALLING = configured(800, constant_epochs=400)
LARGE_BATCH = configured(batch=16, warmup_epochs=4, base_batch=4)


@pytest.mark.parametrize(
    ("config", "shares", "slack"),
    [
        (CONSTANT_THEN_FALLING, {0: 1, 200: 1, 400: 1, 500: 0.75, 600: 0.5, 799: 1 / 400, 800: 0, 801: 0}, 1e-9),
        (configured(10), {0: 1, 5: 1, 10: 1, 11: 1}, 1e-9),
        (LARGE_BATCH, {0: 0, 1: 1, 2: 2, 4: 4, 10: 4, 15: 2, 20: 0}, 1.5e-3),
    ],
    ids=["constant, then linear to zero", "constant", "a larger batch scales it after a warm-up"],
)
def test_the_rate_by_epochs(config, shares, slack):
    assert [learning_rate(config, epoch) / 2e-4 for epoch in shares] == pytest.approx(list(shares.values()), abs=slack)
    assert learning_rate(config, 0) > 0


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.4, {0: 1, 100: 1, 180: 1, 210: 0.75, 240: 0.5, 270: 0.25, 299: 1 / 120, 300: 0, 301: 0}),
        (0, {0: 1, 299: 1, 301: 1}),
        (1, {0: 1, 75: 0.75, 300: 0}),
    ],
)
def test_the_rate_falls_over_the_last_part_of_the_minutes_whatever_the_epochs(share, left):
    for elapsed, rest in left.items():
        found = learning_rates(timed(decay_share=share), 1000, elapsed)
        assert list(found.values()) == pytest.approx([2e-4 * rest] * 2)


@pytest.mark.parametrize(
    ("epoch", "elapsed", "share"),
    [(1, 0, 0.5), (1, 240, 0.5), (1, 270, 0.25), (1.5, 0, 0.75), (2, 0, 1), (2, 240, 0.5)],
)
def test_a_warm_up_counts_in_epochs_all_the_same(epoch, elapsed, share):
    config = timed(warmup_epochs=2, head_start=1.2)
    assert learning_rate(config, epoch, elapsed) == pytest.approx(2e-4 * share, rel=2e-3)
    assert (learning_rates(config, epoch, elapsed)["generator"] == 0) == (epoch < 1.2)


@pytest.mark.parametrize(("epoch", "generator"), [(0, 0), (1.9, 0), (2, 1e-4), (5, 1e-4)])
def test_the_discriminator_may_be_ahead_and_faster(epoch, generator):
    config = configured(10, learning_rate=1e-4, constant_epochs=5, discriminator_rate=4, head_start=2)
    assert learning_rates(config, epoch) == {"generator": generator, "discriminator": pytest.approx(4e-4)}
