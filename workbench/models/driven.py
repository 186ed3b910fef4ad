"""A pipeline of diffusers driven by its own call, which is stopped as soon as it has said what is wanted.

Everything that a family does in its own way (guidance, packing, the scale of its time, the sign of what its network predicts)
is then the pipeline's own code, and nothing of it has to be known here. A call is stopped by what it asks others for: its
prompts are known when it draws noise, the velocity when it hands that to its scheduler, a code when it hands that to its
autoencoder.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Said = Any
"""What a pipeline's encoders said of one prompt: whatever `encode_prompt` returned, call by call."""

PLAN = "plan"
"""The tensor that says how the others of a prompt are nested; JSON, a byte each."""

_NEEDED = ("prompt", "height", "width", "num_inference_steps", "latents", "output_type")


class Driven:
    """One pipeline; its call with settings that stay the same.

    Args:
        pipeline: of diffusers; its prompts are read only if it has its encoders.
        settings: of its call; those that it does not know are left out.
    Raises: ValueError: if its call lacks what is needed, naming it.
    """

    def __init__(self, pipeline: Any, settings: Mapping[str, Any]) -> None:
        self.pipeline, kind = pipeline, type(pipeline)
        self._call = inspect.unwrap(kind.__call__)  # itself under no_grad, which would keep gradients from the network
        known = inspect.signature(self._call).parameters
        lacking = [name for name in _NEEDED if name not in known]
        lacking += [f"{name}()" for name in ("encode_prompt", "prepare_latents") if not hasattr(kind, name)]
        if lacking:
            raise Undriven(f"{kind.__name__} has no {', '.join(lacking)}, by which it could be driven; it wants an adapter")
        self.settings = {name: value for name, value in settings.items() if name in known}
        self._beside: dict[int, tuple[Any, ...] | None] = {}  # what comes with latents, by their number
        pipeline.set_progress_bar_config(disable=True)
        logging.getLogger(kind.__module__).setLevel(logging.ERROR)  # what it notes of a call, it would note of every velocity

    def read(self, prompt: str) -> Said:
        """What its encoders say of a prompt. Raises: ValueError: if it asks none, or every tokenizer had to cut the prompt."""
        encode, said, cuts = self.pipeline.encode_prompt, list[Any](), list[int]()

        def listen(*given: Any, **named: Any) -> Any:
            said.append(encode(*given, **named))
            return said[-1]

        counting = {
            name: _Counting(part, prompt, cuts)
            for name, part in self.pipeline.components.items()
            if hasattr(part, "model_max_length")
        }
        with self._replaced(encode_prompt=listen, prepare_latents=_stop, **counting):
            self._answer([prompt], None)
        if not said:
            raise Undriven(f"{type(self.pipeline).__name__} does not read prompts by encode_prompt(); it wants an adapter")
        if cuts and min(cuts) > 0:
            raise TooLong(min(cuts))
        return tuple(said)

    def noise(self, said: Said, count: int) -> Tensor:
        """Its own initial noise [N, ...] of `count` prompts, in its own shape and numbers; the same every time."""
        with self._replaced(encode_prompt=_repeating(said), prepare_latents=self._own_noise(_answer_first)):
            return self._answer([""] * count, None)

    def velocity(self, said: Said, x: Tensor, t: float) -> Tensor:
        """What it hands its scheduler, float32, for x [N, ...] at time t and what was said of N prompts; with its graph."""
        with self._replaced(encode_prompt=_repeating(said), scheduler=_schedulers()[0].at(self.pipeline.scheduler, t)):
            return self._answer([""] * len(x), x).float()

    def decode(self, said: Said, latents: Tensor) -> Tensor:
        """latents [N, ...] at time 0 -> images [N, 3, H, W] in [0, 1]: the call with nothing left to do but this."""
        with self._replaced(encode_prompt=_repeating(said), scheduler=_schedulers()[0].at(self.pipeline.scheduler, None)):
            return self._run([""] * len(latents), latents, output_type="pt")[0].float()

    def code(self, said: Said, latents: Tensor) -> Tensor:
        """What it hands its autoencoder for latents [N, ...] at time 0; all in float32."""
        scheduler = _schedulers()[0].at(self.pipeline.scheduler, None)
        exact = _mapped(said, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        with self._replaced(encode_prompt=_repeating(exact), scheduler=scheduler, vae=_Listening(self.pipeline.vae)):
            return self._answer([""] * len(latents), latents)

    def trace(self, said: Said, x: Tensor, steps: int) -> tuple[Tensor, list[tuple[float, Tensor, Tensor]]]:
        """A whole call, nothing stopped: its images, and at each step the time, the state and what the scheduler was handed."""
        scheduler = _schedulers()[1].from_config(self.pipeline.scheduler.config)
        scheduler.heard = []
        with self._replaced(encode_prompt=_repeating(said), scheduler=scheduler), torch.no_grad():
            images = self._run([""] * len(x), x, num_inference_steps=steps, output_type="pt")[0]
        return images.float(), scheduler.heard

    def _answer(self, prompts: Sequence[str], latents: Tensor | None) -> Tensor:
        """What stopped the call."""
        try:
            self._run(prompts, latents)
        except _Answer as answer:
            return answer.tensor
        raise Undriven(f"{type(self.pipeline).__name__} was not to be stopped in its call; it wants an adapter")

    def _run(self, prompts: Sequence[str], latents: Tensor | None, **more: Any) -> Any:
        settings = {"num_inference_steps": 1, **self.settings, **more}
        if "negative_prompt" in settings:  # one for each, as most pipelines want it
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
        beside = {} if latents is None else {"prepare_latents": self._own_noise(lambda made: self._in_place(made, latents))}
        with self._replaced(**beside):
            return self._call(self.pipeline, prompt=list(prompts), return_dict=False, **settings)

    def _own_noise(self, then: Callable[[Any], Any]) -> Callable[..., Any]:
        """In place of `prepare_latents`, which is asked for noise of its own: some pipelines take latents in another shape."""
        prepare = type(self.pipeline).prepare_latents
        names = inspect.signature(prepare)

        def asked(*given: Any, **named: Any) -> Any:
            told = names.bind(self.pipeline, *given, **named)
            told.arguments |= {"latents": None, "generator": torch.Generator().manual_seed(0)}
            return then(lambda: prepare(*told.args, **told.kwargs))

        return asked

    def _in_place(self, made: Callable[[], Any], latents: Tensor) -> Any:
        """The latents, with whatever else comes with so many: it is made once."""
        if len(latents) not in self._beside:
            found = made()
            self._beside[len(latents)] = tuple(found[1:]) if isinstance(found, tuple) else None
        beside = self._beside[len(latents)]
        return latents if beside is None else (latents, *beside)

    @contextmanager
    def _replaced(self, **others: Any) -> Iterator[None]:
        """Methods and parts of this one pipeline, for a while."""
        own, absent = vars(self.pipeline), object()
        before = {name: own.get(name, absent) for name in others}
        for name, other in others.items():
            setattr(self.pipeline, name, other)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is absent:
                    delattr(self.pipeline, name)
                else:
                    setattr(self.pipeline, name, value)


class Undriven(ValueError):
    """A pipeline that cannot be driven by its own call; it wants an adapter of its own."""


class TooLong(ValueError):
    """A prompt was cut by every tokenizer that read it, by so many tokens at least."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the prompt is {tokens} tokens too long")
        self.tokens = tokens


def packed(said: Said) -> dict[str, Tensor]:
    """What was said of a prompt as named tensors, for a file."""
    tensors: dict[str, Tensor] = {}

    def plan(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.clone()  # a file wants no tensor twice
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [plan(each) for each in value]}
        return value

    text = json.dumps(plan(said)).encode()
    return {**tensors, PLAN: torch.tensor(list(text), dtype=torch.uint8)}


def unpacked(tensors: Mapping[str, Tensor]) -> Said:
    """Inverse of `packed`."""

    def value(plan: Any) -> Any:
        if not isinstance(plan, dict):
            return plan
        ((kind, content),) = plan.items()
        if kind == "tensor":
            return tensors[content]
        return (tuple if kind == "tuple" else list)(value(each) for each in content)

    return value(json.loads(bytes(tensors[PLAN].tolist())))


def joined(said: Sequence[Said]) -> Said:
    """What was said of each of some prompts, as it would have been said of them together.

    A list is taken for one of the prompts' own, a tensor's first dimension of size 1 for the one that counts them; what has
    neither belongs to no prompt.
    """
    first = said[0]
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*said, strict=True))
    if isinstance(first, list):
        return [each for own in said for each in own]
    if isinstance(first, Tensor) and 1 in first.shape:
        return torch.cat(list(said), list(first.shape).index(1)) if len(said) > 1 else first
    return first


def alike(said: Said) -> Any:
    """Equal for prompts of which as much was said, which can be joined."""
    if isinstance(said, Tensor):
        return said.shape
    return tuple(alike(each) for each in said) if isinstance(said, tuple) else said is None


class _Answer(Exception):
    """Carries what was wanted out of a call."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _answer_first(made: Callable[[], Any]) -> None:
    found = made()
    raise _Answer(found[0] if isinstance(found, tuple) else found)


def _stop(*_: Any, **__: Any) -> None:
    raise _Answer(torch.empty(0))


def _repeating(said: Said) -> Any:
    """In place of `encode_prompt`: says again what was said, call by call."""
    calls = iter(said)
    return lambda *_, **__: next(calls)


def _mapped(said: Said, change: Any) -> Said:
    if isinstance(said, Tensor):
        return change(said)
    return type(said)(_mapped(each, change) for each in said) if isinstance(said, tuple | list) else said


class _Counting:
    """A tokenizer that notes by how many tokens it had to cut a prompt."""

    def __init__(self, tokenizer: Any, prompt: str, cuts: list[int]) -> None:
        self._tokenizer, self._prompt, self._cuts = tokenizer, prompt.strip().lower(), cuts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, *given: Any, **named: Any) -> Any:
        asked = text if isinstance(text, str) else " ".join(map(str, text))
        if named.get("truncation") and self._prompt and self._prompt in asked.lower():
            whole = self._tokenizer(text, add_special_tokens=named.get("add_special_tokens", True)).input_ids
            tokens = len(whole) if isinstance(text, str) else max(map(len, whole))
            self._cuts.append(tokens - (named.get("max_length") or self._tokenizer.model_max_length))
        return self._tokenizer(text, *given, **named)


