"""The record of runs: SQL rows for the numbers, a directory for each run's images and checkpoints. Knows no thread, no screen."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from workbench import checkpoints
from workbench.events import CheckpointReady, Event, GroupsScored, IterationDone, Preview, Progress, Started
from workbench.exact_json import fields_of, from_json, to_json
from workbench.masking import masked
from workbench.places import in_full
from workbench.processes import this_process
from workbench.records import DRIVEN, Row, Run, Vote, Wish, numbers_of, picture_of, read_row, read_run, when
from workbench.tables import BUSY_SECONDS, EVENTS, QUEUE, RUNS, VOTES, WISHES, open_database
from workbench.whole_file import whole_file

WISHABLE = ("run", "pause", "stop", "save", "sample", "change")

TITLE_LENGTH, TAG_LENGTH, NOTE_LENGTH = 200, 40, 4_000
"""Most characters that people may write about a run."""

_ADOPTED_AT_ONCE = 100  # rows of a run from elsewhere

_ROLLOUT_TILE = 256  # pixels; evaluations keep their size


class StoreError(RuntimeError):
    """The disk or the database refuses to be written; says where, why and what can be done."""


class Store:
    """Runs that any process may write, watch and control.

    Args:
        location: folder of the run directories, or the URL of a database.
        url: SQLAlchemy URL of the database; by default SQLite inside the folder.
    Raises: StoreError: if the folder or the database cannot be used.
    """

    def __init__(self, location: str | Path = "runs", url: str | None = None) -> None:
        if url is None and "://" in str(location):
            url = str(location)
            database = make_url(url).database
            location = Path(database).parent if url.startswith("sqlite") and database else "runs"
        self.location = Path(location).absolute()
        with self.disk(self.location):
            self.location.mkdir(parents=True, exist_ok=True)
        self.url = url or f"sqlite:///{self.location / 'runs.db'}"
        with self._sql():
            self._engine = open_database(self.url)
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._kept: dict[str, tuple[int, int]] = {}

    @property
    def address(self) -> str:
        """The database's URL for people: without its password."""
        return masked(make_url(self.url).render_as_string(hide_password=True))

    def close(self) -> None:
        """Let go of the database's connections."""
        self._engine.dispose()

    # Runs

    def create(
        self,
        kind: str,
        config: dict[str, Any],
        *,
        title: str,
        origin: str,
        command: str = "",
        parent: str | None = None,
        branched: int | None = None,
        along: Callable[[Connection, str], None] | None = None,
    ) -> str:
        """A new run, queued, with its directory and `config.json`; returns its id. Files are named by their whole paths.

        Args:
            parent: the run that it branches from, after iteration `branched` of it; or the sweep that it is a point of.
            along: writes what must be recorded with the run or not at all, in its transaction; what it raises undoes the run.
        """
        config = in_full(config) if kind != "notebook" else config  # whose parameters are its own business
        task = config.get("task")
        name = task.get("name", kind) if isinstance(task, dict) else task or config.get("notebook", kind)
        now = time.time()
        values: dict[str, Any] = {"kind": kind, "title": title, "origin": origin, "parent": parent, "branched": branched}
        values |= {"config": to_json(config), "status": "queued", "wanted": "run", "iteration": 0, "created": now, "updated": now}
        values |= {"iterations": _whole_number(config.get("iterations")), "command": masked(command), "worked": 0.0}
        with self.disk(self.location):
            run = self._claim_directory(re.sub(r"[^a-z0-9_]+", "-", str(name).lower()).strip("-") or "run")
        try:
            with self.disk(self.folder(run)):
                (self.folder(run) / "images").mkdir()
            self._write_config(run, config)
            with self.writing() as connection:
                connection.execute(insert(RUNS).values(values | {"id": run}))
                if along is not None:
                    along(connection, run)
        except BaseException:
            shutil.rmtree(self.folder(run), ignore_errors=True)
            raise
        return run

    def runs(self, kind: str | None = None) -> list[Run]:
        """All runs that are not in the trash, of one kind if given, newest first."""
        query = select(RUNS).where(RUNS.c.deleted.is_(None)).order_by(RUNS.c.created.desc(), RUNS.c.id.desc())
        return [read_run(row) for row in self.read(query if kind is None else query.where(RUNS.c.kind == kind))]

    def run(self, run: str) -> Run:
        """The run with this id, or the only one whose id begins so, or "latest".

        Raises: ValueError: names the run and lists recent ones, or says that it was deleted.
        """
        newest = select(RUNS).where(RUNS.c.deleted.is_(None)).order_by(RUNS.c.created.desc(), RUNS.c.id.desc()).limit(8)
        if run == "latest":
            found = self.read(newest.limit(1))
        else:
            found = self.read(select(RUNS).where(RUNS.c.id == run))
            if run and not found:
                found = self.read(newest.where(RUNS.c.id.startswith(run, autoescape=True)))
        if len(found) == 1:
            if found[0].deleted is not None:
                raise ValueError(_deleted(found[0]))
            return read_run(found[0])
        recent = ", ".join(row.id for row in (found or self.read(newest)))
        if found:
            raise ValueError(f"run {run!r} is ambiguous; it may be any of: {recent}")
        hint = f"recent runs: {recent}" if recent else f"there is no run in {self.location}"
        raise ValueError(f"unknown run {run!r}; {hint}")

    def folder(self, run: str) -> Path:
        """The run's directory. Raises: ValueError: if this cannot be the id of a run."""
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", run):
            raise ValueError(f"{run!r} is not the id of a run")
        return self.location / run

    def add_settings(self, run: str, settings: Mapping[str, Any]) -> None:
        """Record settings that became known only while a run was driven, beside those that it was begun with."""
        with self.writing() as connection:
            found = from_json(connection.execute(select(RUNS.c.config).where(RUNS.c.id == run)).scalar_one()) | dict(settings)
            connection.execute(update(RUNS).where(RUNS.c.id == run).values(config=to_json(found)))
        self._write_config(run, found)
        self._kept.pop(run, None)

    def image_path(self, run: str, name: str) -> Path:
        """Where a sprite sheet lies. Raises: ValueError: if the name leads out of the run's images."""
        images = (self.folder(run) / "images").resolve()
        path = (images / name).resolve()
        if path.parent != images:
            raise ValueError(f"{name!r} is not the name of an image of run {run}")
        return path

    def annotate(self, run: str, *, title: str | None = None, tags: Sequence[str] | None = None, note: str | None = None) -> None:
        """Change what people say of a run; None leaves a thing as it is.

        Raises: ValueError: if the title is empty, or a text is longer than its limit.
        """
        found = self.run(run)
        values: dict[str, Any] = {}
        if title is not None:
            values["title"] = _text("title", title, TITLE_LENGTH)
            if not values["title"]:
                raise ValueError("title: a run needs a name; write a few words")
        if tags is not None:
            values["tags"] = to_json(sorted({_text("tag", tag, TAG_LENGTH) for tag in tags} - {""}))
        if note is not None:
            values["note"] = _text("note", note, NOTE_LENGTH)
        if values:
            with self.writing() as connection:
                connection.execute(update(RUNS).where(RUNS.c.id == found.id).values(values))

    def adopt(self, run: Run, folder: Path, rows: Iterable[Row]) -> None:
        """Take in a run from elsewhere: its directory `folder` is moved into place, `rows` are recorded in their order.

        They are written a few at a time, so that runs that go on are not kept waiting; until all is there, nobody sees the run.
        Nothing is changed where anything fails. Row ids are given anew.

        Raises: ValueError: if there is a run with this id; StoreError: if the disk refuses.
        """
        place = self.folder(run.id)
        with self.writing() as connection:
            if connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).one_or_none() or place.exists():
                raise ValueError(f"there is a run {run.id!r} already")
            values = fields_of(run) | {"config": to_json(run.config), "tags": to_json(run.tags), "deleted": time.time()}
            connection.execute(insert(RUNS).values(values))
        try:
            left = iter(rows)
            while some := list(islice(left, _ADOPTED_AT_ONCE)):
                described = [
                    {"run": run.id, "kind": row.kind, "iteration": row.iteration, "time": row.time}
                    | {"picture": picture_of(row), "data": to_json(row.data)}
                    for row in some
                ]
                with self.writing() as connection:
                    connection.execute(insert(EVENTS), described)
            with self.disk(self.location):
                os.rename(folder, place)
            with self.writing() as connection:
                connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(deleted=run.deleted))
        except BaseException:
            with self.writing() as connection:
                self._forget(connection, [run.id])
            shutil.rmtree(place, ignore_errors=True)
            raise

    # The trash

    def delete(self, run: str) -> None:
        """Put a run into the trash: out of every list, and back again by `restore` until it is purged.

        Raises: ValueError: if somebody drives it.
        """
        found = self.run(run)
        with self.writing() as connection:
            found = read_run(connection.execute(select(RUNS).where(RUNS.c.id == found.id)).one())  # nobody claims it meanwhile
            if not found.over and found.pid is not None:
                raise ValueError(f"run {found.id} is {found.status}; stop it before you delete it")
            connection.execute(update(RUNS).where(RUNS.c.id == found.id).values(deleted=time.time()))

    def restore(self, run: str) -> None:
        """Take a run out of the trash. Raises: ValueError: if it is not there."""
        with self.writing() as connection:
            in_trash = (RUNS.c.id == run) & RUNS.c.deleted.is_not(None)
            if not connection.execute(update(RUNS).where(in_trash).values(deleted=None)).rowcount:
                raise ValueError(f"there is no run {run!r} in the trash; those that are: {', '.join(self._in_trash()) or 'none'}")

    def trash(self) -> list[Run]:
        """The runs in the trash, those deleted last first."""
        query = select(RUNS).where(RUNS.c.deleted.is_not(None)).order_by(RUNS.c.deleted.desc(), RUNS.c.id.desc())
        return [read_run(row) for row in self.read(query)]

    def purge(self, older_than: float = 0.0) -> list[str]:
        """Remove for good what has been in the trash for more than `older_than` seconds; returns the ids."""
        with self.writing() as connection:
            due = select(RUNS.c.id).where(RUNS.c.deleted.is_not(None), RUNS.c.deleted <= time.time() - older_than)
            purged = [row.id for row in connection.execute(due)]
            self._forget(connection, purged)
        for folder in map(self.folder, purged):
            shutil.rmtree(folder, ignore_errors=True)  # a file that stays behind belongs to no run and does no harm
        return purged

    # Events

    def record(self, run: str, event: Event) -> int | None:
        """Write one event, in one transaction; the files that it names are complete before.

        Returns: the row's id; None for Progress, which is not recorded.
        Raises: StoreError: if the disk refuses; what was recorded earlier is not touched.
        """
        if isinstance(event, Progress):
            return None
        self._kept_of(run)  # an unknown run is refused before any file is written
        if isinstance(event, CheckpointReady):
            self.save_checkpoint(run, event)
        if isinstance(event, Started):
            with self.disk(self.folder(run)):
                checkpoints.discard_after(self._checkpoints(run), event.iteration)
        data, picture = self._describe(run, event)
        unused: list[str] = [picture] if picture else []
        try:
            with self.writing() as connection:
                superseded = self._supersede(connection, run, event.iteration) if isinstance(event, Started) else []
                values = {"run": run, "kind": type(event).__name__, "iteration": event.iteration, "time": time.time()}
                values |= {"picture": picture, "data": to_json(data)}
                row = connection.execute(insert(EVENTS).values(values).returning(EVENTS.c.id)).scalar_one()
                connection.execute(update(RUNS).where(RUNS.c.id == run).values(_progress_of(event)))
                thinned = self._thin(connection, run) if picture and isinstance(event, GroupsScored) else []
            unused = superseded + thinned
        finally:
            for name in unused:
                self.image_path(run, name).unlink(missing_ok=True)
        return int(row)

    def events(self, run: str, after: int = 0, kinds: Sequence[str] | None = None, limit: int | None = None) -> list[Row]:
        """Rows past the cursor `after`, oldest first; of some kinds if given."""
        query = select(EVENTS).where(EVENTS.c.run == run, EVENTS.c.id > after).order_by(EVENTS.c.id).limit(limit)
        return [read_row(row) for row in self.read(query if kinds is None else query.where(EVENTS.c.kind.in_(kinds)))]

    def news(self, run: str, after: int, kinds: Sequence[str]) -> tuple[bool, list[Row]]:
        """Rows past the cursor `after`, of some kinds, "Started" among them.

        Returns: whether a run that was resumed has superseded rows that were read before, and the rows: then all that remain.
        """
        rows = self.events(run, after, kinds)
        if after and any(row.kind == "Started" for row in rows):
            return True, self.events(run, kinds=kinds)
        return False, rows

    def metrics(self, run: str, after: int = 0) -> dict[str, list[tuple[int, float]]]:
        """Curves by name, as (iteration, value) in order, from the rows past the cursor `after`.

        Every number of IterationDone by its name and "seconds"; of Reported by its name; of Evaluated "held_out/<name>@<steps>",
        and the breakdown as "held_out/skill/<name>".
        """
        curves: dict[str, list[tuple[int, float]]] = {}
        query = select(EVENTS.c.kind, EVENTS.c.iteration, EVENTS.c.data).where(EVENTS.c.run == run, EVENTS.c.id > after)
        for kind, iteration, data in self.read(
            query.where(EVENTS.c.kind.in_(("IterationDone", "Evaluated", "Reported"))).order_by(EVENTS.c.id)
        ):
            for name, value in numbers_of(kind, from_json(data)).items():
                curves.setdefault(name, []).append((iteration, value))
        return curves

    def index(self, run: str, kind: str, after: int = 0) -> list[tuple[int, int]]:
        """Iteration and row id of the events of one kind that still have their picture, oldest first; reads no data."""
        query = select(EVENTS.c.iteration, EVENTS.c.id).where(EVENTS.c.run == run, EVENTS.c.kind == kind, EVENTS.c.id > after)
        return [(row.iteration, row.id) for row in self.read(query.where(EVENTS.c.picture.is_not(None)).order_by(EVENTS.c.id))]

    def cursor(self, run: str) -> int:
        """The id of the run's last row; 0 where there is none."""
        found = self.read(select(EVENTS.c.id).where(EVENTS.c.run == run).order_by(EVENTS.c.id.desc()).limit(1))
        return int(found[0].id) if found else 0

    # Wishes and the driver's side

    def wish(self, run: str, wanted: str, changes: dict[str, Any] | None = None) -> None:
        """Ask whoever drives the run to "run", "pause", "stop", "save", "sample", or "change" settings given by dotted key.

        Raises: ValueError: if the wish is unknown, or nobody drives the run any more.
        """
        if wanted not in WISHABLE:
            raise ValueError(f"unknown wish {wanted!r}; choose from: {', '.join(WISHABLE)}")
        found = self.run(run)
        if found.over:
            reason = f" ({found.error})" if found.error else ""
            raise ValueError(f"run {found.id} is {found.status}{reason}, so nothing can be asked of it; resume it to go on")
        with self.writing() as connection:
            connection.execute(insert(WISHES).values(run=found.id, wanted=wanted, changes=to_json(changes or {})))
            if wanted in ("run", "pause", "stop"):
                connection.execute(update(RUNS).where(RUNS.c.id == found.id).values(wanted=wanted))

    def take_wishes(self, run: str) -> list[Wish]:
        """The wishes since the last call, oldest first; each is given once."""
        if not self.read(select(WISHES.c.id).where(WISHES.c.run == run).limit(1)):
            return []
        with self.writing() as connection:
            pending = select(WISHES.c.id, WISHES.c.wanted, WISHES.c.changes).where(WISHES.c.run == run).order_by(WISHES.c.id)
            taken = connection.execute(pending).all()
            connection.execute(delete(WISHES).where(WISHES.c.run == run, WISHES.c.id <= taken[-1].id))
        return [Wish(row.wanted, from_json(row.changes or "{}")) for row in taken]

    def claim(self, run: str, fresh: bool = False) -> None:
        """Make this process the one that drives the run; wishes to an earlier driver are forgotten.

        Args:
            fresh: only if it waits for its first driver, or for the next one after a failure.
        Raises: ValueError: if a living process drives it already, or it does not wait.
        """
        with self.writing() as connection:
            row = connection.execute(select(RUNS).where(RUNS.c.id == run).with_for_update()).one_or_none()
            if row is None:
                raise ValueError(f"unknown run {run!r}")
            if row.deleted is not None:
                raise ValueError(_deleted(row))
            found = read_run(row)
            if found.pid is not None and not found.over:
                raise ValueError(f"run {run} is {found.status} in process {found.pid} on {found.host}; stop it there first")
            if fresh and found.status != "queued":
                raise ValueError(f"run {run} is {found.status} and does not wait to be begun")
            host, pid, started = this_process()
            values = {"host": host, "pid": pid, "process_started": started, "updated": time.time()}
            stopping = fresh and row.wanted == "stop"  # asked for while its process was on the way
            values |= {"status": "queued", "error": None, "wanted": "stop" if stopping else "run"}
            values |= clock_stopped(RUNS.c.updated)  # by the last sign of a driver that died at work
            connection.execute(update(RUNS).where(RUNS.c.id == run).values(values))
            if not stopping:
                connection.execute(delete(WISHES).where(WISHES.c.run == run))
            if fresh and not self.checkpoints(run):  # what an earlier attempt reported will be reported again
                connection.execute(delete(EVENTS).where(EVENTS.c.run == run, EVENTS.c.kind == "Reported"))

    def wait_again(self, run: str) -> None:
        """Let a run that nobody drives wait for a driver, as if it were new; its checkpoints stay.

        Raises: ValueError: if a living process drives it.
        """
        self.claim(run)
        with self.writing() as connection:
            free = {"host": None, "pid": None, "process_started": None}
            connection.execute(update(RUNS).where(RUNS.c.id == run, _driven_here()).values(free))

    def set_status(self, run: str, status: str, error: str | None = None, part: bool = False) -> bool:
        """What the driver says of its run. A status with an error, and every final one, lets go of it.

        Args:
            part: said by a part of the run, which another process drives.
        Returns: False where another process drives the run now, which is left as it is.
        """
        now = time.time()
        values: dict[str, Any] = {"status": status, "error": error, "updated": now} | clock_stopped(now)
        if error is not None or status not in DRIVEN:
            values |= {"pid": None, "process_started": None}
        elif status == "running":
            values["began"] = now
        mine = (RUNS.c.id == run) if part else (RUNS.c.id == run) & (RUNS.c.pid.is_(None) | _driven_here())
        with self.writing() as connection:
            return bool(connection.execute(update(RUNS).where(mine).values(values)).rowcount)

    def correct(self, run: str, pid: int | None, error: str | None, died: str = "crashed") -> bool:
        """Say why a run ended, for its driver, a process of this host that has ended and could not say so, or knew less.

        Args:
            died: what becomes of a run that it still drove.
        Returns: False where it ended otherwise, or another process drives it now.
        """
        host = this_process()[0]
        driven = (RUNS.c.host == host) & (RUNS.c.pid == pid) & RUNS.c.status.in_(DRIVEN)
        failed = (RUNS.c.host == host) & RUNS.c.pid.is_(None) & (RUNS.c.status == "failed")
        values = {"status": case((driven, died), else_="failed"), "error": error, "pid": None, "process_started": None}
        with self.writing() as connection:
            row = update(RUNS).where(RUNS.c.id == run, driven | failed).values(values | clock_stopped(RUNS.c.updated))
            return bool(connection.execute(row).rowcount)

    def write_traceback(self, run: str, text: str) -> Path:
        """Keep the traceback of what ended the run in its directory."""
        path = self.folder(run) / "error.txt"
        with self.disk(path.parent):
            path.write_text(text)
        return path

    def heartbeat(self, run: str) -> bool:
        """Say that this process lives and drives the run. Returns: False where it does not drive it any more."""
        with self.writing() as connection:
            mine = (RUNS.c.id == run) & _driven_here()
            return bool(connection.execute(update(RUNS).where(mine).values(updated=time.time())).rowcount)

    # Checkpoints

    def save_checkpoint(self, run: str, event: CheckpointReady) -> Path:
        """Write a checkpoint, then thin the older ones; returns its directory."""
        folder = self._checkpoints(run)
        with self.disk(folder):
            path = checkpoints.write_checkpoint(folder, run, event)
            checkpoints.thin_checkpoints(folder, self._kept_of(run)[1], event.state.get("best"))
        return path

    def checkpoints(self, run: str) -> list[int]:
        """Iterations of the run's complete checkpoints, ascending."""
        return checkpoints.list_checkpoints(self._checkpoints(run))

    def checkpoint_stamp(self, run: str, iteration: int) -> int:
        """Which checkpoint that is: another number once a run that was resumed earlier has written it again; 0 for none."""
        return checkpoints.stamp(self._checkpoints(self.run(run).id), iteration)

    def load_checkpoint(self, run: str, iteration: int | None = None) -> CheckpointReady:
        """The checkpoint after `iteration`, or the last one. Raises: CheckpointError: as `checkpoints.read_checkpoint`."""
        found = self.run(run).id
        return checkpoints.read_checkpoint(self._checkpoints(found), found, iteration)

    # Votes

    def vote(self, vote: Vote) -> int:
        """Keep one vote; returns its id."""
        if vote.choice not in ("a", "b", "tie"):
            raise ValueError(f"a vote is for 'a', 'b' or 'tie', not {vote.choice!r}")
        values = {name: value for name, value in vars(vote).items() if name != "id"} | {"time": time.time()}
        with self.writing() as connection:
            return int(connection.execute(insert(VOTES).values(values).returning(VOTES.c.id)).scalar_one())

    def votes(self, a: tuple[str, int], b: tuple[str, int]) -> list[Vote]:
        """Every vote between two policies, each a run and its iteration, oldest first; A is `a` in all of them."""
        sides = [
            (VOTES.c.run_a == first[0])
            & (VOTES.c.iteration_a == first[1])
            & (VOTES.c.run_b == second[0])
            & (VOTES.c.iteration_b == second[1])
            for first, second in ((a, b), (b, a))
        ]
        rows = self.read(select(VOTES).where(sides[0] | sides[1]).order_by(VOTES.c.id))
        return [Vote(**row._mapping).seen_from(*a) for row in rows]

    def retract_vote(self, vote: int) -> None:
        """Take a vote back. Raises: ValueError: if there is none with this id."""
        with self.writing() as connection:
            if not connection.execute(delete(VOTES).where(VOTES.c.id == vote)).rowcount:
                raise ValueError(f"there is no vote {vote} to take back")

    @contextmanager
    def disk(self, folder: Path) -> Iterator[None]:
        """Where files of runs are written. Raises: StoreError: if the disk refuses; says what can be done."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(
                f"cannot write in {folder}: {reason}; free some space, make it writable or choose another folder. "
                "What was recorded before is still there."
            ) from error

    # Inside

    def _forget(self, connection: Connection, runs: Sequence[str]) -> None:
        for table in (EVENTS, WISHES, QUEUE):
            connection.execute(delete(table).where(table.c.run.in_(runs)))
        connection.execute(delete(RUNS).where(RUNS.c.id.in_(runs)))

    def _in_trash(self) -> list[str]:
        return [run.id for run in self.trash()][:8]

    def _checkpoints(self, run: str) -> Path:
        return self.folder(run) / "checkpoints"

    def _write_config(self, run: str, config: Mapping[str, Any]) -> None:
        path = self.folder(run) / "config.json"
        with self.disk(path.parent), whole_file(path) as hidden:
            hidden.write_text(to_json(config, indent=2) + "\n")

    def _claim_directory(self, name: str) -> str:
        while True:
            run = f"{time.strftime('%Y%m%d-%H%M')}-{name}-{secrets.token_hex(2)}"
            try:
                os.mkdir(self.location / run)
            except FileExistsError:
                continue
            return run

    def _kept_of(self, run: str) -> tuple[int, int]:
        """How many rollout pictures and recent checkpoints the run's configuration keeps."""
        if run not in self._kept:
            found = self.run(run)
            if found.id != run:
                raise ValueError(f"unknown run {run!r}; do you mean {found.id}?")
            record = found.config.get("record", {})
            self._kept[run] = (record.get("rollouts_kept", 500), record.get("checkpoints_kept", 3))
        return self._kept[run]

    def _describe(self, run: str, event: Event) -> tuple[dict[str, Any], str | None]:
        """An event's fields for its row, and the file name of its picture, which is written here."""
        assert not isinstance(event, Progress), "never recorded"
        data = fields_of(event)
        if isinstance(event, CheckpointReady):
            data["tensors"] = {stem: len(tensors) for stem, tensors in event.tensors.items()}
        picture = None
        for name, value in data.items():
            if isinstance(value, Preview):
                rollout = isinstance(event, GroupsScored)
                columns = event.group_size if isinstance(event, GroupsScored) else 8
                stem = f"{type(event).__name__.lower()}-{event.iteration:06d}"
                folder = self.folder(run) / "images"
                from workbench.pictures import write_sprite

                with self.disk(folder):
                    data[name] = write_sprite(folder, stem, value.images, columns, _ROLLOUT_TILE if rollout else None)
                picture = data[name]["sprite"]
        return data, picture

    def _supersede(self, connection: Connection, run: str, iteration: int) -> list[str]:
        """Delete what lies past the state that the run begins again from; returns the pictures that nobody names any more.

        That is every later iteration; the groups of an update that was not finished; and what followed the checkpoint, but for
        images that somebody asked for.
        """

        def last(kind: str, reached: ColumnElement[bool]) -> int:
            query = select(func.max(EVENTS.c.id)).where(EVENTS.c.run == run, EVENTS.c.kind == kind, reached)
            return connection.execute(query).scalar() or 0

        past = EVENTS.c.iteration > iteration
        past |= (EVENTS.c.kind == "GroupsScored") & (EVENTS.c.id > last("IterationDone", EVENTS.c.iteration <= iteration))
        if checkpoint := last("CheckpointReady", EVENTS.c.iteration == iteration):
            past |= (EVENTS.c.id > checkpoint) & (EVENTS.c.kind != "Sampled")
        superseded = (EVENTS.c.run == run) & past
        pictures = connection.execute(select(EVENTS.c.picture).where(superseded, EVENTS.c.picture.is_not(None))).scalars().all()
        connection.execute(delete(EVENTS).where(superseded))
        return list(pictures)

    def _thin(self, connection: Connection, run: str) -> list[str]:
        """Let go of rollout pictures beyond the number kept, some at a time; returns their file names. Their numbers stay."""
        kept = self._kept_of(run)[0]
        pictured = (EVENTS.c.run == run) & (EVENTS.c.kind == "GroupsScored") & EVENTS.c.picture.is_not(None)
        if (connection.execute(select(func.count()).select_from(EVENTS).where(pictured)).scalar() or 0) <= kept:
            return []
        from workbench.pictures import choose_to_drop

        columns = (EVENTS.c.id, EVENTS.c.iteration, EVENTS.c.picture)
        rows = connection.execute(select(*columns).where(pictured).order_by(EVENTS.c.id)).all()
        drop = [rows[index] for index in choose_to_drop([row.iteration for row in rows], kept - kept // 20)]
        connection.execute(update(EVENTS).where(EVENTS.c.id.in_([row.id for row in drop])).values(picture=None))
        return [row.picture for row in drop]

    def read(self, query: Any) -> Sequence[Any]:
        """The rows of a query, outside any transaction."""
        with self._sql(), self._reader.connect() as connection:
            return connection.execute(query).all()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is written at its end, and undone by an exception."""
        with self._sql(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _sql(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            reason = str(error.orig)
            if "locked" in reason:
                remedy = f"another process has held it for more than {BUSY_SECONDS:.0f} s"
            else:
                remedy = "free some space or make it writable; what was recorded before is still there"
            raise StoreError(f"the database of runs in {self.location} cannot be used: {reason}; {remedy}") from error


def clock_stopped(until: ColumnElement[float] | float) -> dict[str, Any]:
    """What to write where a run was at work until some moment, if it was, and is no longer."""
    return {"worked": RUNS.c.worked + func.coalesce(until - RUNS.c.began, 0.0), "began": None}


def _driven_here() -> ColumnElement[bool]:
    """Of runs that this process drives."""
    host, pid, started = this_process()
    return (RUNS.c.host == host) & (RUNS.c.pid == pid) & (RUNS.c.process_started == started)


def _progress_of(event: Event) -> dict[str, Any]:
    """What an event changes in its run's row."""
    changes: dict[str, Any] = {"updated": time.time()}
    if isinstance(event, Started | IterationDone):
        changes["iteration"] = event.iteration
    if isinstance(event, Started) and (total := _whole_number(event.facts.get("iterations"))) is not None:
        changes["iterations"] = total
    return changes


def _deleted(row: Any) -> str:
    remedy = f"bring it back on the Runs page, or with: python -m workbench runs restore {row.id}"
    return f"run {row.id} was deleted on {when(row.deleted)}; {remedy}"


def _text(what: str, text: str, limit: int) -> str:
    """Text as people typed it, without the spaces around it. Raises: ValueError: if it is too long."""
    if len(text.strip()) > limit:
        raise ValueError(f"{what}: {len(text.strip())} characters are too many; at most {limit}")
    return text.strip()


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
