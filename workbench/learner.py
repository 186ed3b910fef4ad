"""Everything a run carries from one iteration to the next: policy, optimizer, averaged weights, rewards; and how it is saved."""

import gc
import math
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.config import RunConfig, change_live
from workbench.contracts import Generator
from workbench.evaluate import held_out
from workbench.events import CheckpointReady, Controls, Progress
from workbench.examiner import Examiner, expect_finite
from workbench.flow import seed_stream
from workbench.grpo import gdpo_advantages, group_advantages
from workbench.lesson import Lesson
from workbench.models.policy import Policy
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.planning import kernel_stds, plan_rollout
from workbench.ranks import Ranks
from workbench.rollout import Plan, Rollout, stream_rollout
from workbench.scoring import Rewards, Scores

if TYPE_CHECKING:
    from accelerate import Accelerator


def prompts_of(config: RunConfig, resume: CheckpointReady | None = None) -> list[str]:
    """Every prompt that a run will ask for, or the rest of one.

    Raises: ValueError: if a reward cannot judge one of them.
    """
    if resume is not None:
        config = change_live(config, resume.state.get("changes", {}))
    settings = config.evaluation
    drawn: dict[str, None] = {}
    available = len(set(config.prompts or config.task.prompts("train")))
    for iteration in range(resume.iteration if resume else 0, config.iterations):
        drawn.update(dict.fromkeys(_drawn(config, iteration)))
        if len(drawn) == available:
            break
    shown = held_out(config.task, max(settings.images, settings.final_images), settings.group_size, settings.seed)
    prompts = list(dict.fromkeys([*drawn, *shown.prompts]))
    for reward in [each.reward for each in config.rewards] + [each.reward for each in config.eval_rewards]:
        for prompt in prompts:
            reward.check(prompt)
    return prompts


def _drawn(config: RunConfig, iteration: int) -> list[str]:
    """The prompts of an iteration, over all processes."""
    available, wanted = config.prompts or config.task.prompts("train"), config.grpo.groups
    draw = torch.Generator().manual_seed(abs(seed_stream(config.seed, "prompts", iteration)))
    order = torch.cat([torch.randperm(len(available), generator=draw) for _ in range(math.ceil(wanted / len(available)))])
    return [available[index] for index in order[:wanted].tolist()]


