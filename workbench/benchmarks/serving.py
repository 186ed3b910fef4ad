"""The app in a process of its own, and the browser, for whatever needs a page."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Where the browser is. Raises: RuntimeError: says how to get it, where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise RuntimeError("pages are looked at in Chromium, which is not installed: apt-get install chromium")
    return found


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """Start the app on a free port and hand out its address once it is ready; stop it afterwards.

    Raises: RuntimeError: with what the app said, if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--runs", str(runs)]
    app = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert app.stdout is not None
    try:
        said = app.stdout.readline()
        if "ready" not in said:
            raise RuntimeError(f"the app did not start: {said.strip()}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.send_signal(signal.SIGTERM)
        try:
            app.wait(timeout=60)
        except subprocess.TimeoutExpired:
            app.kill()
