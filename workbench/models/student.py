"""A two-time network that learns beside the map that it began as: its teacher, in the same memory where adapters allow it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from workbench.contracts import Generator, Model
from workbench.models.lora import attach

SECOND = "delta_embedder"
"""The module that a distillation trains with all its weights, whatever it does to the others."""


class Student:
    """A loaded two-time map whose `parameters` are trained: low-rank adapters and the second timestep embedder, or all weights.

    With adapters the teacher is the same network without them and with the embedder as it was; one thread owns both.

    Args:
        precision: of the products in the network.
    Raises: ValueError: if all weights are to be trained and the model holds them too coarsely for small steps.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        adapter: Literal["lora", "full"],
        rank: int,
        alpha: float,
        seed: int,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        dtype = getattr(model, "dtype", "fp32")
        if adapter == "full" and dtype != "fp32":
            raise ValueError(
                f"adapter = 'full' trains weights that dtype = {dtype!r} holds too coarsely for small steps; use dtype = 'fp32', "
                "or adapter = 'lora'"
            )
        self.device = device
        self.generator: Generator = model.load(device)
        network = self.generator.network.eval()  # no dropout
        self._frozen: nn.Module | None = None
        if adapter == "lora":
            self.generator.network = attach(network, model, rank, alpha, seed, whole=(SECOND,))
        else:
            self._frozen = deepcopy(network).requires_grad_(False)
            network.requires_grad_(True)
        if precision == "bfloat16":
            for module in filter(None, (self.generator.network, self._frozen)):
                module.forward = torch.autocast(device.type, torch.bfloat16)(module.forward)
        self.parameters: dict[str, Tensor] = {
            name: parameter for name, parameter in self.generator.network.named_parameters() if parameter.requires_grad
        }

    @contextmanager
    def teacher(self) -> Iterator[Generator]:
        """The map as it was before; maps must be bound inside, and asked without a gradient."""
        network = self.generator.network
        if self._frozen is None:
            with network.disable_adapter():  # type: ignore[operator]
                yield self.generator
            return
        self.generator.network = self._frozen
        try:
            yield self.generator
        finally:
            self.generator.network = network
