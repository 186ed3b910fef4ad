"""A piece of work to be queued: what kind of run, with which settings, and how often and how long it may try."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection

from workbench.config import parse_config
from workbench.experiments.queue import LANE, Entry, enqueue
from workbench.settings import Settings
from workbench.store import Store

Kind = Literal["train", "pretrain", "notebook"]


class Work(Settings):
    """One run that a process of its own is to drive."""

    kind: Kind = Field(description="what drives it")
    config: dict[str, Any] = Field(description="its settings, complete, as the run will record them")
    title: str = Field("", description="name shown on the page; empty for one made of the settings")
    timeout: float | None = Field(None, gt=0, description="seconds that one attempt may take; empty for no limit")
    retries: int = Field(0, ge=0, le=20, description="more attempts after a failure, each after a longer pause")
    lane: str = Field(LANE, description="which kind of executor begins it")


def submit(
    store: Store,
    work: Work,
    *,
    origin: str,
    command: str = "",
    parent: str | None = None,
    along: Callable[[Connection, str], None] | None = None,
) -> str:
    """Queue a run; returns its id. The run and its place in the queue are recorded together or not at all.

    Args: as `Store.create`.
    Raises: ValueError: if its settings are not valid.
    """
    config, title = checked(work.kind, work.config)

    def queue(connection: Connection, run: str) -> None:
        enqueue(connection, Entry(run, work.lane, work.timeout, work.retries))
        if along is not None:
            along(connection, run)

    return store.create(work.kind, config, title=work.title or title, origin=origin, command=command, parent=parent, along=queue)


def checked(kind: str, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings of one kind of run made complete, and a title. Raises: ValueError: one line for each mistake."""
    if kind == "train":
        settings = parse_config(config)
        return settings.model_dump(mode="json"), settings.title
    if kind == "pretrain":
        from workbench.pretrain import recorded_recipe

        return recorded_recipe(config).model_dump(mode="json"), f"pretrain {config.get('name', 'shapes')}"
    if kind == "notebook":
        from workbench.experiments.notebooks import checked_notebook

        return checked_notebook(config)
    raise ValueError(f"unknown kind of run {kind!r}; choose from: train, pretrain, notebook")
