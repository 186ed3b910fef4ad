"""`sample`: images of a prompt from a run or a preset, in one PNG that says how it was made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    open_store,
    read_changes,
)
from workbench.cli.screen import say, show, show_json

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.contracts import Model, Sampler

_TILE = 128  # pixels; smaller images are enlarged by a whole factor, so that each pixel stays itself

_GAP = 2  # pixels of white around each image


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
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="PNG to write; its text chunk 'workbench' says how it was made")
    ] = Path("grid.png"),
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Draw images; an image depends on its prompt, seed and policy alone, here as on the page."""
    from workbench import __version__
    from workbench.evaluate import generate
    from workbench.exact_json import to_json
    from workbench.policies import choose

    with bad_arguments():
        if out.suffix.lower() != ".png":
            raise ValueError(f"--out must end in .png, which can say how it was made; got {str(out)!r}")
        chosen = choose(None if run is None else open_store(runs, store), run, preset, read_changes(changes), checkpoint)
        kernel, steps = choose_sampler(sampler, chosen.config.model), steps or chosen.config.sampling_steps
        for text in prompt:
            chosen.config.task.check(text)
    say(f"{chosen.title}: {len(prompt)} x {count} images in {steps} steps")
    prompts, seeds = [text for text in prompt for _ in range(count)], list(range(seed, seed + count)) * len(prompt)
    times = chosen.config.rollout.grid_of(steps)
    images = generate(chosen.load(), prompts, seeds, times=times, sampler=kernel)
    made: dict[str, object] = {"run": chosen.run, "iteration": chosen.iteration, "preset": None if run else preset}
    made |= {"prompts": prompt, "seeds": seeds[:count], "steps": steps, "times": times, "sampler": kernel.model_dump()}
    made |= {"model": chosen.config.model.model_dump(), "version": __version__}
    write_grid(out, images, count, to_json(made))
    show_json({"out": str(out)} | made) if as_json else show(
        f"wrote {out}: one row for each prompt, seeds {seed} to {seed + count - 1}"
    )


def choose_sampler(name: str | None, model: "Model") -> "Sampler":
    """A kernel with its own defaults, or the one that evaluations of the model use.

    Raises: ValueError: lists the names, if there is no such kernel or it asks of the map what it was not trained for.
    """
    from workbench.evaluate import deployed_sampler
    from workbench.samplers import SAMPLERS

    if name is None:
        return deployed_sampler(model.kind)
    if name not in SAMPLERS or model.kind not in SAMPLERS[name].needs:
        fitting = ", ".join(known for known, sampler in SAMPLERS.items() if model.kind in sampler.needs)
        told = f"sampler {name!r} does not fit a {model.kind} map" if name in SAMPLERS else f"unknown sampler {name!r}"
        raise ValueError(f"{told}; choose from: {fitting}")
    return SAMPLERS[name]()


def write_grid(path: Path, images: "Tensor", columns: int, made: str) -> None:
    """Write images [N, 3, H, W] in [0, 1] as rows of `columns`, with `made` in the text chunk 'workbench'."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, _TILE // max(pixels.shape[1:3]))
    tiles = np.pad(pixels.repeat(factor, 1).repeat(factor, 2), ((0, 0), (_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
    count, height, width, _ = tiles.shape
    grid = tiles.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2).reshape(-1, columns * width, 3)
    text = PngInfo()
    text.add_itxt("workbench", made)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(path, pnginfo=text)
