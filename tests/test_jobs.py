import subprocess
import sys
import threading
import time

import pytest
import torch
from sqlalchemy import update

from workbench.contracts import RewardFailed
from workbench.events import (
    CheckpointReady,
    Controls,
    Evaluated,
    Finished,
    IterationDone,
    Measure,
    Preview,
    Progress,
    Sampled,
    Started,
)
from workbench.jobs import Job, Worker, one_at_a_time
from workbench.store import Store, StoreError
from workbench.tables import RUNS

TOTAL = 6


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close(30)


def new_run(store):
    return store.create("train", {"task": "toy", "iterations": TOTAL}, title="Toy", origin="test")


def toy(resume=None, controls=None, *, trouble=None, log=None, name=""):
    """A run whose state is a tensor that hashed noise moves; `trouble` is raised in iteration 4, after a last good checkpoint."""
    controls = controls or Controls()
    weight = resume.tensors["policy"]["w"].clone() if resume else torch.zeros(3)
    iteration = resume.iteration if resume else 0

    def saved():
        return CheckpointReady(iteration, {"policy": {"w": weight.clone()}}, {"iteration": iteration})

    try:
        yield Started(iteration, {"device": "cpu"})
        while iteration < TOTAL and not controls.stop:
            yield Progress("rollout", 0, 1)
            if log is not None:
                log.append(name)
            if trouble and iteration == 3:
                yield saved()
                raise trouble
            weight += torch.randn(3, generator=torch.Generator().manual_seed(iteration))
            iteration += 1
            yield IterationDone(iteration, {"weight": float(weight.sum())}, 0.0)
            if controls.sample:
                controls.sample = False
                yield Sampled(iteration, ("a",), (1,), Preview(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))
            if controls.save:
                controls.save = False
                yield saved()
        yield saved()
        yield Finished(iteration, {"weight": float(weight.sum())})
    finally:
        if log is not None:
            log.append("cleaned up")


def drive(job, until=lambda event: False):
    """Advance until the job is over or an event is met; the kinds of what happened."""
    kinds = []
    while not job.over:
        event = job.advance()
        if event is not None:
            kinds.append(type(event).__name__)
            if until(event):
                break
        elif job.paused:
            break
    return kinds


def reaches(iteration):
    return lambda event: isinstance(event, IterationDone) and event.iteration == iteration


def kinds_of(store, run):
    return [row.kind for row in store.events(run)]


# One job


def test_a_job_records_its_run_from_queued_to_done(store):
    run = new_run(store)
    job = Job(store, run, toy)
    assert store.run(run).status == "queued"
    drive(job, reaches(1))
    assert store.run(run).status == "running"
    drive(job)
    found = store.run(run)
    assert (found.status, found.iteration, found.error, found.pid) == ("done", TOTAL, None, None)
    assert kinds_of(store, run) == ["Started", *["IterationDone"] * TOTAL, "CheckpointReady", "Finished"]
    assert job.advance() is None


def test_a_run_has_one_job(store):
    run = new_run(store)
    Job(store, run, toy)
    with pytest.raises(ValueError, match="stop it there first"):
        Job(store, run, toy)


def test_a_run_is_started_when_the_first_event_is_asked_for_and_runs_while_it_loads(store):
    run, statuses = new_run(store), []

    def start(resume, controls):
        statuses.append(store.run(run).status)
        return toy(resume, controls)

    job = Job(store, run, start)
    assert not statuses
    drive(job)
    assert statuses == ["running"]


def test_a_run_that_loads_for_long_is_heard_of_meanwhile(store, monkeypatch):
    monkeypatch.setattr("workbench.jobs._HEARTBEAT_SECONDS", 0.02)
    run, heard = new_run(store), set()

    def start(resume, controls):
        deadline = time.monotonic() + 20
        while len(heard) < 3 and time.monotonic() < deadline:
            heard.add(store.run(run).updated)
        return toy(resume, controls)

    drive(Job(store, run, start))
    assert len(heard) == 3
    assert store.run(run).status == "done"


