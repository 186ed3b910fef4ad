"""Held-out evaluation: figures by hand, and pictures that depend on nothing but prompt and seed."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.config import configure
from workbench.evaluate import (
    HeldOut,
    breakdown,
    generate,
    held_out,
    image_noise,
    interval,
    load_policy,
    measure,
    thumbnails,
    to_uint8,
)
from workbench.events import CheckpointReady
from workbench.flow import time_grid
from workbench.models.policy import Policy
from workbench.models.shapes import ShapesModel
from workbench.samplers import SAMPLERS
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_scenes import parse, render, sample_scenes

TASK = ShapesTask()
PROMPTS = list(TASK.prompts("held_out")[:6])


class PlainTask(ShapesTask):
    """A task that knows neither statistics nor layouts."""

    def statistics(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def layouts(self, images: Tensor) -> Sequence[Hashable] | None:
        return None


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(ShapesModel(), torch.device("cpu"))


def flat(*values: float) -> Tensor:
    """Pictures of one grey each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 40, 40).contiguous()


# Figures


def test_an_interval_is_the_students_interval_of_the_mean() -> None:
    found = interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t(0.975, 3), sample standard deviation over sqrt(4)
    assert found.value == pytest.approx(2.5)
    assert (found.low, found.high) == (pytest.approx(2.5 - half, rel=1e-5), pytest.approx(2.5 + half, rel=1e-5))


