"""A run of a pipeline that is taken elsewhere: its archive holds what was learned alone, and says there what it needs."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_family import noise, sampled
from tiny_flux import FLUX

from workbench.__main__ import main
from workbench.config import configure
from workbench.evaluate import load_policy
from workbench.export import read_archive, write_archive, write_weights
from workbench.needs import needs
from workbench.policies import choose
from workbench.provenance import record_provenance
from workbench.settings import RunConfig
from workbench.store import Store
from workbench.train import train

TIMES = (1.0, 0.5, 0.0)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, Path, Path]:
    """Where a run was made: the record, the run, its base, and its archive."""
    place = tmp_path_factory.mktemp("there")
    folder, store = FLUX.make(place / "tiny-flux"), Store(place / "runs")
    run = recorded(FLUX.run(folder, iterations=2), store)
    return store, run, folder, write_archive(store, run)


def recorded(config: RunConfig, store: Store) -> str:
    run = store.create("train", config.model_dump(mode="json"), title="Tiny FLUX", origin="test")
    record_provenance(store, run)
    for event in train(config):
        store.record(run, event)
    store.set_status(run, "done")
    return run


def pictures(store: Store, run: str) -> torch.Tensor:
    generator = choose(store, run).load().generator
    return sampled(generator, noise(generator.latent_shape), TIMES)


def test_an_archive_holds_the_adapters_and_not_the_base(there: tuple[Store, str, Path, Path]) -> None:
    _, _, folder, path = there
    base = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    with zipfile.ZipFile(path) as archive:
        tensors = [name for name in archive.namelist() if name.endswith(".safetensors")]
        for name in tensors:
            head = archive.read(name)
            names = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")]).keys() - {"__metadata__"}
            assert not names & base.keys()
            assert all(".lora_" in each or "optimizer" in name for each in names)
    assert {Path(name).stem for name in tensors} == {"policy", "ema", "optimizer"}


def test_where_the_base_is_the_same_nothing_is_missing(there: tuple[Store, str, Path, Path], tmp_path: Path) -> None:
    store, run, _, path = there
    other = Store(tmp_path / "here")
    copy = read_archive(other, path)
    assert needs(other, other.run(copy)) == []
    assert torch.equal(pictures(other, copy), pictures(store, run))


def test_where_the_base_lies_elsewhere_it_says_so_and_can_be_told(
    there: tuple[Store, str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run, folder, path = there
    wanted, moved = pictures(store, run), folder.with_name("moved")
    folder.rename(moved)
    here = ["--runs", str(tmp_path / "here")]
    try:
        assert main(["runs", "import", str(path), *here]) == 0
        told = capsys.readouterr()
        assert "its base" in told.err.replace("\n", " ")
        assert "import it again with --set model.source=PLACE" in told.err.replace("\n", " ")
        assert main(["runs", "import", str(path), "--set", f"model.source={moved}", "--json", *here]) == 0
        answer = json.loads(capsys.readouterr().out)
        (copy,) = answer["runs"]
        assert answer["needs"] == {copy: []}
        assert torch.equal(pictures(Store(tmp_path / "here"), copy), wanted)
    finally:
        moved.rename(folder)


def test_another_base_in_its_place_is_noticed(there: tuple[Store, str, Path, Path], tmp_path: Path) -> None:
    _, _, folder, path = there
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    store = Store(tmp_path / "here")
    (sentence,) = needs(store, store.run(read_archive(store, path, {"model.source": str(other)})))
    assert str(file) in sentence
    assert "is not the file that it was trained on" in sentence


def test_a_base_of_the_hub_is_named_with_the_way_to_fetch_it(store: Store) -> None:
    config = configure("flux", {"model.source": "somebody/some-flux"})
    run = store.create("train", config.model_dump(mode="json"), title="Hub", origin="test")
    (sentence,) = needs(store, store.run(run))
    assert sentence.startswith("its base somebody/some-flux is not on this machine")
    assert "hf download somebody/some-flux" in sentence


def test_a_lora_that_it_began_from_is_needed_too(there: tuple[Store, str, Path, Path], tmp_path: Path) -> None:
    store, run, folder, _ = there
    lora = shutil.copy(write_weights(store, run), tmp_path / "first.safetensors")
    second = recorded(FLUX.run(folder, iterations=1, adapter__start=str(lora)), store)
    path, other = write_archive(store, second), Store(tmp_path / "here")
    wanted, moved = pictures(store, second), Path(lora).rename(tmp_path / "moved.safetensors")
    (sentence,) = needs(other, other.run(read_archive(other, path)))
    assert "it began from the LoRA" in sentence
    copy = read_archive(other, path, {"adapter.start": str(moved)})
    assert needs(other, other.run(copy)) == []
    assert torch.equal(pictures(other, copy), wanted)


def test_only_places_may_differ(there: tuple[Store, str, Path, Path], tmp_path: Path) -> None:
    other = Store(tmp_path / "here")
    with pytest.raises(
        ValueError, match=r"seed is no place in the settings of this run; what may be elsewhere here: model\.source"
    ):
        read_archive(other, there[3], {"seed": "3"})
    with pytest.raises(ValueError, match=r"model\.weights is no place in the settings"):
        read_archive(other, there[3], {"model.weights": "x"})
    assert other.runs() == []


def test_an_embedded_model_needs_nothing(store: Store) -> None:
    run = store.create("train", configure("shapes").model_dump(mode="json"), title="Shapes", origin="test")
    assert needs(store, store.run(run)) == []
    assert needs(store, store.run(store.create("pretrain", {}, title="Made", origin="test"))) == []
    assert load_policy(configure("shapes")).parameters
