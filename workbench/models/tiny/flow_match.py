"""Random pipelines of families that have no adapter of their own: AuraFlow, Z-Image, Lumina 2 and Qwen-Image."""

from pathlib import Path
from typing import Any

import torch

from workbench.models.tiny import autoencoder, chat_tokenizer, saved, t5_tokenizer


def tiny_auraflow(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """An AuraFlowPipeline with random weights in a folder, in the user's cache by default; sizes are multiples of 8."""
    return saved(_auraflow, "auraflow", folder, seed)


def tiny_z_image(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """A ZImagePipeline with random weights in a folder, in the user's cache by default; sizes are multiples of 4."""
    return saved(_z_image, "z-image", folder, seed)


def tiny_lumina2(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """A Lumina2Pipeline with random weights in a folder, in the user's cache by default; sizes are multiples of 16."""
    return saved(_lumina2, "lumina2", folder, seed)


def tiny_qwen_image(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """A QwenImagePipeline with random weights in a folder, in the user's cache by default; sizes are multiples of 4."""
    return saved(_qwen_image, "qwen-image", folder, seed)


def _auraflow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    letters = t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    encoder = UMT5EncoderModel(
        UMT5Config(
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
        for block in (*transformer.joint_transformer_blocks, *transformer.single_transformer_blocks):
            block.norm1.linear.weight.mul_(12)  # so that blocks say much of what comes out, and adapters in them can change it
        transformer.proj_out.weight.mul_(10)  # so that pictures are what the network says rather than the noise it was given
    return AuraFlowPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=autoencoder(shift_factor=None).eval(),
        text_encoder=encoder.eval(),
        tokenizer=letters,
        transformer=transformer.eval(),
    )


def _z_image() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    words = chat_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    )
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    with torch.no_grad():
        for block in (*transformer.noise_refiner, *transformer.layers):
            block.adaLN_modulation[0].weight.mul_(12)
        for final in transformer.all_final_layer.values():
            final.linear.weight.normal_(std=1.0)  # so that pictures are what the network says, and not the noise it was given
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_(std=0.02)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1).eval(),
        text_encoder=encoder.eval(),
        tokenizer=words,
        transformer=transformer.eval(),
    )


def _lumina2() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    words = chat_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(512, 32, 32),
        cap_feat_dim=16,
    )
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    with torch.no_grad():
        transformer.norm_out.linear_2.weight.mul_(10)
    return Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1, halvings=3).eval(),  # it takes for granted that a cell has 8 pixels
        text_encoder=encoder.eval(),
        tokenizer=words,
        transformer=transformer.eval(),
    )


def _qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2Config, Qwen2Model

    words = chat_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[2.0, 1.5, 1.0, 2.5],
    )
    encoder = Qwen2Model(
        Qwen2Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(10)
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=words,
        transformer=transformer.eval(),
    )
