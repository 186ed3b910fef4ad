"""Free prompts and the reward that any picture has: files and splits, bytes of JPEG."""

import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from workbench.config import configure
from workbench.rewards.jpeg import JPEGSize
from workbench.tasks.prompts import PromptsTask

MANY = tuple(f"a picture of {number} cats" for number in range(500))


def both(task: PromptsTask) -> tuple[set[str], set[str]]:
    train, held_out = (task.prompts(split) for split in ("train", "held_out"))  # type: ignore[arg-type]
    assert len(train) == len(set(train))
    return set(train), set(held_out)


def file(folder: Path, *lines: str) -> str:
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return str(folder / "prompts.txt")


def test_about_the_share_that_is_asked_for_is_held_out_and_nothing_is_on_both_sides() -> None:
    train, held_out = both(PromptsTask(lines=MANY, held_out_share=0.3))
    assert not train & held_out
    assert train | held_out == set(MANY)
    assert abs(len(held_out) - 150) < 4 * (500 * 0.3 * 0.7) ** 0.5


def test_more_prompts_move_none_from_one_side_to_the_other() -> None:
    few, many = both(PromptsTask(lines=MANY[:200])), both(PromptsTask(lines=MANY))
    assert few[0] <= many[0]
    assert few[1] <= many[1]


@pytest.mark.parametrize("share", [0.001, 0.2, 0.999])
def test_each_side_has_a_prompt(share: float) -> None:
    for lines in (("one", "two"), MANY[:7]):
        train, held_out = both(PromptsTask(lines=lines, held_out_share=share))
        assert train
        assert held_out
        assert not train & held_out
    train, held_out = both(PromptsTask(held_out_share=share))
    assert train
    assert held_out


def test_a_file_is_read_line_by_line_and_again_when_it_changes(tmp_path: Path) -> None:
    import os

    task = PromptsTask(file=file(tmp_path, "  a fox ", "", "ein Füchslein", "a fox", "“OPEN”, a sign"))
    assert set().union(*both(task)) == {"a fox", "ein Füchslein", "“OPEN”, a sign"}
    path = file(tmp_path, "new", "newer")
    os.utime(path, ns=(1, 1))
    assert set().union(*both(task)) == {"new", "newer"}


def test_a_file_of_held_out_prompts_leaves_the_others_whole(tmp_path: Path) -> None:
    task = PromptsTask(lines=("a", "b"), held_out_file=file(tmp_path, "c"))
    assert both(task) == ({"a", "b"}, {"c"})


def test_held_out_prompts_are_never_trained_on_even_where_both_files_have_them(tmp_path: Path) -> None:
    held_out = file(tmp_path, "b", "c")
    assert both(PromptsTask(lines=("a", "b"), held_out_file=held_out)) == ({"a"}, {"b", "c"})
    with pytest.raises(ValueError, match="every prompt to train on is also held out"):
        PromptsTask(lines=("b", "c"), held_out_file=held_out).prompts("train")


@pytest.mark.parametrize(
    ("train", "test", "written"),
    [
        ("train.txt", "test.txt", "{}"),
        ("train_metadata.jsonl", "test_metadata.jsonl", '{{"tag": "colors", "include": [{{"class": "cup"}}], "prompt": "{}"}}'),
        ("train.jsonl", "evaluation_metadata.jsonl", '{{"prompt": "{}"}}'),
    ],
)
def test_a_folder_holds_both_splits_in_the_formats_of_flow_grpo_and_geneval(
    tmp_path: Path, train: str, test: str, written: str
) -> None:
    for name, prompts in ((train, ("a red cup", "ein Füchslein", "a red cup")), (test, ("a blue cup",))):
        (tmp_path / name).write_text("\n".join(written.format(prompt) for prompt in prompts), "utf-8")
    task = PromptsTask(file=str(tmp_path))
    assert both(task) == ({"a red cup", "ein Füchslein"}, {"a blue cup"})
    (tmp_path / test).unlink()
    assert both(task)[0] | both(task)[1] == {"a red cup", "ein Füchslein"}  # one of the two is held out
    (tmp_path / train).unlink()
    with pytest.raises(ValueError, match=r"has none of train\.txt, train\.jsonl, train_metadata\.jsonl"):
        task.prompts("train")


