"""The plane where everything is known: distributions, also drawn by hand, and what each kernel makes of their exact flow."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.special import ndtr
from torch import Tensor

from workbench.contracts import FlowMapKind, Sampler
from workbench.energy import EnergyReference, holm
from workbench.flow import GridKind, seed_stream, time_grid
from workbench.lab import GaussianMixture, Rings, double_ring, exact_flow_map, outer_mass
from workbench.planning import StepNoise, kernel_noise
from workbench.samplers import SAMPLERS
from workbench.sampling import LARGEST_SEED, AnySampler
from workbench.settings import Settings

VIEW = 4.0
"""Half the side of the square that is looked at, in data units."""

LEVEL = 0.01
"""Of the family of tests that a walk is judged by: one right kernel in a hundred is called wrong."""

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of steps that a kernel's accuracy is compared at."""

SHOWN, TRACED, BINS, PIXELS = 13, 9, 60, 64
"""Most nodes that are kept, trajectories, bins of a histogram, and places along a side of a density."""

_COMPONENTS = 40  # most Gaussians of a drawing: each costs time in every step
_STRIDE = 0.5  # of the solver: a point errs by 1e-4 on average, far below what 4,000 particles resolve


class Data(Settings):
    """What the particles should become."""

    name: Literal["double_ring", "moons", "grid", "spiral", "drawn"] = Field("double_ring", description="which distribution")
    strokes: tuple[tuple[tuple[float, float], ...], ...] = Field(
        (), max_length=64, description="lines through points (x, y) of the plane, each coordinate in -4..4; for 'drawn' alone"
    )
    brush: float = Field(0.15, ge=0.05, le=0.6, description="thickness of drawn lines: the Gaussians' standard deviation")

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.name == "drawn" and not any(self.strokes):
            raise ValueError("nothing is drawn yet: draw a line on the plane, or choose another distribution")
        if sum(map(len, self.strokes)) > 5000:
            raise ValueError(f"a drawing has at most 5000 points, got {sum(map(len, self.strokes))}; draw fewer or shorter lines")
        outside = [point for stroke in self.strokes for point in stroke if max(map(abs, point)) > VIEW]
        if outside:
            raise ValueError(f"strokes stay within -{VIEW:g}..{VIEW:g}, got the point {outside[0]}")
        return self


class WalkSettings(Settings):
    """How particles are brought from noise to data."""

    sampler: AnySampler = Field(  # type: ignore[valid-type]
        default_factory=SAMPLERS["asfmc"], description="transition kernel: how a particle gets from one time to the next"
    )
    map: FlowMapKind = Field(
        "two_time",
        description="what the exact map is asked: jumps between any two times, jumps to the data alone, or velocities alone",
    )
    steps: int = Field(4, ge=1, le=64, description="steps from noise to data")
    grid: GridKind = Field("uniform", description="how the times are spaced; linspace stops at 0.05 before its last step")
    shift: float = Field(1.0, ge=0.1, le=10, description="above 1 spends more steps near noise, below 1 near data")
    particles: int = Field(2000, ge=100, le=4000, description="how many are followed; more make the tests sharper")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="names the noise; the same seed moves the same particles")

    @model_validator(mode="after")
    def _check(self) -> "WalkSettings":
        sampler: Sampler = self.sampler
        if self.map not in sampler.needs:
            fitting = ", ".join(name for name, known in SAMPLERS.items() if self.map in known.needs)
            raise ValueError(
                f"sampler {sampler.name!r} needs a {' or '.join(sampler.needs)} map, and this is a {self.map} map; "  # type: ignore[attr-defined]
                f"choose another map, or a sampler that fits: {fitting}"
            )
        return self

    @property
    def times(self) -> tuple[float, ...]:
        return time_grid(self.steps, self.shift, self.grid)


class WalkRequest(WalkSettings):
    """A walk of particles, wholly described."""

    data: Data = Field(default_factory=Data, description="distribution of the data")


