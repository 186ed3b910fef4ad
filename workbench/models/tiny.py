"""Random pipelines of diffusers, so small that they train on any machine: they try every step of the way, and draw nothing."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from workbench.models.diffusers_folder import HEAD, quietly
from workbench.prompt_cache import cache_folder

TOKENS = 64
"""Most tokens of a prompt that the tiny text encoder reads; each letter is one."""

_LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,'\"-"


def tiny_flux(folder: Path | str | None = None, *, guidance: bool = True, seed: int = 0) -> Path:
    """A FluxPipeline with random weights in a folder: 2 pixels a cell of its latents, so sizes are multiples of 4.

    Args:
        folder: where; in the user's cache by default, where it is found again.
        guidance: whether it is told a guidance scale, as FLUX.1-dev is and schnell is not.
    Returns: the folder, which is there whole or not at all.
    """
    made = Path(folder) if folder else cache_folder() / f"tiny-flux-{'dev' if guidance else 'schnell'}-{seed}"
    if not (made / HEAD).is_file():
        hidden = made.with_name(f".{made.name}.writing-{secrets.token_hex(4)}")
        try:
            with quietly():
                _flux(guidance, seed).save_pretrained(hidden)
            os.replace(hidden, made)
        except OSError:  # somebody was quicker
            if not (made / HEAD).is_file():
                raise
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return made


def _flux(guidance: bool, seed: int) -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words, letters = _clip_tokenizer(), _t5_tokenizer()
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
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
            scaling_factor=0.4,
        )
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


def _clip_tokenizer() -> Any:
    """Every letter a token, alone or at a word's end."""
    from transformers import CLIPTokenizer

    letters = [letter for letter in _LETTERS if letter != " "]
    known = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: place for place, token in enumerate(known)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    """Every letter a token, and the space before a word."""
    from transformers import T5TokenizerFast

    known = ["<pad>", "</s>", "<unk>", *_LETTERS.replace(" ", "▁")]
    return T5TokenizerFast(vocab=[(token, 0.0 if place < 3 else -2.0) for place, token in enumerate(known)], extra_ids=0)
