"""What is published of Stable Diffusion 3.5's networks, so that their size is known without their weights."""

from typing import Any

from workbench.models.flux_sizes import DEV

_CLIP = DEV["text_encoder"] | {"_class_name": "CLIPTextModelWithProjection", "projection_dim": 768}

MEDIUM: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae": DEV["vae"] | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP
    | {
        "hidden_size": 1280,
        "projection_dim": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
    },
    "text_encoder_3": DEV["text_encoder_2"],
}
"""Stable Diffusion 3.5 medium, 2.2 billion numbers in its transformer."""
