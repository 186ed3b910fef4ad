"""Where things of this machine lie that a run names: said in full, since another process may work in another folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REWARDS = "WORKBENCH_REWARDS"
"""The environment variable that names the folder of files with functions as rewards."""

_PLACES = frozenset({"source", "weights", "start", "file", "held_out_file", "pictures", "prompts"})
_PLACES |= {"processor", "predictor", "clip", "metadata", "med_config"}  # of rewards


def reward_folder() -> Path:
    """What the environment names, or else `rewards` in the working folder, beside `runs`."""
    return Path(os.environ.get(REWARDS) or "rewards").expanduser().absolute()


def in_full(settings: Any) -> Any:
    """Settings in which a file or folder that is found from the working folder is named by its whole path.

    What is not there, such as the id of a model on the hub, stays as it is.
    """
    if isinstance(settings, Mapping):
        return {name: _found(value) if name in _PLACES else in_full(value) for name, value in settings.items()}
    return [in_full(each) for each in settings] if isinstance(settings, list | tuple) else settings


def _found(value: Any) -> Any:
    if not isinstance(value, str):
        return in_full(value)
    try:
        return str(Path(value).absolute()) if value and Path(value).exists() else value
    except (OSError, ValueError):  # no name that a disk could have
        return value
