"""Training at FLUX's real size with random weights: speed, memory, and how busy the device is."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from workbench.benchmarks.base import wait
from workbench.config import RunConfig, configure
from workbench.events import IterationDone
from workbench.footprint import materialised, without_content
from workbench.learner import Learner
from workbench.memory import GIB, device_memory, memory_plan
from workbench.models.flux import FluxModel
from workbench.models.flux_sizes import DEV, LITE
from workbench.models.lora import attach
from workbench.models.outline import Unread, network, outline
from workbench.models.pipeline import DTYPES, PipelineGenerator
from workbench.train import make_accelerator, train

COMMAND = "python -m workbench bench flux --json"

PEAKS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Multiplications and additions a second in bfloat16, without sparsity, as makers state them, by a part of the device's name."""

TINY = {
    "transformer": DEV["transformer"]
    | {"in_channels": 16, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 16, "num_attention_heads": 2}
    | {"joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": [4, 6, 6]},
    "vae": DEV["vae"]
    | {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    | {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4},
}
"""The same networks so small that every line of the benchmark runs on any machine."""

REAL: dict[str, Any] = {
    "rollout.mode": "all",
    "rollout.steps": 5,  # four that are trained and the last
    "grpo.groups": 1,
    "grpo.group_size": 24,
    "evaluation.images": 8,
    "evaluation.final_images": 8,
    "evaluation.steps": [1],
    "evaluation.sampling_steps": 1,
    "record.groups_shown": 0,
    "guard.collapse": 0,
}
SMALL = REAL | {"model.resolution": 32, "model.max_tokens": 16, "grpo.group_size": 4, "adapter.rank": 4}


Size = Literal["12B", "8B", "tiny"]
SIZES: dict[str, dict[str, dict[str, Any]]] = {"12B": DEV, "8B": LITE, "tiny": TINY}


class RandomFlux(FluxModel):
    """A FLUX of any size with fresh weights; prompts are not read."""

    name: Literal["random_flux"] = "random_flux"  # type: ignore[assignment]
    source: str = ""
    size: Size

    @property
    def published(self) -> Mapping[str, Mapping[str, Any]]:  # type: ignore[override]
        return SIZES[self.size]

    encoders = ()  # type: ignore[assignment]

    def load(self, device: torch.device) -> PipelineGenerator:
        dtype, before = DTYPES[self.dtype], torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            with device:
                transformer, vae = self.made(self.published["transformer"]), network(self.published["vae"])
        finally:
            torch.set_default_dtype(before)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        shapes = self.prompt_shapes(transformer.config)
        return PipelineGenerator(self, transformer, vae, Unread(shapes, dtype, device), device)  # type: ignore[arg-type]


def bench_flux(
    folder: str = "flux_profile",
    iterations: int = 3,
    changes: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Iterations of a LoRA run on the 12 and the 8 billion shape: bfloat16, rank 64, 512 pixels, groups of 24, 4 + 1 steps.

    Without a GPU the figures are of a tiny shape and say nothing of speed; `note` says which command makes the real ones.

    Args:
        folder: where tables and traces of one portion of an update are left.
        changes: to the run's settings.
    """
    real = torch.cuda.is_available()
    sizes: tuple[Size, ...] = ("12B", "8B") if real else ("tiny",)
    told: dict[str, Any] = {"device": torch.cuda.get_device_name() if real else "cpu", "profile": str(Path(folder).absolute())}
    if not real:
        told["note"] = f"the shape is tiny, since there is no GPU here; the real figures are made on one by: {COMMAND}"
    for name in sizes:
        told[name] = _figures(_quickest(_config(name, changes)), iterations, Path(folder) / name)
        if progress is not None:
            progress(f"flux: {name} measured")
    return told


def _config(size: Size, changes: Mapping[str, Any] | None) -> RunConfig:
    config = configure("flux", (SMALL if size == "tiny" else REAL) | dict(changes or {}))
    model = RandomFlux(size=size, **config.model.model_dump(exclude={"name", "source"}))
    return config.model_copy(update={"model": model})


def _quickest(config: RunConfig) -> RunConfig:
    """Without working activations out again, where the GPU has room to keep them."""
    kept = config.model_copy(update={"model": config.model.model_copy(update={"gradient_checkpointing": False})})
    fits = torch.cuda.is_available() and memory_plan(kept, device_memory(torch.device("cuda"))).fits
    return kept if fits else config


def _figures(config: RunConfig, iterations: int, folder: Path) -> dict[str, Any]:
    """Medians over iterations after the first, which warms up."""
    learner = Learner(config, make_accelerator(config))
    cuda = learner.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    done = []
    for event in train(config, learner=learner):
        if isinstance(event, IterationDone):
            done.append(event.metrics)
            if len(done) > iterations:
                break
    medians = {name: statistics.median(each[name] for each in done[1:]) for name in _TIMES}
    plan = memory_plan(config, accelerator=cuda)
    needed = update_flops(config) * len(config.training_steps) * config.grpo.groups * config.grpo.group_size
    rate, stated, reached = needed / medians["update_seconds"], stated_peak(learner.device), matmul_rate(learner.device)
    taken = torch.cuda.max_memory_allocated() if cuda else 0
    _profile(learner, config, folder)
    parameters = sum(parameter.numel() for parameter in learner.policy.generator.network.parameters())
    learner.close()
    return {
        "parameters": parameters,
        "gradient_checkpointing": config.model.gradient_checkpointing,  # type: ignore[union-attr]
        **medians,
        "seconds_per_iteration": sum(medians[name] for name in _TIMES if name != "images_per_second"),
        "update_flops": needed,
        "update_flops_per_second": rate,
        "stated_peak_flops_per_second": stated,
        "matmul_flops_per_second": reached,
        "update_mfu": rate / (stated or reached),
        "peak_memory_gib": taken / GIB,
        "predicted_memory_gib": plan.total / GIB,
        "predicted_over_measured": plan.total / taken if taken else None,
    }


_TIMES = ("images_per_second", "rollout_seconds", "reward_seconds", "update_seconds")


def update_flops(config: RunConfig) -> int:
    """Multiplications and additions of one state in an update: forward and backward, activations worked out only once."""
    generator = outline(config.model.model_copy(update={"gradient_checkpointing": False}))  # type: ignore[arg-type]
    network = generator.network = attach(generator.network, config.model, config.adapter.rank, config.adapter.alpha, 0)
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with without_content(True):
        materialised(network)
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            _loss(generator, config, 1).backward()
    return counter.get_total_flops()


def _attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def stated_peak(device: torch.device) -> float | None:
    """What the maker of a device states; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def matmul_rate(device: torch.device) -> float:
    """Multiplications and additions a second in large products of matrices in bfloat16, the best of some."""
    import time

    side, best = (8192 if device.type == "cuda" else 256), 0.0
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def _loss(generator: Any, config: RunConfig, rows: int) -> Tensor:
    """What stands for the loss of some states: the work is that of any."""
    flow_map = generator.bind(generator.embed(["a prompt"] * rows))
    x = torch.zeros(rows, *generator.latent_shape, device=generator.encoders.device)
    return config.sampler.step(flow_map, x, *config.times[1:3]).mean.square().mean()


def _profile(learner: Learner, config: RunConfig, folder: Path) -> None:
    """Leave a table of operations, and a trace for chrome://tracing, of one portion of an update."""
    activity = torch.profiler.ProfilerActivity
    cuda = learner.device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if cuda else [])]) as profile:
        _loss(learner.policy.generator, config, config.compute.train_batch).backward()
        wait(learner.device)
    learner.optimizer.zero_grad()
    folder.mkdir(parents=True, exist_ok=True)
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    (folder / "operations.txt").write_text(profile.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80))
    profile.export_chrome_trace(str(folder / "trace.json"))
