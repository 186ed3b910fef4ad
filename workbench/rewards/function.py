"""Any function of Python's as a reward, from a file or a module that whoever runs the workbench has put there."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal
from weakref import finalize

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.places import REWARDS, reward_folder

MODULES = "WORKBENCH_REWARD_MODULES"
"""The environment variable that lists modules, separated by commas, from which functions may be taken besides."""
GRACE = 5.0
"""Seconds that a function at work has to finish in when it is closed."""


class Function(Reward):
    """What a function of your own says: `(images [N, 3, H, W] in [0, 1], prompts) -> N numbers`, larger is better.

    The numbers may be a tensor, an array or a list, and each may depend on its own picture and prompt alone: pictures come in
    portions. A run names code but never brings any: files are read from one folder, `rewards` or what $WORKBENCH_REWARDS names,
    and modules are imported only where $WORKBENCH_REWARD_MODULES lists them.
    """

    name: Literal["function"] = "function"
    function: str = Field(
        "", max_length=200, description="as file.py:function, of the folder of rewards, or as module:function, of a listed module"
    )
    timeout: float = Field(
        1800.0,
        gt=0,
        le=86_400,
        description="seconds that one call may take; then the run pauses and says so",
    )

    background: ClassVar[bool] = True

    def weight_files(self) -> tuple[Path, ...]:
        """The file of code, so that its digest is recorded with the run."""
        source, _, _ = self.function.partition(":")
        path = (reward_folder() / source).resolve()
        return (path,) if source.endswith(".py") and path.is_relative_to(reward_folder().resolve()) else ()

    def load(self, device: torch.device) -> RewardFunction:
        """Raises: ValueError: if there is no such function, it may not be used, or does not take images and prompts."""
        return _Called(find_function(self.function), self)


class _Called:
    """A function at work in a thread of its own, since code of others may hang and nothing can end it.

    It is a daemon's thread: one that hangs is left alone, and the program can end without it.
    """

    def __init__(self, function: Callable[..., Any], settings: Function) -> None:
        self._function, self._name, self._timeout = function, settings.function, settings.timeout
        self._answer: Future[Any] | None = None
        self._let_go: Callable[[], object] | None = None  # ends the thread, if it can be ended
        self._closed = False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] of images [N, 3, H, W]. Raises: RewardFailed: if it takes too long, or is closed; ValueError: no numbers."""
        if self._let_go is None:
            self._pool = ThreadPool(1)
            self._let_go = finalize(self, self._pool.terminate)
        stream = torch.cuda.current_stream(images.device) if images.is_cuda else None
        answer: Future[Any] = Future()
        self._answer = answer
        seen = images.detach().clone()  # what it does to its pictures, no other reward sees
        self._pool.apply_async(_work, (self._function, seen, list(prompts), stream, answer))
        if self._closed:
            self._end(answer)
        try:
            values = answer.result(self._timeout)
        except TimeoutError as error:
            if not answer.done():  # else it is the function's own
                self._let_go()
                self._let_go = None
                told = f"{self._name} did not answer within function.timeout = {self._timeout:g} s, for prompt {prompts[0]!r} and"
                raise RewardFailed(f"{told} {len(prompts) - 1} others; it goes on in a thread that nothing can end") from error
            raise
        try:
            return torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            told = f"{self._name} must give {len(prompts)} numbers, got {type(values).__name__}"
            raise ValueError(f"{told}: {error}") from error

    def close(self) -> None:
        """Wait a little for what is under way, then leave it alone; from any thread."""
        self._closed = True
        if (answer := self._answer) is not None:
            wait([answer], GRACE)
            self._end(answer)
        if self._let_go is not None:
            self._let_go()

    def _end(self, answer: "Future[Any]") -> None:
        with suppress(InvalidStateError):  # it has answered
            answer.set_exception(RewardFailed(f"{self._name} was closed before it had answered"))


def _work(
    function: Callable[..., Any], images: Tensor, prompts: list[str], stream: "torch.cuda.Stream | None", answer: "Future[Any]"
) -> None:
    """Have a function answer, on the caller's stream where that is of a GPU."""
    try:
        with torch.cuda.stream(stream), torch.no_grad():
            values = function(images, prompts)
    except BaseException as error:  # whatever it raises, the caller hears of it
        with suppress(InvalidStateError):
            answer.set_exception(error)
    else:
        with suppress(InvalidStateError):  # nobody waits any more
            answer.set_result(values)


def find_function(reference: str) -> Callable[..., Any]:
    """The function that `file.py:function` or `module:function` names.

    Raises: ValueError: if there is none, its code does not load, it may not be used, or it does not take images and prompts.
    """
    source, colon, name = reference.partition(":")
    if not (source and colon and name.isidentifier()):
        raise ValueError(f"function.function = {reference!r}: write file.py:function or module:function")
    module = _read_file(source) if source.endswith(".py") else _import(source)
    if name not in vars(module):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise ValueError(f"{source} has no function {name!r}; it has: {', '.join(known) or 'none'}")
    function = vars(module)[name]
    if not callable(function):
        raise ValueError(f"{reference} is no function but a value of type {type(function).__name__}")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ValueError(f"{reference}{inspect.signature(function)} does not take images and prompts, and nothing else") from None
    return function


def _file(source: str) -> Path:
    """A file of the folder. Raises: ValueError: if it is not there, or the name leads out of the folder."""
    path = (reward_folder() / source).resolve()
    if not path.is_relative_to(reward_folder().resolve()):
        raise ValueError(f"{source} is not in {reward_folder()}; put the file there, or let ${REWARDS} name its folder")
    if not path.is_file():
        raise ValueError(f"there is no {source} in {reward_folder()}; put the file there, or let ${REWARDS} name its folder")
    return path


def _read_file(source: str) -> ModuleType:
    """The file as a module, read anew."""
    path = _file(source)
    name = f"workbench_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module


def _import(name: str) -> ModuleType:
    """A module that is listed, or part of one that is."""
    listed = [module.strip() for module in os.environ.get(MODULES, "").split(",") if module.strip()]
    if not any(name == module or name.startswith(f"{module}.") for module in listed):
        raise ValueError(
            f"functions of module {name!r} may not be used: list it in ${MODULES} (now: {', '.join(listed) or 'none'}), or put a "
            f"file into {reward_folder()}"
        )
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"module {name!r} does not load: {type(error).__name__}: {error}") from error
