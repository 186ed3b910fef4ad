"""What objectives share that noise finished samples again and regress a velocity there, instead of scoring steps of a rollout."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import jvp

from workbench.contracts import FlowMap, Generator, Objective
from workbench.flow import seed_stream, seeded_noise, seeded_uniform
from workbench.lesson import Lesson, portions

NEAR_DATA = 0.02  # no sample is noised less: nothing tells there what its velocity should be
SHORTEST_JUMP = 0.01  # a shorter one is taken as a velocity, since (x - psi) / (t - s) would lose its digits


@dataclass(frozen=True)
class Noised:
    """Some finished samples, noised to times t; where s < t the jump from t to s is regressed, elsewhere the velocity."""

    embeddings: Any  # [n]
    x0: Tensor  # [n, ...]
    noise: Tensor  # [n, ...]
    t: Tensor  # [n]
    s: Tensor  # [n]
    weights: Tensor  # [n]
    share: float  # of one loss in the whole

    @property
    def x(self) -> Tensor:
        """The samples at t, [n, ...]."""
        return torch.lerp(self.x0, self.noise, column(self.t, self.x0))

    def errors(self, velocity: Tensor) -> Tensor:
        """Squared distance to the velocity eps - x_0 of the straight path, a mean over dimensions; [n]."""
        return mean_square(velocity - (self.noise - self.x0))


class ForwardProcess(Objective):
    """Draws a time and noise for each finished sample, and regresses the velocity there; any sampler will do, `ode` as well.

    Times lie as densely as on the rollout's grid, where the map is asked. The samples of a group share noise and time: what
    they have in common cancels when they are compared, and the rest stands out.

    A two-time map jumps when it is deployed, so on `interval_share` of the rows the velocity is the one that its jump induces
    (see `induced_velocity`); such a row costs a forward pass and a forward derivative more than the one forward and backward
    pass of every other row.
    """

    draws: int = Field(1, ge=1, le=16, description="times that are drawn for each sample; the cost of an update grows with them")
    interval_share: float = Field(
        0.0, ge=0, le=1, description="share of a two_time map's rows that train its jumps; the others train its velocity"
    )
    kl_weight: float = Field(
        0.0, ge=0, description="weight of the squared distance to the reference's velocity, a mean over dimensions"
    )

    maps = ("two_time", "velocity")
    together: ClassVar[int] = 1  # consecutive rows that one loss compares

    @property
    def wants_reference(self) -> bool:
        return self.kl_weight > 0

    @abstractmethod
    def weights(self, lesson: Lesson) -> Tensor:
        """What the loss wants to know of each sample of the rollout, [N]."""

    def choose(self, lesson: Lesson) -> Tensor:
        """Which of the rollout's samples are learned from, [R]; all of them."""
        return torch.arange(len(lesson.advantages), device=lesson.advantages.device)

    @abstractmethod
    def compare(
        self, portion: Noised, velocity: Tensor, *, reference: Tensor | None, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of a portion's rows, or of those that belong together, and figures of them without gradient.

        Args:
            velocity: of the policy [n, ...]; `reference` and `old` likewise and without gradient.
        """

    def portions(self, lesson: Lesson) -> Sequence[Noised]:
        rollout, chosen = lesson.rollout, self.choose(lesson)
        x0, weights, rows = rollout.final[chosen], self.weights(lesson)[chosen], rollout.rows[chosen.cpu()]
        groups = [rollout.seeds[sample - sample % rollout.group_size] for sample in chosen.tolist()]
        size = max(1, lesson.portion // self.together) * self.together
        share = self.together / (self.draws * len(chosen))
        work = []
        for draw in range(self.draws):
            seeds = [seed_stream("forward process", *lesson.key, group, draw) for group in groups]
            t, s = (times.to(x0.device) for times in self._times(rollout.times, seeds, draw))
            for part in portions(len(chosen), size):
                noise = seeded_noise(seeds[part], x0.shape[1:], x0.device)
                embeddings = rollout.embeddings[rows[part]]
                work.append(Noised(embeddings, x0[part], noise, t[part], s[part], weights[part], share))
        return work

    def _times(self, grid: Sequence[float], seeds: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """t and s of each seed, [R]; the draws of a sample divide the grid among themselves."""
        names = ("time", "target", "interval")
        place, further, interval = (torch.tensor([seeded_uniform(seed, name) for seed in seeds]) for name in names)
        place = (draw + place) / self.draws
        t = time_at(grid, place).clamp_min(NEAR_DATA)
        s = time_at(grid, place + (1.0 - place) * further)
        return t, torch.where((interval < self.interval_share) & (t - s >= SHORTEST_JUMP), s, t)

    def predict(self, portion: Noised, generator: Generator) -> Tensor:
        """The velocity of each row, [n, ...]."""
        x, t, s = portion.x, portion.t, portion.s
        is_jump = s < t
        if generator.kind != "two_time" or not is_jump.any():
            return generator.bind(portion.embeddings).velocity(x, t)
        jumps, rest = is_jump.nonzero().squeeze(1), (~is_jump).nonzero().squeeze(1)
        parts = [induced_velocity(generator.bind(portion.embeddings[jumps.cpu()]), x[jumps], t[jumps], s[jumps])]
        if len(rest):
            parts.append(generator.bind(portion.embeddings[rest.cpu()]).velocity(x[rest], t[rest]))
        return torch.cat(parts)[torch.cat([jumps, rest]).argsort()]

    def loss(
        self, portion: Noised, prediction: Tensor, *, reference: Tensor | None = None, old: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As every objective's; `kl` is the squared distance to the reference's velocity, a mean over dimensions."""
        old = prediction.detach() if old is None else old
        losses, figures = self.compare(portion, prediction, reference=reference, old=old)
        total, figures = losses.sum(), {"loss": losses.detach(), **figures}
        if reference is not None:
            distance = mean_square(prediction - reference)
            figures["kl"] = distance.detach()
            total = total + self.kl_weight * distance.sum() * (len(losses) / len(distance))
        return portion.share * total, figures


def induced_velocity(flow_map: FlowMap, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The velocity that a jump from t to s < t implies: u + (t - s) du/dt, which for an exact flow map is v(x, t).

    u = (x - psi(x, t, s)) / (t - s) is the average velocity of the jump; du/dt, its derivative along the map's own velocity, has
    no gradient.

    Args:
        x: [N, ...], at times t.
        t, s: [N], or [1] for all rows.
    Returns: [N, ...].
    Source: improved MeanFlow (arXiv:2512.02012).
    """

    def average_velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x - flow_map(x, t, s)) / column(t - s, x)

    with torch.no_grad():
        velocity = flow_map.velocity(x, t)
        slope = jvp(average_velocity, (x, t), (velocity, torch.ones_like(t)))[1]
    return average_velocity(x, t) + column(t - s, x) * slope


def time_at(grid: Sequence[float], place: Tensor) -> Tensor:
    """Times at places of a grid, 0 its beginning and 1 its end, along straight lines between its times; the shape of `place`."""
    times, position = torch.tensor(grid), place * (len(grid) - 1)
    before = position.long().clamp_max(len(grid) - 2)
    return torch.lerp(times[before], times[before + 1], position - before)


def mean_square(values: Tensor) -> Tensor:
    """[n, ...] -> [n], a mean over dimensions."""
    return values.square().flatten(1).mean(1)


def column(values: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], so that it scales the rows of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
