"""The command `notebook`: what it lists and refuses, and a run in the foreground with its end and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_notebooks import PARAMETERS, write_notebook

from workbench.__main__ import main
from workbench.experiments.queue import Queue
from workbench.store import Store

ROOT = Path(__file__).parent.parent
SLEEPS = "from pathlib import Path\nPath('here').touch()\nimport time\nwhile True:\n    time.sleep(0.05)"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.delenv("WORKBENCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks", "toy", PARAMETERS, "print(x)", "assert x != 3, 'three'")
    write_notebook(tmp_path / "notebooks", "untagged", PARAMETERS, tagged=False)
    return tmp_path / "notebooks"


def begin(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "notebook", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_notebooks_are_listed_with_what_is_wrong_with_them(folder, capsys):
    assert main(["notebook"]) == 0
    listed = capsys.readouterr().out
    assert "toy" in listed
    assert "x, words" in listed
    assert "no of its cells has the tag" in listed
    assert main(["notebook", "list", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["toy"]["problem"] is None
    assert found["toy"]["parameters"][0] == {"name": "x", "type": "int", "default": 1, "help": "a number"}


def test_a_notebook_is_shown_with_its_parameters(folder, capsys):
    assert main(["notebook", "show", "toy"]) == 0
    shown = capsys.readouterr().out
    assert "It does little." in shown
    assert "a number" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "toy", "-p", "x=abc"), "x = 'abc': input should be a valid integer"),
        (("run", "toy", "-p", "y=1"), "has no parameter 'y'; choose from: x, words"),
        (("run", "toy", "-p", "x"), "-p takes KEY=VALUE, as in iterations=20"),
        (("run", "untagged"), "no of its cells has the tag 'parameters'"),
        (("run", "../toy"), "there is no notebook '../toy'"),
        (("run",), "notebook run needs a NAME; choose from: toy, untagged"),
        (("run", "toy", "--timeout", "0"), "--timeout"),
        (("show", "toy", "-p", "x=1"), "notebook show takes no parameters"),
        (("list", "toy"), "notebook list takes nothing more; got toy"),
        (("run", "toy", "--store", "nowhere://"), "cannot use the database URL"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_queued(folder, capsys, arguments, said):
    assert main(["notebook", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists() or Store("runs").runs() == []


def test_a_notebook_may_only_be_queued(folder, capsys):
    assert main(["notebook", "run", "toy", "-p", "x=2", "--queue", "--retries", "2", "--timeout", "60", "--title", "Two"]) == 0
    told = json.loads(capsys.readouterr().out)
    store = Store("runs")
    found, entry = store.run(told["run"]), Queue(store).entry(told["run"])
    assert (found.status, found.title, found.config["parameters"]["x"]) == ("queued", "Two", 2)
    assert entry is not None
    assert (entry.retries, entry.timeout, entry.taken) == (2, 60, None)


@pytest.mark.parametrize(("x", "status", "code", "done"), [("2", "done", 0, 4), ("3", "failed", 1, 3)])
def test_a_run_in_the_foreground_ends_with_its_summary(folder, x, status, code, done):
    with begin("run", "toy", "-p", f"x={x}") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["status"], summary["iteration"]) == (status, done)
    assert Path(summary["notebook"]).is_file()
    assert (summary["error"] or "").startswith("cell 4: AssertionError: three" if code else "")
    assert f"run {summary['run']} in " in err


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_the_notebook_and_a_second_one_at_once(folder, times):
    write_notebook(folder, "sleeps", PARAMETERS, SLEEPS)
    with begin("run", "sleeps") as process:
        deadline = time.monotonic() + 60
        while not list(Path("runs").glob("*/here")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert "stopping; Ctrl-C again ends it now" in err
