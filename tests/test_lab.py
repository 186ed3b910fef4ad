"""Closed-form distributions and exact flow maps."""

import math

import pytest
import torch

from workbench.benchmarks.samplers import eight_dimensions
from workbench.lab import GaussianMixture, double_ring, exact_flow_map, integrate_flow, outer_mass, ring_scatter

MIXTURE = GaussianMixture([[-1.0, 0.5], [2.0, 0.0], [0.0, -1.5]], [0.2, 0.4, 0.3], [1, 2, 3])


def dense_rings() -> GaussianMixture:
    """The double ring as a mixture whose components stand 0.04 apart, closer than the jitter: its ripple is below 1e-13."""
    angles = [torch.arange(count, dtype=torch.float64) * 2 * math.pi / count for count in (160, 480)]
    means = [radius * torch.stack([a.cos(), a.sin()], 1) for radius, a in zip((1.0, 3.0), angles, strict=True)]
    return GaussianMixture(torch.cat(means), 0.05, [3.0] * 160 + [1.0] * 480)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_the_density_of_a_mixture_equals_torch_distributions(t):
    x = MIXTURE.sample(200, seed=1, t=t).double()
    stds = torch.sqrt(((1 - t) * MIXTURE.stds) ** 2 + t**2)
    components = torch.distributions.Independent(torch.distributions.Normal((1 - t) * MIXTURE.means, stds[:, None]), 1)
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(MIXTURE.weights), components)
    torch.testing.assert_close(MIXTURE.log_density(x, t), expected.log_prob(x))


@pytest.mark.parametrize("t", [0.05, 0.3, 0.9, 1.0])
def test_the_velocity_follows_from_the_score_of_the_density(t):
    x = MIXTURE.sample(200, seed=1, t=t).double().requires_grad_()
    (score,) = torch.autograd.grad(MIXTURE.log_density(x, t).sum(), x)
    velocity = MIXTURE.velocity(x.detach(), t)
    noise_prediction = x.detach() + (1 - t) * velocity
    torch.testing.assert_close(score, -noise_prediction / t, rtol=1e-8, atol=1e-8)


def test_the_velocity_of_pure_noise_expects_the_overall_mean():
    x = MIXTURE.sample(50, seed=0).double()
    torch.testing.assert_close(x - MIXTURE.velocity(x, 1.0), (MIXTURE.weights @ MIXTURE.means).expand(50, 2))


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distribution", [MIXTURE, double_ring()], ids=["mixture", "rings"])
def test_the_velocity_is_the_least_squares_prediction_of_noise_minus_data(distribution, t):
    """E[(eps - x_0 - v) h(x_t)] = 0 for functions h of x_t, here on fresh pairs of data and noise."""
    data, noise = distribution.sample(100_000, seed=2).double(), distribution.sample(100_000, seed=3, t=1.0).double()
    x = (1 - t) * data + t * noise
    residual = noise - data - distribution.velocity(x, t)
    for h in (torch.ones(len(x)), x[:, 0], x.norm(dim=1), torch.sin(3 * x[:, 1])):
        product = residual * h[:, None]
        assert (product.mean(0).abs() <= 4.5 * product.std(0) / math.sqrt(len(x)) + 1e-12).all()


def test_samples_depend_on_their_seed_alone_and_have_the_mixture_s_moments():
    torch.manual_seed(0)
    first = MIXTURE.sample(100_000, seed=5)
    torch.manual_seed(1)
    assert torch.equal(MIXTURE.sample(100_000, seed=5), first)
    assert first.dtype == torch.float32
    assert not torch.equal(MIXTURE.sample(100_000, seed=6), first)
    torch.testing.assert_close(first.double().mean(0), MIXTURE.weights @ MIXTURE.means, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], 1.0), r"one row per component, \[K, D\]"),
        (([[0.0], [1.0]], 1.0, [1.0]), "one number per component, got .* for 2 components"),
        (([[0.0]], 0.0), "must be positive"),
    ],
)
def test_a_mixture_without_density_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize("t", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_velocity_of_the_rings_equals_that_of_a_dense_mixture(t):
    x = double_ring().sample(2000, seed=1, t=t).double()
    torch.testing.assert_close(double_ring().velocity(x, t), dense_rings().velocity(x, t), rtol=1e-7, atol=1e-7)


def test_scatter_is_the_distance_from_the_nearer_circle():
    assert ring_scatter(torch.tensor([[0.0, 1.0], [0.0, -3.0], [1.5, 0.0], [-2.5, 0.0], [0.0, 0.0]])) == pytest.approx(0.4)
    # blurred by jitter 0.05 and far from the centre: the mean of |N(0, 0.05^2)|, 0.05 sqrt(2 / pi)
    assert ring_scatter(double_ring().sample(100_000, seed=0)) == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.02)


