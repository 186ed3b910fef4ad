"""A random FLUX.2 Klein."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.models.tiny import chat_tokenizer, saved


def tiny_flux2_klein(folder: Path | str | None = None, *, distilled: bool = True, seed: int = 0) -> Path:
    """A Flux2KleinPipeline with random weights in a folder: 2 pixels a cell of its autoencoder, so sizes are multiples of 4.

    Args:
        folder: where; in the user's cache by default, where it is found again.
        distilled: whether it says of itself that it takes no guidance, as Klein does and its base does not.
    Returns: the folder, which is there whole or not at all.
    """
    return saved(partial(_klein, distilled), f"flux2-klein{'' if distilled else '-base'}", folder, seed)


def _klein(distilled: bool) -> Any:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = chat_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,  # of three layers of the encoder
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=27,  # the pipeline looks into the 27th
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    with torch.no_grad():
        for modulation in (transformer.double_stream_modulation_img, transformer.single_stream_modulation):
            modulation.linear.weight.mul_(8)  # so that blocks say much of what comes out, and adapters in them can change it
        transformer.proj_out.weight.mul_(10)  # so that pictures are what the network says rather than the noise it was given
        vae.bn.running_mean.normal_(std=0.3)
        vae.bn.running_var.uniform_(2.0, 6.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=words,
        transformer=transformer.eval(),
        is_distilled=distilled,
    )
