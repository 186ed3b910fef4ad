"""Notation, transitions, time grids and seeded noise."""

import itertools
import math
from typing import get_args

import pytest
import torch
from scipy import stats

from workbench.flow import (
    Gaussian,
    GridKind,
    check_times,
    data_prediction,
    noise_prediction,
    noise_rate,
    noise_share,
    noise_to_signal,
    seed_stream,
    seeded_noise,
    seeded_uniform,
    time_grid,
    time_of_ratio,
)


def seeds(count: int, *name: int | str) -> torch.Tensor:
    return torch.tensor([seed_stream(*name, i) for i in range(count)])


def test_log_prob_equals_torch_distributions_as_mean_and_as_sum():
    mean, x = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(mean, 0.3).log_prob(x).flatten(1)
    torch.testing.assert_close(Gaussian(mean, 0.3).log_prob(x), expected.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(Gaussian(mean, 0.3).log_prob(x, reduction="sum"), expected.sum(1), rtol=1e-6, atol=1e-4)


def test_children_of_one_state_share_its_mean_by_broadcasting():
    mean = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    children = Gaussian(mean, 0.5).sample(noise)
    assert children.shape == (8, 6)
    expected = torch.distributions.Normal(mean, 0.5).log_prob(children).mean(1)
    torch.testing.assert_close(Gaussian(mean, 0.5).log_prob(children), expected)


def test_log_prob_is_float32_whatever_the_network_computes_in():
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert Gaussian(half, 0.1).log_prob(half).dtype == torch.float32


def test_a_deterministic_transition_returns_its_mean_and_has_no_density():
    mean = torch.ones(2, 3)
    transition = Gaussian(mean, 0.0)
    assert torch.equal(transition.sample(torch.full((2, 3), math.nan)), mean)
    with pytest.raises(ValueError, match="no density"):
        transition.log_prob(mean)


def test_an_unknown_reduction_lists_the_choices():
    with pytest.raises(ValueError, match="unknown reduction 'max'; choose from: mean, sum"):
        Gaussian(torch.zeros(1, 1), 1.0).log_prob(torch.zeros(1, 1), reduction="max")


@pytest.mark.parametrize("kind", get_args(GridKind))
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 40])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.3, 4.0])
def test_a_time_grid_falls_from_one_to_zero(steps, shift, kind):
    times = time_grid(steps, shift, kind)
    assert len(times) == steps + 1
    assert check_times(times) == times


@pytest.mark.parametrize("kind", get_args(GridKind))
def test_a_shift_multiplies_the_noise_to_signal_ratio_of_every_kind_of_grid(kind):
    for plain, shifted in zip(time_grid(8, kind=kind)[1:], time_grid(8, 3.0, kind)[1:], strict=True):
        assert noise_to_signal(shifted) == pytest.approx(3.0 * noise_to_signal(plain))


def test_each_kind_of_grid_is_even_in_its_own_sense():
    assert time_grid(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert time_grid(5, kind="linspace") == pytest.approx((1.0, 0.7625, 0.525, 0.2875, 0.05, 0.0))
    inside = [math.log(noise_to_signal(t)) for t in time_grid(100, kind="log_snr")[1:-1]]
    assert [later - earlier for earlier, later in itertools.pairwise(inside)] == pytest.approx([-2 * math.log(99) / 100] * 98)
    assert time_grid(2, kind="log_snr") == pytest.approx((1.0, 0.5, 0.0))
    angles = [math.atan(noise_to_signal(t)) for t in time_grid(8, kind="trigflow")]
    assert angles == pytest.approx([math.pi / 16 * i for i in range(8, -1, -1)])
    assert [math.atan(noise_to_signal(t)) for t in time_grid(2, kind="trigflow")] == pytest.approx([math.pi / 2, 1.3, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "at least 1 step, got 0"),
        ((4, 0.0), "must be positive, got 0.0"),
        ((4, math.nan), "must be positive, got nan"),
        ((4, 1.0, "cosine"), "unknown time grid 'cosine'; choose from: uniform, linspace, log_snr, trigflow"),
    ],
)
def test_a_time_grid_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_grid(*arguments)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((1.0,), r"at least the two times 1 and 0, got \[1.0\]"),
        ((), "at least the two times"),
        ((0.9, 0.5, 0.0), "starts at 1 .* ends at 0 .* got 0.9 and 0"),
        ((1.0, 0.5, 0.1), "got 1 and 0.1"),
        ((1.0, 0.5, 0.5, 0.0), "time 1 is 0.5 and time 2 is 0.5"),
        ((1.0, 0.3, 0.6, 0.0), "time 1 is 0.3 and time 2 is 0.6"),
        ((1.0, math.nan, 0.0), "time 0 is 1 and time 1 is nan"),
    ],
)
def test_an_explicit_grid_that_does_not_descend_from_one_to_zero_is_refused(times, message):
    with pytest.raises(ValueError, match=message):
        check_times(times)
    assert check_times([1, 0.25, 0]) == (1.0, 0.25, 0.0)


