"""Teaching the preference scorer from pairs of rendered pictures. A generator of events, as `train` is."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.events import CheckpointReady, Controls, Event, Finished, IterationDone, Progress, Started
from workbench.flow import seed_stream
from workbench.optim import load_optimizer_tensors, optimizer_tensors, set_learning_rate
from workbench.rewards.preference import PreferenceScorer, bradley_terry
from workbench.rewards.preference_rule import taste
from workbench.settings import Settings
from workbench.tasks.glyphs_scenes import coverage, render, sample_scenes
from workbench.tasks.glyphs_words import WORDS


class PreferenceRecipe(Settings):
    """How the scorer is made. Lengths are in optimizer steps, so that a seed means one result."""

    name: Literal["preference"] = "preference"
    title: str = Field("", max_length=120, description="name shown on the page; by default what is made")
    seed: int = Field(0, ge=0, description="every random number follows from it")
    steps: int = Field(2000, ge=1, description="optimizer steps, each on fresh pairs")
    pairs: int = Field(64, ge=8, description="pairs of pictures per step")
    sharpness: float = Field(
        40.0, gt=0, description="how surely the better of two is chosen: log-odds per unit of the rule's difference"
    )
    learning_rate: float = Field(4e-3, gt=0, description="AdamW's learning rate, falling linearly to 0")
    held_out_pairs: int = Field(2048, ge=8, description="pairs of fresh scenes that it is tested on")
    report_every: int = Field(50, ge=1, description="steps between reported losses")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")

    @property
    def iterations(self) -> int:
        return self.steps

    @staticmethod
    def modules(checkpoint: CheckpointReady) -> dict[str, nn.Module]:
        """What ships of a checkpoint."""
        scorer = PreferenceScorer()
        scorer.load_state_dict(checkpoint.tensors["scorer"])
        return {"scorer": scorer}


def pretrain_preference(
    recipe: PreferenceRecipe, *, resume: CheckpointReady | None = None, controls: Controls | None = None
) -> Iterator[Event]:
    """Teach the scorer which of two rendered pictures the rule prefers; the last checkpoint's `scorer` tensors ship.

    Choices are drawn with the odds that the rule gives them, so they contradict it as people's do. The summary and the last
    metrics hold its accuracy on held-out pairs: how often it sides with the rule itself.

    Raises: FloatingPointError: if the loss stops being finite.
    """
    controls = controls or Controls()
    torch.manual_seed(recipe.seed)
    scorer = PreferenceScorer()
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    done = 0
    if resume is not None:
        scorer.load_state_dict(resume.tensors["scorer"])
        load_optimizer_tensors(optimizer, resume.tensors["optimizer"])
        done = resume.iteration
    yield Started(done, {"parameters": sum(p.numel() for p in scorer.parameters()), "iterations": recipe.steps})
    losses: list[float] = []
    figures: dict[str, float] = {}
    while done < recipe.steps and not controls.stop:
        images, liking = draw_pairs(recipe, "pairs", done, recipe.pairs)
        chance = torch.from_numpy(_rng(recipe, "choices", done).random(recipe.pairs)).float()
        preferred = (chance < (recipe.sharpness * (liking[0] - liking[1])).sigmoid()).float()
        first, second = scorer(images).chunk(2)
        loss = bradley_terry(first, second, preferred)
        loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {done}; use a smaller learning_rate")
        rate = recipe.learning_rate * (1 - done / recipe.steps)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done += 1
        yield Progress("preference", done, recipe.steps)
        last = done == recipe.steps
        if last:
            figures = _finish(recipe, scorer)
        if last or done % recipe.report_every == 0:
            yield IterationDone(done, {"loss": float(np.mean(losses)), "learning_rate": rate, **figures}, 0.0)
            losses = []
        if last or controls.stop or controls.save or done % recipe.checkpoint_every == 0:
            controls.save = False
            tensors = {"scorer": scorer.state_dict(), "optimizer": optimizer_tensors(optimizer)}
            yield CheckpointReady(done, tensors, {"step": done})
    yield Finished(done, {"stopped": done < recipe.steps, **figures})


@torch.no_grad()
def _finish(recipe: PreferenceRecipe, scorer: PreferenceScorer) -> dict[str, float]:
    """Set the scale of the scores by held-out pictures, and measure how often the scorer and the rule agree on pairs of them."""
    images, liking = draw_pairs(recipe, "held out", 0, recipe.held_out_pairs)
    raw = torch.cat([scorer(portion) for portion in images.split(256)])
    scorer.centre.copy_(raw.mean())
    scorer.spread.copy_(raw.std())
    score = raw.view(2, -1)
    apart = (liking[0] - liking[1]).abs()
    right = ((score[0] > score[1]) == (liking[0] > liking[1])).float()
    best = apart >= apart.median()
    return {
        "pair_accuracy": float(right.mean()),
        "pair_accuracy_clear": float(right[best].mean()),  # of the half of the pairs that differ most
        "correlation": float(torch.corrcoef(torch.stack([raw, liking.flatten()]))[0, 1]),
    }


def draw_pairs(recipe: PreferenceRecipe, name: str, step: int, pairs: int) -> tuple[Tensor, Tensor]:
    """Rendered pictures [2 * pairs, 3, H, W], the first of every pair and then the second, and the rule's values [2, pairs].

    They are another draw for every `name` and `step`.
    """
    rng = _rng(recipe, name, step)
    scenes = sample_scenes([WORDS[i] for i in rng.integers(0, len(WORDS), 2 * pairs)], rng)
    ink, ground = (torch.tensor([getattr(scene, field) for scene in scenes]) for field in ("ink", "ground"))
    return render(scenes), taste(ink, ground, torch.from_numpy(coverage(scenes))).view(2, pairs)


def _rng(recipe: PreferenceRecipe, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(abs(seed_stream(recipe.seed, "preference", *names)))
