"""Files and folders that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that is written beside its place and moved there once it is whole.

    Raises: OSError: if it cannot be written; what was there before is still there.
    """
    hidden = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")
    try:
        yield hidden
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that is filled beside its place and moved there once it is whole, in place of one that was there before.

    Raises: OSError: if it cannot be written; what was there before is still there.
    """
    hidden = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")
    before = path.with_name(f".{path.name}.before-{secrets.token_hex(4)}")
    hidden.mkdir(parents=True)
    try:
        yield hidden
        if path.exists():
            os.replace(path, before)
        os.replace(hidden, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
