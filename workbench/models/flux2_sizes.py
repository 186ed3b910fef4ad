"""What is published of FLUX.2 Klein's networks, so that their size is known without their weights."""

from typing import Any

KLEIN_4B: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "Flux2Transformer2DModel",
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": False,
    },
    "vae": {
        "_class_name": "AutoencoderKLFlux2",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 32,
        "norm_num_groups": 32,
    },
    "text_encoder": {
        "_class_name": "Qwen3ForCausalLM",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""FLUX.2 Klein with 4 billion numbers in its transformer, and as many in the language model that reads its prompts."""
