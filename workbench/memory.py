"""How much memory a run takes, part by part, before it is begun; and what to lower where there is too little."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workbench.config import PORTIONS, RunConfig
from workbench.contracts import OutOfMemory

_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch's allocators say that have no error of their own."""


def remedies(config: RunConfig) -> list[tuple[str, Any]]:
    """Settings that take less memory, each with its value, those first that cost least time; none that is as low as it can be."""
    model, compute = config.model, config.compute
    found: list[tuple[str, Any]] = []
    if compute.sample_batch > 1:
        found.append(("compute.sample_batch", compute.sample_batch // 2))
    if compute.train_batch > 1:
        found.append(("compute.train_batch", compute.train_batch // 2))
    if not getattr(model, "gradient_checkpointing", True):
        found.append(("model.gradient_checkpointing", True))
    if not getattr(model, "vae_slicing", True):
        found.append(("model.vae_slicing", True))
    if config.adapter.kind == "full":
        found.append(("adapter.kind", "lora"))
    if getattr(model, "dtype", "bf16") == "fp32" and config.adapter.kind == "lora":
        found.append(("model.dtype", "bf16"))
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    short = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return short or (isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS))


def what_to_lower(config: RunConfig, where: str, error: BaseException) -> str:
    """What ran out of memory, and what takes less of it, as one line for the run's record."""
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
    live = [f"{key}={value}" for key, value in remedies(config) if key in PORTIONS]
    other = [f"{key}={value}" for key, value in remedies(config) if key not in PORTIONS]
    told = f"out of memory in {where} ({cause})"
    if live:
        told += f"; go on with train --resume RUN --set {' or '.join(live)}"
    if other:
        told += f"; {'or' if live else 'take'}, in a new run, {' or '.join(other)}"
    return told if live or other else f"{told}; nothing is left to lower: a larger device, or a smaller model, is needed"


@contextmanager
def memory_explained(config: RunConfig, where: str) -> Iterator[None]:
    """Raises: OutOfMemory: if memory runs out inside; says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(what_to_lower(config, where, error)) from error
