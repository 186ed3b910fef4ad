"""GRPO's tensor functions against hand-worked numbers, identities and torch.distributions."""

import math

import pytest
import torch

from workbench.flow import Gaussian
from workbench.grpo import (
    clip_fraction,
    clipped_loss,
    constant_groups,
    gaussian_kl,
    gdpo_advantages,
    group_advantages,
    ratio_norm,
    step_weights,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_advantages_of_two_groups_by_hand():
    advantages = group_advantages(torch.tensor([0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 5.0, 9.0]), 4, std_floor=0.0)
    expected = [-math.sqrt(2), 0.0, 0.0, math.sqrt(2), -1 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3), math.sqrt(3)]
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_the_floor_is_added_to_the_spread():
    torch.testing.assert_close(group_advantages(torch.tensor([0.0, 2.0]), 2, std_floor=1.0), torch.tensor([-0.5, 0.5]))


def test_global_spread_is_that_of_all_rewards_and_keeps_groups_comparable():
    rewards = torch.tensor([0.0, 1.0, 4.0, 8.0])
    spread = float(rewards.std(correction=0))
    torch.testing.assert_close(
        group_advantages(rewards, 2, std="global", std_floor=0.0), torch.tensor([-0.5, 0.5, -2.0, 2.0]) / spread
    )


@pytest.mark.parametrize("std", ["group", "global"])
def test_advantages_sum_to_zero_in_each_group(std):
    advantages = group_advantages(normal(40 * 8) * 3 + 100, 8, std=std)
    assert advantages.reshape(40, 8).sum(1).abs().max() < 1e-3


