"""Random pipelines of diffusers, so small that they train on any machine: they try every step of the way, and draw nothing."""

import importlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.models.diffusers_folder import HEAD, TINY, quietly
from workbench.prompt_cache import cache_folder

TOKENS = 64
"""Most tokens of a prompt that the tiny text encoders read; each letter is one."""

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,'\"-"


PIPELINES = {
    "flux": "flux.tiny_flux",
    "flux_meanflow": "flux_meanflow.tiny_flux_meanflow",
    "sana": "sana.tiny_sana",
    "sana_sprint": "sana.tiny_sana_sprint",
    "sd3": "sd3.tiny_sd3",
    "flux2_klein": "flux2.tiny_flux2_klein",
    "flow_match": "flow_match.tiny_z_image",
}
"""Where the random pipeline of each model is made, by the model's name."""


def tiny_pipeline(name: str) -> Path:
    """The folder of the random pipeline of a model, made in the user's cache at its first use.

    Raises: ValueError: if there is none of this name, listing those that there are.
    """
    if name not in PIPELINES:
        raise ValueError(f"model.source = '{TINY}{name}': there is no tiny {name!r}; choose from: {', '.join(PIPELINES)}")
    module, make = PIPELINES[name].split(".")
    folder: Path = getattr(importlib.import_module(f"workbench.models.tiny.{module}"), make)()
    return folder


def saved(make: Callable[[], Any], name: str, folder: Path | str | None, seed: int) -> Path:
    """The folder of a pipeline that `make` draws from the global generator; whole or not at all.

    Args:
        folder: where; in the user's cache by default, under `name`, where it is found again.
    """
    made = Path(folder) if folder else cache_folder() / f"tiny-{name}-{seed}"
    if not (made / HEAD).is_file():
        hidden = made.with_name(f".{made.name}.writing-{secrets.token_hex(4)}")
        try:
            with quietly(), torch.random.fork_rng():
                torch.manual_seed(seed)
                make().save_pretrained(hidden)
            os.replace(hidden, made)
        except OSError:  # somebody was quicker
            if not (made / HEAD).is_file():
                raise
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return made


def autoencoder(shift_factor: float | None, halvings: int = 1) -> Any:
    """One of 4 channels whose cells are 2 ** halvings pixels along a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
        up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
        block_out_channels=(8,) * (halvings + 1),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift_factor,
        scaling_factor=0.4,
    )


def clip_tokenizer() -> Any:
    """Every letter a token, alone or at a word's end."""
    from transformers import CLIPTokenizer

    letters = [letter for letter in LETTERS if letter != " "]
    known = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: place for place, token in enumerate(known)}, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    """Every letter a token, and the space before a word."""
    from transformers import T5TokenizerFast

    known = ["<pad>", "</s>", "<unk>", *LETTERS.replace(" ", "▁")]
    return T5TokenizerFast(vocab=[(token, 0.0 if place < 3 else -2.0) for place, token in enumerate(known)], extra_ids=0)


def chat_tokenizer() -> Any:
    """Every letter a token, and the marks of a chat."""
    from transformers import Qwen2TokenizerFast

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    letters = LETTERS.replace(" ", "Ġ") + "Ċ"  # as byte-level tokens write a space and the end of a line
    made = Qwen2TokenizerFast(
        vocab={token: place for place, token in enumerate([*letters, *marks])}, merges=[], additional_special_tokens=marks[1:]
    )
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|><think>\n\n</think>"
    )
    return made
