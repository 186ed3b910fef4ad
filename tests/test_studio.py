"""What the app can do without a page: pick, view, start, control, resume; the form; and what a page is sent."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from toy_run import toy_config, toy_events

from workbench.config import PRESETS, RunConfig, configure, parse_config
from workbench.events import Finished, GroupsScored, IterationDone, Started
from workbench.panels import PAGES, form, shell
from workbench.records import permitted
from workbench.studio import Studio, View


def told(studio: Studio, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What the page of a run is sent."""
    return shell.update(studio, {page.name: page for page in PAGES}, {"page": "train", **asked})


class Inputs(HTMLParser):
    """What a browser would send of a form."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, str | bool] = {}
        self._menu = self._area = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "input":
            name = found["name"] or ""
            self.values[name] = "checked" in found if found["type"] == "checkbox" else found.get("value") or ""
        if tag == "select":
            self._menu = found["name"] or ""
        if tag == "option" and "selected" in found:
            self.values[self._menu] = found["value"] or ""
        self._area = found["name"] or "" if tag == "textarea" else ""
        if self._area:
            self.values[self._area] = ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self.values[self._area] = data

    def handle_endtag(self, tag: str) -> None:
        self._area = ""


def sent(config: RunConfig) -> dict[str, str | bool]:
    """The inputs of the chosen extensions; those of others are hidden, and hidden ones are not sent."""
    values = Inputs(form.render(config)).values
    chosen = {name.removesuffix(".name"): value for name, value in values.items() if name.endswith(".name")}

    def shown(name: str) -> bool:
        path = name.rpartition(".")[0]
        owner = path.rpartition(".")[0]
        return owner not in chosen or path.rpartition(".")[2] == chosen[owner]

    return {name: value for name, value in values.items() if shown(name)}


def recorded(studio: Studio, iterations: int = 12, status: str = "done", until: int | None = None) -> str:
    """A toy run in the store, as another process would have written it."""
    config = toy_config(iterations)
    run = studio.store.create("train", config.model_dump(mode="json"), title=config.title, origin="command line")
    studio.store.claim(run)
    for event in toy_events(config):
        studio.store.record(run, event)
        if until is not None and isinstance(event, IterationDone) and event.iteration == until:
            break
    studio.store.set_status(run, status)
    return run


def view_of(studio: Studio, run: str) -> View:
    return studio.view(studio.store.run(run))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_form_that_nobody_touched_gives_back_its_configuration(preset: str) -> None:
    assert parse_config(form.read(RunConfig, sent(PRESETS[preset]))) == PRESETS[preset]


def test_a_form_has_a_label_and_help_for_every_field() -> None:
    text = form.render(PRESETS["shapes"])
    for name in Inputs(text).values:
        assert f'for="f-{name}"' in text or f'name="{name}"' in text
    assert "samples that are compared with one another" in text


def test_a_refused_form_names_every_mistake_on_a_line_of_its_own() -> None:
    values = sent(PRESETS["shapes"]) | {"grpo.group_size": "1", "sampler.asfmc.noise": "7", "iterations": "many"}
    with pytest.raises(ValueError, match=r"iterations = 'many'") as refusal:
        parse_config(form.read(RunConfig, values))
    lines = str(refusal.value).splitlines()
    assert sorted(line.split(" = ")[0] for line in lines) == ["grpo.group_size", "iterations", "sampler.noise"]


def test_an_unknown_input_is_refused_rather_than_dropped() -> None:
    with pytest.raises(ValueError, match="unknown setting 'surprise'"):
        parse_config(form.read(RunConfig, sent(PRESETS["shapes"]) | {"surprise": "1"}))


def test_rewards_that_are_switched_off_are_left_out() -> None:
    config = parse_config(form.read(RunConfig, sent(PRESETS["shapes"]) | {"rewards.shapes_fidelity.use": False}))
    assert [weighted.reward.name for weighted in config.rewards] == ["shapes_dense", "shapes_exact"]


def test_prompts_have_a_line_each_and_may_hold_commas() -> None:
    prompts = ("two lemons, a plate", 'a sign, "OPEN"')
    config = configure("flux", {"prompts": list(prompts)})
    read = form.read(RunConfig, sent(config) | {"task.prompts.lines": " a fox, asleep \n\n a boat\n"})
    assert parse_config(read).prompts == prompts
    assert read["task"]["lines"] == ["a fox, asleep", "a boat"]


def test_a_view_follows_the_store_whoever_writes_it(studio: Studio) -> None:
    run = recorded(studio, until=5, status="running")
    assert len(view_of(studio, run).history.metric("reward")) == 5
    studio.store.record(run, IterationDone(6, {"reward": 0.5}, 0.1))
    assert view_of(studio, run).history.metric("reward")[-1] == (6, 0.5)


def test_a_view_without_news_is_the_same_snapshot(studio: Studio) -> None:
    run = recorded(studio)
    assert view_of(studio, run).history is view_of(studio, run).history


def test_a_resumed_run_shows_no_superseded_iterations(studio: Studio) -> None:
    run = recorded(studio, until=9, status="running")
    assert len(view_of(studio, run).history.metric("reward")) == 9
    studio.store.record(run, Started(4, {}))
    studio.store.record(run, IterationDone(5, {"reward": 0.25}, 0.1))
    points = view_of(studio, run).history.metric("reward")
    assert [at for at, _ in points] == [1, 2, 3, 4, 5]
    assert points[-1][1] == 0.25


def test_without_a_choice_the_run_that_is_going_on_is_shown(studio: Studio) -> None:
    assert studio.pick() is None
    going = recorded(studio, until=3, status="running")
    recorded(studio)
    picked = studio.pick()
    assert picked is not None
    assert picked.id == going


def test_an_unknown_run_is_an_answer_and_not_a_crash(studio: Studio) -> None:
    recorded(studio)
    news = told(studio, {"run": "20200101-gone"})
    assert news is not None
    assert "unknown run '20200101-gone'" in news["parts"]["problem"]
    assert news["parts"]["runs"]


def test_a_page_that_has_seen_everything_is_sent_nothing(studio: Studio) -> None:
    run = recorded(studio)
    news = told(studio, {"run": run, "charts": ["reward"]})
    assert news is not None
    assert {"status", "groups", "pairs", "chart:reward", "checks", "verdicts"} <= set(news["parts"])
    assert told(studio, {"run": run, "seen": news["versions"], "charts": ["reward"]}) is None


def test_one_more_iteration_sends_little(studio: Studio) -> None:
    run = recorded(studio, until=9, status="running")
    seen = told(studio, {"run": run})
    assert seen is not None
    studio.store.record(run, IterationDone(10, {"reward": 0.5, "kl": 0.1}, 0.1))
    news = told(studio, {"run": run, "seen": seen["versions"], "charts": ["reward", "kl"]})
    assert news is not None
    assert "pairs" not in news["parts"]
    assert len(json.dumps(news)) < 50_000


def test_groups_are_sent_from_the_best_to_the_worst_image(studio: Studio) -> None:
    news = told(studio, {"run": recorded(studio)})
    assert news is not None
    for group in news["parts"]["groups"]["groups"]:
        rewards = [image["reward"] for image in group["images"]]
        assert rewards == sorted(rewards, reverse=True)
        assert len({image["tile"] for image in group["images"]}) == len(rewards)
    assert [group["quiet"] for group in news["parts"]["groups"]["groups"]][:3] == [False, True, False]


def test_seeds_travel_as_text_because_they_have_64_bits(studio: Studio) -> None:
    news = told(studio, {"run": recorded(studio)})
    assert news is not None
    assert isinstance(news["parts"]["groups"]["groups"][0]["images"][0]["seed"], str)


def test_earlier_groups_can_be_shown_again(studio: Studio) -> None:
    run = recorded(studio)
    history = view_of(studio, run).history
    iteration, row = history.group_rows[2]
    news = told(studio, {"run": run, "at": row})
    assert news is not None
    assert news["parts"]["groups"]["iteration"] == iteration


def test_only_the_pictures_of_runs_that_were_looked_at_may_be_served(studio: Studio) -> None:
    first, second = recorded(studio), recorded(studio)
    view_of(studio, second)
    assert studio.served_folders == [str(studio.store.folder(second) / "images")]
    assert first not in studio.served_folders[0]


def test_controls_are_offered_only_where_they_mean_something(studio: Studio) -> None:
    running = studio.store.run(recorded(studio, until=3, status="running"))
    done = studio.store.run(recorded(studio))
    stopped = studio.store.run(recorded(studio, until=3, status="stopped"))
    assert permitted(running, saved=True) == ("pause", "stop", "save", "sample")
    assert permitted(done, saved=True) == ()
    assert permitted(stopped, saved=True) == ("resume",)
    assert permitted(stopped, saved=False) == ()
    waited = replace(stopped, iteration=0)  # it goes on from its beginning
    assert permitted(waited, saved=False) == ("resume",)
    assert permitted(replace(waited, kind="sweep"), saved=False) == ()


def test_a_control_is_a_wish_in_the_store_for_whoever_drives_the_run(studio: Studio) -> None:
    run = recorded(studio, until=3, status="running")
    studio.control(run, "save")
    studio.control(run, "pause")
    assert [wish.wanted for wish in studio.store.take_wishes(run)] == ["save", "pause"]


def test_controlling_a_finished_run_is_refused_with_a_sentence(studio: Studio) -> None:
    run = recorded(studio)
    with pytest.raises(ValueError, match="is done"):
        studio.control(run, "pause")


def test_a_started_run_trains_to_its_end(studio: Studio) -> None:
    changes = {
        "grpo.groups": 2,
        "evaluation.images": 8,
        "evaluation.final_images": 8,
        "evaluation.preview": 4,
        "compute.threads": 0,
    }
    run = studio.start(toy_config(1, **changes))
    followed = 0
    while not studio.store.run(run).over:
        studio.worker.call(lambda: None).result(timeout=60)
        followed += 1
        assert followed < 5000
    assert (studio.store.run(run).status, studio.store.run(run).error) == ("done", None)
    assert [row.kind for row in studio.store.events(run)][-1] == Finished.__name__
    assert view_of(studio, run).history.groups is not None


def test_samples_that_were_held_back_say_so_where_there_were_several_epochs(studio: Studio) -> None:
    config = toy_config(3, **{"grpo.epochs": 2, "objective.clip_range": 0.01})
    run = studio.store.create("train", config.model_dump(mode="json"), title="toy", origin="test")
    for event in toy_events(config):
        if isinstance(event, GroupsScored):
            advantages = event.advantages
        if isinstance(event, IterationDone):
            beyond = [1.0 + 0.05 * (i % 2) * math.copysign(1, advantage) for i, advantage in enumerate(advantages)]
            event = replace(event, ratios=(tuple(beyond),))
        studio.store.record(run, event)
    news = told(studio, {"run": run})
    assert news is not None
    images = [image for group in news["parts"]["groups"]["groups"] for image in group["images"]]
    assert all(image["clipped"] == (image["sample"] % 2 == 1 and image["advantage"] != 0) for image in images)
    assert {image["clipped"] for image in images} == {True, False}
