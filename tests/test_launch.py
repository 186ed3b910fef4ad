"""Several processes begun, watched over and ended by the command line: what becomes of the run, whatever becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from toy_training import SMALL

from workbench.__main__ import main
from workbench.config import configure
from workbench.events import CheckpointReady
from workbench.experiments import launching
from workbench.experiments.launching import Nodes, Team
from workbench.experiments.rank_process import SILENT_SECONDS, Pulse, Told
from workbench.provenance import read_provenance
from workbench.ranks import WAIT, meet
from workbench.records import Run, resumable
from workbench.store import Store
from workbench.studio import Studio
from workbench.train import train

ROOT = Path(__file__).parent.parent
QUICK = SMALL | {"grpo.groups": 4, "compute.device": "cpu", "compute.threads": 1, "evaluation.every": 1000}
SETTINGS = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]


def command(store: Store, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "workbench", *arguments, "--runs", str(store.location)]


@contextmanager
def begun(store: Store, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command of its own process, ended with all that it began."""
    values = {**os.environ, "PYTHONPATH": str(ROOT), "WORKBENCH_STORE": store.url}
    process = subprocess.Popen(
        command(store, *arguments), env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=store.location
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, dict[str, Any], str]:
    """Its exit status, the JSON of its last line, and what it said."""
    said, errors = process.communicate(timeout=seconds)
    return process.returncode, json.loads(said.splitlines()[-1]) if said.strip() else {}, errors


def until(condition: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 60) -> Any:
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)
    return found


def reached(store: Store, iteration: int) -> Callable[[], Run | None]:
    def look() -> Run | None:
        return next((run for run in store.runs() if run.status == "running" and run.iteration >= iteration), None)

    return look


def follower(process: "subprocess.Popen[str]", run: Run) -> psutil.Process:
    """The process of rank 1."""
    ranks = [child for child in psutil.Process(process.pid).children() if child.pid != run.pid]
    (other,) = [child for child in ranks if "rank_process" in " ".join(child.cmdline())]
    return other


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    apart = torch.cat([(value - other[name]).abs().flatten() for name, value in one.items()])
    return float(apart.max()) < 1e-3 and float(apart.median()) < 1e-5  # the order of sums over gradients, magnified by Adam


# A run that several processes drive


@pytest.mark.timeout(180)
def test_ctrl_c_stops_all_with_a_checkpoint_and_one_process_goes_on(store: Store) -> None:
    with begun(store, "launch", "--processes", "2", "train", *SETTINGS, "--set", "iterations=400", "--json") as process:
        until(reached(store, 1), process)
        process.send_signal(signal.SIGINT)
        status, summary, _ = ended(process)
    assert (status, summary["status"]) == (130, "stopped")
    run = store.run(summary["run"])
    assert store.checkpoints(run.id)[-1] == run.iteration == summary["iteration"]
    (started,) = store.events(run.id, kinds=("Started",))
    assert started.data["facts"]["processes"] == 2
    groups = store.events(run.id, kinds=("GroupsScored",))[0].data
    assert len(groups["prompts"]) == 4
    assert len(groups["rewards"]) == 16
    assert len(read_provenance(store, run.id)) == 1
    store.add_settings(run.id, {"iterations": run.iteration + 1})
    arguments = ["launch", "--processes", "1", "train", "--resume", run.id, "--runs", str(store.location)]
    assert main(arguments) == 0
    assert store.run(run.id).config["compute"]["processes"] == 1
    assert store.events(run.id, kinds=("Started",))[-1].data["facts"]["processes"] == 1


@pytest.mark.timeout(180)
def test_two_machines_go_on_with_what_one_process_began(store: Store, port: str) -> None:
    config = configure("shapes", QUICK)
    run = store.create("train", config.model_dump(mode="json"), title="begun alone", origin="test")
    for event in train(config):
        if isinstance(event, CheckpointReady):
            unbroken = {name: value.clone() for name, value in event.tensors["policy"].items()}
            if event.iteration == 2:
                store.save_checkpoint(run, event)
    store.set_status(run, "stopped")
    nodes = ["launch", "--processes", "2", "--nodes", "2", "--main-port", port, "--node-rank"]
    resumed = ["train", "--resume", run, "--json"]
    with begun(store, *nodes, "0", *resumed) as first, begun(store, *nodes, "1", *resumed) as second:
        status, summary, said = ended(first)
        assert (status, summary["status"]) == (0, "done"), said
        assert ended(second)[:2] == (0, {"node": 1, "status": "done", "error": None})
    assert store.run(run).config["compute"]["processes"] == 2
    assert close(store.load_checkpoint(run).tensors["policy"], unbroken)


