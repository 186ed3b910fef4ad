"""Pretraining of an embedded generator by its recipe, stage by stage. A generator of events, as `train` is."""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from workbench.distillation import distil
from workbench.evaluate import breakdown, held_out, measure, stream_images, to_uint8
from workbench.events import (
    CheckpointReady,
    Controls,
    Evaluated,
    Event,
    Finished,
    IterationDone,
    Preview,
    Progress,
    Sampled,
    Started,
)
from workbench.flow import time_grid
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.preferences import PreferenceRecipe, pretrain_preference
from workbench.recipes import RECIPES
from workbench.recipes.base import Recipe, Workpiece
from workbench.recipes.distillation import DistillationRecipe
from workbench.recipes.stages import Stage
from workbench.rewards import REWARDS

AnyRecipe = Recipe | DistillationRecipe | PreferenceRecipe

KNOWN: dict[str, type[AnyRecipe]] = {**RECIPES, "flux_meanflow": DistillationRecipe, "preference": PreferenceRecipe}
"""Everything that can be made: generators, a two-time map of FLUX, and the scorer of a reward."""


def configure_recipe(name: str, changes: Mapping[str, object] | None = None) -> AnyRecipe:
    """A recipe with changes applied; text is read as YAML scalars.

    Raises: ValueError: one line for each mistake, naming the key, the value and what would be accepted.
    """
    return _checked(
        name, {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in (changes or {}).items()}
    )


def recorded_recipe(values: Mapping[str, Any]) -> AnyRecipe:
    """The recipe that a run was recorded with. Raises: ValueError: where it is none that there is."""
    settings = dict(values)
    return _checked(settings.pop("name", "shapes"), settings)


def _checked(name: str, values: Mapping[str, Any]) -> AnyRecipe:
    if name not in KNOWN:
        raise ValueError(f"unknown recipe {name!r}; choose from: {', '.join(KNOWN)}")
    fields = [field for field in KNOWN[name].model_fields if field != "name"]
    if unknown := [key for key in values if key not in fields]:
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from: {', '.join(fields)}")
    try:
        return KNOWN[name].model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(f"{item['loc'][0]} = {item['input']!r}: {item['msg']}" for item in error.errors())) from None


def pretrain(
    recipe: AnyRecipe,
    *,
    resume: CheckpointReady | None = None,
    controls: Controls | None = None,
    device: str = "cpu",
) -> Iterator[Event]:
    """Make an embedded generator or the preference scorer, whose `recipe.modules` of the last checkpoint ship; or distil a FLUX.

    Raises: FloatingPointError: if a loss stops being finite.
    """
    controls = controls or Controls()
    if isinstance(recipe, PreferenceRecipe):
        yield from pretrain_preference(recipe, resume=resume, controls=controls)
        return
    if isinstance(recipe, DistillationRecipe):
        yield from distil(recipe, resume=resume, controls=controls)
        return
    torch.manual_seed(recipe.seed)
    stages = recipe.stages()
    starts = dict(zip([stage.name for stage in stages], accumulate((stage.steps for stage in stages), initial=0), strict=False))
    run = Pretraining(Workpiece(recipe, torch.device(device)), resume)
    size = sum(p.numel() for p in run.work.network.parameters())
    yield Started(run.iteration, {"device": device, "parameters": size, "stages": list(starts), "iterations": recipe.iterations})
    left = [stage for stage in stages if resume is None or starts[stage.name] >= starts[resume.state["stage"]]]
    for stage in left:
        at_hand = resume if resume is not None and stage.name == resume.state["stage"] else None
        yield from run.follow(Training(run.work, stage, starts[stage.name], at_hand), controls)
        if controls.stop:
            break
    yield Finished(run.iteration, {"stopped": controls.stop, "stage": stage.name, **run.summary})


class Training:
    """A stage under way: what it trains, with which optimizers, and the average of its weights.

    Args:
        start: the run's iteration at which the stage begins.
        resume: a checkpoint from within it.
    """

    def __init__(self, work: Workpiece, stage: Stage, start: int, resume: CheckpointReady | None = None) -> None:
        self.stage, self.start, self.done = stage, start, 0
        work.generator.kind = stage.kind
        if stage.has_teacher and work.teacher is None:
            work.teacher = deepcopy(work.network).requires_grad_(False)
        named = dict(stage.module(work).requires_grad_(True).named_parameters())
        self.parameters = list(named.values())
        self.optimizers = stage.optimizers(named)
        self.average = AveragedWeights(named, 0.99 if stage.name == "autoencoder" else work.recipe.ema_decay)
        if resume is not None:
            self.done = resume.state["step"]
            self.average.load(resume.tensors["average"], resume.state["updates"])
            for index, optimizer in enumerate(self.optimizers):
                load_optimizer_tensors(optimizer, resume.tensors[f"optimizer{index}"])

    def step(self, work: Workpiece) -> tuple[float, float, float]:
        """One optimizer step; its loss, the norm of its gradient before clipping to 1, and its learning rate."""
        stage, left = self.stage, self.stage.steps - self.done
        rate = stage.learning_rate * min(1.0, (self.done + 1) / 100) * min(1.0, left / (0.4 * stage.steps))
        with torch.autocast(work.generator.device.type, torch.bfloat16, enabled=work.recipe.precision == "bfloat16"):
            loss = stage.loss(work, self.done)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"{stage.name}: the gradient is not finite at step {self.done}; "
                "resume from the last checkpoint with a smaller learning rate"
            )
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.done += 1
        return loss.item(), norm, rate


