"""Everything a run carries from one iteration to the next: policy, optimizer, averaged weights, rewards; and how it is saved."""

import math
from collections.abc import Generator as Stream
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import FlowMapKind
from workbench.evaluate import breakdown, held_out, measure, stream_images, thumbnails, to_uint8
from workbench.events import CheckpointReady, Controls, Evaluated, Event, Measure, Preview, Progress, Sampled
from workbench.flow import seed_stream, seeded_uniform, time_grid
from workbench.grpo import step_weights
from workbench.models.policy import Policy
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.rollout import Plan
from workbench.scoring import Rewards

if TYPE_CHECKING:
    from accelerate import Accelerator


class Learner:
    """The state of one training run. Randomness is hashed from names, so none of it needs saving."""

    def __init__(self, config: RunConfig, accelerator: "Accelerator") -> None:
        if accelerator.num_processes != config.compute.processes:
            raise ValueError(
                f"the run expects compute.processes = {config.compute.processes}, but {accelerator.num_processes} started; "
                "start several on a CPU with torchrun, since accelerate's own launcher starts only one there"
            )
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        adapter, optimizer = config.adapter, config.optimizer
        self.policy = Policy(
            config.model,
            self.device,
            adapter=adapter.kind,
            rank=adapter.rank,
            alpha=adapter.alpha,
            seed=config.seed,
            precision=config.compute.precision,
        )
        kind = self.policy.generator.kind
        if kind not in config.sampler.needs:
            raise ValueError(
                f"sampler {config.sampler.name!r} needs a {' or '.join(config.sampler.needs)} map, "
                f"and {config.model.name!r} is a {kind} map"
            )
        self.optimizer = accelerator.prepare(
            torch.optim.AdamW(
                self.policy.parameters.values(),
                lr=optimizer.learning_rate,
                betas=(optimizer.beta1, optimizer.beta2),
                weight_decay=optimizer.weight_decay,
            )
        )
        self.average = AveragedWeights(self.policy.parameters, optimizer.ema_decay)
        self.rewards = Rewards(config.rewards, self.device)
        self.times = time_grid(config.rollout.steps, config.rollout.shift)
        self.step_weights = self._step_weights()
        self.spreads = [1.0] * (config.rollout.steps - 1)  # running reward spread inside groups, by branching step
        self.iteration = 0
        self.checked = False  # whether preflight has been
        self.evaluated = -1  # the iteration up to which every evaluation that was due has been
        self.base_reward: float | None = None  # of the first held-out evaluation
        self.best_reward, self.best_iteration = -math.inf, 0
        self._base_images: dict[int, Tensor] = {}

    def draw_prompts(self) -> tuple[list[str], int]:
        """This process's prompts of the iteration, one per group, and the index of its first in the whole batch."""
        available = self.config.task.prompts("train")
        wanted, processes = self.config.grpo.groups, self.accelerator.num_processes
        draw = torch.Generator().manual_seed(abs(seed_stream(self.config.seed, "prompts", self.iteration)))
        order = torch.cat([torch.randperm(len(available), generator=draw) for _ in range(math.ceil(wanted / len(available)))])
        own = wanted // processes
        first = own * self.accelerator.process_index
        return [available[index] for index in order[first : first + own].tolist()], first

    def plan(self) -> Plan:
        """How this iteration's rollout is drawn; the branching step is chosen in proportion to the reward spread it brings."""
        rollout, grpo, compute = self.config.rollout, self.config.grpo, self.config.compute
        step = None
        if rollout.mode == "branch":
            draw = seeded_uniform(self.config.seed, "branch step", self.iteration) * sum(self.spreads)
            step = next((i for i in range(len(self.spreads)) if draw < sum(self.spreads[: i + 1])), len(self.spreads) - 1)
        return Plan(
            self.times,
            grpo.group_size,
            step,
            rollout.completion,
            rollout.antithetic,
            rollout.shared_noise,
            compute.sample_batch,
            compute.train_batch,
        )

    def decode(self, latents: Tensor) -> Stream[Progress, None, Tensor]:
        """[N, ...] -> images [N, 3, H, W] in [0, 1], in portions.

        Raises: FloatingPointError: if the latents are not finite.
        """
        self._expect_finite(latents)
        images, size = [], self.config.compute.sample_batch
        for start in range(0, len(latents), size):
            with torch.no_grad():
                images.append(self.policy.generator.decode(latents[start : start + size]))
            yield Progress("decode", start, len(latents))
        return torch.cat(images)

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, in the order of the whole batch."""
        return self.accelerator.gather(values.to(self.device)) if self.accelerator.num_processes > 1 else values

    def agree(self, controls: Controls) -> Controls:
        """What the first process was asked, the same on all of them: otherwise one would stop and leave the others waiting."""
        wishes = [replace(controls)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(wishes, from_process=0)
        return wishes[0]

    def own(self, values: Tensor) -> Tensor:
        """This process's share of gathered values."""
        count = len(values) // self.accelerator.num_processes
        first = count * self.accelerator.process_index
        return values[first : first + count].to(self.device)

    def learn_spread(self, step: int | None, rewards: Tensor) -> None:
        """Remember how much reward varies inside groups that branched at `step`."""
        if step is not None:
            spread = float(rewards.view(-1, self.config.grpo.group_size).std(1, correction=0).mean())
            self.spreads[step] += 0.2 * (max(spread, 1e-3) - self.spreads[step])

    def learning_rate(self) -> float:
        """Linear warm-up, then a linear fall to `final_share`."""
        settings, total = self.config.optimizer, self.config.iterations
        fall = 1.0 - (1.0 - settings.final_share) * min(1.0, self.iteration / total)
        return settings.learning_rate * min(1.0, (self.iteration + 1) / (settings.warmup + 1)) * fall

    def apply_gradients(self) -> Tensor:
        """Average the gradients over processes, clip and step; returns the norm before clipping.

        Raises: FloatingPointError: before anything is changed, if the norm is not finite.
        """
        parameters = list(self.policy.parameters.values())
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm)
        if not torch.isfinite(norm) and self.config.compute.precision != "fp16":  # fp16's scaler skips such a step by itself
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"iteration {self.iteration}: the gradient norm is {float(norm)}; "
                "lower optimizer.learning_rate or raise grpo.kl_weight, then resume"
            )
        set_learning_rate(self.optimizer, self.learning_rate())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def evaluate(self, images: int, steps: Sequence[int]) -> Iterator[Event]:
        """Held-out evaluation with averaged weights; also keeps the best iteration and watches for collapse.

        Raises: FloatingPointError: if the held-out reward has collapsed against the base.
        """
        settings = self.config.evaluation
        sample = held_out(self.config.task, images, settings.group_size, settings.seed)
        measures: dict[int, dict[str, Measure]] = {}
        skills: dict[str, Measure] = {}
        shown = self._shown()
        preview = torch.empty(0)
        for count in steps:
            with self.averaged():
                pictures = yield from self._pictures(sample.prompts, sample.seeds, count)
            self._expect_finite(pictures)
            base = yield from self._base_pictures(count)
            measures[count] = measure(pictures, sample, self.config.task, self.rewards.functions, base[: len(pictures)])
            if count == self.config.rollout.steps or not len(preview):
                preview = to_uint8(pictures[shown])
                success = self.rewards.functions[self.rewards.main](pictures, sample.prompts)
                skills = breakdown(success, sample, self.config.task)
        prompts, seeds = zip(*((sample.prompts[i], sample.seeds[i]) for i in shown), strict=True)
        yield Evaluated(self.iteration, measures, len(sample.prompts), prompts, seeds, Preview(preview), skills)
        self._judge(measures.get(self.config.rollout.steps) or measures[steps[-1]])

    def sample(self) -> Iterator[Event]:
        """Pictures of held-out prompts at the evaluation's seeds, on request."""
        settings = self.config.evaluation
        sample = held_out(self.config.task, settings.final_images, settings.group_size, settings.seed)
        prompts, seeds = zip(*((sample.prompts[i], sample.seeds[i]) for i in self._shown()), strict=True)
        with self.averaged():
            pictures = yield from self._pictures(prompts, seeds, self.config.rollout.steps)
        yield Sampled(self.iteration, prompts, seeds, Preview(to_uint8(pictures)))

    def _shown(self) -> list[int]:
        """Places of the images kept, the same in every evaluation: one of each prompt first, then further ones."""
        settings = self.config.evaluation
        groups = max(1, min(settings.images, settings.final_images) // settings.group_size)
        size = settings.group_size
        return [group * size + turn for turn in range(size) for group in range(groups)][: settings.preview]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones; the raw ones where averaging is off."""
        if self.config.optimizer.ema_decay == 0:
            yield
        else:
            with self.average.applied():
                yield

    def _step_weights(self) -> list[float]:
        """The weight of every stochastic step of the grid, whichever of them an iteration trains."""
        steps = list(pairwise(self.times))[:-1]
        still, latent = _Still(self.policy.generator.kind), torch.zeros(1, *self.policy.generator.latent_shape)
        stds = [self.config.sampler.step(still, latent, t, s).std for t, s in steps]
        return step_weights(stds, self.config.grpo.step_weights, spans=[t - s for t, s in steps]).tolist()

    def _pictures(self, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Stream[Progress, None, Tensor]:
        return stream_images(
            self.policy.generator,
            prompts,
            seeds,
            steps=steps,
            shift=self.config.rollout.shift,
            batch=self.config.compute.sample_batch,
        )

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

    def _expect_finite(self, samples: Tensor) -> None:
        """A reward should not be blamed for what the policy drew."""
        if not torch.isfinite(samples).all():
            raise Diverged(f"iteration {self.iteration}: the policy's samples are not finite; {REMEDY}")

    def _judge(self, measures: dict[str, Measure]) -> None:
        """Remember the best iteration; stop a run whose held-out reward has collapsed."""
        reward = sum(weight * measures[name].value for name, weight in self.rewards.weights.items())
        if self.base_reward is None:
            self.base_reward = reward
        if reward > self.best_reward:
            self.best_reward, self.best_iteration = reward, self.iteration
        floor = self.config.guard.collapse * self.base_reward
        if self.base_reward > 0 and reward < floor:
            raise Diverged(
                f"iteration {self.iteration}: the held-out reward fell to {reward:.3g}, below "
                f"{self.config.guard.collapse:.0%} of the base's {self.base_reward:.3g}; {REMEDY}"
            )

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the parameters and the optimizer's state, for `undo`."""
        parameters = {name: parameter.detach().clone() for name, parameter in self.policy.parameters.items()}
        return parameters, {name: value.clone() for name, value in optimizer_tensors(self.optimizer).items()}

    def undo(self, snapshot: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Take back the steps of an iteration that failed."""
        parameters, optimizer = snapshot
        self.policy.load(parameters)
        load_optimizer_tensors(self.optimizer, optimizer)

    def checkpoint(self) -> CheckpointReady:
        """The whole state; its tensors are live, so they must be written before the run goes on."""
        state = {
            "iteration": self.iteration,
            "checked": self.checked,
            "evaluated": self.evaluated,
            "spreads": self.spreads,
            "updates": self.average.updates,
            "base_reward": self.base_reward,
            "best": self.best_iteration,
            "best_reward": None if self.base_reward is None else self.best_reward,
            "config": self.config.model_dump(mode="json"),
        }
        tensors = {
            "policy": {name: parameter.detach() for name, parameter in self.policy.parameters.items()},
            "ema": self.average.average,
            "optimizer": optimizer_tensors(self.optimizer),
        }
        return CheckpointReady(self.iteration, tensors, state)

    def restore(self, checkpoint: CheckpointReady) -> None:
        """Go on from a checkpoint of the same model and adapter.

        Raises: ValueError: if its tensors are not this policy's.
        """
        self.policy.load(checkpoint.tensors["policy"])
        self.average.load(checkpoint.tensors["ema"], checkpoint.state["updates"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        self.iteration = checkpoint.iteration
        self.checked, self.evaluated = checkpoint.state["checked"], checkpoint.state["evaluated"]
        self.spreads = list(checkpoint.state["spreads"])
        if checkpoint.state["base_reward"] is not None:
            self.base_reward, self.best_reward = checkpoint.state["base_reward"], checkpoint.state["best_reward"]
            self.best_iteration = checkpoint.state["best"]


REMEDY = "resume from an earlier checkpoint with a smaller optimizer.learning_rate or a larger grpo.kl_weight"


@dataclass(frozen=True)
class _Still:
    """A flow map that goes nowhere: a kernel's standard deviation does not depend on the map."""

    kind: FlowMapKind

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        return x

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return torch.zeros_like(x)


class Diverged(FloatingPointError):
    """The policy itself has gone wrong, so its present state is not worth keeping."""
