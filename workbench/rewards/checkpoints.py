"""Weights that others keep as PyTorch archives, read without running anything that is in them; CLIP as open_clip names it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.first_line import first_line

_PLAIN = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_NO_WEIGHTS = ("attn_mask",)  # made anew by every network


def read_archive(path: Path, setting: str) -> Mapping[str, Any]:
    """What `torch.save` wrote: tensors and plain containers alone, nothing is executed.

    Raises: ValueError: if the file is damaged or holds anything else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise whatever their first odd byte leads to
        raise ValueError(
            f"{setting}: {path} cannot be read as plain weights ({first_line(error)}); fetch it again, or convert "
            "it to tensors alone"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{setting}: {path} holds a {type(found).__name__} and no weights by name; name another file")
    state = found.get("state_dict", found)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{setting}: {path} holds no weights; name another file")
    return tensors


def clip_of_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIP with a vision transformer, from open_clip's names and shapes to those of transformers' CLIPModel.

    Queries, keys and values are one matrix there and three here; projections are transposed.

    Raises: ValueError: naming a weight that is not known.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _PLAIN:
            found[_PLAIN[name]] = value
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = value.T
        elif matched := _BLOCK.fullmatch(name):
            visual, number, part, kind = matched.groups()
            block = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                for head, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{block}.self_attn.{head}_proj.{kind}"] = third.clone()
            elif part in _IN_BLOCK:
                found[f"{block}.{_IN_BLOCK[part]}.{kind}"] = value
            else:
                raise ValueError(f"no CLIP with a vision transformer has a weight {name!r}; name another file")
        elif name not in _NO_WEIGHTS:
            raise ValueError(f"no CLIP with a vision transformer has a weight {name!r}; name another file")
    return found
