"""The command line as a person or a script meets it: exit statuses, one-line errors, JSON, and runs controlled from outside."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from workbench.__main__ import main
from workbench.benchmarks import BENCHMARKS
from workbench.cli import COMMANDS
from workbench.store import Store

ROOT = Path(__file__).parent.parent
TINY = ["grpo.groups=2", "grpo.group_size=4", "evaluation.images=16", "evaluation.final_images=16", "evaluation.steps=[4]"]
TINY += ["record.checkpoint_every=5", "record.groups_shown=1", "compute.threads=1"]
SETTINGS = [word for change in TINY for word in ("--set", change)]
CM = ["--set", "sampler=ddim_mix", "--set", "rollout.completion=jump"]
ITERATIONS = 30


def bench_toy() -> dict[str, object]:
    return {"speed": 2.5, "parts": {"first": 1}}


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process: exit status, stdout and stderr."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def launch(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Wait for something that a living process brings about; the test's own time limit ends it."""
    while not reached():
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        assert reached(), f"the process ended with {process.returncode}: {process.stderr.read()}"


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("record")
    status = main(["train", "--iterations", str(ITERATIONS), "--title", "007", *SETTINGS, "--runs", str(folder), "--json"])
    assert status == 0
    return folder


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Store]]:
    """A run in another process that would go on for minutes, past its first iteration."""
    process = launch("train", "--iterations", "100000", *SETTINGS, "--runs", tmp_path)
    until(process, lambda: (tmp_path / "runs.db").exists())
    store = Store(tmp_path)
    until(process, lambda: bool(store.runs()) and store.run("latest").iteration >= 1)
    yield process, store
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_runs_and_store(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, name, "--help")
    assert status == 0
    assert all(option in out for option in ("--json", "--runs", "--store"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dance"], ["dance", "train", "control"]),
        (["train", "--presett", "shapes"], ["--presett"]),
        (["train", "--preset", "shape"], ["'shape'", "shapes_lora"]),
        (["train", "--set", "grpo.group_sizes=8"], ["grpo.group_sizes", "group_size"]),
        (["train", "--set", "grpo.group_size"], ["KEY=VALUE", "grpo.group_size"]),
        (["train", "--set", "grpo.group_size=1"], ["grpo.group_size", "1", "2"]),
        (["train", "--set", "grpo.group_size=7"], ["even", "7"]),
        (["train", "--set", "sampler.name=gama"], ["'gama'", "asfmc", "flow_sde"]),
        (["train", "--set", "sampler.name=flow_sde", "--set", "sampler.anchor=1"], ["sampler.anchor", "noise"]),
        (["train", "--set", "rewards.beauty=1"], ["'beauty'", "shapes_exact"]),
        (["train", "--iterations", "some"], ["iterations", "'some'"]),
        (["train", "--seed", "-1"], ["seed", "-1", "0"]),
        (["train", "--resume", "nobody"], ["'nobody'"]),
        (["train", "--resume", "latest", "--set", "seed=1"], ["--resume", "--set"]),
        (["doctor", "--memory", "24"], ["--memory", "--preset"]),
        (["doctor", "--preset", "flux", "--set", "model.source=nobody/nothing"], ["hf download nobody/nothing"]),
        (["train", "--store", "nonsense"], ["URL", "sqlite:///"]),
        (["sample", "--prompt", "a purple circle"], ["'purple'", "vocabulary", "triangle"]),
        (["sample", "--prompt", "a red circle", "--sampler", "gama"], ["'gama'", "asfmc"]),
        (["sample", "--prompt", "a red circle", "--set", "model=shapes_cm", *CM, "--sampler", "cps"], ["'cps'", "ddim_mix"]),
        (["sample", "--prompt", "a red circle", "--sampler", "asfmc", "--sampler-set", "noise=3"], ["noise = '3'", "1"]),
        (["sample", "--prompt", "a red circle", "--sampler", "ode", "--sampler-set", "noise=1"], ["noise"]),
        (["sample", "--prompt", "a red circle", "--sampler-set", "noise"], ["--sampler-set", "KEY=VALUE"]),
        (["sample", "--prompt", "a red circle", "--out", "x.jpg"], ["x.jpg", ".png"]),
        (["sample"], ["prompt"]),
        (["evaluate", "--steps", "4,no"], ["--steps", "4,no"]),
        (["evaluate", "--checkpoint", "3"], ["--checkpoint", "--run"]),
        (["sample", "--prompt", "a circle", "--run", "latest", "--set", "title=x"], ["--run", "leave out --set"]),
        (["pretrain", "faces"], ["'faces'", "shapes"]),
        (["pretrain", "--set", "speed=3"], ["'speed'", "batch"]),
        (["pretrain", "--set", "batch=1"], ["batch = 1", "8"]),
        (["control", "latest", "dance"], ["'dance'", "pause", "stop"]),
        (["control", "nobody", "stop"], ["'nobody'"]),
        (["bench", "speed"], ["'speed'", "align"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments_are_one_clear_line_and_status_2(
    arguments: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if arguments == ["dance"] else ["--runs", tmp_path / "runs"]
    status, out, err = ask(capsys, *arguments, *where)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in told), err


def test_several_mistakes_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = ask(capsys, "train", "--set", "grpo.group_size=1", "--set", "seed=-3", "--runs", tmp_path)
    assert status == 2
    assert err.count("error: ") == err.count("\n") == 2
    assert not list(tmp_path.glob("2*")), "a run was created"


def test_a_folder_that_cannot_be_written_is_an_error_and_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status, out, err = ask(capsys, "train", "--iterations", "1", "--runs", tmp_path / "file")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "file") in err


def test_training_ends_with_a_summary_and_is_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "runs", "--runs", runs, "--json")
    (run,) = json.loads(out)
    assert status == 0
    assert run["title"] == "007"
    assert (run["status"], run["iteration"], run["iterations"], run["origin"]) == ("done", ITERATIONS, ITERATIONS, "command line")
    assert len(Store(runs).metrics(run["id"])["reward"]) == ITERATIONS
    status, out, _ = ask(capsys, "runs", "--runs", runs)
    assert status == 0
    assert run["id"] in out


def test_the_summary_compares_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ask(capsys, "train", "--iterations", "1", *SETTINGS, "--runs", tmp_path)
    summary = last_line(out)
    assert status == 0
    assert (summary["status"], summary["iteration"]) == ("done", 1)
    assert Path(summary["directory"], "config.json").is_file()
    assert summary["held_out"]["before"]["4"].keys() == summary["held_out"]["after"]["4"].keys() >= {"shapes_exact"}
    assert "iteration 1/1" in err


def test_a_finished_run_is_neither_resumed_nor_controlled(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["train", "--resume", "latest"], ["control", "latest", "pause"]):
        status, out, err = ask(capsys, *arguments, "--runs", runs)
        assert (status, out) == (2, "")
        assert "done" in err


def test_an_image_depends_on_its_seed_and_not_on_its_batch(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, policy = ["--prompt", "two blue squares"], ["--run", "latest", "--runs", runs, "--json"]
    status, out, _ = ask(capsys, "sample", *prompt, "--count", "4", "--out", tmp_path / "four.png", *policy)
    assert status == 0
    ask(
        capsys,
        "sample",
        "--prompt",
        "a red circle",
        *prompt,
        "--seed",
        "3",
        "--count",
        "1",
        "--out",
        tmp_path / "one.png",
        *policy,
    )
    four, one = (Image.open(tmp_path / name) for name in ("four.png", "one.png"))
    side = one.width
    assert one.crop((0, side, side, 2 * side)).tobytes() == four.crop((3 * side, 0, 4 * side, side)).tobytes()
    made = json.loads(four.info["workbench"])
    assert json.loads(out) == {"out": str(tmp_path / "four.png"), **made}
    assert (made["prompts"], made["seeds"], made["steps"]) == (["two blue squares"], [0, 1, 2, 3], 4)
    assert (made["iteration"], made["run"]) == (ITERATIONS, Store(runs).run("latest").id)


def test_an_image_is_drawn_as_evaluations_draw_it_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--set", "model=shapes_cm", *CM, "--set", "evaluation.sampling_steps=3"]
    ask_for = ["sample", "--prompt", "a red circle", "--count", "1", *model, "--out", tmp_path / "one.png", "--runs", tmp_path]
    status, out, _ = ask(capsys, *ask_for, "--json")
    made = json.loads(out)
    assert (status, made["steps"], made["sampler"]) == (0, 3, {"name": "asfmc_endpoint", "noise": 1.0})
    _, out, _ = ask(capsys, *ask_for, "--steps", "2", "--sampler", "ode", "--json")
    assert (json.loads(out)["steps"], json.loads(out)["sampler"]) == (2, {"name": "ode"})
    _, out, _ = ask(capsys, *ask_for, "--sampler", "ddim_mix", "--sampler-set", "noise=0.25", "--json")
    assert json.loads(out)["sampler"] == {"name": "ddim_mix", "noise": 0.25}


def test_evaluation_reports_intervals_for_each_number_of_steps(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--run", "latest", "--images", "16", "--steps", "1,4", "--runs", runs]
    status, out, _ = ask(capsys, *arguments, "--json")
    found = json.loads(out)
    assert status == 0
    assert set(found["measures"]) == {"1", "4"}
    exact = found["measures"]["4"]["shapes_exact"]
    assert exact["low"] <= exact["value"] <= exact["high"]
    (recorded,) = Store(runs).events(found["run"], kinds=("Evaluated",))[-1:]
    assert exact == recorded.data["measures"]["4"]["shapes_exact"], "not what the run itself measured at its end"
    status, out, _ = ask(capsys, *arguments)
    assert status == 0
    assert "shapes_exact" in out


def test_a_damaged_checkpoint_is_named_and_left_alone(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(runs)
    run = store.run("latest").id
    iterations = store.checkpoints(run)
    weights = store.folder(run) / "checkpoints" / f"{iterations[1]:06d}" / "ema.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    status, out, err = ask(capsys, "evaluate", "--run", run, "--checkpoint", iterations[1], "--runs", runs)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "ema.safetensors" in err
    assert str(iterations[-1]) in err
    assert len(weights.read_bytes()) == 1000
    weights.write_bytes(whole)


def test_pretraining_writes_weights_that_can_be_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["autoencoder_steps=2", "flow_steps=2", "map_steps=2", "evaluation_images=8", "batch=8", "report_every=1"]
    changes = [word for change in lengths for word in ("--set", change)]
    weights = tmp_path / "weights.safetensors"
    status, out, _ = ask(capsys, "pretrain", "shapes", *changes, "--out", weights, "--runs", tmp_path, "--json")
    assert status == 0
    assert last_line(out)["weights"] == str(weights)
    told = weights.with_suffix(".log").read_text().splitlines()
    steps = [line.split()[3:6:2] for line in told if "  step " in line]
    assert steps == [["1", "autoencoder"], ["2", "autoencoder"], ["3", "flow"], ["4", "flow"], ["5", "map"], ["6", "map"]]
    assert [line.split(" s  ")[1].split(":")[0] for line in told if "held-out" in line] == [
        f"held-out, {count:2d} steps" for count in (16, 1, 2, 4, 8)
    ]
    picture = tmp_path / "grid.png"
    status, _, _ = ask(
        capsys, "sample", "--set", f"model.weights={weights}", "--prompt", "a circle", "--out", picture, "--runs", tmp_path
    )
    assert status == 0
    assert picture.is_file()


def test_benchmarks_are_listed_and_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", f"{__name__}:bench_toy")
    status, out, _ = ask(capsys, "bench", "--json")
    assert status == 0
    assert set(json.loads(out)) == set(BENCHMARKS)
    status, out, _ = ask(capsys, "bench", "toy", "--json")
    figures = json.loads(out)
    assert status == 0
    assert (figures["benchmark"], figures["speed"], figures["parts"]) == ("toy", 2.5, {"first": 1})
    status, out, _ = ask(capsys, "bench", "toy")
    assert "speed: 2.5" in out


def test_the_doctor_tells_the_memory_of_a_run_and_what_would_make_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "doctor", "--preset", "shapes", "--memory", "24")
    assert status == 0
    assert "it fits" in out
    status, out, _ = ask(capsys, "doctor", "--preset", "shapes", "--memory", "0.01", "--json")
    told = json.loads(out)
    assert status == 1
    assert not told["fits"]
    assert told["total"] == max(told["stages"].values())
    assert "compute.train_batch" in [each["setting"] for each in told["advice"]]


def test_the_doctor_finds_the_machine_ready_or_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "doctor", "--runs", tmp_path / "runs", "--json")
    report = json.loads(out)
    assert (status, report["healthy"]) == (0, True)
    assert {"python", "device", "memory", "disk", "record", "port", "model"} <= {found["name"] for found in report["findings"]}
    (tmp_path / "file").write_text("")
    status, out, _ = ask(capsys, "doctor", "--runs", tmp_path / "file", "--json")
    report = json.loads(out)
    assert (status, report["healthy"]) == (1, False)
    assert all(found["remedy"] for found in report["findings"] if found["level"] == "red")


def test_another_process_pauses_resumes_and_stops_a_run(
    long_run: tuple[subprocess.Popen[str], Store], capsys: pytest.CaptureFixture[str]
) -> None:
    process, store = long_run
    run = store.run("latest").id
    status, out, _ = ask(capsys, "control", run, "pause", "--runs", store.location, "--json")
    assert (status, json.loads(out)["wanted"]) == (0, "pause")
    until(process, lambda: store.run(run).status == "paused")
    held = store.run(run).iteration
    ask(capsys, "control", run, "sample", "--runs", store.location)
    until(process, lambda: bool(store.events(run, kinds=("Sampled",))))
    status, _, err = ask(capsys, "train", "--resume", run, "--runs", store.location)
    assert status == 2
    assert "stop it there first" in err
    ask(capsys, "control", run, "resume", "--runs", store.location)
    until(process, lambda: store.run(run).iteration > held + 1)
    ask(capsys, "control", run, "stop", "--runs", store.location)
    out, err = process.communicate()
    assert process.returncode == 130
    assert last_line(out)["status"] == "stopped"
    assert store.checkpoints(run)[-1] == last_line(out)["iteration"] == store.run(run).iteration
    assert f"--resume {run}" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_a_checkpoint_and_says_how_to_resume(
    number: signal.Signals, long_run: tuple[subprocess.Popen[str], Store]
) -> None:
    process, store = long_run
    process.send_signal(number)
    out, err = process.communicate()
    run = store.run("latest")
    assert process.returncode == 130
    assert (run.status, last_line(out)["status"]) == ("stopped", "stopped")
    assert store.checkpoints(run.id)[-1] == run.iteration
    assert f"python -m workbench train --resume {run.id}" in err


def test_a_killed_run_reads_as_crashed_and_resumes_to_the_same_bits(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = launch("train", "--iterations", str(ITERATIONS), *SETTINGS, "--title", "007", "--runs", tmp_path)
    until(process, lambda: (tmp_path / "runs.db").exists())
    store, whole = Store(tmp_path), Store(runs)
    until(process, lambda: bool(store.runs()) and store.run("latest").iteration >= 7)
    process.kill()
    process.communicate()
    run, reference = store.run("latest"), whole.run("latest")
    assert run.status == "crashed"
    assert 5 <= store.checkpoints(run.id)[-1] < ITERATIONS
    status, out, _ = ask(capsys, "train", "--resume", run.id, "--runs", tmp_path, "--json")
    assert (status, last_line(out)["status"]) == (0, "done")
    resumed, uninterrupted = store.load_checkpoint(run.id), whole.load_checkpoint(reference.id)
    for part, tensors in uninterrupted.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed.tensors[part][name], tensor), f"{part} {name}"
    ours, theirs = store.metrics(run.id), whole.metrics(reference.id)
    timed = {name for name in theirs if "second" in name}
    assert {name: curve for name, curve in ours.items() if name not in timed} == {
        name: curve for name, curve in theirs.items() if name not in timed
    }
