"""Group-relative policy optimisation as pure functions of tensors; knows no prompt, network, sampler or configuration.

Log-probabilities are means over dimensions throughout, so a `clip_range` does not change with the size of the latent.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor, group_size: int, *, std: Literal["group", "global"] = "group", std_floor: float = 1e-4, clip: float = 5.0
) -> Tensor:
    """Reward of each sample relative to the other samples of its prompt.

    A group whose rewards are all equal ranks nothing: its advantages are exactly zero, whatever rounding or `std` would say.
    With "group" spread no advantage exceeds sqrt(group_size - 1), so the default clip binds only in groups of more than 26.

    Args:
        rewards: [P * G], finite, samples of one prompt contiguous; any scale.
        std: "group" divides by the population spread of the sample's own group, "global" by that of the whole batch, which
            does not amplify nearly constant groups.
        std_floor: added to the spread, in the rewards' unit.
        clip: largest absolute advantage.
    Returns: [P * G], float32; zero mean in each group unless clipped.
    Raises: ValueError: if the rewards are not finite or do not divide into groups.
    Source: DeepSeekMath (arXiv:2402.03300), outcome supervision.
    """
    grouped = _grouped(rewards, group_size)
    if std not in ("group", "global"):
        raise ValueError(f"unknown std {std!r}; choose from: group, global")
    centred = grouped - grouped.mean(1, keepdim=True)
    centred = centred.masked_fill(_is_constant(grouped)[:, None], 0.0)
    spread = centred.square().mean(1, keepdim=True).sqrt() if std == "group" else grouped.std(correction=0)
    # with std_floor = 0 a constant batch would be 0 / 0
    scale = (spread + std_floor).clamp_min(torch.finfo(torch.float32).tiny)
    return (centred / scale).clamp(-clip, clip).flatten()


def gdpo_advantages(
    parts: Tensor,
    weights: Sequence[float],
    group_size: int,
    *,
    std: Literal["group", "global"] = "group",
    std_floor: float = 1e-4,
    clip: float = 5.0,
) -> Tensor:
    """Advantages of several rewards, each compared by itself before they are summed, so that none drowns another.

    A weighted sum of rewards lets two samples with different rewards and the same sum look alike, and the reward with the widest
    spread decide. Here each reward is normalised in its group, weighted and summed; the sum is normalised over the whole batch.

    Args:
        parts: [R, P * G], a row for each reward, otherwise as for `group_advantages`.
        weights: [R].
    Returns: [P * G], float32; zero where every reward of the group is constant.
    Raises: ValueError: as `group_advantages` does, or if there is not one weight a reward.
    Source: GDPO (arXiv:2601.05242), group reward-decoupled normalisation.
    """
    if len(weights) != len(parts):
        raise ValueError(f"gdpo needs one weight for each reward, got {len(weights)} for {len(parts)}")
    each = [
        weight * group_advantages(part, group_size, std=std, std_floor=std_floor, clip=clip)
        for weight, part in zip(weights, parts, strict=True)
    ]
    total = torch.stack(each).sum(0)  # zero mean in every group, hence over the batch, unless clipped
    spread = total.square().mean().sqrt()
    return (total / (spread + std_floor).clamp_min(torch.finfo(torch.float32).tiny)).clamp(-clip, clip)


def constant_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups carry no gradient because all their rewards are equal.

    Args:
        rewards: [P * G], finite, samples of one prompt contiguous.
    Returns: [P], bool.
    Raises: ValueError: if the rewards are not finite or do not divide into groups.
    """
    return _is_constant(_grouped(rewards, group_size))


def clipped_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float, *, ratio: Tensor | None = None
) -> Tensor:
    """PPO's pessimistic surrogate, element by element: max(-A r, -A clip(r, 1 - c, 1 + c)).

    Args:
        log_prob: of the policy, any shape such as [M, C] for C children of M states; mean over dimensions, float32.
        old_log_prob: of the policy that sampled, same shape, without gradient.
        advantages: same shape.
        clip_range: c, the trust region of the ratio.
        ratio: used instead of exp(log_prob - old_log_prob) where given, as by `ratio_norm`.
    Returns: loss of each element, same shape; the caller weighs and averages.
    Source: PPO (arXiv:1707.06347), equation 7.
    """
    ratio = torch.exp(log_prob - old_log_prob) if ratio is None else ratio
    if not (ratio.shape == log_prob.shape == old_log_prob.shape == advantages.shape):
        shapes = ", ".join(str(tuple(x.shape)) for x in (log_prob, old_log_prob, advantages, ratio))
        raise ValueError(f"log_prob, old_log_prob, advantages and ratio must have one shape, an element a sample; got {shapes}")
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range))


