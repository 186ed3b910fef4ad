"""Pretraining of the embedded generators: their stages, their targets, and going on where it stopped."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.events import (
    CheckpointReady,
    Controls,
    Evaluated,
    Event,
    Finished,
    IterationDone,
    Progress,
    Sampled,
    Started,
)
from workbench.exact_json import from_json, to_json
from workbench.flow import time_grid
from workbench.models.embedded import NetworkFlowMap, load_weights, save_weights, shipped_weights
from workbench.pretrain import Training, configure_recipe, pretrain, recorded_recipe
from workbench.recipes import RECIPES
from workbench.recipes.base import Recipe, Workpiece
from workbench.recipes.shapes import ShapesConsistencyRecipe, ShapesRecipe, ShapesVelocityRecipe
from workbench.recipes.stages import Autoencoder, Consistency, Stage, StoredPaths

SMALL: dict[str, Any] = {
    "batch": 8,
    "autoencoder_steps": 3,
    "flow_steps": 4,
    "map_steps": 4,
    "paths": 6,
    "report_every": 1,
    "sample_every": 100,
    "checkpoint_every": 2,
    "evaluation_images": 8,
}
SHORT: dict[str, Any] = {"batch": 8, "steps": 3, "report_every": 1, "checkpoint_every": 2, "evaluation_images": 8}
CPU = torch.device("cpu")


def keep(event: Event) -> Event:
    """A checkpoint as a disk would give it back."""
    if not isinstance(event, CheckpointReady):
        return event
    tensors = {stem: {name: value.clone() for name, value in named.items()} for stem, named in event.tensors.items()}
    return CheckpointReady(event.iteration, tensors, from_json(to_json(event.state)))


def told(events: Iterator[Event]) -> list[Event]:
    return [keep(event) for event in events if not isinstance(event, Progress)]


def kinds(events: list[Event]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.iteration) for event in events]  # type: ignore[union-attr]


@pytest.fixture(scope="module", params=["meanflow", "paths"])
def whole(request: pytest.FixtureRequest) -> tuple[Recipe, list[Event]]:
    """A run from nothing to its end, by each way to the map."""
    recipe = ShapesRecipe(map_method=request.param, **SMALL)
    return recipe, told(pretrain(recipe))


def test_the_stages_follow_one_another_and_each_ends_evaluated_and_saved(whole: tuple[Recipe, list[Event]]) -> None:
    recipe, events = whole
    done = {i: ("IterationDone", i) for i in range(1, 12)}
    assert kinds(events) == [
        ("Started", 0),
        *(done[1], done[2], ("CheckpointReady", 2), done[3], ("CheckpointReady", 3)),
        *(done[4], done[5], ("CheckpointReady", 5), done[6], done[7], ("Evaluated", 7), ("CheckpointReady", 7)),
        *(done[8], done[9], ("CheckpointReady", 9), done[10], done[11], ("Evaluated", 11), ("CheckpointReady", 11)),
        ("Finished", 11),
    ]
    assert recipe.iterations == 11
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert started.facts["iterations"] == 11
    assert isinstance(finished, Finished)
    assert finished.summary["stopped"] is False
    flow, last = (event for event in events if isinstance(event, Evaluated))
    assert list(flow.measures) == [16]
    assert list(last.measures) == [1, 2, 4, 8]
    losses = [event.metrics for event in events if isinstance(event, IterationDone)]
    assert [next(iter(figures)) for figures in losses] == ["loss_autoencoder"] * 3 + ["loss_flow"] * 4 + ["loss_map"] * 4
    assert all(math.isfinite(value) for figures in losses for value in figures.values())


def test_a_resumed_run_equals_an_uninterrupted_one_in_every_stage(whole: tuple[Recipe, list[Event]]) -> None:
    recipe, events = whole
    last = [event for event in events if isinstance(event, CheckpointReady)][-1]
    for start in (2, 3, 5, 7, 9):  # within each stage, and at the end of the first two
        checkpoint = next(event for event in events if isinstance(event, CheckpointReady) and event.iteration == start)
        resumed = told(pretrain(recipe, resume=checkpoint))
        rest = events[events.index(checkpoint) + 1 :]
        assert kinds(resumed) == [("Started", start), *kinds(rest)]
        for ours, theirs in zip(resumed[1:], rest, strict=True):
            if isinstance(ours, IterationDone):
                assert ours.metrics == theirs.metrics  # type: ignore[union-attr]
            if isinstance(ours, Evaluated):
                assert ours.measures == theirs.measures  # type: ignore[union-attr]
        again = resumed[-2]
        assert isinstance(again, CheckpointReady)
        assert again.state == last.state
        assert again.tensors.keys() == last.tensors.keys()
        for stem, named in last.tensors.items():
            assert all(torch.equal(value, again.tensors[stem][name]) for name, value in named.items()), (start, stem)


@pytest.fixture(scope="module", params=["shapes_fm", "shapes_cm"])
def continued(request: pytest.FixtureRequest) -> tuple[Recipe, list[Event]]:
    """A run that begins with shipped weights, to its end."""
    recipe = configure_recipe(request.param, SHORT)
    return recipe, told(pretrain(recipe))


def test_what_begins_with_shipped_weights_has_one_stage_and_resumes_within_it(continued: tuple[Recipe, list[Event]]) -> None:
    recipe, events = continued
    saved = [event for event in events if isinstance(event, CheckpointReady)]
    assert [event.iteration for event in saved] == [2, 3]
    evaluated = next(event for event in events if isinstance(event, Evaluated))
    assert list(evaluated.measures) == list(recipe.stages()[0].evaluated_with)
    again = told(pretrain(recipe, resume=saved[0]))
    last = next(event for event in again if isinstance(event, CheckpointReady))
    assert last.state == saved[1].state
    for stem, named in saved[1].tensors.items():
        assert all(torch.equal(value, last.tensors[stem][name]) for name, value in named.items()), stem


def test_it_moves_the_network_and_leaves_the_autoencoder(continued: tuple[Recipe, list[Event]]) -> None:
    recipe, events = continued
    shipped = recipe.model.networks()
    load_weights(shipped_weights(recipe.begins_as), shipped._asdict())
    begun, last = Workpiece(recipe, CPU), [event for event in events if isinstance(event, CheckpointReady)][-1]
    for name, value in shipped.network.state_dict().items():
        assert torch.equal(value, begun.network.state_dict()[name])
    assert any(not torch.equal(value, last.tensors["network"][name]) for name, value in shipped.network.state_dict().items())
    assert all(torch.equal(value, last.tensors["autoencoder"][name]) for name, value in shipped.autoencoder.state_dict().items())


def test_what_it_makes_loads_as_the_model(whole: tuple[Recipe, list[Event]], tmp_path: Any) -> None:
    last = [event for event in whole[1] if isinstance(event, CheckpointReady)][-1]
    model = whole[0].model
    networks = model.networks()
    networks.network.load_state_dict(last.tensors["network"] | last.tensors["average"])
    networks.autoencoder.load_state_dict(last.tensors["autoencoder"])
    save_weights(tmp_path / "made.safetensors", networks._asdict(), {})
    generator = model(weights=str(tmp_path / "made.safetensors")).load(CPU)
    assert generator.kind == "two_time"


def test_stopping_saving_and_sampling_happen_at_the_next_step() -> None:
    controls, seen = Controls(), []
    recipe = ShapesRecipe(**SMALL | {"checkpoint_every": 100})
    for event in pretrain(recipe, controls=controls):
        seen.append(event)
        if isinstance(event, IterationDone) and event.iteration == 4:
            controls.save = controls.sample = True
        if isinstance(event, IterationDone) and event.iteration == 5:
            controls.stop = True
    events = told(iter(seen))
    assert kinds(events)[-6:] == [
        *(("IterationDone", 4), ("Sampled", 4), ("CheckpointReady", 4)),
        *(("IterationDone", 5), ("CheckpointReady", 5), ("Finished", 5)),
    ]
    assert events[-1].summary["stopped"] is True  # type: ignore[union-attr]
    sheet = next(event for event in events if isinstance(event, Sampled))
    assert sheet.preview.images.shape == (48, 3, 40, 40)
    assert len(sheet.prompts) == len(sheet.seeds) == 48


def test_until_the_last_stage_the_network_is_sampled_as_a_velocity() -> None:
    found = {}
    for recipe in (ShapesRecipe(**SMALL), ShapesVelocityRecipe(**SHORT), ShapesConsistencyRecipe(**SHORT)):
        for stage in recipe.stages():
            work = Workpiece(recipe, CPU)
            Training(work, stage, start=0)
            found[recipe.name, stage.name] = work.generator.bind(work.generator.embed(["a circle"])).kind
    assert found == {
        ("shapes", "autoencoder"): "velocity",
        ("shapes", "flow"): "velocity",
        ("shapes", "map"): "two_time",
        ("shapes_fm", "flow"): "velocity",
        ("shapes_cm", "consistency"): "single_time",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_ends_as_the_kind_of_its_model(name: str) -> None:
    recipe = RECIPES[name]()
    assert recipe.name == recipe.model.model_fields["name"].default == name
    assert recipe.stages()[-1].kind == recipe.model.kind
    assert len({stage.name for stage in recipe.stages()}) == len(recipe.stages())


def test_a_share_of_the_captions_is_another_images() -> None:
    """1,024 captions: the share within four standard errors, less those that are replaced by themselves."""
    work = Workpiece(ShapesRecipe(**SMALL | {"batch": 1024}), CPU)
    right = work.batch("map", 0, 0.0).slots
    for wrong in (0.4, 1.0):
        swapped = work.batch("map", 0, wrong).slots
        different = float((swapped != right).any(1).float().mean())
        assert abs(different - wrong) < 4 * math.sqrt(0.25 / 1024) + 0.02 * wrong


def test_latents_have_mean_0_and_unit_variance_after_the_first_stage() -> None:
    work = Workpiece(ShapesRecipe(**SMALL), CPU)
    with torch.no_grad():
        work.autoencoder.encoder[-1].weight.mul_(20)  # so that no number is too quiet to be raised to 1
    Autoencoder(3).finish(work)
    images, weights = work.domain.support()
    latents = work.generator.encode(images).flatten(1)
    assert torch.allclose((weights[:, None] * latents).sum(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose((weights[:, None] * latents.square()).sum(0), torch.ones(6), atol=1e-4)
    assert work.batch("flow", 0, 0.0).x0.shape == (8, 6, 4, 4)


def disturbed(recipe: Recipe) -> tuple[Workpiece, Stage]:
    """The last stage at its beginning, and a network that is random everywhere."""
    torch.manual_seed(0)
    work = Workpiece(recipe, CPU)
    with torch.no_grad():
        for layer in (work.network.modulation, work.network.final, work.network.leave):
            layer.weight.normal_(std=0.05)
    stage = recipe.stages()[-1]
    Training(work, stage, start=0)
    return work, stage


def test_the_meanflow_target_is_the_derivative_along_the_path() -> None:
    """u + (t - s) du/dt against v, where du/dt is a central difference along dx/dt = v, in float64."""
    work, stage = disturbed(ShapesRecipe(**SMALL))
    batch = work.batch("map", 0, work.recipe.wrong_captions)
    t, s = (f(torch.stack([work.times("map times", i) for i in range(2)]), 0).values for f in (torch.max, torch.min))
    loss = stage.loss(work, 0)
    x0, eps, slots = (part.double() if part.is_floating_point() else part for part in batch)
    t, s = t.double(), s.double()
    network = work.network.double()
    half = len(t) // 2
    s = torch.cat([t[:half], s[half:]])
    x = torch.lerp(x0, eps, t.view(-1, 1, 1, 1))
    with torch.no_grad():
        velocity, h = network(x, t, t, slots), 1e-4
        ahead, behind = (network(x + step * velocity, t + step, s, slots) for step in (h, -h))
        slope = (ahead - behind) / (2 * h)
        span = (t - s).view(-1, 1, 1, 1)
        target = (eps - x0) - span * slope  # on the first half the span is 0: plain flow matching
        error = (network(x, t, s, slots) - target).square().mean((1, 2, 3))
        expected = (error / (error + 0.01).sqrt()).mean()
    assert (slope[half:].abs().amax((1, 2, 3)) > 1e-3).all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_no_gradient_runs_through_the_meanflow_target() -> None:
    """The gradient is that of regression on the target as a constant."""
    work, stage = disturbed(ShapesRecipe(**SMALL))
    stage.loss(work, 0).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in work.network.parameters())
    assert float(work.network.interval.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_stored_paths_are_euler_paths_of_the_teacher() -> None:
    work, stage = disturbed(ShapesRecipe(map_method="paths", **SMALL))
    assert isinstance(stage, StoredPaths)
    points, slots = stage.integrate(work, steps=5)
    times = time_grid(5, work.recipe.shift)
    assert points.shape == (6, 6, 6, 4, 4)
    flow_map = work.generator.bind(slots)
    x = points[0]
    with torch.no_grad():
        for i in range(5):
            x = x + (times[i + 1] - times[i]) * flow_map.velocity(x, times[i])
            assert torch.allclose(points[i + 1], x, atol=1e-5)


def test_a_jump_is_regressed_on_where_the_teacher_and_the_student_end_together() -> None:
    """In data units: G(x, t) against G(psi(x, t, s), s), the difference divided by t; the student first equals its teacher."""
    work, stage = disturbed(ShapesConsistencyRecipe(**SHORT))
    assert isinstance(stage, Consistency)
    x0, eps, slots = work.batch("consistency", 0, work.recipe.wrong_captions)
    t = work.times("consistency times", 0)
    s = t * torch.rand(8, generator=work.draw("consistency shares", 0))
    x = torch.lerp(x0, eps, t.view(-1, 1, 1, 1))
    student, teacher = (NetworkFlowMap(network, slots, "two_time") for network in (work.network, work.teacher))
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                work.network.leave.weight.mul_(1.5)
        with torch.no_grad():
            target = student(teacher(x, t, s), s, 0.0)
            error = ((student(x, t, 0.0) - target) / t.view(-1, 1, 1, 1)).square().mean((1, 2, 3))
        assert error.mean() > 1e-3
        loss = stage.loss(work, 0)
        assert loss.item() == pytest.approx(float((error / (error + 0.01).sqrt()).mean()), rel=1e-3)
    loss.backward()
    assert all(p.grad is None for p in work.teacher.parameters())  # type: ignore[union-attr]


def test_a_loss_that_is_not_finite_ends_the_run_with_the_stage_and_the_step() -> None:
    recipe = ShapesRecipe(**SMALL)
    checkpoint = next(keep(e) for e in pretrain(recipe) if isinstance(e, CheckpointReady) and e.iteration == 5)
    assert isinstance(checkpoint, CheckpointReady)
    broken: dict[str, Tensor] = {name: torch.full_like(p, math.nan) for name, p in checkpoint.tensors["network"].items()}
    spoilt = CheckpointReady(5, checkpoint.tensors | {"network": broken}, checkpoint.state)
    with pytest.raises(FloatingPointError, match="flow: the gradient is not finite at step 2; resume from the last checkpoint"):
        told(pretrain(recipe, resume=spoilt))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("faces", {}, ["'faces'", "choose from: shapes"]),
        ("shapes", {"wrong_captions": "1.5"}, ["wrong_captions = 1.5", "less than or equal to 1"]),
        ("shapes", {"stepz": 3}, ["'stepz'", "choose from", "flow_steps"]),
        ("shapes_fm", {"flow_steps": 3}, ["'flow_steps'", "choose from", "steps"]),
        ("shapes", {"name": "shapes_fm"}, ["'name'"]),
    ],
)
def test_settings_are_checked(name: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        configure_recipe(name, changes)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_is_the_recipe(name: str) -> None:
    recipe = configure_recipe(name, {"seed": "3", "title": "mine"})
    assert recorded_recipe(from_json(to_json(recipe.model_dump(mode="json")))) == recipe
    assert recorded_recipe({"flow_steps": 7}) == ShapesRecipe(flow_steps=7)  # a record from when there was one recipe