@dataclass(frozen=True)
class Walk:
    """Particles on their way, at those nodes of the grid that are kept, the first and the last among them."""

    times: tuple[float, ...]  # [K + 1], the whole grid
    nodes: tuple[int, ...]  # [S], into `times`
    particles: Tensor  # [S, N, 2]
    paths: Tensor  # [K + 1, T, 2], of the first particles
    means: Tensor  # [K, T, 2], where each step would have led them without its noise
    stds: tuple[float, ...]  # [K], data units
    noise: tuple[StepNoise, ...]  # of every step but the last
    p_values: tuple[float, ...]  # [S], of the energy test against exact samples of the same time
    masses: tuple[float, ...] | None  # [S], share beyond radius 2, where the data is the double ring
    wanted: tuple[float, ...] | None  # [S], what it truly is

    @property
    def wrong(self) -> tuple[int, ...]:
        """Places among the kept nodes where particles are not distributed as they should be, all tests taken as one family."""
        return tuple(place for place, p in enumerate(holm(self.p_values)) if p <= LEVEL)


@dataclass(frozen=True)
class Marginal:
    """The exact distribution of x_t."""

    density: Tensor  # [PIXELS, PIXELS] in [0, 1], relative to its largest; rows from the top, y = VIEW, down
    profile: tuple[float, ...]  # [BINS], share of the radius in 0..VIEW (rings), else of x in -VIEW..VIEW


@dataclass(frozen=True)
class Accuracy:
    """How right the final particles are at one number of steps."""

    steps: int
    distance: float  # squared energy distance to exact samples
    chance: float  # what it is on average for as many exact samples
    mass: float | None  # on the outer ring of the double ring
    error: float | None  # its standard error