def clip_fraction(log_prob: Tensor, old_log_prob: Tensor, clip_range: float, *, ratio: Tensor | None = None) -> Tensor:
    """Share of the ratios outside the trust region, whatever the sign of their advantage; a scalar in [0, 1] without gradient."""
    ratio = torch.exp(log_prob - old_log_prob) if ratio is None else ratio
    return ((ratio.detach() - 1.0).abs() > clip_range).float().mean()


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: float | Tensor) -> Tensor:
    """KL divergence of two Gaussians that differ in their mean only, as a *mean* over dimensions: (mu - mu_ref)^2 / (2 std^2).

    The true KL of the transition. Others divide by other variances or by nothing, so a KL weight does not carry over.

    Args:
        mean, reference_mean: [N, ...].
        std: of both transitions, positive; one number or [N].
    Returns: [N].
    """
    _check_std(std)
    return (mean.float() - reference_mean.float()).square().flatten(1).mean(1) / (2.0 * std**2)


def ratio_norm(log_prob: Tensor, old_log_prob: Tensor, mean: Tensor, old_mean: Tensor, std: float | Tensor) -> Tensor:
    """Ratio whose logarithm is centred and rescaled, so that one clip range fits every step.

    The plain log-ratio of a step is negative on average, by the KL, and its spread goes as 1/std: late steps hit only the
    lower clip and dominate the gradient. Adding the KL back and multiplying by std leaves the mean over dimensions of
    xi (mu - mu_old), which averages to zero over the noise xi. Needs a far smaller `clip_range`, about 4e-6 in the source.

    Args:
        log_prob, old_log_prob: [M] or [M, C], mean over dimensions.
        mean, old_mean: [M, ...], of the transitions; children of one state share it.
        std: positive; one number or [M].
    Returns: ratio, the shape of `log_prob`; 1 where the policies agree.
    Source: GRPO-Guard (arXiv:2510.22319), RatioNorm.
    """
    kl = gaussian_kl(mean, old_mean, std)  # [M]
    if log_prob.dim() == 2:
        kl = kl[:, None]
        std = std[:, None] if isinstance(std, Tensor) and std.dim() == 1 else std
    return torch.exp(std * (log_prob - old_log_prob + kl))


def step_weights(
    stds: Sequence[float] | Tensor,
    kind: Literal["uniform", "noise", "balanced"] = "uniform",
    *,
    spans: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Weight of each stochastic step in the loss, 1 on average over the steps.

    The policy gradient of a step goes as its span over its std, so late steps dominate: threefold to tenfold on a shifted grid.
    "noise" weighs by std; "balanced" by std / span, which makes all steps pull alike.

    Args:
        stds: [K], of the transitions, all positive: deterministic steps are not trained.
        spans: [K], t - s of the transitions, positive; needed by "balanced" only.
    Returns: [K], float32.
    Source: "noise": TempFlow-GRPO (arXiv:2508.04324), noise-aware weighting.
    """
    spread = torch.as_tensor(stds, dtype=torch.float32)
    _check_std(spread)
    if kind == "uniform":
        return torch.ones_like(spread)
    if kind == "noise":
        return spread / spread.mean()
    if kind == "balanced":
        if spans is None:
            raise ValueError("balanced step weights need the spans t - s of the steps")
        ease = spread / torch.as_tensor(spans, dtype=torch.float32)
        return ease / ease.mean()
    raise ValueError(f"unknown step weights {kind!r}; choose from: uniform, noise, balanced")


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    """[P * G] -> [P, G], float32, after checking the contract that advantages rest on."""
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2 to compare samples, got {group_size}")
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be one number per sample, [P * G], got shape {tuple(rewards.shape)}")
    if len(rewards) == 0 or len(rewards) % group_size:
        raise ValueError(f"rewards must divide into whole groups of {group_size}, got {len(rewards)}")
    if not torch.isfinite(rewards).all():
        first = int((~torch.isfinite(rewards)).nonzero()[0])
        raise ValueError(f"rewards must be finite to be compared, got {rewards[first].item()} at sample {first}")
    return rewards.float().reshape(-1, group_size)


def _is_constant(grouped: Tensor) -> Tensor:
    return (grouped == grouped[:, :1]).all(1)


def _check_std(std: float | Tensor) -> None:
    if not (bool((std > 0).all()) if isinstance(std, Tensor) else std > 0):
        raise ValueError(f"std must be positive: a deterministic step has no density and is not trained; got {std}")
