"""Whether those who judge pictures of words can be trusted, what they cost, and what training loses while one works beside it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.config import configure
from workbench.evaluate import generate, held_out, load_policy
from workbench.models.policy import Policy
from workbench.preferences import PreferenceRecipe, draw_pairs
from workbench.rewards import REWARDS
from workbench.scoring import Judges
from workbench.tasks.glyphs_scenes import LENGTHS, LETTERS, coverage, prompt_of, render, sample_scenes
from workbench.tasks.glyphs_words import WORDS

CPU = torch.device("cpu")
READERS = ("glyphs_ocr", "glyphs_dense")


def bench_judges(
    images: int = 512,
    pairs: int = 1024,
    turns: int = 12,
    threads: Sequence[int] = (1, 2),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Readers on rendered words and letters, the learned scorer on pairs and strange pictures, and the throughput beside OCR."""
    say = progress or (lambda text: None)
    rng = np.random.default_rng(0)
    random_letters = ["".join(rng.choice(list(LETTERS), rng.integers(LENGTHS[0], LENGTHS[-1] + 1))) for _ in range(images)]
    figures: dict[str, Any] = {"images": images, "readers": {}}
    for name in READERS:
        figures["readers"][name] = {
            "words": _reading(name, [WORDS[i] for i in rng.integers(0, len(WORDS), images)], rng),
            "random_letters": _reading(name, random_letters, rng),
        }
        say(f"judges: {name} done")
    figures["scorer"] = _scoring(pairs, rng)
    say("judges: scorer done")
    figures["beside"] = {}
    for count in threads:
        figures["beside"][f"{count} threads"] = _beside(count, turns)
        say(f"judges: throughput with {count} threads done")
    return figures


def _reading(name: str, words: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """A reader's scores of rendered words for their own prompts and for others', and its milliseconds per image."""
    pictures, prompts = render(sample_scenes(words, rng)), [prompt_of(word) for word in words]
    judge = REWARDS[name]().load(CPU)
    judge(pictures[:2].clone(), prompts[:2])  # what is made at first use is not to be timed
    began = time.perf_counter()
    own = judge(pictures, prompts)
    seconds = time.perf_counter() - began
    return {
        "exact": float((own == 1).float().mean()),
        "mean": float(own.mean()),
        "mean_for_another_prompt": float(judge(pictures, prompts[1:] + prompts[:1]).mean()),
        "milliseconds_per_image": 1000 * seconds / len(words),
    }


def _scoring(pairs: int, rng: np.random.Generator) -> dict[str, float]:
    """The scorer against the rule on fresh pairs; then both on pictures that no pair was made of."""
    scorer, rule = (REWARDS[name]().load(CPU) for name in ("glyphs_preference", "glyphs_rule"))
    pictures, liking = draw_pairs(PreferenceRecipe(), "benchmark", 0, pairs)
    nobody = [""] * len(pictures)
    opinion = scorer(pictures, nobody)
    right = (opinion.view(2, -1).diff(dim=0).sign() == liking.diff(dim=0).sign()).float().squeeze(0)
    clear = liking.diff(dim=0).abs().squeeze(0)
    scenes = sample_scenes([WORDS[i] for i in rng.integers(0, len(WORDS), len(pictures))], rng)
    ground, ink = torch.from_numpy(rng.random((2, len(pictures), 3, 1, 1), dtype=np.float32))
    strange = torch.lerp(ground, ink, torch.from_numpy(coverage(scenes))[:, None])
    best = scorer(strange, nobody).topk(max(1, len(strange) // 100)).indices
    climbed = _climbed(scorer, pictures[:16])
    return {
        "pair_accuracy": float(right.mean()),
        "pair_accuracy_of_the_clearer_half": float(right[clear >= clear.median()].mean()),
        "rendered_mean": float(opinion.mean()),
        "rendered_best": float(opinion.max()),
        "strange_colours_best_hundredth": float(scorer(strange[best], nobody).mean()),
        "strange_colours_best_hundredth_by_the_rule": float(rule(strange[best], nobody).mean()),
        "climbed": float(scorer(climbed, nobody[:16]).mean()),
        "climbed_by_the_rule": float(rule(climbed, nobody[:16]).mean()),
    }


def _climbed(scorer: Callable[[Tensor, Sequence[str]], Tensor], images: Tensor, steps: int = 60) -> Tensor:
    """Images after gradient ascent on their pixels: what an unbounded policy could find."""
    for _ in range(steps):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(scorer(images, [""] * len(images)).logit().sum(), images)
        images = (images + 0.02 * gradient.sign()).clamp(0, 1)
    return images.detach()


def _beside(threads: int, turns: int) -> dict[str, float]:
    """Images sampled and states trained on per second, alone and beside OCR, in turns; the shares are medians over turns."""
    config = configure("shapes")
    policy, sample = load_policy(config), held_out(config.task, 64, 8, seed=0)
    scenes = sample_scenes(list(WORDS[:32]), np.random.default_rng(0))
    pictures, prompts = render(scenes).repeat(16, 1, 1, 1), [prompt_of(scene.word) for scene in scenes] * 16
    seconds: dict[str, list[float]] = {"sample": [], "sample_beside": [], "train": [], "train_beside": []}

    def draw() -> None:
        generate(policy, sample.prompts, sample.seeds, times=config.times)

    def learn() -> None:
        _learn(policy, sample.prompts)

    with _threads(threads):
        for turn in range(turns + 1):
            for name, work in (("sample", draw), ("train", learn)):
                alone = _timed(work)
                with Judges([REWARDS["glyphs_ocr"]()], CPU) as judges:
                    pending = judges.submit(pictures, prompts)
                    beside = _timed(work)
                    if pending.done():
                        raise RuntimeError("the judge was done first; give it more pictures")
                if turn:  # the first is for warming up
                    seconds[name].append(alone)
                    seconds[f"{name}_beside"].append(beside)
    return {
        "images_per_second": len(sample.prompts) / statistics.median(seconds["sample"]),
        "states_per_second": len(sample.prompts) / statistics.median(seconds["train"]),
        "sampling_beside_share": _share(seconds, "sample"),
        "training_beside_share": _share(seconds, "train"),
    }


def _learn(policy: Policy, prompts: Sequence[str]) -> None:
    """One forward and backward pass of the network."""
    generator = policy.generator
    x = torch.zeros(len(prompts), *generator.latent_shape)
    generator.bind(generator.embed(prompts))(x, 1.0, 0.5).square().mean().backward()
    generator.network.zero_grad()


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _share(seconds: dict[str, list[float]], name: str) -> float:
    """Throughput beside the judge as a share of that alone."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[f"{name}_beside"], strict=True))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
