"""`train`: align a generator, or go on with an interrupted run."""

import os
from dataclasses import replace
from typing import Annotated

import typer

from workbench.cli.drive import Interrupts, command_line, conclude, drive, reopen
from workbench.cli.options import (
    BadArguments,
    Changes,
    Checkpoint,
    Json,
    Preset,
    Resume,
    Runs,
    StoreUrl,
    bad_arguments,
    open_store,
    read_changes,
)


def train(
    preset: Preset = "shapes",
    changes: Changes = None,
    iterations: Annotated[str | None, typer.Option(metavar="N", help="policy updates")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="every random number of the run follows from it")] = None,
    title: Annotated[str | None, typer.Option(help="name shown on the page")] = None,
    resume: Resume = None,
    checkpoint: Checkpoint = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Align a generator by reinforcement learning; the last line of stdout is a JSON summary.

    Ctrl-C stops after the current iteration with a checkpoint; a second one ends it now.
    """
    from workbench.config import PORTIONS, change_live, configure, parse_config
    from workbench.jobs import Job
    from workbench.train import train as start

    options = {"iterations": iterations, "seed": seed, "title": title}
    given = {key: value for key, value in options.items() if value is not None}
    with bad_arguments():
        wanted = read_changes(changes)
        if resume is not None and (given or preset != "shapes" or not wanted.keys() <= {*PORTIONS}):
            told = "--resume goes on with the run's own settings; leave out --preset, --set and the like"
            raise BadArguments(f"{told}; only {' and '.join(PORTIONS)}, which change no result, can be --set")
        if resume is None:
            config, record, last = configure(preset, wanted | given), open_store(runs, store), None
        else:
            record = open_store(runs, store)
            run, last = reopen(record, resume, checkpoint, "train")
            config = change_live(parse_config(record.run(run).config), wanted)
            last = last and replace(last, state=last.state | {"changes": last.state.get("changes", {}) | wanted})
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process keeps the record, the others follow it
        with Interrupts():
            for _ in start(config, resume=last):
                pass
        return
    if resume is None:
        run = record.create(
            "train", config.model_dump(mode="json"), title=config.title, origin="command line", command=command_line()
        )
    job = Job(record, run, lambda checkpoint, controls: start(config, resume=checkpoint, controls=controls), resume=last)
    conclude(drive(record, run, job, "train"), as_json)
