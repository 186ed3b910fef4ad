"""The stages of pretraining, each one loss: autoencoder, flow matching, MeanFlow, stored paths, consistency."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional

from workbench.contracts import FlowMapKind
from workbench.flow import seed_stream, seeded_noise, time_grid

if TYPE_CHECKING:
    from workbench.recipes.base import Workpiece


@dataclass
class Stage(ABC):
    """One part of pretraining: for how long, how fast, and on which loss.

    Args:
        steps: of the optimizer.
        learning_rate: its height between the warm-up and the final decline.
        wrong_captions: share of images whose caption is another image's.
    """

    steps: int
    learning_rate: float
    wrong_captions: float = 0.0

    name: ClassVar[str]
    kind: ClassVar[FlowMapKind] = "velocity"  # as what the network can be sampled meanwhile
    sampled_with: ClassVar[int] = 16  # steps of the sheets on the way, and of the table by skill
    evaluated_with: ClassVar[tuple[int, ...]] = (16,)  # steps at its end; none where there is nothing to draw yet
    has_teacher: ClassVar[bool] = False  # learns from the network as it was when the stage began

    def module(self, work: "Workpiece") -> nn.Module:
        """What is trained."""
        return work.network

    def optimizers(self, parameters: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        return [_adamw(parameters.values(), self.learning_rate)]

    @abstractmethod
    def loss(self, work: "Workpiece", step: int) -> Tensor:
        """The loss of one step, a scalar; nothing but (recipe, stage, step) decides what it sees."""

    def finish(self, work: "Workpiece") -> None:  # noqa: B027 - for most stages nothing follows
        """What follows from the stage's result before the next one begins."""


