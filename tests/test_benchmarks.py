"""Benchmarks, at sizes that take seconds: their figures are there, and what they measure with can be trusted."""

import json
import os
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.benchmarks import align
from workbench.benchmarks.align import bench_align
from workbench.benchmarks.base import NOISE_SEED, bench_base, fresh_sample
from workbench.benchmarks.detector import bench_detector, detected_objects, near_misses, scene_objects
from workbench.benchmarks.overhead import bench_overhead
from workbench.benchmarks.rewards import bench_rewards
from workbench.config import configure
from workbench.recipes import RECIPES
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_detector import detect, score
from workbench.tasks.shapes_scenes import SKILLS, parse, render, sample_scenes

TINY = {
    "grpo.groups": 2,
    "grpo.group_size": 2,
    "evaluation.images": 8,
    "evaluation.final_images": 8,
    "evaluation.group_size": 2,
    "evaluation.preview": 2,
    "evaluation.steps": (4,),
    "evaluation.every": 2,
    "guard.collapse": 0,
}


def leaves(figures: Any) -> list[Any]:
    """Every number and text of nested figures."""
    if isinstance(figures, dict | list):
        return [leaf for value in (figures.values() if isinstance(figures, dict) else figures) for leaf in leaves(value)]
    return [figures]


def test_the_detector_benchmark_covers_every_skill_and_accepts_no_wrong_prompt() -> None:
    figures = bench_detector(images=240)
    assert set(figures["agreement_by_skill"]) == set(SKILLS)
    assert figures["worst_skill"] >= 0.99
    assert set(figures["wrong_prompts"]) == {"colour", "shape", "number", "relation", "binding"}
    assert all(kind["tested"] > 0 and kind["accepted"] == 0 for kind in figures["wrong_prompts"].values())
    assert figures["milliseconds_per_image"] > 0


def test_agreement_notices_an_object_that_was_moved_recoloured_or_removed() -> None:
    prompts = ["a red circle left of a blue square"] * 3
    scenes = sample_scenes([parse(prompt) for prompt in prompts], np.random.default_rng(0))
    images = render(scenes)
    drawn = scene_objects(scenes)
    assert detected_objects(detect(images)) == drawn
    assert all(len(objects) == 2 for objects in drawn)
    images = images.clone()
    images[0] = images[0].flip(-1)
    images[1] = images[1].roll(1, 0)
    images[2] = images[2, :, :1, :1]
    assert not any(seen == real for seen, real in zip(detected_objects(detect(images)), drawn, strict=True))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_near_misses_are_prompts_of_the_domain_that_no_scene_of_the_prompt_satisfies(split: str) -> None:
    prompts = ShapesTask().prompts(split)[:60]
    images = render(sample_scenes([parse(prompt) for prompt in prompts], np.random.default_rng(1)))
    pairs = [(index, changed) for index, prompt in enumerate(prompts) for _, changed in near_misses(prompt)]
    wrong = score(images[[index for index, _ in pairs]], [changed for _, changed in pairs])
    assert wrong.dense.max() < 1
    assert wrong.exact.max() == 0


def test_the_base_benchmark_reports_size_quality_and_speed_for_each_number_of_steps() -> None:
    report = bench_base(models=["shapes"], prompts=6, per_prompt=2, steps=(1, 4))
    assert report["images"] == 12
    assert set(report["models"]) == {"shapes"}
    figures = report["models"]["shapes"]
    assert figures["kind"] == "two_time"
    assert 0 < figures["weights"]["megabytes"] <= 8
    assert figures["weights"]["network_parameters"] > 0
    assert isinstance(figures["weights"]["model_card"], dict)
    assert set(figures["steps"]) == {"1", "4"}
    for measured in figures["steps"].values():
        assert {"shapes_exact", "shapes_dense", "shapes_fidelity", "palette_distance", "layouts"} <= set(measured)
        assert set(measured["success_by_skill"]) == set(SKILLS)
        assert measured["images_per_second"] > 0
    best = figures["drawn_by_the_renderer"]
    assert best["rendered"]["shapes_exact"]["value"] == 1
    assert best["rendered"]["palette_distance"]["value"] < 1e-3
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("name", RECIPES)
def test_the_base_benchmark_judges_every_model_that_ships_by_the_rewards_of_its_domain(name: str) -> None:
    figures = bench_base(models=[name], prompts=2, per_prompt=2)["models"][name]
    assert list(figures["steps"]) == [str(count) for count in RECIPES[name]().stages()[-1].evaluated_with]
    for measured in figures["steps"].values():
        assert set(RECIPES[name].domain.rewards) <= set(measured)
    assert figures["drawn_by_the_renderer"]["rendered"][RECIPES[name].domain.rewards[0]]["value"] == 1


