"""Runs that repeat others, from the record alone, elsewhere and later, with what was changed on the way; and how runs differ."""

import importlib
import json
import math
import os
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sqlalchemy import update
from toy_notebooks import PARAMETERS, write_notebook
from toy_run import SMALL, toy_config, toy_events

from workbench.__main__ import main
from workbench.branching import branched_config
from workbench.events import GroupsScored, Started
from workbench.exact_json import from_json, to_json
from workbench.experiments.as_notebook import write_notebook as write_run
from workbench.experiments.comparison import Comparison, Place, compare, differing_tensors
from workbench.experiments.differences import difference
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.execute import execute, loop
from workbench.experiments.executors import Local
from workbench.experiments.notebooks import VARIABLE
from workbench.experiments.queue import Queue
from workbench.experiments.reproduce import AT_COMMIT, reproduce, since, worktree
from workbench.experiments.work import Work, submit
from workbench.export import read_archive, write_archive
from workbench.jobs import Job, Worker
from workbench.provenance import FILE, code_of, read_provenance
from workbench.replay import read_replay
from workbench.store import Store
from workbench.studio import Studio
from workbench.tables import EVENTS

ROOT = Path(__file__).parent.parent
COMMAND = importlib.import_module("workbench.cli.reproduce")  # the package has its function under this name
CONFIG = toy_config(3, **SMALL, **{"evaluation.every": 2, "record.checkpoint_every": 2, "record.groups_shown": 1})
TINY = {"name": "preference", "steps": 6, "pairs": 8, "held_out_pairs": 16, "report_every": 2, "checkpoint_every": 4}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def driven(store, run, *, at=None, wish="", changes=None):
    """Drive a run to its end; in iteration `at` something is asked of it."""
    found = store.run(run)
    job = Job(store, run, loop(found.kind, found.config))
    while not job.over:
        event = job.advance()
        if isinstance(event, GroupsScored) and event.iteration == at:
            store.wish(run, wish, changes)
    return store.run(run)


def trained(store, config=CONFIG, **asked):
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="test")
    return driven(store, run, **asked).id


def in_the_app(store, begin):
    """A run that the app begins and drives to its end."""
    worker = Worker()
    run = begin(Studio(store, worker))
    while not store.run(run).over:
        worker.call(lambda: None).result(timeout=120)
    worker.close(timeout=10)
    return run


def again(store, run):
    """The run that repeats this one, driven here."""
    new = reproduce(store, run)
    execute(store, new)
    Queue(store).settle()
    return new


def recorded(run, iterations=4):
    """A finished run of made-up events."""
    store, config = run, toy_config(iterations, **{"grpo.groups": 2})
    made = store.create("train", config.model_dump(mode="json"), title="toy", origin="test")
    job = Job(store, made, lambda resume, controls: toy_events(config))
    while not job.over:
        job.advance()
    assert store.run(made).status == "done"
    return made


def edit(store, run, kind, iteration, change):
    """Change what was recorded of an event."""
    (row,) = (row for row in store.events(run, kinds=(kind,)) if row.iteration == iteration)
    change(row.data)
    with store.writing() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.id == row.id).values(data=to_json(row.data)))


# Reproducing


