"""The parts of a pipeline of diffusers in another folder, linked where the disk allows it, so that they take no room there."""

import os
import shutil
from pathlib import Path

from workbench.models.diffusers_folder import HEAD, read_head


def parts_of(pipeline: Path) -> list[str]:
    """The subfolders that a pipeline's head names as its own."""
    return [name for name, value in read_head(pipeline).items() if isinstance(value, list) and len(value) == 2 and all(value)]


def add_parts(source: Path, target: Path, *, but: str = "") -> None:
    """The head of a pipeline, its licences and its parts that are there, `but` one; what else lies in `source` is left there."""
    licences = [path.name for path in source.iterdir() if path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))]
    for name in (HEAD, *licences):
        shutil.copyfile(source / name, target / name)
    for part in parts_of(source):
        if part != but and (source / part).is_dir():
            shutil.copytree(source / part, target / part, copy_function=link)


def link(source: str | Path, target: str | Path) -> None:
    """Large files are linked, where the disk has links; small ones are copied, so that both can be changed."""
    if Path(source).suffix == ".safetensors":
        try:
            os.link(Path(source).resolve(), target)
            return
        except OSError:
            pass  # another disk, or one that has no links
    shutil.copyfile(source, target)