@lru_cache(maxsize=16)
def distribution(data: Data) -> GaussianMixture | Rings:
    """The distribution that a choice, or a drawing, stands for."""
    if data.name == "double_ring":
        return double_ring()
    if data.name == "moons":
        angle = torch.linspace(0, math.pi, 14, dtype=torch.float64)
        upper = torch.stack([2 * angle.cos() - 1, 2 * angle.sin() - 0.5], 1)
        return GaussianMixture(torch.cat([upper, -upper]), 0.18, stride=_STRIDE)
    if data.name == "grid":
        places = [-2.0, 0.0, 2.0]
        return GaussianMixture([[x, y] for x in places for y in places], 0.2, stride=_STRIDE)
    if data.name == "spiral":
        turn = torch.linspace(0, 1, 32, dtype=torch.float64).sqrt()
        angle, radius = 3.2 * math.pi * turn, 0.3 + 2.8 * turn
        return GaussianMixture(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), 0.14, stride=_STRIDE)
    return GaussianMixture(_beads(data.strokes), data.brush, stride=_STRIDE)


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on few numbers in one thread: several would wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def walk(request: WalkRequest) -> Walk:
    """Follow particles from noise to data, and test them at every node that is kept.

    The noise depends on the seed and the step alone, so that particles move smoothly as settings change.
    """
    data, times = distribution(request.data), request.times
    nodes = _spread(len(times), SHOWN)
    states, paths, means, stds = [], [], [], []
    for place, (x, mean, std) in enumerate(_passed(request, request.particles, times)):
        paths.append(x[:TRACED])
        if place:
            means.append(mean[:TRACED])
            stds.append(std)
        if place in nodes:
            states.append(x)
    references = [_reference(request.data, times[node], request.seed) for node in nodes]
    rings = isinstance(data, Rings)
    return Walk(
        times,
        nodes,
        torch.stack(states),
        torch.stack(paths),
        torch.stack(means),
        tuple(stds),
        tuple(kernel_noise(request.sampler, request.map, times)),
        tuple(reference.test(x).p_value for reference, x in zip(references, states, strict=True)),
        tuple(map(outer_mass, states)) if rings else None,
        tuple(1 - sum(marginal(request.data, times[node]).profile[: BINS // 2]) for node in nodes) if rings else None,
    )


@lru_cache(maxsize=256)
def accuracy(request: WalkRequest, steps: int, particles: int = 1000) -> Accuracy:
    """The same kernel at another number of steps, with fewer particles."""
    *_, (x, _, _) = _passed(request, particles, time_grid(steps, request.shift, request.grid))
    # a reference for each: with one for all, its own chance error would pull every distance the same way
    exact = distribution(request.data).sample(2 * particles, abs(seed_stream("accuracy", request.seed, steps)))
    reference = EnergyReference(exact, spectrum_size=250)
    chance = float(reference.spectrum.sum()) * (1 / particles + 1 / len(exact))
    mass = outer_mass(x) if request.data.name == "double_ring" else None
    error = None if mass is None else math.sqrt(mass * (1 - mass) / particles)
    return Accuracy(steps, reference.test(x).statistic, chance, mass, error)


@lru_cache(maxsize=256)
def marginal(data: Data, t: float) -> Marginal:
    """The exact distribution of x_t as a picture and as a histogram."""
    exact = distribution(data)
    side = (torch.arange(PIXELS, dtype=torch.float64) + 0.5) * 2 * VIEW / PIXELS - VIEW
    places = torch.cartesian_prod(-side, side).flip(1)  # rows from the top
    # noise of a quarter of a pixel more, so that no thin line falls between two places
    density = exact.log_density(places, max(t, VIEW / PIXELS / 2)).exp().view(PIXELS, PIXELS)
    return Marginal((density / density.max()).float(), tuple(_profile(exact, t)))


def _passed(request: WalkRequest, particles: int, times: Sequence[float]) -> list[tuple[Tensor, Tensor, float]]:
    """Every node: the particles, and mean and std of the step that led to it."""
    flow_map = exact_flow_map(distribution(request.data), request.map)
    x = _noise(request.seed, 0, particles)
    passed = [(x, x, 0.0)]
    for step, (t, s) in enumerate(pairwise(times), start=1):
        gaussian = request.sampler.step(flow_map, x, t, s)
        x = gaussian.sample(_noise(request.seed, step, particles))
        passed.append((x, gaussian.mean, gaussian.std))
    return passed


def _noise(seed: int, step: int, particles: int) -> Tensor:
    return torch.randn(particles, 2, generator=torch.Generator().manual_seed(abs(seed_stream("walk", seed, step))))


@lru_cache(maxsize=128)
def _reference(data: Data, t: float, seed: int) -> EnergyReference:
    samples = distribution(data).sample(4000, abs(seed_stream("walk reference", str(t), seed)), t)
    return EnergyReference(samples, spectrum_size=300)


def _profile(exact: GaussianMixture | Rings, t: float) -> list[float]:
    if isinstance(exact, GaussianMixture):
        edges = np.linspace(-VIEW, VIEW, BINS + 1)
        std = np.sqrt(((1 - t) * exact.stds.numpy()) ** 2 + t**2)
        inside = ndtr((edges[:, None] - (1 - t) * exact.means[:, 0].numpy()) / std) @ exact.weights.numpy()
        return np.diff(inside).tolist()
    fine = 16  # places in a bin
    radius = (torch.arange(BINS * fine, dtype=torch.float64) + 0.5) * VIEW / (BINS * fine)
    density = exact.log_density(torch.stack([radius, torch.zeros_like(radius)], 1), t).exp() * 2 * math.pi * radius
    return (density.view(BINS, fine).mean(1) * VIEW / BINS).tolist()


def _spread(count: int, most: int) -> tuple[int, ...]:
    """At most `most` of `count` places, evenly, the first and the last among them."""
    return tuple(sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))}))


def _beads(strokes: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
    """Places at equal distances along all strokes together, so that mass goes by length; [K, 2]. A dot is one bead."""
    lines = [np.array(stroke, dtype=float) for stroke in strokes if stroke]
    lengths = [np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()]) for line in lines]
    whole = sum(float(length[-1]) for length in lengths)
    beads = []
    for line, length in zip(lines, lengths, strict=True):
        count = max(1, round((_COMPONENTS - len(lines)) * float(length[-1]) / max(whole, 1e-9))) if length[-1] > 0 else 1
        at = (np.arange(count) + 0.5) * length[-1] / count
        beads.append(np.stack([np.interp(at, length, line[:, axis]) for axis in (0, 1)], 1))
    return torch.from_numpy(np.concatenate(beads))
