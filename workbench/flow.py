"""The notation of the whole project: the linear path, Gaussian transitions, time grids and seeded noise.

Time runs from t = 1 (noise) to t = 0 (data): `x_t = (1 - t) x_0 + t eps`. Only model adapters convert from other conventions.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

GridKind = Literal["uniform", "linspace", "log_snr", "trigflow"]


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian transition p(x_s | x_t) = N(mean, std^2 I).

    Args:
        mean: [N, ...], float32.
        std: in data units; 0.0 when the transition is deterministic and has no density.
    """

    mean: Tensor
    std: float

    def sample(self, noise: Tensor) -> Tensor:
        """One draw for each row of `noise` ([N, ...], standard normal); rows broadcast against the mean."""
        return self.mean if self.std == 0.0 else self.mean + self.std * noise

    def log_prob(self, x: Tensor, *, reduction: str = "mean") -> Tensor:
        """Log-density of x ([N, ...], broadcasting against the mean).

        The *mean* over dimensions is what every objective uses: it keeps the ratio of two policies comparable between a
        latent of 128 numbers and one of 65,536, and it sets the scale of `clip_range`. `reduction="sum"` is the joint
        log-density, for analysis.

        Returns: [N], float32.
        Raises: ValueError: if the transition is deterministic, since it then has no density.
        """
        if self.std == 0.0:
            raise ValueError("a deterministic transition (std = 0) has no density; score only stochastic steps")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"unknown reduction {reduction!r}; choose from: mean, sum")
        per_dimension = -0.5 * ((x.float() - self.mean.float()) / self.std) ** 2
        per_dimension = per_dimension - math.log(self.std) - 0.5 * math.log(2 * math.pi)
        flat = per_dimension.flatten(1)
        return flat.mean(1) if reduction == "mean" else flat.sum(1)


def noise_to_signal(t: float) -> float:
    """k(t) = t / (1 - t), the noise-to-signal ratio of the linear path; infinite at t = 1."""
    return math.inf if t >= 1.0 else t / (1.0 - t)


def time_of_ratio(k: float) -> float:
    """The time whose noise-to-signal ratio is k; inverse of `noise_to_signal`."""
    return 1.0 if math.isinf(k) else k / (1.0 + k)


def time_grid(steps: int, shift: float = 1.0, kind: GridKind = "uniform") -> tuple[float, ...]:
    """`steps + 1` times from 1 down to 0.

    Args:
        steps: number of transitions, at least 1.
        shift: positive; multiplies the noise-to-signal ratio of every time, t' = shift t / (1 + (shift - 1) t). 1 leaves the
            grid as it is, larger values spend more steps near noise.
        kind: "uniform": evenly spaced in t. "linspace": even from 1 to 0.05, then 0, so that a few-step map is never asked for
            a short last step. "log_snr": evenly spaced in log k from t = 0.99 to 0.01, these two ends then moved to 1 and 0.
            "trigflow": evenly spaced in the angle arctan k, as SANA-Sprint is used; its two steps meet at the angle 1.3.
    Raises: ValueError: if there is no step, the shift is not positive, or the kind is unknown.
    Source: the timestep shift of SD3 (arXiv:2403.03206), equation 23; "linspace": Flow-Map GRPO (arXiv:2607.00535);
        "trigflow": SANA-Sprint (arXiv:2503.09641).
    """
    if steps < 1:
        raise ValueError(f"a time grid needs at least 1 step, got {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift multiplies the noise-to-signal ratio and must be positive, got {shift}")
    if kind == "uniform":
        inside = [1.0 - i / steps for i in range(1, steps)]
    elif kind == "linspace":
        inside = [1.0 - 0.95 * i / (steps - 1) for i in range(1, steps)]
    elif kind == "log_snr":
        inside = [time_of_ratio(99.0 ** (1.0 - 2.0 * i / steps)) for i in range(1, steps)]
    elif kind == "trigflow":
        angles = [1.3] if steps == 2 else [0.5 * math.pi * (1.0 - i / steps) for i in range(1, steps)]
        inside = [time_of_ratio(math.tan(angle)) for angle in angles]
    else:
        raise ValueError(f"unknown time grid {kind!r}; choose from: {', '.join(get_args(GridKind))}")
    return (1.0, *(shift * t / (1.0 + (shift - 1.0) * t) for t in inside), 0.0)


