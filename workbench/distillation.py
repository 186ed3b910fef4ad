"""Distilling a FLUX checkpoint into a two-time map by MeanFlow. A generator of events, as `train` is."""

import math
from collections.abc import Generator as Stream
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.contracts import FlowMap
from workbench.distillation_data import data_of, gather, read_latent
from workbench.evaluate import interval, stream_images, thumbnails, to_uint8
from workbench.events import (
    CheckpointReady,
    Controls,
    Evaluated,
    Event,
    Finished,
    IterationDone,
    Measure,
    Preview,
    Progress,
    Sampled,
    Started,
)
from workbench.first_line import first_line
from workbench.flow import Gaussian, seed_stream, seeded_noise, time_grid
from workbench.models.flux_meanflow import FluxMeanFlowMap
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.recipes.distillation import DistillationRecipe
from workbench.samplers.ode import ODESampler

_SHOWN = 24  # most images of a sheet


def distil(
    recipe: DistillationRecipe, *, resume: CheckpointReady | None = None, controls: Controls | None = None
) -> Iterator[Event]:
    """Distil a two-time map; `pretrained.write_distilled` makes a pipeline of the last checkpoint.

    Data come first: pictures are encoded and the teacher's own are drawn, and both are kept in the cache.
    Raises: ValueError: if the checkpoint or the data are missing or damaged. FloatingPointError: if the loss stops being finite.
    """
    controls = controls or Controls()
    folder = recipe.beginning()
    if not recipe.steps:
        yield Started(0, {"iterations": 0, "folder": str(folder)})
        yield CheckpointReady(0, {}, {"step": 0, "updates": 0, "evaluated": False})
        yield Finished(0, {"stopped": False})
        return
    work = Distillation(recipe, folder, _device(recipe.device))
    if resume is not None:
        work.restore(resume)
    trained = sum(p.numel() for p in work.student.parameters.values())
    yield Started(work.done, {"device": str(work.device), "parameters": trained, "iterations": recipe.steps})
    yield from gather(work.data, work.student, recipe, controls)
    if not work.evaluated and not controls.stop:
        yield from work.evaluate()
    if controls.stop:
        yield work.checkpoint()
    else:
        yield from work.follow(controls)
    yield Finished(work.done, {"stopped": work.done < recipe.steps, **work.summary})