def test_group_advantages_do_not_change_with_the_scale_and_offset_of_rewards():
    rewards = normal(6 * 8)
    expected = group_advantages(rewards, 8, std_floor=0)
    torch.testing.assert_close(group_advantages(rewards * 7 + 3, 8, std_floor=0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("std_floor", [0.0, 1e-4])
def test_constant_groups_get_exactly_zero_and_are_counted(std, std_floor):
    rewards = torch.tensor([0.1] * 3 + [0.0, 0.5, 1.0])  # 0.1 + 0.1 + 0.1 is not 0.3 in floating point
    assert group_advantages(rewards, 3, std=std, std_floor=std_floor)[:3].tolist() == [0.0] * 3
    assert constant_groups(rewards, 3).tolist() == [True, False]
    assert group_advantages(rewards[:3], 3, std=std, std_floor=std_floor).tolist() == [0.0] * 3


def test_advantages_are_clipped():
    rewards = torch.tensor([1.0] + [0.0] * 99)
    assert group_advantages(rewards, 100).max() == 5.0
    assert group_advantages(rewards, 100, clip=2.0).max() == 2.0
    assert group_advantages(rewards[:26], 26).max() < 5.0


# Several rewards, each compared by itself


@pytest.mark.parametrize("weight", [0.2, 1.0, 7.0])
def test_gdpo_of_one_reward_is_its_advantage_over_the_spread_of_the_batch(weight):
    rewards = normal(6 * 4)
    advantages = weight * group_advantages(rewards, 4, std_floor=0.05)
    found = gdpo_advantages(rewards[None], [weight], 4, std_floor=0.05)
    torch.testing.assert_close(found, advantages / (advantages.square().mean().sqrt() + 0.05))
    # without a floor every group has spread 1, and so has the batch
    without = gdpo_advantages(rewards[None], [weight], 4, std_floor=0.0)
    torch.testing.assert_close(without, group_advantages(rewards, 4, std_floor=0.0))


def test_gdpo_of_two_rewards_by_hand():
    """Groups (0, 1) and (2, 0) of the first, (5, 5) and (1, 3) of the second, weights 2 and 1."""
    parts = torch.tensor([[0.0, 1.0, 2.0, 0.0], [5.0, 5.0, 1.0, 3.0]])
    total = torch.tensor([-2.0, 2.0, 2.0 - 1.0, -2.0 + 1.0])
    torch.testing.assert_close(gdpo_advantages(parts, [2.0, 1.0], 2, std_floor=0.0), total / math.sqrt(2.5))


def test_a_reward_of_tiny_spread_is_not_drowned_by_gdpo():
    """Its scale does not matter, while a plain sum tells next to nothing of it."""
    wide, narrow = normal(100 * 4), normal(100 * 4, seed=1)
    apart = torch.stack([100 * wide, 0.01 * narrow])
    found = gdpo_advantages(apart, [1.0, 1.0], 4, std_floor=0.0)
    alike = gdpo_advantages(torch.stack([wide, narrow]), [1.0, 1.0], 4, std_floor=0.0)
    torch.testing.assert_close(found, alike, rtol=1e-4, atol=1e-4)
    summed = group_advantages(apart.sum(0), 4, std_floor=0.0)
    torch.testing.assert_close(summed, group_advantages(wide, 4, std_floor=0.0), rtol=1e-3, atol=1e-3)
    own = group_advantages(narrow, 4, std_floor=0.0)
    assert float((found * own).mean()) > 0.5
    assert float((summed * own).mean()) < 0.3


def test_a_constant_reward_contributes_nothing_to_gdpo():
    rewards = normal(5 * 4)
    both = torch.stack([rewards, torch.full((20,), 0.1)])
    torch.testing.assert_close(gdpo_advantages(both, [1.0, 3.0], 4), gdpo_advantages(rewards[None], [1.0], 4))
    assert gdpo_advantages(torch.ones(2, 8), [1.0, 1.0], 4, std_floor=0.0).tolist() == [0.0] * 8


def test_gdpo_sums_to_zero_in_each_group_has_unit_spread_and_is_clipped():
    parts, weights = normal(3, 40 * 8), [0.5, 0.3, 0.2]
    advantages = gdpo_advantages(parts, weights, 8)
    assert advantages.reshape(40, 8).sum(1).abs().max() < 1e-4
    assert float(advantages.square().mean()) == pytest.approx(1.0, abs=1e-3)
    assert float(gdpo_advantages(parts, weights, 8, clip=0.5).abs().max()) == 0.5


def test_gdpo_weighs_its_rewards():
    parts = normal(2, 10 * 4)
    first, second = (group_advantages(part, 4) for part in parts)
    for weights in ([1.0, 0.0], [0.0, 1.0], [3.0, 1.0], [-1.0, 2.0]):
        total = weights[0] * first + weights[1] * second
        expected = total / (total.square().mean().sqrt() + 1e-4)
        torch.testing.assert_close(gdpo_advantages(parts, weights, 4), expected)


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        (torch.zeros(2, 4), [1.0], "one weight for each reward, got 1 for 2"),
        (torch.zeros(1, 5), [1.0], "whole groups of 2, got 5"),
        (torch.tensor([[0.0, 1.0], [math.inf, 0.0]]), [1.0, 1.0], "must be finite to be compared, got inf at sample 0"),
    ],
)
def test_rewards_that_gdpo_cannot_compare_are_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        gdpo_advantages(parts, weights, 2)


@pytest.mark.parametrize(
    ("rewards", "group_size", "message"),
    [
        (torch.zeros(4), 1, "group_size must be at least 2 to compare samples, got 1"),
        (torch.zeros(6), 4, "whole groups of 4, got 6"),
        (torch.zeros(0), 4, "whole groups of 4, got 0"),
        (torch.zeros(2, 4), 4, r"one number per sample, \[P \* G\], got shape \(2, 4\)"),
        (torch.tensor([0.0, math.nan]), 2, "must be finite to be compared, got nan at sample 1"),
    ],
)
def test_rewards_that_cannot_be_compared_are_refused(rewards, group_size, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, group_size)
    with pytest.raises(ValueError, match=message):
        constant_groups(rewards, group_size)


