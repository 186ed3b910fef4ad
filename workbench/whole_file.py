"""Files that are there whole or not at all."""

import os
import secrets
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
