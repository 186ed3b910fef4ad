"""`train`: align a generator, or go on with an interrupted run."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.drive import Interrupts, command_line, conclude, drive, drive_together, reopen
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

if TYPE_CHECKING:
    from workbench.config import RunConfig
    from workbench.experiments.launching import Nodes
    from workbench.store import Store


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
    begin(preset, changes, iterations, seed, title, resume, checkpoint, runs, store, as_json)


def begin(
    preset: str,
    changes: list[str] | None,
    iterations: str | None,
    seed: str | None,
    title: str | None,
    resume: str | None,
    checkpoint: int | None,
    runs: str,
    store: str | None,
    as_json: bool,
    nodes: "Nodes | None" = None,
    processes: int | None = None,
) -> None:
    """Drive a new or an interrupted training, in this process or, where its settings ask for several, in others.

    Args:
        nodes: the machines that share them.
        processes: how many, whatever the settings say; a run that is resumed goes on with as many.
    """
    from workbench.config import PORTIONS, change_live, configure
    from workbench.experiments.execute import processes_of
    from workbench.experiments.launching import team_of
    from workbench.experiments.rank_process import follow, leading
    from workbench.jobs import Job
    from workbench.ranks import here
    from workbench.train import train as start

    index, count = here()
    if index:  # begun by torchrun: the first process keeps the record, the others follow it
        with Interrupts() as interrupts:
            follow(lambda: interrupts.asked)
        return
    processes = processes or (count if count > 1 else None)
    options = {"iterations": iterations, "seed": seed, "title": title}
    given = {key: value for key, value in options.items() if value is not None}
    with bad_arguments():
        wanted = read_changes(changes)
        if resume is not None and (given or preset != "shapes" or not wanted.keys() <= {*PORTIONS}):
            told = "--resume goes on with the run's own settings; leave out --preset, --set and the like"
            raise BadArguments(f"{told}; only {' and '.join(PORTIONS)}, which change no result, can be --set")
        if resume is None:
            wanted |= given | ({} if processes is None else {"compute.processes": str(processes)})
            config, record, last = configure(preset, wanted), open_store(runs, store), None
        else:
            record = open_store(runs, store)
            run, last = reopen(record, resume, checkpoint, "train")
            config = _with_processes(record, run, processes)
            config = change_live(config, wanted)
            last = last and replace(last, state=last.state | {"changes": last.state.get("changes", {}) | wanted})
    if resume is None:
        run = record.create(
            "train", config.model_dump(mode="json"), title=config.title, origin="command line", command=command_line()
        )
    values = config.model_dump(mode="json")
    if processes_of(values) > 1 and count == 1:
        with bad_arguments():
            team = team_of(record, run, nodes, checkpoint=checkpoint, changes={} if resume is None else wanted)
        conclude(drive_together(record, run, team, "train"), as_json)
        return
    loop = leading(record, run, values, lambda resume, controls: start(config, resume=resume, controls=controls))
    conclude(drive(record, run, Job(record, run, loop, resume=last), "train"), as_json)


def _with_processes(record: "Store", run: str, processes: int | None) -> "RunConfig":
    """The settings of a run that goes on with another number of processes, which its record then says.

    Raises: ValueError: if its groups do not divide over them.
    """
    from workbench.config import change, parse_config

    config = parse_config(record.run(run).config)
    if processes in (None, config.compute.processes):
        return config
    config = change(config, {"compute.processes": processes})
    record.add_settings(run, {"compute": config.compute.model_dump(mode="json")})
    return config
