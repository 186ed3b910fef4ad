"""Pictures of runs: recorded where they were recorded, drawn by the checkpoint where not, and scored as they are shown."""

from pathlib import Path

import pytest
import torch
from toy_run import PROMPTS, toy_config, toy_events, toy_images

from workbench.config import configure
from workbench.events import CheckpointReady
from workbench.galleries import Galleries, PairRequest, Side
from workbench.pictures import data_sheet, read_sprite, write_sprite
from workbench.policies import Policies
from workbench.store import Store

CUSTOM = {"prompts": ("two red circles", "a blue square"), "each": 2, "seed": 5}


def a_run(store: Store, **changes: object) -> str:
    config = toy_config(20, **changes)
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="test")
    for event in toy_events(config):
        if not (isinstance(event, CheckpointReady) and event.iteration):
            store.record(run, event)
    return run


def comparison(run: str, other: str = "", a: int | None = 0, b: int | None = None, **more: object) -> PairRequest:
    return PairRequest(a=Side(run=run, iteration=a), b=Side(run=other or run, iteration=b), **more)


def galleries(store: Store) -> Galleries:
    return Galleries(store, Policies(store))


@pytest.mark.parametrize("count", [1, 7, 8, 24])
def test_a_sheet_is_read_as_it_was_written(tmp_path: Path, count: int) -> None:
    images = torch.randint(256, (count, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    layout = write_sprite(tmp_path, "sheet", images, 8)
    assert torch.equal(read_sprite(tmp_path / layout["sprite"], layout), images)
    assert data_sheet(images, 8)["count"] == count


def test_a_sheet_that_is_missing_or_of_another_size_is_refused(tmp_path: Path) -> None:
    layout = write_sprite(tmp_path, "sheet", toy_images(8, 0), 8)
    with pytest.raises(ValueError, match="320 x 40 pixels, not 320 x 80"):
        read_sprite(tmp_path / layout["sprite"], layout | {"count": 16})
    with pytest.raises(ValueError, match="cannot be read"):
        read_sprite(tmp_path / "none.webp", layout)


def test_the_base_and_the_latest_evaluation_are_taken_as_recorded(store: Store) -> None:
    found = galleries(store)
    a, b = found.pair(comparison(a_run(store)))
    assert (a.iteration, b.iteration) == (0, 20)
    assert a.sheet
    assert b.sheet
    assert a.sample == b.sample
    assert a.sample.prompts[:2] == PROMPTS[:2]
    assert torch.equal(found.images(a), toy_images(24, 7))
    assert torch.equal(found.images(b), toy_images(24, 120))


def test_a_recorded_side_and_a_drawn_one_share_prompts_seeds_and_steps(store: Store) -> None:
    run = a_run(store)
    a, b = galleries(store).pair(comparison(run, a=5, b=10))
    assert a.sheet is None
    assert b.sheet is not None
    assert a.sample == b.sample


def test_evaluations_with_other_seeds_or_steps_are_drawn_again_as_the_first(store: Store) -> None:
    run, other = a_run(store), a_run(store, **{"evaluation.sampling_steps": 8})
    a, b = galleries(store).pair(comparison(run, other))
    assert a.sheet is not None
    assert b.sheet is None
    assert b.sample == a.sample
    assert b.sample.steps == 4


def test_custom_prompts_are_drawn_from_the_base_and_kept(store: Store) -> None:
    found = galleries(store)
    a, b = found.pair(comparison(a_run(store), b=0, **CUSTOM))
    assert a.sample.prompts == ("two red circles", "two red circles", "a blue square", "a blue square")
    assert a.sample.seeds == (5, 6, 5, 6)
    first = found.images(a)
    assert first.shape == (4, 3, 40, 40)
    assert first.dtype == torch.uint8
    assert found.images(b) is first
    alone, _ = found.pair(comparison(a.run.id, b=0, prompts=("a blue square",), seed=6))
    assert torch.equal(found.images(alone)[0], first[3]), "an image depends on its prompt and seed, not on its neighbours"


def test_pictures_are_scored_by_the_rewards_of_a_run(store: Store) -> None:
    found, config = galleries(store), configure("shapes", {})
    a, _ = found.pair(comparison(a_run(store)))
    scores = found.score(found.images(a), a.sample.prompts, config)
    assert set(scores) == {"reward", "shapes_dense", "shapes_exact", "shapes_fidelity"}
    weighted = 0.5 * scores["shapes_dense"] + 0.5 * scores["shapes_exact"] + 0.2 * scores["shapes_fidelity"]
    torch.testing.assert_close(scores["reward"], weighted)


def test_what_cannot_be_compared_says_why(store: Store) -> None:
    found, run = galleries(store), a_run(store)
    with pytest.raises(ValueError, match="unknown run 'gone'; recent runs: "):
        found.pair(comparison(run, "gone"))
    with pytest.raises(ValueError, match="unknown word 'purple'; the vocabulary is"):
        found.pair(comparison(run, prompts=("a purple square",)))
    words = configure("glyphs", {})
    other = store.create("train", words.model_dump(mode="json"), title="Words", origin="test")
    with pytest.raises(ValueError, match="no prompt suits both, so choose two runs of one task"):
        found.pair(comparison(run, other))
    shapes = store.create("pretrain", {}, title="Pretraining", origin="test")
    with pytest.raises(ValueError, match="choose a run that aligns a model"):
        found.pair(comparison(run, shapes))


def test_a_checkpoint_that_is_missing_names_the_others(store: Store) -> None:
    found = galleries(store)
    a, _ = found.pair(comparison(a_run(store), a=7))
    with pytest.raises(ValueError, match=r"no complete checkpoint after iteration 7.*other checkpoints of this run: 0"):
        found.images(a)
