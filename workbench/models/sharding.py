"""A network's frozen weights divided among the processes of a run, each of which keeps its share (FSDP2).

What is trained is left whole on every process: adapters are some hundredths of a model, and so whatever follows from them, the
optimizer, averages, checkpoints, is what it is without sharding.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_held_back: ContextVar[bool] = ContextVar("held_back", default=False)


@contextmanager
def held_back() -> Iterator[None]:
    """Networks that are loaded inside stay in main memory, so that they may be larger than a device."""
    token = _held_back.set(True)
    try:
        yield
    finally:
        _held_back.reset(token)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """A network where it works, or in main memory as long as networks are held back."""
    return network if _held_back.get() else network.to(device)


def shard(network: nn.Module, trained: Collection[nn.Parameter], device: torch.device) -> None:
    """Divide all weights but the trained ones among the processes; blocks are moved to the device one after the other.

    Every block gathers its weights just before it works, forward and backward, and lets go of those of others after. So all
    processes have to ask the network equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    whole = set(trained)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(network, mesh=mesh, ignored_params=whole)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a transformer's blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from child
        else:
            yield from _blocks(child)
