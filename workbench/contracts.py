"""What an extension must offer: flow maps, samplers, rewards, models and tasks.

An extension is a frozen pydantic model: its constructor is its configuration. Its fields carry range, unit and help; the
form, the command-line flag, the notebook parameter and the error message are all read from them.
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workbench.flow import Gaussian
    from workbench.lesson import Lesson


FlowMapKind = Literal["two_time", "single_time", "velocity"]
Time = Any  # a number; for maps that are networks also [N], a time for each row


class Extension(BaseModel):
    """A frozen, closed configuration object; `name` selects it in a `RunConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def weight_files(self) -> "tuple[Path, ...]":
        """The files of weights that it loads, which say with its settings what it is; none by default."""
        return ()


class FlowMap(Protocol):
    """A flow map with its prompts bound: it carries x from time t to time s <= t.

    `kind` says which calls are trained: "two_time" any pair, "single_time" only s = 0, "velocity" only `velocity`. Times are
    numbers, or tensors [N] for maps that are networks.
    """

    @property
    def kind(self) -> FlowMapKind: ...

    def __call__(self, x: "Tensor", t: Time, s: Time) -> "Tensor":
        """psi(x, t, s) for x [N, ...] at time t; [N, ...], float32."""
        ...

    def velocity(self, x: "Tensor", t: Time) -> "Tensor":
        """v(x, t) = E[eps - x_0 | x_t = x]; [N, ...], float32."""
        ...


@runtime_checkable
class Detaching(FlowMap, Protocol):
    """A flow map of which no gradient goes through some passes, as guidance may have it.

    While its weights stay as they are, such a pass need not be made again for the same states and times.
    """

    def keeping(self, kept: "list[Tensor]") -> FlowMap:
        """The same map, which adds to `kept` what those passes give, each [N, ...], in the order of its calls."""
        ...

    def recalling(self, kept: "Sequence[Tensor]") -> FlowMap:
        """The same map, which takes them from `kept` instead; its calls have to be those for which they were kept."""
        ...


class Sampler(Extension):
    """One transition kernel p(x_s | x_t). `noise` is the kernel's own noise knob; 0 makes every step deterministic."""

    needs: ClassVar[tuple[FlowMapKind, ...]] = ("two_time", "single_time", "velocity")

    @abstractmethod
    def step(self, flow_map: FlowMap, x: "Tensor", t: float, s: float) -> "Gaussian":
        """The transition from x at time t to time s < t. At s = 0 it is always deterministic.

        Args:
            x: [N, ...], float32.
        Returns: its mean [N, ...] and one standard deviation for the whole batch.
        """


class Objective(Extension):
    """What a rollout and its advantages make of the policy: portions of work, one forward pass each, and a loss for each.

    For each portion `predict` is called with the policy and, where they are wanted, with the reference and with the policy that
    sampled; the three differ in their weights alone. A portion is whatever the objective likes.
    """

    maps: ClassVar[tuple[FlowMapKind, ...]] = ("two_time", "single_time", "velocity")  # that it can train
    density: ClassVar[bool] = False  # takes the likelihood of stochastic steps; otherwise finished samples suffice

    @property
    def wants_reference(self) -> bool:
        """Whether `loss` needs the reference's prediction: one more forward pass a portion."""
        return False

    @property
    def wants_old(self) -> bool:
        """Whether `loss` needs the prediction of the policy that sampled: one more forward pass, unless it is the policy."""
        return False

    def behaviour_decay(self, updates: int) -> float | None:
        """Decay of the averaged weights that sample at their next step, after `updates` of them; None: the policy samples."""
        return None

    @abstractmethod
    def portions(self, lesson: "Lesson") -> Sequence[Any]:
        """The work of one pass over a rollout; their losses add up to the whole."""

    @abstractmethod
    def predict(self, portion: Any, generator: "Generator") -> "Tensor":
        """What a network says of a portion; float32, rows first."""

    def repeat(self, portion: Any, generator: "Generator") -> "Tensor":
        """`predict` with the very weights that sampled; may spare what the rollout worked out without a gradient."""
        return self.predict(portion, generator)

    @abstractmethod
    def loss(
        self, portion: Any, prediction: "Tensor", *, reference: "Tensor | None" = None, old: "Tensor | None" = None
    ) -> tuple["Tensor", dict[str, "Tensor"]]:
        """The portion's share of the loss, a scalar, and figures of its rows, each [n] without gradient.

        Args:
            old: None where it is wanted and the policy itself sampled: then it is the prediction, detached.
        `loss` is always among the figures; `kl` is the distance to the reference, `ratio` and `clip_fraction` those of a
        likelihood ratio.
        """


RewardFunction = Callable[["Tensor", Sequence[str]], "Tensor"]


class Reward(Extension):
    """Scores images: `load(device)` returns `(images [N, 3, H, W] in [0, 1], prompts) -> [N]`, larger is better.

    Each score depends on its own image and prompt alone, since a batch comes in portions, and in a thread beside the one that
    draws. A function that may wait for long has `close()`, which breaks it off from another thread.
    """

    domain: ClassVar[str] = ""  # the task whose images it understands; empty for any
    background: ClassVar[bool] = False  # so slow that as a judge it works beside the training
    published: ClassVar[int] = 0  # parameters of the networks that it loads as they were published; 0 for none
    waits: ClassVar[bool] = False  # others work for it, elsewhere: it takes little here, and the more pictures at once the better

    @abstractmethod
    def load(self, device: "torch.device") -> RewardFunction: ...

    def check(self, prompt: str) -> None:  # most rewards understand any prompt
        """Raise ValueError where it cannot score pictures of a prompt; asked of all prompts of a run before it draws anything."""


class Task(Extension):
    """Prompts, split so that the held-out ones are never trained on."""

    domain: ClassVar[str] = ""  # what its prompts are about; empty where any model understands them

    @abstractmethod
    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]: ...

    @abstractmethod
    def check(self, prompt: str) -> None:
        """Raise ValueError, naming the word and the vocabulary, where a prompt cannot be understood."""

    def statistics(self, images: "Tensor") -> dict[str, "Tensor"]:
        """Measures of images [N, 3, H, W] that no reward sees and that show hacking; each [N]. None by default."""
        return {}

    def layouts(self, images: "Tensor") -> Sequence[Hashable] | None:
        """What each image depicts, so that equal compositions in a group can be counted; None where it cannot be told."""
        return None


class Generator(Protocol):
    """What a model's `load(device)` returns: a flow map once prompts are bound, and a latent space.

    One thread owns it, since adapters are switched on and off in place.
    """

    latent_shape: tuple[int, ...]  # of one sample, without the batch
    network: "torch.nn.Module"  # what is trained; adapters attach to it
    device: "torch.device"

    @property
    def kind(self) -> FlowMapKind: ...

    def embed(self, prompts: Sequence[str]) -> Any:
        """Prompt embeddings [N, ...], computed once per prompt and indexable by row."""
        ...

    def bind(self, embeddings: Any) -> FlowMap:
        """The flow map conditioned on `embeddings`, row for row."""
        ...

    def encode(self, images: "Tensor") -> "Tensor":
        """[N, 3, H, W] in [0, 1] -> latents [N, *latent_shape]."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """latents [N, *latent_shape] -> [N, 3, H, W] in [0, 1]."""
        ...


class Model(Extension):
    """A generator on disk or on the hub; `load` brings it into memory."""

    kind: ClassVar[FlowMapKind]  # of the flow map that it loads
    domain: ClassVar[str] = ""  # the task whose prompts it understands; empty for any
    adapter_targets: ClassVar[tuple[str, ...]] = ()  # names of the Linear layers that LoRA attaches to
    uneven: ClassVar[bool] = False  # asks its network as often as its prompts differ in length, and not once for all
    component: ClassVar[str] = ""  # what its network is in a pipeline of diffusers; empty where it is in none

    def read_ahead(self, prompts: Sequence[str], device: "torch.device") -> None:
        """Have prompts read before the model is loaded, where networks read them that need the device's memory for themselves.

        Nothing is done by default. What is not read here, `Generator.embed` reads.
        Raises: ValueError: if a prompt cannot be understood, or the model is missing.
        """

    @abstractmethod
    def load(self, device: "torch.device") -> Generator: ...


class OutOfMemory(RuntimeError):
    """The device has less memory than a run asked for; says what to lower."""


class Diverged(FloatingPointError):
    """The policy itself has gone wrong, so its present state is not worth keeping."""


class RewardFailed(ValueError):
    """A reward raised, or gave a value that is not one finite number per image."""
