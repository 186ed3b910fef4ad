"""Where memory runs out in a run: how that is noticed, and what is said of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.config import PORTIONS, RunConfig
from workbench.contracts import OutOfMemory
from workbench.first_line import first_line
from workbench.memory import remedies

_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch's allocators say that have no error of their own."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    short = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return short or (isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS))


def what_to_lower(config: RunConfig, where: str, error: BaseException) -> str:
    """What ran out of memory, and what takes less of it, as one line for the run's record."""
    live = [f"{key}={value}" for key, value in remedies(config) if key in PORTIONS]
    other = [f"{key}={value}" for key, value in remedies(config) if key not in PORTIONS]
    told = f"out of memory in {where} ({first_line(error)})"
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