def test_an_unknown_spread_lists_the_choices():
    with pytest.raises(ValueError, match="unknown std 'batch'; choose from: group, global"):
        group_advantages(torch.zeros(4), 2, std="batch")


def test_the_loss_is_minus_the_advantage_while_policies_agree():
    log_prob, advantages = normal(3, 4), normal(3, 4, seed=1)
    assert torch.equal(clipped_loss(log_prob, log_prob, advantages, 1e-4), -advantages)
    assert clip_fraction(log_prob, log_prob, 1e-4) == 0.0


def test_the_clipped_loss_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])
    loss = clipped_loss(ratio.log(), torch.zeros(5), advantages, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.4, 3.0, -1.0, 1.6, -1.1]))
    torch.testing.assert_close(clip_fraction(ratio.log(), torch.zeros(5), 0.2), torch.tensor(0.8))


def test_a_ratio_given_by_the_caller_replaces_the_plain_one():
    loss = clipped_loss(torch.zeros(2), torch.ones(2), torch.ones(2), 0.5, ratio=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, torch.tensor([-1.0, -1.5]))
    assert clip_fraction(torch.zeros(2), torch.ones(2), 0.5, ratio=torch.tensor([1.0, 3.0])) == 0.5


def test_a_clipped_improvement_has_no_gradient_and_a_clipped_worsening_keeps_it():
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    clipped_loss(log_prob, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 1.5, -0.5, 0.0]))


def test_shapes_that_would_broadcast_silently_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        clipped_loss(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), 0.1)


def test_the_gradient_of_a_shared_mean_equals_that_of_one_forward_per_child():
    states, children, dimension, std = 3, 8, 5, 0.4
    x, noise = normal(states, dimension), normal(states, children, dimension, seed=1)
    advantages = group_advantages(normal(states * children, seed=2), children).reshape(states, children)
    weight = normal(dimension, dimension, seed=3)

    def means(parameter, inputs):
        return torch.tanh(inputs @ parameter)

    drawn = means(weight, x)[:, None] + std * noise  # [M, C, D]
    old = -0.5 * noise.square().mean(2)

    shared = weight.clone().requires_grad_()
    log_prob = -0.5 * ((drawn - means(shared, x)[:, None]) / std).square().mean(2)
    clipped_loss(log_prob, old, advantages, 1e-3).mean().backward()

    single = weight.clone().requires_grad_()
    repeated = Gaussian(means(single, x.repeat_interleave(children, 0)), std)
    rows = drawn.reshape(-1, dimension)
    old_rows = Gaussian(means(weight, x).repeat_interleave(children, 0), std).log_prob(rows)
    clipped_loss(repeated.log_prob(rows), old_rows, advantages.flatten(), 1e-3).mean().backward()
    torch.testing.assert_close(shared.grad, single.grad, rtol=1e-3, atol=1e-6)

    constant = -(advantages[..., None] * noise).mean(1) / std / dimension  # the group's gradient is <grad mean, constant>
    direct = weight.clone().requires_grad_()
    (means(direct, x) * constant).sum(1).mean().backward()
    torch.testing.assert_close(shared.grad, direct.grad, rtol=1e-3, atol=1e-6)


def test_kl_equals_torch_distributions():
    mean, reference = normal(2, 4, 3, 2, 2)
    normals = torch.distributions.Normal(mean, 0.3), torch.distributions.Normal(reference, 0.3)
    expected = torch.distributions.kl_divergence(*normals)
    torch.testing.assert_close(gaussian_kl(mean, reference, 0.3), expected.flatten(1).mean(1), rtol=1e-6, atol=1e-6)
    per_row = gaussian_kl(mean, reference, torch.tensor([0.3, 0.3, 0.6, 0.6]))
    torch.testing.assert_close(per_row[2:], gaussian_kl(mean, reference, 0.6)[2:])
    assert gaussian_kl(mean, mean, 0.3).tolist() == [0.0] * 4


