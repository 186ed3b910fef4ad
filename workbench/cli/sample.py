"""`sample`: images of a prompt from a run or a preset, in one PNG that says how it was made."""

from pathlib import Path
from typing import Annotated

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
    read_changes,
)
from workbench.cli.screen import say, show, show_json


def sample(
    prompt: Annotated[list[str], typer.Option("--prompt", help="what to draw; may be repeated, one row each")],
    run: Policy = None,
    preset: Preset = "shapes",
    changes: Changes = None,
    checkpoint: Checkpoint = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first image; the next have the seeds after it")] = 0,
    count: Annotated[int, typer.Option(min=1, max=256, help="images of each prompt")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, max=128, help="sampling steps; by default those of evaluations")] = None,
    sampler: Annotated[str | None, typer.Option(help="transition kernel; by default that of evaluations")] = None,
    sampler_set: Annotated[
        list[str] | None, typer.Option("--sampler-set", metavar="KEY=VALUE", help="one setting of the kernel; may be repeated")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="PNG to write; its text chunk 'workbench' says how it was made")
    ] = Path("grid.png"),
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Draw images; an image depends on its prompt, seed and policy alone, here as on the page."""
    from workbench.png import compose, describe, write
    from workbench.sampling import Shot, choose_sampler, draw

    with bad_arguments():
        if out.suffix.lower() != ".png":
            raise ValueError(f"--out must end in .png, which can say how it was made; got {str(out)!r}")
        chosen = choose_policy(run, preset, changes, checkpoint, runs, store)
        kernel = choose_sampler(sampler, chosen.config.model.kind, read_changes(sampler_set, "--sampler-set", "noise=0.5"))
        for text in prompt:
            chosen.config.task.check(text)
    times, seeds = chosen.config.rollout.grid_of(steps or chosen.config.sampling_steps), range(seed, seed + count)
    say(f"{chosen.title}: {len(prompt)} x {count} images in {len(times) - 1} steps")
    shots = [Shot(text, own, times, kernel) for text in prompt for own in seeds]
    made = describe(chosen, preset, prompt, seeds, times, kernel)
    write(out, compose(draw(chosen.load().generator, shots), count), made)
    show_json({"out": str(out)} | made) if as_json else show(
        f"wrote {out}: one row for each prompt, seeds {seed} to {seed + count - 1}"
    )
