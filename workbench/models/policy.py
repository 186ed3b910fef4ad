"""The generator that is being trained, and the reference it is held to: all weights, or low-rank adapters on them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from workbench.contracts import Generator, Model

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Policy:
    """A loaded model whose `parameters` are trained.

    With adapters the reference is the same network with them switched off; with full weights it is a frozen copy. Either way the
    switch is global state of the network: one thread owns a policy.
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
    ) -> None:
        self.generator: Generator = model.load(device)
        self.frozen: nn.Module | None = None  # the reference, where it is a network of its own
        network = self.generator.network.eval()  # no dropout: the update must see the network that sampled
        if adapter == "lora":
            network = self.generator.network = _with_adapters(network, model, rank, alpha, seed)
        else:
            network.requires_grad_(True)
            self.frozen = deepcopy(network).requires_grad_(False)
        if precision != "no":  # after the copy: a wrapped `forward` is bound to the network that it was taken from
            for module in filter(None, (network, self.frozen)):
                module.forward = torch.autocast(device.type, _DTYPES[precision])(module.forward)
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[Generator]:
        """The generator as it was before training; flow maps must be bound inside."""
        network = self.generator.network
        with torch.no_grad():
            if self.frozen is None:
                with network.disable_adapter():  # type: ignore[operator]
                    yield self.generator
                return
            self.generator.network = self.frozen
            try:
                yield self.generator
            finally:
                self.generator.network = network

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
        reference = dict(self.frozen.named_parameters()) if self.frozen is not None else {}
        for name, parameter in self.parameters.items():
            if name in reference:
                parameter.copy_(torch.lerp(reference[name].float(), parameter.float(), scale))
            elif "lora_B" in name:  # the adapter's output is linear in it
                parameter.mul_(scale)


def _with_adapters(network: nn.Module, model: Model, rank: int, alpha: float, seed: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    network.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        targets = list(model.adapter_targets)
        return get_peft_model(network, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets))
