"""The page that tries rewards: on recorded or drawn pictures, one by one and together, before a run is spent on them."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from workbench.config import validated
from workbench.figures.rewards import agreement, histogram
from workbench.galleries import config_of, expect_pictures
from workbench.health import quiet_groups
from workbench.panels import form
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, Parts, rounded, value
from workbench.pictures import data_sheet
from workbench.studio import Studio, View
from workbench.trying import (
    MOST,
    CollectRequest,
    Opinion,
    RewardsRequest,
    collect,
    combine,
    correlation,
    examine,
    ranks,
    summarise,
)

_COLUMNS, _LARGEST_TILE = 16, 128


def settings(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The form of the rewards, as a run has them, which task they must fit, and which of them only judge there."""
    config = config_of(studio.store.run(asked["run"]))
    judges = [judge.reward.name for judge in config.eval_rewards]
    told = {"domain": config.task.domain, "combine": config.grpo.combine, "judges": judges}
    return {"form": form.render(RewardsRequest(rewards=config.rewards)), **told}


def attempt(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What every reward says of every picture."""
    wanted = validated(CollectRequest, asked["pictures"])
    tried = validated(RewardsRequest, form.read(RewardsRequest, asked["form"]))
    task = config_of(studio.store.run(wanted.run)).task
    rewards = [weighted.reward for weighted in tried.rewards]
    for reward in rewards:
        if reward.domain not in ("", task.domain):
            raise ValueError(f"reward {reward.name!r} cannot score pictures of task {task.name!r}; switch it off")

    def measured() -> tuple[Any, list[Opinion]]:
        found = collect(studio.store, studio.galleries, wanted)
        return found, examine(rewards, found.images.float() / 255, found.prompts)

    found, opinions = studio.on_device(measured)
    scored = [opinion for opinion in opinions if opinion.values is not None]
    return {
        "title": found.title,
        "sheet": data_sheet(found.images, _COLUMNS, _LARGEST_TILE),
        "prompts": found.prompts,
        "seeds": [str(seed) for seed in found.seeds],
        "group_size": found.group_size,
        "weights": {weighted.reward.name: weighted.weight for weighted in tried.rewards},
        "rewards": [_told(opinion, found.groups) for opinion in opinions],
        "agreement": agreement(
            [opinion.name for opinion in scored],
            correlation([opinion.values for opinion in scored if opinion.values is not None]),
        ).to_dict(),
    }


def weigh(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The rewards together: their weighted sum, and the advantages that a run with these settings would train on."""
    config = config_of(studio.store.run(asked["run"]))
    values = {name: [float(each) for each in known[:MOST]] for name, known in asked["values"].items()}
    grpo = config.grpo.model_copy(update={"combine": "gdpo" if asked["combine"] == "gdpo" else "sum"})
    total, advantages = combine(values, asked["weights"], int(asked["group_size"]), grpo)
    places, shared = ranks(total)
    size = int(asked["group_size"])
    return {
        "total": _numbers(total),
        "advantages": _numbers(advantages),
        "places": places,
        "shared": shared,
        "quiet": quiet_groups(advantages.tolist(), size),
        "groups": len(total) // size,
        "figure": histogram("all, weighted", total.tolist()).to_dict(),
    }


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """Which pictures of the run there are to try rewards on."""
    found = studio.pick(asked.get("run", ""))
    if found is None:
        return {}
    expect_pictures(found)
    view = studio.view(found)
    stamp = f"{found.id}:{view.history.changed.get('groups', 0)}:{view.history.changed.get('pairs', 0)}"
    return {"run": value(found.id), "known": (stamp, lambda: _known(view))}


def layout() -> str:
    """The static layout."""
    text = (ASSETS / "rewards.html").read_text()
    text = text.replace("<!-- chart values -->", chart_card("values", histogram("", []), "rw-chart"))
    return text.replace("<!-- chart agreement -->", chart_card("agreement", agreement([], correlation([])), "rw-chart"))


def _known(view: View) -> dict[str, Any]:
    return {
        "title": view.run.title,
        "rollouts": [list(pair) for pair in view.history.group_rows],
        "evaluations": [item.iteration for item in view.history.evaluations],
    }


def _told(opinion: Opinion, groups: tuple[str, ...]) -> dict[str, Any]:
    told: dict[str, Any] = {"name": opinion.name, "failure": opinion.failure, "milliseconds": rounded(opinion.milliseconds, 3)}
    if opinion.values is None:
        return told
    places, shared = ranks(opinion.values)
    figures = {
        name: rounded(number) if isinstance(number, float) else number
        for name, number in asdict(summarise(opinion.values, groups)).items()
    }
    chart = histogram(opinion.name, opinion.values.tolist()).to_dict()
    return told | figures | {"values": _numbers(opinion.values), "places": places, "shared": shared, "figure": chart}


def _numbers(values: Tensor) -> list[float | None]:
    """All digits that a float32 has, so that ties stay ties and nothing else becomes one; None for NaN."""
    return [float(f"{number:.9g}") if math.isfinite(number) else None for number in values.tolist()]


PAGE = Page("rewards", "Rewards", layout, ("rewards.js",), {"settings": settings, "attempt": attempt, "weigh": weigh}, update)