class _Listening:
    """An autoencoder that says what it was to decode."""

    dtype = torch.float32

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(self, code: Tensor, *_: Any, **__: Any) -> None:
        raise _Answer(code)


@lru_cache(maxsize=1)
def _schedulers() -> tuple[Any, Any]:
    """Two of diffusers' Euler schedulers: one that stops a call at a time of ours, and one that only listens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Stopping(FlowMatchEulerDiscreteScheduler):
        @classmethod
        def at(cls, other: Any, t: float | None) -> Any:
            """With one time, or none."""
            made = cls.from_config(other.config)
            made.asked = [] if t is None else [t]
            return made

        def set_timesteps(
            self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None, timesteps: Any = None
        ) -> None:
            times = torch.zeros(len(self.asked) + 1, device=device)
            times[:-1] = self.asked[0] if self.asked else 0.0
            self.num_inference_steps, self.sigmas = len(self.asked), times
            self.timesteps = times[:-1] * self.config.num_train_timesteps

        def step(self, model_output: Tensor, *_: Any, **__: Any) -> None:
            raise _Answer(model_output)

    class Listening(FlowMatchEulerDiscreteScheduler):
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *given: Any, **named: Any) -> Any:
            self.heard.append((float(self.sigmas[len(self.heard)]), sample.float(), model_output.float()))
            return super().step(model_output, timestep, sample, *given, **named)

    return Stopping, Listening
