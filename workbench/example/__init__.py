"""A finished run that comes with the package, so that a first look is not at an empty page."""

from pathlib import Path

from workbench.export import read_archive
from workbench.store import Store

ARCHIVE = Path(__file__).parent / "shapes_lora.zip"
TAG = "example"
"""What marks the run in the record."""


def welcome(store: Store) -> str | None:
    """Take the example into a store that has never had a run; returns its id, or None where there was no need.

    Raises: StoreError: if the disk refuses.
    """
    return None if store.runs() or store.trash() else read_archive(store, ARCHIVE)