@dataclass
class Autoencoder(Stage):
    """Cross-entropy of the image drawn from a noisy latent, with a little KL so that the latent space has no holes.

    Args:
        kl_weight: of the KL to a standard normal, both summed over an image.
    """

    learning_rate: float = 2e-3
    kl_weight: float = 0.05

    name = "autoencoder"
    evaluated_with = ()

    def module(self, work: "Workpiece") -> nn.Module:
        return work.autoencoder

    def loss(self, work: "Workpiece", step: int) -> Tensor:
        draw = work.draw(self.name, step)
        images = work.domain.patches(draw)
        mean, log_variance = work.autoencoder.encode(images)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw)
        error = functional.binary_cross_entropy(work.autoencoder.decode(latents), images, reduction="none").flatten(1).sum(1)
        floor = functional.binary_cross_entropy(images, images, reduction="none").flatten(1).sum(1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return (error - floor + self.kl_weight * kl).mean()

    @torch.no_grad()
    def finish(self, work: "Workpiece") -> None:
        """Give each latent number mean 0 and standard deviation 1 over the domain's support."""
        images, weights = work.domain.support()
        latents = work.autoencoder.encode(images)[0].flatten(2)  # [K, channels, cells]
        share = weights[:, None, None] / latents.shape[2]
        shift = (share * latents).sum((0, 2))
        work.autoencoder.shift.copy_(shift)
        work.autoencoder.scale.copy_((share * (latents - shift[:, None]) ** 2).sum((0, 2)).sqrt().clamp_min(0.1))
        work.autoencoder.requires_grad_(False)


@dataclass
class FlowMatching(Stage):
    """Regression on the velocity of the linear path. Source: arXiv:2210.02747.

    Args:
        muon: train the matrices of the blocks with Muon, which is faster from nothing; AdamW has the rest either way.
    """

    muon: bool = False

    name = "flow"

    def optimizers(self, parameters: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        if not self.muon:
            return super().optimizers(parameters)
        matrices = [p for key, p in parameters.items() if p.ndim == 2 and "blocks" in key and "offset" not in key]
        rest = [p for p in parameters.values() if all(p is not m for m in matrices)]
        return [torch.optim.Muon(matrices, lr=self.learning_rate, weight_decay=0.0), _adamw(rest, self.learning_rate)]

    def loss(self, work: "Workpiece", step: int) -> Tensor:
        x0, eps, slots = work.batch(self.name, step, self.wrong_captions)
        t = work.times("flow times", step)
        x = torch.lerp(x0, eps, _column(t))
        return (work.network(x, t, t, slots) - (eps - x0)).square().mean()


@dataclass
class Velocity(FlowMatching):
    """Flow matching as the last stage: what ships is the velocity, for as many Euler steps as one likes."""

    sampled_with = 20
    evaluated_with = (4, 8, 10, 16, 20, 40)


@dataclass
class MeanFlow(Stage):
    """u(x, t, s) = v - (t - s) du/dt on half of the batch, flow matching on the other half. Source: arXiv:2505.13447."""

    name = "map"
    kind = "two_time"
    sampled_with = 4
    evaluated_with = (1, 2, 4, 8)

    def loss(self, work: "Workpiece", step: int) -> Tensor:
        x0, eps, slots = work.batch(self.name, step, self.wrong_captions)
        draw = torch.stack([work.times("map times", 2 * step + i) for i in range(2)])
        t, s = draw.amax(0), draw.amin(0)
        half = len(t) // 2
        s = torch.cat([t[:half], s[half:]])
        x = torch.lerp(x0, eps, _column(t))
        target = eps - x0
        with torch.no_grad():
            xm, tm, sm, slots_m = x[half:], t[half:], s[half:], slots[half:]
            weights: dict[str, Tensor] = dict(work.network.named_parameters())
            velocity = work.network(xm, tm, tm, slots_m)
            tangent = jvp(
                lambda x, t: functional_call(work.network, weights, (x, t, sm, slots_m)),
                (xm, tm),
                (velocity, torch.ones_like(tm)),
            )[1]
            target = torch.cat([target[:half], target[half:] - _column(tm - sm) * tangent])
        return _adaptive(work.network(x, t, s, slots) - target)


@dataclass
class StoredPaths(Stage):
    """(x_s - x_t) / (s - t) along stored ODE paths of the network as it began, with a quarter of flow matching."""

    paths: int = 2560
    _stored: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    name = "map"
    kind = "two_time"
    sampled_with = 4
    evaluated_with = (1, 2, 4, 8)
    has_teacher = True

    def loss(self, work: "Workpiece", step: int) -> Tensor:
        if self._stored is None:
            self._stored = self.integrate(work)
        points, captions = self._stored
        n = work.recipe.batch
        x0, eps, slots = work.batch(self.name, step, self.wrong_captions)
        draw = work.draw("paths", step)
        quarter = n // 4
        t = work.times("map times", step)
        which = torch.randint(0, points.shape[1], (n - quarter,), generator=draw)
        ends = torch.stack([torch.randperm(len(points), generator=draw)[:2] for _ in range(n - quarter)])
        late, early = ends.amax(1), ends.amin(1)  # index 0 is noise
        grid = torch.tensor(time_grid(len(points) - 1, work.recipe.shift))
        time, target_time = torch.cat([t[:quarter], grid[early]]), torch.cat([t[:quarter], grid[late]])
        x = torch.cat([torch.lerp(x0, eps, _column(t))[:quarter], points[early, which]])
        target = torch.cat(
            [(eps - x0)[:quarter], (points[late, which] - points[early, which]) / _column(grid[late] - grid[early])]
        )
        wrong = torch.rand(n - quarter, generator=draw) < self.wrong_captions
        shown = torch.where(
            wrong[:, None], captions[torch.randint(0, len(captions), (n - quarter,), generator=draw)], captions[which]
        )
        return _adaptive(work.network(x, time, target_time, torch.cat([slots[:quarter], shown])) - target)

    @torch.no_grad()
    def integrate(self, work: "Workpiece", steps: int = 24) -> tuple[Tensor, Tensor]:
        """ODE paths of the teacher: points [steps + 1, paths, *latent_shape] and the slots [paths, slots] they were drawn for."""
        assert work.teacher is not None
        slots = work.generator.embed([work.prompts[i % len(work.prompts)] for i in range(self.paths)])
        seeds = [seed_stream(work.recipe.seed, "paths", i) for i in range(self.paths)]
        x = seeded_noise(seeds, work.generator.latent_shape)
        points = [x]
        for t, s in pairwise(time_grid(steps, work.recipe.shift)):
            time = torch.full((1,), t)
            parts = zip(x.split(512), slots.split(512), strict=True)
            x = x + (s - t) * torch.cat([work.teacher(part, time, time, own) for part, own in parts])
            points.append(x)
        return torch.stack(points), slots


@dataclass
class Consistency(Stage):
    """G(x, t) = x - t u(x, t, 0), made to agree along the paths of the two-time map that the network began as.

    The teacher carries x from t to a time s between t and 0, the student itself goes on from there: its jump from t must end
    where these two do. As average velocities, u(x, t, 0) is regressed on the mean of the teacher's u(x, t, s), which counts
    t - s, and of the student's u(x_s, s, 0), which counts s. G(x, 0) = x holds whatever the network.

    Source: consistency distillation (arXiv:2303.01469), without an averaged target (arXiv:2310.14189).
    """

    name = "consistency"
    kind = "single_time"
    sampled_with = 4
    evaluated_with = (1, 2, 4, 8)
    has_teacher = True

    def loss(self, work: "Workpiece", step: int) -> Tensor:
        assert work.teacher is not None
        x0, eps, slots = work.batch(self.name, step, self.wrong_captions)
        t = work.times("consistency times", step)
        share = torch.rand(len(t), generator=work.draw("consistency shares", step))  # of the way that the student goes itself
        s, data = share * t, torch.zeros_like(t)
        x = torch.lerp(x0, eps, _column(t))
        with torch.no_grad():
            first = work.teacher(x, t, s, slots)
            rest = work.network(x + _column(s - t) * first, s, data, slots)
        return _adaptive(work.network(x, t, data, slots) - torch.lerp(first, rest, _column(share)))


def _adamw(parameters: object, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)  # type: ignore[arg-type]


def _column(times: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1], so that it scales latents."""
    return times.view(-1, 1, 1, 1)


def _adaptive(difference: Tensor) -> Tensor:
    """Mean over rows of their mean square, each weighted by its own inverse root: large errors do not drown the others."""
    error = difference.square().mean((1, 2, 3))
    return (error / (error.detach() + 0.01).sqrt()).mean()
