"""What the embedded generators share: a patch autoencoder, a flow map over the network, a model, and its file of weights."""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workbench.contracts import FlowMapKind, Model
from workbench.models.transformer import ConditionalTransformer

ReadPrompt = Callable[[str], Sequence[int]]
"""A prompt's slots, integers that the transformer embeds; ValueError where it cannot be understood."""


class Autoencoder(nn.Module):
    """Images to latents and back; `shift` and `scale` give each channel of a latent mean 0 and standard deviation 1.

    In training latents are drawn with noise, so that decoding is robust to small errors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] in [0, 1] -> mean and log-variance of its latent, not normalised; each [N, channels, rows, columns]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `encode` gives them -> [N, 3, H, W] in (0, 1)."""

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.shift[:, None, None]) / self.scale[:, None, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents * self.scale[:, None, None] + self.shift[:, None, None]


class PatchAutoencoder(Autoencoder):
    """Each square patch of an image to a few numbers and back.

    Args:
        patch: side of a patch, pixels; images are whole numbers of patches high and wide.
        channels: latent numbers per patch.
    """

    def __init__(self, patch: int, channels: int, hidden: int = 256) -> None:
        super().__init__(channels)
        self.patch = patch
        pixels = 3 * patch * patch
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * channels)
        )
        self.decoder = nn.Sequential(
            nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, pixels)
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = functional.pixel_unshuffle(images, self.patch).movedim(1, -1)
        return tuple(self.encoder(patches).movedim(-1, 1).chunk(2, dim=1))  # type: ignore[return-value]

    def decode(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.decoder(latents.movedim(1, -1)).movedim(-1, 1), self.patch).sigmoid()


class NetworkFlowMap:
    """A network with its prompts bound; see `FlowMap`. Times are floats, or tensors [N] with one time a row.

    Calls that a map of its kind is not trained for raise ValueError.
    """

    def __init__(self, network: nn.Module, slots: Tensor, kind: FlowMapKind) -> None:
        self.network = network
        self.slots = slots
        self.kind = kind

    def __call__(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        if self.kind == "velocity":
            raise ValueError("a velocity map makes no jumps; call velocity(x, t), or take a model of the kind two_time")
        if self.kind == "single_time" and not (s == 0.0 if isinstance(s, float | int) else bool((s == 0.0).all())):
            raise ValueError(f"a single-time map reaches only s = 0, got s = {s}; take a model of the kind two_time for others")
        span = s - t
        if isinstance(span, Tensor):
            span = span.to(x).view(-1, *[1] * (x.dim() - 1))
        return x + span * self._average_velocity(x, t, s)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.kind == "single_time":
            raise ValueError("a single-time map has no velocity; call flow_map(x, t, 0.0), or take a model of another kind")
        return self._average_velocity(x, t, t)

    def _average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        return self.network(x, time_on(x, t), time_on(x, s), self.slots).float()


def time_on(x: Tensor, t: float | Tensor) -> Tensor:
    """A time as float32 on the device of x: [1] of a number, [N] of a time for each row.

    The device writes a number by itself: copied from the CPU it would make an accelerator wait at every pass.
    """
    if isinstance(t, Tensor):
        return t.to(x.device, torch.float32).reshape(-1)
    return torch.full((1,), t, dtype=torch.float32, device=x.device)


class EmbeddedGenerator:
    """A conditional transformer and its autoencoder, in the coordinates of `workbench.flow`."""

    def __init__(
        self,
        network: nn.Module,
        autoencoder: Autoencoder,
        latent_shape: tuple[int, ...],
        read: ReadPrompt,
        kind: FlowMapKind,
        device: torch.device,
    ) -> None:
        self.network = network.to(device)
        self.autoencoder = autoencoder.to(device).requires_grad_(False).eval()
        self.latent_shape = latent_shape
        self.read = read
        self.kind: FlowMapKind = kind
        self.device = device

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The prompts' slots [N, slots]; the embedding proper is trained with the network."""
        return torch.tensor([self.read(prompt) for prompt in prompts], dtype=torch.int64, device=self.device)

    def bind(self, embeddings: Tensor) -> NetworkFlowMap:
        return NetworkFlowMap(self.network, embeddings, self.kind)

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.normalise(self.autoencoder.encode(images.to(self.device))[0])

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(latents.float()))


class Networks(NamedTuple):
    """The modules of an embedded generator; in its file their weights' names begin with these."""

    network: ConditionalTransformer
    autoencoder: Autoencoder


class EmbeddedModel(Model):
    """A generator whose weights ship with the package; a subclass names its networks, its prompts and its kind."""

    name: str = ""  # every one names itself
    weights: str = Field("", description="safetensors file to load instead of the shipped weights; empty for those")

    adapter_targets: ClassVar[tuple[str, ...]] = ("qkv", "attend", "expand", "contract")
    kind: ClassVar[FlowMapKind]
    domain: ClassVar[str]
    latent_shape: ClassVar[tuple[int, int, int]]  # channels, rows, columns

    @staticmethod
    @abstractmethod
    def networks() -> Networks:
        """The networks with fresh weights, drawn from the global generator."""

    @staticmethod
    @abstractmethod
    def read(prompt: str) -> Sequence[int]:
        """The prompt's slots. Raises: ValueError: naming the word, where it cannot be understood."""

    def read_ahead(self, prompts: Sequence[str], device: torch.device) -> None:
        for prompt in prompts:
            self.read(prompt)

    def weight_files(self) -> tuple[Path, ...]:
        return (Path(self.weights) if self.weights else shipped_weights(self.name),)

    def load(self, device: torch.device) -> EmbeddedGenerator:
        """Raises: ValueError: if the file is missing, damaged, or holds another model."""
        networks = self.networks()
        (path,) = self.weight_files()
        if not path.is_file():
            raise ValueError(f"no weights at {path}; make them with: python -m workbench pretrain {self.name}")
        load_weights(path, networks._asdict())
        return self.generator(networks, device)

    @classmethod
    def generator(cls, networks: Networks, device: torch.device) -> EmbeddedGenerator:
        """A generator over networks that are at hand, as they are."""
        return EmbeddedGenerator(*networks, cls.latent_shape, cls.read, cls.kind, device)


def shipped_weights(name: str) -> Path:
    """Where the weights of the embedded model of this name are, if they ship."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"


def load_weights(path: Path, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Fill the modules from one safetensors file, whose keys begin with their names; returns the file's metadata.

    Raises: ValueError: naming the file and what is wrong with it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("workbench", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch or make it again") from None
    for name, module in modules.items():
        state = {key.removeprefix(f"{name}."): value.float() for key, value in tensors.items() if key.startswith(f"{name}.")}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of this model: {str(error).splitlines()[1].strip()}") from None
    return metadata


def save_weights(path: Path, modules: dict[str, nn.Module], metadata: dict[str, Any]) -> None:
    """Write the modules in half precision, which halves the package and costs no measurable quality."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{key}": value.detach().half().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, path, {"workbench": json.dumps(metadata)})
