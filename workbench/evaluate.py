"""Held-out evaluation: rewards, diversity and distance to the base, with the deterministic sampler and confidence intervals."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as Stream
from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from workbench.config import RunConfig
from workbench.contracts import FlowMapKind, Generator, Sampler, Task
from workbench.events import CheckpointReady, Measure, Progress
from workbench.flow import seed_stream, seeded_noise, time_grid
from workbench.models.policy import Policy
from workbench.rollout import drain
from workbench.samplers.asfmc_endpoint import EndpointSampler
from workbench.samplers.ode import ODESampler

THUMBNAIL = 64  # pixels; pictures are compared at most at this size


def image_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The initial noise of the images with these seeds, [N, *shape]; the same in every page, command and notebook."""
    return seeded_noise([seed_stream("image", seed) for seed in seeds], shape, device)


def load_policy(config: RunConfig, checkpoint: CheckpointReady | None = None, device: torch.device | str = "cpu") -> Policy:
    """The policy of a run as evaluation sees it: the averaged weights of a checkpoint, or the base where there is none.

    It is asked in the precision of the run, so that it draws here what it drew there.
    """
    adapter = config.adapter
    policy = Policy(
        config.model,
        torch.device(device),
        adapter=adapter.kind,
        rank=adapter.rank,
        alpha=adapter.alpha,
        seed=config.seed,
        precision=config.compute.precision,
        start=adapter.start,
        reference=adapter.reference,
        other_base=adapter.other_base,
    )
    if checkpoint is not None:
        policy.load(checkpoint.tensors["ema"])
    return policy


def deployed_sampler(kind: FlowMapKind) -> Sampler:
    """How finished images are drawn: deterministic steps, or for a single-time map multistep consistency sampling."""
    return EndpointSampler(noise=1.0) if kind == "single_time" else ODESampler()


def generate(
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 4,
    shift: float = 1.0,
    times: Sequence[float] | None = None,
    sampler: Sampler | None = None,
) -> Tensor:
    """Images of prompts at seeds, [N, 3, H, W] in [0, 1]; `stream_images` run to its end.

    Args:
        times: the grid, where it is not the uniform one of `steps` and `shift`.
    """
    times = times or time_grid(steps, shift)
    return drain(stream_images(policy.generator, prompts, seeds, times=times, sampler=sampler))


