"""CLIP as the rewards use it: pictures and prompts as directions in one space."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.models.diffusers_folder import loading, read_settings
from workbench.models.transformers_folder import HEAD, transformers_folder
from workbench.newest import newest
from workbench.rewards.views import View, read_view

KEPT = 8192
"""Most prompts whose directions stay in memory."""


class CLIP:
    """A CLIP of transformers with its tokenizer and its view of pictures. Needs no torchvision.

    A prompt is read once and by itself, so that its direction is bit by bit the same whichever prompts come with it, also in a
    run that goes on from a checkpoint. Of a long one only the beginning counts, 77 tokens in all published models.

    Args:
        model: a `CLIPModel`.
        tokenizer: its tokenizer.
        dtype: what the network computes in; as it is where None. Its `scale` is read before, since rounded it would be another.
    """

    def __init__(self, model: Any, tokenizer: Any, view: View, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.scale = float(model.logit_scale.detach().float().exp())
        self.model = model.to(device, dtype).requires_grad_(False).eval()
        self.tokenizer, self.view, self.device = tokenizer, view, device
        self._directions: OrderedDict[str, Tensor] = OrderedDict()

    def images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> directions [N, D] of length 1, float32."""
        return self.seen(self.view(images))

    def seen(self, pixels: Tensor) -> Tensor:
        """Pictures that are already as the network wants them, [N, 3, h, w] -> directions [N, D] of length 1, float32."""
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.dtype)).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Directions [N, D] of length 1, float32."""
        found = {text: newest(self._directions, text, KEPT) for text in texts if text in self._directions}
        fresh = [text for text in dict.fromkeys(texts) if text not in found]
        for text in fresh:
            found[text] = self._directions[text] = self._read(text)
            newest(self._directions, text, KEPT)
        return torch.stack([found[text] for text in texts])

    def agreement(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each picture and its prompt, [N]."""
        return (self.images(images) * self.texts(prompts)).sum(-1)

    def _read(self, text: str) -> Tensor:
        """[D] of length 1, float32."""
        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=most, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return functional.normalize(self.model.text_projection(pooled).float(), dim=-1)[0]


def load_clip(
    source: str, device: torch.device, *, setting: str, dtype: torch.dtype, processor: str = "", offline: bool = False
) -> CLIP:
    """A CLIP from a folder or the hub.

    Args:
        setting: the key that names the source in messages; that of the processor stands beside it.
        processor: folder or id with the tokenizer and the view, where it is not the network's own.
    Raises: ValueError: if it is missing, gated, damaged or no CLIP; says what to do.
    """
    folder = transformers_folder(source, setting, offline=offline)
    beside = f"{setting.rpartition('.')[0]}.processor"
    own = transformers_folder(processor, beside, weights=False, offline=offline) if processor else folder
    check_is(folder, "clip", setting)
    from transformers import CLIPModel

    with loading(folder):
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return CLIP(model, read_tokenizer(own), read_view(own), device, dtype)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises: ValueError: if there is none."""
    from transformers import AutoTokenizer

    with loading(folder):
        return AutoTokenizer.from_pretrained(folder)


def check_is(folder: Path, kind: str, setting: str) -> None:
    """Raise ValueError where a folder holds another kind of network, by transformers' own name for it."""
    found = read_settings(folder / HEAD, f"{folder} has no {HEAD}").get("model_type")
    if found != kind:
        raise ValueError(f"{folder} holds a network of the kind {found!r}, and {setting} wants a {kind!r}; name another folder")
