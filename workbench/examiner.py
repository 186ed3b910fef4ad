"""Held-out evaluation during a run: what is measured, what the judges say, which iteration was best, and when to give up."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Stream
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import Diverged, RewardFailed
from workbench.evaluate import HeldOut, breakdown, held_out, measure, measure_groups, stream_images, thumbnails, to_uint8
from workbench.events import Evaluated, Event, Measure, Preview, Progress, Sampled
from workbench.models.policy import Policy
from workbench.ranks import Ranks
from workbench.scoring import Judgement, Judges, Rewards, Scores

REMEDY = "resume from an earlier checkpoint with a smaller optimizer.learning_rate or a larger objective.kl_weight"


@dataclass(frozen=True)
class _Pending:
    """An evaluation whose judges are still at work."""

    event: Evaluated
    judgements: Mapping[int, Judgement]  # by number of steps

    def done(self) -> bool:
        """Whether all has been said."""
        return all(judgement.done() for judgement in self.judgements.values())


class Examiner:
    """Looks at the averaged weights through held-out prompts, the same seeds each time.

    Judges that take long work beside the training: an evaluation is told once they are done.

    Several processes draw and score a share each; the first alone asks the judges, since it alone tells what they say.

    Args:
        averaged: puts the averaged weights in place of the policy's while it is entered.
        ranks: the processes of the run, all of which examine alike.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        averaged: Callable[[], AbstractContextManager[None]],
        rewards: Rewards,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.policy, self.averaged, self.rewards = config, policy, averaged, rewards
        self.ranks = ranks or Ranks()
        judges = [judge.reward for judge in config.eval_rewards] if self.ranks.first else []
        self.judges = Judges(judges, policy.generator.device)
        self.base_reward: float | None = None  # of the first held-out evaluation
        self.best_reward, self.best_iteration = -math.inf, 0
        self._base_images: dict[int, Tensor] = {}
        self._pending: deque[_Pending] = deque()

    @property
    def waiting(self) -> bool:
        """Whether an evaluation has not been told yet."""
        return bool(self._pending)

    def evaluate(
        self, iteration: int, images: int, steps: Sequence[int]
    ) -> Stream[Progress, None, Mapping[int, Mapping[str, Measure]]]:
        """Sample and measure; returns the measures by number of steps. `told` yields the evaluation when its judges are done.

        Raises: FloatingPointError: if the samples are not finite.
        """
        settings = self.config.evaluation
        sample = held_out(self.config.task, images, settings.group_size, settings.seed)
        judged = held_out(self.config.task, min(images, settings.judged), settings.group_size, settings.seed)
        measures: dict[int, dict[str, Measure]] = {}
        judgements: dict[int, Judgement] = {}
        skills: dict[str, Measure] = {}
        shown = self._shown()
        preview = torch.empty(0)
        for count in steps:
            scores = self.rewards.begin()
            with self.averaged():
                pictures = yield from self._pictures(sample.prompts, sample.seeds, count, scores)
            expect_finite(pictures, iteration)
            with self.ranks.together():
                judgements[count] = self.judges.submit(pictures[: len(judged.prompts)], judged.prompts)
            base = yield from self._base_pictures(count)
            with self.ranks.together():
                own = yield from scores.collect()
            values = {name: self.ranks.gather(each)[: len(pictures)] for name, each in own.items()}
            measures[count] = measure(pictures, sample, self.config.task, values, base[: len(pictures)])
            if count == self.config.sampling_steps or not len(preview):
                preview = to_uint8(pictures[shown])
                skills = breakdown(values[self.rewards.main], sample, self.config.task)
        prompts, seeds = _places(sample, shown)
        event = Evaluated(iteration, measures, len(sample.prompts), prompts, seeds, Preview(preview), skills)
        self._pending.append(_Pending(event, judgements))
        return measures

    def told(self, *, before: int = -1) -> Iterator[Event]:
        """The evaluations whose judges are done, oldest first; and all before iteration `before`, waited for.

        Raises: RewardFailed: if a judge failed; its evaluation stays untold.
        """
        with self.ranks.together():
            while self._pending and (self._pending[0].event.iteration < before or self._pending[0].done()):
                event = self._judged(self._pending[0])
                self._pending.popleft()
                yield event

    def rescued(self, before: int) -> Iterator[Event]:
        """What is untold of iterations before `before`, waited for; where a judge failed, without what the judges said."""
        while self._pending and self._pending[0].event.iteration < before:
            pending = self._pending.popleft()
            try:
                event = self._judged(pending)
            except RewardFailed:
                event = pending.event
            yield event

    def sample(self, iteration: int) -> Iterator[Event]:
        """Pictures of held-out prompts at the evaluation's seeds, on request."""
        settings = self.config.evaluation
        sample = held_out(self.config.task, settings.final_images, settings.group_size, settings.seed)
        prompts, seeds = _places(sample, self._shown())
        with self.averaged():
            pictures = yield from self._pictures(prompts, seeds, self.config.sampling_steps)
        yield Sampled(iteration, prompts, seeds, Preview(to_uint8(pictures)))

    def weigh(self, iteration: int, measures: Mapping[str, Measure]) -> None:
        """Remember the best iteration; stop a run whose held-out reward has collapsed.

        Raises: FloatingPointError: if it has, against the first that was weighed, the base's.
        """
        reward = sum(weight * measures[name].value for name, weight in self.rewards.weights.items())
        reward = self.ranks.exchange(reward)[0]  # other processors may differ in the last bit, and all have to decide alike
        if self.base_reward is None:
            self.base_reward = reward
        if reward > self.best_reward:
            self.best_reward, self.best_iteration = reward, iteration
        floor = self.config.guard.collapse * self.base_reward
        if self.base_reward > 0 and reward < floor:
            raise Diverged(
                f"iteration {iteration}: the held-out reward fell to {reward:.3g}, below "
                f"{self.config.guard.collapse:.0%} of the base's {self.base_reward:.3g}; {REMEDY}"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "base_reward": self.base_reward,
            "best": self.best_iteration,
            "best_reward": None if self.base_reward is None else self.best_reward,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["base_reward"] is not None:
            self.base_reward, self.best_reward = state["base_reward"], state["best_reward"]
            self.best_iteration = state["best"]

    def close(self) -> None:
        """End the judges' thread."""
        self.judges.close()

    def _judged(self, pending: _Pending) -> Evaluated:
        """The evaluation with what its judges say, waited for."""
        event, size = pending.event, self.config.evaluation.group_size
        said = {steps: measure_groups(judgement.result(), size) for steps, judgement in pending.judgements.items()}
        return replace(event, measures={steps: measures | said[steps] for steps, measures in event.measures.items()})

    def _shown(self) -> list[int]:
        """Places of the images kept, the same in every evaluation: one of each prompt first, then further ones."""
        settings = self.config.evaluation
        groups = max(1, min(settings.images, settings.final_images) // settings.group_size)
        size = settings.group_size
        return [group * size + turn for turn in range(size) for group in range(groups)][: settings.preview]

    def _pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, scores: Scores | None = None
    ) -> Stream[Progress, None, Tensor]:
        """Images of prompts at seeds, of which each process draws its share; [N, 3, H, W] on the CPU.

        Args:
            scores: takes this process's share as it is drawn.
        """
        times, batch = self.config.rollout.grid_of(steps), self.config.compute.sample_batch
        share = self.ranks.share(len(prompts))
        own, streams = [prompts[place] for place in share], [seeds[place] for place in share]
        finished = None if scores is None else scores.add
        with self.ranks.together():
            drawn = stream_images(self.policy.generator, own, streams, times=times, batch=batch, finished=finished)
            pictures = yield from drawn
        return self.ranks.gather(pictures)[: len(prompts)]

    def _base_pictures(self, steps: int) -> Stream[Progress, None, Tensor]:
        """What the reference draws for the same sample, as thumbnails.

        Made once, for the longest sample whoever asks first: a shorter one is its beginning, and a resumed run's are the same.
        """
        if steps not in self._base_images:
            settings = self.config.evaluation
            longest = held_out(self.config.task, max(settings.images, settings.final_images), settings.group_size, settings.seed)
            with self.policy.reference():
                pictures = yield from self._pictures(longest.prompts, longest.seeds, steps)
            self._base_images[steps] = thumbnails(pictures)
        return self._base_images[steps]


def expect_finite(samples: Tensor, iteration: int) -> None:
    """A reward should not be blamed for what the policy drew."""
    if not torch.isfinite(samples).all():
        raise Diverged(f"iteration {iteration}: the policy's samples are not finite; {REMEDY}")


def _places(sample: HeldOut, shown: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The prompts and seeds of some of a sample's images."""
    return tuple(sample.prompts[i] for i in shown), tuple(sample.seeds[i] for i in shown)
