import errno
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import update

from workbench.checkpoints import CheckpointError, list_checkpoints
from workbench.events import (
    Check,
    CheckpointReady,
    Evaluated,
    Finished,
    GroupsScored,
    IterationDone,
    Measure,
    PreflightDone,
    Preview,
    Progress,
    Reported,
    Sampled,
    Started,
)
from workbench.pictures import choose_to_drop
from workbench.store import Store, StoreError
from workbench.tables import RUNS

CHILD = """
import os, sys, torch
from workbench.events import *
from workbench.store import Store, StoreError
store = Store(sys.argv[1])

def checkpoint(iteration, size=1000):
    noise = torch.Generator().manual_seed(iteration)
    tensors = {stem: {"w": torch.randn(size, generator=noise)} for stem in ("policy", "ema", "optimizer")}
    return CheckpointReady(iteration, tensors, {"iteration": iteration, "loss": iteration / 3})

def say(*words):
    print(*words, flush=True)
"""


def new_run(store, **record):
    return store.create("train", {"task": {"name": "toy"}, "iterations": 9, "record": record}, title="Toy", origin="test")


def preview(count, side=4, seed=0):
    return Preview(
        torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    )


def groups(iteration, side=4, seed=0):
    numbers = tuple(0.1 * index for index in range(4))
    return GroupsScored(
        iteration,
        ("a red circle", "a blue square"),
        2,
        (1, 2, 3, 2**40),
        numbers,
        {"exact": numbers},
        numbers,
        (0, 2),
        (numbers, numbers),
        (0.5, 0.25),
        (0, 1),
        preview(4, side, seed),
    )


def evaluated(iteration, side=4):
    return Evaluated(
        iteration,
        {4: {"exact": Measure(0.25, 0.1, 0.4)}},
        16,
        ("a", "b"),
        (1, 2),
        preview(2, side),
        {"counting": Measure(0.5, 0.3, 0.7)},
    )


def checkpoint(iteration, size=1000, **state):
    noise = torch.Generator().manual_seed(iteration)
    tensors = {stem: {"w": torch.randn(size, generator=noise)} for stem in ("policy", "ema", "optimizer")}
    return CheckpointReady(iteration, tensors, {"iteration": iteration, "loss": iteration / 3, **state})


def same(left, right):
    """Two checkpoints, bit for bit."""
    assert left.iteration == right.iteration
    assert left.state == right.state
    assert left.tensors.keys() == right.tensors.keys()
    return all(torch.equal(left.tensors[stem]["w"], right.tensors[stem]["w"]) for stem in right.tensors)


def spawn(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def pixels(store, run, layout):
    """The tiles of a sprite sheet, [n, H, W, 3]."""
    sheet = np.asarray(Image.open(store.image_path(run, layout["sprite"])))
    width, height = layout["tile"]
    places = [divmod(index, layout["columns"]) for index in range(layout["count"])]
    return np.stack([sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] for row, column in places])


# Events


def test_every_kind_of_event_reads_back_with_all_its_fields(store):
    run = new_run(store)
    events = [
        Started(0, {"device": "cpu", "parameters": 3}),
        PreflightDone(0, (Check("ratio", "green", "The first ratio is 1.", 1.0),)),
        groups(1),
        IterationDone(1, {"reward": 0.1 + 0.2}, 0.65),
        evaluated(1),
        Sampled(1, ("a",), (7,), preview(1)),
        checkpoint(1),
        Finished(1, {"reward": 0.3}),
    ]
    ids = [store.record(run, event) for event in events]
    rows = store.events(run)
    assert [row.id for row in rows] == ids
    assert [row.kind for row in rows] == [type(event).__name__ for event in events]
    for row, event in zip(rows, events, strict=True):
        assert row.data.keys() == {field.name for field in fields(event)}
        assert row.iteration == event.iteration
    assert rows[2].data["seeds"] == [1, 2, 3, 2**40]
    assert rows[2].data["log_probs"] == [list(numbers) for numbers in events[2].log_probs]
    assert rows[3].data["metrics"]["reward"] == 0.1 + 0.2
    assert rows[4].data["measures"]["4"]["exact"] == {"value": 0.25, "low": 0.1, "high": 0.4}


