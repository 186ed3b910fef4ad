"""How many bytes passes through networks take, found by making them with tensors that have a shape and no content.

No memory is taken and nothing is loaded, so that it can be asked of any size on any machine. It knows nothing of runs.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_PRECISE = {torch.nn.functional.layer_norm, torch.nn.functional.group_norm, torch.nn.functional.rms_norm}
"""What autocast works out in float32 on an accelerator, and not on the CPU."""


class Live(TorchDispatchMode):
    """Bytes of the tensors that were made while it is entered and are still alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._known:
                self._known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage._cdata)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


class _AsOnAccelerators(TorchFunctionMode):
    """Normalisation under autocast in float32, as accelerators do it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _PRECISE and torch.is_autocast_enabled("cpu"):
            args, kwargs = pytree.tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Pass:
    """Bytes of one pass, beside the weights."""

    kept: int  # what stays for the backward pass
    peak: int  # at most, what is kept among it


@contextmanager
def without_content(accelerator: bool) -> Iterator[None]:
    """Tensors that are made inside have a shape and no content."""
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        if not accelerator:
            yield
            return
        with _AsOnAccelerators():
            yield


def measured(run: Callable[[], Any], *, backward: bool) -> Pass:
    """One pass of `run`, with a backward pass from the mean of the tensor that it returns; gradients of weights are there before.

    Without one it may return anything; the tensors in it are kept.
    """
    with Live() as live:
        with torch.set_grad_enabled(backward):
            result = run()
        kept = live.now
        if backward:
            _backward(result.float().square().mean())
    return Pass(kept, live.peak)


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, but that the modes above stay on in it, where checkpointed activations are worked out again."""
    engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def materialised(network: nn.Module) -> None:
    """Put tensors without content in the place of those on `meta`, with gradients where they are trained."""
    made: dict[Tensor, nn.Parameter] = {}  # what is shared stays so
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None and value not in made:
                fake = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=value.requires_grad)
                fake.grad = torch.empty_like(fake) if fake.requires_grad else None
                made[value] = fake
            if value is not None:
                module._parameters[name] = made[value]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def size(tensors: Iterator[Tensor]) -> int:
    """Bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class _Kind:
    """Blocks of a network that are alike: where they are, and which."""

    blocks: nn.ModuleList
    places: tuple[int, ...]


def unrolled(network: nn.Module, run: Callable[[], Any], *, backward: bool) -> Pass:
    """`measured`, made with one block of each kind and with two, since what blocks that are alike keep is alike.

    Hundreds of blocks are so worked out from a few. The network is whole again afterwards.
    """
    kinds = list(_kinds(network))
    with _left(kinds, [1] * len(kinds)):
        one = measured(run, backward=backward)
    kept, passing = one.kept, one.peak - one.kept
    for number, kind in enumerate(kinds):
        with _left(kinds, [2 if other == number else 1 for other in range(len(kinds))]):
            two = measured(run, backward=backward)
        kept += (two.kept - one.kept) * (len(kind.places) - 1)
        passing = max(passing, two.peak - two.kept)
    return Pass(kept, kept + passing)


def _kinds(network: nn.Module) -> Iterator[_Kind]:
    """What diffusers and transformers name as repeated; in other lists each module may be needed."""
    named = {name for module in network.modules() for name in _repeated(module)}
    for blocks in network.modules():
        if not isinstance(blocks, nn.ModuleList) or not all(type(block).__name__ in named for block in blocks):
            continue
        found: dict[Any, list[int]] = {}
        for place, block in enumerate(blocks):
            shapes = tuple((name, tuple(value.shape)) for name, value in block.named_parameters())
            found.setdefault((type(block), shapes), []).append(place)
        yield from (_Kind(blocks, tuple(places)) for places in found.values() if len(places) > 2)


@contextmanager
def _left(kinds: list[_Kind], counts: list[int]) -> Iterator[None]:
    """Only so many blocks of each kind."""
    whole = {id(kind.blocks): (kind.blocks, kind.blocks._modules) for kind in kinds}
    dropped: dict[int, set[int]] = {key: set() for key in whole}
    for kind, count in zip(kinds, counts, strict=True):
        dropped[id(kind.blocks)] |= set(kind.places[count:])
    try:
        for key, (blocks, modules) in whole.items():
            left = [module for place, module in enumerate(modules.values()) if place not in dropped[key]]
            blocks._modules = {str(place): module for place, module in enumerate(left)}
        yield
    finally:
        for blocks, modules in whole.values():
            blocks._modules = modules


def _repeated(module: nn.Module) -> tuple[str, ...]:
    return (*(getattr(module, "_repeated_blocks", None) or ()), *(getattr(module, "_no_split_modules", None) or ()))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
