"""Runs of notebooks: what becomes of them whatever is done to them, and that nothing of them is ever left behind."""

import errno
import json
import os
import signal
import socket
import time

import nbformat
import psutil
import pytest
from sqlalchemy import update
from toy_notebooks import PARAMETERS, TRAINS, write_notebook

from workbench.experiments import papermilling
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.execute import execute
from workbench.experiments.papermilling import ERROR_ANCHOR, NOTEBOOK
from workbench.experiments.queue import Entry, Queue
from workbench.experiments.work import Work, submit
from workbench.store import Store, StoreError
from workbench.tables import QUEUE, RUNS

HERE = "from pathlib import Path\nPath('here').touch()\n"
"""Says in the run's directory that the cell has been reached."""
FOREVER = f"{HERE}import time\nwhile True:\n    time.sleep(0.05)"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "notebooks").mkdir()
    store = Store(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def hasty(monkeypatch):
    """Signals follow one another quickly."""
    monkeypatch.setattr(papermilling, "UNTAKEN_SECONDS", 0.2)
    monkeypatch.setattr(papermilling, "INTERRUPT_SECONDS", 1.0)
    monkeypatch.setattr(papermilling, "TERMINATE_SECONDS", 1.0)


class Once:
    """Looks at a run whenever its supervisor asks whether to end; does something once, when the run has come so far."""

    def __init__(self, reached, act):
        self.reached, self.act = reached, act
        self.family = []
        self.others = psutil.Process().children()  # such as the browser of other tests

    def __call__(self):
        if not self.family and self.reached():
            own = [child for child in psutil.Process().children() if child not in self.others]
            self.family = [each for child in own for each in (child, *child.children(recursive=True))]
            self.act(self.family)
        return False


def queued(store, *cells, parameters=None, **values):
    write_notebook(papermilling_folder(), "toy", *cells)
    config = {"notebook": "toy", "parameters": parameters or {}}
    return submit(store, Work(kind="notebook", config=config, **values), origin="test")


def papermilling_folder():
    from workbench.experiments.notebooks import folder

    return folder()


def output(store, run):
    return nbformat.read(store.folder(run) / NOTEBOOK, as_version=4)


def gone(process):
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def at_the_marker(store, run, act):
    return Once(lambda: (store.folder(run) / "here").exists(), act)


def nothing(_family):
    pass


def begin_again(store):
    """Let what waits for another attempt begin at once."""
    Queue(store).settle()
    with store.writing() as connection:
        connection.execute(update(QUEUE).values(not_before=0.0))


def test_a_notebook_gets_its_parameters_and_its_own_kernel_and_its_outputs_are_kept(store):
    where = "import os, sys\nprint(x, words, os.getcwd(), sys.executable, os.environ['WORKBENCH_RUN'])"
    metadata = {"kernelspec": {"name": "nowhere", "display_name": "Nowhere", "language": "python"}}
    write_notebook(papermilling_folder(), "toy", PARAMETERS, where, metadata=metadata)
    config = {"notebook": "toy", "parameters": {"words": "[b, c]"}}
    run = submit(store, Work(kind="notebook", config=config), origin="test")
    assert run.split("-")[2] == "toy"
    end = execute(store, run)
    assert (end.status, end.error, end.iteration, end.iterations) == ("done", None, 3, 3)
    (said,) = output(store, run).cells[-1].outputs
    assert said.text.split("\n")[0] == f"1 ['b', 'c'] {store.folder(run)} {os.sys.executable} {run}"
    assert not (store.folder(run) / "kernel").exists()
    with pytest.raises(ValueError, match="does not wait"):
        execute(store, run)


def test_a_cell_that_fails_is_named_and_those_before_it_are_kept(store):
    run = queued(store, PARAMETERS, "print('before')", "raise ValueError('no good\\nat all')", "print('after')")
    end = execute(store, run)
    assert (end.status, end.error) == ("failed", "cell 4: ValueError: no good")
    assert (end.iteration, end.iterations) == (3, 5)
    made = output(store, run)
    assert [cell.outputs[0].text for cell in made.cells if cell.source == "print('before')"] == ["before\n"]
    assert sum(ERROR_ANCHOR in cell.source for cell in made.cells) == 2  # the place, and a link to it at the top
    trace = (store.folder(run) / "error.txt").read_text()
    assert "no good" in trace
    assert "\x1b" not in trace


@pytest.mark.parametrize("act", ["change", "delete"])
def test_a_notebook_that_changes_or_goes_while_it_is_queued_fails_before_any_kernel(store, act):
    run = queued(store, PARAMETERS, "print(x)")
    path = papermilling_folder() / "toy.ipynb"
    path.unlink() if act == "delete" else write_notebook(papermilling_folder(), "toy", PARAMETERS, "print(-x)")
    end = execute(store, run)
    assert end.status == "failed"
    assert ("has changed since" if act == "change" else "there is no notebook 'toy'") in end.error
    assert not (store.folder(run) / NOTEBOOK).exists()


def test_a_later_attempt_runs_the_notebook_as_it_was(store):
    run = queued(store, PARAMETERS, "from pathlib import Path\nassert Path('again').exists()\nprint('old')", retries=1)
    assert execute(store, run).error.startswith("cell 3: AssertionError")
    begin_again(store)
    write_notebook(papermilling_folder(), "toy", PARAMETERS, "print('new')")
    (store.folder(run) / "again").touch()
    assert execute(store, run).status == "done"
    assert output(store, run).cells[-1].outputs[0].text == "old\n"


def test_a_run_that_is_stopped_before_its_process_comes_to_it_never_begins(store):
    run = queued(store, PARAMETERS, HERE)
    store.wish(run, "stop")
    assert execute(store, run).status == "stopped"
    assert not (store.folder(run) / "here").exists()


def test_a_stop_interrupts_a_cell_and_keeps_what_it_has_shown(store, hasty):
    run = queued(store, PARAMETERS, f"print('begun')\n{FOREVER}")
    watch = at_the_marker(store, run, lambda _: store.wish(run, "stop"))
    end = execute(store, run, watch)
    assert (end.status, end.error) == ("stopped", None)
    assert "begun\n" in [each.get("text") for each in output(store, run).cells[-1].outputs]
    assert watch.family
    assert all(map(gone, watch.family))


def test_a_supervisor_that_is_asked_to_end_stops_its_notebook(store, hasty):
    run = queued(store, PARAMETERS, FOREVER)
    assert execute(store, run, lambda: (store.folder(run) / "here").exists()).status == "stopped"
    assert store.run(run).wanted == "run"


def test_a_cell_that_heeds_no_signal_is_killed_with_all_that_it_began(store, hasty):
    deaf = (
        "import signal, subprocess\nfor number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
    )
    deaf += "subprocess.Popen(['sleep', '600'], start_new_session=True)\nsubprocess.Popen(['sleep', '600'])\n"
    run = queued(store, PARAMETERS, deaf + FOREVER)
    watch = at_the_marker(store, run, lambda _: store.wish(run, "stop"))
    assert execute(store, run, watch).status == "stopped"
    assert len(watch.family) >= 4
    assert all(map(gone, watch.family))


def test_a_notebook_that_takes_too_long_fails_and_is_tried_again(store, hasty):
    run = queued(store, PARAMETERS, FOREVER, retries=1)
    watch = at_the_marker(store, run, nothing)
    papermilling.supervise(store, store.run(run), Entry(run, timeout=0.01), watch)
    end = store.run(run)
    assert end.status == "failed"
    assert end.error.endswith("it took longer than 0.01 s")
    begin_again(store)
    assert Queue(store).entry(run).attempt == 2
    assert all(map(gone, watch.family))


@pytest.mark.parametrize("victim", ["papermill", "kernel"])
def test_a_killed_part_takes_the_rest_along_and_the_record_says_so(store, victim):
    run = queued(store, PARAMETERS, f"import subprocess\nsubprocess.Popen(['sleep', '600'])\n{FOREVER}")
    place = {"papermill": "papermilling", "kernel": "ipykernel_launcher"}[victim]

    def kill(family):
        (part,) = [process for process in family if f"{place}" in " ".join(process.cmdline()[:3])]
        part.kill()

    watch = at_the_marker(store, run, kill)
    end = execute(store, run, watch)
    assert end.status == "failed"
    said = {"papermill": "cell 3 of 3: papermill was killed by signal 9", "kernel": "cell 3: its kernel died"}[victim]
    assert said in end.error
    assert len(watch.family) >= 3
    assert all(map(gone, watch.family))


def test_a_killed_supervisor_takes_everything_along(store):
    run = queued(store, PARAMETERS, f"import subprocess\nsubprocess.Popen(['sleep', '600'])\n{FOREVER}")
    dispatcher = Dispatcher(store)
    dispatcher.tick()
    until(lambda: store.run(run).status == "running")
    supervisor = psutil.Process(store.run(run).pid)
    supervisor.suspend()  # what it is told from here on it never reads
    until((store.folder(run) / "here").exists)
    family = supervisor.children(recursive=True)
    assert len(family) >= 3
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: all(map(gone, family)), seconds=10)
    until(lambda: [each.status for each in dispatcher.tick()] == ["crashed"])


