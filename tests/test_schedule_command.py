"""`schedule` on the command line: planned, shown, changed, served in the foreground, and looked back on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_run import SMALL

from workbench.__main__ import main
from workbench.experiments.schedules import Schedules
from workbench.store import Store

ROOT = Path(__file__).parent.parent
TINY = [word for key, value in SMALL.items() for word in ("--set", f"{key}={list(value) if isinstance(value, tuple) else value}")]
TINY += ["--set", "iterations=1"]


@pytest.fixture
def ask(capsys, tmp_path):
    def ask(*arguments):
        capsys.readouterr()
        status = main(["schedule", *map(str, arguments), "--runs", str(tmp_path / "runs")])
        out, err = capsys.readouterr()
        return status, out, err

    return ask


def test_a_schedule_is_added_shown_changed_paused_removed_and_brought_back(ask):
    status, out, _ = ask(
        "add", "nightly", "--cron", "0 2 * * *", "--timezone", "Europe/Berlin", "--budget", 8, "--preset", "shapes"
    )
    assert status == 0
    assert "0 2 * * * (Europe/Berlin)" in out
    assert "02:00:00 CE" in out
    assert "0.00 of 8" in out
    (described,) = json.loads(ask("list", "--json")[1])
    assert (described["trigger"]["line"], described["work"]["config"]["task"]["name"]) == ("0 2 * * *", "shapes")
    assert "nightly" in ask()[1]
    changed = json.loads(ask("change", "nightly", "--every", "6h", "--max-active", 1, "--retries", 2, "--json")[1])
    assert changed["trigger"] == {"name": "every", "amount": 6, "unit": "hours"}
    assert (changed["max_active"], changed["work"]["retries"], changed["budget_hours"]) == (1, 2, 8)
    assert len(changed["following"]) == 5
    assert "paused: somebody paused it" in ask("pause", "nightly")[1]
    assert "next: " in ask("resume", "nightly")[1]
    assert "schedule restore nightly" in ask("remove", "nightly")[1]
    assert ask("show", "nightly")[0] == 2
    assert ask("restore", "nightly")[0] == 0


def test_a_preview_needs_no_schedule(ask):
    status, out, _ = ask("preview", "--cron", "30 6 * * mon", "--timezone", "UTC")
    assert status == 0
    times = out.strip().splitlines()
    assert len(times) == 5
    assert all(line.endswith("06:30:00+00:00") for line in times)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add"], ["NAME"]),
        (["add", "nightly"], ["--notebook", "--cron"]),
        (["add", "nightly", "--cron", "0 2 * *", "--preset", "shapes"], ["five fields"]),
        (["add", "nightly", "--cron", "0 25 * * *", "--preset", "shapes"], ["hour", "0 to 23"]),
        (["add", "nightly", "--cron", "0 0 31 2 *", "--preset", "shapes"], ["never comes"]),
        (["add", "nightly", "--at", "2001-01-01 00:00", "--preset", "shapes"], ["is past"]),
        (["add", "nightly", "--every", "often", "--preset", "shapes"], ["--every", "'often'"]),
        (["add", "nightly", "--every", "1h", "--cron", "0 2 * * *", "--preset", "shapes"], ["exclude each other"]),
        (["add", "nightly", "--every", "1h", "--preset", "shape"], ["'shape'"]),
        (["add", "nightly", "--every", "1h", "--preset", "shapes", "--timezone", "Mars"], ["Mars"]),
        (["add", "nightly", "--every", "1h", "-p", "iterations=2"], ["--notebook"]),
        (["add", "nightly", "--every", "1h", "--sweep", "nowhere.yml"], ["nowhere.yml"]),
        (["add", "nightly", "--every", "1h", "--preset", "shapes", "--lane", "slurm:gpus=1"], ["by its name alone"]),
        (["show", "nightly"], ["no schedule 'nightly'"]),
        (["pause", "nightly", "--budget", "3"], ["schedule change"]),
        (["preview"], ["--cron"]),
        (["serve", "--lane", "moon"], ["unknown lane 'moon'"]),
        (["digest", "--since", "yesterday"], ["--since", "24h"]),
    ],
)
def test_mistakes_are_told_in_a_line_and_plan_nothing(ask, arguments, told):
    status, _, err = ask(*arguments)
    assert status == 2
    assert all(word in err for word in told), err
    assert "no schedules" in ask("list")[1]


def test_serving_runs_what_is_due_and_ctrl_c_leaves_running_runs_alone(ask, tmp_path):
    folder = tmp_path / "runs"
    assert ask("add", "quick", "--every", "1 second", "--max-active", 1, "--preset", "shapes", *TINY)[0] == 0
    assert ask("add", "long", "--every", "1 second", "--max-active", 1, "--preset", "shapes", *TINY[:-2])[0] == 0
    command = [sys.executable, "-m", "workbench", "schedule", "serve", "--parallel", "2", "--runs", str(folder)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    store = Store(folder)

    def of(name):
        return [run for run in store.runs() if run.origin == f"schedule {name}"]

    deadline = time.monotonic() + 120
    try:
        while not (any(run.status == "done" for run in of("quick")) and any(run.iteration >= 1 for run in of("long"))):
            assert time.monotonic() < deadline, "it takes too long"
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.1)
        Schedules(store).pause("quick")
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=30)
        (left,) = of("long")
        assert server.returncode == 0
        assert "go on by themselves" in said
        before = store.run(left.id).iteration
        assert store.run(left.id).status == "running"
        while store.run(left.id).iteration == before:
            assert time.monotonic() < deadline, "it does not go on"
            time.sleep(0.1)
    finally:
        server.kill()
        for run in store.runs():
            if run.pid is not None and not run.over and run.pid != os.getpid():
                os.kill(run.pid, signal.SIGKILL)
        store.close()


def test_a_digest_is_printed_and_written(ask, tmp_path):
    page = tmp_path / "digest.html"
    status, out, _ = ask("digest", "--since", "12h", "--out", page)
    assert status == 0
    assert "no runs" in out
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(ask("digest", "--json")[1])["outcomes"] == []
    assert ask("digest", "--out", tmp_path / "nowhere" / "digest.html")[0] == 2


def test_reasons_and_titles_are_shown_as_they_are(ask, tmp_path):
    ask("add", "odd", "--every", "6h", "--preset", "shapes", "--title", "a [/b] c")
    store = Store(tmp_path / "runs")
    Schedules(store).pause("odd", "[/b] is no tag")
    store.set_status(store.create("train", {}, title="a [/b] c", origin="schedule odd"), "failed", "[red]no[/b]")
    store.close()
    assert "paused: [/b] is no tag" in ask("list")[1]
    status, out, err = ask("digest")
    assert (status, "[red]no[/b]" in out) == (0, True), err