def test_numbers_that_are_not_finite_are_kept_and_the_json_stays_standard(store):
    run = new_run(store)
    store.record(
        run, IterationDone(1, {"kl": math.nan, "ratio": math.inf, "low": -math.inf, "tiny": 5e-324, "third": 1 / 3}, 1.0)
    )
    metrics = store.events(run)[0].data["metrics"]
    assert math.isnan(metrics["kl"])
    assert (metrics["ratio"], metrics["low"], metrics["tiny"], metrics["third"]) == (math.inf, -math.inf, 5e-324, 1 / 3)
    text = sqlite3.connect(store.location / "runs.db").execute("select data from events").fetchone()[0]
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_files_that_a_run_names_are_found_from_any_working_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("a fox\nan owl\n")
    (tmp_path / "lora").mkdir()
    config = {
        "title": "mine.txt",
        "task": {"name": "prompts", "file": "mine.txt", "held_out_file": "none.txt"},
        "model": {"name": "flux", "source": "black-forest-labs/FLUX.1-dev"},
        "adapter": {"start": "lora"},
        "rewards": [{"reward": {"name": "clip_score", "source": "lora"}, "weight": 1.0}],
    }
    kept = store.run(store.create("train", config, title="Toy", origin="test")).config
    assert kept["task"] == {"name": "prompts", "file": str(tmp_path / "mine.txt"), "held_out_file": "none.txt"}
    assert kept["adapter"]["start"] == kept["rewards"][0]["reward"]["source"] == str(tmp_path / "lora")
    assert (kept["title"], kept["model"]) == ("mine.txt", config["model"])
    notebook = {"notebook": "mine.txt", "parameters": {"file": "mine.txt"}}
    assert store.run(store.create("notebook", notebook, title="Toy", origin="test")).config == notebook


def test_progress_is_not_recorded(store):
    run = new_run(store)
    assert store.record(run, Progress("rollout", 1, 4)) is None
    assert store.events(run) == []
    assert store.cursor(run) == 0


def test_events_are_read_by_cursor_kind_and_number(store):
    run, other = new_run(store), new_run(store)
    ids = [store.record(run, IterationDone(iteration, {}, 1.0)) for iteration in range(1, 5)]
    store.record(other, IterationDone(1, {}, 1.0))
    assert store.cursor(run) == ids[-1]
    assert [row.iteration for row in store.events(run, after=ids[1])] == [3, 4]
    assert [row.iteration for row in store.events(run, limit=2)] == [1, 2]
    assert store.events(run, kinds=("Evaluated",)) == []


def test_curves_are_read_by_cursor(store):
    run = new_run(store)
    store.record(run, evaluated(0))
    first = store.record(run, IterationDone(1, {"reward": 0.5}, 2.0))
    store.record(run, IterationDone(2, {"reward": 0.75}, 3.0))
    assert store.metrics(run) == {
        "held_out/exact@4": [(0, 0.25)],
        "held_out/skill/counting": [(0, 0.5)],
        "seconds": [(1, 2.0), (2, 3.0)],
        "reward": [(1, 0.5), (2, 0.75)],
    }
    assert store.metrics(run, after=first) == {"seconds": [(2, 3.0)], "reward": [(2, 0.75)]}


def test_a_resumed_run_supersedes_what_lies_past_its_checkpoint(store):
    run = new_run(store)
    store.record(run, Started(0, {}))
    for iteration in (1, 2, 3):
        store.record(run, groups(iteration))
        store.record(run, IterationDone(iteration, {"reward": float(iteration)}, 1.0))
        if iteration < 3:
            store.record(run, checkpoint(iteration))
    store.record(run, groups(2))  # counted from the checkpoint, yet later than it
    newest = store.cursor(run)
    started = store.record(run, Started(2, {}))
    assert started > newest
    assert store.metrics(run)["reward"] == [(1, 1.0), (2, 2.0)]
    assert [row.kind for row in store.events(run)][-2:] == ["CheckpointReady", "Started"]
    assert store.run(run).iteration == 2
    store.record(run, Started(1, {}))
    assert store.checkpoints(run) == [1]
    assert len(list((store.folder(run) / "images").iterdir())) == 1