def test_a_kernel_that_is_stopped_as_it_begins_leaves_nothing(store, hasty):
    run = queued(store, PARAMETERS, "import time\ntime.sleep(20)", HERE)  # long enough for a busy machine to stop it
    watch = Once(lambda: True, lambda _: store.wish(run, "stop"))
    assert execute(store, run, watch).status == "stopped"
    assert not (store.folder(run) / "here").exists()
    assert all(map(gone, watch.family))


def test_a_training_is_recorded_in_the_run_of_its_notebook(store):
    run = queued(store, *TRAINS, parameters={"iterations": 2})
    end = execute(store, run)
    assert (end.status, end.error, end.iteration, end.iterations) == ("done", None, 2, 2)
    kinds = {row.kind for row in store.events(run)}
    assert kinds >= {"Started", "GroupsScored", "IterationDone", "Evaluated", "CheckpointReady", "Finished", "Reported"}
    curves = store.metrics(run)
    assert curves["final"] == [(2, curves["reward"][-1][1])]
    assert end.config["notebook"] == "toy"
    assert end.training["iterations"] == 2
    assert json.loads((store.folder(run) / "config.json").read_text()) == end.config
    assert "iteration 2 of 2: reward" in str(output(store, run).cells)


def test_a_stopped_training_keeps_a_checkpoint_and_later_cells_do_not_run(store):
    run = queued(store, *TRAINS, HERE, parameters={"iterations": 500, "every": 1000})
    watch = Once(lambda: bool(store.metrics(run).get("reward")), lambda _: store.wish(run, "stop"))
    end = execute(store, run, watch)
    assert (end.status, end.error) == ("stopped", None)
    assert 0 < end.iteration < 500
    assert store.checkpoints(run)[-1] == end.iteration
    (error,) = [each for cell in output(store, run).cells for each in cell.get("outputs", ()) if each.output_type == "error"]
    assert (error.ename, error.evalue) == ("Stopped", f"the training was stopped after iteration {end.iteration} of 500")
    assert not (store.folder(run) / "here").exists()
    assert all(map(gone, watch.family))