def test_ratio_norm_follows_its_formula():
    mean, old_mean, std = normal(2, 6), normal(2, 6, seed=1), 0.2
    noise = normal(2, 9, 6, seed=2)
    drawn = old_mean[:, None] + std * noise
    log_prob = torch.distributions.Normal(mean[:, None], std).log_prob(drawn).mean(2)
    old_log_prob = torch.distributions.Normal(old_mean[:, None], std).log_prob(drawn).mean(2)
    ratio = ratio_norm(log_prob, old_log_prob, mean, old_mean, std)
    by_definition = torch.exp(std * (log_prob - old_log_prob + (mean - old_mean).square().mean(1, keepdim=True) / (2 * std**2)))
    torch.testing.assert_close(ratio, by_definition)
    # what is left is the mean over dimensions of noise * (mean - old_mean)
    torch.testing.assert_close(ratio.log(), (noise * (mean - old_mean)[:, None]).mean(2), rtol=1e-4, atol=1e-5)


def test_ratio_norm_centres_the_log_ratio_and_gives_all_steps_one_spread():
    difference = 0.01 * normal(1, 16)
    spreads = []
    for std in (0.05, 0.8):
        noise = normal(20_000, 16, seed=3)
        old_mean = torch.zeros(20_000, 16)
        drawn = std * noise
        mean = difference.expand(20_000, 16)
        log_prob, old_log_prob = Gaussian(mean, std).log_prob(drawn), Gaussian(old_mean, std).log_prob(drawn)
        log_ratio = ratio_norm(log_prob, old_log_prob, mean, old_mean, std).log()
        assert abs(float(log_ratio.mean())) < 4 * float(log_ratio.std()) / math.sqrt(20_000)
        spreads.append(float(log_ratio.std()))
    assert spreads[0] == pytest.approx(spreads[1], rel=0.02)


def test_ratio_norm_is_one_while_policies_agree_and_takes_a_std_per_state():
    mean, log_prob = normal(3, 5), normal(3, 4)
    assert torch.equal(ratio_norm(log_prob, log_prob, mean, mean, 0.3), torch.ones(3, 4))
    stds = torch.tensor([0.1, 0.2, 0.3])
    other, old = normal(3, 5, seed=1), normal(3, 4, seed=2)
    whole = ratio_norm(log_prob, old, mean, other, stds)
    for i in range(3):
        row = slice(i, i + 1)
        torch.testing.assert_close(whole[row], ratio_norm(log_prob[row], old[row], mean[row], other[row], float(stds[i])))
    torch.testing.assert_close(ratio_norm(log_prob[:, 0], old[:, 0], mean, other, stds), whole[:, 0])


def test_step_weights_average_to_one():
    assert step_weights([0.1, 0.7, 0.4]).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(step_weights([0.1, 0.3, 0.8], "noise"), torch.tensor([0.25, 0.75, 2.0]))
    # balanced: std over span is 0.5 and 1.5
    torch.testing.assert_close(step_weights([0.1, 0.6], "balanced", spans=[0.2, 0.4]), torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="unknown step weights 'snr'; choose from: uniform, noise, balanced"):
        step_weights([0.1], "snr")
    with pytest.raises(ValueError, match="need the spans"):
        step_weights([0.1], "balanced")


def test_balanced_weights_make_the_steps_pull_alike():
    """The gradient of a step goes as its span over its std; times its weight it is the same at every step."""
    stds, spans = [0.6, 0.4, 0.1], [0.1, 0.2, 0.45]
    pull = step_weights(stds, "balanced", spans=spans) * torch.tensor(spans) / torch.tensor(stds)
    torch.testing.assert_close(pull, pull[:1].expand(3))


@pytest.mark.parametrize("call", [lambda: step_weights([0.5, 0.0]), lambda: gaussian_kl(torch.ones(1, 1), torch.ones(1, 1), 0.0)])
def test_deterministic_steps_are_not_trained(call):
    with pytest.raises(ValueError, match="deterministic step has no density"):
        call()