def test_the_groups_of_an_update_that_failed_are_superseded_though_the_checkpoint_came_after_them(store):
    run = new_run(store)
    for event in (Started(0, {}), groups(0), IterationDone(1, {}, 1.0), evaluated(1), groups(1), checkpoint(1), Started(1, {})):
        store.record(run, event)
    assert [row.kind for row in store.events(run)][1:] == [
        "GroupsScored",
        "IterationDone",
        "Evaluated",
        "CheckpointReady",
        "Started",
    ]


def test_row_ids_never_come_back(store):
    run = new_run(store)
    store.record(run, checkpoint(0))
    last = store.record(run, IterationDone(1, {}, 1.0))
    store.record(run, Started(0, {}))
    assert store.record(run, IterationDone(1, {}, 1.0)) > last + 1


def test_two_processes_and_two_threads_record_at_once(store):
    runs = [new_run(store) for _ in range(4)]
    code = """
for iteration in range(50):
    store.record(sys.argv[2], IterationDone(iteration, {"reward": float(iteration)}, 1.0))
"""
    children = [spawn(code, store.location, run) for run in runs[:2]]

    def write(run):
        for iteration in range(50):
            store.record(run, IterationDone(iteration, {"reward": float(iteration)}, 1.0))
            assert store.cursor(run)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, runs[2:]))
    assert [child.wait(60) for child in children] == [0, 0]
    for run in runs:
        assert store.metrics(run)["reward"] == [(iteration, float(iteration)) for iteration in range(50)]


# Pictures


def test_sprites_are_lossless_and_in_order(store):
    run = new_run(store)
    for event, columns in ((groups(1), 2), (evaluated(1), 8)):
        store.record(run, event)
        layout = store.events(run)[-1].data["preview"]
        assert (layout["columns"], layout["count"]) == (columns, len(event.preview.images))
        assert np.array_equal(pixels(store, run, layout), event.preview.images.permute(0, 2, 3, 1).numpy())


def test_large_rollouts_are_thumbnailed_and_evaluations_are_not(store):
    run = new_run(store)
    store.record(run, groups(1, side=320))
    store.record(run, evaluated(1, side=320))
    assert [row.data["preview"]["tile"] for row in store.events(run)] == [[256, 256], [320, 320]]


def test_an_empty_preview_names_no_file(store):
    run = new_run(store)
    store.record(run, Sampled(1, (), (), preview(0)))
    assert store.events(run)[0].data["preview"] == {"sprite": None, "tile": [4, 4], "columns": 8, "count": 0}


def test_old_rollout_pictures_are_thinned_and_their_numbers_stay(store):
    run = new_run(store, rollouts_kept=4)
    store.record(run, evaluated(0))
    for iteration in range(1, 31):
        store.record(run, groups(iteration))
    rows = store.events(run, kinds=("GroupsScored",))
    shown = [row.iteration for row in rows if row.data["preview"]["sprite"]]
    assert len(rows) == 30
    assert rows[12].data["rewards"] == list(groups(13).rewards)
    assert len(shown) == 4
    assert (shown[0], shown[-1]) == (1, 30)
    assert [iteration for iteration, _ in store.index(run, "GroupsScored")] == shown
    named = {row.data["preview"]["sprite"] for row in store.events(run)} - {None}
    assert named == {path.name for path in (store.folder(run) / "images").iterdir()}
    assert len(named) == 5


def test_what_thinning_leaves_covers_the_whole_run():
    kept = []
    for iteration in range(1000):
        kept.append(iteration)
        for index in reversed(choose_to_drop(kept, 20)):
            del kept[index]
    gaps = np.diff(kept)
    assert (len(kept), kept[0], kept[-1]) == (20, 0, 999)
    assert gaps.max() <= 2 * 999 / 19 + 64


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../config.json", "..", ""])
def test_a_picture_outside_the_run_is_refused(store, name):
    with pytest.raises(ValueError, match="not the name of an image"):
        store.image_path(new_run(store), name)


