"""The SQL tables of the record, and a database that several processes write and read at once."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateColumn

BUSY_SECONDS = 10.0  # how long a writer waits for another one

_metadata = MetaData()
_row_id = BigInteger().with_variant(Integer, "sqlite")

RUNS = Table(
    "runs",
    _metadata,
    Column("id", String(120), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("title", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("parent", String(120)),  # the run that it branched from; not a reference, since that one may be deleted
    Column("config", Text, nullable=False),  # JSON
    Column("status", String(20), nullable=False),
    Column("wanted", String(20), nullable=False),
    Column("error", Text),
    Column("iteration", Integer, nullable=False),
    Column("iterations", Integer),
    Column("created", Float(53), nullable=False),  # seconds since 1970, as all times here
    Column("updated", Float(53), nullable=False),
    Column("host", Text),  # of the process that drives it, until it lets go
    Column("pid", Integer),
    Column("process_started", Float(53)),
    Column("branched", Integer),  # the iteration of its parent that it began from
    Column("tags", Text, nullable=False, server_default="[]"),  # JSON
    Column("note", Text, nullable=False, server_default=""),
    Column("deleted", Float(53)),  # when it was put into the trash
    Column("worked", Float(53)),  # seconds at work until `began`; none where the run is older than this column
    Column("began", Float(53)),  # when it last became running, until it is something else
    Index("runs_by_age", "created"),
)

EVENTS = Table(
    "events",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),
    Column("run", ForeignKey("runs.id"), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("iteration", Integer, nullable=False),
    Column("time", Float(53), nullable=False),
    Column("picture", Text),  # file name of its sprite sheet, until it is thinned
    Column("data", Text, nullable=False),  # JSON
    Index("events_by_run", "run", "id"),
    Index("events_by_kind", "run", "kind", "id"),
    Index(
        "events_with_picture",
        *("run", "kind", "id", "iteration", "picture"),
        sqlite_where=text("picture IS NOT NULL"),
        postgresql_where=text("picture IS NOT NULL"),
    ),
    sqlite_autoincrement=True,  # row ids are cursors: one that was deleted must never come back
)

WISHES = Table(
    "wishes",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),
    Column("run", ForeignKey("runs.id"), nullable=False, index=True),
    Column("wanted", String(20), nullable=False),
    Column("changes", Text),  # JSON, of a wish for other settings
    sqlite_autoincrement=True,
)

QUEUE = Table(
    "queue",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),  # the order of the queue
    Column("run", ForeignKey("runs.id"), nullable=False, unique=True),
    Column("lane", String(40), nullable=False),  # which kind of executor begins it
    Column("timeout", Float(53)),  # seconds that one attempt may take
    Column("retries", Integer, nullable=False),  # more attempts after a failure
    Column("attempt", Integer, nullable=False),  # 1 is the first
    Column("not_before", Float(53), nullable=False),
    Column("taken", Float(53)),  # when a dispatcher took it, to begin it
    Column("host", Text),  # of that dispatcher
    Column("pid", Integer),
    Column("process_started", Float(53)),
    Column("device", String(80)),  # which it was given
    sqlite_autoincrement=True,
)
"""Runs that wait for a process to drive them, and those that one drives until their end is settled."""

SCHEDULES = Table(
    "schedules",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),
    Column("name", String(80), nullable=False, unique=True),
    Column("settings", Text, nullable=False),  # JSON
    Column("anchor", Float(53), nullable=False),  # when it was planned, from which periods are counted
    Column("next", Float(53)),  # when it is due; none where it is over
    Column("paused", Text),  # why
    Column("removed", Float(53)),
    Index("schedules_by_next", "next"),
    sqlite_autoincrement=True,
)

FIRINGS = Table(
    "firings",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),
    Column("schedule", ForeignKey("schedules.id"), nullable=False),
    Column("due", Float(53), nullable=False),
    Column("time", Float(53), nullable=False),  # when a scheduler saw to it
    Column("state", String(20), nullable=False),
    Column("run", String(120), index=True),  # not a reference: the firing happened, whatever becomes of its run
    Column("reason", Text),
    Column("missed", Integer, nullable=False),  # earlier times that it stands for
    UniqueConstraint("schedule", "due"),
    sqlite_autoincrement=True,
)
"""What became of each time at which a schedule was due; one row each, whoever was quickest."""

VOTES = Table(
    "votes",
    _metadata,
    Column("id", _row_id, primary_key=True, autoincrement=True),
    Column("time", Float(53), nullable=False),
    Column("voter", String(80), nullable=False),
    Column("run_a", String(120), nullable=False),  # not a reference: what people said outlives the run that it is about
    Column("iteration_a", Integer, nullable=False),
    Column("run_b", String(120), nullable=False),
    Column("iteration_b", Integer, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("choice", String(4), nullable=False),  # a, b or tie
    Index("votes_by_sides", "run_a", "run_b"),
    sqlite_autoincrement=True,
)


def open_database(url: str) -> Engine:
    """An engine with the tables in place; SQLite in write-ahead mode, so that readers never wait for the writer.

    Raises: ValueError: if this is no URL of a database, or its driver is not installed.
    """
    sqlite = url.startswith("sqlite")
    try:
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS} if sqlite else {}, pool_pre_ping=not sqlite)
    except (ArgumentError, ModuleNotFoundError) as error:
        forms = "sqlite:///runs/runs.db or postgresql://user@host/name"
        raise ValueError(f"cannot use the database URL: {error}; it reads as in {forms}, with the driver installed") from None
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _take_write_lock)
    _metadata.create_all(engine)
    if _missing_columns(engine):
        _add_missing_columns(engine)
    return engine


def _missing_columns(bind: Engine | Connection) -> list[tuple[Table, Column[Any]]]:
    """What a database lacks that was made before a table got its later columns."""
    found = inspect(bind)
    present = {table.name: {column["name"] for column in found.get_columns(table.name)} for table in _metadata.sorted_tables}
    return [
        (table, column)
        for table in _metadata.sorted_tables
        for column in table.columns
        if column.name not in present[table.name]
    ]


def _add_missing_columns(engine: Engine) -> None:
    """Add them, empty or with the default that the server gives; later columns are nullable or have such a default."""
    with engine.begin() as connection:
        for table, column in _missing_columns(connection):  # again under the lock: another process may have been quicker
            definition = CreateColumn(column).compile(dialect=engine.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _take_write_lock(connection: Connection) -> None:
    """A transaction that reads before it writes could otherwise find that it may not write any more."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
