"""`launch`: train with several processes, on one machine or on several."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.drive import INTERRUPTED, Interrupts
from workbench.cli.options import BadArguments, bad_arguments
from workbench.cli.screen import say, show_json
from workbench.cli.train import begin, train

if TYPE_CHECKING:
    from workbench.experiments.launching import Nodes


def launch(
    command: Annotated[list[str], typer.Argument(metavar="train ...", help="what is launched, with its own options")],
    processes: Annotated[int, typer.Option(min=1, help="how many train together, over all nodes: one for each GPU")],
    nodes: Annotated[int, typer.Option(min=1, help="machines that share them evenly; launch the same on each")] = 1,
    node: Annotated[int, typer.Option("--node", "--node-rank", min=0, help="which of them this one is; 0 keeps the record")] = 0,
    address: Annotated[
        str, typer.Option("--address", "--main-address", metavar="HOST", help="address of node 0")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", "--main-port", min=1, max=65535, help="port there, for nodes alone; any free one for one node"),
    ] = None,
    wait: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="in which all processes have to come up")] = 600.0,
) -> None:
    """Train with several processes, one for each GPU; or go on with a run, also with another number of them.

    What follows `train` are its own options, --json, --runs and --store among them. `train --set compute.processes=N` does the
    same on one machine. Ctrl-C stops all after the current iteration with a checkpoint; a second one ends them now.
    """
    from workbench.experiments.launching import Nodes

    if command[0] != "train":
        example = f"launch --processes {processes} train --preset shapes"
        raise BadArguments(f"launch begins train, as in: {example}; got {command[0]!r}")
    machines = Nodes(nodes, node, address, port or 0, wait)
    with bad_arguments():
        machines.processes_here(processes)
    if node:
        _follow(processes, machines)
        return
    alone = typer.Typer()
    alone.command()(train)
    options = typer.main.get_command(alone).make_context("train", list(command[1:])).params
    begin(**options, nodes=machines, processes=processes)


def _follow(processes: int, nodes: "Nodes") -> None:
    """This machine's processes of a run whose record node 0 keeps."""
    from workbench.experiments.launching import Team

    team, asked = Team(processes, nodes, os.environ, None, None), False
    say(f"{nodes.processes_here(processes)} of {processes} processes here, for the run of {nodes.address}")
    with Interrupts() as interrupts:
        try:
            while team.goes_on():
                if interrupts.asked and not asked:
                    asked = True
                    team.interrupt()
            failure = team.failure()
        finally:
            team.close()
    if failure is not None:
        say(failure.trace or failure.error)
    status = "failed" if failure else "stopped" if asked else "done"
    show_json({"node": nodes.index, "status": status, "error": failure.error if failure else None})
    if status != "done":
        raise typer.Exit(1 if failure else INTERRUPTED)