@pytest.mark.parametrize("run", ["..", "../elsewhere", "a/b", "", ".hidden"])
def test_a_directory_outside_the_store_is_refused(store, run):
    with pytest.raises(ValueError, match="not the id of a run"):
        store.folder(run)


# Runs


def test_a_new_run_is_queued_and_has_its_configuration(store):
    run = new_run(store)
    found = store.run(run)
    assert (found.status, found.wanted, found.kind, found.title, found.iterations) == ("queued", "run", "train", "Toy", 9)
    assert json.loads((store.folder(run) / "config.json").read_text()) == found.config
    assert "-toy-" in run


def test_runs_are_listed_newest_first_and_found_by_prefix(store):
    runs = [store.create(kind, {"task": kind}, title=kind, origin="test") for kind in ("train", "pretrain", "train")]
    assert [run.id for run in store.runs()] == runs[::-1]
    assert [run.id for run in store.runs("pretrain")] == [runs[1]]
    assert store.run("latest").id == runs[2]
    assert store.run(runs[1][:-1]).id == runs[1]


def test_an_unknown_run_is_named_and_recent_ones_are_listed(store):
    with pytest.raises(ValueError, match="unknown run 'nowhere'; there is no run in"):
        store.run("nowhere")
    runs = [new_run(store), new_run(store)]
    with pytest.raises(ValueError, match=f"unknown run 'nowhere'; recent runs: {runs[1]}, {runs[0]}"):
        store.run("nowhere")
    with pytest.raises(ValueError, match="ambiguous; it may be any of"):
        store.run("2")
    with pytest.raises(ValueError, match="unknown run"):
        store.record("nowhere", IterationDone(1, {}, 1.0))
    assert not (store.location / "nowhere").exists()


def test_wishes_are_given_once_and_in_order(store):
    run = new_run(store)
    for wanted in ("pause", "save", "sample", "stop"):
        store.wish(run, wanted)
    assert store.run(run).wanted == "stop"
    assert [wish.wanted for wish in store.take_wishes(run)] == ["pause", "save", "sample", "stop"]
    assert store.take_wishes(run) == []


def test_a_wish_is_refused_when_nobody_could_grant_it(store):
    run = new_run(store)
    with pytest.raises(ValueError, match="unknown wish 'fly'; choose from: run, pause, stop, save, sample"):
        store.wish(run, "fly")
    for status, error in (("done", None), ("stopped", None), ("failed", "no luck"), ("paused", "loss is not finite")):
        store.claim(run)
        store.set_status(run, status, error)
        with pytest.raises(ValueError, match=f"is {status}.*resume it"):
            store.wish(run, "pause")


def test_a_run_has_one_driver_and_a_new_one_forgets_old_wishes(store):
    run = new_run(store)
    store.claim(run)
    with pytest.raises(ValueError, match="stop it there first"):
        store.claim(run)
    store.wish(run, "stop")
    store.set_status(run, "stopped")
    store.claim(run)
    assert store.take_wishes(run) == []
    assert (store.run(run).status, store.run(run).wanted) == ("queued", "run")


def test_a_silent_run_on_another_host_counts_as_crashed(store):
    run = new_run(store)
    store.claim(run)
    store.set_status(run, "running")
    with store._engine.begin() as connection:
        connection.execute(update(RUNS).values(host="elsewhere"))
    assert store.run(run).status == "running"
    with store._engine.begin() as connection:
        connection.execute(update(RUNS).values(updated=RUNS.c.updated - 31))
    assert store.run(run).status == "crashed"
    with store._engine.begin() as connection:
        connection.execute(update(RUNS).values(updated=RUNS.c.updated + 31))
    assert store.run(run).status == "running"


def test_a_process_that_has_lost_its_run_to_another_says_nothing_of_it(store):
    run = new_run(store)
    store.claim(run)
    assert store.heartbeat(run)
    with store._engine.begin() as connection:
        connection.execute(update(RUNS).values(host="elsewhere", updated=RUNS.c.updated - 5))
    before = store.run(run)
    assert not store.heartbeat(run)
    assert not store.set_status(run, "failed", "no reason")
    assert store.run(run) == before
    assert store.set_status(run, "running", part=True)
    assert (store.run(run).status, store.run(run).host) == ("running", "elsewhere")