def test_a_run_reproduced_from_an_archive_in_another_store_and_process_is_exact(store, tmp_path):
    run = trained(store)
    other = Store(tmp_path / "elsewhere" / "runs")
    copy = read_archive(other, write_archive(store, run))
    assert len(read_provenance(other, copy)) == 1
    command = [sys.executable, "-m", "workbench", "reproduce", copy, "--runs", str(other.location)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert made.returncode == 0, made.stderr
    told = from_json(made.stdout.splitlines()[-1])
    assert (told["run"], told["verdict"], told["first"], told["status"]) == (copy, "exact", None, "done")
    assert (
        told["compared"]["events"] == 3 * 2 + 3 + 1 + 3 + 1 + 1
    )  # groups and updates, evaluations, preflight, checkpoints, ends
    assert told["compared"]["pictures"] > 0
    assert told["compared"]["tensors"] > 100
    new = other.run(told["reproduction"])
    assert (new.parent, new.tags, new.origin, new.config) == (
        copy,
        ("reproduction",),
        f"reproduction of {copy}",
        store.run(run).config,
    )
    assert new.pid is None
    assert Queue(other).entries() == []
    crossed = compare(other, copy, copy)
    assert crossed.verdict == "exact"
    other.close()


def test_what_was_changed_on_the_way_is_changed_again_at_the_same_iterations(store):
    run = trained(store, at=1, wish="change", changes={"optimizer.learning_rate": 1e-3, "sampler.noise": 0.2})
    assert [row.iteration for row in store.events(run, kinds=("Changed",))] == [1]
    found = compare(store, run, again(store, run))
    assert (found.verdict, found.notes) == ("exact", ())
    plain = compare(store, run, trained(store))
    assert plain.verdict == "different"
    assert plain.first is not None
    assert (plain.first.kind, plain.first.iteration) == ("Changed", 1)


def test_a_run_that_was_stopped_stops_again_and_one_that_went_on_does_so_without_a_break(store):
    run = trained(store, at=2, wish="stop")
    assert (store.run(run).status, store.run(run).iteration) == ("stopped", 2)
    new = again(store, run)
    assert (store.run(new).status, store.run(new).iteration) == ("stopped", 2)
    found = compare(store, run, new)
    assert found.verdict == "exact"
    assert found.notes == (f"run {run} is stopped: compared up to iteration 2",)
    assert found.tensors > 0
    job = Job(store, run, loop("train", store.run(run).config), resume=store.load_checkpoint(run))
    while not job.over:
        job.advance()
    assert [driver.iteration for driver in read_provenance(store, run)] == [0, 2]
    assert compare(store, run, again(store, run)).verdict == "exact"
    assert compare(store, run, new).verdict == "different"  # it ends where the other goes on


def test_a_run_made_in_the_app_has_the_threads_of_then_when_it_is_repeated_elsewhere(store, monkeypatch):
    before, brief = (
        torch.get_num_threads(),
        toy_config(1, **SMALL | {"grpo.group_size": 2, "rollout.steps": 2, "evaluation.steps": (2,)}),
    )
    try:
        with monkeypatch.context() as machine:
            machine.setattr(os, "cpu_count", lambda: 3)  # of which the app leaves one to the page
            run = in_the_app(store, lambda studio: studio.start(brief))
        torch.set_num_threads(1)
        new = again(store, run)
        assert [read_provenance(store, each)[-1].machine.threads for each in (run, new)] == [2, 2]
        assert compare(store, run, new).verdict == "exact"
        torch.set_num_threads(1)
        alone = trained(store, brief)
    finally:
        torch.set_num_threads(before)
    apart = compare(store, run, alone)
    assert {each.name for each in apart.environment} - {"cores"} == {"threads"}
    assert read_replay(store.folder(new) / "replay.json").threads == ((0, 2),)


def test_a_pretraining_and_a_branch_are_reproduced(store):
    run = store.create("pretrain", TINY, title="scorer", origin="test")
    driven(store, run)
    found = compare(store, run, again(store, run))
    assert found.verdict == "exact"
    assert found.tensors > 4
    parent = trained(store)
    config = branched_config(CONFIG, 2, {"sampler.noise": 0.4})
    branch = in_the_app(store, lambda studio: studio.branch(parent, 2, config))
    new = again(store, branch)
    assert [row.iteration for row in store.events(new, kinds=("IterationDone",))] == [3]
    assert compare(store, branch, new).verdict == "exact"
    assert compare(store, new, again(store, new)).verdict == "exact"  # it began where the branch did
    assert difference(store, branch, new).config == ()
    assert f"begins_from: str = '{parent}'" in write_run(store, new).read_text()
    shutil.rmtree(store.folder(parent) / "checkpoints" / "000002")
    with pytest.raises(
        ValueError, match=rf"{branch} began from the checkpoint after iteration 2 of run {parent}, which is.* missing"
    ):
        reproduce(store, branch)
    store.delete(parent)
    with pytest.raises(ValueError, match=rf"of run {parent}, which is missing: run {parent} was deleted"):
        reproduce(store, branch)


def test_a_notebooks_run_is_repeated_as_it_was_though_the_notebook_has_changed(store, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "notebooks"))
    write_notebook(tmp_path / "notebooks", "toy", PARAMETERS, "print(x, words)", "x / 7")
    work = Work(kind="notebook", config={"notebook": "toy", "parameters": {"x": 3}})
    run = submit(store, work, origin="test")
    assert execute(store, run).error is None
    Queue(store).settle()
    write_notebook(tmp_path / "notebooks", "toy", PARAMETERS, "print('something else')")
    new = again(store, run)
    found = compare(store, run, new)
    assert (found.verdict, found.notes) == ("exact", ())
    assert found.events > 3  # its cells
    assert store.run(new).config == store.run(run).config
    assert len(read_provenance(store, run)) == 1
    output = store.folder(new) / "notebook.ipynb"
    output.write_text(output.read_text().replace("0.428", "0.429"))
    found = compare(store, run, new)
    assert (found.verdict, found.first.kind) == ("different", "output")
    by_hand = store.create("notebook", store.run(run).config, title="by hand", origin="notebook")
    store.set_status(by_hand, "done")
    with pytest.raises(ValueError, match="run by hand, so its cells were not recorded"):
        reproduce(store, by_hand)


