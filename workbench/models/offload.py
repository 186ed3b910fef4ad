"""Weights that wait in main memory and are copied to the device where they are used: slower, for devices that are too small."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class StreamedLinear(nn.Linear):
    """A frozen linear layer whose weights stay where they are; forward and backward each copy them in for as long as they last.

    Hooks that move modules would take the weights away between a forward and its backward pass, which needs them again.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _Streamed.apply(input, self.weight, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "StreamedLinear":
        return self  # it stays, wherever the network around it goes


class _Streamed(torch.autograd.Function):
    """x W^T + b with W and b elsewhere; only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return functional.linear(x, _near(weight, x), None if bias is None else _near(bias, x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (gradient @ _near(ctx.weight, gradient).to(gradient.dtype)).to(ctx.dtype), None, None


def stream_linears(network: nn.Module, device: torch.device) -> None:
    """Let the network's linear layers stay in the CPU's memory, from where they are copied quickest; they are not trained."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = StreamedLinear
            module.requires_grad_(False)
            if device.type == "cuda":
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.pin_memory()


def _near(value: Tensor, other: Tensor) -> Tensor:
    return value.to(other.device, non_blocking=True)
