"""The embedded generator: a small conditional transformer as a two-time flow map in a small latent space."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workbench.contracts import FlowMapKind, Model
from workbench.tasks.shapes_scenes import CELL, GRID, SLOT_SIZES, parse

WEIGHTS = Path(__file__).parent / "weights" / "shapes.safetensors"
CHANNELS = 6  # latent numbers per cell
TOKENS = GRID * GRID


class TimeFeatures(nn.Module):
    """Sines and cosines of a time in [0, 1], at most 6 rad: faster ones make the MeanFlow tangent explode."""

    frequencies: Tensor

    def __init__(self, count: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.375, 6.0, count), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """[N] -> [N, 2 count], all zero at t = 0."""
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), 1.0 - angle.cos()], dim=1)


class Block(nn.Module):
    """Attention and a squared-ReLU MLP, modulated by the condition through adaLN-single."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [N, TOKENS, width], modulation [N, 6, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset).unsqueeze(2).unbind(1)
        width = x.shape[-1]
        h = functional.layer_norm(x, (width,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # written out: torch's fused attention has no forward-mode derivative, which MeanFlow needs
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + gate1 * self.attend((weights @ v).transpose(1, 2).flatten(2))
        h = functional.layer_norm(x, (width,)) * (1 + scale2) + shift2
        return x + gate2 * self.contract(self.expand(h).relu().square())


class ShapesTransformer(nn.Module):
    """u(x, t, s | prompt), the average velocity from t to s; at s = t the velocity itself.

    The prompt's six slots are embedded side by side and mixed by an MLP; s enters as features of t - s that vanish at s = t.
    """

    def __init__(self, width: int = 160, depth: int = 4, heads: int = 5, slot_width: int = 48) -> None:
        super().__init__()
        self.slots = nn.ModuleList(nn.Embedding(size, slot_width) for size in SLOT_SIZES)
        self.prompt = nn.Sequential(nn.Linear(slot_width * len(SLOT_SIZES), 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.features = TimeFeatures()
        self.time = nn.Linear(32, width)
        self.interval = nn.Linear(32, width, bias=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulation = nn.Linear(width, 6 * width)
        self.enter = nn.Linear(CHANNELS, width)
        self.position = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, CHANNELS)
        for layer in (self.modulation, self.final, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, slots: Tensor) -> Tensor:
        """x [N, CHANNELS, GRID, GRID]; t, s [N] or [1]; slots [N, 6], integers. Returns [N, CHANNELS, GRID, GRID]."""
        prompt = self.prompt(torch.cat([embed(slots[:, i]) for i, embed in enumerate(self.slots)], dim=1))
        condition = self.condition(prompt + self.time(self.features(t)) + self.interval(self.features(t - s)))
        modulation = self.modulation(condition).unflatten(1, (6, -1))
        h = self.enter(x.flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            h = block(h, modulation)
        scale, shift = self.final(condition).unsqueeze(1).chunk(2, dim=-1)
        h = self.leave(functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        return h.transpose(1, 2).unflatten(2, (GRID, GRID))


class ShapesAutoencoder(nn.Module):
    """Each 10 x 10 cell to 6 numbers and back.

    In training latents are drawn with noise, so that decoding is robust to small errors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        pixels = 3 * CELL * CELL
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * CHANNELS)
        )
        self.decoder = nn.Sequential(
            nn.Linear(CHANNELS, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, pixels)
        )
        self.register_buffer("shift", torch.zeros(CHANNELS))
        self.register_buffer("scale", torch.ones(CHANNELS))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] in [0, 1] -> mean and log-variance of its latent, not normalised; each [N, CHANNELS, GRID, GRID]."""
        patches = functional.pixel_unshuffle(images, CELL).movedim(1, -1)
        return tuple(self.encoder(patches).movedim(-1, 1).chunk(2, dim=1))  # type: ignore[return-value]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `encode` gives them -> [N, 3, H, W] in (0, 1)."""
        return functional.pixel_shuffle(self.decoder(latents.movedim(1, -1)).movedim(-1, 1), CELL).sigmoid()

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.shift[:, None, None]) / self.scale[:, None, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents * self.scale[:, None, None] + self.shift[:, None, None]


class ShapesGenerator:
    """The transformer and its autoencoder, in the coordinates of `workbench.flow`."""

    latent_shape: tuple[int, ...] = (CHANNELS, GRID, GRID)

    def __init__(self, network: nn.Module, autoencoder: ShapesAutoencoder, device: torch.device) -> None:
        self.network = network.to(device)
        self.autoencoder = autoencoder.to(device).requires_grad_(False).eval()
        self.device = device
        self.kind: FlowMapKind = "two_time"

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The prompts' slots [N, 6]; the embedding proper is trained with the network."""
        return torch.tensor([parse(prompt).slots for prompt in prompts], dtype=torch.int64, device=self.device)

    def bind(self, embeddings: Tensor) -> "ShapesFlowMap":
        return ShapesFlowMap(self.network, embeddings, self.kind)

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.normalise(self.autoencoder.encode(images.to(self.device))[0])

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(latents.float()))


class ShapesFlowMap:
    """The generator with its prompts bound; see `FlowMap`."""

    def __init__(self, network: nn.Module, slots: Tensor, kind: FlowMapKind) -> None:
        self.network = network
        self.slots = slots
        self.kind = kind

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        return x + (s - t) * self._average_velocity(x, t, s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return self._average_velocity(x, t, t)

    def _average_velocity(self, x: Tensor, t: float, s: float) -> Tensor:
        times = torch.tensor([[t], [s]], dtype=torch.float32, device=x.device)
        return self.network(x, times[0], times[1], self.slots).float()


class ShapesModel(Model):
    """The generator that ships with the package, pretrained with a stated share of wrong captions."""

    name: Literal["shapes"] = "shapes"
    weights: str = Field("", description="safetensors file to load instead of the shipped weights; empty for those")

    adapter_targets: ClassVar[tuple[str, ...]] = ("qkv", "attend", "expand", "contract")

    def load(self, device: torch.device) -> ShapesGenerator:
        """Raises: ValueError: if the file is missing, damaged, or holds another model."""
        network, autoencoder = ShapesTransformer(), ShapesAutoencoder()
        load_weights(Path(self.weights) if self.weights else WEIGHTS, {"network": network, "autoencoder": autoencoder})
        return ShapesGenerator(network, autoencoder, device)


def load_weights(path: Path, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Fill the modules from one safetensors file, whose keys begin with their names; returns the file's metadata.

    Raises: ValueError: naming the file and what is wrong with it.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"no weights at {path}; make them with: python -m workbench pretrain shapes")
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
