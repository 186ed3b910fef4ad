"""Pictures with the prompts and seeds they were drawn from: as a run recorded them, or as a policy draws them now."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.config import RunConfig, parse_config
from workbench.newest import newest
from workbench.pictures import read_sprite
from workbench.policies import Policies
from workbench.records import Run
from workbench.sampling import LARGEST_SEED
from workbench.settings import Settings
from workbench.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.scoring import Rewards

KEPT = 32
"""Most drawn galleries, and most sets of loaded rewards, that are kept in memory."""


class Side(Settings):
    """One of the two that are compared: a run, and how far it had come."""

    run: str = Field(min_length=1, max_length=120, description="id of the run")
    iteration: int | None = Field(None, ge=0, description="iteration; 0 is the base; none: the latest there is")


class PairRequest(Settings):
    """Two sides and what both draw."""

    a: Side = Field(description="what is compared against, as a rule the base")
    b: Side = Field(description="what is compared")
    prompts: tuple[str, ...] = Field((), max_length=32, description="what to draw; none: what evaluations drew")
    each: int = Field(1, ge=1, le=8, description="images of each prompt")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of a prompt's first image; the next have the seeds after it")


@dataclass(frozen=True)
class Sample:
    """What is drawn: image i is of prompt i at seed i, in this number of steps."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int

    @classmethod
    def of(cls, prompts: Sequence[str], each: int, seed: int, steps: int) -> "Sample":
        """As many images of `each` prompt, contiguous, the first of every prompt at `seed` and the next at the seeds after it."""
        return cls(
            tuple(prompt for prompt in prompts for _ in range(each)), tuple(range(seed, seed + each)) * len(prompts), steps
        )


@dataclass(frozen=True)
class Gallery:
    """Pictures of a run at an iteration. Recorded ones name their sheet; others are drawn when they are wanted."""

    run: Run
    config: RunConfig
    iteration: int
    sample: Sample
    sheet: Mapping[str, Any] | None

    @property
    def title(self) -> str:
        """For people: the run, and how far it had come."""
        return f"{self.run.title}, {f'iteration {self.iteration}' if self.iteration else 'the base'}"