def test_a_training_that_is_killed_and_tried_again_ends_with_the_same_numbers(store):
    whole = queued(store, *TRAINS, parameters={"iterations": 4})
    broken = submit(store, Work(kind="notebook", config=store.run(whole).config, retries=1), origin="test")
    assert execute(store, whole).status == "done"

    def kill(family):
        for process in family:
            process.kill()

    assert execute(store, broken, Once(lambda: 2 in store.checkpoints(broken), kill)).status == "failed"
    begin_again(store)
    assert execute(store, broken).status == "done"
    (ours, theirs) = (store.metrics(run) for run in (whole, broken))
    for name in ("reward", "kl", "final", "held_out/shapes_dense@4"):
        assert ours[name] == theirs[name]
    first, second = (store.load_checkpoint(run).tensors for run in (whole, broken))
    assert all(tensor.equal(second[stem][name]) for stem, tensors in first.items() for name, tensor in tensors.items())
    assert len(store.events(broken, kinds=("Started",))) == 2


def test_a_pause_holds_a_training_in_a_notebook_until_it_may_go_on(store):
    run = queued(store, *TRAINS, parameters={"iterations": 3})
    told = []

    def watch():
        status = store.run(run).status
        if not told and store.metrics(run).get("reward"):
            store.wish(run, "pause")
            told.append("pause")
        elif told == ["pause"] and status == "paused":
            store.wish(run, "run")
            told.append("run")
        return False

    assert execute(store, run, watch).status == "done"
    assert told[0] == "pause"