def test_the_rings_hold_equal_mass_at_their_radii_and_have_a_velocity_at_their_centre():
    data = double_ring().sample(100_000, seed=0)
    assert outer_mass(data) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(100_000))
    # the radius of a ring blurred by jitter is Rician: sqrt(r^2 + jitter^2) in this limit
    outer = data.norm(dim=1)[data.norm(dim=1) > 2]
    assert float(outer.mean()) == pytest.approx(3.0 + 0.05**2 / 6, abs=1e-3)
    assert float(outer.std()) == pytest.approx(0.05, rel=0.02)
    assert double_ring().velocity(torch.zeros(1, 2), 0.5).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.25, 0.125), (0.9, 0.8)])
def test_the_ring_s_closed_flow_map_equals_the_integrated_flow_of_the_dense_mixture(t, s):
    x = double_ring().sample(300, seed=4, t=t).double()
    integrated = integrate_flow(dense_rings(), x, t, s, stride=0.2)
    torch.testing.assert_close(double_ring().carry(x, t, s), integrated, rtol=0, atol=2e-5)


def test_the_flow_map_of_one_gaussian_is_a_rescaling():
    gaussian = GaussianMixture([[0.5, -1.0]], 0.3)
    x = gaussian.sample(100, seed=0, t=0.8).double()
    spread = {t: math.hypot((1 - t) * 0.3, t) for t in (0.8, 0.25)}
    expected = 0.75 * gaussian.means + (x - 0.2 * gaussian.means) * spread[0.25] / spread[0.8]
    torch.testing.assert_close(exact_flow_map(gaussian)(x, 0.8, 0.25), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(integrate_flow(gaussian, x, 0.8, 0.25), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("distribution", [MIXTURE, eight_dimensions(), double_ring()], ids=["plane", "eight", "rings"])
def test_flow_maps_compose_start_at_the_identity_and_leave_along_the_velocity(distribution):
    flow_map = exact_flow_map(distribution)
    x = distribution.sample(2000, seed=1, t=0.9).double()
    through = flow_map(flow_map(x, 0.9, 0.4), 0.4, 0.1)
    error = (through - flow_map(x, 0.9, 0.1)).norm(dim=1)
    assert error.median() < 1e-7
    assert error.quantile(0.99) < 5e-5  # the rest starts where the flow parts, and parts with it
    torch.testing.assert_close(flow_map(x, 0.9, 0.9), x, rtol=0, atol=1e-6)
    tangent = (flow_map(x, 0.9, 0.9 - 1e-3) - x) / -1e-3
    torch.testing.assert_close(tangent, flow_map.velocity(x, 0.9), rtol=0, atol=0.02)


def test_the_integrator_returns_to_where_it_came_from():
    x = MIXTURE.sample(500, seed=1, t=0.6).double()
    torch.testing.assert_close(integrate_flow(MIXTURE, integrate_flow(MIXTURE, x, 0.6, 1.0), 1.0, 0.6), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distribution", [MIXTURE, double_ring()], ids=["mixture", "rings"])
def test_a_row_of_an_exact_map_does_not_depend_on_its_batch(distribution):
    x = distribution.sample(64, seed=1, t=1.0)
    whole = exact_flow_map(distribution)(x, 1.0, 0.2)
    torch.testing.assert_close(exact_flow_map(distribution)(x[7:9], 1.0, 0.2), whole[7:9], rtol=0, atol=1e-6)
    assert whole.dtype == torch.float32


def test_an_exact_map_answers_only_the_calls_of_its_kind():
    x = torch.zeros(1, 2)
    assert exact_flow_map(MIXTURE).kind == "two_time"
    exact_flow_map(MIXTURE, "single_time")(x, 1.0, 0.0)
    exact_flow_map(MIXTURE, "velocity").velocity(x, 1.0)
    with pytest.raises(ValueError, match=r"reaches only s = 0, got s = 0\.5"):
        exact_flow_map(MIXTURE, "single_time")(x, 1.0, 0.5)
    with pytest.raises(ValueError, match="has no velocity"):
        exact_flow_map(MIXTURE, "single_time").velocity(x, 1.0)
    with pytest.raises(ValueError, match="makes no jumps"):
        exact_flow_map(MIXTURE, "velocity")(x, 1.0, 0.0)


def test_the_density_of_the_rings_equals_that_of_a_dense_mixture():
    x = double_ring().sample(300, seed=4, t=0.3).double()
    for t in (0.05, 0.3, 1.0):
        torch.testing.assert_close(double_ring().log_density(x, t), dense_rings().log_density(x, t), rtol=1e-9, atol=1e-9)


def test_longer_steps_move_the_points_of_a_mixture_by_little():
    x = MIXTURE.sample(500, seed=5, t=1.0)
    quick = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, stride=1.0)
    error = (quick.carry(x, 1.0, 0.0) - MIXTURE.carry(x, 1.0, 0.0)).norm(dim=1)
    assert 0 < float(error.mean()) < 1e-3