def test_benchmarks_look_at_noise_that_no_preset_is_evaluated_on() -> None:
    config = configure("shapes")
    sample = fresh_sample(config, 512, 4)
    last = config.evaluation.seed + max(config.evaluation.final_images, config.grpo.groups * config.grpo.group_size)
    assert min(sample.seeds) == NOISE_SEED > last
    assert len(set(sample.seeds)) == 2048
    assert set(sample.prompts).isdisjoint(config.task.prompts("train"))


def test_the_alignment_benchmark_measures_weights_from_within_each_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only goes on when it is looked at, so that a slow machine gets as far."""
    ticks = count()
    monkeypatch.setattr(align, "time", SimpleNamespace(perf_counter=lambda: 0.02 * next(ticks)))
    figures = bench_align(
        seeds=(3,), budgets=(4.0, 5.0), others=("shapes_hacked",), prompts=2, per_prompt=2, changes=TINY, start_seconds=0.0
    )
    assert set(figures["runs"]) == {"shapes, seed 3", "shapes_hacked, seed 3"}
    for run in figures["runs"].values():
        assert run["error"] is None
        assert run["curve"][0]["iteration"] == 0
        assert run["iterations"] >= max(point["iteration"] for point in run["curve"])
        assert isinstance(run["hacking_suspected"], bool)
        assert all(found["seconds"] <= float(budget.removesuffix(" s")) for budget, found in run["at"].items())
    last = figures["runs"]["shapes, seed 3"]["at"]["5 s"]
    assert last["iteration"] > 0
    assert last["gain"] == pytest.approx(last["shapes_exact"]["value"] - figures["base"]["shapes_exact"]["value"])
    assert figures["median"]["5 s"]["iteration"] == last["iteration"]
    json.dumps(figures, allow_nan=False)


def test_the_overhead_benchmark_compares_iterations_with_the_bare_work_in_them() -> None:
    figures = bench_overhead(pairs=2, changes=TINY | {"record.checkpoint_every": 2}, page=False)
    assert figures["with_store_and_page"] is None
    for name in ("alone", "with_store"):
        assert figures[name]["ratio_networks_and_reward"] > 0
        assert figures[name]["bare_networks_seconds"] > 0
    assert figures["with_store"]["checkpoint_seconds"] > 0
    assert all(isinstance(leaf, int | float | str | None) for leaf in leaves(figures))


def test_measuring_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    bench_detector(images=12)
    assert torch.get_num_threads() == before


def test_the_benchmark_of_rewards_tells_what_scoring_beside_the_drawing_saves() -> None:
    before = dict(os.environ)
    small = {"grpo.groups": 2, "compute.sample_batch": 4, "evaluation.steps": (1,)}
    figures = bench_rewards(pairs=1, kinds=("function",), structures=("branch",), changes=small)["branch"]
    assert figures["images"] == 16
    at_once, beside = (figures["function"][way] for way in ("at_once", "beside"))
    assert at_once["reward_seconds"] > 0.9 * 16 * figures["reward_milliseconds_per_image"] / 1000
    assert 0 < beside["reward_seconds"] < at_once["reward_seconds"]
    assert figures["function"]["saved"] < 1
    assert dict(os.environ) == before
