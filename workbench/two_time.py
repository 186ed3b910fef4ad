"""Two-time maps as folders: a FLUX checkpoint with a second timestep embedder beside the first, complete as a pipeline.

What does not change is linked where the disk allows it, so that a map takes megabytes until it is distilled.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from workbench.linked import add_parts, link
from workbench.models.diffusers_folder import HEAD, loading, read_head
from workbench.models.flux_meanflow import HEAD_ENTRY, WEIGHTS, weight_map
from workbench.whole_file import whole_folder

SecondTime = Literal["interval", "target"]

_PART = "transformer"
_INDEX = f"{WEIGHTS}.index.json"
_README = """# A two-time map of FLUX.1

Its transformer has a second timestep embedder, so that u(x, t, s) carries a sample from time t to s in one step. Train and sample
it with Flow-Map Workbench: `model.name = flux_meanflow`, `model.source` this folder. In diffusers, by its velocity u(x, t, t):

```python
from diffusers import FluxPipeline
from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel

transformer = FluxTwoTimeTransformer2DModel.from_pretrained(folder, subfolder="transformer")
pipeline = FluxPipeline.from_pretrained(folder, transformer=transformer)
```

A plain `FluxPipeline.from_pretrained` leaves the second embedder out. {told} The licence of what it was made from holds.
"""


def make_two_time(
    source: Path,
    out: Path,
    *,
    second_time: SecondTime = "interval",
    gate: float = 0.25,
    scale: float = 1.0,
    weights: str = "",
    name: str = "",
) -> Path:
    """Make a two-time map of a FLUX checkpoint; where s = t it is that checkpoint's velocity. Whole or not at all.

    Args:
        source: folder of a FluxPipeline.
        out: folder to make, which must not be there yet.
        second_time: what the second embedder reads: the interval t - s, added (T2I-Distill), or the target s, mixed (AnyFlow).
        gate: its share in the mixture.
        scale: what an interval of 1 is to the second embedder's sinusoids; large ones let the distillation diverge.
        weights: T2I-Distill's weights as they were published, a .pt or safetensors file, in place of the checkpoint's own.
        name: what people call the source; its folder's name by default.
    Returns: `out`.
    Raises: ValueError: if the checkpoint is damaged, `weights` are not of its shape, or `out` is there.
    """
    from workbench.models.flux_two_time import published_network, two_time_settings

    interval, original = second_time == "interval", source / _PART
    beginning = "where s = t it is exactly that checkpoint's velocity, and its jumps are not trained yet"
    told = f"Made from {name or source.name}: {f'weights of T2I-Distill, {Path(weights).name}' if weights else beginning}."
    with two_time_pipeline(source, out, told) as made:
        with loading(source):
            config = json.loads((original / "config.json").read_text())
        if weights:
            published_network(config, Path(weights).expanduser()).save_pretrained(made)
            return out
        settings = two_time_settings(config, interval=interval, gate=gate, scale=scale)
        (made / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        try:
            _add_second(original, made, interval)
        except SafetensorError as error:
            raise ValueError(f"{original} cannot be read: {error}; fetch it again") from error
    return out


@contextmanager
def two_time_pipeline(source: Path, out: Path, told: str) -> Iterator[Path]:
    """The empty folder of a two-time transformer in what will be a whole pipeline: all else is the source's.

    Args:
        told: what its README says of how it was made, a sentence.
    Raises: ValueError: if `out` is there already. OSError: if it cannot be written.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; name a folder that is not, or remove it")
    with whole_folder(out) as hidden:
        add_parts(source, hidden, but=_PART)
        (hidden / _PART).mkdir()
        yield hidden / _PART
        (hidden / HEAD).write_text(json.dumps(read_head(source) | {_PART: HEAD_ENTRY}, indent=2) + "\n")
        (hidden / "README.md").write_text(_README.format(told=told))


def copy_pipeline(source: Path, out: Path) -> Path:
    """The same pipeline in another folder. Raises: as `two_time_pipeline`."""
    if out.exists():
        raise ValueError(f"{out} is there already; name a folder that is not, or remove it")
    with whole_folder(out) as hidden:
        add_parts(source, hidden)
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", hidden / "README.md")
    return out


def _add_second(original: Path, made: Path, interval: bool) -> None:
    """The transformer's files with a second embedder: one file is written anew, of several all but one more are linked."""
    from workbench.models.flux_two_time import FIRST, second_embedder

    files = weight_map(original)
    first = {}
    for name in (name for name in files if name.startswith(FIRST)):
        with safe_open(original / files[name], framework="pt") as opened:
            first[name] = opened.get_tensor(name)
    if not first:
        raise ValueError(f"{original} has no timestep embedder under the names of FLUX.1")
    second = second_embedder(first, interval=interval)
    if set(files.values()) == {WEIGHTS}:
        save_file(load_file(original / WEIGHTS) | second, made / WEIGHTS, {"format": "pt"})
        return
    for file in sorted(set(files.values())):
        link(original / file, made / file)
    own = WEIGHTS.replace(".safetensors", "-second-time.safetensors")
    save_file(second, made / own, {"format": "pt"})
    index: dict[str, Any] = {"metadata": {}, "weight_map": files | dict.fromkeys(second, own)}
    (made / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
