"""A frozen base in 8 or 4 bits, through bitsandbytes; what is trained on it stays in float32."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

Quantize = Literal["no", "int8", "nf4"]

BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight; in nf4 each 64 of them share a float32 scale."""


def check_library(kind: Quantize) -> None:
    """Raises: ModuleNotFoundError: if bitsandbytes is wanted and not installed, saying how to install it."""
    if kind != "no" and find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            f"model.quantize = {kind!r} needs bitsandbytes, which is not installed: pip install flow-map-workbench[quantized], "
            "or take model.quantize = 'no'",
            name="bitsandbytes",
        )


def quantize(network: nn.Module, kind: Quantize, dtype: torch.dtype) -> None:
    """Put quantised layers in the place of the linear ones in a network's blocks; their numbers follow when it is moved.

    What comes before and after the blocks is small and stays as it is.

    Args:
        dtype: that products are worked out in.
    Source: LLM.int8 (arXiv:2208.07339); NF4 of QLoRA (arXiv:2305.14314).
    """
    for parent in _inside_blocks(network):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, _layer(layer, kind, dtype))


def quantised_weights(network: nn.Module) -> int:
    """How many numbers `quantize` would take."""
    layers = (layer for parent in _inside_blocks(network) for layer in parent.children() if type(layer) is nn.Linear)
    return sum(layer.weight.numel() for layer in layers)


def _inside_blocks(network: nn.Module) -> list[nn.Module]:
    found = [part for blocks in network.modules() if isinstance(blocks, nn.ModuleList) for part in blocks.modules()]
    return list(dict.fromkeys(found))  # lists in blocks of a list would come twice


def _layer(layer: nn.Linear, kind: Quantize, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes

    made: Any
    if kind == "nf4":
        options = {"compute_dtype": dtype, "quant_type": "nf4"}
        made = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, **options, device="meta")
        made.support_avx512bf16_for_cpu = False  # a layout that rounds otherwise and has no gradient
        made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
        )
        made.weight = bitsandbytes.nn.Int8Params(layer.weight.data.half(), requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made