def test_a_full_disk_fails_the_run_with_a_clear_line_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = queued(store, PARAMETERS, HERE)
    monkeypatch.setattr(papermilling, "_write_kernel", full)
    end = execute(store, run)
    assert end.status == "failed"
    assert "No space left on device; free some space" in end.error


def test_a_stop_waits_for_a_training_that_listens_also_where_its_step_is_long(store, hasty):
    slow = """
from workbench.experiment import Experiment
from workbench.events import IterationDone, Started
experiment = Experiment.here()
def steps(resume, controls):
    yield Started(0, {"iterations": 9})
    for iteration in range(1, 10):
        Path("here").touch()
        time.sleep(1.5)
        yield IterationDone(iteration, {"reward": 0.0}, 1.0)
        if controls.stop:
            return
import time
from pathlib import Path
experiment.drive(steps)"""
    run = queued(store, PARAMETERS, slow)
    end = execute(store, run, at_the_marker(store, run, lambda _: store.wish(run, "stop")))
    assert (end.status, end.error, end.iteration) == ("stopped", None, 1)
    (error,) = [each for cell in output(store, run).cells for each in cell.get("outputs", ()) if each.output_type == "error"]
    assert error.ename == "Stopped"


def test_a_notebook_goes_on_while_the_record_refuses_and_its_end_is_written_once_it_may(store, monkeypatch):
    run = queued(store, PARAMETERS, HERE + "raise ValueError('no good')")
    refused = []

    def refusing(method, times):
        def refuse(*arguments, **named):
            if store.run(run).status == "running" and refused.count(method.__name__) < times:
                refused.append(method.__name__)
                raise StoreError("the disk is full")
            return method(*arguments, **named)

        monkeypatch.setattr(store, method.__name__, refuse)

    monkeypatch.setattr(papermilling, "_HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(papermilling, "_AGAIN_SECONDS", 0.0)
    refusing(store.heartbeat, 3)
    refusing(store.set_status, 2)
    monkeypatch.setattr(store, "write_traceback", lambda *_: refuse_always())

    def refuse_always():
        refused.append("write_traceback")
        raise StoreError("the disk is full")

    end = execute(store, run)
    assert (end.status, end.error) == ("failed", "cell 3: ValueError: no good")
    assert refused == ["heartbeat"] * 3 + ["set_status"] * 2 + ["write_traceback"]


def test_a_papermill_that_hears_of_nothing_is_ended_and_the_run_is_stopped(store, hasty, monkeypatch):
    monkeypatch.setattr(papermilling, "KILL_SECONDS", 1.0)
    run = queued(store, PARAMETERS, FOREVER)

    def deafen(family):
        for process in family:
            if "papermilling" in " ".join(process.cmdline()):
                process.suspend()
        store.wish(run, "stop")

    watch = at_the_marker(store, run, deafen)
    assert execute(store, run, watch).status == "stopped"
    assert all(map(gone, watch.family))


def test_a_supervisor_that_was_taken_for_dead_ends_its_notebook_and_leaves_the_run_alone(store, monkeypatch):
    monkeypatch.setattr(papermilling, "_HEARTBEAT_SECONDS", 0.0)
    run = queued(store, PARAMETERS, FOREVER)
    other = {"host": "elsewhere", "pid": 7, "process_started": 7.0}

    def take_over(_family):
        with store.writing() as connection:
            connection.execute(update(RUNS).values(other))

    watch = at_the_marker(store, run, take_over)
    end = execute(store, run, watch)
    assert (end.status, end.host, end.pid, end.error) == ("running", "elsewhere", 7, None)
    assert all(map(gone, watch.family))


def test_only_the_supervisor_of_a_run_is_made_to_end_at_once(store):
    run = queued(store, PARAMETERS)
    store.claim(run)
    with psutil.Popen(["sleep", "600"]) as stranger:
        for own in ({"pid": stranger.pid}, {"pid": stranger.pid, "process_started": stranger.create_time(), "host": "elsewhere"}):
            with store.writing() as connection:
                connection.execute(update(RUNS).values(own))
            papermilling.end_at_once(store, run)
            assert stranger.poll() is None
        with store.writing() as connection:
            connection.execute(update(RUNS).values(host=socket.gethostname()))
        papermilling.end_at_once(store, run)
        assert stranger.wait(10) in (-signal.SIGINT, -signal.SIGTERM)
    papermilling.end_at_once(store, run)  # it is no more
