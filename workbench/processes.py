"""Which process drives a run, whether it still lives, and ending processes with all that they began."""

import os
import socket
from functools import cache

import psutil

_CLOCK_TOLERANCE_SECONDS = 2.0  # start times are derived from the boot time, which drifts as the clock is corrected


def this_process() -> tuple[str, int, float]:
    """Host name, process id and start time (seconds since 1970), which together survive the reuse of an id.

    Always the same for one process, whatever becomes of the machine's name and its clock.
    """
    return _identity(os.getpid())


@cache
def _identity(pid: int) -> tuple[str, int, float]:
    return socket.gethostname(), pid, psutil.Process(pid).create_time()


def is_alive(host: str, pid: int, started: float) -> bool | None:
    """Whether that process still runs; None where it cannot be known, on another host."""
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _CLOCK_TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def descendants(pid: int | None) -> list[psutil.Process]:
    """What a process has begun, and what that has; none where it is no more."""
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.NoSuchProcess:
        return []


def signal_group(group: int | None, number: int) -> None:
    """Send a signal to all processes of a group; nothing happens where there are none."""
    try:
        if group:
            os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # nothing of it is left, or only what has ended and was not yet waited for


def kill(process: psutil.Process) -> None:
    """End a process at once, if it has not ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