@pytest.mark.timeout(180)
def test_wishes_reach_all_processes_and_one_that_is_killed_ends_the_run_at_once(store: Store) -> None:
    """Two settings of the same: `train` itself launches where the settings ask for it."""
    with begun(store, "train", *SETTINGS, "--set", "iterations=4000", "--set", "compute.processes=2", "--json") as process:
        run = until(reached(store, 1), process)
        store.wish(run.id, "pause")
        paused = until(lambda: store.run(run.id).status == "paused" and store.run(run.id), process)
        store.wish(run.id, "save")
        until(lambda: store.run(run.id).iteration in store.checkpoints(run.id), process)
        store.wish(run.id, "run")
        until(reached(store, paused.iteration + 2), process)
        killed = time.monotonic()
        follower(process, run).kill()
        status, summary, _ = ended(process)
        assert time.monotonic() - killed < 20
    found = store.run(run.id)
    assert (status, summary["status"]) == (1, found.status)
    assert found.status in ("failed", "crashed")
    assert found.error is not None
    assert found.error.startswith("process 1 of 2 was ended by SIGKILL")
    assert found.error.endswith("it can be resumed from its last checkpoint")
    assert store.load_checkpoint(run.id).iteration in store.checkpoints(run.id)
    assert resumable(found, saved=True)


FAILS = """
import os

asked = []


def fails(images, prompts):
    asked.append(prompts)
    if os.environ.get("RANK") == "1" and len(asked) == 6:  # after an evaluation, the preflight and one iteration
        raise OSError("the judge has gone home")
    return images.mean((1, 2, 3))
"""


class Slow(BaseHTTPRequestHandler):
    """A judge elsewhere that takes its time."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(5)
        answer = json.dumps({"values": [0.5] * len(asked["prompts"])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def judge() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(180)
def test_what_fails_for_all_is_recorded_however_long_the_judges_take(
    store: Store, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(FAILS)
    monkeypatch.setenv("WORKBENCH_REWARDS", str(tmp_path))
    monkeypatch.setattr(launching, "END_SECONDS", 0.5)  # less than the judge takes after the other process has failed
    rewards = [{"reward": {"name": "function", "function": "own.py:fails"}, "weight": 1.0}]
    judges = [{"reward": {"name": "remote", "addresses": [judge]}}]
    changes = {"compute.processes": 2, "rewards": rewards, "eval_rewards": judges}
    config = configure("shapes", QUICK | changes)
    run = store.create("train", config.model_dump(mode="json"), title="fails", origin="test")
    team = launching.team_of(store, run, fresh=True)
    try:
        while team.goes_on():
            pass
    finally:
        team.close()
    assert team.failure() is None
    launching.settle(store, run, team)
    found = store.run(run)
    assert (found.status, found.iteration) == ("paused", 1)
    assert "the judge has gone home" in found.error
    assert store.checkpoints(run)[-1] == 1
    assert len(store.events(run, kinds=("Evaluated",))) == 1


@pytest.mark.timeout(180)
def test_the_page_begins_and_resumes_a_run_of_several_processes_which_crashes_where_the_first_is_killed(studio: Studio) -> None:
    run = studio.start(configure("shapes", QUICK | {"compute.processes": 2, "iterations": 4000}))

    def status(wanted: str, past: int = 0, said: str = "") -> Run:
        deadline = time.monotonic() + 60
        while (found := studio.store.run(run)).status != wanted or found.iteration <= past or said not in (found.error or ""):
            assert time.monotonic() < deadline, (found.status, found.error)
            assert found.status == wanted or not found.over, found.error
            time.sleep(0.05)
        return found

    assert status("running").pid != os.getpid()
    studio.control(run, "stop")
    stopped = status("stopped")
    assert studio.store.checkpoints(run)[-1] == stopped.iteration
    studio.control(run, "resume")
    first = psutil.Process(status("running", past=stopped.iteration).pid)
    others = [child for child in first.parent().children() if child != first]
    first.kill()
    status("crashed", said="process 0 of 2 was ended by SIGKILL")
    assert psutil.wait_procs(others, timeout=20)[1] == []


# Bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "3", "train", *SETTINGS], "grpo.groups = 4 does not divide over compute.processes = 3"),
        (["--processes", "3", "--nodes", "2", "--port", "29511", "train"], "--processes = 3 is over all nodes, and does"),
        (["--processes", "2", "--nodes", "2", "train"], "several nodes need --address and --port"),
        (["--processes", "2", "--node-rank", "1", "train"], "--node = 1: 1 nodes are numbered from 0 to 0"),
        (["--processes", "2", "sample"], "launch begins train, as in: launch --processes 2 train --preset shapes; got 'sample'"),
        (["--processes", "0", "train"], "greater than or equal to 1"),
        (["--processes", "2", "train", "--sett", "a=1"], "No such option"),
        (["--processes", "2"], "Missing argument"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_begins(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    runs = ["--runs", str(store.location)] if "train" in arguments else []
    assert main(["launch", *arguments, *runs]) == 2
    assert told in capsys.readouterr().err
    assert not store.runs()


@pytest.fixture
def port() -> str:
    """One that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.timeout(120)
