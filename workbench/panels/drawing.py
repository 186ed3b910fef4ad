"""Pictures for the Playground: requests of the browser in, sheets with their rewards out. Only here are policies at work."""

import base64
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.axes import Axis, Cell, Grid, plan_grid
from workbench.config import RunConfig, validated
from workbench.panels.page import rounded
from workbench.pictures import data_sheet
from workbench.planning import kernel_noise
from workbench.png import compose, compose_grid, describe, encode
from workbench.policies import Chosen
from workbench.sampling import DrawRequest, Shot, choose_sampler, draw, trajectory
from workbench.studio import Studio

if TYPE_CHECKING:
    from torch import Tensor

PLANE, PLANE_SAMPLES = 5, 4
"""Values of each knob on the plane, and samples in each of its cells."""

WALK = 9
"""Images of a walk between two seeds, both ends among them."""

PORTION = 512
"""Images times steps after which others get their turn on the device; a few tenths of a second on a laptop."""


@dataclass(frozen=True)
class Meant:
    """What a request means: the policy, its configuration, the times, and what has to be said about it."""

    chosen: Chosen
    times: tuple[float, ...]
    note: str

    @property
    def config(self) -> RunConfig:
        return self.chosen.config


def group(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The image as deployed and the group of samples, with what the run's rewards say of each."""
    from workbench.evaluate import group_diversity, thumbnails

    request = validated(DrawRequest, asked)

    def work() -> dict[str, Any]:
        meant = _meant(studio, request)
        kind, task = meant.config.model.kind, meant.config.task
        # apart, so that the image as deployed is to the last bit the one that every other page and command draws
        alone = _drawn(studio, meant, request, [request.deployed(kind, meant.times)])
        samples = _drawn(studio, meant, request, request.group(meant.times))
        sheet, scores = _judged(studio, meant.config, [alone, samples], [request.prompt] * (1 + request.images), 8)
        noise = kernel_noise(request.sampler, kind, meant.times)
        layouts = task.layouts(samples)
        split = next((name for name in ("held_out", "train") if request.prompt in task.prompts(name)), "")
        return {
            "title": meant.chosen.title,
            "note": meant.note,
            "split": split,
            "sheet": sheet,
            "rewards": [{name: rounded(values[i]) for name, values in scores.items()} for i in range(1 + request.images)],
            "mean": rounded(statistics.fmean(scores["reward"][1:])),
            "std": rounded(statistics.pstdev(scores["reward"][1:])),
            "diversity": rounded(float(group_diversity(thumbnails(samples), request.images))),
            "compositions": None if layouts is None else len(set(layouts)),
            "noise": [asdict(step) | {"rate": min(step.rate, 1e9)} for step in noise],
            "silent": not any(step.std for step in noise),
        }

    return studio.on_device(work)


def walk(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Images as deployed along the way between two seeds."""
    request = validated(DrawRequest, asked)
    if request.toward is None:
        raise ValueError("a walk needs a second seed to go to")
    shares = [place / (WALK - 1) for place in range(WALK)]

    def work() -> dict[str, Any]:
        meant = _meant(studio, request)
        places = [request.model_copy(update={"share": share}) for share in shares]
        shots = [place.deployed(meant.config.model.kind, meant.times) for place in places]
        sheet, scores = _judged(studio, meant.config, [_drawn(studio, meant, request, shots)], [request.prompt] * WALK, WALK)
        return {"shares": shares, "sheet": sheet, "rewards": [rounded(reward) for reward in scores["reward"]]}

    return studio.on_device(work)


def path(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """How one image comes about: what it is at every time, and what it is predicted to become."""
    from workbench.evaluate import to_uint8

    request = validated(DrawRequest, asked["request"])

    def work() -> dict[str, Any]:
        meant = _meant(studio, request)
        with studio.policies.generator(meant.chosen, request.scale) as generator:
            found = trajectory(generator, _picked(request, meant, int(asked["pick"]))[0])
        rows = {"states": found.states, "jumps": found.jumps, "means": found.means}
        sheets = {name: data_sheet(to_uint8(row), len(row)) for name, row in rows.items() if row is not None}
        return {"times": [rounded(t) for t in found.times], "rows": sheets}

    return studio.on_device(work)


def plane(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The sampler's knobs against each other, the first upward and the second across: samples, reward and diversity of cells."""
    from workbench.evaluate import group_diversity, thumbnails

    request = validated(DrawRequest, asked).model_copy(update={"images": PLANE_SAMPLES})
    knobs = [knob for knob in properties(type(request.sampler)) if knob["type"] == "number"][:2]
    if not knobs:
        return {"knobs": []}
    across, *upward = knobs[::-1]
    cells = [
        ({upward[0]["name"]: y} if upward else {}) | {across["name"]: x}
        for y in (_spread(upward[0])[::-1] if upward else [None])
        for x in _spread(across)
    ]

    def work() -> dict[str, Any]:
        meant = _meant(studio, request)
        kernels = [validated(type(request.sampler), request.sampler.model_dump() | cell) for cell in cells]
        wanted = [request.model_copy(update={"sampler": kernel}) for kernel in kernels]
        images = _drawn(studio, meant, request, [shot for own in wanted for shot in own.group(meant.times)])
        columns = PLANE * PLANE_SAMPLES
        sheet, scores = _judged(studio, meant.config, [images], [request.prompt] * len(images), columns)
        apart = group_diversity(thumbnails(images), PLANE_SAMPLES).tolist()
        rewards = [statistics.fmean(scores["reward"][i : i + PLANE_SAMPLES]) for i in range(0, len(images), PLANE_SAMPLES)]
        return {
            "knobs": [across, *upward],
            "columns": PLANE,
            "samples": PLANE_SAMPLES,
            "sheet": sheet,
            "cells": [
                {"set": cell, "reward": rounded(reward), "diversity": rounded(diversity)}
                for cell, reward, diversity in zip(cells, rewards, apart, strict=True)
            ],
        }

    return studio.on_device(work)


def grid(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The next portion of a grid's cells, from `start` on; a browser asks until there is no `next`."""
    planned, start = _planned(studio, asked), int(asked.get("start", 0))
    part = next(_portions(planned.cells[start:]), [])
    sheet, rewards = studio.on_device(lambda: _cells(studio, part)[1:])
    end = start + len(part)
    return {
        "axes": [{"name": name, "labels": planned.labels(place)} for place, (name, _) in enumerate(planned.axes)],
        "total": len(planned.cells),
        "start": start,
        "next": end if end < len(planned.cells) else None,
        "sheet": sheet,
        "rewards": [rounded(reward) for reward in rewards],
    }


def picture(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """A PNG that says how it was made: one image (`pick` from 0), the whole group (-1), or a grid (`axes`)."""
    import torch

    request = validated(DrawRequest, asked["request"])
    meant = studio.on_device(lambda: _meant(studio, request))
    said: dict[str, Any] = {"draw": request.model_dump(), "seeds_mode": str(asked.get("mode", ""))}
    if asked.get("axes"):
        planned = _planned(studio, asked)
        parts = [studio.on_device(partial(_cells, studio, part))[0] for part in _portions(planned.cells)]
        labels = [planned.labels(place) for place in range(3)]
        content = compose_grid(torch.cat(parts), [name for name, _ in planned.axes], *labels)
        sampler, said["axes"], name = request.sampler, asked["axes"], "grid"
    else:
        pick = int(asked["pick"])
        shots = _picked(request, meant, pick)
        content = compose(
            studio.on_device(lambda: _drawn(studio, meant, request, shots)), 1 if pick >= 0 else _columns(len(shots))
        )
        sampler, said["pick"], name = shots[0].sampler, max(pick, 0), "image" if pick >= 0 else "group"
    made = describe(meant.chosen, request.preset, [request.prompt], [request.seed], meant.times, sampler) | said
    data = "data:image/png;base64," + base64.b64encode(encode(content, made)).decode()
    return {"data": data, "name": f"{name}-seed-{request.seed}.png"}


def properties(model: type[Any]) -> list[dict[str, Any]]:
    """The settings of a model as controls: name, type ("number", "whole", "choice" or "switch"), limits, choices and help."""
    found = []
    for name, info in model.model_json_schema()["properties"].items():
        low, high = info.get("minimum", info.get("exclusiveMinimum")), info.get("maximum")
        sort = "choice" if "enum" in info else {"number": "number", "integer": "whole", "boolean": "switch"}.get(info.get("type"))
        if sort is None or name == "name":
            continue
        step = 1 if sort == "whole" else (high - low) / 100 if None not in (low, high) else 0.01
        limits = {"min": low if "minimum" in info or low is None else low + step, "max": high, "step": step}
        words = name.replace("_", " ")
        told = {"name": name, "label": words[:1].upper() + words[1:], "help": info["description"].replace("`", "")}
        found.append(told | {"type": sort, "value": info.get("default"), "choices": info.get("enum", [])} | limits)
    return found


def _meant(studio: Studio, request: DrawRequest) -> Meant:
    """Raises: ValueError: if run, checkpoint or preset name nothing, or policy, prompt and sampler do not go together."""
    run, iteration, note = request.run or None, request.checkpoint, ""
    if run and iteration is None and not studio.store.checkpoints(studio.store.run(run).id):
        iteration, note = 0, "This run has no checkpoint yet: what you see is its base."
    chosen = studio.policies.choose(run, request.preset, iteration if run else None)
    config = chosen.config
    config.task.check(request.prompt)
    if config.model.kind not in request.sampler.needs:
        choose_sampler(request.sampler.name, config.model.kind)
    return Meant(chosen, config.rollout.grid_of(request.steps), note)


def _drawn(studio: Studio, meant: Meant, request: DrawRequest, shots: Sequence[Shot]) -> "Tensor":
    with studio.policies.generator(meant.chosen, request.scale) as generator:
        return draw(generator, shots)


def _judged(
    studio: Studio, config: RunConfig, images: Sequence["Tensor"], prompts: Sequence[str], columns: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The images as a sheet, and what the rewards say of them by name."""
    import torch

    from workbench.evaluate import to_uint8

    pixels = to_uint8(torch.cat(list(images)))
    scores = studio.galleries.score(pixels, prompts, config)
    return data_sheet(pixels, columns), {name: values.tolist() for name, values in scores.items()}


def _picked(request: DrawRequest, meant: Meant, pick: int) -> list[Shot]:
    """The image as deployed for 0, a sample of the group counted from 1, or all of them for -1."""
    if not -1 <= pick <= request.images:
        raise ValueError(f"there is no image {pick}: 0 is the image as deployed, 1 to {request.images} are the samples")
    if pick < 0:
        return request.group(meant.times)
    return [request.sample(meant.times, pick - 1) if pick else request.deployed(meant.config.model.kind, meant.times)]


def _planned(studio: Studio, asked: Mapping[str, Any]) -> Grid:
    request = validated(DrawRequest, asked["request"])
    checkpoints = studio.store.checkpoints(studio.store.run(request.run).id) if request.run else []
    return plan_grid(request, [validated(Axis, axis) for axis in asked["axes"]], checkpoints)


def _portions(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Cells in order, as many at a time as PORTION allows, and at least one."""
    part: list[Cell] = []
    for cell in cells:
        if part and sum(own.request.steps for own in part) + cell.request.steps > PORTION:
            yield part
            part = []
        part.append(cell)
    if part:
        yield part


def _cells(studio: Studio, cells: Sequence[Cell]) -> tuple["Tensor", dict[str, Any], list[float]]:
    """Images [N, 3, H, W] of cells, their sheet and their rewards; cells of one policy are drawn together."""
    import torch

    policies: dict[tuple[Any, ...], list[int]] = {}
    for place, cell in enumerate(cells):
        policies.setdefault((cell.request.checkpoint, cell.request.scale), []).append(place)
    images: dict[int, Tensor] = {}
    for places in policies.values():
        meanings = [_meant(studio, cells[place].request) for place in places]
        shots = [
            _picked(cells[place].request, meant, cells[place].pick)[0] for place, meant in zip(places, meanings, strict=True)
        ]
        images |= zip(places, _drawn(studio, meanings[0], cells[places[0]].request, shots), strict=True)
    ordered = torch.stack([images[place] for place in range(len(cells))])
    sheet, scores = _judged(studio, meanings[0].config, [ordered], [cell.request.prompt for cell in cells], _columns(len(cells)))
    return ordered, sheet, scores["reward"]


def _columns(count: int) -> int:
    """Images in a row, so that rows are full and none is much longer than there are rows."""
    return next(columns for columns in range(min(count, 16), 0, -1) if count % columns == 0)


def _spread(knob: Mapping[str, Any]) -> list[float]:
    """Values of a knob from one end of its range to the other."""
    return [float(f"{knob['min'] + i * (knob['max'] - knob['min']) / (PLANE - 1):.4g}") for i in range(PLANE)]
