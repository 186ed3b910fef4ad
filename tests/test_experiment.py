"""What a notebook says to the record, and what becomes of one that somebody opened by hand."""

import math
from pathlib import Path

import nbformat
import papermill
import pytest
from toy_notebooks import TRAINS, write_notebook
from toy_run import SMALL, toy_config, toy_images

from workbench.events import Started
from workbench.experiment import Experiment, Stopped, picture_table
from workbench.provenance import read_provenance
from workbench.store import Store

TINY = toy_config(2, **SMALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An experiment by hand, in a process without a notebook."""
    for name in ("WORKBENCH_RUN", "WORKBENCH_STORE", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    experiment = Experiment.here()
    yield experiment
    experiment.finish()
    experiment.store.close()


@pytest.fixture
def trained(here):
    here.train(TINY)
    return here


def test_opened_by_hand_a_notebook_is_a_new_run_that_this_process_drives(here):
    run = here.store.run(here.run)
    assert (run.kind, run.origin, run.status, run.config) == (
        "notebook",
        "notebook",
        "running",
        {"notebook": "notebook", "parameters": {}},
    )
    assert run.pid is not None
    assert read_provenance(here.store, run.id)
    here.finish()
    assert here.store.run(run.id).status == "done"


def test_numbers_are_reported_by_name_and_what_is_none_is_refused(here):
    here.report({"error": 1, "share": 0.5})
    here.report({"error": 0.5}, iteration=7)
    assert here.store.metrics(here.run) == {"error": [(0, 1.0), (7, 0.5)], "share": [(0, 0.5)]}
    with pytest.raises(ValueError, match="share = 'much' is no number"):
        here.report({"share": "much"})
    with pytest.raises(ValueError, match="share = nan is not finite"):
        here.report({"share": math.nan})


def test_what_needs_a_training_says_so_before_there_is_one(here):
    with pytest.raises(ValueError, match="has not trained yet"):
        here.evaluate()
    with pytest.raises(ValueError, match="has recorded no evaluation"):
        here.before_and_after()
    with pytest.raises(ValueError, match="unknown figure 'loss'; choose from: reward"):
        here.figure("loss")
    with pytest.raises(ValueError, match=r"no run in .* has aligned a model"):
        here.other()
    with pytest.raises(ValueError, match=f"{here.run} has not aligned"):
        here.other(here.run)


def test_a_training_is_shown_with_the_figures_of_the_page_and_measured_as_a_run_measures(trained, capsys):
    (curve, *_) = [trace for trace in trained.figure("reward").data if trace.name == "training"]
    assert [float(value) for value in curve.x] == [1, 2]
    table = trained.before_and_after(3).data
    assert table.count("<img") == 6
    recorded = trained.store.events(trained.run, kinds=("Evaluated",))
    tuned, base = trained.evaluate((4,), 8), trained.evaluate((4,), 8, base=True)
    for found, row in ((base, recorded[0]), (tuned, recorded[-1])):
        measured = {name: each.value for name, each in found.measures[4].items()}
        assert measured == pytest.approx({name: each["value"] for name, each in row.data["measures"]["4"].items()}, abs=1e-6)
    assert trained.evaluate((4,), 8, seed=99).seeds[0] == 99
    trained.report({"final": 1.0})
    assert trained.store.metrics(trained.run)["final"] == [(2, 1.0)]


def test_a_second_training_by_hand_is_another_run(trained):
    first = trained.run
    trained.train(TINY.model_copy(update={"iterations": 1}))
    assert trained.run != first
    assert trained.store.run(first).status == "done"
    assert (trained.store.run(trained.run).iteration, len(trained.history.metric("reward"))) == (1, 1)
    assert trained.other().run == first


def test_a_watched_notebook_trains_once(trained):
    trained.by_hand = False
    with pytest.raises(ValueError, match="this run has trained already"):
        trained.train(TINY)


def test_a_training_that_is_stopped_ends_the_notebook(here, monkeypatch):
    record = here.store.record

    def stopping(run, event):
        if type(event).__name__ == "GroupsScored":
            here.store.wish(run, "stop")
        return record(run, event)

    monkeypatch.setattr(here.store, "record", stopping)
    with pytest.raises(Stopped, match="stopped after iteration 1 of 5"):
        here.train(TINY.model_copy(update={"iterations": 5}))
    assert here.store.checkpoints(here.run)[-1] == 1
    here.finish()
    assert here.store.run(here.run).status == "stopped"


def test_pictures_are_shown_in_rows_with_their_captions():
    shown = picture_table({"before": toy_images(2, 0), "<after>": toy_images(2, 1)}, ["a & b", "c", "d"]).data
    assert shown.count("<img") == 4
    assert "&lt;after&gt;" in shown
    assert "a &amp; b" in shown
    assert "<td>d</td>" not in shown


def test_a_notebook_in_jupyterlab_is_recorded_with_its_parameters_and_shows_its_training_live(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/toy.ipynb")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    for name in ("WORKBENCH_RUN", "WORKBENCH_STORE"):
        monkeypatch.delenv(name, raising=False)
    path = write_notebook(tmp_path / "notebooks", "toy", TRAINS[0].replace("= 3", "= 2"), *TRAINS[1:])
    papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), kernel_name="python3", progress_bar=False)
    store = Store(tmp_path / "runs")
    (run,) = store.runs()
    assert (run.origin, run.status, run.title, run.iteration) == ("notebook", "done", "A toy", 2)
    assert run.config["parameters"] == {"iterations": 2, "every": 1}
    shown = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", ())]
    data = [each["data"] for each in shown if "data" in each]
    assert any("iteration 2 of 2" in each.get("text/html", "") for each in data)
    assert any("application/vnd.plotly.v1+json" in each for each in data)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ZeroDivisionError("nothing"), "failed", "ZeroDivisionError: nothing"),
        (FloatingPointError("the loss is nan"), "paused", "the loss is nan"),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
@pytest.mark.parametrize("where", ["in a step", "beside it"])
def test_a_training_by_hand_that_ends_early_is_the_end_of_its_run(here, error, status, said, where):
    def steps(resume, controls):
        yield Started(0, {"iterations": 2})
        if where == "in a step":
            raise error

    def show(event):
        if where == "beside it":
            raise error

    with pytest.raises(type(error)):
        here.drive(steps, show=show)
    here.finish()
    run = here.store.run(here.run)
    assert (run.status, run.error) == ((status, said) if where == "in a step" else ("stopped", None))
    assert run.over
    assert (here.store.folder(run.id) / "error.txt").exists() == (said is not None and where == "in a step")


def test_a_notebook_that_is_begun_again_ends_the_run_before(here):
    again = Experiment.here()
    assert [here.store.run(each.run).status for each in (here, again)] == ["done", "running"]
    again.finish()
