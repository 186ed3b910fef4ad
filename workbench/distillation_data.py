"""What a distillation learns from: latents of pictures and of the teacher's own drawings, made once and kept in the cache."""

from collections.abc import Generator as Stream
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from workbench.captioned import captioned, read_picture
from workbench.events import Controls, Event, Progress
from workbench.flow import seed_stream, seeded_noise, time_grid
from workbench.models.diffusers_folder import fingerprint
from workbench.models.student import Student
from workbench.prompt_cache import cache_folder
from workbench.recipes.distillation import DistillationRecipe, digest, identity
from workbench.whole_file import whole_file


@dataclass(frozen=True)
class Datum:
    """A latent in the cache, and its caption."""

    file: Path
    caption: str
    picture: Path | None  # that it is of; None for one that the teacher draws
    seed: int = 0  # of the noise that the teacher begins with


def data_of(recipe: DistillationRecipe, folder: Path) -> tuple[Datum, ...]:
    """Every latent that is learned from. Raises: ValueError: if there is none."""
    model = recipe.model(folder)
    kept = cache_folder() / "latents"
    seen = [fingerprint(folder, ("vae",)), recipe.resolution]
    drawn = [fingerprint(folder, model.parts), recipe.guidance, recipe.teacher_steps, recipe.shift, recipe.resolution]
    drawn += [recipe.dtype, recipe.precision, recipe.max_tokens]
    found = [
        Datum(kept / f"{digest([*seen, *identity(str(each.path))])}.safetensors", each.caption, each.path)
        for each in (captioned(recipe.pictures) if recipe.pictures else ())
    ]
    prompts = recipe.task.prompts("train")
    for index in range(recipe.samples):
        prompt, seed = prompts[index % len(prompts)], seed_stream(recipe.seed, "teacher", index)
        found.append(Datum(kept / f"{digest([*drawn, prompt, seed])}.safetensors", prompt, None, seed))
    if not found:
        raise ValueError("there is nothing to learn from: give `pictures`, or let the teacher draw with samples > 0")
    return tuple(found)


def read_latent(datum: Datum) -> Tensor:
    """A latent of the cache, float32. Raises: ValueError: if it is gone or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(datum.file)["latent"].float()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"a latent cannot be read ({error}); delete {datum.file} and resume") from error


def gather(data: Sequence[Datum], student: Student, recipe: DistillationRecipe, controls: Controls) -> Iterator[Event]:
    """See to it that every latent is in the cache."""
    missing = [datum for datum in data if not datum.file.is_file()]
    done = len(data) - len(missing)
    for start in range(0, len(missing), recipe.portion):
        if controls.stop:
            return
        portion = missing[start : start + recipe.portion]
        own = [datum for datum in portion if datum.picture is None]
        if own:
            _keep(own, (yield from _drawn(own, student, recipe)))
        if pictures := [datum for datum in portion if datum.picture is not None]:
            images = torch.stack([read_picture(datum.picture, recipe.resolution) for datum in pictures])  # type: ignore[arg-type]
            _keep(pictures, student.generator.encode(images))
        done += len(portion)
        yield Progress("data", done, len(data))


@torch.no_grad()
def _drawn(data: Sequence[Datum], student: Student, recipe: DistillationRecipe) -> Stream[Event, None, Tensor]:
    """The teacher's own latents, by many Euler steps."""
    with student.teacher() as generator:
        flow_map = generator.bind(generator.embed([datum.caption for datum in data]))
        x = seeded_noise([datum.seed for datum in data], generator.latent_shape, student.device)
        grid = time_grid(recipe.teacher_steps, recipe.shift)
        for step, (t, s) in enumerate(pairwise(grid), 1):
            x = x + (s - t) * flow_map.velocity(x, t)
            yield Progress("teacher", step, recipe.teacher_steps)
    return x


def _keep(data: Sequence[Datum], latents: Tensor) -> None:
    """Write latents into the cache, in half precision, which is more than the autoencoder was trained to."""
    from safetensors.torch import save_file

    for datum, latent in zip(data, latents, strict=True):
        datum.file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(datum.file) as hidden:
            save_file({"latent": latent.half().cpu().contiguous()}, hidden)
