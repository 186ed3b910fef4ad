"""How a FLUX checkpoint is distilled into a two-time map."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from workbench.captioned import captioned
from workbench.models.diffusers_folder import fingerprint, pipeline_folder
from workbench.models.flux import FluxModel
from workbench.models.flux_meanflow import FluxMeanFlowModel, is_two_time
from workbench.models.student import Student
from workbench.prompt_cache import cache_folder
from workbench.settings import Settings
from workbench.tasks.prompts import PromptsTask
from workbench.two_time import SecondTime, make_two_time


class DistillationRecipe(Settings):
    """How a two-time map is made of a FLUX checkpoint. Lengths are in optimizer steps, so that a seed means one result.

    Source: MeanFlow (arXiv:2505.13447), distilled from the checkpoint's own velocity (arXiv:2512.13006).
    """

    name: Literal["flux_meanflow"] = "flux_meanflow"
    title: str = Field("", max_length=120, description="name shown on the page; by default what is made")
    seed: int = Field(0, ge=0, description="every random number follows from it")

    source: str = Field(
        "black-forest-labs/FLUX.1-dev",
        description="folder of a FluxPipeline, or its id on the hub; a two-time map there is distilled further",
    )
    offline: bool = Field(False, description="take only what is on this machine, never ask the hub")
    second_time: SecondTime = Field(
        "interval", description="what the second timestep embedder reads. interval: t - s, added; target: s, mixed (AnyFlow)"
    )
    gate: float = Field(0.25, gt=0, lt=1, description="share of the embedder of the target in the mixture")
    scale: float = Field(
        1.0, gt=0, le=1000, description="what an interval of 1 is to its embedder's sinusoids; with large ones the loss explodes"
    )
    weights: str = Field(
        "", description="weights of T2I-Distill as published (.pt or safetensors), in place of the checkpoint's own"
    )

    pictures: str = Field("", description="folder of pictures, each with a .txt beside it, or a JSONL of `file_name` and `text`")
    prompts: str = Field("", description="file of prompts that the teacher draws; those of the pictures, or `packaged`, without")
    packaged: Literal["none", "general", "text"] = Field(
        "general", description="list of prompts that comes with the workbench, where no others are given; none: a dozen examples"
    )
    samples: int = Field(512, ge=0, description="pictures that the teacher draws ahead, as data; 0 takes only `pictures`")
    teacher_steps: int = Field(28, ge=1, le=200, description="Euler steps of a picture that the teacher draws")

    resolution: int = Field(512, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 16")
    guidance: float = Field(3.5, ge=0, le=30, description="guidance that teacher and student are told")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of a prompt that are read")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="numbers of the base; what is trained is float32")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the products in the network")
    gradient_checkpointing: bool = Field(True, description="work activations out again in the backward pass, for less memory")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes an accelerator where there is one")

    adapter: Literal["lora", "full"] = Field("lora", description="lora: adapters and the second embedder; full: every weight")
    rank: int = Field(64, ge=1, le=512, description="rank of the adapters")
    alpha: float = Field(64.0, gt=0, description="scale of the adapters, applied as alpha / rank")
    steps: int = Field(5000, ge=0, description="optimizer steps; 0 makes the map without distilling it")
    batch: int = Field(16, ge=1, description="pictures per step")
    portion: int = Field(4, ge=1, description="pictures per pass of the network")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="AdamW's, after `warmup` steps and before a linear decline")
    warmup: int = Field(100, ge=0, description="steps over which the learning rate rises")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are what is written")

    same_time: float = Field(0.75, ge=0, le=1, description="share of the pictures with s = t, where the target is the velocity")
    time_mean: float = Field(-0.4, description="mean of the logit of a time; below 0 favours data")
    time_std: float = Field(1.0, gt=0, description="standard deviation of the logit of a time")
    power: float = Field(1.0, ge=0, le=4, description="of the weight 1 / (loss + 0.01)^power; 0 weighs all alike")
    derivative: Literal["jvp", "difference"] = Field(
        "jvp", description="du/dt by forward differentiation, exact; or by a difference of two passes, which takes any attention"
    )
    difference: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="half the step in time of that difference; 0 takes 0.005, and with coarser numbers than float32, whose "
        "rounding a short step magnifies, 0.05",
    )

    shift: float = Field(1.9, ge=1, le=12, description="shift of the time grids of samples toward noise")
    report_every: int = Field(10, ge=1, description="steps between reported losses")
    sample_every: int = Field(500, ge=1, description="steps between sample sheets")
    evaluate_every: int = Field(
        1000, ge=1, description="steps between evaluations: how far images of few steps are from the teacher's of many"
    )
    evaluation_images: int = Field(32, ge=2, description="images of an evaluation, of held-out prompts")
    evaluation_steps: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="sampling steps that are evaluated")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def reach(self) -> float:
        """Half the step in time of a difference."""
        exact = self.dtype == "fp32" and self.precision == "float32"
        return self.difference or (0.005 if exact else 0.05)

    @property
    def task(self) -> PromptsTask:
        """The prompts that the teacher draws and that an evaluation is of."""
        if self.prompts or not self.pictures:
            return PromptsTask(file=self.prompts, packaged=self.packaged)
        return PromptsTask(lines=tuple(each.caption for each in captioned(self.pictures)))

    @property
    def teacher(self) -> FluxModel:
        """The checkpoint that is distilled."""
        return FluxModel(source=self.source, offline=self.offline)

    def model(self, folder: Path) -> FluxMeanFlowModel:
        """The map in a folder, set as this recipe wants it."""
        return FluxMeanFlowModel(
            source=str(folder),
            offline=self.offline,
            resolution=self.resolution,
            guidance=self.guidance,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def student(self, folder: Path, device: torch.device) -> Student:
        """The map in a folder, ready to learn."""
        return Student(
            self.model(folder),
            device,
            adapter=self.adapter,
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            precision=self.precision,
        )

    def beginning(self) -> Path:
        """The folder of the two-time map that is distilled: made once, in the cache, where the source is none itself.

        Raises: ValueError: if the source is missing, gated, damaged, or no FLUX.
        """
        usual = self.teacher
        folder = pipeline_folder(self.source, usual.pipeline, usual.parts, offline=self.offline)
        if is_two_time(folder):
            if self.weights:
                raise ValueError(f"{folder} is a two-time map already, so `weights` have no place in it; leave them out")
            return folder
        told = [fingerprint(folder, usual.parts), self.second_time, self.gate, self.scale, *identity(self.weights)]
        made = cache_folder() / "two-time" / digest(told)
        if not made.is_dir():
            kind: dict[str, Any] = {"second_time": self.second_time, "gate": self.gate, "scale": self.scale}
            make_two_time(folder, made, weights=self.weights, name=self.source, **kind)
        return made


def identity(path: str) -> list[object]:
    """What tells a file from what it was or will be; nothing of no file. Raises: ValueError: if it is not there."""
    if not path:
        return []
    file = Path(path).expanduser()
    try:
        about = file.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def digest(told: Sequence[object]) -> str:
    """A name in the cache for what is made of all this."""
    return hashlib.sha256(repr(list(told)).encode()).hexdigest()[:24]