class Distillation:
    """A distillation under way: student and teacher, the data, the optimizer and the average of what is trained."""

    def __init__(self, recipe: DistillationRecipe, folder: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.data = data_of(recipe, folder)
        shown = recipe.task.prompts("held_out")
        self.shown = tuple(shown[i % len(shown)] for i in range(recipe.evaluation_images))
        prompts = dict.fromkeys([*self.shown, *(datum.caption for datum in self.data)])
        recipe.model(folder).read_ahead(list(prompts), device)  # before the networks take the memory that encoders need
        self.student = recipe.student(folder, device)
        self.generator = self.student.generator
        self.parameters = list(self.student.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.average = AveragedWeights(self.student.parameters, recipe.ema_decay)
        self.seeds = tuple(range(20_000, 20_000 + len(self.shown)))
        self.done = 0
        self.evaluated = False
        self.summary: dict[str, Any] = {}
        self._teachers: Tensor | None = None  # its images of what is shown

    # Learning

    def follow(self, controls: Controls) -> Iterator[Event]:
        """The rest of the steps, and what is reported of them."""
        recipe = self.recipe
        told: list[dict[str, float]] = []
        while self.done < recipe.steps and not controls.stop:
            told.append((yield from self._step()))
            last = self.done == recipe.steps
            if last or self.done % recipe.report_every == 0:
                yield IterationDone(self.done, {name: sum(each[name] for each in told) / len(told) for name in told[0]}, 0.0)
                told = []
            if last or self.done % recipe.evaluate_every == 0:
                yield from self.evaluate()
            elif controls.sample or self.done % recipe.sample_every == 0:
                yield from self.sample()
            controls.sample = False
            if last or controls.stop or controls.save or self.done % recipe.checkpoint_every == 0:
                controls.save = False
                yield self.checkpoint()

    def _step(self) -> Stream[Event, None, dict[str, float]]:
        """One optimizer step; its figures."""
        recipe, step = self.recipe, self.done
        rate = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup)) * min(1.0, 2.5 * (1 - step / recipe.steps))
        figures = {"loss_map": 0.0, "loss_velocity": 0.0}
        counts = dict.fromkeys(figures, 0)
        rows = torch.arange(recipe.batch)
        for start in range(0, recipe.batch, recipe.portion):
            part = rows[start : start + recipe.portion]
            error, same = self._errors(step, part)
            weighted = error / (error.detach() + 0.01) ** recipe.power
            (weighted.sum() / recipe.batch).backward()
            for name, chosen in (("loss_map", ~same), ("loss_velocity", same)):
                figures[name] += float(error.detach()[chosen].sum())
                counts[name] += int(chosen.sum())
            yield Progress("distil", start + len(part), recipe.batch)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, recipe.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite at step {step}; resume from the last checkpoint with a smaller learning_rate"
            )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.done += 1
        return {name: total / max(1, counts[name]) for name, total in figures.items()} | {
            "gradient_norm": norm,
            "learning_rate": rate,
        }

    def _errors(self, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean square error of each row of a step's batch, [n], and whether its two times are one, [n]."""
        recipe = self.recipe
        draw = torch.Generator().manual_seed(abs(seed_stream(recipe.seed, "distillation", step)))
        chosen = torch.randint(len(self.data), (recipe.batch,), generator=draw)[rows]
        logits = recipe.time_mean + recipe.time_std * torch.randn(recipe.batch, 2, generator=draw)
        s, t = logits.sigmoid().sort(1).values[rows].unbind(1)
        same = (torch.rand(recipe.batch, generator=draw) < recipe.same_time)[rows]
        t, s = t.to(self.device), torch.where(same, t, s).to(self.device)
        data = [self.data[index] for index in chosen.tolist()]
        streams = [seed_stream(recipe.seed, "distillation noise", step, row) for row in rows.tolist()]
        x0 = torch.stack([read_latent(datum) for datum in data]).to(self.device)
        x = torch.lerp(x0, seeded_noise(streams, self.generator.latent_shape, self.device), _column(t))
        prompts = self.generator.embed([datum.caption for datum in data])
        with torch.no_grad(), self.student.teacher() as teacher:
            velocity = teacher.bind(prompts).velocity(x, t)
        target, apart = velocity.clone(), ~same
        if apart.any():
            own, by, reach = apart.to(self.device), recipe.derivative, recipe.reach
            slope = slope_along(self._map(prompts[apart]), x[own], t[own], s[own], velocity[own], by=by, reach=reach)
            target[own] -= _column(t[own] - s[own]) * slope
        predicted = self._map(prompts).average_velocity(x, t, s)
        return (predicted - target).square().mean((1, 2, 3)), same.to(self.device)

    def _map(self, prompts: Any) -> FluxMeanFlowMap:
        found = self.generator.bind(prompts)
        assert isinstance(found, FluxMeanFlowMap)
        return found

    # What is shown

    def evaluate(self) -> Iterator[Event]:
        """How far images of few steps are from the teacher's of many, at the same prompts and noise."""
        recipe = self.recipe
        if self._teachers is None:
            with self.student.teacher() as generator:
                self._teachers = yield from self._images(generator, recipe.teacher_steps, _Euler())
        theirs = thumbnails(self._teachers)
        measures: dict[int, dict[str, Measure]] = {}
        images = self._teachers
        with self.average.applied():
            for steps in recipe.evaluation_steps:
                images = yield from self._images(self.generator, steps)
                distance = (thumbnails(images) - theirs).square().mean((1, 2, 3)).sqrt()
                measures[steps] = {"distance_to_teacher": interval(distance)}
        self.summary["distance_to_teacher"] = {steps: each["distance_to_teacher"].value for steps, each in measures.items()}
        self.evaluated = True
        shown = slice(0, _SHOWN)
        yield Evaluated(self.done, measures, len(images), self.shown[shown], self.seeds[shown], Preview(to_uint8(images[shown])))

    def sample(self) -> Iterator[Event]:
        """A sheet of the same held-out prompts and seeds each time."""
        shown = slice(0, _SHOWN)
        with self.average.applied():
            images = yield from self._images(self.generator, 4, shown=shown)
        yield Sampled(self.done, self.shown[shown], self.seeds[shown], Preview(to_uint8(images)))

    def _images(
        self, generator: Any, steps: int, sampler: ODESampler | None = None, shown: slice = slice(None)
    ) -> Stream[Event, None, Tensor]:
        times = time_grid(steps, self.recipe.shift)
        return (
            yield from stream_images(
                generator, self.shown[shown], self.seeds[shown], times=times, sampler=sampler, batch=self.recipe.portion
            )
        )

    # Checkpoints

    def checkpoint(self) -> CheckpointReady:
        """What is trained, its average and the optimizer; the base is the source's."""
        tensors = {
            "student": dict(self.student.parameters),
            "average": self.average.average,
            "optimizer": optimizer_tensors(self.optimizer),
        }
        return CheckpointReady(
            self.done, tensors, {"step": self.done, "updates": self.average.updates, "evaluated": self.evaluated}
        )

    @torch.no_grad()
    def restore(self, checkpoint: CheckpointReady) -> None:
        """Go on from a checkpoint of the same recipe."""
        self.done, self.evaluated = checkpoint.state["step"], checkpoint.state["evaluated"]
        for name, parameter in self.student.parameters.items():
            parameter.copy_(checkpoint.tensors["student"][name])
        self.average.load(checkpoint.tensors["average"], checkpoint.state["updates"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])


class _Euler(ODESampler):
    """Euler steps with the velocity, also of a map that could jump."""

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        return Gaussian(x + (s - t) * flow_map.velocity(x, t), 0.0)


@torch.no_grad()
def slope_along(
    flow_map: FluxMeanFlowMap, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor, *, by: str = "jvp", reach: float = 0.005
) -> Tensor:
    """du/dt along dx/dt = velocity at fixed s, [N, ...]; without a gradient.

    Args:
        x, velocity: [N, ...]; t, s: [N].
        by: "jvp", forward differentiation, for which attention is worked out plainly since its fused forms have none; or
            "difference", of two passes.
        reach: half the step in time of the difference; it stays within s and 1.
    Raises: ValueError: if something in the network has no forward derivative on this device.
    """
    if by == "jvp":

        def along(x: Tensor, t: Tensor) -> Tensor:
            return flow_map.average_velocity(x, t, s)

        try:
            with sdpa_kernel(SDPBackend.MATH):
                slope: Tensor = torch.func.jvp(along, (x, t), (velocity, torch.ones_like(t)))[1]
                return slope
        except NotImplementedError as error:
            raise ValueError(
                f"derivative = 'jvp' cannot be taken here ({first_line(error)}); use derivative = 'difference'"
            ) from error
    ahead, behind = (t + reach).clamp(max=1.0), torch.maximum(t - reach, s)
    after, before = (flow_map.average_velocity(x + _column(time - t) * velocity, time, s) for time in (ahead, behind))
    return (after - before) / _column(ahead - behind)


def _column(times: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1], so that it scales latents."""
    return times.view(-1, 1, 1, 1)


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
