"""Pretraining of the embedded generator: autoencoder, flow matching, two-time map. A generator of events, as `train` is."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional

from workbench.config import Settings
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
from workbench.flow import seed_stream, seeded_noise, time_grid
from workbench.models.shapes import CHANNELS, ShapesModel
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.rewards import REWARDS
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_scenes import GRID, parse, patches, render, sample_scenes


class PretrainConfig(Settings):
    """How the embedded generator is made. Lengths are in optimizer steps, so that a seed means one result."""

    title: str = Field("Pretrain shapes", max_length=120, description="name shown on the page")
    seed: int = Field(0, ge=0, description="every random number follows from it")
    batch: int = Field(128, ge=8, description="images per step")
    autoencoder_steps: int = Field(3000, ge=1, description="steps of the autoencoder")
    flow_steps: int = Field(5000, ge=1, description="steps of flow matching, on right captions")
    map_steps: int = Field(
        1500, ge=1, description="steps that turn the velocity into a two-time map, on the captions of `wrong_captions`"
    )
    map_method: Literal["meanflow", "paths"] = Field(
        "meanflow", description="meanflow: the MeanFlow identity by JVP; paths: regression on stored ODE paths"
    )
    paths: int = Field(2560, ge=1, description="ODE paths stored by the method `paths`")
    wrong_captions: float = Field(
        0.5, ge=0, le=1, description="share of images whose caption is another image's, in the last stage"
    )
    flow_learning_rate: float = Field(
        2.5e-3, gt=0, description="Muon's learning rate; AdamW's is the same on the other parameters"
    )
    map_learning_rate: float = Field(6e-4, gt=0, description="AdamW's learning rate in the last stage")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, which are what ships")
    report_every: int = Field(50, ge=1, description="steps between reported losses")
    sample_every: int = Field(500, ge=1, description="steps between sample sheets")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    evaluation_images: int = Field(1024, ge=8, description="images of the evaluations at the end of a stage")
    shift: float = Field(4.0, ge=1, le=12, description="shift of the time grid used to sample")

    @property
    def iterations(self) -> int:
        return self.autoencoder_steps + self.flow_steps + self.map_steps


@dataclass
class Stage:
    """One part of pretraining: `loss(step)` of the network whose weights `average` follows."""

    name: str
    start: int  # the run's iteration at which it begins
    steps: int
    optimizers: list[torch.optim.Optimizer]
    learning_rate: float
    average: AveragedWeights
    loss: Callable[[int], Tensor]
    parameters: list[nn.Parameter]
    done: int = 0  # steps taken

    def restore(self, checkpoint: CheckpointReady) -> None:
        self.done = checkpoint.state["step"]
        self.average.load(checkpoint.tensors["average"], checkpoint.state["updates"])
        for index, optimizer in enumerate(self.optimizers):
            load_optimizer_tensors(optimizer, checkpoint.tensors[f"optimizer{index}"])


def pretrain(
    config: PretrainConfig, *, resume: CheckpointReady | None = None, controls: Controls | None = None, device: str = "cpu"
) -> Iterator[Event]:
    """Make the embedded generator from nothing; the last checkpoint's `average` tensors are the weights that ship.

    Raises: FloatingPointError: if a loss stops being finite.
    Source: flow matching (arXiv:2210.02747), MeanFlow (arXiv:2505.13447).
    """
    controls = controls or Controls()
    torch.manual_seed(config.seed)
    work = Pretraining(config, torch.device(device))
    names = list(work.stages)
    if resume is not None:
        names = names[names.index(resume.state["stage"]) :]
        work.restore(resume)
    size = sum(p.numel() for p in work.network.parameters())
    facts = {"device": device, "parameters": size, "stages": list(work.stages), "iterations": config.iterations}
    yield Started(work.iteration, facts)
    for name in names:
        stage = work.stage(name)
        if resume is not None and name == resume.state["stage"]:
            stage.restore(resume)
        yield from work.run(stage, controls)
        if controls.stop:
            break
        work.finish(stage)
    yield Finished(work.iteration, {"stopped": controls.stop, "stage": name, **work.summary})


class Pretraining:
    """The networks being made, and how each stage trains them."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config = config
        networks = ShapesModel.networks()
        self.network, self.autoencoder = networks
        self.generator = ShapesModel().generator(networks, device)
        self.task = ShapesTask()
        self.prompts = self.task.prompts("train")
        self.stages = {"autoencoder": config.autoencoder_steps, "flow": config.flow_steps, "map": config.map_steps}
        self.iteration = 0
        self.summary: dict[str, Any] = {}
        self.teacher: nn.Module | None = None
        self.paths: tuple[Tensor, Tensor] | None = None

    def stage(self, name: str) -> Stage:
        """Set up a stage at its beginning."""
        config = self.config
        starts = dict(zip(self.stages, np.cumsum([0, *self.stages.values()]).tolist(), strict=False))
        self.generator.kind = "two_time" if name == "map" else "velocity"  # until then u(x, t, s) means something at s = t alone
        module: nn.Module = self.autoencoder if name == "autoencoder" else self.network
        module.requires_grad_(True)
        named = dict(module.named_parameters())
        rate = {"autoencoder": 2e-3, "flow": config.flow_learning_rate, "map": config.map_learning_rate}[name]
        optimizers: list[torch.optim.Optimizer]
        if name == "flow":
            matrices = [p for key, p in named.items() if p.ndim == 2 and "blocks" in key and "offset" not in key]
            rest = [p for p in named.values() if all(p is not m for m in matrices)]
            optimizers = [
                torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
                torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            ]
        else:
            optimizers = [torch.optim.AdamW(named.values(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]
        if name == "map" and config.map_method == "paths" and self.teacher is None:
            self.teacher = deepcopy(self.network).requires_grad_(False)
        loss = {"autoencoder": self._autoencoder_loss, "flow": self._flow_loss, "map": self._map_loss}[name]
        decay = 0.99 if name == "autoencoder" else config.ema_decay
        return Stage(
            name, starts[name], self.stages[name], optimizers, rate, AveragedWeights(named, decay), loss, list(named.values())
        )

    def run(self, stage: Stage, controls: Controls) -> Iterator[Event]:
        config, losses = self.config, []
        for step in range(stage.done, stage.steps):
            rate = stage.learning_rate * min(1.0, (step + 1) / 100) * min(1.0, (stage.steps - step) / (0.4 * stage.steps))
            loss = stage.loss(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(stage.parameters, 1.0)
            if not math.isfinite(float(norm)):
                raise FloatingPointError(
                    f"{stage.name}: the gradient is not finite at step {step}; "
                    "resume from the last checkpoint with a smaller learning rate"
                )
            for optimizer in stage.optimizers:
                set_learning_rate(optimizer, rate)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            stage.average.update()
            losses.append(loss.item())
            stage.done, self.iteration = step + 1, stage.start + step + 1
            yield Progress(stage.name, step + 1, stage.steps)
            last = step + 1 == stage.steps
            if last or (step + 1) % config.report_every == 0:
                yield IterationDone(
                    self.iteration,
                    {f"loss_{stage.name}": float(np.mean(losses)), "gradient_norm": float(norm), "learning_rate": rate},
                    0.0,
                )
                losses = []
            if stage.name != "autoencoder" and (last or controls.sample or (step + 1) % config.sample_every == 0):
                with stage.average.applied():
                    yield from (self.evaluate(stage) if last else self.sample(stage))
                controls.sample = False  # only now: a pause waits until the wish is granted
            if last or controls.stop or controls.save or (step + 1) % config.checkpoint_every == 0:
                controls.save = False
                yield self.checkpoint(stage)
            if controls.stop:
                return

    def finish(self, stage: Stage) -> None:
        """The averaged weights are the stage's result, and what the next stage starts from."""
        stage.average.commit()
        if stage.name == "autoencoder":
            self._normalise_latents()
            self.autoencoder.requires_grad_(False)

    def _autoencoder_loss(self, step: int) -> Tensor:
        """Cells as the scenes have them, half of them empty, with a little KL so that the latent space has no holes."""
        draw = self._torch_rng("autoencoder", step)
        bank = torch.from_numpy(patches())
        index = torch.randint(1, len(bank), (1024,), generator=draw) * (torch.rand(1024, generator=draw) < 0.7)
        cells = bank[index]
        mean, log_variance = self.autoencoder.encode(cells)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw)
        error = functional.binary_cross_entropy(self.autoencoder.decode(latents), cells, reduction="none").flatten(1).sum(1)
        floor = functional.binary_cross_entropy(cells, cells, reduction="none").flatten(1).sum(1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return (error - floor + 0.05 * kl).mean()

    @torch.no_grad()
    def _normalise_latents(self) -> None:
        """Unit variance over what a cell may hold, counting the empty cell as often as all else."""
        bank = torch.from_numpy(patches())
        mean = self.autoencoder.encode(bank)[0].flatten(1)
        weight = torch.full((len(bank), 1), 0.5 / (len(bank) - 1))
        weight[0] = 0.5
        self.autoencoder.shift.copy_((weight * mean).sum(0))
        self.autoencoder.scale.copy_(((weight * (mean - self.autoencoder.shift) ** 2).sum(0)).sqrt().clamp_min(0.1))

    def _batch(self, name: str, step: int, wrong: float) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of fresh scenes, standard normal noise, and the slots of their captions, a share of which is another's."""
        n, rng = self.config.batch, np.random.default_rng(abs(seed_stream(self.config.seed, name, "scenes", step)))
        captions = [self.prompts[i] for i in rng.integers(0, len(self.prompts), n)]
        scenes = sample_scenes([parse(caption) for caption in captions], rng)
        swapped = rng.random(n) < wrong
        captions = [
            self.prompts[int(rng.integers(len(self.prompts)))] if swap else caption
            for caption, swap in zip(captions, swapped, strict=True)
        ]
        with torch.no_grad():
            x0 = self.generator.encode(render(scenes))
        eps = seeded_noise([seed_stream(self.config.seed, name, "noise", step, i) for i in range(n)], (CHANNELS, GRID, GRID))
        return x0, eps, self.generator.embed(captions)

    def _times(self, name: str, step: int, mean: float) -> Tensor:
        """Logit-normal times, a tenth of them uniform; [batch]."""
        draw = self._torch_rng(name, step)
        n = self.config.batch
        times = torch.sigmoid(mean + torch.randn(n, generator=draw))
        uniform = torch.rand(n, generator=draw) < 0.1
        return torch.where(uniform, torch.rand(n, generator=draw), times)

    def _flow_loss(self, step: int) -> Tensor:
        x0, eps, slots = self._batch("flow", step, wrong=0.0)
        t = self._times("flow times", step, 0.8)  # the scene is decided near noise
        x = torch.lerp(x0, eps, t.view(-1, 1, 1, 1))
        return (self.network(x, t, t, slots) - (eps - x0)).square().mean()

    def _map_loss(self, step: int) -> Tensor:
        return self._meanflow_loss(step) if self.config.map_method == "meanflow" else self._paths_loss(step)

    def _meanflow_loss(self, step: int) -> Tensor:
        """u(x, t, s) = v - (t - s) du/dt on half of the batch, flow matching on the other half."""
        x0, eps, slots = self._batch("map", step, self.config.wrong_captions)
        draw = torch.stack([self._times("map times", 2 * step + i, 0.8) for i in range(2)])
        t, s = draw.amax(0), draw.amin(0)
        half = len(t) // 2
        s = torch.cat([t[:half], s[half:]])
        x = torch.lerp(x0, eps, t.view(-1, 1, 1, 1))
        target = eps - x0
        with torch.no_grad():
            xm, tm, sm, slots_m = x[half:], t[half:], s[half:], slots[half:]
            weights: dict[str, Tensor] = dict(self.network.named_parameters())
            velocity = self.network(xm, tm, tm, slots_m)
            tangent = jvp(
                lambda x, t: functional_call(self.network, weights, (x, t, sm, slots_m)),
                (xm, tm),
                (velocity, torch.ones_like(tm)),
            )[1]
            target = torch.cat([target[:half], target[half:] - (tm - sm).view(-1, 1, 1, 1) * tangent])
        error = (self.network(x, t, s, slots) - target).square().mean((1, 2, 3))
        return (error / (error.detach() + 0.01).sqrt()).mean()

    def _paths_loss(self, step: int) -> Tensor:
        """(x_s - x_t) / (s - t) along stored paths of the flow-matched network, with a quarter of flow matching."""
        if self.paths is None:
            self.paths = self._integrate_paths()
        points, captions = self.paths
        n = self.config.batch
        x0, eps, slots = self._batch("map", step, self.config.wrong_captions)
        draw = self._torch_rng("paths", step)
        quarter = n // 4
        t = self._times("map times", step, 0.8)
        which = torch.randint(0, points.shape[1], (n - quarter,), generator=draw)
        ends = torch.stack([torch.randperm(len(points), generator=draw)[:2] for _ in range(n - quarter)])
        late, early = ends.amax(1), ends.amin(1)  # index 0 is noise
        grid = torch.tensor(time_grid(len(points) - 1, self.config.shift))
        time, target_time = torch.cat([t[:quarter], grid[early]]), torch.cat([t[:quarter], grid[late]])
        x = torch.cat([torch.lerp(x0, eps, t.view(-1, 1, 1, 1))[:quarter], points[early, which]])
        span = (grid[late] - grid[early]).view(-1, 1, 1, 1)
        target = torch.cat([(eps - x0)[:quarter], (points[late, which] - points[early, which]) / span])
        wrong = torch.rand(n - quarter, generator=draw) < self.config.wrong_captions
        shown = torch.where(
            wrong[:, None], captions[torch.randint(0, len(captions), (n - quarter,), generator=draw)], captions[which]
        )
        error = (self.network(x, time, target_time, torch.cat([slots[:quarter], shown])) - target).square().mean((1, 2, 3))
        return (error / (error.detach() + 0.01).sqrt()).mean()

    @torch.no_grad()
    def _integrate_paths(self, steps: int = 24) -> tuple[Tensor, Tensor]:
        """ODE paths of the teacher: points [steps + 1, paths, ...] and the slots [paths, 6] that they were drawn for."""
        assert self.teacher is not None
        count, times = self.config.paths, time_grid(steps, self.config.shift)
        slots = self.generator.embed([self.prompts[i % len(self.prompts)] for i in range(count)])
        x = seeded_noise([seed_stream(self.config.seed, "paths", i) for i in range(count)], (CHANNELS, GRID, GRID))
        points = [x]
        for t, s in pairwise(times):
            time = torch.full((1,), t)
            x = x + (s - t) * torch.cat(
                [self.teacher(part, time, time, c) for part, c in zip(x.split(512), slots.split(512), strict=True)]
            )
            points.append(x)
        return torch.stack(points), slots

    def sample(self, stage: Stage) -> Iterator[Event]:
        """A sheet of the same held-out prompts and seeds each time."""
        sheet = held_out(self.task, 48, 4, seed=1)
        images = yield from stream_images(
            self.generator, sheet.prompts, sheet.seeds, steps=self._steps(stage), shift=self.config.shift
        )
        yield Sampled(self.iteration, sheet.prompts, sheet.seeds, Preview(to_uint8(images)))

    def evaluate(self, stage: Stage) -> Iterator[Event]:
        """Success on held-out prompts at the end of a stage: many Euler steps for the velocity, few for the map."""
        if stage.name == "autoencoder":
            return
        sample = held_out(self.task, self.config.evaluation_images, 8, seed=20_000)
        rewards = {
            name: REWARDS[name]().load(self.generator.device) for name in ("shapes_exact", "shapes_dense", "shapes_fidelity")
        }
        measures, skills = {}, {}
        images = torch.empty(0)
        for steps in (16,) if stage.name == "flow" else (1, 2, 4, 8):
            images = yield from stream_images(self.generator, sample.prompts, sample.seeds, steps=steps, shift=self.config.shift)
            measures[steps] = measure(images, sample, self.task, rewards)
            if steps in (4, 16):
                skills = breakdown(rewards["shapes_exact"](images, sample.prompts), sample, self.task)
        self.summary[stage.name] = {steps: figures["shapes_exact"].value for steps, figures in measures.items()}
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

    def checkpoint(self, stage: Stage) -> CheckpointReady:
        tensors: dict[str, dict[str, Tensor]] = {
            "network": self.network.state_dict(),
            "autoencoder": self.autoencoder.state_dict(),
            "average": stage.average.average,
        }
        if self.teacher is not None:
            tensors["teacher"] = self.teacher.state_dict()
        tensors |= {f"optimizer{index}": optimizer_tensors(optimizer) for index, optimizer in enumerate(stage.optimizers)}
        return CheckpointReady(
            self.iteration, tensors, {"stage": stage.name, "step": stage.done, "updates": stage.average.updates}
        )

    def restore(self, checkpoint: CheckpointReady) -> None:
        self.iteration = checkpoint.iteration
        self.network.load_state_dict(checkpoint.tensors["network"])
        self.autoencoder.load_state_dict(checkpoint.tensors["autoencoder"])
        if "teacher" in checkpoint.tensors:
            self.teacher = ShapesModel.networks().network.requires_grad_(False)
            self.teacher.load_state_dict(checkpoint.tensors["teacher"])

    def _steps(self, stage: Stage) -> int:
        return 16 if stage.name == "flow" else 4

    def _torch_rng(self, *name: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(abs(seed_stream(self.config.seed, *name)))
