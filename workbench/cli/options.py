"""Options that several commands share, and how their text is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.policies import Chosen
    from workbench.store import Store


class BadArguments(typer.TyperException):
    """What was asked cannot be done as it was written."""

    exit_code = 2


Runs = Annotated[str, typer.Option("--runs", metavar="DIR", help="folder of the run directories")]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", envvar="WORKBENCH_STORE", help="database of the record as an SQLAlchemy URL"),
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable JSON on stdout; progress goes to stderr")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one setting; may be repeated")]
Policy = Annotated[str | None, typer.Option("--run", metavar="RUN", help="this run's policy; without one, the base of --preset")]
Preset = Annotated[str, typer.Option("--preset", metavar="NAME", help="ready-made configuration to start from")]
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="go on with this run and its own settings; or 'latest'")
]
Checkpoint = Annotated[int | None, typer.Option("--checkpoint", metavar="N", help="after iteration N instead of the last one")]


@contextmanager
def bad_arguments() -> Iterator[None]:
    """A plain ValueError inside is a mistake in the arguments. Subclasses, such as damaged checkpoints, are failures and pass."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise BadArguments(str(error)) from None


def open_store(runs: str, url: str | None) -> "Store":
    """The record that `--runs` and `--store` name. Raises: BadArguments: if the URL cannot be that of a database."""
    from workbench.store import Store

    with bad_arguments():
        return Store(runs, url)


def choose_policy(
    run: str | None, preset: str, changes: Sequence[str] | None, checkpoint: int | None, runs: str, url: str | None
) -> "Chosen":
    """The policy that `--run`, `--checkpoint`, `--preset` and `--set` name. Raises: ValueError: if they contradict each other."""
    from workbench.policies import choose

    if run is None and checkpoint is not None:
        raise ValueError("--checkpoint needs the run that it belongs to: add --run RUN")
    if run is not None and changes:
        raise ValueError("--run has its own settings; leave out --set")
    return choose(None if run is None else open_store(runs, url), run, preset, read_changes(changes), checkpoint)


def read_changes(changes: Sequence[str] | None, option: str = "--set", example: str = "grpo.group_size=16") -> dict[str, str]:
    """`["grpo.group_size=16"]` as a mapping; the last one wins. Raises: ValueError: where there is no '='."""
    pairs = {}
    for change in changes or ():
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{option} takes KEY=VALUE, as in {example}; got {change!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def read_numbers(option: str, text: str) -> tuple[int, ...]:
    """`"1,2,4"` as numbers of at least 1. Raises: ValueError: names the option and the value."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option} takes whole numbers of at least 1 separated by commas, as in 1,2,4,8; got {text!r}")
    return tuple(int(part) for part in parts)