def test_a_run_that_somebody_else_drives_by_now_is_left_as_it_is(store, monkeypatch):
    monkeypatch.setattr("workbench.jobs._HEARTBEAT_SECONDS", 0.02)
    run, driven = new_run(store), []

    def start(resume, controls):
        with store.writing() as connection:
            connection.execute(update(RUNS).values(host="elsewhere", status="paused"))
        driven.append(store.run(run))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            yield Progress("loading", 0, 1)

    job = Job(store, run, start)
    drive(job)
    assert "was taken for dead" in job.error
    assert store.run(run) == driven[0]
    assert store.events(run) == []


def test_a_run_that_is_given_up_has_failed_unless_it_was_stopping_already(store):
    for stopping, end in ((False, ("failed", "it took too long")), (True, ("stopped", None))):
        run = new_run(store)
        job = Job(store, run, toy)
        drive(job, reaches(2))
        if stopping:
            store.wish(run, "stop")
            drive(job, reaches(3))
        job.give_up("it took too long")
        drive(job)
        assert (store.run(run).status, store.run(run).error) == end
        assert store.checkpoints(run) == [store.run(run).iteration]


def test_a_stopped_and_resumed_run_equals_one_that_was_never_interrupted(store):
    whole, broken = new_run(store), new_run(store)
    drive(Job(store, whole, toy))
    job = Job(store, broken, toy)
    drive(job, reaches(3))
    Store(store.location).wish(broken, "stop")
    drive(job)
    assert store.run(broken).status == "stopped"
    drive(Job(store, broken, toy, resume=store.load_checkpoint(broken)))
    assert store.run(broken).status == "done"
    assert store.metrics(broken) == store.metrics(whole)
    ends = [store.load_checkpoint(run).tensors["policy"]["w"] for run in (whole, broken)]
    assert torch.equal(*ends)
    assert kinds_of(store, broken).count("Finished") == 1


def test_a_run_stopped_at_its_last_iteration_is_done(store):
    run = new_run(store)
    job = Job(store, run, toy)
    drive(job, reaches(TOTAL))
    job.ask("stop")
    drive(job)
    assert store.run(run).status == "done"


def test_pause_holds_at_the_next_event_and_run_goes_on(store):
    run = new_run(store)
    job = Job(store, run, toy)
    drive(job, reaches(1))
    store.wish(run, "pause")
    while not job.paused:
        drive(job)
    reached = store.cursor(run)
    assert store.run(run).status == "paused"
    assert store.run(run).error is None
    assert job.advance() is None
    assert store.cursor(run) == reached
    store.wish(run, "run")
    while job.paused:
        job.wait()
        job.advance()
    assert store.run(run).status == "running"
    drive(job)
    assert store.run(run).status == "done"


def test_a_change_of_settings_reaches_the_controls_and_stays_until_the_run_takes_it(store):
    seen = []

    def start(resume, controls):
        for event in toy(resume, controls):
            seen.append(dict(controls.changes))
            yield event

    run = new_run(store)
    job = Job(store, run, start)
    job.advance()
    store.wish(run, "change", {"sampler.noise": 0.5})
    store.wish(run, "change", {"sampler.anchor": 1, "sampler.noise": 0.25})
    while not job.over:
        job.advance()
    assert seen[0] == {}
    assert seen[-1] == {"sampler.noise": 0.25, "sampler.anchor": 1}


def test_save_and_sample_are_granted_once(store):
    run = new_run(store)
    job = Job(store, run, toy)
    drive(job, lambda event: isinstance(event, Started))
    job.ask("save")
    job.ask("sample")
    drive(job)
    assert kinds_of(store, run)[:4] == ["Started", "IterationDone", "Sampled", "CheckpointReady"]
    assert kinds_of(store, run).count("Sampled") == 1


