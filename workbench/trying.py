"""Rewards on a collection of pictures before any training: who ranks what, what a group would learn from it, what it costs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage, stats
from torch import Tensor

from workbench.contracts import Reward
from workbench.evaluate import to_uint8
from workbench.galleries import Galleries, Gallery, Sample, config_of
from workbench.grpo import gdpo_advantages, group_advantages
from workbench.pictures import read_sprite
from workbench.recipes import RECIPES
from workbench.records import Run
from workbench.sampling import LARGEST_SEED
from workbench.scoring import impatient
from workbench.settings import GRPOConfig, Settings, WeightedReward
from workbench.store import Store

MOST = 512
"""Most pictures of a collection."""


class CollectRequest(Settings):
    """Which pictures rewards are tried on."""

    run: str = Field(min_length=1, max_length=120, description="id of the run that they belong to")
    kind: Literal["rollout", "evaluation", "base", "renderings"] = Field(
        "rollout",
        description="rollout: a training batch as it was recorded; evaluation: held-out pictures as they were recorded; base: "
        "drawn now by the untrained model; renderings: drawn by the task itself, as its prompts ask",
    )
    at: int | None = Field(None, ge=0, description="row of a rollout, iteration of an evaluation; none: the latest")
    prompts: int = Field(8, ge=1, le=32, description="prompts, where pictures are drawn now")
    each: int = Field(8, ge=1, le=16, description="pictures of each prompt, where they are drawn now")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of a prompt's first picture; the next have the seeds after it")


class RewardsRequest(Settings):
    """Which rewards are tried, with their settings and weights."""

    rewards: tuple[WeightedReward, ...] = Field(min_length=1, description="each is tried by itself, and all together by weight")


@dataclass(frozen=True)
class Collection:
    """Pictures, uint8 [N, 3, H, W], with their prompts and seeds; those of one group, or else of one prompt, are contiguous."""

    title: str
    images: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    group_size: int  # 0 where groups differ in size, or are of one picture, so that nothing can be compared in them

    @property
    def groups(self) -> tuple[str, ...]:
        """What tells each picture's group: its place in a rollout, where two groups may have the same prompt, or its prompt."""
        size = self.group_size
        return tuple(str(i // size) for i in range(len(self.prompts))) if size else self.prompts


@dataclass(frozen=True)
class Opinion:
    """What one reward says of N pictures. `values` [N] may hold NaN; None where it raised; `failure` then says why."""

    name: str
    values: Tensor | None
    milliseconds: float | None = None  # for one image, once everything is loaded
    failure: str = ""


@dataclass(frozen=True)
class Summary:
    """One reward's finite values in figures; None where there are none.

    `tied` counts pictures that share their value with another, `missing` those without one. `within` is the mean standard
    deviation among the pictures of a prompt, and `quiet` the share of prompts whose pictures all score alike: they would teach
    GRPO nothing.
    """

    mean: float | None
    low: float | None
    high: float | None
    distinct: int
    tied: int
    missing: int
    within: float | None
    quiet: float | None


def collect(store: Store, galleries: Galleries, wanted: CollectRequest) -> Collection:
    """The pictures that are wanted; for the worker's thread where a model draws them.

    Raises: ValueError: if the run is unknown or recorded no such pictures; says what there is instead.
    """
    run = store.run(wanted.run)
    config = config_of(run)
    if wanted.kind == "rollout":
        return _rollout(store, run, wanted.at)
    if wanted.kind == "evaluation":
        return _evaluation(galleries, run, wanted.at)
    known = list(dict.fromkeys(config.task.prompts("train")))[: wanted.prompts]
    sample, size = Sample.of(known, wanted.each, wanted.seed, config.sampling_steps), wanted.each if wanted.each > 1 else 0
    if wanted.kind == "base":
        drawn = galleries.images(Gallery(run, config, 0, sample, None))
        return Collection(f"the base model {config.model.name!r}", drawn, sample.prompts, sample.seeds, size)
    draw = next((recipe.domain.draw for recipe in RECIPES.values() if recipe.domain.task.domain == config.task.domain), None)
    if draw is None:
        raise ValueError(f"task {config.task.name!r} cannot draw its own prompts; choose rollouts, evaluations or the base")
    drawn = to_uint8(draw(sample.prompts, np.random.default_rng(wanted.seed)))
    return Collection(f"the task's own renderings, seed {wanted.seed}", drawn, sample.prompts, sample.seeds, size)


def examine(rewards: Sequence[Reward], images: Tensor, prompts: Sequence[str]) -> list[Opinion]:
    """Each reward's opinion of the pictures [N, 3, H, W] in [0, 1]; a failure of one leaves the others standing."""
    return [_examine(reward, images, prompts) for reward in rewards]


def ranks(values: Tensor) -> tuple[list[int | None], list[bool]]:
    """The place of each picture, 1 for the largest value, equal values sharing the better place; and whether it shares it.

    Args:
        values: [N]; a NaN has no place.
    """
    numbers = values.double().numpy()
    known = np.isfinite(numbers)
    place = np.zeros(len(numbers), int)
    place[known] = stats.rankdata(-numbers[known], "min")
    shared = np.bincount(place, minlength=len(numbers) + 1)[place] > 1
    return [int(at) or None for at in place], [bool(tie and at) for tie, at in zip(shared, place, strict=True)]


def summarise(values: Tensor, told_by: Sequence[str]) -> Summary:
    """The figures of one reward's values [N] for pictures whose groups `told_by` tells apart."""
    numbers = values.double().numpy()
    known = np.isfinite(numbers)
    finite, groups = numbers[known], np.array(told_by)[known]
    if not len(finite):
        return Summary(None, None, None, 0, 0, len(numbers), None, None)
    unique = np.unique_counts(finite).counts
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    several = np.flatnonzero(size > 1)
    spread = ndimage.standard_deviation(finite, group, several)
    alike = ndimage.minimum(finite, group, several) == ndimage.maximum(finite, group, several)
    return Summary(
        float(finite.mean()),
        float(finite.min()),
        float(finite.max()),
        len(unique),
        int(unique[unique > 1].sum()),
        int((~known).sum()),
        float(spread.mean()) if len(spread) else None,
        float(alike.mean()) if len(alike) else None,
    )


def correlation(values: Sequence[Tensor]) -> NDArray[np.float64]:
    """Spearman's rank correlation of every two rewards, [R, R], over the pictures that both scored; NaN where one is constant."""
    result = np.full((len(values), len(values)), np.nan)
    for i, first in enumerate(values):
        for j, second in enumerate(values[: i + 1]):
            both = torch.isfinite(first) & torch.isfinite(second)
            x, y = first[both].double().numpy(), second[both].double().numpy()
            if len(x) > 1 and np.ptp(x) and np.ptp(y):
                result[i, j] = result[j, i] = stats.spearmanr(x, y).statistic
    return result


def combine(
    values: Mapping[str, Sequence[float]], weights: Mapping[str, float], group_size: int, settings: GRPOConfig
) -> tuple[Tensor, Tensor]:
    """The weighted sum of rewards, [N], and the advantages that GRPO would give, [N], by the settings of a run.

    Args:
        values: [N] for each reward.
        group_size: pictures of each prompt, contiguous.
    Raises: ValueError: if there are no groups, or a weight or a value is missing or not finite.
    """
    if group_size < 2:
        raise ValueError(
            "these pictures are not in groups of one size, so they have no advantages; choose a rollout, or draw some"
        )
    if values.keys() != weights.keys() or not values:
        raise ValueError(
            f"each reward needs one weight, got weights for {', '.join(weights) or 'none'} of {', '.join(values) or 'none'}"
        )
    parts, shares = torch.tensor(list(values.values())), [float(weights[name]) for name in values]
    if not np.isfinite(shares).all():
        raise ValueError(f"weights must be finite, got {', '.join(map(str, shares))}")
    total = torch.tensor(shares) @ parts
    std, floor, clip = settings.advantage_std, settings.std_floor, settings.advantage_clip
    if settings.combine == "gdpo":
        return total, gdpo_advantages(parts, shares, group_size, std=std, std_floor=floor, clip=clip)
    return total, group_advantages(total, group_size, std=std, std_floor=floor, clip=clip)


def _examine(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Opinion:
    name = str(getattr(reward, "name", type(reward).__name__))
    try:
        function = impatient(reward).load(torch.device("cpu"))
        function(images[:1], prompts[:1])  # what is made at the first call is not counted in the time
        own = images.clone()  # rewards that look at the same tensor may share their work, and the first would pay for all
        begun = time.perf_counter()
        values: Any = function(own, prompts)
        milliseconds = 1000 * (time.perf_counter() - begun) / len(prompts)
    except Exception as error:  # whatever a reward raises is what is to be found out here
        return Opinion(name, None, failure=f"raised {type(error).__name__}: {error}")
    if not isinstance(values, Tensor) or values.shape != (len(prompts),):
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        return Opinion(name, None, milliseconds, f"must give one number per image, [{len(prompts)}], and gave {got}")
    values = values.detach().float().cpu()
    wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if not wrong:
        return Opinion(name, values, milliseconds)
    told = f"gave {values[wrong[0]].item()} for {len(wrong)} of {len(prompts)} images, first for prompt {prompts[wrong[0]]!r}"
    return Opinion(name, values.masked_fill(~torch.isfinite(values), torch.nan), milliseconds, f"{told}; a run would stop there")


def _rollout(store: Store, run: Run, row: int | None) -> Collection:
    known = [at for _, at in store.index(run.id, "GroupsScored")]
    if not known:
        raise ValueError(f"run {run.id} recorded no rollouts yet; choose the base, or renderings")
    wanted = known[-1] if row is None else row
    if wanted not in known:
        raise ValueError(
            f"the rollout in row {wanted} of run {run.id} is not there, or its pictures were thinned; choose another"
        )
    data = store.events(run.id, after=wanted - 1, kinds=("GroupsScored",), limit=1)[0]
    shown, size, sheet = data.data["groups_shown"], data.data["group_size"], data.data["preview"]
    prompts = tuple(data.data["prompts"][group] for group in shown for _ in range(size))
    seeds = tuple(data.data["seeds"][group * size + turn] for group in shown for turn in range(size))
    images, most = read_sprite(store.image_path(run.id, sheet["sprite"]), sheet), MOST // size * size
    return Collection(f"the rollout of iteration {data.iteration}", images[:most], prompts[:most], seeds[:most], size)


def _evaluation(galleries: Galleries, run: Run, iteration: int | None) -> Collection:
    known = {gallery.iteration: gallery for gallery in galleries.recorded(run)}
    if not known:
        raise ValueError(f"run {run.id} was not evaluated yet; choose the base, or renderings")
    wanted = max(known) if iteration is None else iteration
    if wanted not in known:
        raise ValueError(f"run {run.id} was not evaluated at iteration {wanted}; choose from: {', '.join(map(str, known))}")
    found = known[wanted]
    return _contiguous(f"the evaluation at iteration {wanted}", galleries.images(found), found.sample.prompts, found.sample.seeds)


def _contiguous(title: str, images: Tensor, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> Collection:
    """The first MOST pictures, those of one prompt together."""
    first = {prompt: place for place, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(prompts)), key=lambda i: (first[prompts[i]], i))[:MOST]
    counts = np.unique_counts(np.array([prompts[i] for i in order])).counts
    size = int(counts[0]) if counts[0] > 1 and (counts == counts[0]).all() else 0
    return Collection(title, images[order], tuple(prompts[i] for i in order), tuple(seeds[i] for i in order), size)
