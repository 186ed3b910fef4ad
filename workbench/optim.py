"""Optimizer state and averaged weights as named tensors, so that a checkpoint is safetensors and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class AveragedWeights:
    """An exponential moving average of parameters, which can stand in for them while it is evaluated.

    The decay warms up as min(decay, (1 + n) / (10 + n)), so that early averages forget the initial weights.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Move toward the parameters; with another `decay` where one is given."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if decay is None else decay
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in place of the parameters; the parameters' own values come back afterwards, bit for bit."""
        raw = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(raw)

    def commit(self) -> None:
        """Make the average the parameters' values for good."""
        self._write(self.average)

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{"<parameter index>.<name>": tensor}`."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` gave, for the same parameters in the same order."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, without changing them."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
