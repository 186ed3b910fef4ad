"""What is known of a run so far: recorded rows folded into one immutable snapshot. Knows neither storage nor screen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Point = tuple[int, float]  # iteration, value


class Row(Protocol):
    """One recorded event, as the store hands it out."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def iteration(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def data(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Recorded:
    """One event with the row that holds it."""

    id: int
    iteration: int
    data: dict[str, Any]


@dataclass(frozen=True, eq=False)
class History:
    """A run up to row `cursor`. Its lists are never changed in place, so snapshots can be shared between viewers.

    `changed` holds, for each part of the page, the last row that touched it; a viewer that has seen that row needs nothing.
    """

    cursor: int = 0
    metrics: Mapping[str, list[Point]] = field(default_factory=dict)  # of IterationDone, by name
    times: list[tuple[int, float]] = field(default_factory=list)  # iteration, seconds since the epoch
    seconds: list[Point] = field(default_factory=list)  # duration of each iteration
    evaluations: tuple[Recorded, ...] = ()
    group_rows: tuple[tuple[int, int], ...] = ()  # iteration and row id of all rollouts that still have pictures
    groups: Recorded | None = None  # the latest rollouts
    started: Recorded | None = None
    checks: Recorded | None = None
    sampled: Recorded | None = None
    changes: tuple[Recorded, ...] = ()  # of settings, while the run went on
    changed: Mapping[str, int] = field(default_factory=dict)

    def extended(self, rows: Iterable[Row]) -> "History":
        """This history with later rows, in the order they were recorded.

        A later Started supersedes earlier rows; a history that saw those must be built anew from the rows that remain.
        """
        history = self
        updates: list[Row] = []
        for row in rows:
            if row.kind == "IterationDone":
                updates.append(row)
                continue
            history = _folded(history._with_updates(updates), row)
            updates = []
        return history._with_updates(updates)

    def metric(self, name: str) -> list[Point]:
        """Points of one number in the order of iterations; none where it was never reported."""
        return self.metrics.get(name, [])

    def measure(self, steps: int | None, name: str) -> list[tuple[int, float, float, float]]:
        """Held-out figure over the evaluations: iteration, value, low, high. `steps=None` takes the one always measured."""
        key = str(self.evaluated_steps if steps is None else steps)
        found = [(item.iteration, item.data["measures"].get(key, {}).get(name)) for item in self.evaluations]
        return [(at, m["value"], m["low"], m["high"]) for at, m in found if m is not None]

    @property
    def changes_told(self) -> list[tuple[int, str]]:
        """What was changed while the run went on: after which iteration, and in words."""
        return [
            (item.iteration, ", ".join(f"{key.replace('_', ' ')} = {value}" for key, value in item.data["changes"].items()))
            for item in self.changes
        ]

    @property
    def evaluated_steps(self) -> int:
        """The number of sampling steps that every evaluation reports; 0 before the first."""
        if not self.evaluations:
            return 0
        common = set.intersection(*(set(item.data["measures"]) for item in self.evaluations))
        return max((int(key) for key in common), default=0) if len(common) < 2 else _middle(common)

    def _with_updates(self, rows: list[Row]) -> "History":
        if not rows:
            return self
        added: dict[str, list[Point]] = {}
        for row in rows:
            for name, value in row.data["metrics"].items():
                if value is not None:
                    added.setdefault(name, []).append((row.iteration, float(value)))
        metrics = {name: self.metrics.get(name, []) + added.get(name, []) for name in {**self.metrics, **added}}
        return replace(
            self,
            cursor=rows[-1].id,
            metrics=metrics,
            times=self.times + [(row.iteration, row.time) for row in rows],
            seconds=self.seconds + [(row.iteration, float(row.data["seconds"])) for row in rows],
            changed={**self.changed, "charts": rows[-1].id},
        )


def _middle(keys: set[str]) -> int:
    """Where every evaluation reports several step counts, 4 if it is among them: the usual rollout."""
    counts = sorted(int(key) for key in keys)
    return 4 if 4 in counts else counts[len(counts) // 2]


def _folded(history: History, row: Row) -> History:
    here = Recorded(row.id, row.iteration, row.data)
    history = replace(history, cursor=row.id)
    match row.kind:
        case "Started":
            return replace(history, started=here, changed={**history.changed, "started": row.id})
        case "GroupsScored":
            return replace(history, groups=here, changed={**history.changed, "groups": row.id})
        case "Evaluated":
            changed = {**history.changed, "charts": row.id, "pairs": row.id}
            earlier = tuple(item for item in history.evaluations if item.iteration < row.iteration)
            return replace(history, evaluations=(*earlier, here), changed=changed)
        case "PreflightDone":
            return replace(history, checks=here, changed={**history.changed, "checks": row.id})
        case "Sampled":
            return replace(history, sampled=here, changed={**history.changed, "sampled": row.id})
        case "Changed":
            changed = {**history.changed, "charts": row.id, "knobs": row.id}
            return replace(history, changes=(*history.changes, here), changed=changed)
    return history
