"""The networks of the learned rewards at their published sizes, with random weights: what they cost, without fetching any."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.models.diffusers_folder import quietly
from workbench.models.tiny import clip_tokenizer
from workbench.models.transformers_folder import expect_libraries
from workbench.rewards.clip import CLIP
from workbench.rewards.detectors import Grounder, Segmenter
from workbench.rewards.views import View
from workbench.tasks.geneval_prompts import CLASSES

Look = Callable[[Tensor, Sequence[str]], Any]
"""What a network does with pictures [N, 3, H, W] in [0, 1] and prompts."""

_DETECTORS = View(shortest=800, longest=1333, mode="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def random_network(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Look, int]:
    """One of NETWORKS, and how many parameters it has.

    Raises: ModuleNotFoundError: if transformers is not installed.
    """
    expect_libraries(f"the network {name!r}")
    with quietly(), torch.device(device):
        model, look = NETWORKS[name]()
    model = model.to(dtype).requires_grad_(False).eval()
    return look(model, device), sum(weights.numel() for weights in model.parameters())


def clip_of(vision: tuple[int, int, int], text: tuple[int, int, int], directions: int) -> tuple[Any, Callable[..., Look]]:
    """A CLIP by its towers' widths, layers and heads."""
    from transformers import CLIPConfig, CLIPModel

    towers = [
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
        for width, layers, heads in (vision, text)
    ]
    seen = {**towers[0], "patch_size": 14, "image_size": 224}
    model = CLIPModel(CLIPConfig(vision_config=seen, text_config=towers[1], projection_dim=directions))
    view = View(shortest=224, crop=(224, 224))
    return model, lambda model, device: CLIP(model, clip_tokenizer(), view, device).agreement


def _mask2former() -> tuple[Any, Callable[..., Look]]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=stages
        ),
        id2label=dict(enumerate(CLASSES)),
    )
    view = replace(_DETECTORS, divisor=32)
    return Mask2FormerForUniversalSegmentation(config), lambda model, device: _finding(Segmenter(model, view, "it"))


def _grounding_dino() -> tuple[Any, Callable[..., Look]]:
    from transformers import BertTokenizerFast, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    backbone = SwinConfig(
        **{"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384},
        out_features=["stage2", "stage3", "stage4"],
    )
    words = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "dog": 2000, "bench": 2001}
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone))
    return model, lambda model, device: _finding(Grounder(model, _DETECTORS, BertTokenizerFast(vocab=words)))


def _finding(detect: Segmenter | Grounder) -> Look:
    return lambda images, prompts: detect(images, [("dog", "bench")] * len(prompts), [0.3] * len(prompts))


NETWORKS: dict[str, Callable[[], tuple[Any, Callable[..., Look]]]] = {
    "CLIP ViT-L/14: clip_score, aesthetic": lambda: clip_of((1024, 24, 16), (768, 12, 12), 768),
    "CLIP ViT-H/14: pickscore, hps": lambda: clip_of((1280, 32, 16), (1024, 24, 16), 1024),
    "Mask2Former Swin-S: geneval": _mask2former,
    "Grounding DINO Swin-B: geneval": _grounding_dino,
}
"""By what they are and which rewards they are for."""
