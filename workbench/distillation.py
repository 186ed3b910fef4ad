"""Distilling a FLUX checkpoint into a two-time map by MeanFlow. A generator of events, as `train` is."""

import hashlib
import math
from collections.abc import Generator as Stream
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.captioned import captioned, read_picture
from workbench.contracts import FlowMap
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
from workbench.models.diffusers_folder import fingerprint, pipeline_folder
from workbench.models.flux import FluxModel
from workbench.models.flux_meanflow import FluxMeanFlowMap, FluxMeanFlowModel, is_two_time
from workbench.models.student import Student
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.prompt_cache import cache_folder
from workbench.samplers.ode import ODESampler
from workbench.settings import Settings
from workbench.tasks.prompts import PromptsTask
from workbench.two_time import SecondTime, copy_pipeline, make_two_time, two_time_pipeline
from workbench.whole_file import whole_file

_SHOWN = 24  # most images of a sheet


class DistillationRecipe(Settings):
    """How a two-time map is made of a FLUX checkpoint. Lengths are in optimizer steps, so that a seed means one result.

    Source: MeanFlow (arXiv:2505.13447), distilled from the checkpoint's own velocity (arXiv:2512.13006).
    """

    name: Literal["flux_meanflow"] = "flux_meanflow"
    title: str = Field("", max_length=120, description="name shown on the page; by default what is made")
    seed: int = Field(0, ge=0, description="every random number follows from it")

    source: str = Field(
        "black-forest-labs/FLUX.1-dev",
        description="folder of a FluxPipeline, or its id on the hub; a two-time map there is distilled further",
    )
    offline: bool = Field(False, description="take only what is on this machine, never ask the hub")
    second_time: SecondTime = Field(
        "interval", description="what the second timestep embedder reads. interval: t - s, added; target: s, mixed (AnyFlow)"
    )
    gate: float = Field(0.25, gt=0, lt=1, description="share of the embedder of the target in the mixture")
    scale: float = Field(
        1.0, gt=0, le=1000, description="what an interval of 1 is to its embedder's sinusoids; with large ones the loss explodes"
    )
    weights: str = Field(
        "", description="weights of T2I-Distill as published (.pt or safetensors), in place of the checkpoint's own"
    )

    pictures: str = Field("", description="folder of pictures, each with a .txt beside it, or a JSONL of `file_name` and `text`")
    prompts: str = Field("", description="file of prompts that the teacher draws; those of the pictures, or `packaged`, without")
    packaged: Literal["none", "general", "text"] = Field(
        "general", description="list of prompts that comes with the workbench, where no others are given; none: a dozen examples"
    )
    samples: int = Field(512, ge=0, description="pictures that the teacher draws ahead, as data; 0 takes only `pictures`")
    teacher_steps: int = Field(28, ge=1, le=200, description="Euler steps of a picture that the teacher draws")

    resolution: int = Field(512, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 16")
    guidance: float = Field(3.5, ge=0, le=30, description="guidance that teacher and student are told")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of a prompt that are read")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="numbers of the base; what is trained is float32")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the products in the network")
    gradient_checkpointing: bool = Field(True, description="work activations out again in the backward pass, for less memory")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes an accelerator where there is one")

    adapter: Literal["lora", "full"] = Field("lora", description="lora: adapters and the second embedder; full: every weight")
    rank: int = Field(64, ge=1, le=512, description="rank of the adapters")
    alpha: float = Field(64.0, gt=0, description="scale of the adapters, applied as alpha / rank")
    steps: int = Field(5000, ge=0, description="optimizer steps; 0 makes the map without distilling it")
    batch: int = Field(16, ge=1, description="pictures per step")
    portion: int = Field(4, ge=1, description="pictures per pass of the network")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="AdamW's, after `warmup` steps and before a linear decline")
    warmup: int = Field(100, ge=0, description="steps over which the learning rate rises")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are what is written")

    same_time: float = Field(0.75, ge=0, le=1, description="share of the pictures with s = t, where the target is the velocity")
    time_mean: float = Field(-0.4, description="mean of the logit of a time; below 0 favours data")
    time_std: float = Field(1.0, gt=0, description="standard deviation of the logit of a time")
    power: float = Field(1.0, ge=0, le=4, description="of the weight 1 / (loss + 0.01)^power; 0 weighs all alike")
    derivative: Literal["jvp", "difference"] = Field(
        "jvp", description="du/dt by forward differentiation, exact; or by a difference of two passes, which takes any attention"
    )
    difference: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="half the step in time of that difference; 0 takes 0.005, and with coarser numbers than float32, whose "
        "rounding a short step magnifies, 0.05",
    )

    shift: float = Field(1.9, ge=1, le=12, description="shift of the time grids of samples toward noise")
    report_every: int = Field(10, ge=1, description="steps between reported losses")
    sample_every: int = Field(500, ge=1, description="steps between sample sheets")
    evaluate_every: int = Field(
        1000, ge=1, description="steps between evaluations: how far images of few steps are from the teacher's of many"
    )
    evaluation_images: int = Field(32, ge=2, description="images of an evaluation, of held-out prompts")
    evaluation_steps: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="sampling steps that are evaluated")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def reach(self) -> float:
        """Half the step in time of a difference."""
        exact = self.dtype == "fp32" and self.precision == "float32"
        return self.difference or (0.005 if exact else 0.05)

    @property
    def task(self) -> PromptsTask:
        """The prompts that the teacher draws and that an evaluation is of."""
        if self.prompts or not self.pictures:
            return PromptsTask(file=self.prompts, packaged=self.packaged)
        return PromptsTask(lines=tuple(each.caption for each in captioned(self.pictures)))

    @property
    def teacher(self) -> FluxModel:
        """The checkpoint that is distilled."""
        return FluxModel(source=self.source, offline=self.offline)

    def model(self, folder: Path) -> FluxMeanFlowModel:
        """The map in a folder, set as this recipe wants it."""
        return FluxMeanFlowModel(
            source=str(folder),
            offline=self.offline,
            resolution=self.resolution,
            guidance=self.guidance,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def student(self, folder: Path, device: torch.device) -> Student:
        """The map in a folder, ready to learn."""
        return Student(
            self.model(folder),
            device,
            adapter=self.adapter,
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            precision=self.precision,
        )

    def beginning(self) -> Path:
        """The folder of the two-time map that is distilled: made once, in the cache, where the source is none itself.

        Raises: ValueError: if the source is missing, gated, damaged, or no FLUX.
        """
        usual = self.teacher
        folder = pipeline_folder(self.source, usual.pipeline, usual.parts, offline=self.offline)
        if is_two_time(folder):
            if self.weights:
                raise ValueError(f"{folder} is a two-time map already, so `weights` have no place in it; leave them out")
            return folder
        told = [fingerprint(folder, usual.parts), self.second_time, self.gate, self.scale, *_identity(self.weights)]
        made = cache_folder() / "two-time" / _digest(told)
        if not made.is_dir():
            kind: dict[str, Any] = {"second_time": self.second_time, "gate": self.gate, "scale": self.scale}
            make_two_time(folder, made, weights=self.weights, name=self.source, **kind)
        return made


def distil(
    recipe: DistillationRecipe, *, resume: CheckpointReady | None = None, controls: Controls | None = None
) -> Iterator[Event]:
    """Distil a two-time map; `write_distilled` makes a pipeline of the last checkpoint.

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
    yield from work.gather(controls)
    if not work.evaluated and not controls.stop:
        yield from work.evaluate()
    if controls.stop:
        yield work.checkpoint()
    else:
        yield from work.follow(controls)
    yield Finished(work.done, {"stopped": work.done < recipe.steps, **work.summary})


@dataclass(frozen=True)
class Datum:
    """A latent in the cache, and its caption."""

    file: Path
    caption: str
    picture: Path | None  # that it is of; None for one that the teacher draws
    seed: int = 0  # of the noise that the teacher begins with


class Distillation:
    """A distillation under way: student and teacher, the data, the optimizer and the average of what is trained."""

    def __init__(self, recipe: DistillationRecipe, folder: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.data = _data(recipe, folder)
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

    # Data

    def gather(self, controls: Controls) -> Iterator[Event]:
        """See to it that every latent is in the cache."""
        missing = [datum for datum in self.data if not datum.file.is_file()]
        done = len(self.data) - len(missing)
        for start in range(0, len(missing), self.recipe.portion):
            if controls.stop:
                return
            portion = missing[start : start + self.recipe.portion]
            own = [datum for datum in portion if datum.picture is None]
            if own:
                _keep(own, (yield from self._drawn(own)))
            if pictures := [datum for datum in portion if datum.picture is not None]:
                images = torch.stack([read_picture(datum.picture, self.recipe.resolution) for datum in pictures])  # type: ignore[arg-type]
                _keep(pictures, self.generator.encode(images))
            done += len(portion)
            yield Progress("data", done, len(self.data))

    @torch.no_grad()
    def _drawn(self, data: Sequence[Datum]) -> Stream[Event, None, Tensor]:
        """The teacher's own latents, by many Euler steps."""
        with self.student.teacher() as generator:
            flow_map = generator.bind(generator.embed([datum.caption for datum in data]))
            x = seeded_noise([datum.seed for datum in data], generator.latent_shape, self.device)
            grid = time_grid(self.recipe.teacher_steps, self.recipe.shift)
            for step, (t, s) in enumerate(pairwise(grid), 1):
                x = x + (s - t) * flow_map.velocity(x, t)
                yield Progress("teacher", step, self.recipe.teacher_steps)
        return x

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
        x0 = torch.stack([_read(datum.file) for datum in data]).to(self.device)
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
        yield Evaluated(
            self.done, measures, len(images), self.shown[shown], self.seeds[shown], Preview(to_uint8(images[shown]))
        )

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
    after, before = (
        flow_map.average_velocity(x + _column(time - t) * velocity, time, s) for time in (ahead, behind)
    )
    return (after - before) / _column(ahead - behind)


def write_distilled(recipe: DistillationRecipe, checkpoint: CheckpointReady, out: Path) -> Path:
    """Write what a distillation made as a pipeline with the averaged weights; whole or not at all.

    Raises: ValueError: if `out` is there already.
    """
    folder = recipe.beginning()
    if not recipe.steps:
        return copy_pipeline(folder, out)
    with two_time_pipeline(folder, out, f"Distilled from {recipe.source} by MeanFlow, {checkpoint.iteration} steps.") as made:
        student = recipe.student(folder, torch.device("cpu"))
        with torch.no_grad():
            for name, parameter in student.parameters.items():
                parameter.copy_(checkpoint.tensors["average"][name])
        student.merged().save_pretrained(made)
    return out


def _data(recipe: DistillationRecipe, folder: Path) -> tuple[Datum, ...]:
    """Every latent that is learned from. Raises: ValueError: if there is none."""
    model = recipe.model(folder)
    kept = cache_folder() / "latents"
    seen = [fingerprint(folder, ("vae",)), recipe.resolution]
    drawn = [fingerprint(folder, model.parts), recipe.guidance, recipe.teacher_steps, recipe.shift, recipe.resolution]
    drawn += [recipe.dtype, recipe.precision, recipe.max_tokens]
    found = [
        Datum(kept / f"{_digest([*seen, *_identity(str(each.path))])}.safetensors", each.caption, each.path)
        for each in (captioned(recipe.pictures) if recipe.pictures else ())
    ]
    prompts = recipe.task.prompts("train")
    for index in range(recipe.samples):
        prompt, seed = prompts[index % len(prompts)], seed_stream(recipe.seed, "teacher", index)
        found.append(Datum(kept / f"{_digest([*drawn, prompt, seed])}.safetensors", prompt, None, seed))
    if not found:
        raise ValueError("there is nothing to learn from: give `pictures`, or let the teacher draw with samples > 0")
    return tuple(found)


def _keep(data: Sequence[Datum], latents: Tensor) -> None:
    """Write latents into the cache, in half precision, which is more than the autoencoder was trained to."""
    from safetensors.torch import save_file

    for datum, latent in zip(data, latents, strict=True):
        datum.file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(datum.file) as hidden:
            save_file({"latent": latent.half().cpu().contiguous()}, hidden)


def _read(file: Path) -> Tensor:
    """Raises: ValueError: if the latent is gone or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)["latent"].float()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"a latent cannot be read ({error}); delete {file} and resume") from error


def _identity(path: str) -> list[object]:
    """What tells a file from what it was or will be; nothing of no file. Raises: ValueError: if it is not there."""
    if not path:
        return []
    file = Path(path).expanduser()
    try:
        about = file.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def _digest(told: Sequence[object]) -> str:
    return hashlib.sha256(repr(list(told)).encode()).hexdigest()[:24]


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def _column(times: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1], so that it scales latents."""
    return times.view(-1, 1, 1, 1)
