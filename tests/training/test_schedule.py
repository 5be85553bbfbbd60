"""Order, seeds and rate follow from the number of images, or the rate from the time."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("epoch", "share"), [(0, 1), (200, 1), (400, 1), (500, 0.75), (600, 0.5), (799, 1 / 400), (800, 0), (801, 0)]
)
def test_the_rate_is_constant_and_then_linear_to_zero(epoch, share):
    config = Config(optimizer=OptimizerConfig(learning_rate=2e-4, constant_epochs=400), train=TrainConfig(epochs=800))
    assert learning_rate(config, epoch) == pytest.approx(2e-4 * share)


def test_the_rate_without_decay():
    config = Config(optimizer=OptimizerConfig(constant_epochs=10), train=TrainConfig(epochs=10))
    assert {learning_rate(config, epoch) for epoch in (0, 5, 10, 11)} == {2e-4}


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0), (1, 2e-4), (2, 4e-4), (4, 8e-4), (10, 8e-4), (15, 4e-4), (20, 0)])
def test_a_larger_batch_scales_the_rate_after_a_warm_up(epoch, rate):
    optimizer = OptimizerConfig(learning_rate=2e-4, constant_epochs=10, warmup_epochs=4, base_batch=4)
    config = Config(optimizer=optimizer, train=TrainConfig(epochs=20, batch=16))
    assert learning_rate(config, epoch) == pytest.approx(rate, abs=3e-7)
    if epoch == 0:
        assert learning_rate(config, epoch) > 0


@pytest.mark.parametrize(("epoch", "generator"), [(0, 0), (1.9, 0), (2, 1e-4), (5, 1e-4)])
def test_the_discriminator_may_be_ahead_and_faster(epoch, generator):
    optimizer = OptimizerConfig(learning_rate=1e-4, constant_epochs=5, discriminator_rate=4, head_start=2)
    config = Config(optimizer=optimizer, train=TrainConfig(epochs=10))
    assert learning_rates(config, epoch) == {"generator": generator, "discriminator": pytest.approx(4e-4)}


@pytest.mark.parametrize(
    ("elapsed", "share"),
    [(0, 1), (100, 1), (180, 1), (210, 0.75), (240, 0.5), (270, 0.25), (299, 1 / 120), (300, 0), (301, 0)],
)
def test_the_rate_is_constant_and_falls_over_the_last_part_of_the_minutes(elapsed, share):
    config = timed(decay_share=0.4)
    assert learning_rate(config, 1000, elapsed) == pytest.approx(2e-4 * share)  # epochs do not matter
    assert learning_rates(config, 1000, elapsed)["discriminator"] == pytest.approx(2e-4 * share)


def timed(**options):
    optimizer = OptimizerConfig(learning_rate=2e-4, schedule="elapsed", **options)
    return Config(optimizer=optimizer, train=TrainConfig(epochs=1, minutes=5))


@pytest.mark.parametrize(
    ("share", "elapsed", "left"), [(0, 299, 1), (0, 301, 1), (1, 0, 1), (1, 75, 0.75), (1, 300, 0)]
)
def test_the_falling_part_may_be_nothing_or_all(share, elapsed, left):
    assert learning_rate(timed(decay_share=share), 0, elapsed) == pytest.approx(2e-4 * left)


@pytest.mark.parametrize(
    ("epoch", "elapsed", "share"),
    [(1, 0, 0.5), (1, 240, 0.5), (1, 270, 0.25), (1.5, 0, 0.75), (2, 0, 1), (2, 240, 0.5)],
)
def test_a_warm_up_counts_in_epochs_all_the_same(epoch, elapsed, share):
    config = timed(warmup_epochs=2, constant_epochs=0, head_start=1.2)
    assert learning_rate(config, epoch, elapsed) == pytest.approx(2e-4 * share, rel=2e-3)
    assert (learning_rates(config, epoch, elapsed)["generator"] == 0) == (epoch < 1.2)
