"""Prompt embeddings on disk, one safetensors file for each, so that a text encoder reads every prompt once and leaves memory."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.newest import newest
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 256
"""Most prompts whose embeddings stay in memory."""


def cache_folder() -> Path:
    """Where this program keeps what it can make again: WORKBENCH_CACHE, or else the user's own cache folder."""
    own = os.environ.get("WORKBENCH_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flow-map-workbench"


class PromptCache:
    """The embeddings that one text encoder has made.

    Args:
        encoder: names the encoder and everything else that an embedding depends on besides its prompt.
        device: where embeddings are read to.
    """

    def __init__(self, encoder: str, device: str = "cpu") -> None:
        self.folder = cache_folder() / "prompts" / hashlib.sha256(encoder.encode()).hexdigest()[:24]
        self.device = device
        self._kept: OrderedDict[str, Mapping[str, Tensor]] = OrderedDict()

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those that have not been embedded yet, each once, in their order."""
        distinct = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        return [prompt for prompt in distinct if not self._file(prompt).is_file()]

    def write(self, prompt: str, tensors: "Mapping[str, Tensor]") -> None:
        """Keep what an encoder made of a prompt.

        Raises: ValueError: if the disk refuses, naming the folder and how to choose another.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file(prompt)) as hidden:
                save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, hidden)
        except (OSError, SafetensorError) as error:
            told = f"the embedding of {prompt!r} cannot be written to {self.folder}: {error}"
            raise ValueError(f"{told}; make room, or let WORKBENCH_CACHE name a folder elsewhere") from error

    def read(self, prompt: str) -> "Mapping[str, Tensor]":
        """What `write` was given, on the device. Raises: ValueError: if the file is gone or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if prompt not in self._kept:
            path = self._file(prompt)
            try:
                self._kept[prompt] = load_file(path, device=self.device)
            except (OSError, SafetensorError) as error:
                told = f"the embedding of {prompt!r} cannot be read ({error})"
                raise ValueError(f"{told}; delete {path} and begin again") from error
        return newest(self._kept, prompt, KEPT)

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"
