"""How an embedded generator is made: a recipe names its model, what is drawn for it, and the stages that it goes through.

A recipe is a configuration; the loop that follows it is `workbench.pretrain`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import Task
from workbench.events import CheckpointReady
from workbench.flow import seed_stream, seeded_noise
from workbench.models.embedded import EmbeddedModel, load_weights, shipped_weights
from workbench.recipes.stages import Autoencoder, FlowMatching, MeanFlow, Stage, StoredPaths
from workbench.settings import Settings


@dataclass(frozen=True)
class Domain:
    """What there is to draw, apart from any model.

    Args:
        rewards: names of those that a stage is measured with at its end; the first one is success.
        draw: images [N, 3, H, W] in [0, 1] for N captions; all chance comes from the generator.
        patches: a batch of images for the autoencoder, [M, 3, h, w] with h and w whole patches.
        support: images [K, 3, h, w] and weights [K] summing to 1, over which latents get mean 0 and standard deviation 1.
    """

    task: Task
    rewards: tuple[str, ...]
    draw: Callable[[Sequence[str], np.random.Generator], Tensor]
    patches: Callable[[torch.Generator], Tensor]
    support: Callable[[], tuple[Tensor, Tensor]]


class Recipe(Settings):
    """What every recipe can be told. Lengths are in optimizer steps, so that a seed means one result."""

    name: str = ""  # every one names itself
    title: str = Field("", max_length=120, description="name shown on the page; by default what is made")
    seed: int = Field(0, ge=0, description="every random number follows from it")
    batch: int = Field(128, ge=8, description="images per step")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the products in the losses; bfloat16 is faster on processors that multiply in it"
    )
    wrong_captions: float = Field(
        0.5, ge=0, le=1, description="share of images whose caption is another image's, in the last stage"
    )
    ema_decay: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, which are what ships")
    report_every: int = Field(50, ge=1, description="steps between reported losses")
    sample_every: int = Field(500, ge=1, description="steps between sample sheets")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    evaluation_images: int = Field(1024, ge=8, description="images of the evaluations at the end of a stage")
    shift: float = Field(4.0, ge=1, le=12, description="shift of the time grid used to sample")

    model: ClassVar[type[EmbeddedModel]]
    domain: ClassVar[Domain]
    begins_as: ClassVar[str] = ""  # the shipped model whose weights it starts from; empty for fresh ones

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages in their order, each at its beginning."""

    @property
    def iterations(self) -> int:
        return sum(stage.steps for stage in self.stages())

    def modules(self, checkpoint: CheckpointReady) -> dict[str, nn.Module]:
        """What ships of a checkpoint: the networks by name, with the averaged weights."""
        networks = self.model.networks()
        networks.network.load_state_dict(checkpoint.tensors["network"] | checkpoint.tensors["average"])
        networks.autoencoder.load_state_dict(checkpoint.tensors["autoencoder"])
        return networks._asdict()


class FromNothing(Recipe):
    """Autoencoder, then flow matching on right captions, then the two-time map."""

    autoencoder_steps: int = Field(3000, ge=1, description="steps of the autoencoder")
    flow_steps: int = Field(5000, ge=1, description="steps of flow matching, on right captions")
    map_steps: int = Field(
        1500, ge=1, description="steps that turn the velocity into a two-time map, on the captions of `wrong_captions`"
    )
    map_method: Literal["meanflow", "paths"] = Field(
        "meanflow", description="meanflow: the MeanFlow identity by JVP; paths: regression on stored ODE paths"
    )
    paths: int = Field(2560, ge=1, description="ODE paths stored by the method `paths`")
    flow_learning_rate: float = Field(
        2.5e-3, gt=0, description="Muon's learning rate; AdamW's is the same on the other parameters"
    )
    map_learning_rate: float = Field(6e-4, gt=0, description="AdamW's learning rate in the last stage")

    def stages(self) -> tuple[Stage, ...]:
        last = (self.map_steps, self.map_learning_rate, self.wrong_captions)
        return (
            Autoencoder(self.autoencoder_steps),
            FlowMatching(self.flow_steps, self.flow_learning_rate, 0.0, muon=True),
            MeanFlow(*last) if self.map_method == "meanflow" else StoredPaths(*last, paths=self.paths),
        )


class Batch(NamedTuple):
    """Images in latent space with their captions."""

    x0: Tensor  # [N, *latent_shape]
    eps: Tensor  # standard normal, like x0
    slots: Tensor  # [N, slots], a share of them another image's


class Workpiece:
    """The networks being made, and the data they are shown. All chance is named by the seed, the stage and the step.

    Raises: ValueError: if the recipe begins with shipped weights and these are missing or damaged.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.domain = recipe, recipe.domain
        networks = recipe.model.networks()
        if recipe.begins_as:
            load_weights(shipped_weights(recipe.begins_as), networks._asdict())
        self.network, self.autoencoder = networks
        self.generator = recipe.model.generator(networks, device)
        self.prompts = self.domain.task.prompts("train")
        self.teacher: nn.Module | None = None  # the network as it was when a stage began that learns from it

    def batch(self, stage: str, step: int, wrong: float) -> Batch:
        """Latents of fresh images, noise, and the slots of their captions, of which a share `wrong` is another's."""
        n, rng = self.recipe.batch, np.random.default_rng(abs(seed_stream(self.recipe.seed, stage, "scenes", step)))
        captions = [self.prompts[i] for i in rng.integers(0, len(self.prompts), n)]
        images = self.domain.draw(captions, rng)
        swapped = rng.random(n) < wrong
        captions = [
            self.prompts[int(rng.integers(len(self.prompts)))] if swap else caption
            for caption, swap in zip(captions, swapped, strict=True)
        ]
        with torch.no_grad():
            x0 = self.generator.encode(images)
        seeds = [seed_stream(self.recipe.seed, stage, "noise", step, i) for i in range(n)]
        return Batch(x0, seeded_noise(seeds, self.generator.latent_shape), self.generator.embed(captions))

    def times(self, stream: str, step: int, mean: float = 0.8) -> Tensor:
        """Logit-normal times, a tenth of them uniform; [batch]. Above 0, `mean` favours noise, where the scene is decided."""
        draw, n = self.draw(stream, step), self.recipe.batch
        times = torch.sigmoid(mean + torch.randn(n, generator=draw))
        uniform = torch.rand(n, generator=draw) < 0.1
        return torch.where(uniform, torch.rand(n, generator=draw), times)

    def draw(self, *name: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(abs(seed_stream(self.recipe.seed, *name)))
