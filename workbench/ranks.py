"""The processes that train one policy together: how they meet, what they tell each other, and that none goes on alone."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from errno import EADDRINUSE
from functools import cache
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.contracts import Diverged, RewardFailed
from workbench.first_line import first_line
from workbench.out_of_memory import out_of_memory

if TYPE_CHECKING:
    from torch.distributed import Store

WAIT = "WORKBENCH_WAIT"
"""In the environment: the seconds in which all processes have to come up."""

_WAIT_SECONDS = 600.0
_PATIENCE = timedelta(days=30)  # while the first process is paused the others wait; whoever began them sees one that dies


class OneOutOfMemory(torch.OutOfMemoryError):
    """One of the processes has run out of memory, and all of them know."""


_SHARED = {kind.__name__: kind for kind in (FloatingPointError, Diverged, RewardFailed, OneOutOfMemory)}


class Ranks:
    """This process among those of a run. Every method but `share` and `own` has to be called by all of them alike.

    Args:
        index: of this process; the first keeps the record.
        device: where the numbers are that `gather` takes, if not on the CPU.
        divided: whether networks ask the other processes with every pass, for their share of the weights.
    """

    def __init__(self, index: int = 0, count: int = 1, device: torch.device | str = "cpu", *, divided: bool = False) -> None:
        self.index, self.count, self._divided = index, count, divided
        self._wire = torch.device("cpu") if count == 1 or _speaks("gloo") else torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this process keeps the record."""
        return self.index == 0

    def gather(self, values: Tensor) -> Tensor:
        """The values [n, ...] of all processes, in their order, on the CPU where there are several; n is the same for all."""
        if self.count == 1:
            return values
        values = values.detach().to(self._wire).contiguous()
        everyones = [torch.empty_like(values) for _ in range(self.count)]
        torch.distributed.all_gather(everyones, values)
        return torch.cat(everyones).cpu()

    def own(self, values: Tensor) -> Tensor:
        """This process's part of what `gather` gave."""
        size = len(values) // self.count
        return values[size * self.index : size * (self.index + 1)]

    def share(self, count: int) -> list[int]:
        """Which of `count` things this process does. As many for each, so that none waits: the last may be done twice."""
        size = -(-count // self.count)
        return [min(place, count - 1) for place in range(size * self.index, size * (self.index + 1))]

    def exchange(self, value: Any) -> list[Any]:
        """What each of them says, in their order; anything that JSON can say."""
        if self.count == 1:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.gather(torch.tensor([len(said)])).tolist()
        heard = self.gather(torch.nn.functional.pad(said, (0, max(sizes) - len(said)))).view(self.count, -1)
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(heard, sizes, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does by itself: where it fails for one, it fails for all.

        Inside, nothing that asks the others may follow what can fail for one of them alone, or they would wait for that one. A
        network whose weights are divided asks them with every pass; so where memory runs out in one of these, the others are
        not told.

        Raises: FloatingPointError, RewardFailed: this process's own, or else another's in its words; OneOutOfMemory.
        """
        failure, told = None, None
        try:
            yield
        except Exception as error:
            failure, told = error, self._told(error)
            if told is None:
                raise
        said = self.exchange(told)
        if failure is not None and out_of_memory(failure):
            clear_frames(failure.__traceback__)  # they hold what it had worked out
        elif failure is not None:
            raise failure
        for index, heard in enumerate(said):
            if heard is not None:
                raise _SHARED.get(heard[0], FloatingPointError)(f"process {index} of {self.count}: {heard[1]}")

    def _told(self, error: Exception) -> tuple[str, str] | None:
        """What the others hear of an error; None where it is no concern of theirs."""
        if out_of_memory(error):
            alone = self.count == 1 or self._divided
            return None if alone else (OneOutOfMemory.__name__, first_line(error))
        return (type(error).__name__, str(error)) if isinstance(error, FloatingPointError | RewardFailed) else None

    @torch.no_grad()
    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their means over all processes, some millions of numbers at a time."""
        if self.count == 1:
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.count
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])


def _buckets(tensors: Sequence[Tensor], most: int = 2**26) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type, `most` numbers together or a single larger one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(each.numel() for each in bucket) + tensor.numel() > most
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def here() -> tuple[int, int]:
    """The index of this process among those that were begun together, and how many there are: 0 and 1 for one alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@cache
def meet() -> "Store":
    """What the processes that were begun together can leave words in for each other; the first one keeps it.

    Raises: RuntimeError: if not all came up in time, or the port is taken.
    """
    seconds, (index, count) = float(os.environ.get(WAIT, _WAIT_SECONDS)), here()
    where = f"port {os.environ.get('MASTER_PORT')} of {os.environ.get('MASTER_ADDR')}"
    try:
        store = _kept_here() or next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=seconds)))[0]
        store.set(keys()[index], "here")
        store.wait(keys(), timedelta(seconds=seconds))
    except (OSError, RuntimeError) as error:
        if "EADDRINUSE" in str(error) or getattr(error, "errno", 0) == EADDRINUSE:
            raise RuntimeError(f"{where} is taken by another program; choose another one with --port") from error
        raise RuntimeError(
            f"the {count} processes that were asked for did not all come up at {where} within {seconds:g} s; begin as many on "
            f"every node, each with the same address and port ({first_line(error)})"
        ) from error
    return store


def _kept_here() -> "Store | None":
    """The words of processes of this machine alone, which no other machine can reach; None where another one keeps them.

    Those of several machines can be read and changed by whoever reaches the port, so it is for a network of their own.
    """
    index, address = here()[0], os.environ.get("MASTER_ADDR")
    if index or address != "127.0.0.1" or "TORCHELASTIC_USE_AGENT_STORE" in os.environ:
        return None
    port = socket.create_server((address, int(os.environ["MASTER_PORT"])))
    number = port.getsockname()[1]
    return torch.distributed.TCPStore(address, number, is_master=True, wait_for_workers=False, master_listen_fd=port.detach())


def keys() -> list[str]:
    """Where each process says in the common words that it is here, and later that it lives."""
    return [f"process/{index}" for index in range(here()[1])]


def listening() -> "Store":
    """The words that `meet` found, by another way to them, which another thread may use."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_WAIT_SECONDS))


def join(device: str) -> None:
    """Make the processes that were begun together one group; nothing to do for one alone.

    Args:
        device: as `compute.device`.
    Raises: ValueError: if there is no GPU for this process; RuntimeError: as `meet`.
    """
    index, count = here()
    if count == 1 or torch.distributed.is_initialized():
        return
    backend = "cpu:gloo"  # for words and small numbers in any case: a GPU that waits for them would turn idle rounds
    if device in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {index} of {count} has no GPU of its own: this machine shows {torch.cuda.device_count()}; begin fewer "
                "processes here, or let CUDA_VISIBLE_DEVICES name more"
            )
        torch.cuda.set_device(local)
        backend += ",cuda:nccl"
    store = torch.distributed.PrefixStore("group", meet())
    torch.distributed.init_process_group(backend, store=store, rank=index, world_size=count, timeout=_PATIENCE)


def _speaks(backend: str) -> bool:
    return torch.distributed.is_initialized() and backend in str(torch.distributed.get_backend_config())