def test_an_attempt_that_begins_anew_reports_anew(store):
    run = new_run(store)
    for saved, kept in ((False, []), (True, [{"mean": 2.0}])):
        store.claim(run)
        store.record(run, Reported(0, {"mean": 2.0}))
        if saved:
            store.save_checkpoint(run, CheckpointReady(1, {"policy": {"w": torch.ones(1)}}, {}))
        store.set_status(run, "failed", "no reason")
        store.set_status(run, "queued")
        store.claim(run, fresh=True)
        assert [row.data["metrics"] for row in store.events(run, kinds=("Reported",))] == kept
        store.set_status(run, "failed", "no reason")


def test_a_run_that_cannot_be_created_leaves_no_directory(store, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("workbench.store.whole_file", full)
    with pytest.raises(StoreError, match="No space left"):
        new_run(store)
    assert [path for path in store.location.iterdir() if path.is_dir()] == []


def test_the_database_may_be_given_as_a_url(tmp_path):
    run = new_run(Store(f"sqlite:///{tmp_path}/team.db"))
    assert Store(tmp_path, f"sqlite:///{tmp_path}/team.db").run(run).id == run
    assert (tmp_path / run / "config.json").is_file()


# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(store):
    run = new_run(store)
    shared = torch.randn(6, 4)
    tensors = {
        "policy": {
            "half": torch.randn(5).bfloat16(),
            "view": shared[1:3],
            "tied": shared,
            "again": shared,
            "step": torch.tensor(3),
        },
        "optimizer": {},
    }
    state = {"lr": 1 / 3, "worst": math.nan, "name": "toy", "betas": [0.9, 0.99]}
    store.save_checkpoint(run, CheckpointReady(4, tensors, state))
    loaded = store.load_checkpoint(run)
    assert loaded.tensors["optimizer"] == {}
    for name, tensor in tensors["policy"].items():
        assert loaded.tensors["policy"][name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors["policy"][name], tensor)
    assert math.isnan(loaded.state.pop("worst"))
    assert loaded.state == {"lr": 1 / 3, "name": "toy", "betas": [0.9, 0.99]}


def test_the_first_the_best_and_the_last_checkpoints_are_kept(store):
    run = new_run(store, checkpoints_kept=2)
    for iteration in range(0, 70, 10):
        store.save_checkpoint(run, checkpoint(iteration, best=20))
    assert store.checkpoints(run) == [0, 20, 50, 60]


def test_saving_the_same_iteration_again_keeps_the_newer_state(store):
    run = new_run(store)
    store.save_checkpoint(run, checkpoint(3))
    store.save_checkpoint(run, checkpoint(3, best=3))
    assert same(store.load_checkpoint(run), checkpoint(3, best=3))
    other = checkpoint(3)
    other.tensors["policy"]["w"] += 1
    store.save_checkpoint(run, other)
    assert same(store.load_checkpoint(run), other)
    assert [path.name for path in (store.folder(run) / "checkpoints").iterdir()] == ["000003"]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "policy.safetensors").unlink(), "policy.safetensors is missing"),
        (lambda folder: shorten(folder / "ema.safetensors"), "ema.safetensors is truncated"),
        (lambda folder: flip(folder / "ema.safetensors"), "ema.safetensors is damaged"),
        (lambda folder: shorten(folder / "state.json"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json was not written by this program"),
        (lambda folder: edit(folder / "state.json", version=99), "format version 99"),
        (lambda folder: edit(folder / "state.json", run="another"), "belongs to run 'another'"),
        (lambda folder: edit(folder / "state.json", iteration=1), "does not describe"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_named_and_left_alone(store, damage, complaint):
    run = new_run(store)
    for iteration in (10, 20):
        store.save_checkpoint(run, checkpoint(iteration))
    folder = store.folder(run) / "checkpoints" / "000020"
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=f"{complaint}.*other checkpoints of this run: 10"):
        store.load_checkpoint(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same(store.load_checkpoint(run, 10), checkpoint(10))


def test_a_missing_checkpoint_is_named(store):
    run = new_run(store)
    with pytest.raises(CheckpointError, match=f"run {run} has no checkpoint"):
        store.load_checkpoint(run)
    store.save_checkpoint(run, checkpoint(10))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint after iteration 7.*other checkpoints of this run: 10"):
        store.load_checkpoint(run, 7)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Sudden ends


@pytest.mark.parametrize(("stage", "left"), [(1, 1), (5, 1), (6, 2)], ids=["first file", "before the rename", "after the rename"])
def test_a_run_killed_inside_a_checkpoint_has_crashed_and_its_last_complete_checkpoint_loads(store, stage, left):
    run = new_run(store)
    code = """
run = sys.argv[2]
store.claim(run)
store.set_status(run, "running")
store.record(run, checkpoint(1))
force = os.fsync

def halting(descriptor):
    force(descriptor)
    say("forced to disk")
    sys.stdin.readline()

os.fsync = halting
store.record(run, checkpoint(2))
"""
    with spawn(code, store.location, run) as child:
        for step in range(1, stage + 1):
            assert child.stdout.readline() == "forced to disk\n"
            if step < stage:
                child.stdin.write("\n")
                child.stdin.flush()
        assert store.run(run).status == "running"
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, yet still listed until its parent asks
        assert store.run(run).status == "crashed"
    assert store.run(run).status == "crashed"
    assert "ended while the run was running" in store.run(run).error
    assert store.checkpoints(run) == list(range(1, left + 1))
    assert same(store.load_checkpoint(run), checkpoint(left))
    store.claim(run)
    store.save_checkpoint(run, checkpoint(3))
    assert not [path for path in (store.folder(run) / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_run_killed_while_it_writes_checkpoints_all_the_time_loses_none_that_it_reported(store):
    run = new_run(store, checkpoints_kept=2)
    code = """
for iteration in range(1, 100_000):
    store.save_checkpoint(sys.argv[2], checkpoint(iteration, 100_000))
    say(iteration)
"""
    with spawn(code, store.location, run) as child:
        reported = [int(child.stdout.readline()) for _ in range(8)][-1]
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    loaded = store.load_checkpoint(run)
    assert loaded.iteration >= reported
    assert same(loaded, checkpoint(loaded.iteration, 100_000))
    for iteration in store.checkpoints(run):
        assert same(store.load_checkpoint(run, iteration), checkpoint(iteration, 100_000))


def test_a_full_disk_is_reported_and_earlier_events_stay(store):
    run = new_run(store)
    code = """
import resource
store.save_checkpoint(sys.argv[2], checkpoint(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, resource.RLIM_INFINITY))
try:
    store.save_checkpoint(sys.argv[2], checkpoint(2, 300_000))
except StoreError as error:
    say(error)
try:
    for written in range(100_000):
        store.record(sys.argv[2], IterationDone(written, {f"metric {index}": index / 7 for index in range(100)}, 1.0))
except StoreError as error:
    say(error)
    say(written)
"""
    with spawn(code, store.location, run) as child:
        checkpoint_error, database_error, written = child.stdout.read().splitlines()
    assert f"cannot write in {store.folder(run) / 'checkpoints'}" in checkpoint_error
    assert "free some space" in checkpoint_error
    assert f"the database of runs in {store.location} cannot be used" in database_error
    assert [row.iteration for row in store.events(run)] == list(range(int(written)))
    assert int(written) > 10
    assert list_checkpoints(store.folder(run) / "checkpoints") == [1]
    assert [path.name for path in (store.folder(run) / "checkpoints").iterdir()] == ["000001"]
    store.record(run, IterationDone(int(written), {}, 1.0))


def test_a_folder_that_cannot_be_used_is_named(tmp_path, store):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=f"cannot write in {tmp_path / 'file' / 'runs'}: .*choose another folder"):
        Store(tmp_path / "file" / "runs")
    run = new_run(store)
    (store.folder(run) / "images").rmdir()
    Path(store.folder(run) / "images").write_text("in the way")
    store.record(run, IterationDone(1, {"reward": 1.0}, 1.0))
    with pytest.raises(StoreError, match="cannot write in"):
        store.record(run, groups(2))
    assert [row.kind for row in store.events(run)] == ["IterationDone"]


OLD_COLUMNS = """
id VARCHAR(120) PRIMARY KEY, kind VARCHAR(40) NOT NULL, title TEXT NOT NULL, origin TEXT NOT NULL, command TEXT NOT NULL,
parent VARCHAR(120), config TEXT NOT NULL, status VARCHAR(20) NOT NULL, wanted VARCHAR(20) NOT NULL, error TEXT,
iteration INTEGER NOT NULL, iterations INTEGER, created DOUBLE NOT NULL, updated DOUBLE NOT NULL, host TEXT, pid INTEGER,
process_started DOUBLE
"""


def test_a_database_from_before_the_later_columns_opens_with_them_empty(tmp_path):
    with sqlite3.connect(tmp_path / "runs.db") as old:
        old.execute(f"CREATE TABLE runs ({OLD_COLUMNS})")
        names = "id, kind, title, origin, command, config, status, wanted, iteration, created, updated"
        values = "'old', 'train', 'Old', 'test', '', '{}', 'done', 'run', 3, 1.0, 2.0"
        old.execute(f"INSERT INTO runs ({names}) VALUES ({values})")
    with ThreadPoolExecutor(2) as pool:  # both find the columns missing; one adds them
        stores = list(pool.map(lambda _: Store(tmp_path), range(2)))
    for store in stores:
        (found,) = store.runs()
        assert (found.id, found.iteration, found.tags, found.note, found.branched) == ("old", 3, (), "", None)
    stores[0].annotate("old", tags=["kept"], note="older than its columns")
    assert stores[1].run("old").tags == ("kept",)


def test_people_rename_tag_and_describe_a_run(store):
    run = new_run(store)
    store.annotate(run, title="  Better name ", tags=["b", "a", "b", " "], note="why\nand how")
    found = store.run(run)
    assert (found.title, found.tags, found.note) == ("Better name", ("a", "b"), "why\nand how")
    store.annotate(run, note="")
    assert store.run(run).tags == ("a", "b")
    assert store.run(run).note == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"title": " "}, "needs a name"), ({"tags": ["x" * 41]}, "41 characters"), ({"title": "x" * 201}, "201")],
)
def test_what_people_write_about_a_run_has_limits(store, change, complaint):
    run = new_run(store)
    with pytest.raises(ValueError, match=complaint):
        store.annotate(run, **change)
    assert store.run(run).title == "Toy"


