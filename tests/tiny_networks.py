"""Random networks of transformers on disk, as rewards want them, so small that each looks at a picture in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.bert import BertConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from workbench.models.diffusers_folder import quietly
from workbench.models.tiny import clip_tokenizer
from workbench.tasks.geneval_prompts import CLASSES

SIDE = 28
"""Pixels that the tiny CLIP sees."""

WIDTH = 12
"""Numbers of its directions."""


def clip_config(act: str = "quick_gelu") -> CLIPConfig:
    words = clip_tokenizer()
    return CLIPConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(words),
            "max_position_embeddings": 77,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
            "hidden_act": act,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": 7,
            "hidden_act": act,
        },
        projection_dim=WIDTH,
    )


def tiny_clip(folder: Path, act: str = "quick_gelu", seed: int = 0) -> Path:
    """A CLIP whose weights are so large that different pictures lie in different directions."""
    config = clip_config(act)
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for weights in model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.3)
        model.save_pretrained(folder)
        clip_tokenizer().save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def _swin(stages: int) -> SwinConfig:
    return SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=[f"stage{number}" for number in range(1, 5)][-stages:],
    )


def tiny_mask2former(folder: Path, labels: tuple[str, ...] = CLASSES, edge: int = 64) -> Path:
    """A Mask2Former that sees every picture with a shorter edge of `edge` pixels."""
    config = Mask2FormerConfig(
        backbone_config=_swin(4),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
        model.class_predictor.weight.data.mul_(40)  # so that its queries are sure of something
        model.save_pretrained(folder)
        Mask2FormerImageProcessorPil(size={"shortest_edge": edge, "longest_edge": 2 * edge}).save_pretrained(folder)
    return folder


def tiny_grounding_dino(folder: Path, edge: int = 64) -> Path:
    """A Grounding DINO that reads the words of GenEval's classes, each one token."""
    words = sorted({word for kind in CLASSES for word in kind.split()})
    known = [f"[unused{place}]" for place in range(1100)]
    for place, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}.items():
        known[place] = token  # where BERT has them, which the network counts on
    known += words
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(known) + "\n")
    config = GroundingDinoConfig(
        backbone_config=_swin(3),
        text_config=BertConfig(
            vocab_size=len(known),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=256,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        use_timm_backbone=False,
    )
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(0)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        GroundingDinoImageProcessorPil(size={"shortest_edge": edge, "longest_edge": 2 * edge}).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)