def test_what_cannot_be_reproduced_is_refused_and_leaves_nothing(store):
    config = CONFIG.model_dump(mode="json")
    waiting = submit(store, Work(kind="train", config=config), origin="test")
    sweep = store.create("sweep", {}, title="sweep", origin="test")
    store.set_status(sweep, "done")
    with pytest.raises(ValueError, match="is queued; it can be reproduced once it has ended"):
        reproduce(store, waiting)
    with pytest.raises(ValueError, match="of kind 'sweep', which computes nothing itself"):
        reproduce(store, sweep)
    run = recorded(store)
    (store.folder(run) / FILE).write_text('{"format": "flow-map-workbench provenance", "version": 1, "drivers": [{"at": 1}]}')
    with pytest.raises(
        ValueError, match=r"provenance\.json is damaged: an entry is not as this program writes it.*remove the file"
    ):
        reproduce(store, run)
    (store.folder(run) / FILE).unlink()
    assert since(store, run) is None
    assert len(store.runs()) == 3
    assert read_replay(store.folder(reproduce(store, run)) / "replay.json").threads == ()


def test_a_damaged_plan_fails_the_run_and_says_so(store):
    run = recorded(store)
    new = reproduce(store, run)
    (store.folder(new) / "replay.json").write_text("{}")
    assert execute(store, new).error.startswith(f"ValueError: {store.folder(new)}/replay.json is damaged")
    assert len(read_provenance(store, new)) == 1  # also of a run that cannot begin
    found = compare(store, run, new)
    assert (found.verdict, found.first[:3]) == ("different", ("Started", 0, ""))


# Comparing


def test_a_changed_seed_is_different_and_the_first_event_is_named(store):
    found = compare(store, trained(store), trained(store, toy_config(3, **SMALL, **{"evaluation.every": 2, "seed": 1})))
    assert found.verdict == "different"
    assert (found.first.kind, found.first.iteration) == ("PreflightDone", 0)  # before, nothing was drawn by the run's own seed
    assert found.sentence.startswith("different: first at PreflightDone of iteration 0, checks")


