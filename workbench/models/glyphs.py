"""The embedded generator of short words: a two-time flow map over a row of strips, told the letters one by one."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.embedded import Autoencoder, EmbeddedModel, Networks
from workbench.models.transformer import ConditionalTransformer
from workbench.tasks.glyphs_scenes import HEIGHT, SLOT_SIZES, WIDTH, parse

STRIP = 4  # columns of pixels in a cell; a cell is as high as the image
CHANNELS = 12  # latent numbers per strip
LATENT_SHAPE = (CHANNELS, 1, WIDTH // STRIP)


class LetterTransformer(ConditionalTransformer):
    """The conditional transformer with one more token a slot, so that a strip can attend to the letter it belongs to."""

    def __init__(
        self, slot_sizes: Sequence[int], latent_shape: tuple[int, int, int], width: int = 160, depth: int = 6, heads: int = 5
    ) -> None:
        super().__init__(slot_sizes, latent_shape, width, depth, heads)
        self.letters = nn.ModuleList(nn.Embedding(size, width) for size in slot_sizes)

    def tokens(self, x: Tensor, slots: Tensor) -> Tensor:
        letters = torch.stack([embed(slots[:, i]) for i, embed in enumerate(self.letters)], dim=1)
        return torch.cat([super().tokens(x, slots), letters], dim=1)


class StripAutoencoder(Autoencoder):
    """Each strip of 4 columns to 12 numbers and back.

    Both ways see a little of the neighbouring strips, so that no seam shows between them. A strip is drawn as the share of ink in
    its pixels; all strips vote on one colour for the ink and one for the ground.
    """

    def __init__(self, hidden: int = 256) -> None:
        super().__init__(CHANNELS)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, hidden, (HEIGHT, 2 * STRIP), stride=(1, STRIP), padding=(0, STRIP // 2)),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(hidden, 2 * CHANNELS, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, hidden, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, 6 + HEIGHT * STRIP, 1),
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(self.encoder(images).float().chunk(2, dim=1))  # type: ignore[return-value]

    def decode(self, latents: Tensor) -> Tensor:
        votes, strips = self.decoder(latents).float().squeeze(2).split([6, HEIGHT * STRIP], dim=1)
        ground, ink = votes.mean(2).sigmoid()[:, :, None, None].chunk(2, dim=1)  # [N, 3, 1, 1]
        coverage = strips.unflatten(1, (HEIGHT, STRIP)).transpose(2, 3).flatten(2).sigmoid()[:, None]  # [N, 1, HEIGHT, WIDTH]
        return torch.lerp(ground, ink, coverage)


class GlyphsModel(EmbeddedModel):
    """The generator of words that ships with the package, pretrained with a stated share of wrong captions."""

    name: Literal["glyphs"] = "glyphs"

    kind: ClassVar[FlowMapKind] = "two_time"
    domain: ClassVar[str] = "glyphs"
    latent_shape = LATENT_SHAPE

    @staticmethod
    def networks() -> Networks:
        return Networks(LetterTransformer(SLOT_SIZES, LATENT_SHAPE), StripAutoencoder())

    @staticmethod
    def read(prompt: str) -> Sequence[int]:
        return parse(prompt).slots
