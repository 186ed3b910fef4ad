"""Whether one run repeats another: every recorded event field by field, pictures by their pixels, and the final tensors."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from workbench.checkpoints import CheckpointError
from workbench.experiments.differences import Difference, between
from workbench.experiments.papermilling import NOTEBOOK
from workbench.pictures import read_sprite
from workbench.provenance import read_provenance
from workbench.records import Row, Run
from workbench.store import Store

Verdict = Literal["exact", "close", "different", "nothing to compare"]

TOLERANCE = 1e-3
"""Largest relative difference of numbers that counts as close, and of a tensor's elements relative to its largest."""

NEGLIGIBLE = 1e-3
"""Numbers are compared relative to themselves, but to no less than this: a loss is a sum of terms about 1 that cancel, and what
is left of them is the last bits of each."""

PIXEL_LEVELS = 2
"""Largest difference of a pixel, of 255, that counts as close: pictures are rounded."""

_KINDS = (  # in the order that they have inside an iteration
    *("Started", "GroupsScored", "IterationDone", "Evaluated", "PreflightDone", "Sampled", "CheckpointReady", "Changed"),
    *("Reported", "Finished"),
)
_OPTIONAL = ("Sampled", "CheckpointReady")  # made on request as well: compared where both have them
_IGNORED = {"seconds", "time", "images_per_second", "config"}  # the last is compared as what it is, the run's settings
_FACTS = {"trained_parameters", "parameters", "latent_shape", "stages"}  # all else is about the machine


class Place(NamedTuple):
    """Where two records are not the same."""

    kind: str
    iteration: int
    field: str  # dotted; empty where one of them lacks the whole event
    one: Any
    other: Any


@dataclass(frozen=True)
class Comparison:
    """What comparing two records has found.

    exact: all that is there is equal bit for bit. close: the same structure, and every number within `tolerance`.
    nothing to compare: neither run has recorded anything, so nothing is known of the other's work.
    """

    one: str
    other: str
    verdict: Verdict
    tolerance: float
    first: Place | None = None  # where they first differ at all
    beyond: Place | None = None  # where they first differ by more than the tolerance
    largest: float = 0.0  # the largest relative difference of two numbers that are both there
    events: int = 0  # compared
    pictures: int = 0
    tensors: int = 0
    environment: tuple[Difference, ...] = ()  # how code, packages and machine differed
    notes: tuple[str, ...] = ()  # what could not be compared, and why

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        counts = f"{self.events} events, {self.pictures} pictures and {self.tensors} tensors compared"
        if self.verdict == "exact":
            return f"exact: every number, pixel and tensor is the same bit for bit ({counts})"
        place = self.beyond or self.first
        if place is None:
            return "nothing to compare: neither run has recorded anything"
        if self.verdict == "close":
            return (
                f"close: the same structure, and numbers at most {self.largest:.2g} apart relative to their size, of "
                f"{self.tolerance:g} allowed; first at {_told(place)} ({counts})"
            )
        return f"different: first at {_told(place)} ({counts})"


