"""What a list of all runs shows of each, kept so that a moment later only what changed is made and sent again."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.branching import differences
from workbench.config import PRESETS
from workbench.health import held_out_reward
from workbench.history import History
from workbench.jobs import one_at_a_time
from workbench.records import Run, resumable
from workbench.store import Store

SPARK = 24
"""Most points of the little curve beside a run."""
MOST_BYTES = 40_000
"""Of one answer to a browser that is behind; the rest follows with the next."""

_PRESETS = {config.title: name for name, config in PRESETS.items()}


@dataclass(frozen=True)
class _Evaluated:
    """What the evaluations of a run come to, as far as they have been read."""

    updated: float = 0.0  # the run's, when they were read
    cursor: int = 0
    points: tuple[tuple[int, float], ...] = ()  # iteration and held-out reward
    preview: Mapping[str, Any] | None = None  # of the latest
    checkpoint: int | None = None  # the last one


@dataclass(frozen=True)
class _Snapshot:
    revision: int
    lines: Mapping[str, tuple[int, dict[str, Any]]]  # by run, newest first: the revision that changed it, and the line
    listed: int  # the revision at which runs were last added, removed or put in another order


class Shelf:
    """All runs of a store, one line each. Snapshots are never changed in place, so that several visitors do no harm."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epoch = secrets.token_hex(3)  # a browser that comes from an earlier process begins anew
        self._evaluated: dict[str, _Evaluated] = {}
        self._changed: dict[str, list[str]] = {}
        self._snapshot = _Snapshot(0, {}, 0)

    @one_at_a_time
    def look(self) -> str:
        """Read what is new; returns the version of the list as it is now."""
        known, runs = self._snapshot, self._store.runs()
        revision, lines = known.revision, {}
        configs = {run.id: run.config for run in runs}
        for run in runs:
            line = self._line(run, configs)
            before = known.lines.get(run.id)
            if before is None or before[1] != line:
                revision += 1
                before = (revision, line)
            lines[run.id] = before
        moved = list(lines) != list(known.lines)
        if moved or revision > known.revision:
            self._snapshot = _Snapshot(revision + moved, lines, revision + 1 if moved else known.listed)
        return f"{self._epoch}.{self._snapshot.revision}"

    def news(self, version: str, most: int | None = MOST_BYTES) -> dict[str, Any]:
        """What a browser that holds `version` must be told: `rows` that changed, and `order` where the list itself did.

        Returns: also `version`, which the browser then holds: an earlier one than the list's where not everything fitted.
        """
        snapshot = self._snapshot
        epoch, _, seen = version.partition(".")
        since = int(seen) if epoch == self._epoch and seen.isdecimal() else 0
        rows: list[dict[str, Any]] = []
        size, reached = 0, snapshot.revision
        for at, line in sorted(snapshot.lines.values(), key=lambda entry: entry[0]):
            if at <= since:
                continue
            size += len(json.dumps(line))
            if most is not None and rows and size > most:
                reached = at - 1
                break
            rows.append(line)
        order = list(snapshot.lines) if snapshot.listed > since else None
        return {"version": f"{self._epoch}.{reached}", "rows": rows, "order": order}

    def _line(self, run: Run, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        evaluated = self._evaluations(run)
        points = evaluated.points
        best = max(points, key=lambda point: point[1], default=None)
        shown = [points[round(i * (len(points) - 1) / (SPARK - 1))] for i in range(SPARK)] if len(points) > SPARK else points
        return {
            "id": run.id,
            "title": run.title,
            "kind": run.kind,
            "status": run.status,
            "wanted": run.wanted,
            "error": run.error,
            "origin": run.origin,
            "created": run.created,
            "iteration": run.iteration,
            "iterations": run.iterations,
            "tags": list(run.tags),
            "note": run.note,
            "parent": run.parent,
            "branched": run.branched,
            "changed": self._changes(run, configs),
            "method": _method(run.config),
            "preset": _PRESETS.get(run.config.get("title", ""), ""),
            "base": _short(points[0][1]) if points else None,
            "now": _short(points[-1][1]) if points else None,
            "best": _short(best[1]) if best else None,
            "best_at": best[0] if best else None,
            "spark": [_short(value) for _, value in shown],
            "preview": evaluated.preview,
            "resumable": resumable(run, evaluated.checkpoint is not None),
            "checkpoint": evaluated.checkpoint,
        }

    def _evaluations(self, run: Run) -> _Evaluated:
        known = self._evaluated.get(run.id, _Evaluated())
        if known.updated == run.updated:
            return known
        anew, rows = self._store.news(run.id, known.cursor, ("Started", "Evaluated"))
        if anew:
            known = _Evaluated()
        if rows:
            told = [row for row in rows if row.kind == "Evaluated"]
            new = tuple((at, value) for at, value, *_ in held_out_reward(History().extended(told), run.config))
            preview = told[-1].data["preview"] if told else known.preview
            known = replace(known, cursor=rows[-1].id, points=known.points + new, preview=preview)
        checkpoint = max(self._store.checkpoints(run.id), default=None)
        known = replace(known, updated=run.updated, checkpoint=checkpoint)
        self._evaluated[run.id] = known
        return known

    def _changes(self, run: Run, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """How a branch differs from its parent, as text; settings never change, so this is found once."""
        if run.branched is None or run.parent is None or run.parent not in configs:
            return []
        if run.id not in self._changed:
            found = [item for item in differences(configs[run.parent], run.config) if item[0] != "title"]
            self._changed[run.id] = [f"{key}: {before} → {after}" for key, before, after in found]
        return self._changed[run.id]


def _method(config: Mapping[str, Any]) -> list[str]:
    """The names of what a run is made of, for people and for searching."""
    parts = [config.get(name) for name in ("model", "sampler", "objective")]
    names = [part["name"] for part in parts if isinstance(part, Mapping) and "name" in part]
    mode, adapter = config.get("rollout", {}).get("mode"), config.get("adapter", {}).get("kind")
    return [*names, *([mode] if mode else []), *(["lora"] if adapter == "lora" else [])]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
