"""What the learned rewards cost at their published sizes: milliseconds for a picture, and memory; weights are random."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.benchmarks.base import wait
from workbench.models.pipeline import DTYPES
from workbench.rewards.sizes import NETWORKS, random_network


def bench_scorers(
    images: int = 0,
    side: int = 512,
    networks: Sequence[str] = tuple(NETWORKS),
    dtypes: Sequence[str] = ("fp32", "bf16"),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Every network on pictures of `side` pixels, 8 at a time, its preparation of pictures included.

    Args:
        images: how many; 0 takes 64 on an accelerator and 2 on a CPU, where each takes seconds.
    Returns: for each its `parameters`, and by dtype `milliseconds_per_image` and, on CUDA, `gib` at its peak.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = images or (64 if device.type == "cuda" else 2)
    figures: dict[str, Any] = {"device": _named(device), "images": images, "side": side}
    pictures = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    for name in networks:
        figures[name] = {}
        for dtype in dtypes:
            figures[name][dtype] = _measured(name, pictures, DTYPES[dtype], figures[name])
            if progress is not None:
                progress(f"scorers: {name} in {dtype} done")
    return figures


@torch.no_grad()
def _measured(name: str, pictures: torch.Tensor, dtype: torch.dtype, about: dict[str, Any]) -> dict[str, float]:
    device, portions = pictures.device, pictures.split(8)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    look, about["parameters"] = random_network(name, device, dtype)
    prompts = ["a photo of a dog left of a bench"] * 8
    look(portions[0][:1], prompts[:1])  # what is made at first use is not to be timed
    wait(device)
    began = time.perf_counter()
    for portion in portions:
        look(portion, prompts[: len(portion)])
    wait(device)
    told = {"milliseconds_per_image": 1000 * (time.perf_counter() - began) / len(pictures)}
    if device.type == "cuda":
        told["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return told


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