class Pretraining:
    """The loop over the steps of a stage, and what it reports: losses, sheets of samples, evaluations, checkpoints."""

    def __init__(self, work: Workpiece, resume: CheckpointReady | None = None) -> None:
        self.work, self.recipe = work, work.recipe
        self.iteration = 0
        self.summary: dict[str, Any] = {}
        if resume is not None:
            self.iteration = resume.iteration
            work.network.load_state_dict(resume.tensors["network"])
            work.autoencoder.load_state_dict(resume.tensors["autoencoder"])
            if "teacher" in resume.tensors:
                work.teacher = self.recipe.model.networks().network.requires_grad_(False)
                work.teacher.load_state_dict(resume.tensors["teacher"])

    def follow(self, training: Training, controls: Controls) -> Iterator[Event]:
        """The rest of a stage; its averaged weights are its result, and what the next stage starts from."""
        recipe, stage = self.recipe, training.stage
        losses: list[float] = []
        while training.done < stage.steps:
            loss, norm, rate = training.step(self.work)
            losses.append(loss)
            self.iteration = training.start + training.done
            yield Progress(stage.name, training.done, stage.steps)
            last = training.done == stage.steps
            if last or training.done % recipe.report_every == 0:
                figures = {f"loss_{stage.name}": float(np.mean(losses)), "gradient_norm": norm, "learning_rate": rate}
                yield IterationDone(self.iteration, figures, 0.0)
                losses = []
            if stage.evaluated_with and (last or controls.sample or training.done % recipe.sample_every == 0):
                with training.average.applied():
                    yield from (self.evaluate(stage) if last else self.sample(stage))
                controls.sample = False  # only now: a pause waits until the wish is granted
            if last or controls.stop or controls.save or training.done % recipe.checkpoint_every == 0:
                controls.save = False
                yield self.checkpoint(training)
            if controls.stop:
                return
        training.average.commit()
        stage.finish(self.work)

    def sample(self, stage: Stage) -> Iterator[Event]:
        """A sheet of the same held-out prompts and seeds each time."""
        sheet = held_out(self.work.domain.task, 48, 4, seed=1)
        images = yield from stream_images(
            self.work.generator, sheet.prompts, sheet.seeds, times=time_grid(stage.sampled_with, self.recipe.shift)
        )
        yield Sampled(self.iteration, sheet.prompts, sheet.seeds, Preview(to_uint8(images)))

    def evaluate(self, stage: Stage) -> Iterator[Event]:
        """Success on held-out prompts at the end of a stage, at each of its numbers of sampling steps."""
        domain, generator = self.work.domain, self.work.generator
        sample = held_out(domain.task, self.recipe.evaluation_images, 8, seed=20_000)
        rewards = {name: REWARDS[name]().load(generator.device) for name in domain.rewards}
        success = domain.rewards[0]
        measures, skills = {}, {}
        images = torch.empty(0)
        for steps in stage.evaluated_with:
            images = yield from stream_images(generator, sample.prompts, sample.seeds, times=time_grid(steps, self.recipe.shift))
            values = {name: reward(images, sample.prompts) for name, reward in rewards.items()}
            measures[steps] = measure(images, sample, domain.task, values)
            if steps == stage.sampled_with:
                skills = breakdown(values[success], sample, domain.task)
        self.summary[stage.name] = {steps: figures[success].value for steps, figures in measures.items()}
        shown = slice(0, 48)
        yield Evaluated(
            self.iteration,
            measures,
            len(sample.prompts),
            sample.prompts[shown],
            sample.seeds[shown],
            Preview(to_uint8(images[shown])),
            skills,
        )

    def checkpoint(self, training: Training) -> CheckpointReady:
        work = self.work
        tensors: dict[str, dict[str, Tensor]] = {
            "network": work.network.state_dict(),
            "autoencoder": work.autoencoder.state_dict(),
            "average": training.average.average,
        }
        if work.teacher is not None:
            tensors["teacher"] = work.teacher.state_dict()
        tensors |= {f"optimizer{index}": optimizer_tensors(optimizer) for index, optimizer in enumerate(training.optimizers)}
        state = {"stage": training.stage.name, "step": training.done, "updates": training.average.updates}
        return CheckpointReady(self.iteration, tensors, state)