def compare(store: Store, one: str, other: str, tolerance: float = TOLERANCE) -> Comparison:
    """Whether the run `other` repeats the run `one`, as far as `one` went.

    Times, speeds, memory, ids and what the machine says of itself are left out. Pictures are compared by their pixels where
    both runs still have them, and the last checkpoint that both have by its tensors.

    Raises: ValueError: if there is no such run, or the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"the tolerance is a share of a number, so at least 0; got {tolerance}")
    runs = store.run(one), store.run(other)
    found = _Comparing(store, runs, tolerance)
    found.compare_events()
    if not found.events:
        found.compare_outputs()
    found.compare_tensors()
    found.compare_environment()
    return found.result()


class _Comparing:
    """What has been found so far."""

    def __init__(self, store: Store, runs: tuple[Run, Run], tolerance: float) -> None:
        self.store, self.runs = store, runs
        self.places: list[tuple[Place, bool]] = []  # and whether it is beyond the tolerance
        self.tolerance, self.largest = tolerance, 0.0
        self.events = self.pictures = self.tensors = 0
        self.environment: tuple[Difference, ...] = ()
        self.notes: list[str] = []
        self.limit = math.inf

    def result(self) -> Comparison:
        first = self.places[0][0] if self.places else None
        beyond = next((place for place, far in self.places if far), None)
        return Comparison(
            one=self.runs[0].id,
            other=self.runs[1].id,
            verdict=self._verdict(first, beyond),
            tolerance=self.tolerance,
            first=first,
            beyond=beyond,
            largest=self.largest,
            events=self.events,
            pictures=self.pictures,
            tensors=self.tensors,
            environment=self.environment,
            notes=tuple(self.notes),
        )

    def _verdict(self, first: Place | None, beyond: Place | None) -> Verdict:
        if first is not None:
            return "close" if beyond is None else "different"
        return "exact" if self.events or self.tensors else "nothing to compare"

    def compare_events(self) -> None:
        rows = [self.store.events(run.id) for run in self.runs]
        self.limit = _end(self.runs[0], rows[0])
        if self.limit != math.inf:
            self.notes.append(f"run {self.runs[0].id} is {self.runs[0].status}: compared up to iteration {self.limit:.0f}")
        ended = all(run.status == "done" for run in self.runs)
        keyed = [_keyed(events, self.limit, ended) for events in rows]
        for key in sorted({*keyed[0], *keyed[1]}, key=lambda key: (key[0], _KINDS.index(key[1]), key[2])):
            here, there = keyed[0].get(key), keyed[1].get(key)
            iteration, kind, _ = key
            if here is None or there is None:
                cut_off = iteration == self.limit and kind not in ("Started", "GroupsScored", "IterationDone")
                if kind not in _OPTIONAL and not cut_off:
                    said = ["absent" if row is None else "recorded" for row in (here, there)]
                    self.note(Place(kind, iteration, "", *said), math.inf)
                continue
            self.events += 1
            self._compare_rows(here, there)

    def note(self, place: Place, distance: float) -> None:
        far = distance > self.tolerance
        self.places.append((place, far))
        if math.isfinite(distance):
            self.largest = max(self.largest, distance)

    def _compare_rows(self, here: Row, there: Row) -> None:
        mine, theirs = (_comparable(row) for row in (here, there))
        for field, one, other, distance in _differing(mine, theirs, ""):
            self.note(Place(here.kind, here.iteration, field, one, other), distance)
        for name, value in here.data.items():
            if isinstance(value, Mapping) and "sprite" in value:
                self._compare_pictures(here, there, name)

    def _compare_pictures(self, here: Row, there: Row, name: str) -> None:
        layouts = here.data[name], there.data.get(name)
        if any(not isinstance(layout, Mapping) or layout.get("sprite") is None for layout in layouts):
            return  # thinned, or none were due; their number is compared with the other fields
        try:
            one, other = (
                read_sprite(self.store.image_path(run.id, layout["sprite"]), layout)
                for run, layout in zip(self.runs, layouts, strict=True)
            )
        except ValueError as error:
            self.notes.append(str(error))
            return
        self.pictures += len(one)
        if one.shape == other.shape and not torch.equal(one, other):
            apart = (one.int() - other.int()).abs().flatten(1).amax(1)
            worst = int(apart.argmax())
            levels = int(apart[worst])
            place = Place(here.kind, here.iteration, f"{name}, picture {worst}", "pixels", f"up to {levels} of 255 levels apart")
            self.places.append((place, levels > PIXEL_LEVELS))

    def compare_outputs(self) -> None:
        """What the cells of two notebooks show, where they recorded nothing else."""
        shown = [_outputs(self.store.folder(run.id) / NOTEBOOK) for run in self.runs]
        if any(cells is None for cells in shown):
            if self.runs[0].status != self.runs[1].status:
                self.note(Place("end", 0, "status", self.runs[0].status, self.runs[1].status), math.inf)
            self.notes.append("not both runs have recorded events, so only their ends could be compared")
            return
        one, other = shown
        for field, a, b, distance in _differing(one, other, ""):
            cell = field.partition(".")[0]
            self.note(Place("output", int(cell) if cell.isdecimal() else 0, field, a, b), distance)
        self.events = len(one or ())

    def compare_tensors(self) -> None:
        kept = [self.store.checkpoints(run.id) for run in self.runs]
        mine = [iteration for iteration in kept[0] if iteration <= self.limit]
        if not mine:
            if self.runs[0].kind in ("train", "pretrain"):
                self.notes.append(f"run {self.runs[0].id} has no checkpoint any more, so its final tensors were not compared")
            return
        if mine[-1] not in kept[1]:
            has = f"has none after iteration {mine[-1]}, but {', '.join(map(str, kept[1]))}" if kept[1] else "has none any more"
            self.notes.append(f"the final tensors were not compared: of checkpoints run {self.runs[1].id} {has}")
            return
        try:
            one, other = (self.store.load_checkpoint(run.id, mine[-1]).tensors for run in self.runs)
        except CheckpointError as error:
            self.notes.append(f"the final tensors were not compared: {error}")
            return
        for stem in {**one, **other}:
            for name in {**one.get(stem, {}), **other.get(stem, {})}:
                self.tensors += 1
                where = f"{stem}.{name}"
                pair = one.get(stem, {}).get(name), other.get(stem, {}).get(name)
                for field, a, b, distance in differing_tensors(*pair):
                    self.note(Place("checkpoint", mine[-1], f"{where}{field}", a, b), distance)

    def compare_environment(self) -> None:
        told = []
        for run in self.runs:
            try:
                told.append(read_provenance(self.store, run.id))
            except ValueError as error:
                self.notes.append(str(error))
                return
        if all(told):
            apart = between(told[0][-1], told[1][-1])
            self.environment = (*apart.code, *apart.environment, *apart.packages, *apart.prompts, *apart.weights)
        else:
            self.notes.append("what one of the runs was made with was not recorded, so environments were not compared")


def _end(run: Run, rows: Sequence[Row]) -> float:
    """The last iteration that a run finished; infinite for one that came to its end."""
    if run.status == "done":
        return math.inf
    return max((row.iteration for row in rows if row.kind == "IterationDone"), default=0)


def _outputs(path: Path) -> list[Any] | None:
    """What the cells of a notebook show, a list for each; None where there is no such notebook."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return [
            [{name: each.get(name) for name in ("data", "text", "ename")} for each in cell.get("outputs", ())] for cell in cells
        ]
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _keyed(rows: Sequence[Row], limit: float, ended: bool) -> dict[tuple[int, str, int], Row]:
    """The rows to compare, by iteration, kind and, among the same, their number."""
    keyed: dict[tuple[int, str, int], Row] = {}
    for row in rows:
        again = row.kind == "Started" and any(kind == "Started" for _, kind, _ in keyed)  # it was resumed
        if row.kind not in _KINDS or row.iteration > limit or again or (row.kind == "Finished" and not ended):
            continue
        number = 0
        while (row.iteration, row.kind, number) in keyed:
            number += 1
        if number and row.kind in _OPTIONAL:  # the same state again
            continue
        keyed[row.iteration, row.kind, number] = row
    return keyed


