"""The morning digest: what it counts, whom it names best, and a page that holds everything."""

import re
from html.parser import HTMLParser

import pytest
from toy_run import toy_config, toy_events

from workbench.config import validated
from workbench.digest_page import digest_page
from workbench.events import IterationDone, Reported, Started
from workbench.exact_json import from_json, to_json
from workbench.experiments.digest import digest, digest_text, told_duration
from workbench.experiments.executors import LOG
from workbench.experiments.points import PointDone, PointQueued
from workbench.experiments.schedules import Schedule, Schedules
from workbench.experiments.space import SweepSettings
from workbench.experiments.sweeps import begin_sweep
from workbench.store import Store

CONFIG = toy_config(10)
NOON = 1_795_262_400.0


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def finished(store, title, origin="test", iterations=10, status="done"):
    config = toy_config(iterations)
    run = store.create("train", config.model_dump(mode="json"), title=title, origin=origin)
    store.claim(run)
    store.set_status(run, "running")
    for event in toy_events(config):
        store.record(run, event)
    store.set_status(run, status)
    return run


def rewarded(store, title, reward, origin):
    """A run that reports nothing but its reward."""
    run = store.create("train", CONFIG.model_dump(mode="json"), title=title, origin=origin)
    store.claim(run)
    store.record(run, Started(0, {}))
    store.record(run, IterationDone(1, {"reward": 0.1}, 1.0))
    store.record(run, IterationDone(2, {"reward": reward}, 1.0))
    store.set_status(run, "done")
    return run


def failing(store):
    run = store.create("train", CONFIG.model_dump(mode="json"), title="<b>Bold</b>", origin="schedule nightly")
    (store.folder(run) / LOG).write_text("loading\nMemoryError: 12 GB wanted\n\n")
    store.claim(run)
    store.set_status(run, "failed", "the process ended")
    return run


def test_a_digest_tells_how_each_run_went_and_what_it_cost(store):
    old = finished(store, "Old")
    since = store.run(old).updated + 1e-3
    good, bad = finished(store, "Good"), failing(store)
    found = digest(store, since)
    assert [each.run for each in found.outcomes] == [bad, good]
    figure = found.outcomes[1].figure
    assert (figure.name, figure.first < figure.last) == ("held-out reward", True)
    assert [(each.error, each.last_words) for each in found.failures] == [("the process ended", "MemoryError: 12 GB wanted")]
    assert found.hours == pytest.approx(sum(each.seconds for each in found.outcomes) / 3600)
    assert found.hours > 0
    assert from_json(to_json(found))["outcomes"][1]["title"] == "Good"


def test_the_best_run_of_each_schedule_is_the_one_with_the_highest_figure(store):
    runs = [rewarded(store, f"Try {reward}", reward, "schedule nightly") for reward in (0.3, 0.7, 0.5)]
    rewarded(store, "By hand", 0.9, "command line")
    (winner,) = digest(store, 0.0).winners
    assert (winner.of, winner.run, winner.metric, winner.value, winner.among) == ("schedule nightly", runs[1], "reward", 0.7, 3)


def test_the_best_point_of_a_sweep_is_named_with_its_values_and_its_runs_are_counted(store):
    settings = {"target": {"preset": "shapes"}, "space": {"optimizer.learning_rate": [1e-4, 1e-3]}, "direction": "min"}
    sweep = begin_sweep(store, validated(SweepSettings, settings), origin="test")
    store.claim(sweep)
    for number, value in enumerate((0.5, 0.25)):
        child = store.create("train", CONFIG.model_dump(mode="json"), title="point", origin="test", parent=sweep)
        parameters = {"optimizer.learning_rate": 10.0 ** (number - 4)}
        store.set_status(child, "done")
        store.record(sweep, PointQueued(number, number, parameters, None, child))
        store.record(sweep, PointDone(number + 1, number, parameters, "done", (child,), (None,), (value,), "", ((1, value),)))
    found = digest(store, 0.0)
    assert [(each.run, each.parts) for each in found.outcomes] == [(sweep, {"done": 2})]
    (winner,) = found.winners
    assert (winner.run, winner.title, winner.value, winner.among) == (child, "optimizer.learning_rate = 0.001", 0.25, 2)
    assert "2 done" in digest_page(store, found)