def test_a_paused_run_finishes_its_iteration_to_grant_a_wish_and_pauses_again(store):
    run = new_run(store)
    job = Job(store, run, toy)
    drive(job, lambda event: isinstance(event, Progress))
    job.ask("pause")
    assert drive(job) == []
    job.ask("save")
    assert drive(job) == ["IterationDone", "CheckpointReady"]
    assert job.paused
    assert store.run(run).status == "paused"
    job.ask("stop")
    assert drive(job)[-2:] == ["CheckpointReady", "Finished"]
    assert store.run(run).status == "stopped"


def test_an_exception_is_recorded_with_its_traceback(store):
    run = new_run(store)
    job = Job(store, run, lambda resume, controls: toy(resume, controls, trouble=KeyError("no such prompt")))
    drive(job)
    found = store.run(run)
    assert (found.status, found.error) == ("failed", "KeyError: 'no such prompt'")
    assert "in toy\n    raise trouble" in (store.folder(run) / "error.txt").read_text()
    assert store.checkpoints(run) == [3]


def test_an_exception_before_the_first_event_is_recorded(store):
    def start(resume, controls):
        raise RuntimeError("no such model")

    run = new_run(store)
    drive(Job(store, run, start))
    assert (store.run(run).status, store.run(run).error) == ("failed", "RuntimeError: no such model")


@pytest.mark.parametrize(
    "trouble", [FloatingPointError("the loss of iteration 4 is nan"), RewardFailed("sample 7 has reward nan")]
)
def test_a_run_that_cannot_go_on_pauses_by_itself_and_says_why(store, trouble):
    run = new_run(store)
    job = Job(store, run, lambda resume, controls: toy(resume, controls, trouble=trouble))
    drive(job)
    found = store.run(run)
    assert (found.status, found.error) == ("paused", str(trouble))
    assert job.over
    assert store.checkpoints(run) == [3]
    drive(Job(store, run, toy, resume=store.load_checkpoint(run)))
    assert (store.run(run).status, store.run(run).error) == ("done", None)


