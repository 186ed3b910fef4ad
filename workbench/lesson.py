"""What one policy update learns from."""

from dataclasses import dataclass

from torch import Tensor

from workbench.contracts import Sampler
from workbench.rollout import Rollout


@dataclass(frozen=True)
class Lesson:
    """A rollout, and how good each of its samples and of its steps was."""

    rollout: Rollout
    sampler: Sampler
    advantages: Tensor  # [N], of each sample among those of its group
    credits: tuple[Tensor, ...]  # for each transition [M, C], of each child among the nodes it is compared with
    stds: tuple[float, ...]  # of the kernel at every step of the grid but the last, whichever of them were stochastic
    portion: int  # rows of a forward and backward pass
    key: tuple[int | str, ...]  # names the streams of randomness


def portions(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
