"""A random SANA, and a random SANA-Sprint."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.models.tiny import LETTERS, saved


def tiny_sana(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """A SanaPipeline with random weights in a folder: 4 pixels a cell of its latents. diffusers' own draws multiples of 32.

    Args:
        folder: where; in the user's cache by default, where it is found again.
    Returns: the folder, which is there whole or not at all.
    """
    return saved(partial(_sana, sprint=False), "sana", folder, seed)


def tiny_sana_sprint(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """A SanaSprintPipeline as `tiny_sana` is a SanaPipeline; it is told a guidance scale."""
    return saved(partial(_sana, sprint=True), "sana-sprint", folder, seed)


def _sana(sprint: bool) -> Any:
    from diffusers import (
        AutoencoderDC,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaSprintPipeline,
        SanaTransformer2DModel,
        SCMScheduler,
    )
    from transformers import Gemma2Config, Gemma2Model

    letters = _gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )
    gemma = Gemma2Model(
        Gemma2Config(
            vocab_size=len(letters),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(10)  # so that pictures are what the network says rather than the noise it was given
    return (SanaSprintPipeline if sprint else SanaPipeline)(
        scheduler=SCMScheduler() if sprint else FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=gemma.eval(),
        tokenizer=letters,
        transformer=transformer.eval(),
    )


def _gemma_tokenizer() -> Any:
    """Every letter a token, and the space between words."""
    from transformers import GemmaTokenizer

    known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LETTERS.replace(" ", "▁")]
    return GemmaTokenizer(vocab={token: place for place, token in enumerate(known)}, merges=[], add_bos_token=True)