def test_the_pictures_are_those_of_the_first_and_the_last_evaluation_of_the_best(store):
    finished(store, "By hand", iterations=40)
    best = finished(store, "Nightly", "schedule nightly", iterations=20)
    (pair,) = digest(store, 0.0).pairs
    previews = [row.data["preview"] for row in store.events(best, kinds=("Evaluated",))]
    assert len(previews) == 3
    assert (pair.run, pair.first, pair.last) == (best, previews[0], previews[-1])


def test_a_branch_stands_for_itself(store):
    parent = finished(store, "Parent")
    branch = store.create("train", CONFIG.model_dump(mode="json"), title="Branch", origin="test", parent=parent, branched=5)
    assert {each.run for each in digest(store, 0.0).outcomes} == {parent, branch}


def test_a_reproduction_stands_for_itself(store):
    original = finished(store, "Original")
    again = store.create("train", CONFIG.model_dump(mode="json"), title="Again", origin="test", parent=original)
    store.set_status(again, "failed", "no reason")
    found = digest(store, 0.0)
    assert {each.run: each.parts for each in found.outcomes} == {original: {}, again: {}}
    assert [each.run for each in found.failures] == [again]


def test_where_nobody_knows_whether_high_is_good_no_run_is_named_best(store):
    for loss in (0.2, 0.9):
        run = store.create("notebook", {"notebook": "toy"}, title="Toy", origin="schedule nightly")
        store.claim(run)
        store.record(run, Reported(0, {"loss": loss}))
        store.set_status(run, "done")
    found = digest(store, 0.0)
    assert [each.figure.name for each in found.outcomes] == ["loss", "loss"]
    assert found.winners == ()


def test_times_that_began_nothing_are_told_with_their_reason(store):
    trigger = {"name": "every", "amount": 1, "unit": "hours"}
    work = {"kind": "train", "config": CONFIG.model_dump(mode="json")}
    settings = {"name": "hourly", "work": work, "trigger": trigger, "catch_up": "skip"}
    schedules = Schedules(store)
    schedules.add(validated(Schedule, settings), now=NOON)
    schedules.fire_due(NOON + 3 * 3600 + 120)
    (firing,) = digest(store, NOON, NOON + 4 * 3600).not_begun
    assert (firing.schedule, firing.state, firing.missed) == ("hourly", "skipped", 2)
    assert "hourly skipped" in digest_text(digest(store, NOON, NOON + 4 * 3600))


class Page(HTMLParser):
    """Every tag and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_and_asks_nobody_for_more(store):
    best, bad = finished(store, "Nightly", "schedule nightly"), failing(store)
    page = Page(digest_page(store, digest(store, 0.0)))
    for told in (best, bad, "<b>Bold</b>", "MemoryError: 12 GB wanted", "schedule nightly", "held-out reward"):
        assert told in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    assert all(image["src"].startswith("data:image/webp") and image["alt"] for image in images)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith("data:") for link in links)
    assert not {"script", "link"} & {tag for tag, _ in page.tags}


def test_an_empty_digest_says_so(store):
    found = digest(store, 0.0)
    assert "Nothing was run" in digest_page(store, found)
    assert re.search("no runs, 0.0 hours", digest_text(found))


def test_a_picture_that_is_gone_leaves_the_rest_of_the_page(store):
    run = finished(store, "Nightly")
    for path in (store.folder(run) / "images").iterdir():
        path.unlink()
    page = Page(digest_page(store, digest(store, 0.0)))
    assert run in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(42.4, "42 s"), (100, "2 min"), (5000, "83 min"), (3 * 3600 + 290, "3 h 05 min"), (7195, "2 h 00 min")]
)
def test_durations_are_told_in_few_words(seconds, told):
    assert told_duration(seconds) == told