def test_an_interrupt_stops_the_run_and_reaches_the_caller(store):
    run = new_run(store)
    job = Job(store, run, lambda resume, controls: toy(resume, controls, trouble=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        drive(job)
    assert store.run(run).status == "stopped"
    assert store.checkpoints(run) == [3]


def test_a_generator_left_in_the_middle_cleans_up(store):
    log = []
    run = new_run(store)
    job = Job(store, run, lambda resume, controls: toy(resume, controls, log=log))
    drive(job, reaches(1))
    images = store.folder(run) / "images"
    images.rmdir()
    images.write_text("in the way")
    job.ask("sample")
    drive(job)
    assert log[-1] == "cleaned up"
    assert store.run(run).status == "failed"
    assert "cannot write in" in store.run(run).error


def test_an_ending_that_the_disk_refuses_is_written_once_there_is_room(store):
    run = new_run(store)
    code = """
import resource, sys
from workbench.events import IterationDone
from workbench.jobs import Job
from workbench.store import Store

def full(resume, controls):
    yield IterationDone(1, {}, 1.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    yield IterationDone(2, {}, 1.0)

job = Job(Store(sys.argv[1]), sys.argv[2], full)
while not job.over:
    job.advance()
refused = job.settle()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(refused, job.settle(), job.error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(store.location), run], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False True the database of runs in")
    assert [row.iteration for row in store.events(run)] == [1]
    assert store.run(run).status == "failed"
    assert "cannot be used" in store.run(run).error
    assert "StoreError" in (store.folder(run) / "error.txt").read_text()


# The worker


def submit_together(worker, jobs):
    """Hold the worker's thread until every job is submitted, so that none has a head start."""
    gate = threading.Event()
    worker.call(gate.wait)
    for job in jobs:
        worker.submit(job)
    gate.set()


def until_over(worker, jobs):
    """Wait, through the worker's own calls, until every job is over."""
    while not all(job.over for job in jobs):
        worker.call(lambda: None).result(30)


def logged(store, log, name):
    return Job(store, new_run(store), lambda resume, controls: toy(resume, controls, log=log, name=name))


def test_a_job_begins_when_the_one_before_it_has_ended(store, worker):
    log = []
    jobs = [logged(store, log, "a"), logged(store, log, "b")]
    runs = [job.run for job in jobs]
    submit_together(worker, jobs)
    until_over(worker, jobs)
    assert [name for name in log if name != "cleaned up"] == ["a"] * TOTAL + ["b"] * TOTAL
    assert [store.run(run).status for run in runs] == ["done", "done"]


def test_a_paused_job_lets_the_next_begin_and_then_they_take_turns(store, worker):
    log = []
    jobs = [logged(store, log, "a"), logged(store, log, "b")]
    jobs[0].ask("pause")
    gate = threading.Event()
    for job in jobs:
        worker.submit(job)
    while store.run(jobs[1].run).iteration < 1:
        worker.call(lambda: None).result(30)
    worker.call(lambda: (store.wish(jobs[0].run, "run"), gate.set())).result(30)
    until_over(worker, jobs)
    assert [store.run(job.run).status for job in jobs] == ["done", "done"]
    assert log.index("a") > log.index("b")


def test_a_queued_job_that_is_stopped_ends_without_having_begun(store, worker):
    log = []
    jobs = [logged(store, log, "a"), logged(store, log, "b")]
    store.wish(jobs[1].run, "stop")
    submit_together(worker, jobs)
    until_over(worker, jobs)
    assert [store.run(job.run).status for job in jobs] == ["done", "stopped"]
    assert "b" not in log


def test_a_failing_run_leaves_the_other_alone(store, worker):
    runs = [new_run(store), new_run(store)]
    jobs = [Job(store, runs[0], lambda resume, controls: toy(resume, controls, trouble=SystemExit(3))), Job(store, runs[1], toy)]
    submit_together(worker, jobs)
    until_over(worker, jobs)
    assert [store.run(run).status for run in runs] == ["failed", "done"]


def test_calls_run_between_events_on_the_worker_thread(store, worker):
    inside, threads = [], []

    def start(resume, controls):
        for event in toy(resume, controls):
            inside.append(True)
            threads.append(threading.get_ident())
            inside.pop()
            yield event

    job = Job(store, new_run(store), start)
    worker.submit(job)
    while not job.over:
        assert worker.call(lambda: (list(inside), threading.get_ident() in threads or not threads)).result(30) == ([], True)


def test_a_call_waits_for_one_event_and_not_for_every_job(store, worker):
    log = []

    def start(name):
        def events(resume, controls):
            for event in toy(resume, controls):
                log.append(name)
                if log == ["a"]:
                    worker.call(lambda: log.append("call"))
                yield event

        return events

    jobs = [Job(store, new_run(store), start(name)) for name in "ab"]
    submit_together(worker, jobs)
    until_over(worker, jobs)
    assert log[:3] == ["a", "call", "a"]


def test_the_exception_of_a_call_goes_to_its_future(store, worker):
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(30)
    assert worker.call(lambda: 2).result(30) == 2


def test_a_paused_job_obeys_the_store_while_the_worker_is_idle(store, worker):
    run = new_run(store)
    other = Store(store.location)
    job = Job(store, run, toy)
    job.ask("pause")
    worker.submit(job)
    while other.run(run).status != "paused":
        worker.call(lambda: None).result(30)
    assert other.cursor(run) == 0
    other.wish(run, "run")
    until_over(worker, [job])
    assert other.run(run).status == "done"


def test_closing_stops_every_job_with_a_checkpoint(store):
    runs = [new_run(store), new_run(store)]
    jobs = [Job(store, run, toy) for run in runs]
    jobs[1].ask("pause")
    worker = Worker()
    submit_together(worker, jobs)
    assert worker.close(30)
    assert [job.over for job in jobs] == [True, True]
    assert store.run(runs[0]).status in ("stopped", "done")
    assert store.run(runs[1]).status == "stopped"
    assert store.checkpoints(runs[0])
    with pytest.raises(RuntimeError, match="closing"):
        worker.call(lambda: None)


def test_closing_gives_up_on_an_event_that_takes_too_long(store):
    reached, go_on = threading.Event(), threading.Event()

    def start(resume, controls):
        yield Started(0, {})
        reached.set()
        go_on.wait(30)
        yield IterationDone(1, {}, 0.0)
        yield IterationDone(2, {}, 0.0)

    run = new_run(store)
    worker = Worker()
    worker.submit(Job(store, run, start))
    assert reached.wait(30)
    answer = worker.call(lambda: None)
    assert not worker.close(0)
    go_on.set()
    assert worker.close(30)
    assert store.run(run).iteration == 1
    assert answer.done()


def test_a_run_pauses_once_where_its_judge_begins_to_disagree(store):
    """The judge falls from iteration 2 on, while the reward rises."""
    config = {
        "iterations": TOTAL,
        "rewards": [{"reward": {"name": "taste"}, "weight": 1.0}],
        "eval_rewards": [{"reward": {"name": "judge"}}],
        "rollout": {"steps": 4},
        "guard": {"pause_when_hacked": True},
    }

    def start(resume, controls):
        yield Started(0, {})
        for iteration in range(TOTAL):
            if iteration:
                yield IterationDone(iteration, {"reward": 0.1 * iteration}, 0.0)
            judge = 0.5 if iteration < 2 else 0.2
            figures = {name: Measure(at, at - 0.01, at + 0.01) for name, at in (("taste", 0.1 * iteration), ("judge", judge))}
            yield Evaluated(iteration, {4: figures}, 8, (), (), Preview(torch.zeros(0, 3, 4, 4, dtype=torch.uint8)))
        yield Finished(TOTAL, {})

    run = store.create("train", config, title="Toy", origin="test")
    job = Job(store, run, start)
    while not job.over and not job.paused:
        job.advance()
    assert (store.run(run).status, store.run(run).wanted) == ("paused", "pause")
    assert store.events(run)[-1].iteration == 2
    job.ask("run")
    while not job.over:
        job.advance()
        assert not job.paused
    assert store.run(run).status == "done"


def test_calls_that_never_end_leave_every_second_turn_to_the_runs(store, worker):
    """Somebody who asks again as soon as he is answered, as a page does."""
    log = []

    def again():
        log.append("call")
        if len(log) < 10_000:
            worker.call(again)

    job = Job(store, new_run(store), toy)
    worker.call(again)
    worker.submit(job)
    until_over(worker, [job])
    assert len(log) < 10_000


def test_a_run_that_waits_fails_alone_where_the_store_refuses(store, worker):
    class Refusing(Store):
        def take_wishes(self, run):
            raise StoreError("no space")

    first, second = new_run(store), new_run(store)
    jobs = [Job(store, first, toy), Job(Refusing(store.location), second, toy)]
    submit_together(worker, jobs)
    until_over(worker, jobs)
    assert [store.run(run).status for run in (first, second)] == ["done", "failed"]
    assert worker.call(lambda: 2).result(30) == 2


def test_a_call_that_exits_leaves_the_worker_alive(worker):
    with pytest.raises(SystemExit):
        worker.call(lambda: sys.exit(3)).result(30)
    assert worker.call(lambda: 2).result(30) == 2


def test_a_method_that_is_run_one_at_a_time_waits_for_itself_and_for_no_other_object():
    inside, seen = [], []

    class Counter:
        @one_at_a_time
        def count(self):
            inside.append(self)
            seen.append(inside.count(self))
            time.sleep(0.02)
            inside.remove(self)

    one, other = Counter(), Counter()
    threads = [threading.Thread(target=counter.count) for counter in (one, one, other, one)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]
