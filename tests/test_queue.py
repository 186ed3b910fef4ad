"""The queue: who gets what, what becomes of runs whose process ends, and that nothing runs twice."""

import os
import signal
import time

import psutil
import pytest
from sqlalchemy import update
from toy_run import SMALL, toy_config

from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.execute import execute
from workbench.experiments.queue import Queue
from workbench.experiments.work import Work, submit
from workbench.records import read_run
from workbench.store import Store
from workbench.tables import QUEUE

TINY = toy_config(1, **SMALL)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def work(**values):
    return Work(kind="train", config=TINY.model_dump(mode="json"), **values)


def queued(store, **values):
    return submit(store, work(**values), origin="test")


class Made:
    """A process that ends when it is told to."""

    said: str | None = None
    cancelled = False

    def ended(self):
        return self.said

    def cancel(self):
        self.cancelled = True


class Recording:
    """An executor that begins nothing."""

    def __init__(self):
        self.begun = []

    def start(self, store, run, device):
        self.begun.append((run, device))
        return Made()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_runs_are_begun_in_their_order_and_no_more_than_fit(store):
    runs = [queued(store) for _ in range(3)]
    executor = Recording()
    dispatcher = Dispatcher(store, {"local": executor}, slots=2, devices=("0", "1"))
    dispatcher.tick()
    assert executor.begun == [(runs[0], "0"), (runs[1], "1")]
    store.claim(runs[0], fresh=True)
    store.set_status(runs[0], "done")
    assert [run.id for run in dispatcher.tick()] == [runs[0]]
    assert executor.begun[2] == (runs[2], "0")


def test_a_run_of_several_processes_gets_a_device_for_each(store):
    several = TINY.model_copy(update={"grpo": TINY.grpo.model_copy(update={"groups": 4})}).model_dump(mode="json")
    several["compute"]["processes"] = 2
    one, two = queued(store), submit(store, Work(kind="train", config=several), origin="test")
    executor = Recording()
    Dispatcher(store, {"local": executor}, slots=3, devices=("0", "1", "2")).tick()
    assert executor.begun == [(one, "0"), (two, "1,2")]


def test_two_dispatchers_begin_each_run_once(store):
    runs = [queued(store) for _ in range(6)]
    one, other = Recording(), Recording()
    pair = Dispatcher(store, {"local": one}, slots=9), Dispatcher(store, {"local": other}, slots=9)
    for dispatcher in pair * 2:
        dispatcher.tick()
    assert sorted(run for run, _ in one.begun + other.begun) == sorted(runs)


def test_a_dispatcher_takes_only_the_lanes_and_runs_that_are_its(store):
    here, there = queued(store), queued(store, lane="slurm")
    executor = Recording()
    Dispatcher(store, {"local": executor}, slots=9).tick()
    assert executor.begun == [(here, None)]
    Dispatcher(store, {"slurm": executor}, slots=9, only=(here,)).tick()
    assert len(executor.begun) == 1
    Dispatcher(store, {"slurm": executor}, slots=0, only=(there,)).tick()
    assert executor.begun[1] == (there, None)


def test_a_failed_run_is_tried_again_after_a_growing_pause_and_then_given_up(store):
    run = queued(store, retries=1)
    dispatcher = Dispatcher(store, {"local": Recording()})
    dispatcher.tick()
    store.claim(run, fresh=True)
    store.set_status(run, "failed", "no reason")
    assert dispatcher.tick() == []
    entry = Queue(store).entry(run)
    assert entry is not None
    assert (entry.attempt, entry.taken) == (2, None)
    assert 0 < entry.not_before - time.time() < 2.5
    assert store.run(run).status == "queued"
    with store.writing() as connection:
        connection.execute(update(QUEUE).values(not_before=0.0))
    dispatcher.tick()
    store.claim(run, fresh=True)
    store.set_status(run, "failed", "no reason")
    assert [found.status for found in dispatcher.tick()] == ["failed"]
    assert Queue(store).entries() == []


def test_the_process_of_a_failed_attempt_may_end_after_the_next_was_queued(store):
    run = queued(store, retries=1)
    dispatcher = Dispatcher(store, {"local": Recording()})
    dispatcher.tick()
    store.claim(run, fresh=True)
    store.set_status(run, "failed", "no reason")
    dispatcher.tick()
    dispatcher._started[run][1].said = ""  # it has written down its end first, and ended then
    dispatcher.tick()
    assert store.run(run).status == "queued"
    entry = Queue(store).entry(run)
    assert entry is not None
    assert entry.attempt == 2


@pytest.mark.parametrize("error", [OSError("no more processes"), KeyError("a closed client")])
def test_an_executor_that_raises_whatever_fails_the_run_and_not_the_queue(store, error):
    class Broken(Recording):
        def start(self, store, run, device):
            raise error

    run = queued(store)
    Dispatcher(store, {"local": Broken()}).tick()
    assert store.run(run).status == "failed"
    assert "no process could be begun" in store.run(run).error