def test_a_deleted_run_is_hidden_says_so_and_comes_back(store):
    run, other = new_run(store), new_run(store)
    store.record(run, evaluated(0))
    store.delete(run)
    assert [found.id for found in store.runs()] == [other]
    assert [found.id for found in store.trash()] == [run]
    for ask in (store.run, store.claim, store.delete, lambda run: store.wish(run, "stop")):
        with pytest.raises(ValueError, match=rf"{run} was deleted on .* runs restore {run}"):
            ask(run)
    with pytest.raises(ValueError, match="unknown run"):
        store.run(run[:-1])
    store.restore(run)
    assert {found.id for found in store.runs()} == {run, other}
    assert len(store.events(run)) == 1
    with pytest.raises(ValueError, match=r"no run .* in the trash"):
        store.restore(run)


def test_a_run_that_somebody_drives_is_not_deleted(store):
    run = new_run(store)
    store.claim(run)
    store.set_status(run, "running")
    with pytest.raises(ValueError, match=f"{run} is running; stop it"):
        store.delete(run)
    store.set_status(run, "stopped")
    store.delete(run)


def test_purging_removes_only_what_has_long_been_in_the_trash(store):
    kept, fresh, old = (new_run(store) for _ in range(3))
    for run in (kept, fresh, old):
        store.record(run, evaluated(0))
        store.save_checkpoint(run, checkpoint(0))
    store.delete(fresh)
    store.delete(old)
    with store.writing() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == old).values(deleted=1.0))
    assert store.purge(older_than=3600) == [old]
    assert not (store.location / old).exists()
    assert store.events(old) == []
    assert (store.location / fresh / "images").exists()
    assert store.purge() == [fresh]
    assert [found.id for found in store.runs()] == [kept]
    assert store.checkpoints(kept) == [0]
    assert len(store.events(kept)) == 1