def test_the_noise_rate_is_the_lambda_of_the_sde_that_refreshes_the_same_share():
    """Between any two times: composing the transitions of one rate gives the transition of that rate over the whole span."""
    rate, times = 0.6, (0.9, 0.7, 0.3, 0.2)
    kept = [(noise_to_signal(s) / noise_to_signal(t)) ** (2 * rate**2) for t, s in itertools.pairwise(times)]
    for (t, s), share in zip(itertools.pairwise(times), kept, strict=True):
        assert noise_rate(s * math.sqrt(1 - share), t, s) == pytest.approx(rate)
    assert noise_rate(0.2 * math.sqrt(1 - math.prod(kept)), 0.9, 0.2) == pytest.approx(rate)
    assert noise_share(0.2 * math.sqrt(1 - math.prod(kept)), 0.2) == pytest.approx(1 - math.prod(kept))


def test_the_noise_rate_is_zero_without_noise_and_from_pure_noise_and_infinite_where_all_noise_is_fresh():
    assert noise_rate(0.0, 0.5, 0.25) == noise_rate(0.0, 0.5, 0.0) == noise_share(0.0, 0.0) == 0.0
    assert noise_rate(0.5 * 0.7, 1.0, 0.5) == 0.0
    assert noise_share(0.5 * 0.7, 0.5) == pytest.approx(0.49)
    assert noise_rate(0.5, 1.0, 0.5) == noise_rate(0.25, 0.5, 0.25) == noise_rate(0.3, 0.5, 0.25) == math.inf


def test_time_and_noise_to_signal_ratio_are_inverse():
    for t in (0.0, 0.1, 0.5, 0.999, 1.0):
        assert time_of_ratio(noise_to_signal(t)) == pytest.approx(t)
    assert math.isinf(noise_to_signal(1.0))


def test_predictions_recover_data_and_noise_from_their_own_velocity():
    data, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 0.3, 1.0):
        x = (1 - t) * data + t * noise
        torch.testing.assert_close(data_prediction(x, noise - data, t), data, rtol=0, atol=1e-6)
        torch.testing.assert_close(noise_prediction(x, noise - data, t), noise, rtol=0, atol=1e-6)


def test_the_name_of_a_stream_fixes_its_seed_for_ever():
    assert seed_stream(0, "rollout", 1) == 6_101_790_361_525_548_258


def test_streams_of_different_names_share_no_seed():
    names = itertools.product(range(3), ("rollout", "branch"), range(20), range(50), range(8), range(4))
    found = [seed_stream(*name) for name in names]
    assert len(set(found)) == len(found) == 192_000
    assert len({seed_stream(1, 23), seed_stream(12, 3), seed_stream("1", 23), seed_stream(123)}) == 4


def test_noise_of_a_row_depends_on_its_seed_and_not_on_its_batch():
    names = seeds(64, "batch")
    whole = seeded_noise(names, (3, 5, 7))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seeded_noise(names[order], (3, 5, 7)), whole[order])
    assert torch.equal(seeded_noise(names[10:11], (3, 5, 7)), whole[10:11])
    assert torch.equal(seeded_noise([int(names[5])] * 2, (3, 5, 7)), whole[5].expand(2, 3, 5, 7))


def test_noise_neither_uses_nor_moves_the_global_generator():
    before = torch.get_rng_state()
    first = seeded_noise([1, 2], (4,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(seeded_noise([1, 2], (4,)), first)


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 4, 8), ()])
def test_noise_has_the_shape_of_a_sample_and_is_float32(shape):
    noise = seeded_noise([3, 4], shape)
    assert noise.shape == (2, *shape)
    assert noise.dtype == torch.float32


@pytest.mark.parametrize("names", [seeds(2000, "normal"), torch.arange(2000)], ids=["hashed", "consecutive"])
def test_noise_is_standard_normal_within_and_across_streams(names):
    noise = seeded_noise(names, (100,))
    for sample in (noise.flatten(), noise[0], noise[:, 0], noise[:, 99], (noise[:, 0] + noise[:, 50]) / math.sqrt(2)):
        assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-3
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("names", [seeds(1000, "independent"), torch.arange(1000)], ids=["hashed", "consecutive"])
def test_streams_and_positions_are_independent(names):
    noise = seeded_noise(names, (400,)).double()
    # off-diagonal correlations of independent data are normal with variance 1/n: their largest of ~5e5 stays below 5.5 sigma
    for rows in (noise, noise.T):
        correlation = torch.corrcoef(rows).fill_diagonal_(0)
        assert correlation.abs().max() * math.sqrt(rows.shape[1]) < 6.0
        assert correlation.square().sum() / (len(rows) * (len(rows) - 1)) * rows.shape[1] == pytest.approx(1.0, abs=0.02)
    # the two halves of Box-Muller share a radius: its square must not correlate either
    squares = torch.stack([noise[:, :200].square().flatten(), noise[:, 200:].square().flatten()])
    assert torch.corrcoef(squares)[0, 1].abs() * math.sqrt(200_000) < 4.0


def test_named_uniforms_fill_the_unit_interval():
    draws = [seeded_uniform("uniform", i) for i in range(5000)]
    assert 0.0 <= min(draws) < max(draws) < 1.0
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