def test_numbers_within_the_tolerance_are_close_and_beyond_it_different(store):
    one, other = recorded(store), recorded(store)
    assert compare(store, one, other).verdict == "exact"
    edit(store, other, "IterationDone", 3, lambda data: data["metrics"].update(kl=data["metrics"]["kl"] * (1 + 1e-5)))
    found = compare(store, one, other)
    assert found.verdict == "close"
    assert found.first[:3] == ("IterationDone", 3, "metrics.kl")
    assert found.largest == pytest.approx(1e-5, rel=1e-3)
    assert compare(store, one, other, tolerance=1e-7).verdict == "different"
    edit(store, other, "IterationDone", 1, lambda data: data["metrics"].update(loss=1e-8))
    edit(store, one, "IterationDone", 1, lambda data: data["metrics"].update(loss=-2e-8))  # what is left of a sum that cancels
    assert compare(store, one, other).verdict == "close"
    edit(store, other, "IterationDone", 2, lambda data: data["metrics"].pop("kl"))
    found = compare(store, one, other)
    assert (found.verdict, found.beyond[:3]) == ("different", ("IterationDone", 2, "metrics.kl"))
    with pytest.raises(ValueError, match="tolerance"):
        compare(store, one, other, tolerance=-1.0)


def test_what_may_differ_is_left_out(store):
    one, other = recorded(store), recorded(store)
    edit(store, other, "Started", 0, lambda data: data["facts"].update(device="cuda:3"))
    edit(store, other, "IterationDone", 1, lambda data: data["metrics"].update(images_per_second=1.0, rollout_seconds=9.0))
    edit(store, other, "IterationDone", 1, lambda data: data.update(seconds=100.0))
    edit(store, one, "IterationDone", 1, lambda data: data["metrics"].update(rollout_seconds=8.0))
    assert compare(store, one, other).verdict == "exact"


def test_pictures_count_by_their_pixels(store):
    from workbench.pictures import read_sprite, write_sprite

    one, other = recorded(store), recorded(store)

    def repainted(levels):
        def paint(data):
            layout = data["preview"]
            images = read_sprite(store.image_path(other, layout["sprite"]), layout)
            images[3, 0, 5, 5] = 18 + levels
            data["preview"] = write_sprite(store.folder(other) / "images", "painted", images, layout["columns"])

        return paint

    edit(store, other, "Evaluated", 0, repainted(1))
    assert compare(store, one, other).verdict == "close"
    edit(store, other, "Evaluated", 0, repainted(90))
    found = compare(store, one, other)
    assert found.verdict == "different"
    assert found.beyond[:3] == ("Evaluated", 0, "preview, picture 3")