def test_a_file_of_json_lines_is_read_by_its_prompts_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\ufeff{"prompt": "two\\nlines", "seed": 3}\n\n{"id": 1, "prompt": " a \\"B\\" sign "}\r\n', "utf-8")
    assert set().union(*both(PromptsTask(file=str(path)))) == {"two lines", 'a "B" sign'}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "cut off', "line 3 is not JSON"),
        ('{"text": "a fox"}', 'line 3 has no "prompt" that is text: {"text"'),
        ('{"prompt": ["a fox"]}', 'line 3 has no "prompt"'),
        ('{"prompt": " "}', 'line 3 has no "prompt"'),
        ('"a fox"', 'line 3 has no "prompt"'),
    ],
)
def test_a_line_of_json_without_a_prompt_is_named_by_its_number(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        PromptsTask(file=str(path)).prompts("train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("packaged", ["general", "text"])
def test_the_packaged_lists_are_two_hundred_prompts_of_their_kind(packaged: str) -> None:
    task = PromptsTask(packaged=packaged)
    train, held_out = both(task)
    assert not train & held_out
    assert len(train | held_out) == 200
    assert 25 < len(held_out) < 55
    for prompt in train | held_out:
        task.check(prompt)
        assert len(prompt.split()) < 20
        words = re.findall(r'"([^"]+)"', prompt)
        assert len(words) == (packaged == "text"), prompt
        assert all(len(word) <= 20 for word in words)


def test_a_file_counts_before_a_packaged_list_and_that_before_lines(tmp_path: Path) -> None:
    path = file(tmp_path, "a", "b")
    assert set().union(*both(PromptsTask(file=path, packaged="text", lines=("c", "d")))) == {"a", "b"}
    assert "c" not in set().union(*both(PromptsTask(packaged="general", lines=("c", "d"))))
    assert both(PromptsTask(packaged="text", held_out_file=path))[1] == {"a", "b"}


def test_bad_files_and_too_few_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts in /no/such\.txt cannot be read: No such file"):
        PromptsTask(file="/no/such.txt").prompts("train")
    with pytest.raises(ValueError, match=r"prompts\.txt holds no prompts; write one on each line"):
        PromptsTask(file=file(tmp_path, "", " ")).prompts("train")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        PromptsTask(file=str(tmp_path / "picture.txt")).prompts("train")
    with pytest.raises(ValueError, match="needs at least 2 prompts, one to train on and one to hold out, got 1"):
        PromptsTask(lines=("alone", " alone ")).prompts("held_out")


def test_prompts_are_checked_for_what_no_model_can_read() -> None:
    task = PromptsTask()
    task.check("anything at all, 任何")
    with pytest.raises(ValueError, match="may not be empty"):
        task.check("  ")
    with pytest.raises(ValueError, match="has 5000 characters; at most 4000"):
        task.check("x" * 5000)


def test_a_model_of_shapes_does_not_take_free_prompts_nor_their_rewards() -> None:
    with pytest.raises(ValueError, match=r"model 'shapes' does not understand the prompts of task 'prompts'; choose from: flux"):
        configure("shapes", {"task.name": "prompts"})
    with pytest.raises(ValueError, match="reward 'shapes_dense' cannot score images of task 'prompts'; choose from: jpeg_size"):
        configure("flux", {"rewards.shapes_dense": 1})


# JPEG


def pictures() -> Tensor:
    """Flat, a ramp, noise."""
    noise = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.full((3, 32, 48), 0.5), torch.linspace(0, 1, 48).expand(3, 32, 48), noise])


@pytest.mark.parametrize("quality", [30, 95])
def test_the_reward_is_the_size_of_the_file(quality: int) -> None:
    expected = []
    for image in pictures():
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        expected.append(len(file.getvalue()) / 1000)
    large, small = (
        JPEGSize(wanted=wanted, quality=quality).load(torch.device("cpu"))(pictures(), ["x"] * 3) for wanted in ("large", "small")
    )
    assert large.tolist() == pytest.approx(expected)
    assert torch.equal(small, -large)
    assert expected[0] < expected[1] < expected[2]


def test_a_picture_scores_the_same_in_any_batch() -> None:
    reward = JPEGSize().load(torch.device("cpu"))
    many = pictures().repeat(20, 1, 1, 1)
    assert torch.equal(reward(many, ["x"] * 60), reward(pictures(), ["x"] * 3).repeat(20))
    assert reward(many[:0], []).shape == (0,)


def test_an_embedded_model_is_trained_on_it_too() -> None:
    config = configure("shapes", {"rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]})
    assert [entry.reward.name for entry in config.rewards] == ["jpeg_size"]  # type: ignore[attr-defined]
