"""How many times a network is evaluated: the one cost that is the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


@dataclass
class Evaluations:
    """Rows that went through a network; one row is one image at one time."""

    sampled: int = 0  # forward passes without gradient
    trained: int = 0  # forward passes with gradient, each followed by a backward pass
    tangents: int = 0  # forward derivatives beside a pass

    @property
    def total(self) -> int:
        """In forward passes: a backward pass costs two of them, a forward derivative one."""
        return self.sampled + 3 * self.trained + self.tangents

    def reset(self) -> None:
        self.sampled = self.trained = self.tangents = 0


@contextmanager
def counted(*networks: nn.Module | None) -> Iterator[Evaluations]:
    """Count what goes through any of the networks while entered."""
    counts = Evaluations()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = len(output)
        if forward_ad.unpack_dual(output).tangent is not None:
            counts.tangents += rows
        if torch.is_grad_enabled() and output.requires_grad:
            counts.trained += rows
        else:
            counts.sampled += rows

    hooks = [network.register_forward_hook(count) for network in networks if network is not None]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