def test_an_interval_of_one_value_or_of_equal_values_has_no_width() -> None:
    for values in ([2.0], [2.0, 2.0, 2.0]):
        found = interval(torch.tensor(values))
        assert found.low == found.value == found.high == 2.0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2,000 samples of 6: coverage 0.95 within four standard errors of the binomial."""
    draws = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = np.mean([found.low <= 0 <= found.high for found in map(interval, draws)])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_measures_average_a_group_first_because_prompts_are_the_independent_draws() -> None:
    sample = HeldOut(("a circle",) * 2 + ("a square",) * 2, (0, 1, 2, 3), 2)
    images = flat(0.0, 0.2, 0.6, 0.8)
    found = measure(images, sample, PlainTask(), {"grey": images.mean((1, 2, 3))}, base=flat(0.0, 0.0, 0.6, 0.6))
    expected = interval(torch.tensor([0.1, 0.7]))
    assert found["grey"].value == pytest.approx(0.4)
    assert found["grey"].low == pytest.approx(expected.low)
    assert found["distance_to_base"].value == pytest.approx(0.1)
    assert found["diversity"].value == pytest.approx(0.2, rel=1e-4)  # float32 sums over 4,800 numbers
    assert found["saturation"].value == found["sharpness"].value == 0
    assert set(found) == {"grey", "distance_to_base", "diversity", "saturation", "sharpness"}


def test_diversity_is_the_mean_distance_of_two_different_images_of_a_group() -> None:
    sample = HeldOut(("a circle",) * 3, (0, 1, 2), 3)
    found = measure(flat(0.0, 0.3, 0.9), sample, PlainTask(), {})
    assert found["diversity"].value == pytest.approx((0.3 + 0.6 + 0.9) / 3, rel=1e-5)
    same = measure(flat(0.5, 0.5, 0.5), sample, PlainTask(), {})
    assert same["diversity"].value == 0
    coloured = flat(0.0, 0.0, 0.0).clone()
    coloured[:, 0] = 0.6
    assert measure(coloured, sample, PlainTask(), {})["saturation"].value == pytest.approx(0.6)


def test_layouts_are_the_share_of_different_compositions_in_a_group() -> None:
    rng = np.random.default_rng(0)
    scenes = sample_scenes([parse("a red circle")] * 8, rng)
    scenes[1] = scenes[2] = scenes[0]  # three alike
    cells = [int(np.flatnonzero(scene)[0]) for scene in scenes]
    sample = HeldOut(("a red circle",) * 8, tuple(range(8)), 4)
    expected = np.mean([len(set(cells[:4])) / 4, len(set(cells[4:])) / 4])
    found = measure(render(scenes), sample, TASK, {})
    assert found["layouts"].value == pytest.approx(expected)
    assert found["palette_distance"].value == pytest.approx(0, abs=1e-6)


def test_a_breakdown_is_the_mean_of_each_skill() -> None:
    prompts = ("a circle",) * 2 + ("two red circles",) * 2 + ("a square",) * 2
    sample = HeldOut(prompts, tuple(range(6)), 2)
    found = breakdown(torch.tensor([1.0, 0.0, 0.25, 0.25, 1.0, 1.0]), sample, TASK)
    assert {name: figure.value for name, figure in found.items()} == {"single": 0.75, "counting": 0.25}
    assert found["single"].low < 0.75 < found["single"].high


def test_the_held_out_sample_is_balanced_fixed_and_a_longer_one_begins_with_it() -> None:
    short, long = (held_out(TASK, count, 4, seed=7) for count in (48, 96))
    assert len(short.prompts) == 48
    assert long.prompts[:48] == short.prompts
    assert long.seeds[:48] == short.seeds
    assert len(set(long.seeds)) == 96
    assert set(long.prompts) <= set(TASK.prompts("held_out"))
    skills = [TASK.skill(prompt) for prompt in short.prompts[::4]]
    assert all(skills.count(skill) == 2 for skill in set(skills))
    assert all(len(set(short.prompts[i : i + 4])) == 1 for i in range(0, 48, 4))


def test_thumbnails_and_bytes_keep_small_pictures_as_they_are() -> None:
    images = torch.rand(2, 3, 40, 40)
    assert torch.allclose(thumbnails(images), images)
    assert thumbnails(torch.rand(1, 3, 256, 256)).shape == (1, 3, 64, 64)
    assert to_uint8(torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0]])).tolist() == [[0, 0, 128, 255, 255]]


# Pictures


@pytest.mark.parametrize("sampler", ["ode", "asfmc"])
def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_its_company(policy: Policy, sampler: str) -> None:
    kernel = SAMPLERS[sampler]()
    together = generate(policy, PROMPTS, range(6), steps=3, shift=4.0, sampler=kernel)
    for i in (0, 4):
        alone = generate(policy, PROMPTS[i : i + 1], [i], steps=3, shift=4.0, sampler=kernel)
        assert torch.allclose(alone[0], together[i], atol=1e-4)
    reverse = generate(policy, PROMPTS[::-1], list(range(6))[::-1], steps=3, shift=4.0, sampler=kernel)
    assert torch.allclose(reverse.flip(0), together, atol=1e-4)


def test_the_noise_of_a_seed_is_the_same_everywhere() -> None:
    assert torch.equal(image_noise([5, 9], (6, 4, 4))[1:], image_noise([9], (6, 4, 4)))
    assert not torch.equal(image_noise([5], (6, 4, 4)), image_noise([9], (6, 4, 4)))


def test_without_a_sampler_pictures_are_deterministic_composition(policy: Policy) -> None:
    first, second = (generate(policy, PROMPTS, range(6), steps=2) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, generate(policy, PROMPTS, range(6), steps=2, sampler=SAMPLERS["asfmc"](noise=0)))
    assert not torch.allclose(first, generate(policy, PROMPTS, range(6), steps=2, sampler=SAMPLERS["asfmc"](noise=1)), atol=1e-2)
    assert ((first >= 0) & (first <= 1)).all()


def test_more_pictures_than_a_batch_are_the_same_pictures(policy: Policy) -> None:
    from workbench.evaluate import stream_images

    stream = stream_images(policy.generator, PROMPTS, list(range(6)), times=time_grid(2), batch=4)
    done, last = [], None
    while last is None:
        try:
            done.append(next(stream))
        except StopIteration as stop:
            last = stop.value
    assert torch.allclose(last, generate(policy, PROMPTS, range(6), steps=2), atol=1e-4)
    assert [progress.done for progress in done] == [2, 4, 5, 6]
    assert {progress.total for progress in done} == {6}


def test_a_policy_is_loaded_with_its_averaged_weights_or_as_the_base() -> None:
    config = configure("shapes")
    base = load_policy(config)
    average = {name: p.detach() + 1.0 for name, p in base.parameters.items()}
    raw = {name: p.detach() + 2.0 for name, p in base.parameters.items()}
    loaded = load_policy(config, CheckpointReady(3, {"policy": raw, "ema": average, "optimizer": {}}, {}))
    assert all(torch.equal(p, average[name]) for name, p in loaded.parameters.items())
