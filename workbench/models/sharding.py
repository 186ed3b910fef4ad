"""A network's frozen weights divided among the processes of a run, each of which keeps its share: FSDP2, or DeepSpeed's ZeRO-3.

What is trained is left whole on every process: adapters are some hundredths of a model, and so whatever follows from them, the
optimizer, averages, checkpoints, is what it is without sharding.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import nn

Sharding = Literal["fsdp2", "deepspeed"]

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


def shard(network: nn.Module, trained: Collection[nn.Parameter], device: torch.device, by: Sharding) -> None:
    """Divide all weights but the trained ones among the processes; they are moved to the device one after the other.

    Every block gathers its weights just before it works, forward and backward, and lets go of those of others after. So all
    processes have to ask the network equally often.

    Raises: ModuleNotFoundError: if the library is not installed, saying how to install it.
    """
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    if by == "deepspeed":
        _by_deepspeed(network, set(trained), device)
    else:
        _by_fsdp(network, set(trained), device)


def _by_fsdp(network: nn.Module, trained: set[nn.Parameter], device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(network, mesh=mesh, ignored_params=trained)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a transformer's blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from child
        else:
            yield from _blocks(child)


def _by_deepspeed(network: nn.Module, trained: set[nn.Parameter], device: torch.device) -> None:
    """ZeRO-3 takes a module as a whole, so it must not see what is trained, neither now nor where that works."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"compute.sharding = 'deepspeed' needs {error.name}, which is not installed: pip install "
            "flow-map-workbench[deepspeed]; or use 'fsdp2', which divides the same and needs nothing more",
            name=error.name,
        ) from error
    deepspeed.logger.setLevel("WARNING")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
    adapters = [(module, name) for module in network.modules() for name, own in module._parameters.items() if own in trained]
    whole = [module._parameters[name] for module, name in adapters]
    for module, name in adapters:
        module._parameters[name] = None
    deepspeed.initialize(model=network, config=zero_config(network))
    for (module, name), parameter in zip(adapters, whole, strict=True):
        module._parameters[name] = parameter
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.clear()


def zero_config(network: nn.Module) -> dict[str, Any]:
    """DeepSpeed's settings for the frozen weights of a network: ZeRO-3, in the numbers that most of them are."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in network.parameters():
        counts[parameter.dtype] += parameter.numel()
    ((dtype, _),) = counts.most_common(1)
    precise = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}.get(dtype, {})
    return {
        "train_micro_batch_size_per_gpu": 1,  # it wants to know, and nothing here depends on it
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        **precise,
    }
