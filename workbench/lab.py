"""Distributions whose flow is known exactly: what samplers are proven on, with the energy test of `workbench.energy`.

Closed forms are evaluated in float64 and returned in the dtype that came in; nothing here is learned.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from scipy.integrate import DOP853, cumulative_simpson
from scipy.interpolate import PchipInterpolator
from scipy.special import i0e
from torch import Tensor

from workbench.contracts import FlowMapKind
from workbench.energy import energy_test as energy_test  # the other half of every proof, at hand beside the distributions


class Distribution(Protocol):
    """Data whose flow on the linear path is known exactly.

    `scales` are its smallest standard deviation and its extent, in data units: the flow changes shape only while the
    noise-to-signal ratio lies between them.
    """

    @property
    def scales(self) -> tuple[float, float]: ...

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """v(x, t) = E[eps - x_0 | x_t = x] for x [N, D] and t in [0, 1]; [N, D], the dtype of x."""
        ...

    def carry(self, x: Tensor, t: float, s: float) -> Tensor:
        """psi(x, t, s), where the probability-flow ODE takes x [N, D] from t to s <= t; [N, D], the dtype of x."""
        ...

    def sample(self, num: int, seed: int, t: float = 0.0) -> Tensor:
        """Independent samples of x_t, exact; [num, D], float32."""
        ...


class GaussianMixture:
    """A mixture of isotropic Gaussians in any dimension.

    Args:
        means: [K, D], in data units.
        stds: [K] or one number, positive.
        weights: [K], positive, normalised to sum to 1; equal by default.
        stride: longest step of `carry`, see `integrate_flow`; points of a mixture in the plane err by 1e-6 on average at the
            default, by 1e-3 at 1.
    Raises: ValueError: if their sizes disagree or a standard deviation or weight is not positive.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
        *,
        stride: float = 0.25,
    ):
        self.stride = stride
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.dim() != 2:
            raise ValueError(f"means must be one row per component, [K, D], got shape {tuple(self.means.shape)}")
        count = len(self.means)
        self.stds = torch.as_tensor(stds, dtype=torch.float64).expand(count).clone()
        self.weights = torch.ones(count).double() if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if self.weights.shape != (count,):
            raise ValueError(f"weights must be one number per component, got {tuple(self.weights.shape)} for {count} components")
        if not bool((self.stds > 0).all() and (self.weights > 0).all()):
            raise ValueError("stds and weights must be positive, so that every x_t has a density")
        self.weights = self.weights / self.weights.sum()

    @property
    def scales(self) -> tuple[float, float]:
        return float(self.stds.min()), float((self.means.norm(dim=1) + self.stds).max())

    def sample(self, num: int, seed: int, t: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        data = self.means[component] + self.stds[component, None] * _normal(generator, num, self.means.shape[1])
        return ((1 - t) * data + t * _normal(generator, num, self.means.shape[1])).float()

    def log_density(self, x: Tensor, t: float = 0.0) -> Tensor:
        """Log-density of x_t at x [N, D], summed over dimensions; [N], the dtype of x."""
        return torch.logsumexp(self._joint(x.double(), t), 1).to(x.dtype)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        points = x.double()
        share = torch.softmax(self._joint(points, t), 1)          # [N, K], of each component given x_t
        slope = (t - (1 - t) * self.stds**2) / self._variance(t)  # of E[eps - x_0 | x_t, component] in x_t
        offset = (1 + (1 - t) * slope)[:, None] * self.means
        return ((share @ slope)[:, None] * points - share @ offset).to(x.dtype)

    def carry(self, x: Tensor, t: float, s: float) -> Tensor:
        """Integrated, but for a single Gaussian, whose flow only rescales distances from its centre."""
        if len(self.means) > 1:
            return integrate_flow(self, x, t, s, stride=self.stride)
        growth = torch.sqrt(self._variance(s) / self._variance(t))
        return ((1 - s) * self.means + growth * (x.double() - (1 - t) * self.means)).to(x.dtype)

    def _variance(self, t: float) -> Tensor:
        return ((1 - t) * self.stds) ** 2 + t**2

    def _joint(self, points: Tensor, t: float) -> Tensor:
        """log p(component, x_t), [N, K]."""
        centres, variance, dimension = (1 - t) * self.means, self._variance(t), self.means.shape[1]
        # |x|^2 + |c|^2 - 2 <x, c>: three small products in float64 instead of an [N, K, D] difference
        distance = points.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * points @ centres.T
        return -0.5 * distance / variance + (self.weights.log() - 0.5 * dimension * torch.log(2 * math.pi * variance))


class Rings:
    """Concentric rings of equal mass in the plane, blurred by an isotropic Gaussian.

    Exact by symmetry: the mean of a ring's points given x_t lies along x_t, shortened by the Bessel ratio I_1 / I_0.
    """

    def __init__(self, radii: Sequence[float], jitter: float):
        if not radii or min(radii) <= 0 or jitter <= 0:
            raise ValueError(f"radii and jitter must be positive, got radii {tuple(radii)} and jitter {jitter}")
        self.radii = torch.tensor(radii, dtype=torch.float64)
        self.jitter = float(jitter)

    @property
    def scales(self) -> tuple[float, float]:
        return self.jitter, float(self.radii.max()) + self.jitter

    def sample(self, num: int, seed: int, t: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        radius = self.radii[torch.randint(len(self.radii), (num,), generator=generator)]
        angle = 2 * math.pi * torch.rand(num, generator=generator, dtype=torch.float64)
        data = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + self.jitter * _normal(generator, num, 2)
        return ((1 - t) * data + t * _normal(generator, num, 2)).float()

    def velocity(self, x: Tensor, t: float) -> Tensor:
        points = x.double()
        distance = points.norm(dim=1, keepdim=True)            # [N, 1]
        variance = ((1 - t) * self.jitter) ** 2 + t**2
        centres = (1 - t) * self.radii                         # [R], radii of the rings at t
        concentration = distance * centres / variance          # [N, R], of the von Mises law of the angle
        bessel = torch.special.i0e(concentration)              # scaled by exp(-concentration), which completes the square below
        share = torch.softmax(-0.5 * (distance - centres) ** 2 / variance + bessel.log(), 1)
        outward = torch.special.i1e(concentration) / bessel    # [N, R], mean of cos(angle to x_t)
        ring_mean = (share * outward * self.radii).sum(1, keepdim=True) / distance.clamp_min(1e-300)
        slope = (t - (1 - t) * self.jitter**2) / variance
        return ((slope - (1 + (1 - t) * slope) * ring_mean) * points).to(x.dtype)

    def carry(self, x: Tensor, t: float, s: float) -> Tensor:
        """Closed form: the flow moves along the radius and keeps the mass inside it, so it matches quantiles of the radius."""
        radius = x.double().norm(dim=1)
        start, end = (_radial_quantiles(tuple(self.radii.tolist()), self.jitter, time) for time in (t, s))
        in_noise = np.minimum(start.noise_of(radius.clamp_max(start.largest).numpy()), end.largest_noise)
        carried = torch.from_numpy(end.radius_of(in_noise))
        return (x.double() * (carried / radius.clamp_min(1e-300))[:, None]).to(x.dtype)

    def log_density(self, x: Tensor, t: float = 0.0) -> Tensor:
        """Log-density of x_t at x [N, 2], summed over dimensions; [N], the dtype of x."""
        distance = x.double().norm(dim=1, keepdim=True)
        variance = ((1 - t) * self.jitter) ** 2 + t**2
        centres = (1 - t) * self.radii
        bessel = torch.special.i0e(distance * centres / variance)
        pieces = -0.5 * (distance - centres) ** 2 / variance + bessel.log()
        return (torch.logsumexp(pieces, 1) - math.log(2 * math.pi * variance * len(self.radii))).to(x.dtype)


@dataclass(frozen=True)
class _RadialQuantiles:
    """Radii at one time, and the radii in pure noise (t = 1) with the same quantile: sqrt(-2 log P(radius beyond))."""

    noise_of: PchipInterpolator
    radius_of: PchipInterpolator
    largest: float
    largest_noise: float


@lru_cache(maxsize=128)
def _radial_quantiles(rings: tuple[float, ...], jitter: float, t: float) -> _RadialQuantiles:
    std = math.hypot((1 - t) * jitter, t)
    centres = (1 - t) * np.array(rings)
    radii = np.linspace(0.0, centres.max() + 9 * std, 6001)
    pieces = np.exp(-0.5 * ((radii[:, None] - centres) / std) ** 2) * i0e(radii[:, None] * centres / std**2)
    density = radii / std**2 * pieces.mean(1)  # of the radius: a mixture of Rice laws
    inside = cumulative_simpson(density, x=radii, initial=0.0)
    beyond = cumulative_simpson(density[::-1], dx=radii[1], initial=0.0)[::-1]
    with np.errstate(divide="ignore"):  # each form where it is accurate; infinite at the last radius, dropped below
        noise = np.sqrt(-2 * np.where(inside < 0.5, np.log1p(-np.minimum(inside, 0.5)), np.log(beyond)))
    noise[~np.isfinite(noise)] = -1.0
    rising = np.diff(np.maximum.accumulate(noise), prepend=-1.0) > 0  # between narrow rings no mass tells radii apart
    radii, noise = radii[rising], noise[rising]
    return _RadialQuantiles(PchipInterpolator(radii, noise), PchipInterpolator(noise, radii), radii[-1], noise[-1])


def double_ring() -> Rings:
    """The reference data of every kernel: equal mass on radii 1 and 3, jitter 0.05. Half of the mass lies beyond radius 2."""
    return Rings((1.0, 3.0), 0.05)


def outer_mass(x: Tensor) -> float:
    """Share of x [N, 2] on the double ring's outer ring; 0.5 for the data, off by 0.5 / sqrt(N) for a sample of it."""
    return float((x.norm(dim=1) > 2.0).double().mean())


def ring_scatter(x: Tensor) -> float:
    """Mean distance of x [N, 2] from the nearer circle of the double ring; 0.04 for the data, whose jitter is 0.05."""
    radius = x.double().norm(dim=1)
    return float(torch.minimum((radius - 1.0).abs(), (radius - 3.0).abs()).mean())


@dataclass(frozen=True)
class ExactFlowMap:
    """The flow map of a distribution: its probability-flow ODE, solved.

    `kind` restricts it to the calls that such a model is trained for; the others raise ValueError.
    """

    distribution: Distribution
    kind: FlowMapKind = "two_time"

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        if self.kind == "velocity":
            raise ValueError("a velocity map makes no jumps; call velocity(x, t)")
        if self.kind == "single_time" and s != 0.0:
            raise ValueError(f"a single-time map reaches only s = 0, got s = {s}")
        return self.distribution.carry(x, t, s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        if self.kind == "single_time":
            raise ValueError("a single-time map has no velocity; call flow_map(x, t, 0.0)")
        return self.distribution.velocity(x, t)


def exact_flow_map(distribution: Distribution, kind: FlowMapKind = "two_time") -> ExactFlowMap:
    """The exact flow map of a distribution, as a model of that kind would offer it."""
    return ExactFlowMap(distribution, kind)


def integrate_flow(distribution: Distribution, x: Tensor, t: float, s: float, *, stride: float = 0.25) -> Tensor:
    """Carry x [N, D] along the probability-flow ODE from t to s, in either direction.

    Eighth-order Runge-Kutta with fixed steps, so that a row does not depend on its batch. It moves z = cos(a) x_0 + sin(a) eps,
    which is bounded and smooth at both ends, k = tan(a), in the variable log((k + finest) / (1 + k / extent)): the logarithm of
    the noise-to-signal ratio where the data has structure, and finite at both ends.

    Args:
        stride: longest step in that variable.
    Returns: [N, D], the dtype of x.
    Source: DOP853 (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I), its tableau as shipped by SciPy.
    """
    finest, extent = distribution.scales[0], 2 * distribution.scales[1]
    start, end = (math.log((time + finest * (1 - time)) / (1 - time + time / extent)) for time in (t, s))
    steps = max(1, math.ceil(abs(end - start) / stride))
    width = (end - start) / steps

    def slope(z: Tensor, place: float) -> Tensor:
        angle = math.atan2(extent * max(math.exp(place) - finest, 0.0), max(extent - math.exp(place), 0.0))
        sin, cos = math.sin(angle), math.cos(angle)
        length = sin + cos  # x = z / length lies on the linear path at time sin / length
        v = distribution.velocity(z / length, sin / length)
        # dz/da = cos(a) eps_hat - sin(a) x0_hat, both predicted from v; then da/dplace
        return ((cos - sin) * z + v) / length * ((sin + finest * cos) * (extent * cos + sin) / (extent - finest))

    z = x.double() / math.hypot(t, 1 - t)
    for step in range(steps):
        z = z + width * _runge_kutta(slope, z, start + step * width, width)
    return (z * math.hypot(s, 1 - s)).to(x.dtype)


def _runge_kutta(slope: Callable[[Tensor, float], Tensor], z: Tensor, place: float, width: float) -> Tensor:
    """The average slope over one step of the eighth-order method."""
    stages: list[Tensor] = []
    for row, at in zip(DOP853.A, DOP853.C, strict=True):
        stages.append(slope(z + width * _weighted(row[: len(stages)], stages, z), place + at * width))
    return _weighted(DOP853.B, stages, z)


def _weighted(weights: np.ndarray, stages: Sequence[Tensor], like: Tensor) -> Tensor:
    return sum((w * k for w, k in zip(weights, stages, strict=True) if w), torch.zeros_like(like))


def _normal(generator: torch.Generator, num: int, dimension: int) -> Tensor:
    return torch.randn(num, dimension, generator=generator, dtype=torch.float64)