def check_times(times: Sequence[float]) -> tuple[float, ...]:
    """An explicit time grid, as floats.

    Raises: ValueError: unless it starts at 1, ends at 0 and descends strictly; names the two times that do not.
    """
    grid = tuple(float(t) for t in times)
    if len(grid) < 2:
        raise ValueError(f"a time grid needs at least the two times 1 and 0, got {list(grid)}")
    if grid[0] != 1.0 or grid[-1] != 0.0:
        raise ValueError(f"a time grid starts at 1 (noise) and ends at 0 (data), got {grid[0]:g} and {grid[-1]:g}")
    for i, (t, s) in enumerate(pairwise(grid)):
        if not t > s:
            raise ValueError(f"a time grid descends strictly, but time {i} is {t:g} and time {i + 1} is {s:g}")
    return grid


def noise_share(std: float, s: float) -> float:
    """Share of the noise in x_s that a transition with this std draws afresh, as variances: std^2 / s^2; 0 without noise."""
    return 0.0 if std == 0.0 else math.inf if s == 0.0 else (std / s) ** 2


def noise_rate(std: float, t: float, s: float) -> float:
    """Noise of a transition in one unit for all kernels: lambda of the SDE whose noise is g^2 = 2 lambda^2 t / (1 - t).

    Run from t to s, that SDE keeps (k_s / k_t)^(2 lambda^2) of the noise's variance and draws the rest afresh; lambda is where
    this equals `noise_share`. So it does not depend on the number of steps: Flow-GRPO's a is sqrt(2) lambda as steps shrink,
    Precise's eta is sqrt(2) lambda at any step, and the anchored kernel with a budget per time has lambda = noise. From t = 1
    the SDE runs for ever, so any share below 1 has rate 0: there the share itself is the number to look at.

    Args:
        std: of the transition from t to s, in data units.
    Returns: lambda; infinite where nothing of the old noise is kept.
    """
    share = noise_share(std, s)
    if share == 0.0 or share >= 1.0:
        return 0.0 if share == 0.0 else math.inf
    if t >= 1.0:
        return 0.0
    return math.sqrt(0.5 * math.log1p(-share) / math.log(noise_to_signal(s) / noise_to_signal(t)))


def data_prediction(x: Tensor, v: Tensor, t: float) -> Tensor:
    """Posterior mean of x_0 given x_t = x and the velocity v there."""
    return x - t * v


def noise_prediction(x: Tensor, v: Tensor, t: float) -> Tensor:
    """Posterior mean of eps given x_t = x and the velocity v there."""
    return x + (1.0 - t) * v


def seed_stream(*key: int | str) -> int:
    """A signed 64-bit seed for one stream of randomness, hashed from its full name.

    Name a stream by everything that it belongs to, for example `(run_seed, "rollout", iteration, prompt, sample, step)`:
    no two names share a stream, and nothing depends on the order in which streams are used.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def seeded_noise(seeds: Tensor | Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise whose row i depends on `seeds[i]` alone: not on the batch, its order, or a global generator.

    A counter-based generator, so that a whole batch of streams is one set of tensor operations: SplitMix64's finaliser
    over (seed, position), then Box-Muller.

    Args:
        seeds: [N], int64, from `seed_stream`.
        shape: of one sample, without the batch.
    Returns: [N, *shape], float32.
    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); counter-based streams (Salmon et al., SC 2011).
    """
    rows = torch.as_tensor(seeds, dtype=torch.int64, device=device).reshape(-1, 1)
    size = math.prod(shape)
    pairs = (size + 1) // 2
    counter = torch.arange(1, 2 * pairs + 1, dtype=torch.int64, device=device)
    bits = _mix(_mix(rows) + counter * -0x61C8864680B583EB)           # the golden-ratio increment of SplitMix64
    uniform = (_shift_right(bits, 11).double() + 0.5) * 2.0**-53        # in (0, 1), never 0: the logarithm below is finite
    radius = torch.sqrt(-2.0 * torch.log(uniform[:, :pairs]))
    angle = 2.0 * math.pi * uniform[:, pairs:]
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :size]
    return normal.float().reshape(-1, *shape)


def seeded_uniform(*key: int | str) -> float:
    """One number in [0, 1) that depends on the stream's name alone."""
    return (seed_stream(*key) % 2**53) / 2**53


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64; int64 products wrap, as the algorithm wants."""
    z = (z ^ _shift_right(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift_right(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own is arithmetic on int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
