"""Settings that change while a run goes on: when they take effect, what is recorded, and that a resumed run has them too."""

from typing import Any

import pytest
from toy_training import SMALL, assert_same_state, keep, plain

from workbench.config import PRESETS, change_live, configure
from workbench.events import Changed, CheckpointReady, Controls, Event, GroupsScored, IterationDone
from workbench.history import History
from workbench.panels.runs import branch
from workbench.studio import Studio
from workbench.train import train

CONFIG = configure("shapes", SMALL | {"evaluation.every": 4, "record.checkpoint_every": 1})


def events(changes: dict[int, dict[str, Any]], resume: CheckpointReady | None = None) -> list[Event]:
    """A run in which settings are changed after certain iterations."""
    controls = Controls()
    found = []
    for event in train(CONFIG, controls=controls, resume=resume):
        found.append(keep(event))
        if isinstance(event, IterationDone) and event.iteration in changes:
            controls.changes = changes[event.iteration]
    return found


def test_a_change_holds_from_the_next_iteration_and_is_told() -> None:
    changed = {"sampler.noise": 0.3, "optimizer.learning_rate": 1e-5, "prompts": ["a red circle"]}
    before, after = events({}), events({2: changed})
    (told,) = [event for event in after if isinstance(event, Changed)]
    assert told == Changed(2, changed)
    first, second = ([event for event in found if isinstance(event, GroupsScored)] for found in (before, after))
    assert [plain(event) for event in first[:2]] == [plain(event) for event in second[:2]]
    assert set(second[2].prompts) == {"a red circle"}
    assert first[2].noise_std[0] / second[2].noise_std[0] == pytest.approx(0.7 / 0.3)
    rates = [event.metrics["learning_rate"] for event in after if isinstance(event, IterationDone)]
    assert rates[2] < 0.1 * rates[1]


def test_a_run_resumed_after_a_change_equals_one_that_went_on() -> None:
    whole = events({2: {"sampler.anchor": 0.5}})
    checkpoints = [event for event in whole if isinstance(event, CheckpointReady)]
    rest = events({}, resume=checkpoints[3])
    assert checkpoints[3].iteration == 3
    assert_same_state([event for event in rest if isinstance(event, CheckpointReady)][-1], checkpoints[-1])
    again = events({2: {"sampler.anchor": 0.5}}, resume=checkpoints[1])  # before the change: it is not known yet
    assert checkpoints[1].state["changes"] == {}
    assert_same_state([event for event in again if isinstance(event, CheckpointReady)][-1], checkpoints[-1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grpo.group_size": 4}, r"grpo.group_size cannot change while a run goes on.*sampler\.\*, prompts"),
        ({"sampler.name": "flow_sde"}, "sampler.name cannot change"),
        ({"sampler.noise": 7}, r"sampler.noise = 7"),
        ({"prompts": ["a red dodecahedron"]}, "dodecahedron"),
    ],
)
def test_what_may_not_change_is_refused_with_what_may(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        change_live(PRESETS["shapes"], changes)


def test_the_settings_of_a_run_are_those_it_began_with_and_what_was_changed_since(studio: Studio) -> None:
    run = studio.store.create("train", CONFIG.model_dump(mode="json"), title="toy", origin="test")
    studio.store.record(run, Changed(2, {"sampler.noise": 0.3}))
    studio.store.record(run, Changed(5, {"sampler.noise": 0.4, "prompts": ["a red circle"]}))
    settings = studio.settings(studio.store.run(run))
    assert (settings.sampler.noise, settings.prompts) == (0.4, ("a red circle",))
    studio.change(run, {"optimizer.learning_rate": "2e-4"})
    assert [(wish.wanted, wish.changes) for wish in studio.store.take_wishes(run)] == [
        ("change", {"optimizer.learning_rate": 2e-4})
    ]
    with pytest.raises(ValueError, match="cannot change while a run goes on"):
        studio.change(run, {"iterations": 3})


def test_changes_are_told_in_words_for_the_curves(studio: Studio) -> None:
    run = studio.store.create("train", {}, title="toy", origin="test")
    studio.store.record(run, Changed(2, {"objective.kl_weight": 0.3}))
    history = History().extended(studio.store.events(run))
    assert history.changes_told == [(2, "objective.kl weight = 0.3")]


def test_what_is_changed_between_two_events_of_an_iteration_is_not_lost() -> None:
    controls, told = Controls(changes={"sampler.noise": 0.3}), []
    for event in train(CONFIG, controls=controls):
        if isinstance(event, Changed):
            told.append(event)
        if isinstance(event, CheckpointReady) and event.iteration == 1:  # wishes have been read for the next iteration by now
            controls.changes = controls.changes | {"sampler.anchor": 0.5}
    assert [event.changes for event in told] == [{"sampler.noise": 0.3}, {"sampler.anchor": 0.5}]
    assert controls.changes == {}


def test_a_branch_begins_with_what_was_changed_before_its_checkpoint(studio: Studio) -> None:
    run = studio.store.create("train", CONFIG.model_dump(mode="json"), title="toy", origin="test")
    for event in events({1: {"sampler.noise": 0.3}, 2: {"sampler.anchor": 0.5}}):
        studio.store.record(run, event)
    studio.store.set_status(run, "done")
    found = studio.store.run(run)
    assert [studio.settings(found, at).sampler.noise for at in (1, 2)] == [0.7, 0.3]
    assert studio.settings(found, 2).sampler.anchor == 1.0
    reply = branch(studio, {"run": run, "iteration": 3, "changes": "iterations = 4"})
    while not studio.store.run(reply["run"]).over:
        studio.worker.call(lambda: None).result(30)
    config = studio.store.run(reply["run"]).config
    assert (config["sampler"]["noise"], config["sampler"]["anchor"]) == (0.3, 0.5)
