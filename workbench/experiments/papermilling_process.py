"""Papermill's own process: it executes a notebook and tells its supervisor of it. Knows nothing of the record.

It is apart from the supervisor so that it loads no more than papermill: a person waits for it.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from workbench.experiments.notebooks import code_cells
from workbench.processes import descendants, kill, signal_group

NOTEBOOK, SOURCE = "notebook.ipynb", "source.ipynb"
"""In a run's directory: the notebook with its outputs, as far as it has come; and as it was when the run began."""

_SAVE_SECONDS = 5  # in a cell that takes long


def main(descriptor: int, kernel: str) -> int:
    """Execute the notebook in the working directory, which is the run's, with the parameters in its `config.json`.

    Tells of it through the socket. Exit status 0: all cells are done.
    """
    supervisor = socket.socket(fileno=descriptor)
    supervisor.set_inheritable(False)
    threading.Thread(target=_end_with, args=(supervisor,), daemon=True).start()

    # jsonschema goes without where it is not installed; its grammar of web addresses takes most of the time of all imports.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    parameters = json.loads(Path("config.json").read_text())["parameters"]
    cells = code_cells(Path(SOURCE).read_bytes()) + bool(parameters)  # papermill adds one that sets them
    done = 0

    def tell(**told: Any) -> None:
        supervisor.sendall(json.dumps(told).encode() + b"\n")

    def begun(cell: Any, cell_index: int) -> None:
        if cell_index == 0:
            tell(kernel=psutil.Process().children()[0].pid, progress=(0, cells))

    def executed(cell: Any, cell_index: int, execute_reply: Any) -> None:
        nonlocal done
        if execute_reply["content"]["status"] == "ok":
            done += 1
            tell(progress=(done, cells))

    try:
        execute_notebook(
            SOURCE,  # relative paths: papermill would look for places to fill in in others
            NOTEBOOK,
            parameters,
            kernel_name=kernel,
            language="python",
            progress_bar=False,
            autosave_cell_every=_SAVE_SECONDS,
            on_cell_start=begun,
            on_cell_executed=executed,
        )
    except PapermillExecutionError as error:
        trace = "\n".join(error.traceback)
        tell(error=f"cell {error.exec_count}: {error.ename}: {_first_line(error.evalue)}", trace=_plain(trace))
        return 1
    except Exception as error:  # a kernel that died, a disk that is full: whatever it is, the record has to say it
        died = type(error).__name__ == "DeadKernelError"
        why = "its kernel died; there may not have been enough memory" if died else f"{type(error).__name__}: {error}"
        tell(error=f"cell {done + 1}: {_first_line(why)}", trace=traceback.format_exc())
        return 1
    return 0


def _end_with(supervisor: socket.socket) -> None:
    """Wait until the supervisor is no more, or wants it; then take the kernel and this process along."""
    with suppress(ConnectionError):  # of one that was killed before it had read all that it was told
        while supervisor.recv(64):
            continue
    for child in descendants(os.getpid()):
        signal_group(child.pid, signal.SIGKILL)
        kill(child)
    os.killpg(0, signal.SIGKILL)


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 500 else f"{line[:499]}…"


def _plain(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