def test_final_tensors_that_are_gone_or_damaged_are_told(store):
    one, other = trained(store), trained(store)
    (file,) = (store.folder(other) / "checkpoints" / "000003").glob("policy.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (note,) = compare(store, one, other).notes
    assert "policy.safetensors is damaged" in note
    shutil.rmtree(store.folder(other) / "checkpoints" / "000003")
    (note,) = compare(store, one, other).notes
    assert note == f"the final tensors were not compared: of checkpoints run {other} has none after iteration 3, but 0, 2"
    shutil.rmtree(store.folder(one) / "checkpoints")
    (note,) = compare(store, one, other).notes
    assert "has no checkpoint any more" in note


def test_tensors_count_by_their_largest_element():
    one, other = (torch.tensor([1.0, 1e-9]), torch.tensor([1.0, 2e-9]))
    (found,) = differing_tensors(one, other)
    assert found[0] == "[1]"
    assert found[3] == pytest.approx(1e-9)
    assert list(differing_tensors(one, one.clone())) == []
    assert [found[3] for found in differing_tensors(torch.tensor(0.0), torch.tensor(-0.0))] == [0.0]
    assert [found[3] for found in differing_tensors(torch.tensor([1e-9]), torch.tensor([2e-9]))] == [pytest.approx(0.5)]
    for wrong in (None, torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.tensor([math.nan, 0.0])):
        assert [found[3] for found in differing_tensors(one, wrong)] == [math.inf]


def test_two_runs_that_did_nothing_are_not_called_the_same(store):
    config = CONFIG.model_dump(mode="json")
    begun, unbegun, other = (store.create("train", config, title="toy", origin="test") for _ in range(3))
    store.record(begun, Started(0, {}))
    for run in (begun, unbegun, other):
        store.set_status(run, "failed", "the device is gone")
    found = compare(store, begun, unbegun)
    assert (found.verdict, found.first) == ("different", ("Started", 0, "", "recorded", "absent"))
    found = compare(store, unbegun, other)
    assert (found.verdict, found.sentence) == ("nothing to compare", "nothing to compare: neither run has recorded anything")
    assert compare(store, begun, begun).verdict == "exact"


# What differs


def test_two_runs_differ_in_what_they_were_set_to(store):
    one, other = recorded(store, 4), recorded(store, 3)
    found = difference(store, one, other)
    assert [tuple(each) for each in found.config] == [("iterations", 4, 3)]
    assert list(found.groups) == ["config"]
    assert difference(store, one, recorded(store, 4)).nothing


def test_two_runs_differ_in_what_they_were_made_with(store):
    one, other = recorded(store), recorded(store)
    path = store.folder(other) / FILE
    told = json.loads(path.read_text())
    driver = told["drivers"][0]
    driver["packages"] |= {"torch": "1.0", "leftpad": "9"}
    driver["machine"] |= {"devices": ["A Fast GPU"]}
    driver["prompts"]["train"]["sha256"] = "f" * 64
    driver["weights"][0]["sha256"] = "0" * 64
    driver["code"] |= {"commit": "0" * 40, "branch": "elsewhere"}
    path.write_text(json.dumps(told))
    found = difference(store, one, other)
    assert [each.name for each in found.environment] == ["devices"]
    assert {each.name: each.other for each in found.packages} == {"torch": "1.0", "leftpad": "9"}
    assert [each.name for each in found.prompts] == ["train"]
    assert [each.name for each in found.weights] == ["shapes"]
    assert "commit" in {each.name for each in found.code}
    assert found.diffstat == ""
    assert any("not both in this repository" in note for note in found.notes)
    assert [each.name for each in compare(store, one, other).environment][-1] == "shapes"
    path.unlink()
    assert difference(store, one, other).notes == (f"run {other} does not say what it was made with",)


def test_the_command_tells_what_differs(store, capsys):
    one, other = recorded(store, 4), recorded(store, 3)
    where = ["--runs", str(store.location)]
    assert main(["diff", one, other, "--json", *where]) == 0
    told = from_json(capsys.readouterr().out)
    assert (told["same"], told["config"]) == (False, [{"name": "iterations", "one": 4, "other": 3}])
    main(["diff", one, other, *where])
    shown = capsys.readouterr().out
    assert "Settings" in shown
    assert "iterations" in shown
    main(["diff", one, one, *where])
    assert "nothing differs" in capsys.readouterr().out


# The code of then


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit, a change that is not committed, and a file that git does not know."""
    folder = tmp_path / "repository"
    (folder / "workbench").mkdir(parents=True)
    (folder / "workbench" / "__init__.py").write_text("VERSION = 1\n")
    for arguments in (("init", "-q", "-b", "trunk"), ("add", "."), ("commit", "-q", "-m", "Begin")):
        identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    (folder / "workbench" / "__init__.py").write_text("VERSION = 2\n")
    (folder / "notes.txt").write_text("mine")
    return folder


def made_at(store, run, code):
    """Let the run's record say that it was made by this code."""
    path = store.folder(run) / FILE
    told = json.loads(path.read_text())
    (store.folder(run) / "changes.patch").write_bytes(code.changes)
    told["drivers"][0]["code"] = code.model_dump(mode="json") | {"patch": "changes.patch"}
    path.write_text(json.dumps(told))


def test_the_code_of_then_comes_back_with_its_uncommitted_changes(store, repository):
    run, code = recorded(store), code_of(repository)
    assert (code.branch, code.dirty, list(code.untracked), code.note) == ("trunk", True, ["notes.txt"], "")
    made_at(store, run, code)
    (repository / "workbench" / "__init__.py").write_text("VERSION = 3\n")
    with worktree(store, run, repository) as tree:
        assert (tree / "workbench" / "__init__.py").read_text() == "VERSION = 2\n"
        assert not (tree / "notes.txt").exists()
    assert not tree.exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1
    with worktree(store, run, repository, stays=lambda: True) as tree:
        pass
    assert (tree / "workbench" / "__init__.py").read_text() == "VERSION = 2\n"


def test_code_that_cannot_come_back_is_refused_with_the_reason(store, repository, tmp_path):
    run, code = recorded(store), code_of(repository)
    made_at(store, run, code)
    (store.folder(run) / "changes.patch").write_bytes(code.changes + b"\n")
    with pytest.raises(ValueError, match=r"changes\.patch is damaged"), worktree(store, run, repository):
        pass
    (store.folder(run) / "changes.patch").unlink()
    with pytest.raises(ValueError, match=r"changes\.patch is missing"), worktree(store, run, repository):
        pass
    made_at(store, run, code.model_copy(update={"commit": "0" * 40}))
    with (
        pytest.raises(ValueError, match="commit 0000000000000000000000000000000000000000 cannot be checked out"),
        worktree(store, run, repository),
    ):
        pass
    made_at(store, run, code.model_copy(update={"commit": None, "note": "there is no git here"}))
    with pytest.raises(ValueError, match="does not say of which commit it was made: there is no git here"), worktree(store, run):
        pass


def test_a_process_can_run_the_package_from_another_folder(store, tmp_path):
    (tmp_path / "then" / "workbench").mkdir(parents=True)
    (tmp_path / "then" / "workbench" / "__init__.py").write_text("")
    (tmp_path / "then" / "workbench" / "__main__.py").write_text(
        "import sys; sys.exit(f'the code of then, given {sys.argv[1:3]}')"
    )
    run = reproduce(store, recorded(store))
    started = Local(tmp_path / "then").start(store, run, None)
    while (said := started.ended()) is None:
        select.select((), (), (), 0.05)
    assert said == f"the code of then, given ['execute', '{run}']"


def test_what_the_command_says_of_two_runs_is_shown_as_it_is(store, monkeypatch, capsys):
    run = recorded(store)
    odd = Comparison(run, run, "different", 0.1, Place("output", 1, "", "[/b]", "b"), notes=("[/b] is missing",))
    monkeypatch.setattr("workbench.experiments.comparison.compare", lambda *_: odd)
    monkeypatch.setattr(COMMAND, "_follow", lambda store, new, dispatcher: store.run(new))
    assert main(["reproduce", run, "--runs", str(store.location)]) == 1
    shown = capsys.readouterr().out
    assert "[/b] against b" in shown
    assert "[/b] is missing" in shown


def test_the_code_of_then_stays_where_a_run_is_left_to_itself(store, repository, monkeypatch, capsys):
    run = recorded(store)
    made_at(store, run, code_of(repository))
    trees = []

    @contextmanager
    def at(record, found, **named):
        with worktree(record, found, repository, **named) as tree:
            trees.append(tree)
            yield tree

    def interrupted(record, new, dispatcher):
        assert dispatcher.queue.entry(new).lane == AT_COMMIT
        assert Dispatcher(record).queue.take(["local"], 1) is None  # nobody runs it with the code of now
        record.set_status(new, "running")
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.experiments.reproduce.worktree", at)
    monkeypatch.setattr(COMMAND, "_follow", interrupted)
    assert main(["reproduce", run, "--at-commit", "--runs", str(store.location)]) != 0
    assert (trees[0] / "workbench" / "__init__.py").read_text() == "VERSION = 2\n"
    assert f"git worktree remove --force {trees[0]}" in capsys.readouterr().err
