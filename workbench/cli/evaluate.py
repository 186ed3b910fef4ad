"""`evaluate`: a run's policy on held-out prompts, beside the base it started from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import (
    Changes,
    Checkpoint,
    Json,
    Policy,
    Preset,
    Runs,
    StoreUrl,
    bad_arguments,
    choose_policy,
    read_numbers,
)
from workbench.cli.screen import Screen, show, show_json

if TYPE_CHECKING:
    from workbench.events import Evaluated, Measure
    from workbench.policies import Chosen


def evaluate(
    run: Policy = None,
    preset: Preset = "shapes",
    changes: Changes = None,
    checkpoint: Checkpoint = None,
    images: Annotated[
        int | None, typer.Option(min=8, help="images for each number of steps; by default as at a run's end")
    ] = None,
    steps: Annotated[str, typer.Option(metavar="N,N", help="numbers of sampling steps")] = "1,2,4,8",
    seed: Annotated[int | None, typer.Option(min=0, help="of the first image; by default the run's own evaluation noise")] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Measure rewards, fidelity, diversity and distance to the base on held-out prompts, with 95 % confidence intervals."""

    with bad_arguments():
        counts = read_numbers("--steps", steps)
        chosen = choose_policy(run, preset, changes, checkpoint, runs, store)
    result = evaluate_policy(chosen, counts, images, seed)
    if as_json:
        found = {"run": chosen.run, "iteration": chosen.iteration, "images": result.images}
        show_json(found | {"measures": result.measures, "breakdown": result.breakdown})
    else:
        show(f"{chosen.title}: {result.images} images of held-out prompts, mean and 95 % interval")
        show(_table({f"{count} steps": figures for count, figures in result.measures.items()}))
        if result.breakdown:
            show("success by skill")
            show(_table({"": result.breakdown}))


def evaluate_policy(chosen: "Chosen", counts: tuple[int, ...], images: int | None, seed: int | None) -> "Evaluated":
    """One evaluation as a run makes it, with its progress on the screen."""
    with Screen(chosen.title, 1) as screen:
        stream = chosen.evaluate(counts, images, seed)
        while True:
            try:
                screen.event(next(stream))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


def _table(columns: "Mapping[str, Mapping[str, Measure]]") -> Any:
    from rich.table import Table

    table = Table("", *columns, box=None, pad_edge=False)
    for name in next(iter(columns.values())):
        cells = (figures[name] for figures in columns.values())
        table.add_row(name, *(f"{cell.value:.3f} ({cell.low:.3f} to {cell.high:.3f})" for cell in cells))
    return table
