"""Pretraining of the embedded generator: its stages, its targets, and going on where it stopped."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
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
from workbench.models.embedded import save_weights
from workbench.models.shapes import ShapesModel
from workbench.pretrain import PretrainConfig, Pretraining, pretrain

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
def whole(request: pytest.FixtureRequest) -> tuple[PretrainConfig, list[Event]]:
    """A run from nothing to its end, by each way to the map."""
    config = PretrainConfig(map_method=request.param, **SMALL)
    return config, told(pretrain(config))


def test_the_stages_follow_one_another_and_each_ends_evaluated_and_saved(whole: tuple[PretrainConfig, list[Event]]) -> None:
    config, events = whole
    done = {i: ("IterationDone", i) for i in range(1, 12)}
    assert kinds(events) == [
        ("Started", 0),
        *(done[1], done[2], ("CheckpointReady", 2), done[3], ("CheckpointReady", 3)),
        *(done[4], done[5], ("CheckpointReady", 5), done[6], done[7], ("Evaluated", 7), ("CheckpointReady", 7)),
        *(done[8], done[9], ("CheckpointReady", 9), done[10], done[11], ("Evaluated", 11), ("CheckpointReady", 11)),
        ("Finished", 11),
    ]
    assert config.iterations == 11
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


def test_a_resumed_run_equals_an_uninterrupted_one_in_every_stage(whole: tuple[PretrainConfig, list[Event]]) -> None:
    config, events = whole
    last = [event for event in events if isinstance(event, CheckpointReady)][-1]
    for start in (2, 3, 5, 7, 9):  # within each stage, and at the end of the first two
        checkpoint = next(event for event in events if isinstance(event, CheckpointReady) and event.iteration == start)
        resumed = told(pretrain(config, resume=checkpoint))
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


def test_what_it_makes_loads_as_the_model(whole: tuple[PretrainConfig, list[Event]], tmp_path: Any) -> None:
    last = [event for event in whole[1] if isinstance(event, CheckpointReady)][-1]
    networks = ShapesModel.networks()
    networks.network.load_state_dict(last.tensors["network"] | last.tensors["average"])
    networks.autoencoder.load_state_dict(last.tensors["autoencoder"])
    save_weights(tmp_path / "made.safetensors", networks._asdict(), {})
    generator = ShapesModel(weights=str(tmp_path / "made.safetensors")).load(torch.device("cpu"))
    assert generator.kind == "two_time"


def test_stopping_saving_and_sampling_happen_at_the_next_step() -> None:
    controls, seen = Controls(), []
    config = PretrainConfig(**SMALL | {"checkpoint_every": 100})
    for event in pretrain(config, controls=controls):
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
    work = Pretraining(PretrainConfig(**SMALL), torch.device("cpu"))
    found = {}
    for name in work.stages:
        work.stage(name)
        found[name] = work.generator.bind(work.generator.embed(["a circle"])).kind
    assert found == {"autoencoder": "velocity", "flow": "velocity", "map": "two_time"}


def test_a_share_of_the_captions_is_another_images() -> None:
    """4,096 captions: the share within four standard errors, less those that are replaced by themselves."""
    work = Pretraining(PretrainConfig(**SMALL | {"batch": 4096}), torch.device("cpu"))
    right = work._batch("map", 0, 0.0)[2]
    for wrong in (0.4, 1.0):
        swapped = work._batch("map", 0, wrong)[2]
        different = float((swapped != right).any(1).float().mean())
        assert abs(different - wrong) < 4 * math.sqrt(0.25 / 4096) + 0.02 * wrong


def test_latents_have_unit_variance_after_the_first_stage() -> None:
    work = Pretraining(PretrainConfig(**SMALL), torch.device("cpu"))
    work._normalise_latents()
    x0 = work._batch("flow", 0, 0.0)[0]
    assert x0.shape == (8, 6, 4, 4)
    assert not torch.equal(work.autoencoder.scale, torch.ones(6))


def disturbed() -> Pretraining:
    """A pretraining in its last stage whose network is random everywhere."""
    torch.manual_seed(0)
    work = Pretraining(PretrainConfig(**SMALL), torch.device("cpu"))
    work.stage("map")
    with torch.no_grad():
        for layer in (work.network.modulation, work.network.final, work.network.leave):
            layer.weight.normal_(std=0.05)
    return work


def test_the_meanflow_target_is_the_derivative_along_the_path() -> None:
    """u + (t - s) du/dt against v, where du/dt is a central difference along dx/dt = v, in float64."""
    work = disturbed()
    batch = work._batch("map", 0, work.config.wrong_captions)
    t, s = (f(torch.stack([work._times("map times", i, 0.8) for i in range(2)]), 0).values for f in (torch.max, torch.min))
    loss = work._meanflow_loss(0)
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
    work = disturbed()
    work._meanflow_loss(0).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in work.network.parameters())
    assert float(work.network.interval.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_stored_paths_are_euler_paths_of_the_teacher() -> None:
    work = Pretraining(PretrainConfig(map_method="paths", **SMALL), torch.device("cpu"))
    with torch.no_grad():
        work.network.leave.weight.normal_(std=0.05)
    work.stage("map")
    points, slots = work._integrate_paths(steps=5)
    times = time_grid(5, work.config.shift)
    assert points.shape == (6, 6, 6, 4, 4)
    flow_map = work.generator.bind(slots)
    x = points[0]
    with torch.no_grad():
        for i in range(5):
            x = x + (times[i + 1] - times[i]) * flow_map.velocity(x, times[i])
            assert torch.allclose(points[i + 1], x, atol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_stage_and_the_step() -> None:
    config = PretrainConfig(**SMALL)
    checkpoint = next(keep(e) for e in pretrain(config) if isinstance(e, CheckpointReady) and e.iteration == 5)
    assert isinstance(checkpoint, CheckpointReady)
    broken: dict[str, Tensor] = {name: torch.full_like(p, math.nan) for name, p in checkpoint.tensors["network"].items()}
    spoilt = CheckpointReady(5, checkpoint.tensors | {"network": broken}, checkpoint.state)
    with pytest.raises(FloatingPointError, match="flow: the gradient is not finite at step 2; resume from the last checkpoint"):
        told(pretrain(config, resume=spoilt))


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="wrong_captions"):
        PretrainConfig(wrong_captions=1.5)
    with pytest.raises(ValidationError, match="extra"):
        PretrainConfig(stepz=3)  # type: ignore[call-arg]