def test_a_crashed_run_that_somebody_resumes_just_then_is_not_queued_again(store, monkeypatch):
    run = queued(store, retries=1)
    dispatcher = Dispatcher(store, {"local": Recording()})
    dispatcher.tick()
    store.claim(run, fresh=True)
    store.set_status(run, "failed", "no reason")

    def meanwhile(row):
        found = read_run(row)
        store.claim(run)
        return found

    monkeypatch.setattr("workbench.experiments.queue.read_run", meanwhile)
    assert Queue(store).settle() == []
    entry = Queue(store).entry(run)
    assert entry is not None
    assert (entry.attempt, store.run(run).pid) == (1, os.getpid())


def test_a_run_that_a_dispatcher_elsewhere_took_and_forgot_is_begun_after_an_hour(store):
    run = queued(store)
    executor = Recording()
    for minutes, begun in ((0, 1), (50, 1), (61, 2)):
        with store.writing() as connection:
            connection.execute(update(QUEUE).where(QUEUE.c.taken.is_not(None)).values(host="elsewhere"))
            connection.execute(update(QUEUE).where(QUEUE.c.taken.is_not(None)).values(taken=time.time() - minutes * 60))
        Dispatcher(store, {"local": executor}).tick()
        assert executor.begun == [(run, None)] * begun


def test_a_run_that_takes_too_long_keeps_a_checkpoint_and_has_failed_at_once(store, monkeypatch):
    run, said = queued(store, timeout=1e-6), []
    say = store.set_status
    monkeypatch.setattr(store, "set_status", lambda run, status, *rest, **named: said.append(status) or say(run, status, *rest))
    end = execute(store, run)
    assert said == ["running", "failed"]
    assert end.error == "it took longer than 1e-06 s; it can be resumed from its last checkpoint"
    assert store.checkpoints(run) == [end.iteration]


def test_a_run_that_is_stopped_or_deleted_while_it_waits_is_never_begun(store):
    stopped, deleted, restored = (queued(store) for _ in range(3))
    store.wish(stopped, "stop")
    store.delete(deleted)
    store.delete(restored)
    store.restore(restored)
    executor = Recording()
    dispatcher = Dispatcher(store, {"local": executor}, slots=9)
    dispatcher.tick()
    assert store.run(stopped).status == "stopped"
    assert executor.begun == [(restored, None)]


def test_a_run_that_is_stopped_after_it_was_handed_to_an_executor_is_taken_back(store):
    run, begun = queued(store), queued(store)
    dispatcher = Dispatcher(store, {"local": Recording()}, slots=2)
    dispatcher.tick()
    jobs = dict(dispatcher._started)
    store.claim(begun, fresh=True)
    for each in (run, begun):
        store.wish(each, "stop")
    assert [end.id for end in dispatcher.tick()] == [run]
    assert [jobs[each][1].cancelled for each in (run, begun)] == [True, False]
    assert [store.run(each).status for each in (run, begun)] == ["stopped", "queued"]
    with pytest.raises(ValueError, match="does not wait"):
        store.claim(run, fresh=True)


def test_a_process_that_ends_before_it_begins_its_run_fails_it_with_its_last_words(store):
    run = queued(store)
    dispatcher = Dispatcher(store, {"local": Recording()})
    dispatcher.tick()
    dispatcher._started[run][1].said = "ModuleNotFoundError: no torch"
    (end,) = dispatcher.tick()
    assert end.status == "failed"
    assert end.error == "its process ended before it began: ModuleNotFoundError: no torch"


def test_an_executor_that_cannot_begin_a_process_fails_the_run_and_the_queue_goes_on(store):
    class Full(Recording):
        def start(self, store, run, device):
            raise OSError("no more processes")

    first, second = queued(store), queued(store)
    dispatcher = Dispatcher(store, {"local": Full()})
    dispatcher.tick()
    dispatcher.tick()
    assert [store.run(run).status for run in (first, second)] == ["failed", "failed"]
    assert "no more processes" in store.run(first).error


def test_work_with_wrong_settings_is_refused_and_leaves_nothing(store):
    with pytest.raises(ValueError, match="unknown setting"):
        submit(store, Work(kind="train", config={"iteration": 3}), origin="test")
    assert store.runs() == []
    assert Queue(store).entries() == []


def test_what_fails_along_with_a_run_undoes_it(store):
    def refuse(connection, run):
        raise RuntimeError("somebody was quicker")

    with pytest.raises(RuntimeError, match="quicker"):
        submit(store, work(), origin="test", along=refuse)
    assert store.runs() == []
    assert [path.name for path in store.location.iterdir() if path.is_dir()] == []


def test_a_queued_run_is_driven_by_a_process_of_its_own_and_a_killed_one_is_told(store):
    done, killed = queued(store), queued(store)
    dispatcher = Dispatcher(store)
    dispatcher.tick()
    until(lambda: dispatcher.tick() is not None and store.run(done).status == "done")
    until(lambda: dispatcher.tick() is not None and store.run(killed).pid is not None)
    pid = store.run(killed).pid
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: dispatcher.tick() is not None and Queue(store).entries() == [])
    assert store.run(killed).status == "crashed"
    until(lambda: dispatcher.tick() is not None and not psutil.pid_exists(pid))
    assert len(store.events(done, kinds=("Started",))) == 1
