"""The page that compares: two policies at the same prompts and seeds, picture by picture, and blind."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from workbench.config import validated
from workbench.figures.compare import curves, win_rate
from workbench.galleries import Gallery, PairRequest, config_of, expect_pictures
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, Parts, rounded, sprite, value
from workbench.pictures import data_sheet
from workbench.records import Choice, Vote
from workbench.studio import Studio, View
from workbench.votes import Tally, ballot, tally

_COLUMNS = 8


def compare(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Both sides' pictures with their prompts and seeds; drawn ones travel in the answer."""
    a, b = _pair(studio, asked)
    skill = getattr(a.config.task, "skill", None)
    return {
        "a": _side(studio, a),
        "b": _side(studio, b),
        "prompts": a.sample.prompts,
        "seeds": a.sample.seeds,
        "skills": [skill(prompt) for prompt in a.sample.prompts] if skill else [],
        "steps": a.sample.steps,
    }


def score(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What B's rewards say of every picture, and how far the two of each pair lie apart."""
    a, b = _pair(studio, asked)

    def measured() -> dict[str, Any]:
        images = [studio.galleries.images(side) for side in (a, b)]
        scores = [studio.galleries.score(pictures, a.sample.prompts, b.config) for pictures in images]
        apart = ((images[0].float() - images[1].float()) / 255).square().mean((1, 2, 3)).sqrt()
        sides = [{name: [rounded(each) for each in values.tolist()] for name, values in said.items()} for said in scores]
        return {"a": sides[0], "b": sides[1], "apart": [rounded(each) for each in apart.tolist()]}

    return studio.on_device(measured) | {"of": b.run.id}


def begin(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The pairs that a voter has not voted on yet, in the order of the ballot: [index, whether B is on the left]."""
    a, b = _pair(studio, asked)
    voter, sample = _voter(asked), a.sample
    said = {(vote.prompt, vote.seed) for vote in _votes(studio, a, b) if vote.voter == voter}
    order = ballot(int(asked["ballot_seed"]), len(sample.prompts))
    left = [turn for turn in order if (sample.prompts[turn[0]], sample.seeds[turn[0]]) not in said]
    return {"left": left, "pairs": len(order)}


def vote(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Keep one vote: "left", "right" or "tie" on the pair with this index, as the ballot showed it."""
    a, b = _pair(studio, asked)
    index, picked = int(asked["index"]), asked["picked"]
    swapped = dict(ballot(int(asked["ballot_seed"]), len(a.sample.prompts))).get(index)
    if swapped is None or picked not in ("left", "right", "tie"):
        raise ValueError(f"no pair {index}, or nothing to be picked as {picked!r}; begin the vote again")
    prompt, seed, voter = a.sample.prompts[index], a.sample.seeds[index], _voter(asked)
    if any((said.voter, said.prompt, said.seed) == (voter, prompt, seed) for said in _votes(studio, a, b)):
        raise ValueError(f"{voter} has voted on this pair already, in another tab perhaps; begin the vote again to go on")
    choice: Choice = "tie" if picked == "tie" else "b" if (picked == "left") == swapped else "a"
    return {"vote": studio.store.vote(Vote(voter, a.run.id, a.iteration, b.run.id, b.iteration, prompt, seed, choice))}


def undo(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Take back one vote, by the number that `vote` gave it."""
    studio.store.retract_vote(int(asked["vote"]))
    return {}


def result(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """All votes on these two, counted pair by pair."""
    a, b = _pair(studio, asked)
    votes = _votes(studio, a, b)
    counted = tally([((vote.prompt, vote.seed), vote.choice) for vote in votes])
    return {
        "tally": asdict(counted),
        "votes": len(votes),
        "voters": len({vote.voter for vote in votes}),
        "figure": win_rate(counted).to_dict(),
    }


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """What there is to compare of the two runs, and their curves.

    Args:
        asked: `run` (that of the picker), `a` and `b` (ids; "" for that of the picker).
    """
    found = studio.pick(asked.get("run", ""))
    if found is None:
        return {}
    ids = dict.fromkeys(studio.store.run(asked.get(name) or found.id).id for name in ("a", "b"))
    views = [studio.view(studio.store.run(run)) for run in ids]
    for view in views:
        expect_pictures(view.run)
    evaluated = ":".join(f"{view.run.id}:{view.history.changed.get('pairs', 0)}" for view in views)
    reached = f"{evaluated}:{[(view.checkpoints, view.run.status) for view in views]}"
    return {
        "run": value(found.id),
        "sides": (reached, lambda: {view.run.id: _reached(view) for view in views}),
        "curves": (evaluated, lambda: curves([(view.run.title, view.history, view.run.config) for view in views]).to_dict()),
    }


def layout() -> str:
    """The static layout."""
    text = (ASSETS / "compare.html").read_text()
    text = text.replace("<!-- chart beside -->", chart_card("beside", curves([]), "cmp-chart"))
    return text.replace("<!-- chart votes -->", chart_card("votes", win_rate(Tally(0, 0, 0, 0)), "cmp-chart"))


def _pair(studio: Studio, asked: Mapping[str, Any]) -> tuple[Gallery, Gallery]:
    wanted = {name: asked[name] for name in PairRequest.model_fields if name in asked}
    return studio.galleries.pair(validated(PairRequest, wanted))


def _side(studio: Studio, gallery: Gallery) -> dict[str, Any]:
    sheet: dict[str, Any] | None
    if gallery.sheet is None:
        sheet = data_sheet(studio.on_device(lambda: studio.galleries.images(gallery)), _COLUMNS)
    else:
        studio.view(gallery.run)  # lets the server hand out its pictures
        sheet = sprite(studio, gallery.run.id, gallery.sheet)
    told = {"run": gallery.run.id, "iteration": gallery.iteration, "title": gallery.title}
    return {**told, "recorded": gallery.sheet is not None, "sheet": sheet}


def _reached(view: View) -> dict[str, Any]:
    """Where a run can be looked at: every evaluation, and every checkpoint."""
    recorded = [item.iteration for item in view.history.evaluations]
    return {
        "title": view.run.title,
        "status": view.run.status,
        "recorded": recorded,
        "points": sorted({0, *recorded, *view.checkpoints}),
        "example": config_of(view.run).task.prompts("held_out")[:2],
    }


def _voter(asked: Mapping[str, Any]) -> str:
    name = str(asked.get("voter", "")).strip()
    if not 0 < len(name) <= 80:
        raise ValueError("give a name of 1 to 80 letters, by which your votes are counted once")
    return name


def _votes(studio: Studio, a: Gallery, b: Gallery) -> list[Vote]:
    if (a.run.id, a.iteration) == (b.run.id, b.iteration):
        raise ValueError("both sides are the same policy, so there is nothing to prefer; choose another iteration for A or B")
    return studio.store.votes((a.run.id, a.iteration), (b.run.id, b.iteration))


PAGE = Page(
    "compare",
    "Compare",
    layout,
    ("views.js", "ballot.js", "compare.js"),
    {"compare": compare, "score": score, "begin": begin, "vote": vote, "undo": undo, "result": result},
    update,
)
