"""The generator that is being trained, and the reference it is held to: all weights, or low-rank adapters on them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from workbench.contracts import Generator, Model
from workbench.models.lora import attach, check_base, read_lora
from workbench.models.pipeline import DTYPES
from workbench.models.sharding import Sharding, held_back, shard


class Policy:
    """A loaded model whose `parameters` are trained.

    With adapters the reference is the same network with them switched off, or with those of the file that training began from;
    with full weights it is a frozen copy. Either way the switch is global state of the network: one thread owns a policy.

    Args:
        start: a LoRA to begin from, as `lora.read_lora` takes it; empty for adapters that change nothing yet.
        reference: what the policy is held to where it begins from a LoRA: that, or the base without it.
        other_base: begin from it even where it was trained on other weights of the same shape.
        sharding: how the frozen weights are divided among the processes of a run, which then ask the network equally often.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        adapter: Literal["full", "lora"] = "full",
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        precision: Literal["no", "bf16", "fp16"] = "no",
        start: str = "",
        reference: Literal["start", "base"] = "start",
        other_base: bool = False,
        sharding: Sharding | None = None,
    ) -> None:
        lora = read_lora(start, model.component) if start else None  # before the model, which may take minutes
        if lora is not None and not other_base:
            check_base(lora, model)
        with held_back() if sharding else nullcontext():
            self.generator: Generator = model.load(device)
        self.frozen: nn.Module | None = None  # the reference, where it is a network of its own
        network = self.generator.network.eval()  # no dropout: the update must see the network that sampled
        if adapter == "lora":
            network = self.generator.network = attach(network, model, rank, alpha, seed, lora)
        else:
            network.requires_grad_(True)
            self.frozen = deepcopy(network).requires_grad_(False)
        if precision != "no":  # after the copy: a wrapped `forward` is bound to the network that it was taken from
            for module in filter(None, (network, self.frozen)):
                module.forward = torch.autocast(device.type, DTYPES[precision])(module.forward)
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if sharding:
            shard(network, self.parameters.values(), device, sharding)
        else:
            for parameter in self.parameters.values():  # adapters are made beside their layers, which may wait in main memory
                parameter.data = parameter.data.to(device)
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()} if lora is not None else {}
        self._held_to_base = reference == "base"

    def reference(self) -> AbstractContextManager[Generator]:
        """The generator that the policy is held to; flow maps must be bound inside."""
        return self._without_adapters() if self.start and self._held_to_base else self.beginning()

    @contextmanager
    def beginning(self) -> Iterator[Generator]:
        """The generator as it was before training; flow maps must be bound inside."""
        network = self.generator.network
        with torch.no_grad():
            if self.start:
                with self._holding(self.start):
                    yield self.generator
                return
            if self.frozen is None:
                with self._without_adapters():
                    yield self.generator
                return
            self.generator.network = self.frozen
            try:
                yield self.generator
            finally:
                self.generator.network = network

    @contextmanager
    def _without_adapters(self) -> Iterator[Generator]:
        with torch.no_grad(), self.generator.network.disable_adapter():  # type: ignore[operator]
            yield self.generator

    @contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values in place of the trained parameters; no graph may be alive that needs those."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.copy_(own[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Set the trained parameters.

        Args:
            scale: of their difference to the reference: 0 is the reference, 1 what `tensors` say.
        Raises: ValueError: if the tensors are not this policy's, naming the first that differs.
        """
        for name in sorted(self.parameters.keys() ^ tensors.keys()):
            whose = "the checkpoint" if name in tensors else "the policy"
            raise ValueError(
                f"checkpoint and policy do not match: only {whose} has {name!r}; was it made with another model or adapter?"
            )
        for name, parameter in self.parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(
                    f"checkpoint and policy do not match: {name!r} is {list(tensors[name].shape)}, "
                    f"expected {list(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
        if scale == 1.0:
            return
        begun = {} if self._held_to_base else self.start
        before = begun if self.frozen is None else dict(self.frozen.named_parameters())
        for name, parameter in self.parameters.items():
            if name in before:
                parameter.copy_(torch.lerp(before[name].float(), parameter.float(), scale))
            elif "lora_B" in name:  # the adapter's output is linear in it
                parameter.mul_(scale)