@torch.no_grad()
def stream_images(
    generator: Generator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    times: Sequence[float],
    sampler: Sampler | None = None,
    batch: int = 512,
    finished: Callable[[Tensor, Sequence[str]], None] | None = None,
) -> Stream[Progress, None, Tensor]:
    """Images of prompts at seeds; yields progress, returns [N, 3, H, W] in [0, 1] on the CPU.

    Args:
        times: the grid, from 1 down to 0.
        sampler: the transition kernel, `deployed_sampler` where none is given; each image draws its noise from its own seed.
        finished: takes each portion of images, where they were drawn, and its prompts, in their order.
    """
    kernel, steps = sampler or deployed_sampler(generator.kind), len(times) - 1
    images = []
    for start in range(0, len(prompts), batch):
        own = seeds[start : start + batch]
        flow_map = generator.bind(generator.embed(prompts[start : start + batch]))
        x = image_noise(own, generator.latent_shape, generator.device)
        for step, (t, s) in enumerate(pairwise(times)):
            transition = kernel.step(flow_map, x, t, s)
            x = transition.mean
            if transition.std:
                streams = [seed_stream("image", seed, step) for seed in own]
                x = transition.sample(seeded_noise(streams, generator.latent_shape, generator.device))
            yield Progress("generate", start + len(own) * (step + 1) // steps, len(prompts))
        drawn = generator.decode(x)
        if finished is not None:
            finished(drawn, prompts[start : start + batch])
        images.append(drawn.cpu())
    return torch.cat(images)


@dataclass(frozen=True)
class HeldOut:
    """What is generated at every evaluation of a run: the same prompts and seeds each time, groups contiguous."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    group_size: int


def held_out(task: Task, images: int, group_size: int, seed: int) -> HeldOut:
    """`images` samples of held-out prompts in groups of `group_size`, in the task's own balanced order."""
    prompts = task.prompts("held_out")
    groups = max(1, images // group_size)
    names = [prompts[i % len(prompts)] for i in range(groups) for _ in range(group_size)]
    return HeldOut(tuple(names), tuple(range(seed, seed + len(names))), group_size)


def measure(
    images: Tensor, sample: HeldOut, task: Task, values: Mapping[str, Tensor], base: Tensor | None = None
) -> dict[str, Measure]:
    """Every figure of one evaluation, with 95 % confidence intervals over prompts.

    Args:
        images: [N, 3, H, W] in [0, 1], for `sample`.
        values: what each reward says of them, [N].
        base: the base model's images of the same sample, if the distance to it is wanted.
    Returns: each reward by name; the task's statistics; `diversity` (mean distance of two images of a group), `layouts` (share of
        different compositions in a group), `saturation`, `sharpness` (mean step between neighbouring pixels), and
        `distance_to_base`. Distances are root mean squares over pixels.
    """
    per_image = {**values, **task.statistics(images)}
    per_image["sharpness"] = (images.diff(dim=2).abs().mean((1, 2, 3)) + images.diff(dim=3).abs().mean((1, 2, 3))) / 2
    per_image["saturation"] = (images.amax(1) - images.amin(1)).mean((1, 2))
    small = thumbnails(images)
    if base is not None:
        per_image["distance_to_base"] = (small - thumbnails(base)).square().mean((1, 2, 3)).sqrt()
    groups = {name: value.double().view(-1, sample.group_size).mean(1) for name, value in per_image.items()}
    groups["diversity"] = group_diversity(small, sample.group_size)
    layouts = task.layouts(images)
    if layouts is not None:
        size = sample.group_size
        groups["layouts"] = torch.tensor([len(set(layouts[i : i + size])) / size for i in range(0, len(layouts), size)])
    return {name: interval(value) for name, value in groups.items()}


def group_diversity(images: Tensor, group_size: int) -> Tensor:
    """Mean distance of two images of a group, root mean square over pixels.

    Args:
        images: [groups * group_size, 3, H, W] in [0, 1], groups contiguous, at least 2 in each; thumbnails where they are large.
    Returns: [groups], float64.
    """
    flat = images.flatten(1).view(-1, group_size, images[0].numel())
    exact = "donot_use_mm_for_euclid_dist"  # the shortcut through products cancels, and an image would differ from itself
    pairs = torch.cdist(flat, flat, compute_mode=exact) / flat.shape[-1] ** 0.5
    return pairs.sum((1, 2)).double() / (group_size * (group_size - 1))


def breakdown(values: Tensor, sample: HeldOut, task: Task) -> dict[str, Measure]:
    """The mean of per-image `values` [N] for each skill that the task names; empty where it names none."""
    skill = getattr(task, "skill", None)
    if skill is None:
        return {}
    rows: dict[str, list[int]] = {}
    for index, prompt in enumerate(sample.prompts):
        rows.setdefault(skill(prompt), []).append(index)
    return {name: interval(values[index].double().view(-1, sample.group_size).mean(1)) for name, index in rows.items()}


def measure_groups(values: Mapping[str, Tensor], group_size: int) -> dict[str, Measure]:
    """Per-image values [N] by name, as means over groups with their 95 % intervals."""
    return {name: interval(value.double().view(-1, group_size).mean(1)) for name, value in values.items()}


def interval(values: Tensor) -> Measure:
    """Mean of `values` [prompts] and its 95 % Student interval; prompts, not images, are the independent draws."""
    mean = float(values.mean())
    if len(values) < 2:
        return Measure(mean, mean, mean)
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.double().std() / len(values) ** 0.5)
    return Measure(mean, mean - half, mean + half)


def thumbnails(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> at most THUMBNAIL pixels a side."""
    side = min(THUMBNAIL, *images.shape[-2:])
    return functional.adaptive_avg_pool2d(images.float(), side)


def to_uint8(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> uint8, detached, on the CPU."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().byte()
