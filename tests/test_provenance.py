"""What is written down of where a run comes from: complete, quick, in its order, and without any secret."""

import hashlib
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_run import toy_config, toy_events

import workbench
from workbench import provenance
from workbench.config import configure
from workbench.jobs import Job
from workbench.masking import is_secret, masked
from workbench.models.embedded import shipped_weights
from workbench.provenance import FILE, LARGEST_PATCH, code_of, collect, read_provenance, record_provenance, summary, weights_of
from workbench.report import report
from workbench.store import Store

ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit that holds a package."""
    folder = tmp_path / "repository"
    (folder / "workbench").mkdir(parents=True)
    (folder / "workbench" / "__init__.py").write_text("VERSION = 1\n")
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Begin")
    return folder


def git(folder, *arguments):
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def driven(store, run, resume=None):
    config = toy_config(2, **{"grpo.groups": 2})
    job = Job(store, run, lambda last, controls: toy_events(config, start=last.iteration if last else 0), resume=resume)
    while not job.over:
        job.advance()
    assert job.error is None


def created(store, command="python -m workbench train"):
    return store.create("train", toy_config(2).model_dump(mode="json"), title="toy", origin="test", command=command)


# What is said


def test_a_driver_says_what_it_is_before_the_first_event(store):
    run = created(store)
    job = Job(store, run, lambda resume, controls: toy_events(toy_config(2, **{"grpo.groups": 2})))
    assert read_provenance(store, run) == ()
    job.advance()
    (told,) = read_provenance(store, run)
    machine = told.machine
    assert told.command == "python -m workbench train"
    assert (told.version, told.iteration) == (workbench.__version__, 0)
    assert (machine.torch, machine.threads) == (torch.__version__, torch.get_num_threads())
    assert machine.python == sys.version.split()[0]
    assert told.packages["torch"] == torch.__version__.partition("+")[0] or told.packages["torch"] == torch.__version__
    assert len(told.packages) > 20
    assert told.seeds == {"seed": 0, "evaluation.seed": 20_000}
    (weights,) = told.weights
    assert weights.owner == "shapes"
    assert weights.sha256 == hashlib.sha256(shipped_weights("shapes").read_bytes()).hexdigest()
    prompts = configure("shapes").task.prompts("train")
    assert told.prompts["train"].count == len(prompts)
    assert told.prompts["train"].sha256 == hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    assert told.prompts["held_out"].sha256 != told.prompts["train"].sha256
    assert told.code.commit == code_of(ROOT).commit
    assert (told.code.commit is None) == (not (ROOT / ".git").exists())
    assert told.notes == ()


def test_threads_that_the_settings_name_are_those_that_count():
    assert collect(configure("shapes", {"compute.threads": 7}).model_dump(mode="json"), "").machine.threads == 7


def test_what_a_pretraining_begins_with_is_told():
    (weights,) = collect({"name": "shapes_cm"}, "", kind="pretrain").weights
    assert weights.owner == "shapes"
    told = collect({"name": "preference"}, "", kind="pretrain")
    assert (told.weights, told.prompts) == ((), {})


@pytest.mark.parametrize("config", [{}, {"model": "nonsense"}, {"compute": 3}])
def test_settings_that_are_not_valid_are_no_obstacle(config):
    told = collect(config, "")
    assert told.machine.threads == torch.get_num_threads()
    assert told.notes == () or "weights and prompts are not known" in told.notes[0]


def test_weights_that_cannot_be_read_are_told(tmp_path):
    told = collect(configure("shapes", {"model.weights": str(tmp_path / "gone.safetensors")}).model_dump(mode="json"), "")
    assert told.weights == ()
    assert told.notes == (f"the weights of shapes in {tmp_path}/gone.safetensors cannot be read: No such file or directory",)


def test_a_file_of_the_hubs_cache_is_told_by_its_revision_and_read_by_nobody(tmp_path):
    blob, revision = tmp_path / "blobs" / ("ab" * 32), "0123abc"
    (tmp_path / "snapshots" / revision / "transformer").mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    link = tmp_path / "snapshots" / revision / "transformer" / "model.safetensors"
    link.symlink_to(blob)
    told = weights_of("flux", link)
    assert (told.revision, told.sha256, told.bytes) == (revision, "ab" * 32, 7)


def test_a_large_file_is_told_by_its_ends_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_WHOLE", 100)
    monkeypatch.setattr(provenance, "_ENDS", 10)
    path = tmp_path / "large"
    digests = []
    for content in (b"a" * 200, b"a" * 190 + b"b" * 10, b"a" * 100 + b"b" + b"a" * 99, b"a" * 201):
        path.write_bytes(content)
        told = weights_of("large", path)
        assert not told.whole
        digests.append(told.sha256)
    assert digests[0] == digests[2]  # what lies between the ends is not read
    assert len(set(digests)) == 3


# In its order, all or nothing


def test_a_run_that_goes_on_gets_a_further_entry(store):
    run = created(store)
    driven(store, run)
    driven(store, run, resume=store.load_checkpoint(run, 0))
    driven(store, run, resume=store.load_checkpoint(run, 2))
    assert [told.iteration for told in read_provenance(store, run)] == [0, 0, 2]
    assert list(store.folder(run).glob(".*")) == []


def test_a_damaged_file_is_named_and_a_driver_that_follows_begins_anew_and_keeps_it(store):
    run = created(store)
    path = store.folder(run) / FILE
    for damage in ("", "[]", '{"format": "else"}', '{"format": "flow-map-workbench provenance", "version": 1, "drivers": 3}'):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"provenance\.json is damaged.*remove the file to go on without it"):
            read_provenance(store, run)
    told = record_provenance(store, run)
    assert [each.notes for each in read_provenance(store, run)] == [told.notes]
    assert "could not be read" in told.notes[0]
    assert (store.folder(run) / "provenance.damaged.json").read_text() == damage


# Code


def test_uncommitted_changes_are_kept_as_a_patch_that_applies(repository, tmp_path):
    (repository / "workbench" / "__init__.py").write_text("VERSION = 2\n")
    (repository / "picture.bin").write_bytes(bytes(range(256)))
    git(repository, "add", "picture.bin")
    (repository / "mine.txt").write_text("mine")
    code = code_of(repository)
    assert (code.commit, code.branch, code.dirty, code.note) == (git(repository, "rev-parse", "HEAD").strip(), "trunk", True, "")
    assert code.untracked == {"mine.txt": hashlib.sha256(b"mine").hexdigest()}
    assert b"mine" not in code.changes.replace(b"mine.txt", b"")
    git(tmp_path, "clone", "-q", str(repository), "copy")
    (tmp_path / "changes.patch").write_bytes(code.changes)
    git(tmp_path / "copy", "apply", str(tmp_path / "changes.patch"))
    assert (tmp_path / "copy" / "workbench" / "__init__.py").read_text() == "VERSION = 2\n"
    assert (tmp_path / "copy" / "picture.bin").read_bytes() == bytes(range(256))


def test_changes_that_are_too_large_are_told_by_their_digest(repository):
    (repository / "workbench" / "__init__.py").write_text("x = 1\n" * (LARGEST_PATCH // 6))
    code = code_of(repository)
    assert code.dirty
    assert code.patch_sha256
    assert code.changes == b""
    assert "more than the 4 MiB kept; only their digest is here" in code.note


def test_a_run_has_its_patch_beside_it_and_another_one_where_the_code_changed_meanwhile(store, repository, monkeypatch):
    monkeypatch.setattr(provenance, "SOURCE", repository)
    run = created(store)
    names = []
    for version in (2, 2, 3, 2):
        (repository / "workbench" / "__init__.py").write_text(f"VERSION = {version}\n")
        code_of.cache_clear()  # as a process of its own would
        names.append(record_provenance(store, run).code.patch)
    assert names == ["changes.patch", "changes.patch", "changes-2.patch", "changes.patch"]
    for name, version in (("changes.patch", 2), ("changes-2.patch", 3)):
        assert f"+VERSION = {version}" in (store.folder(run) / name).read_text()
    code_of.cache_clear()


def test_where_there_is_no_commit_it_says_so(tmp_path, repository, monkeypatch):
    (tmp_path / "plain" / "workbench").mkdir(parents=True)
    assert "git says" in code_of(tmp_path / "plain").note
    installed = repository / "site-packages"
    (installed / "workbench").mkdir(parents=True)
    (installed / "workbench" / "__init__.py").write_text("")
    (repository / ".gitignore").write_text("site-packages\n")
    assert "installed, not part of a git repository" in code_of(installed).note
    git(tmp_path, "init", "-q", "empty")
    (tmp_path / "empty" / "workbench").mkdir()
    assert code_of(tmp_path / "empty").commit is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_of(tmp_path / "empty" / "workbench").note == "git is not installed, so the commit is not known"
    assert code_of(tmp_path / "empty" / "workbench").commit is None


# In words


def test_a_summary_says_it_in_words_and_leaves_out_what_is_not_there():
    told = collect(configure("glyphs_preference").model_dump(mode="json"), "python -m workbench train --preset glyphs_preference")
    words = dict(summary(told))
    assert words["Command"] == "python -m workbench train --preset glyphs_preference"
    assert words["Seeds"] == "seed 0, evaluation.seed 20000"
    assert words["Weights of glyphs_preference"].startswith("preference.safetensors, ")
    assert words["Torch"].startswith(torch.__version__)
    assert all(words.values())
    assert "Not known" not in words


def test_a_report_shows_it_folded_and_says_where_it_is_damaged(store):
    run = created(store, command="python -m workbench train --set title='<b>'")
    driven(store, run)
    page = report(store, store.run(run))
    assert "Code, packages and machine" in page
    assert f"<td>{torch.__version__}, {torch.get_num_threads()} thread" in page
    assert "&lt;b&gt;" in page
    assert f"<td>{read_provenance(store, run)[0].packages['pydantic']}</td>" in page
    (store.folder(run) / FILE).write_text("")
    assert "is damaged" in report(store, store.run(run))
    (store.folder(run) / FILE).unlink()
    assert "Code, packages and machine" not in report(store, store.run(run))


# Secrets


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train --store postgresql://me:hunter2@db/runs", "train --store 'postgresql://me:***@db/runs'"),
        (
            "train --store=postgresql+psycopg://me:hu/nt:er2@db/runs?x=1",
            "train '--store=postgresql+psycopg://me:***@db/runs?x=1'",
        ),
        (
            "train --store 'postgresql://db/runs?user=me&password=hunter2'",
            "train --store 'postgresql://db/runs?user=me&password=***'",
        ),
        ("app.py --auth me:hunter2 --port 1", "app.py --auth '***' --port 1"),
        ("app.py --auth=me:hunter2", "app.py '--auth=***'"),
        ("notebook run x -p hf_token=hunter2 -p seed=1", "notebook run x -p 'hf_token=***' -p seed=1"),
        ("x --api-key hunter2", "x --api-key '***'"),
        ("x https://hunter2@example.org/a", "x 'https://***@example.org/a'"),
        ("train --set grpo.groups=2 --seed 1", "train --set grpo.groups=2 --seed 1"),
        ("it's postgresql://me:hunter2@db", "it's postgresql://me:***@db"),
    ],
)
def test_commands_are_shown_without_what_is_secret(command, shown):
    assert masked(command) == shown
    assert "hunter2" not in masked(command)


def test_names_of_secrets_are_told_from_others():
    assert all(map(is_secret, ("--auth", "store.password", "HF_TOKEN", "api-key", "client_secret")))
    assert not any(map(is_secret, ("author", "max_tokens", "key", "seed", "keyboard")))


def test_no_secret_reaches_the_record(tmp_path):
    secrets = {"environment": "s3cr3t-in-environment", "url": "s3cr3t-in-url", "option": "s3cr3t-in-option"}
    database = tmp_path / "runs.db"
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
sys.argv = ["app.py", "--auth", "me:{secrets["option"]}", "--store", "postgresql://me:{secrets["url"]}@db/runs"]
from toy_run import toy_config, toy_events
from workbench.cli.drive import command_line
from workbench.jobs import Job
from workbench.report import report
from workbench.store import Store
store = Store({str(tmp_path / "runs")!r}, "sqlite:///{database}?password={secrets["url"]}")
config = toy_config(2, **{{"grpo.groups": 2}})
run = store.create("train", config.model_dump(mode="json"), title="t", origin="test", command=command_line())
job = Job(store, run, lambda resume, controls: toy_events(config))
while not job.over:
    job.advance()
print(store.address)
"""
    keys = ("HF_TOKEN", "WORKBENCH_AUTH", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP_SECRET")
    environment = {**os.environ, **dict.fromkeys(keys, secrets["environment"])}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert "password=***" in made.stdout
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {FILE, "config.json", "runs.db"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        for secret in secrets.values():
            assert secret.encode() not in content, f"{path.name} holds the secret {secret}"
    (run,) = Store(tmp_path / "runs", f"sqlite:///{database}").runs()
    assert shlex.split(run.command)[-4:] == ["--auth", "***", "--store", "postgresql://me:***@db/runs"]
