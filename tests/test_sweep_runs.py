"""Sweeps of real runs, each in a process of its own: killed, interrupted, resumed, and of a notebook."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from toy_notebooks import write_notebook
from toy_run import SMALL

from workbench.__main__ import main
from workbench.config import validated
from workbench.experiments.points import results
from workbench.experiments.space import SweepSettings
from workbench.experiments.sweeps import begin_sweep, resume_sweep, steps
from workbench.store import Store

ROOT = Path(__file__).parent.parent
RATE = "optimizer.learning_rate"
REPORTS = "from workbench.experiment import Experiment\nExperiment.here().report({'score': -(x - 3) ** 2})"


def small_settings():
    texts = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    return [word for key, text in texts.items() for word in ("--set", f"{key}={text}")]


def test_a_command_that_is_killed_is_resumed_and_no_point_is_lost_or_run_twice(tmp_path, capsys):
    settings = [*small_settings(), "--set", "iterations=2", "--set", "compute.threads=1", "--over", f"{RATE}=1e-4,1e-2"]
    command = [sys.executable, "-m", "workbench", "sweep", "shapes", *settings, "--runs", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    store = Store(tmp_path)
    while not store.runs("sweep") or store.run(store.runs("sweep")[0].id).iteration < 1:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (sweep,) = store.runs("sweep")
    before = results(store, sweep.id)
    assert sweep.status == "crashed"
    assert before.count("done") == 1
    assert main(["sweep", "--resume", "latest", "--runs", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    found = results(store, sweep.id)
    assert (summary["run"], summary["done"], summary["status"]) == (sweep.id, 2, "done")
    assert summary["best"]["value"] == max(point.value for point in found.points)
    assert [point.parameters[RATE] for point in found.points] == [1e-4, 1e-2]
    assert len(store.runs("train")) == 2
    for point in found.points:
        (run,) = point.runs
        assert [row.iteration for row in store.events(run, kinds=("Started",))] == [0]
        assert [row.iteration for row in store.events(run, kinds=("IterationDone",))] == [1, 2]
    for point, old in zip(found.points, before.points, strict=False):
        assert point.runs == old.runs
        assert old.status != "done" or point.value == old.value
    assert main(["sweep", "--resume", sweep.id, "--runs", str(tmp_path)]) == 2
    assert "there is nothing to resume" in capsys.readouterr().err
    store.close()


def test_an_interrupted_command_stops_its_runs_and_says_how_to_go_on(tmp_path):
    settings = ["--set", "iterations=1000", "--set", "compute.threads=1", "--over", f"{RATE}=1e-4,1e-3", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "workbench", "sweep", "shapes", *small_settings(), *settings]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = Store(tmp_path)
    while not any(run.iteration for run in store.runs("train")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    (sweep,), (run,) = store.runs("sweep"), store.runs("train")
    assert process.returncode == 130
    assert (sweep.status, run.status) == ("stopped", "stopped")
    assert store.checkpoints(run.id)[-1] == run.iteration
    assert f"python -m workbench sweep --resume {sweep.id} --runs {tmp_path}" in err
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert resume_sweep(store, sweep.id) == sweep.id
    assert (store.run(run.id).status, store.run(sweep.id).status) == ("queued", "queued")
    store.close()


def test_a_sweep_runs_a_notebook_at_every_point_and_compares_what_it_reports(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = "x: int = 1  # a number\nrate: float = 0.5  # a share", REPORTS
    write_notebook(tmp_path / "notebooks", "toy", *cells)
    store = Store(tmp_path / "runs")
    target = {"notebook": "toy", "parameters": {"rate": 0.25}}
    asked = {"target": target, "space": {"x": [1, 3]}, "metric": "score", "parallel": 2}
    sweep = begin_sweep(store, validated(SweepSettings, asked), origin="test")
    for _ in steps(store, sweep):
        time.sleep(0.1)
    found = results(store, sweep)
    assert [point.value for point in found.points] == [-4.0, 0.0]
    assert found.best.parameters == {"x": 3}
    run = store.run(found.best.runs[0])
    assert (run.kind, run.parent, run.config["parameters"]) == ("notebook", sweep, {"x": 3, "rate": 0.25})
    assert run.command == "python -m workbench notebook run toy -p rate=0.25 -p x=3"
    store.close()