def _comparable(row: Row) -> dict[str, Any]:
    """An event's fields without what may differ; pictures by their number and size."""
    data = _without(row.data)
    if row.kind == "Started":
        data["facts"] = {name: value for name, value in row.data["facts"].items() if name in _FACTS}
    if row.kind == "PreflightDone":
        data["checks"] = [
            {name: value for name, value in check.items() if name != "sentence"}  # it repeats the value
            for check in row.data["checks"]
            if check["name"] != "memory"
        ]
    return data


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "sprite" in value:
            return {name: value[name] for name in ("tile", "columns", "count")}
        return {name: _without(item) for name, item in value.items() if name not in _IGNORED and not name.endswith("_seconds")}
    return value


def _differing(one: Any, other: Any, key: str) -> Iterator[tuple[str, Any, Any, float]]:
    if one == other and isinstance(one, Mapping | list | tuple):
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            below = f"{key}.{name}" if key else str(name)
            if name in one and name in other:
                yield from _differing(one[name], other[name], below)
            else:
                yield below, one.get(name, "absent"), other.get(name, "absent"), math.inf
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield key, f"{len(one)} entries", f"{len(other)} entries", math.inf
            return
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differing(a, b, f"{key}.{place}")
    elif type(one) is float and type(other) is float:
        if one != other and not (math.isnan(one) and math.isnan(other)):
            yield key, one, other, _distance(one, other)
    elif type(one) is not type(other) or one != other:
        yield key, one, other, math.inf


def _distance(one: float, other: float) -> float:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other), NEGLIGIBLE)


def differing_tensors(one: torch.Tensor | None, other: torch.Tensor | None) -> Iterator[tuple[str, Any, Any, float]]:
    """Where two tensors differ: the index of the element that is furthest from its counterpart, both values, and the distance.

    The distance is relative to the largest element; infinite where shape or type differ, or one is missing. At most one place.
    """
    if one is None or other is None:
        here, there = ("absent" if tensor is None else "present" for tensor in (one, other))
        yield "", here, there, math.inf
        return
    if one.shape != other.shape or one.dtype != other.dtype:
        yield "", f"{one.dtype} {list(one.shape)}", f"{other.dtype} {list(other.shape)}", math.inf
        return
    if torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
        return
    a, b = one.double().flatten(), other.double().flatten()
    apart = (a - b).abs()
    worst = int(apart.argmax())
    scale = max(float(a.abs().max()), float(b.abs().max()))
    distance = float(apart[worst]) / (scale or 1.0)  # only the signs of zeros differ where all are 0
    yield f"[{worst}]", float(a[worst]), float(b[worst]), distance if math.isfinite(distance) else math.inf


def _told(place: Place) -> str:
    where = f"{place.kind} of iteration {place.iteration}" + (f", {place.field}" if place.field else "")
    return f"{where}: {_short(place.one)} against {_short(place.other)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
