"""Networks that were converted from other formats, kept on disk as folders of transformers, so that each is converted once."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.prompt_cache import cache_folder
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor

_ENDS = 2**20  # bytes of the beginning and the end of a file that tell its content


def converted_folder(
    origin: Path, config: Mapping[str, Any], convert: "Callable[[Path], Mapping[str, Tensor]]", version: str
) -> Path:
    """A folder with `config.json` and `model.safetensors`.

    Args:
        origin: the file that is converted.
        config: settings of the network.
        convert: from the file to the network's tensors; only called where they are not known yet.
        version: changes when `convert` does.
    Raises: ValueError: if the disk refuses, naming the folder and how to choose another.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = json.dumps(dict(config), sort_keys=True, indent=2)
    folder = cache_folder() / "converted" / _key(origin, f"{version}\n{text}")
    if (folder / "config.json").is_file():
        return folder
    tensors = convert(origin)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "model.safetensors") as hidden:
            save_file({name: value.contiguous() for name, value in tensors.items()}, hidden, metadata={"format": "pt"})
        with whole_file(folder / "config.json") as hidden:  # last: it says that all is there
            hidden.write_text(text)
    except (OSError, SafetensorError) as error:
        told = f"{origin.name} cannot be kept in {folder}: {error}"
        raise ValueError(f"{told}; make room, or let WORKBENCH_CACHE name a folder elsewhere") from error
    return folder


def _key(origin: Path, told: str) -> str:
    size = origin.stat().st_size
    digest = hashlib.sha256(f"{told}\n{size}\n".encode())
    with origin.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read())
    return digest.hexdigest()[:24]