class Learner:
    """The state of one training run. Randomness is hashed from names, so none of it needs saving.

    Args:
        ahead: prompts that are read before the network is loaded, so that their encoders have the memory to themselves. The first
            process of each machine reads them while the others of that machine wait, and then find all of it on the disk.
    Raises: ValueError: if a prompt cannot be understood, before anything is loaded.
    """

    def __init__(self, config: RunConfig, accelerator: "Accelerator", ahead: Sequence[str] = ()) -> None:
        if accelerator.num_processes != config.compute.processes:
            raise ValueError(
                f"the run expects compute.processes = {config.compute.processes}, but {accelerator.num_processes} started; "
                f"begin it with: python -m workbench launch --processes {config.compute.processes} train"
            )
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        self.changes: dict[str, Any] = {}  # what has been set differently since the run began
        self.config, self.accelerator = config, accelerator
        on_cpu = accelerator.device.type == "cpu"  # which accelerate numbers where there are several processes
        self.device = torch.device("cpu") if on_cpu else accelerator.device
        divided = config.compute.sharding != "none"
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes, self.device, divided=divided)
        with accelerator.local_main_process_first():
            config.model.read_ahead(ahead, self.device)
        adapter, optimizer = config.adapter, config.optimizer
        self.policy = Policy(
            config.model,
            self.device,
            adapter=adapter.kind,
            rank=adapter.rank,
            alpha=adapter.alpha,
            seed=config.seed,
            precision=config.compute.precision,
            start=adapter.start,
            reference=adapter.reference,
            other_base=adapter.other_base,
            sharding=None if config.compute.sharding == "none" or self.ranks.count == 1 else config.compute.sharding,
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
        decides = config.objective.behaviour_decay(0) is not None
        self.behaviour = AveragedWeights(self.policy.parameters, 0.0) if decides else None  # what samples, if not the policy
        self.rewards = Rewards(config.rewards, self.device)
        self.examiner = Examiner(config, self.policy, self.averaged, self.rewards, self.ranks)
        self.stds = kernel_stds(config.sampler, config.model.kind, config.times)
        self.spreads = [1.0] * len(config.training_steps)  # running reward spread inside groups, by branching step
        self.iteration = 0
        self.checked = False  # whether preflight has been
        self.whole = True  # unless an optimizer step broke off in its middle
        self.evaluated = -1  # the iteration up to which every evaluation that was due has been

    def draw_prompts(self) -> tuple[list[str], int]:
        """This process's prompts of the iteration, one per group, and the index of its first in the whole batch."""
        own = self.config.grpo.groups // self.ranks.count
        first = own * self.ranks.index
        return _drawn(self.config, self.iteration)[first : first + own], first

    def read(self, prompts: Sequence[str]) -> None:
        """Embed prompts: those that were read ahead are at hand, others are read now, once on each machine.

        Raises: ValueError: if one cannot be understood.
        """
        with self.accelerator.local_main_process_first():
            self.policy.generator.embed(prompts)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Go on with other settings, as far as they may change during a run.

        Raises: ValueError: as `config.change_live`.
        """
        self.config = self.examiner.config = change_live(self.config, changes)
        self.stds = kernel_stds(self.config.sampler, self.config.model.kind, self.config.times)
        self.changes |= changes

    def plan(self) -> Plan:
        """How this iteration's rollout is drawn."""
        return plan_rollout(self.config, self.iteration, self.stds, self.spreads)

    @contextmanager
    def sampling(self) -> Iterator[Generator]:
        """The generator with the weights that sample: the policy's own, or the average that the objective asks for."""
        if self.behaviour is None:
            yield self.policy.generator
        else:
            with self.behaviour.applied():
                yield self.policy.generator

    def lesson(self, rollout: Rollout, parts: Mapping[str, Tensor]) -> Lesson:
        """A rollout with its rewards by name, each [N], compared: samples in their groups, and at every step the nodes.

        The reward of a node is the mean of those that descend from it, and it is compared with the prompt's other nodes of that
        step: for a trajectory this is the sample's own advantage, for a tree the difference that its branch made.
        """
        credits = []
        for transition in rollout.transitions:
            nodes = {name: values[transition.leaves].mean(-1).flatten() for name, values in parts.items()}  # each [M * C]
            prompts = int(transition.rows.max()) + 1
            credits.append(self._compare(nodes, transition.log_probs.numel() // prompts).view(transition.log_probs.shape))
        return Lesson(
            rollout,
            self.config.sampler,
            self._compare(parts, rollout.group_size),
            tuple(credits),
            self.stds,
            self.config.compute.train_batch,
            (self.config.seed, self.iteration),
        )

    def _compare(self, parts: Mapping[str, Tensor], size: int) -> Tensor:
        """Advantages of this process's samples or nodes among groups of `size`; statistics over all processes."""
        grpo = self.config.grpo
        if grpo.combine == "gdpo":
            gathered = torch.stack([self.gather(values) for values in parts.values()])
            weights = [self.rewards.weights[name] for name in parts]
            return self.own(
                gdpo_advantages(
                    gathered, weights, size, std=grpo.advantage_std, std_floor=grpo.std_floor, clip=grpo.advantage_clip
                )
            )
        rewards = self.gather(self.rewards.total(parts))
        return self.own(
            group_advantages(rewards, size, std=grpo.advantage_std, std_floor=grpo.std_floor, clip=grpo.advantage_clip)
        )

    def draw(self, plan: Plan, key: tuple[int | str, ...]) -> Stream[Progress, None, tuple[Rollout, Tensor, Scores]]:
        """A rollout of this process's prompts, its images [N, 3, H, W] in [0, 1], and their rewards, which are being worked out.

        Each portion is decoded as soon as it is drawn, and scored while the next one is drawn.

        Args:
            key: names the streams of randomness.
        Raises: FloatingPointError: if the latents are not finite.
        """
        prompts, first = self.draw_prompts()
        images, scores = [], self.rewards.begin()

        def finished(latents: Tensor, rows: Tensor) -> None:
            images.append(self.decode(latents))
            scores.add(images[-1], [prompts[row] for row in rows.tolist()])

        with self.sampling() as generator:
            rollout = yield from stream_rollout(
                generator, self.config.sampler, prompts, plan, key=key, first_prompt=first, finished=finished
            )
        expect_finite(rollout.final, self.iteration)
        return rollout, torch.cat(images), scores

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """A portion of latents [n, ...] as images [n, 3, H, W] in [0, 1]."""
        return self.policy.generator.decode(latents)

    def close(self) -> None:
        """End the threads of rewards and judges."""
        self.rewards.close()
        self.examiner.close()

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, in the order of the whole batch."""
        return self.ranks.gather(values)

    def agree(self, controls: Controls) -> Controls:
        """What the first process was asked, the same on all of them: otherwise one would stop and leave the others waiting.

        Any of them may ask for a stop, since each machine interrupts its own.
        """
        heard = self.ranks.exchange(vars(controls))
        agreed = replace(controls) if self.ranks.first else Controls(**heard[0])
        return replace(agreed, stop=any(each["stop"] for each in heard))

    def own(self, values: Tensor) -> Tensor:
        """This process's share of gathered values."""
        return self.ranks.own(values).to(self.device)

    def learn_spreads(self, lesson: Lesson, rewards: Tensor) -> None:
        """Remember how much reward varies inside groups that branched, by the step where they did."""
        if self.config.rollout.mode != "branch":
            return
        for transition in lesson.rollout.transitions:
            spread = float(self.gather(rewards[transition.leaves[..., 0]].std(1, correction=0)).mean())
            self.spreads[transition.step] += 0.2 * (max(spread, 1e-3) - self.spreads[transition.step])

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
        self.ranks.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm)
        if not torch.isfinite(norm) and self.config.compute.precision != "fp16":  # fp16's scaler skips such a step by itself
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"iteration {self.iteration}: the gradient norm is {float(norm)}; "
                "lower optimizer.learning_rate or raise objective.kl_weight, then resume"
            )
        set_learning_rate(self.optimizer, self.learning_rate())
        self.whole = False
        self.optimizer.step()
        self.whole = True
        self.optimizer.zero_grad()
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones; the raw ones where averaging is off."""
        if self.config.optimizer.ema_decay == 0:
            yield
        else:
            with self.average.applied():
                yield

    def average_weights(self) -> None:
        """Let the averages follow the policy after an update."""
        self.average.update()
        if self.behaviour is not None:
            self.behaviour.update(self.config.objective.behaviour_decay(self.behaviour.updates))

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the parameters and the optimizer's state, for `undo`."""
        parameters = {name: parameter.detach().clone() for name, parameter in self.policy.parameters.items()}
        return parameters, {name: value.clone() for name, value in optimizer_tensors(self.optimizer).items()}

    def undo(self, snapshot: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Take back the steps of an iteration that failed."""
        parameters, optimizer = snapshot
        self.policy.load(parameters)
        load_optimizer_tensors(self.optimizer, optimizer)
        self.whole = True

    def free(self) -> None:
        """Give back what an iteration that broke off still holds of the device's memory."""
        self.optimizer.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint(self) -> CheckpointReady:
        """The whole state; its tensors are live, so they must be written before the run goes on."""
        state = {
            "iteration": self.iteration,
            "checked": self.checked,
            "evaluated": -1 if self.examiner.waiting else self.evaluated,  # what has not been told would be lost, so do it again
            "spreads": self.spreads,
            "updates": self.average.updates,
            "changes": self.changes,
            **self.examiner.state(),
            "config": self.config.model_dump(mode="json"),
        }
        tensors = {
            "policy": {name: parameter.detach() for name, parameter in self.policy.parameters.items()},
            "ema": self.average.average,
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.behaviour is not None:
            tensors["behaviour"] = self.behaviour.average
        return CheckpointReady(self.iteration, tensors, state)

    def restore(self, checkpoint: CheckpointReady) -> None:
        """Go on from a checkpoint of the same model and adapter.

        Raises: ValueError: if its tensors are not this policy's.
        """
        self.change(checkpoint.state.get("changes", {}))
        self.policy.load(checkpoint.tensors["policy"])
        self.average.load(checkpoint.tensors["ema"], checkpoint.state["updates"])
        if self.behaviour is not None:
            self.behaviour.load(checkpoint.tensors["behaviour"], checkpoint.state["updates"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        self.iteration = checkpoint.iteration
        self.checked, self.evaluated = checkpoint.state["checked"], checkpoint.state["evaluated"]
        self.spreads = list(checkpoint.state["spreads"])
        self.examiner.restore(checkpoint.state)