class Galleries:
    """Finds, draws and scores pictures; what needs a model or a reward is for the worker's thread alone."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies
        self._drawn: OrderedDict[tuple[str, int, int, Sample], Tensor] = OrderedDict()
        self._rewards: OrderedDict[str, Rewards] = OrderedDict()

    def recorded(self, run: Run) -> list[Gallery]:
        """Every evaluation whose pictures are still there, oldest first."""
        config = config_of(run)
        found = []
        for row in self._store.events(run.id, kinds=("Evaluated",)):
            sheet, data = row.data["preview"], row.data
            if sheet["sprite"] and self._store.image_path(run.id, sheet["sprite"]).is_file():
                sample = Sample(tuple(data["prompts"]), tuple(data["seeds"]), config.sampling_steps)
                found.append(Gallery(run, config, row.iteration, sample, sheet))
        return found

    def pair(self, wanted: PairRequest) -> tuple[Gallery, Gallery]:
        """The two sides with the same prompts, seeds and steps: as recorded where that is what was recorded.

        Raises: ValueError: if a run is unknown or draws something else than the other, or a prompt is not understood.
        """
        runs = [self._store.run(side.run) for side in (wanted.a, wanted.b)]
        known = [self.recorded(run) for run in runs]
        a, b = (config_of(run) for run in runs)
        if a.task.domain != b.task.domain:
            raise ValueError(
                f"run {runs[0].id} draws {a.task.name} and run {runs[1].id} draws {b.task.name}: no prompt suits both, "
                "so choose two runs of one task"
            )
        at = [self._reached(run, side.iteration, had) for run, side, had in zip(runs, (wanted.a, wanted.b), known, strict=True)]
        sample = self._sample(wanted, a, at, known)
        return (
            _matching(known[0], at[0], sample) or Gallery(runs[0], a, at[0], sample, None),
            _matching(known[1], at[1], sample) or Gallery(runs[1], b, at[1], sample, None),
        )

    def images(self, gallery: Gallery) -> "Tensor":
        """The pictures, uint8 [N, 3, H, W]; drawn by the policy where they were not recorded.

        Raises: CheckpointError: if the policy's checkpoint is missing or damaged; says which others there are.
        """
        if gallery.sheet is not None:
            return read_sprite(self._store.image_path(gallery.run.id, gallery.sheet["sprite"]), gallery.sheet)
        stamp = self._store.checkpoint_stamp(gallery.run.id, gallery.iteration)
        key = (gallery.run.id, gallery.iteration, stamp, gallery.sample)
        if key not in self._drawn:
            self._drawn[key] = self._draw(gallery)
        return newest(self._drawn, key, KEPT)

    def score(self, images: "Tensor", prompts: Sequence[str], config: RunConfig) -> dict[str, "Tensor"]:
        """What a run's rewards say of pictures, uint8 [N, 3, H, W]: each by name, and their weighted sum as "reward"; [N].

        Raises: RewardFailed: naming the reward, the prompt and what came back.
        """
        import torch

        from workbench.scoring import Rewards, impatient

        key = repr(config.rewards)
        if key not in self._rewards:
            weighted = [each.model_copy(update={"reward": impatient(each.reward)}) for each in config.rewards]
            self._rewards[key] = Rewards(weighted, torch.device("cpu"))
        rewards = newest(self._rewards, key, KEPT)
        parts = rewards.score(images.float() / 255, prompts)
        return {"reward": rewards.total(parts), **parts}

    def _reached(self, run: Run, iteration: int | None, known: Sequence[Gallery]) -> int:
        """The iteration that is meant; the latest evaluation, or else the latest checkpoint, where none is."""
        if iteration is not None:
            return iteration
        return known[-1].iteration if known else max(self._store.checkpoints(run.id), default=0)

    def _sample(self, wanted: PairRequest, config: RunConfig, at: Sequence[int], known: Sequence[Sequence[Gallery]]) -> Sample:
        """What both sides draw: the prompts asked for; or what one of them recorded there, or ever; or held-out prompts."""
        if wanted.prompts:
            for prompt in wanted.prompts:
                config.task.check(prompt)
            return Sample.of(wanted.prompts, wanted.each, wanted.seed, config.sampling_steps)
        there = [gallery for turn, had in zip(at, known, strict=True) for gallery in had if gallery.iteration == turn]
        ever = [gallery for had in known for gallery in had]
        if there or ever:
            return replace((there or ever)[0].sample, steps=config.sampling_steps)
        held_out, seed = config.task.prompts("held_out"), config.evaluation.seed
        prompts = tuple(held_out[i % len(held_out)] for i in range(config.evaluation.preview))
        return Sample(prompts, tuple(range(seed, seed + len(prompts))), config.sampling_steps)

    def _draw(self, gallery: Gallery) -> "Tensor":
        from workbench.evaluate import stream_images, to_uint8
        from workbench.rollout import drain

        sample, at = gallery.sample, f"run {gallery.run.id} after iteration {gallery.iteration}"
        chosen = self._policies.choose(gallery.run.id, iteration=gallery.iteration)
        times = gallery.config.rollout.grid_of(sample.steps)
        try:
            with self._policies.generator(chosen) as generator:
                return to_uint8(drain(stream_images(generator, sample.prompts, sample.seeds, times=times)))
        except RuntimeError as error:  # weights of another shape, or no memory left
            raise ValueError(f"{at} cannot be drawn: {error}; choose another iteration, or fewer pictures") from error


def expect_pictures(run: Run) -> None:
    """Raise ValueError where a run draws no pictures of prompts."""
    if run.training is None:
        raise ValueError(f"run {run.id} is of kind {run.kind!r} and has no pictures of prompts; choose a run that aligns a model")


def config_of(run: Run) -> RunConfig:
    """The settings of a run that aligns a model. Raises: ValueError: if it does something else."""
    expect_pictures(run)
    return parse_config(run.training or {})


def _matching(known: Sequence[Gallery], iteration: int, sample: Sample) -> Gallery | None:
    return next((gallery for gallery in known if gallery.iteration == iteration and gallery.sample == sample), None)
