"""A record that a team shares: the tests of the store and of the queue on PostgreSQL, and dispatchers in several processes."""

import re
from inspect import getsource, signature
from multiprocessing import get_context

import pytest
import test_queue
import test_store
from test_queue import Made, queued

from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.queue import Queue
from workbench.store import Store

_OF_SQLITE = re.compile(r"spawn\(|sqlite3")  # these begin processes on the folder's own database, or look into its file
for _name, _test in {**vars(test_store), **vars(test_queue)}.items():
    if _name.startswith("test_") and "store" in signature(_test).parameters and not _OF_SQLITE.search(getsource(_test)):
        globals()[_name] = _test


@pytest.fixture
def store(postgresql_database, tmp_path):
    store = Store(tmp_path / "runs", postgresql_database)
    yield store
    store.close()


class Quick:
    """An executor that does a run at once, and counts those that went on at the same time."""

    def __init__(self, done):
        self._done = done

    def start(self, store, run, device):
        store.claim(run, fresh=True)
        going_on = sum(entry.taken is not None for entry in Queue(store).entries())
        store.set_status(run, "done")
        self._done.append((run, going_on))
        return Made()


def dispatch(location, url, slots, result):
    """Begin runs until none is left."""
    store, done = Store(location, url), []
    dispatcher = Dispatcher(store, {"local": Quick(done)}, slots)
    result.send("ready")
    result.recv()
    while Queue(store).entries():
        dispatcher.tick()
    result.send(done)


@pytest.mark.parametrize("slots", [1, 3])
def test_dispatchers_in_processes_of_their_own_begin_each_run_once_and_no_more_than_fit(any_store, slots):
    runs = [queued(any_store) for _ in range(24)]
    context = get_context("forkserver")
    context.set_forkserver_preload(["workbench.experiments.schedules", "pytest"])
    pipes = []
    for _ in range(3):
        here, there = context.Pipe()
        context.Process(target=dispatch, args=(any_store.location, any_store.url, slots, there), daemon=True).start()
        pipes.append(here)
    assert [pipe.poll(60) and pipe.recv() for pipe in pipes] == ["ready"] * 3
    for pipe in pipes:
        pipe.send("go")
    done = [each for pipe in pipes for each in (pipe.recv() if pipe.poll(60) else [])]
    assert sorted(run for run, _ in done) == sorted(runs)
    assert max(going_on for _, going_on in done) <= slots
