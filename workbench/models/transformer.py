"""The conditional transformer of every embedded generator: u(x, t, s | prompt) on a small grid of latent cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        """x [N, tokens, width], modulation [N, 6, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset).unsqueeze(2).unbind(1)
        width = x.shape[-1]
        h = functional.layer_norm(x, (width,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # written out: torch's fused attention has no forward-mode derivative, which MeanFlow needs
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + gate1 * self.attend((weights @ v).transpose(1, 2).flatten(2))
        h = functional.layer_norm(x, (width,)) * (1 + scale2) + shift2
        return x + gate2 * self.contract(self.expand(h).relu().square())


class ConditionalTransformer(nn.Module):
    """u(x, t, s | prompt), the average velocity from t to s; at s = t the velocity itself.

    The prompt's slots are embedded side by side and mixed by an MLP; s enters as features of t - s that vanish at s = t.

    Args:
        slot_sizes: for each slot of a prompt, how many values it can take.
        latent_shape: channels, rows and columns of a latent; each of its cells is one token.
    """

    def __init__(
        self,
        slot_sizes: Sequence[int],
        latent_shape: tuple[int, int, int],
        width: int = 160,
        depth: int = 4,
        heads: int = 5,
        slot_width: int = 48,
    ) -> None:
        super().__init__()
        channels, *self.grid = latent_shape
        self.slots = nn.ModuleList(nn.Embedding(size, slot_width) for size in slot_sizes)
        self.prompt = nn.Sequential(nn.Linear(slot_width * len(slot_sizes), 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.features = TimeFeatures()
        self.time = nn.Linear(32, width)
        self.interval = nn.Linear(32, width, bias=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulation = nn.Linear(width, 6 * width)
        self.enter = nn.Linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, channels)
        for layer in (self.modulation, self.final, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, slots: Tensor) -> Tensor:
        """x [N, *latent_shape]; t, s [N] or [1]; slots [N, slots], integers. Returns [N, *latent_shape]."""
        prompt = self.prompt(torch.cat([embed(slots[:, i]) for i, embed in enumerate(self.slots)], dim=1))
        condition = self.condition(prompt + self.time(self.features(t)) + self.interval(self.features(t - s)))
        modulation = self.modulation(condition).unflatten(1, (6, -1))
        h = self.tokens(x, slots)
        for block in self.blocks:
            h = block(h, modulation)
        h = h[:, : self.grid[0] * self.grid[1]]
        scale, shift = self.final(condition).unsqueeze(1).chunk(2, dim=-1)
        h = self.leave(functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        return h.transpose(1, 2).unflatten(2, self.grid)

    def tokens(self, x: Tensor, slots: Tensor) -> Tensor:
        """What the blocks work on, [N, tokens, width]: the latent's cells row by row, then whatever a subclass adds."""
        return self.enter(x.flatten(2).transpose(1, 2)) + self.position
