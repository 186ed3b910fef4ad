"""Which process drives a run, and whether it still lives."""

import os
import socket

import psutil

_CLOCK_TOLERANCE_SECONDS = 2.0  # start times are derived from the boot time, which drifts as the clock is corrected


def this_process() -> tuple[str, int, float]:
    """Host name, process id and start time (seconds since 1970), which together survive the reuse of an id."""
    return socket.gethostname(), os.getpid(), psutil.Process().create_time()


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
