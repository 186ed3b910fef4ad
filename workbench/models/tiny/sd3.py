"""A random Stable Diffusion 3.5."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.models.tiny import autoencoder, clip_tokenizer, saved, t5_tokenizer


def tiny_sd3(folder: Path | str | None = None, *, t5: bool = True, seed: int = 0) -> Path:
    """A StableDiffusion3Pipeline with random weights in a folder: 2 pixels a cell of its latents, so sizes are multiples of 4.

    Args:
        folder: where; in the user's cache by default, where it is found again.
        t5: whether it comes with the third text encoder, as not every checkpoint does.
    Returns: the folder, which is there whole or not at all.
    """
    return saved(partial(_sd3, t5), "sd3" if t5 else "sd3-clip", folder, seed)


def _sd3(with_t5: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    words, letters = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = autoencoder(shift_factor=0.06)
    clip_l, clip_g = (
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                projection_dim=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        for _ in range(2)
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(letters),
            d_model=40,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(10)  # so that pictures are what the network says rather than the noise it was given
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=clip_l.eval(),
        tokenizer=words,
        text_encoder_2=clip_g.eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5.eval() if with_t5 else None,
        tokenizer_3=letters if with_t5 else None,
        transformer=transformer.eval(),
    )
