"""A random FLUX.1."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.models.tiny import autoencoder, clip_tokenizer, saved, t5_tokenizer


def tiny_flux(folder: Path | str | None = None, *, guidance: bool = True, seed: int = 0) -> Path:
    """A FluxPipeline with random weights in a folder: 2 pixels a cell of its latents, so sizes are multiples of 4.

    Args:
        folder: where; in the user's cache by default, where it is found again.
        guidance: whether it is told a guidance scale, as FLUX.1-dev is and schnell is not.
    Returns: the folder, which is there whole or not at all.
    """
    return saved(partial(random_flux, guidance), f"flux-{'dev' if guidance else 'schnell'}", folder, seed)


def random_flux(guidance: bool) -> Any:
    """The pipeline in memory, its weights drawn from the global generator."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    words, letters = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    vae = autoencoder(shift_factor=0.1)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(letters),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(10)  # so that pictures are what the network says rather than the noise it was given
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=words,
        text_encoder_2=t5.eval(),
        tokenizer_2=letters,
        transformer=transformer.eval(),
    )
