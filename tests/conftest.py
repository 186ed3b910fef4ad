"""What every test shares: an offline, single-threaded process and a Chromium that can run as root in a container."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; two test processes share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest

if TYPE_CHECKING:
    from workbench.store import Store
    from workbench.studio import Studio

pytest_plugins = ["serving_page", "postgresql_server"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator["Store"]:
    """A record of its own."""
    from workbench.store import Store

    store = Store(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def studio(store: "Store") -> Iterator["Studio"]:
    """What the app can do with that record."""
    from workbench.jobs import Worker
    from workbench.studio import Studio

    worker = Worker()
    yield Studio(store, worker)
    worker.close(timeout=10)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict) -> dict:
    """The system's Chromium instead of a downloaded one."""
    from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium

    return {**browser_type_launch_args, "executable_path": chromium(), "args": list(CHROMIUM_FLAGS)}