def test_a_port_that_is_taken_is_told(store: Store, port: str) -> None:
    launch = ["launch", "--processes", "2", "--port", port]
    with socket.create_server(("127.0.0.1", int(port))), begun(store, *launch, "train", *SETTINGS) as refused:
        status, summary, _ = ended(refused)
    assert (status, summary["status"]) == (1, "failed")
    assert f"port {port} of 127.0.0.1 is taken by another program; choose another" in summary["error"]
    assert "Traceback" in (store.folder(summary["run"]) / "error.txt").read_text()


def test_a_process_that_does_not_come_is_told_and_no_other_machine_may(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, WAIT: "2"}.items():
        monkeypatch.setenv(key, value)
    met = ThreadPoolExecutor(1).submit(meet.__wrapped__)  # what is kept for the whole process is not for a test
    deadline = time.monotonic() + 30
    while port not in (found := listening()):
        assert time.monotonic() < deadline
    assert found[port] == "127.0.0.1"
    with pytest.raises(RuntimeError, match="the 2 processes that were asked for did not all come up"):
        met.result()


def listening() -> dict[str, str]:
    """Where this process can be reached, by port."""
    places = [each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return {str(place.port): place.ip for place in places}


def test_the_first_that_failed_is_blamed_and_one_that_was_killed_before_all(tmp_path: Path) -> None:
    class Ended(Team):
        """Three processes that have ended, as they say."""

        def __init__(self, statuses: "list[int | None]") -> None:
            self.logs, self.count = tmp_path, len(statuses)
            self._ended = {rank: (float(rank), status) for rank, status in enumerate(statuses) if status is not None}
            self._late = [rank for rank, status in enumerate(statuses) if status is None]

    assert Ended([0, 0]).failure() is None
    assert Ended([0, None]).failure().error.startswith("process 1 of 2 had not ended 60 s after another had")
    Told(5.0, "RuntimeError: connection closed by peer", "trace 0", True).write(tmp_path / "0.json")
    Told(4.0, "ValueError: no such thing", "trace 1", False).write(tmp_path / "1.json")
    assert Ended([None, 1]).failure().error == "process 1 of 2: ValueError: no such thing"
    assert Ended([1, 1]).failure() == Told(4.0, "process 1 of 2: ValueError: no such thing", "trace 1", False)
    assert Ended([1, 0]).failure().recorded
    killed = Ended([1, 1, -signal.SIGKILL]).failure()
    assert killed.error == "process 2 of 3 was ended by SIGKILL; the system does so where memory runs out"
    (tmp_path / "2.txt").write_text("a word\nthe last word\n\n")
    assert Ended([1, 1, 3]).failure().error == "process 2 of 3: the last word"


def test_a_process_of_another_machine_that_falls_silent_is_told_and_one_that_has_ended_is_not() -> None:
    words, now, lost = torch.distributed.HashStore(), [0.0], []
    keys = ["process/0", "process/1", "process/2"]
    for key in keys:
        words.set(key, "here")
    pulses = [Pulse(words, keys, index, lost.append, lambda: now[0]) for index in range(3)]
    for _ in range(5):
        for pulse in pulses:
            pulse.beat()
            pulse.look()
        now[0] += SILENT_SECONDS / 2
    assert not lost
    pulses[2].end()
    for _ in range(4):
        pulses[0].beat()  # and process 1 is silent
        pulses[0].look()
        now[0] += SILENT_SECONDS / 2
    assert lost == ["process 1 of 3 has not been heard of for 60 s: its machine or the network between is down"]


KEEPER = """
import sys, torch

words = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(words.port, flush=True)
sys.stdin.read()
"""


def test_the_machine_of_the_common_words_is_missed_as_well() -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        words = torch.distributed.TCPStore("127.0.0.1", int(keeper.stdout.readline()), is_master=False)
        keys, now, lost = ["process/0", "process/1"], [0.0], []
        for key in keys:
            words.set(key, "here")
        pulse = Pulse(words, keys, 1, lost.append, lambda: now[0])
        pulse.beat()
        keeper.send_signal(signal.SIGSTOP)
        while psutil.Process(keeper.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        beating = threading.Thread(target=pulse.beat)
        beating.start()
        now[0] += 2 * SILENT_SECONDS
        beating.join(0.5)
        assert beating.is_alive()  # for as long as the machine is silent
        pulse.look()
        assert lost == ["process 0 of 2 has not been heard of for 60 s: its machine or the network between is down"]
    finally:
        keeper.kill()
        keeper.communicate()
    beating.join()


def test_processes_divide_over_nodes() -> None:
    assert Nodes().processes_here(3) == 3
    assert Nodes(2, 1, "there", 29500).processes_here(4) == 2
    with pytest.raises(ValueError, match=r"--node = 2: 2 nodes are numbered from 0 to 1"):
        Nodes(2, 2, "there", 29500).processes_here(4)
