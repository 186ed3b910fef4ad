"""The energy test, the tail of its null, and Holm's correction."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.benchmarks.samplers import eight_dimensions
from workbench.energy import EnergyReference, chi_squares_tail, energy_test, holm, mean_distance
from workbench.lab import GaussianMixture, double_ring

MIXTURE = GaussianMixture([[-1.0, 0.5], [2.0, 0.0], [0.0, -1.5]], [0.2, 0.4, 0.3], [1, 2, 3])


def test_the_energy_statistic_equals_scipy_s_in_one_dimension_and_its_definition_in_three():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 1, generator=generator), torch.rand(80, 1, generator=generator)
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2  # SciPy's is its root
    assert energy_test(x, y, permutations=1).statistic == pytest.approx(expected, rel=1e-4)
    a, b = MIXTURE.sample(100, seed=0).repeat(1, 2)[:, :3], MIXTURE.sample(150, seed=1).repeat(1, 2)[:, :3]
    by_definition = 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()
    assert energy_test(a, b, permutations=1).statistic == pytest.approx(float(by_definition), abs=1e-5)
    assert EnergyReference(b).test(a).statistic == pytest.approx(float(by_definition), abs=1e-5)


def test_the_permutation_test_is_reproducible_finds_a_difference_and_never_says_zero():
    x, y = MIXTURE.sample(300, seed=0), MIXTURE.sample(200, seed=1)
    assert energy_test(x, y, seed=3) == energy_test(x, y, seed=3)
    assert energy_test(x, y + 0.5).p_value == 1 / 1000


def test_p_values_are_uniform_under_the_null_and_both_nulls_agree():
    by_permutation, by_spectrum = [], []
    for trial in range(100):
        x, y = double_ring().sample(400, seed=2 * trial, t=0.3), double_ring().sample(400, seed=2 * trial + 1, t=0.3)
        by_permutation.append(energy_test(x, y, permutations=199, seed=trial).p_value)
        by_spectrum.append(EnergyReference(y, spectrum_size=400).test(x).p_value)
    assert stats.kstest(by_permutation, "uniform").pvalue > 0.01
    assert stats.kstest(by_spectrum, "uniform").pvalue > 0.01
    # a p-value from 199 permutations has a standard error of at most 0.035
    assert np.abs(np.subtract(by_permutation, by_spectrum)).max() < 0.15


def test_the_tail_of_a_sum_of_chi_squares_is_that_of_its_special_cases():
    for value in (0.1, 1.0, 3.0, 10.0, 60.0):
        assert chi_squares_tail(np.ones(3), value) == pytest.approx(stats.chi2.sf(value, 3), rel=0.05)
        assert chi_squares_tail(np.array([2.0, 2.0]), value) == pytest.approx(math.exp(-value / 4), rel=0.1)
    weights = 1 / np.arange(1, 30) ** 2
    draws = (weights * np.random.default_rng(0).chisquare(1, (100_000, 29))).sum(1)
    for value in np.quantile(draws, [0.1, 0.5, 0.9, 0.99]):
        assert chi_squares_tail(weights, value) == pytest.approx((draws >= value).mean(), rel=0.05, abs=2e-3)
    assert chi_squares_tail(weights, weights.sum()) == pytest.approx((draws >= weights.sum()).mean(), abs=0.02)
    assert chi_squares_tail(weights, -1.0) == 1.0


@pytest.mark.parametrize("size", [1, 500, 2300])
def test_mean_distance_equals_the_full_table(size):
    x, y = eight_dimensions().sample(size, seed=0), eight_dimensions().sample(1500, seed=1)
    assert mean_distance(x, y) == pytest.approx(float(torch.cdist(x.double(), y.double()).mean()), rel=1e-6)
    assert mean_distance(x, x) == pytest.approx(float(torch.cdist(x.double(), x.double()).mean()), rel=1e-6, abs=1e-9)


def test_samples_of_different_spaces_and_tests_without_permutations_are_refused():
    with pytest.raises(ValueError, match="two samples of one space"):
        energy_test(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="at least 1 permutation, got 0"):
        energy_test(torch.zeros(3, 2), torch.zeros(3, 2), permutations=0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
