"""Runs as files: an archive comes back as the same run, what is not an archive is refused, weights load elsewhere."""

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_run import PROMPTS, toy_config, toy_events

from workbench import export, merging
from workbench.__main__ import main
from workbench.checkpoints import CheckpointError
from workbench.config import RunConfig, configure, parse_config
from workbench.evaluate import load_policy
from workbench.events import CheckpointReady
from workbench.example import TAG, welcome
from workbench.export import read_archive, write_archive, write_weights
from workbench.merging import merge, write_merged
from workbench.models.policy import Policy
from workbench.rollout import drain
from workbench.store import Store, StoreError


def recorded(store: Store, config: RunConfig | None = None) -> str:
    """A toy run with pictures, two checkpoints, and what people said of it."""
    config = config or toy_config(6)
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="notebook", command="cell 3")
    for event in toy_events(config):
        if isinstance(event, CheckpointReady):
            event = CheckpointReady(event.iteration, {"ema": {"w": torch.full((3,), float(event.iteration))}}, event.state)
        store.record(run, event)
    store.set_status(run, "done")
    store.annotate(run, tags=["toy", "kept"], note="why")
    return run


def altered(path: Path, target: Path, **files: bytes | None) -> Path:
    """A copy of an archive in which some members hold something else, are new, or are gone (None)."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in {*source.namelist(), *files}:
            content = files[name] if name in files else source.read(name)
            if content is not None:
                copy.writestr(name, content)
    return target


def told(store: Store, run: str) -> list[tuple]:
    return [(row.kind, row.iteration, row.time, row.data) for row in store.events(run)]


def test_an_archive_comes_back_as_the_same_run_elsewhere(store: Store, tmp_path: Path) -> None:
    run = recorded(store)
    other = Store(tmp_path / "elsewhere")
    assert read_archive(other, write_archive(store, run)) == run
    before, after = store.run(run), other.run(run)
    for name in ("title", "config", "created", "tags", "note", "iteration", "iterations", "status", "command"):
        assert getattr(before, name) == getattr(after, name), name
    assert after.origin == "notebook (imported)"
    assert told(other, run) == told(store, run)
    assert {path.name for path in (other.folder(run) / "images").iterdir()} == {
        path.name for path in (store.folder(run) / "images").iterdir()
    }
    assert other.load_checkpoint(run, 6).tensors["ema"]["w"].tolist() == [6.0] * 3
    assert json.loads((other.folder(run) / "config.json").read_text()) == before.config


def test_a_second_copy_gets_an_id_of_its_own_and_its_checkpoints_load(store: Store) -> None:
    run = recorded(store)
    path = write_archive(store, run)
    copy = read_archive(store, path)
    assert copy != run
    assert store.load_checkpoint(copy, 6).iteration == 6
    assert told(store, copy) == told(store, run)
    store.delete(run)
    assert read_archive(store, path) not in (run, copy)  # the one in the trash may come back


def test_a_run_that_goes_on_is_stopped_where_it_arrives(store: Store, tmp_path: Path) -> None:
    run = recorded(store)
    store.claim(run)
    store.set_status(run, "running")
    found = Store(tmp_path / "elsewhere")
    assert found.run(read_archive(found, write_archive(store, run))).status == "stopped"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"../../outside.txt": b"x"}, r"'../../outside.txt', which is no part of a run"),
        ({"/etc/outside": b"x"}, r"'/etc/outside', which is no part"),
        ({"images/../../x.webp": b"x"}, "no part of a run"),
        ({"images/page.html": b"<script>"}, "no part of a run"),
        ({"policy.pkl": b"x"}, "no part of a run"),
        ({"run.json": None}, "lacks run.json"),
        ({"run.json": b"[1]"}, "run.json is not as this program writes it"),
        ({"run.json": b"{"}, "run.json is not as this program writes it"),
        ({"events.jsonl": b"nonsense\n"}, "line 1 of events.jsonl"),
        ({"events.jsonl": b'{"kind":"Evaluated","iteration":0,"time":1,"data":{}}\n'}, "Evaluated lacks 'images'"),
        ({"events.jsonl": b'{"kind":"Unheard","iteration":0,"time":1,"data":{}}\n'}, "line 1 of events.jsonl.*Unheard"),
        ({"checkpoints/000006/ema.safetensors": b"x"}, "is truncated"),
    ],
)
def test_what_is_no_archive_of_ours_is_refused_and_leaves_nothing(
    store: Store, tmp_path: Path, files: dict[str, bytes | None], complaint: str
) -> None:
    path = altered(write_archive(store, recorded(store)), tmp_path / "altered.zip", **files)
    other = Store(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=complaint):
        read_archive(other, path)
    assert other.runs() == []
    assert {item.name.split("-")[0] for item in other.location.iterdir()} == {"runs.db"}
    assert not (tmp_path / "outside.txt").exists()


def test_an_id_that_leads_elsewhere_is_refused(store: Store, tmp_path: Path) -> None:
    path = write_archive(store, recorded(store))
    head = json.loads(zipfile.ZipFile(path).read("run.json")) | {"id": "../up"}
    with pytest.raises(ValueError, match=r"id = '../up'"):
        read_archive(store, altered(path, tmp_path / "altered.zip", **{"run.json": json.dumps(head).encode()}))


def test_a_torn_file_is_refused(store: Store, tmp_path: Path) -> None:
    whole = write_archive(store, recorded(store)).read_bytes()
    for content in (b"no zip at all", whole[: len(whole) // 2]):
        (tmp_path / "torn.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"torn.zip is not a readable archive of a run"):
            read_archive(store, tmp_path / "torn.zip")
    with pytest.raises(ValueError, match="there is no file"):
        read_archive(store, tmp_path / "nowhere.zip")


def test_an_archive_that_would_fill_the_disk_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(store, recorded(store))
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(ValueError, match="would unpack to"):
        read_archive(store, path)
    monkeypatch.undo()
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match="make room first"):
        read_archive(store, path)


def test_a_full_disk_leaves_no_half_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        write_archive(store, run)
    assert list((store.folder(run) / "exports").iterdir()) == []


def test_without_a_checkpoint_there_are_no_weights(store: Store) -> None:
    config = toy_config(3)
    run = store.create("train", config.model_dump(mode="json"), title="Bare", origin="test")
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        write_weights(store, run)
    other = store.create("pretrain", {}, title="Bare", origin="test")
    with pytest.raises(ValueError, match="of kind 'pretrain'"):
        write_weights(store, other)


def trained(store: Store, config: RunConfig) -> tuple[str, Policy]:
    """A run with one checkpoint of weights that differ from the base, and its policy."""
    policy = load_policy(config, None, "cpu")
    noise = torch.Generator().manual_seed(0)
    moved = {name: value.detach() + 0.02 * torch.randn(value.shape, generator=noise) for name, value in policy.parameters.items()}
    policy.load(moved)
    run = store.create("train", config.model_dump(mode="json"), title="Trained", origin="test")
    store.record(run, CheckpointReady(4, {"policy": moved, "ema": moved}, {"best": 4}))
    return run, policy


def jumps(generator: object) -> torch.Tensor:
    """What a generator makes of fixed noise."""
    x = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(1))  # type: ignore[attr-defined]
    with torch.no_grad():
        return generator.bind(generator.embed(PROMPTS[:2]))(x, 1.0, 0.0)  # type: ignore[attr-defined]


def test_exported_weights_are_a_model_that_loads(store: Store) -> None:
    run, policy = trained(store, configure("shapes"))
    path = write_weights(store, run)
    again = configure("shapes", {"model.weights": str(path)}).model.load(torch.device("cpu"))
    assert torch.equal(jumps(again), jumps(policy.generator))
    assert not torch.equal(jumps(again), jumps(configure("shapes").model.load(torch.device("cpu"))))


def test_an_exported_adapter_loads_with_peft(store: Store, tmp_path: Path) -> None:
    from peft import PeftModel

    run, policy = trained(store, configure("shapes_lora"))
    with zipfile.ZipFile(write_weights(store, run, 4)) as archive:
        archive.extractall(tmp_path / "adapter")
    generator = configure("shapes").model.load(torch.device("cpu"))
    generator.network = PeftModel.from_pretrained(generator.network.requires_grad_(False), tmp_path / "adapter").eval()
    torch.testing.assert_close(jumps(generator), jumps(policy.generator))
    assert all(".default." not in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("preset", ["shapes_lora", "shapes"])
def test_merged_weights_of_an_embedded_model_need_no_adapter(store: Store, preset: str) -> None:
    run, policy = trained(store, configure(preset))
    path = drain(write_merged(store, run))
    with safe_open(path, framework="pt") as opened:
        assert json.loads(opened.metadata()["workbench"])["run"] == run
    again = configure("shapes", {"model.weights": str(path)}).model.load(torch.device("cpu"))
    torch.testing.assert_close(jumps(again), jumps(policy.generator))
    assert not torch.allclose(jumps(again), jumps(configure("shapes").model.load(torch.device("cpu"))), atol=1e-3)


def test_merging_into_another_base_is_refused(store: Store, tmp_path: Path) -> None:
    run, _ = trained(store, configure("shapes_lora"))
    tensors = store.load_checkpoint(run).tensors["ema"]
    wide = {name: value.repeat(1, 2) if "lora_A" in name else value for name, value in tensors.items()}
    with pytest.raises(
        ValueError, match=r"the run trained 'network\..*' of \[.*\], and .* has one of \[.*\]: it is another base"
    ):
        drain(merge(tmp_path / "x.safetensors", wide, configure("shapes_lora"), {}))
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_lora_of_a_convolution_is_merged_as_peft_merges_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    config = configure("shapes_lora", {"model.weights": str(tmp_path / "base.safetensors")})
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, (3, 2)))
    save_file({f"network.{name}": value for name, value in network.state_dict().items()}, tmp_path / "base.safetensors")
    settings = {"r": config.adapter.rank, "lora_alpha": config.adapter.alpha, "target_modules": ["0"], "init_lora_weights": False}
    adapted = get_peft_model(network, LoraConfig(**settings))
    drain(merge(tmp_path / "merged.safetensors", get_peft_model_state_dict(adapted), config, {}))
    expected = adapted.merge_and_unload()[0].weight
    torch.testing.assert_close(load_file(tmp_path / "merged.safetensors")["network.0.weight"], expected.detach())


def test_a_merge_that_ends_early_leaves_nothing(store: Store, tmp_path: Path) -> None:
    run, _ = trained(store, configure("shapes_lora"))
    stream = write_merged(store, run, out=tmp_path / "merged.safetensors")
    first = next(stream)
    assert 0 < first.done < first.total
    stream.close()
    assert list(tmp_path.glob("*merged*")) == list(tmp_path.glob(".*merged*")) == []


def test_merging_where_there_is_no_room_says_how_much_it_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained(store, configure("shapes_lora"))
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"merged weights need 0\.0 GiB in .*; make room, or name another place with --out"):
        drain(write_merged(store, run))


def test_an_archive_is_the_same_whoever_reads_it(store: Store) -> None:
    """Any program reads the events: one JSON object on each line."""
    run = recorded(store)
    with zipfile.ZipFile(io.BytesIO(write_archive(store, run).read_bytes())) as archive:
        lines = [json.loads(line) for line in archive.read("events.jsonl").splitlines()]
        assert [line["kind"] for line in lines] == [row.kind for row in store.events(run)]
        assert "exports" not in "".join(archive.namelist())


def ask(capsys: pytest.CaptureFixture[str], store: Store, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([*arguments, "--runs", str(store.location)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_line_exports_imports_deletes_and_restores(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(store)
    target = tmp_path / "moved.zip"
    assert ask(capsys, store, "export", run, "--archive", "--out", str(target))[:2] == (0, f"{target}\n")
    status, out, _ = ask(capsys, store, "export", run, "--report", "--json")
    assert status == 0
    assert json.loads(out)["bytes"] == (store.folder(run) / "exports" / f"{run}.html").stat().st_size
    assert ask(capsys, store, "runs", "delete", run)[0] == 0
    assert run in ask(capsys, store, "runs", "trash")[1]
    assert run not in ask(capsys, store, "runs")[1]
    status, out, _ = ask(capsys, store, "runs", "import", str(target), "--json")
    (copy,) = json.loads(out)["runs"]
    assert store.run(copy).title == "Toy run"
    assert ask(capsys, store, "runs", "restore", run)[0] == 0
    assert {found.id for found in store.runs()} == {run, copy}
    store.delete(copy)
    assert ask(capsys, store, "runs", "empty-trash")[1] == f"removed run {copy} for good\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("export", "latest"), "choose one of --report, --weights, --merged, --card, --archive and --notebook"),
        (("export", "latest", "--report", "--weights"), "choose one of"),
        (("export", "latest", "--report", "--checkpoint", "3"), "--checkpoint chooses the weights"),
        (("export", "latest", "--report", "--pipeline"), "--pipeline is for --merged and --card"),
        (("export", "latest", "--card", "--dtype", "fp32"), "--dtype is for --merged"),
        (("export", "latest", "--merged", "--repo", "a/b"), "--repo is for --card"),
        (("export", "latest", "--merged", "--pipeline"), "part of no pipeline of diffusers; leave out --pipeline"),
        (("export", "latest", "--merged", "--out", "."), ". is there already; name a place where nothing is"),
        (("runs", "import"), "runs import needs a FILE"),
        (("runs", "list", "more"), "takes nothing more; got more"),
        (("runs", "import", "nowhere.zip"), "there is no file nowhere.zip"),
        (("runs", "restore", "20200101-gone"), "no run '20200101-gone' in the trash"),
        (("export", "20200101-gone", "--report"), "unknown run '20200101-gone'"),
    ],
)
def test_what_the_command_line_cannot_do_is_one_clear_line(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    recorded(store)
    status, _, err = ask(capsys, store, *arguments)
    assert status == 2
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_the_example_is_taken_in_once_and_not_again_after_it_was_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path / "fresh")
    run = welcome(store)
    assert run is not None
    found = store.run(run)
    assert (found.status, found.tags) == ("done", (TAG,))
    parse_config(found.config)  # its settings are still valid, so that it can be branched and drawn with
    assert store.load_checkpoint(run).iteration == found.iteration
    assert welcome(store) is None
    store.delete(run)
    assert welcome(store) is None
    assert store.runs() == []


@pytest.mark.parametrize("content", [b"\x5d\x00\x00", b"PK\x03\x04"])
def test_a_damaged_stream_is_refused_in_words(store: Store, tmp_path: Path, content: bytes) -> None:
    path = write_archive(store, recorded(store))
    torn = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("events.jsonl").header_offset + 200
    torn[begin : begin + 400] = content * (400 // len(content))
    path.write_bytes(torn)
    with pytest.raises(ValueError, match=r"is not a readable archive|is not an event"):
        read_archive(Store(tmp_path / "other"), path)
    assert Store(tmp_path / "other").runs() == Store(tmp_path / "other").trash() == []


@pytest.mark.parametrize("broken", [{"measures": {"4": {"exact": {"low": 0.1}}}}, {"preview": {"sprite": "a.webp"}}])
def test_an_event_whose_inside_is_broken_is_refused_by_its_line(store: Store, tmp_path: Path, broken: dict) -> None:
    path = write_archive(store, recorded(store))
    with zipfile.ZipFile(path) as archive:
        lines = [json.loads(line) for line in archive.read("events.jsonl").splitlines()]
    number = next(i for i, line in enumerate(lines) if line["kind"] == "Evaluated")
    lines[number]["data"] |= broken
    changed = altered(path, tmp_path / "changed.zip", **{"events.jsonl": "\n".join(map(json.dumps, lines)).encode()})
    with pytest.raises(ValueError, match=f"line {number + 1} of events.jsonl is not an event"):
        read_archive(Store(tmp_path / "other"), changed)
    assert Store(tmp_path / "other").runs() == Store(tmp_path / "other").trash() == []
