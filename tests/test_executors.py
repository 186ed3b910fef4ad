"""Executors: a cluster runs the very command of a local process, tells how it ended, and takes back what still waits."""

import os
import stat
import sys
import time

import pytest
from sqlalchemy import update
from toy_run import SMALL, toy_config

from workbench.experiments import clusters
from workbench.experiments.clusters import Dask, Slurm, read_lane
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.executors import LOG, Local, environment
from workbench.experiments.work import Work, submit
from workbench.store import Store
from workbench.tables import QUEUE

TINY = toy_config(1, **SMALL).model_dump(mode="json")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def queued(store, lane="local"):
    return submit(store, Work(kind="train", config=TINY, lane=lane), origin="test")


def until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_lanes_are_read_from_text():
    assert isinstance(read_lane("local")[1], Local)
    assert read_lane("slurm:partition=gpu,gpus=2,minutes=30") == ("slurm", Slurm(partition="gpu", gpus=2, minutes=30))
    assert read_lane("dask:address=tcp://host:8786") == ("dask", Dask(address="tcp://host:8786"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slurmm", "unknown lane 'slurmm'; choose from: local, slurm, dask"),
        ("slurm:gpu", "options are KEY=VALUE .* got 'gpu'"),
        ("slurm:gpus=many", "gpus"),
        ("slurm:nodes=2", "nodes"),
        ("dask", "address"),
        ("local:gpus=1", "has no options"),
    ],
)
def test_a_lane_that_cannot_be_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        read_lane(text)


@pytest.mark.parametrize("library", ["submitit", "distributed"])
def test_a_library_that_is_missing_fails_the_run_with_what_to_install(store, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    executor = Slurm(cluster="local") if library == "submitit" else Dask(address="tcp://127.0.0.1:1")
    run = queued(store)
    Dispatcher(store, {"local": executor}).tick()
    assert f'{library} is not installed: pip install "flow-map-workbench[cluster]"' in store.run(run).error


def test_the_address_of_the_database_goes_by_the_environment_of_the_process_alone(store):
    assert environment(store, "1")["WORKBENCH_STORE"] == store.url
    assert environment(store, "1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert "WORKBENCH_STORE" not in os.environ


def test_the_folder_of_rewards_is_that_of_whoever_begins_the_process(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment(store, None)["WORKBENCH_REWARDS"] == str(tmp_path / "rewards")
    monkeypatch.setenv("WORKBENCH_REWARDS", "mine")
    assert environment(store, None)["WORKBENCH_REWARDS"] == str(tmp_path / "mine")


def test_what_visitors_sign_in_with_reaches_no_run(store, monkeypatch):
    monkeypatch.setenv("WORKBENCH_AUTH", "somebody:something")
    monkeypatch.setenv("ELSE", "kept")
    values = environment(store, None)
    assert values["ELSE"] == "kept"
    assert "somebody:something" not in values.values()


def test_submitit_runs_the_command_and_tells_how_it_ended(store):
    pytest.importorskip("submitit")
    dispatcher = Dispatcher(store, {"slurm": Slurm(cluster="local")}, slots=2)
    whole, broken = queued(store, "slurm"), queued(store, "slurm")
    dispatcher.tick()
    jobs = {run: started for run, (_, started) in dispatcher._started.items()}
    store.claim(broken)  # as if somebody else drove it already, so that its job cannot
    until(lambda: dispatcher.tick() is not None and all(job.ended() is not None for job in jobs.values()))
    assert store.run(whole).status == "done"
    assert jobs[whole].ended() == ""
    assert "stop it there first" in jobs[broken].ended()
    assert '"status":"done"' in (store.folder(whole) / LOG).read_text()
    assert list((store.folder(whole) / "slurm").iterdir())
    written = b"".join(path.read_bytes() for path in (store.folder(whole) / "slurm").rglob("*") if path.is_file())
    assert store.url.encode() not in written
    assert "WORKBENCH_STORE" not in os.environ


SLURM = {
    "sbatch": 'echo $* >>{folder}/calls\ncp "$1" {folder}/submitted\nenv >{folder}/environment\necho Submitted batch job 7',
    "sacct": 'test -e {folder}/cancelled && state=CANCELLED || state=PENDING\nprintf "JobID|State|NodeList\\n7|$state|\\n"',
    "scancel": "echo $* >{folder}/cancelled",
}
"""A Slurm whose queue never moves."""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text("#!/bin/sh\n" + script.replace("{folder}", str(folder)) + "\n")
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "srun").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_is_asked_for_what_the_lane_says_and_a_job_that_waits_there_can_be_stopped(store, slurm):
    pytest.importorskip("submitit")
    dispatcher = Dispatcher(store, dict([read_lane("slurm:partition=gpu,gpus=2,minutes=30,memory_gb=16")]))
    run = queued(store, "slurm")
    dispatcher.tick()
    script = (slurm / "submitted").read_text()
    asked = ("--partition=gpu", "--gpus-per-node=2", "--time=30", "--mem=16GB", f"--job-name={run}")
    assert all(option in script for option in asked), script
    assert f"WORKBENCH_STORE={store.url}" in (slurm / "environment").read_text()
    assert store.url not in script
    dispatcher.tick()
    assert store.run(run).status == "queued"
    store.wish(run, "stop")
    assert [(end.id, end.status) for end in dispatcher.tick()] == [(run, "stopped")]
    assert (slurm / "cancelled").read_text() == "7\n"


def test_a_job_that_waits_at_slurm_is_taken_over_by_the_next_dispatcher(store, slurm):
    pytest.importorskip("submitit")
    run = queued(store, "slurm")
    Dispatcher(store, {"slurm": Slurm()}).tick()
    with store.writing() as connection:
        connection.execute(update(QUEUE).values(taken=None))  # as for one whose dispatcher has died
    successor = Dispatcher(store, {"slurm": Slurm()})
    successor.tick()
    assert len((slurm / "calls").read_text().splitlines()) == 1
    store.wish(run, "stop")
    successor.tick()
    assert (slurm / "cancelled").read_text() == "7\n"


def test_a_slurm_that_refuses_fails_the_run_and_says_why(store, slurm):
    pytest.importorskip("submitit")
    (slurm / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    run = queued(store, "slurm")
    Dispatcher(store, {"slurm": Slurm(partition="none")}).tick()
    assert "Slurm refused the job" in store.run(run).error
    assert "invalid partition" in store.run(run).error


def test_dask_runs_the_command_tells_how_it_ended_and_takes_back_what_waits(store):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        dispatcher = Dispatcher(store, {"dask": Dask(address=cluster.scheduler_address)}, slots=2)
        first, second = queued(store, "dask"), queued(store, "dask")
        dispatcher.tick()
        jobs = {run: started for run, (_, started) in dispatcher._started.items()}
        assert store.url not in repr(jobs[first]._future)
        store.wish(second, "stop")
        until(lambda: [end.id for end in dispatcher.tick()] == [second])
        until(lambda: dispatcher.tick() is not None and jobs[first].ended() is not None)
        assert [store.run(run).status for run in (first, second)] == ["done", "stopped"]
        assert jobs[first].ended() == ""
        assert "cancelled" in jobs[second].ended()
        assert len(store.events(first, kinds=("Finished",))) == 1
        jobs[first]._future.client.close()


def test_a_dask_cluster_that_is_not_there_fails_the_run(store, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "_REACH_SECONDS", 0.5)
    run = queued(store, "dask")
    Dispatcher(store, {"dask": Dask(address="tcp://127.0.0.1:9")}).tick()
    assert "no process could be begun for it" in store.run(run).error
