"""GenEval: prompts and metadata both ways, its rules on scenes worked out by hand, detectors and colours end to end."""

import itertools
import json
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flux import FLUX
from tiny_networks import tiny_clip, tiny_grounding_dino, tiny_mask2former, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import GroundingDinoForObjectDetection, Mask2FormerForUniversalSegmentation
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from workbench.config import configure
from workbench.events import Evaluated
from workbench.models.tiny.flux import tiny_flux
from workbench.rewards.clip import load_clip
from workbench.rewards.detectors import Detector, load_detector
from workbench.rewards.geneval import Colours, GenEval, cut_out
from workbench.rewards.views import read_view
from workbench.tasks.geneval import GenEvalTask
from workbench.tasks.geneval_prompts import (
    CLASSES,
    COLOURS,
    NUMBERS,
    POSITIONS,
    SKILLS,
    Scene,
    Wanted,
    both_coloured,
    coloured,
    counting,
    drawn,
    from_metadata,
    parse,
    placed,
    plural,
    single,
    to_metadata,
    two,
)
from workbench.tasks.geneval_rules import MOST, Found, judge, overlap, relations, sure
from workbench.train import train

CPU = torch.device("cpu")


# --- prompts and metadata


def templates() -> Iterator[Scene]:
    """Every scene of the small templates, and of the large ones each pair of classes and each pair of the rest."""
    yield from (single(kind) for kind in CLASSES)
    yield from (counting(kind, count) for kind in CLASSES for count in range(1, 11))
    yield from (coloured(kind, colour) for kind in CLASSES for colour in COLOURS)
    for number, (first, second) in enumerate(itertools.permutations(CLASSES, 2)):
        yield two(first, second)
        yield placed(first, POSITIONS[number % 4], second)
        yield both_coloured(first, COLOURS[number % 10], second, COLOURS[number // 10 % 10])
    yield from (both_coloured("orange", one, "hot dog", other) for one in COLOURS for other in COLOURS)


def test_every_template_is_read_back_as_it_was_written_and_no_two_are_alike() -> None:
    scenes = list(templates())
    for scene in scenes:
        assert parse(scene.prompt) == scene
    assert len({scene.prompt for scene in scenes}) == len(set(scenes))
    assert {scene.skill for scene in scenes} == set(SKILLS)


PUBLISHED = [
    '{"tag": "single_object", "include": [{"class": "umbrella", "count": 1}], "prompt": "a photo of an umbrella"}',
    '{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}], '
    '"prompt": "a photo of a bench and a sports ball"}',
    '{"tag": "counting", "include": [{"class": "wine glass", "count": 3}], "exclude": [{"class": "wine glass", "count": 4}], '
    '"prompt": "a photo of three wine glasses"}',
    '{"tag": "colors", "include": [{"class": "bicycle", "count": 1, "color": "orange"}], '
    '"prompt": "a photo of an orange bicycle"}',
    '{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}], '
    '"prompt": "a photo of a dog right of a bench"}',
    '{"tag": "color_attr", "include": [{"class": "apple", "count": 1, "color": "purple"}, {"class": "tie", "count": 1, '
    '"color": "black"}], "prompt": "a photo of a purple apple and a black tie"}',
]


@pytest.mark.parametrize("line", PUBLISHED, ids=SKILLS)
def test_a_line_of_the_published_format_says_what_its_prompt_does(line: str) -> None:
    scene = from_metadata(json.loads(line))
    assert scene == parse(scene.prompt)
    assert to_metadata(scene) == json.loads(line)


def test_metadata_goes_both_ways_for_every_template() -> None:
    for scene in itertools.islice(templates(), 0, None, 37):
        assert from_metadata(json.loads(json.dumps(to_metadata(scene)))) == scene


def test_plurals_are_those_of_the_templates() -> None:
    assert [plural(kind) for kind in ("bus", "bench", "knife", "scissors")] == ["buses", "benchs", "knifes", "scissorses"]


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog",
        "a photo of a unicorn",
        "a photo of an dog",
        "a photo of a orange",
        "a photo of three dog",
        "a photo of eleven dogs",
        "a photo of a red dog and a cat",
        "a photo of a dog and a red cat",
        "a photo of a red dog left of a cat",
        "a photo of a dog left of a cat and a bench",
        "a photo of a turquoise dog",
        "a photo of a dog ",
        "a photo of a Dog",
        "a photo of ",
        "",
    ],
)
def test_what_is_of_no_template_is_refused_with_their_forms(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"of none of GenEval's templates, such as 'a photo of a bench'"):
        parse(prompt)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: each line must be an object"),
        ('{"include": [{"class": "dog"}]}', "line 2: 'prompt' must be text, got None"),
        ('{"prompt": "x"}', "line 2: 'include' must name at least one class"),
        ('{"prompt": "x", "include": "dog"}', "line 2: 'include' must be a list, got 'dog'"),
        ('{"prompt": "x", "include": ["dog"]}', "line 2: each of 'include' and 'exclude' must be an object"),
        ('{"prompt": "x", "include": [{"class": "mouse"}]}', "line 2: unknown class 'mouse'; choose from: person, bicycle"),
        (
            '{"prompt": "x", "include": [{"class": "dog", "count": 0}]}',
            "line 2: 'count' of dog must be a whole number, 1 or more",
        ),
        ('{"prompt": "x", "include": [{"class": "dog", "count": true}]}', "line 2: 'count' of dog must be a whole number"),
        (
            '{"prompt": "x", "include": [{"class": "dog", "color": "teal"}]}',
            "line 2: unknown color 'teal' of dog; choose from: red",
        ),
        ('{"prompt": "x", "include": [{"class": "dog", "position": ["above", 0]}]}', "line 2: 'position' of dog must be one of"),
        (
            '{"prompt": "x", "include": [{"class": "dog"}, {"class": "cat", "position": "above"}]}',
            "line 2: 'position' of cat must",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named_with_its_fault(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text(PUBLISHED[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match="wrong.jsonl, " + words.replace("(", r"\(")):
        GenEvalTask(file=str(tmp_path / "wrong.jsonl")).prompts("train")


def test_a_file_that_is_missing_empty_or_not_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GenEval's metadata in .*none.jsonl cannot be read: No such file or directory; name a"):
        GenEvalTask(file=str(tmp_path / "none.jsonl")).prompts("train")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no prompts"):
        GenEvalTask(file=str(tmp_path / "empty.jsonl")).prompts("train")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cannot be read: it is not text in UTF-8"):
        GenEvalTask(file=str(tmp_path / "bytes.jsonl")).prompts("train")
    (tmp_path / "one.jsonl").write_text(PUBLISHED[0])
    with pytest.raises(ValueError, match="needs two prompts of a skill"):
        GenEvalTask(file=str(tmp_path / "one.jsonl")).prompts("train")


# --- the task


def counted(prompts: Any, task: GenEvalTask) -> dict[str, int]:
    skills = [task.skill(prompt) for prompt in prompts]
    return {skill: skills.count(skill) for skill in SKILLS}


def test_prompts_are_made_of_every_skill_and_none_is_on_both_sides() -> None:
    task = GenEvalTask(count=600)
    train, held_out = task.prompts("train"), task.prompts("held_out")
    assert not set(train) & set(held_out)
    assert len(set(train)) > 400
    assert set(counted(held_out, task).values()) == {20}
    assert set(counted(train, task).values()) == {80}
    assert set(counted(held_out[:12], task).values()) == {2}  # any stretch is balanced
    for prompt in (*train, *held_out):
        task.check(prompt)
    assert GenEvalTask(count=600).prompts("train") == train
    assert GenEvalTask(count=600, seed=1).prompts("train") != train


def test_skills_may_be_mixed_as_in_flow_grpo() -> None:
    task = GenEvalTask(count=2125, mix="flow_grpo")  # 1700 to train on
    skills = counted(task.prompts("train"), task)
    assert [skills[skill] for skill in SKILLS] == [0, 100, 500, 100, 700, 300]
    assert len(set(counted(task.prompts("held_out"), task).values())) <= 2  # there are only 80 single objects
    assert not set(task.prompts("train")) & set(task.prompts("held_out"))


def test_people_are_not_coloured_and_pairs_differ() -> None:
    for skill in ("colors", "color_attr"):
        assert all(wanted.kind != "person" for scene in drawn(skill, 300, 0) for wanted in scene.include)
    for skill in ("two_object", "position", "color_attr"):
        for scene in drawn(skill, 300, 0):
            first, second = scene.include
            assert first.kind != second.kind
            assert not first.colour or first.colour != second.colour


def test_a_file_of_metadata_is_split_within_each_skill(tmp_path: Path) -> None:
    scenes = [scene for skill in SKILLS for scene in drawn(skill, 60, 3)]
    own = Scene("two dogs on a sofa", "counting", (Wanted("dog", 2), Wanted("couch")))
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(to_metadata(scene)) for scene in [*scenes, own]))
    task = GenEvalTask(file=str(path), held_out_share=0.25)
    train, held_out = task.prompts("train"), task.prompts("held_out")
    assert not set(train) & set(held_out)
    assert {*train, *held_out} == {scene.prompt for scene in [*scenes, own]}
    assert all(3 <= count <= 30 for count in counted(held_out, task).values())
    assert task.scene(own.prompt) == own
    task.check(own.prompt)
    with pytest.raises(ValueError, match="none of GenEval's templates"):
        GenEvalTask().check(own.prompt)


def test_what_a_file_holds_out_is_never_trained_on(tmp_path: Path) -> None:
    path, other = tmp_path / "metadata.jsonl", tmp_path / "others.jsonl"
    made = [scene for skill in SKILLS for scene in drawn(skill, 40, 0)]  # the first that are made
    other.write_text("\n".join(json.dumps(to_metadata(scene)) for scene in made[::2]))
    path.write_text("\n".join(json.dumps(to_metadata(scene)) for scene in made))
    apart = GenEvalTask(held_out_file=str(other))
    assert not set(apart.prompts("train")) & set(apart.prompts("held_out"))
    assert len(apart.prompts("held_out")) == len(made[::2])
    both = GenEvalTask(file=str(path), held_out_file=str(other))
    assert both.prompts("train") == tuple(scene.prompt for scene in made[1::2])
    other.write_text(path.read_text())
    os.utime(other, ns=(1, 1))
    with pytest.raises(ValueError, match="every prompt to train on is also held out; name another held_out_file"):
        both.prompts("train")
    path.write_text(PUBLISHED[0])
    os.utime(path, ns=(1, 1))
    assert both.prompts("train") == ("a photo of an umbrella",)  # read again


def test_a_run_takes_the_task_with_its_reward_and_no_other_task_does() -> None:
    config = configure("flux", {"task.name": "geneval", "rewards.geneval": 1, "rewards.jpeg_size": 0})
    assert config.task.domain == "geneval"
    with pytest.raises(ValueError, match="reward 'geneval' cannot score images of task 'prompts'"):
        configure("flux", {"rewards.geneval": 1})
    with pytest.raises(ValueError, match="model 'shapes' does not understand the prompts of task 'geneval'"):
        configure("shapes", {"task.name": "geneval"})


# --- the rules


def thing(kind: str, left: float = 0, top: float = 0, size: float = 20, score: float = 0.95, colour: str = "") -> Found:
    return Found(kind, score, (left, top, left + size, top + size), colour=colour)


def scene_of(*things: Found) -> dict[str, list[Found]]:
    return sure(things, 0.3)


def verdict(scene: Scene, *things: Found) -> tuple[float, bool, bool]:
    found = judge(scene, scene_of(*things))
    assert found.strict == (not found.reasons)
    assert 0 <= found.dense <= 1
    assert not found.strict or found.dense == 1
    return found.dense, found.strict, found.benchmark


A, B = "dog", "bench"


@pytest.mark.parametrize(
    ("scene", "things", "wanted"),
    [
        # one object: a second one is wrong by the strict rule alone
        (single(A), [thing(A)], (1, True, True)),
        (single(A), [], (0, False, False)),
        (single(A), [thing(B)], (0, False, False)),
        (single(A), [thing(A), thing(A, 50)], (0, False, True)),
        # two objects
        (two(A, B), [thing(A), thing(B)], (1, True, True)),
        (two(A, B), [thing(A)], (0.5, False, False)),
        (two(A, B), [thing(A), thing(A), thing(B)], (0.5, False, True)),
        # counting: GenEval excludes one more
        (counting(A, 3), [thing(A)] * 3, (1, True, True)),
        (counting(A, 3), [thing(A)] * 2, (2 / 3, False, False)),
        (counting(A, 3), [thing(A)] * 4, (2 / 3, False, False)),
        (counting(A, 2), [thing(A)] * 9, (0, False, False)),  # never below 0
        # colours
        (coloured(A, "red"), [thing(A, colour="red")], (1, True, True)),
        (coloured(A, "red"), [thing(A, colour="blue")], (0.5, False, False)),
        (coloured(A, "red"), [], (0, False, False)),
        (coloured(A, "red"), [thing(A, colour="red"), thing(A, score=0.5, colour="blue")], (0, False, True)),
        (
            coloured(A, "red"),
            [thing(A, colour="blue"), thing(A, score=0.5, colour="red")],
            (0, False, False),
        ),  # the surest counts
        # places: the first stands so to the second
        (placed(A, "left of", B), [thing(A, 0), thing(B, 60)], (1, True, True)),
        (placed(A, "left of", B), [thing(A, 60), thing(B, 0)], (2 / 3, False, False)),
        (placed(A, "above", B), [thing(A, 0, 0), thing(B, 0, 60)], (1, True, True)),
        (placed(A, "below", B), [thing(A, 0, 60), thing(B, 0, 0)], (1, True, True)),
        (placed(A, "right of", B), [thing(A, 60)], (1 / 3, False, False)),
        (placed(A, "right of", B), [thing(B)], (1 / 3, False, False)),
        (placed(A, "right of", B), [thing(A, 60), thing(B), thing(B, 90, score=0.5)], (1 / 3, False, True)),
        # a colour each
        (both_coloured(A, "red", B, "blue"), [thing(A, colour="red"), thing(B, colour="blue")], (1, True, True)),
        (both_coloured(A, "red", B, "blue"), [thing(A, colour="blue"), thing(B, colour="red")], (0.5, False, False)),
        (both_coloured(A, "red", B, "blue"), [thing(A, colour="red"), thing(B, colour="red")], (0.75, False, False)),
        (both_coloured(A, "red", B, "blue"), [thing(B, colour="blue")], (0.5, False, False)),
        # what may not be there, beside what is asked for
        (Scene("x", "", (Wanted(A),), (Wanted(B),)), [thing(A)], (1, True, True)),
        (Scene("x", "", (Wanted(A),), (Wanted(B),)), [thing(A), thing(B)], (0.5, False, False)),
        (Scene("x", "", (Wanted(A, 2, "red"),)), [thing(A, colour="red"), thing(A, colour="blue")], (0.75, False, False)),
    ],
)
def test_the_rules_on_scenes_worked_out_by_hand(scene: Scene, things: list[Found], wanted: tuple[float, bool, bool]) -> None:
    assert verdict(scene, *things) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("scene", "things", "reason"),
    [
        (counting(A, 3), [thing(A)] * 4, ("expected 3 dog, found 4", "expected fewer than 4 dog, found 4")),
        (coloured(A, "red"), [thing(A, colour="blue")], ("expected 1 red dog, found blue",)),
        (placed(A, "left of", B), [thing(A, 60), thing(B)], ("expected dog left of bench, found it right of it",)),
        (placed(A, "left of", B), [thing(A), thing(B)], ("expected dog left of bench, found it neither side of it",)),
        (placed(A, "above", B), [thing(A)], ("expected 1 bench, found 0", "nothing for dog to be above")),
    ],
)
def test_a_verdict_says_what_is_wrong(scene: Scene, things: list[Found], reason: tuple[str, ...]) -> None:
    assert judge(scene, scene_of(*things)).reasons == reason


def test_the_other_side_is_the_mirror_image() -> None:
    draw = np.random.default_rng(0)
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for _ in range(300):
        x, y, w, h, u, v, p, q = (float(number) for number in draw.integers(1, 60, 8))
        first, second = (x, y, x + w, y + h), (u, v, u + p, v + q)
        assert relations(second, first) == {mirrored[name] for name in relations(first, second)}


def test_a_side_is_within_sixty_degrees_and_beyond_a_tenth_of_the_sizes() -> None:
    def at(angle: float, far: float = 1000.0) -> set[str]:
        x, y = far * math.cos(math.radians(angle)), -far * math.sin(math.radians(angle))
        return relations((x, y, x + 1, y + 1), (0, 0, 1, 1))

    assert at(0) == at(29) == {"right of"}
    assert at(45) == {"right of", "above"}
    assert at(-100) == {"below"}
    assert at(200) == {"left of"}
    wide = (0.0, 0.0, 100.0, 100.0)
    assert relations((19.9, 0, 119.9, 100), wide) == set()
    assert relations((45.0, 0, 145.0, 100), wide) == {"right of"}
    assert relations((19.9, 0, 119.9, 100), wide, threshold=0.05) == set()  # what is left of the way is less than half of it
    assert relations((21.0, 0, 121.0, 100), wide, threshold=0.05) == {"right of"}


def test_only_the_surest_objects_count() -> None:
    many = [thing(A, 30 * place, score=0.31 + place / 100) for place in range(MOST + 4)] + [thing(A, score=0.3)]
    found = sure(many, 0.3)
    assert [each.score for each in found[A]] == sorted((each.score for each in many), reverse=True)[:MOST]
    assert sure(many, 0.9) == {}


def test_of_two_that_overlap_the_surer_stays() -> None:
    near, far = thing(A, 2, score=0.8), thing(A, 60, score=0.7)
    assert sure([near, thing(A), far, thing(B)], 0.3, 0.5) == {A: [thing(A), far], B: [thing(B)]}
    assert sure([near, thing(A)], 0.3) == {A: [thing(A), near]}
    assert overlap((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 9, 9), (20, 0, 29, 9)) == 0


# --- detectors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {
        "mask2former": tiny_mask2former(root / "mask2former"),
        "grounding_dino": tiny_grounding_dino(root / "grounding_dino"),
        "clip": tiny_clip(root / "clip"),
    }


def pictures(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    rough = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(rough, (height, width), mode="nearest")


def as_pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


@cache
def detector(name: str, folder: Path) -> Detector:
    return load_detector(name, str(folder), CPU, setting="geneval.source", dtype=torch.float32, offline=True)


def found_by(name: str, folders: dict[str, Path], images: Tensor, kinds: list[Any], least: float) -> list[list[Found]]:
    with torch.no_grad():
        return detector(name, folders[name])(images, kinds, [least] * len(images))


def as_table(found: list[Found]) -> list[tuple[str, float, tuple[float, ...]]]:
    return sorted((each.kind, round(each.score, 4), tuple(round(edge, 1) for edge in each.box)) for each in found)


def test_mask2former_finds_what_its_queries_say(folders: dict[str, Path]) -> None:
    images = pictures(3, 64, 64)  # as large as the network sees them
    kinds = [("dog", "traffic light"), ("bench",), ("tv remote", "person", "dog")]
    found = found_by("mask2former", folders, images, kinds, 2e-4)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folders["mask2former"]).eval()
    pixels = Mask2FormerImageProcessorPil.from_pretrained(folders["mask2former"])(images=as_pil(images), return_tensors="pt")
    with torch.no_grad():
        told = model(pixel_values=pixels.pixel_values)
    for row, own in enumerate(kinds):
        wanted = []
        for query in range(model.config.num_queries):
            mask = functional.interpolate(told.masks_queries_logits[row : row + 1, query : query + 1], (64, 64), mode="bilinear")[
                0, 0
            ]
            rows, columns = np.nonzero((mask > 0).numpy())
            for kind in own:
                sureness = told.class_queries_logits[row, query].softmax(0)[CLASSES.index(kind)].item()
                if sureness <= 2e-4 or not len(rows):
                    continue
                clear = mask[mask > 0].sigmoid().mean().item() * sureness
                if clear > 2e-4:
                    wanted.append((kind, round(clear, 4), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
        assert wanted
        assert [(kind, pytest.approx(score, abs=2e-4)) for kind, score, _ in sorted(wanted)] == [
            entry[:2] for entry in as_table(found[row])
        ]
        boxes = torch.tensor([sorted(box for *_, box in told) for told in (wanted, as_table(found[row]))])
        assert (boxes[0] - boxes[1]).abs().max() == 0
        for each in found[row]:
            assert each.mask is not None
            rows, columns = np.nonzero(each.mask.numpy())
            assert each.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_grounding_dino_finds_what_its_boxes_say(folders: dict[str, Path]) -> None:
    images, kinds = pictures(3), [("dog", "traffic light"), ("bench",), ("tv remote", "person", "dog")]
    found = found_by("grounding_dino", folders, images, kinds, 0.2)
    model = GroundingDinoForObjectDetection.from_pretrained(folders["grounding_dino"]).eval()
    words = tokenizer(folders["grounding_dino"])
    processor = GroundingDinoImageProcessorPil.from_pretrained(folders["grounding_dino"])
    for row, own in enumerate(kinds):  # one by one, so that nothing is padded
        pixels = processor(images=as_pil(images[row : row + 1]), return_tensors="pt")
        tokens = words([" ".join(f"{kind}." for kind in own)], return_tensors="pt")
        with torch.no_grad():
            told = model(**pixels, **tokens)
        ids = tokens.input_ids[0].tolist()
        wanted = []
        for query in range(model.config.num_queries):
            sureness, place = {}, 1
            for kind in own:
                spelt = words(kind, add_special_tokens=False).input_ids
                assert ids[place : place + len(spelt)] == spelt
                sureness[kind] = told.logits[0, query, place : place + len(spelt)].sigmoid().mean().item()
                place += len(spelt) + 1
            kind = max(sureness, key=sureness.__getitem__)
            if sureness[kind] > 0.2:
                x, y, w, h = told.pred_boxes[0, query].tolist()
                box = (64 * (x - w / 2), 48 * (y - h / 2), 64 * (x + w / 2), 48 * (y + h / 2))
                wanted.append((kind, sureness[kind], box))
        assert len(found[row]) == len(wanted)
        for each, (kind, score, box) in zip(found[row], wanted, strict=True):
            assert each.kind == kind
            assert each.score == pytest.approx(score, abs=5e-3)
            assert each.box == pytest.approx(box, abs=0.3)
            assert each.mask is None
    assert any(found)


@pytest.mark.parametrize("name", ["mask2former", "grounding_dino"])
def test_nothing_is_found_above_the_highest_bar(name: str, folders: dict[str, Path]) -> None:
    assert found_by(name, folders, pictures(2), [("dog",), ("bench", "cat")], 1.0) == [[], []]


def test_a_detector_of_other_classes_or_another_network_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_mask2former(tmp_path / "other", labels=tuple(f"thing {number}" for number in range(80)))
    with pytest.raises(ValueError, match=r"other does not know 80 of GenEval's classes, such as person"):
        GenEval(source=str(other), clip=str(folders["clip"])).load(CPU)
    voc = tuple({"motorcycle": "motorbike", "tv": "tvmonitor", "computer mouse": "mouse"}.get(kind, kind) for kind in CLASSES)
    GenEval(source=str(tiny_mask2former(tmp_path / "voc", labels=voc)), clip=str(folders["clip"])).load(CPU)
    with pytest.raises(ValueError, match=r"of the kind 'mask2former', and geneval\.source wants a 'grounding-dino'"):
        GenEval(detector="grounding_dino", source=str(folders["mask2former"]), clip=str(folders["clip"])).load(CPU)
    with pytest.raises(ValueError, match=r"geneval\.clip = '.*nowhere' is no folder"):
        GenEval(source=str(folders["mask2former"]), clip=str(tmp_path / "nowhere")).load(CPU)


# --- colours


def test_an_object_is_cut_out_of_what_is_around_it() -> None:
    image, mask = pictures(1)[0], torch.zeros(48, 64, dtype=torch.bool)
    mask[10:20, 30:36] = True
    mask[12, 31] = False
    cut = cut_out(image, Found(A, 1.0, (29.6, 9.0, 36.4, 20.0), mask))
    wanted = image[:, 9:20, 30:36].clone()
    wanted[:, 0] = wanted[:, 3, 1] = 153 / 255
    assert torch.allclose(cut[0], wanted)
    assert torch.equal(cut_out(image, Found(A, 1.0, (-5.0, 40.0, 99.0, 60.0)))[0], image[:, 40:])
    assert cut_out(image, Found(A, 1.0, (80.0, 70.0, 90.0, 75.0))).shape == (1, 3, 1, 1)  # outside: the nearest pixel


def test_of_a_thin_object_the_middle_is_what_clip_sees(folders: dict[str, Path]) -> None:
    image, view = pictures(1, 48, 256)[0], read_view(folders["clip"])
    for box in ((3.0, 20.0, 251.0, 22.0), (10.0, 0.0, 12.0, 48.0)):
        left, top, right, bottom = map(int, box)
        cut = cut_out(image, Found(A, 1.0, box))
        assert sorted(cut.shape[2:]) == [2, 16]
        assert torch.equal(view(cut), view(image[None, :, top:bottom, left:right]))


def test_a_colour_is_the_nearest_of_ten_said_in_three_ways(folders: dict[str, Path]) -> None:
    images = pictures(2)
    scenes = [both_coloured(A, "red", B, "blue"), coloured("cat", "green")]
    objects = [scene_of(thing(A, 3, 4), thing(B, 30, 10, 25), thing(A, 20, score=0.5)), scene_of(thing("cat", 7, 7), thing(A))]
    clip = load_clip(str(folders["clip"]), CPU, setting="geneval.clip", dtype=torch.float32)
    with torch.no_grad():
        told = Colours(clip)(images, scenes, objects)
    assert [each.colour for each in told[0][A]][1:] == [""]  # only as many as are asked for
    assert told[1][A][0].colour == ""  # not asked for at all
    model, words = clip.model, tokenizer(folders["clip"])
    processor = CLIPImageProcessorPil.from_pretrained(folders["clip"])
    for row, kind, box in ((0, A, (3, 4, 23, 24)), (0, B, (30, 10, 55, 35)), (1, "cat", (7, 7, 27, 27))):
        pixels = processor(images=as_pil(images[row : row + 1])[0].crop(box), return_tensors="pt")
        said = []
        for colour in COLOURS:
            texts = [f"a photo of a {colour} {kind}", f"a photo of a {colour}-colored {kind}", f"a photo of a {colour} object"]
            with torch.no_grad():
                each = model.get_text_features(**words(texts, padding=True, return_tensors="pt")).pooler_output
            said.append(functional.normalize(functional.normalize(each, dim=1).mean(0), dim=0))
        with torch.no_grad():
            seen = functional.normalize(model.get_image_features(**pixels).pooler_output[0], dim=0)
        agreement = torch.stack(said) @ seen
        assert agreement[COLOURS.index(told[row][kind][0].colour)] > agreement.max() - 1e-3


# --- the reward


PROMPTS = [
    "a photo of a dog",
    "a photo of a dog and a bench",
    f"a photo of {NUMBERS[3]} cats",
    "a photo of a red dog",
    "a photo of a dog left of a bench",
    "a photo of a red dog and a blue bench",
]


def reward_of(folders: dict[str, Path], name: str, **settings: Any) -> GenEval:
    low, high = (0.002, 0.004) if name == "mask2former" else (0.2, 0.3)
    told = {"threshold": low, "counting_threshold": high, **settings}
    return GenEval(detector=name, source=str(folders[name]), clip=str(folders["clip"]), **told)


@pytest.mark.parametrize("name", ["mask2former", "grounding_dino"])
def test_the_reward_is_the_rules_on_what_is_found(name: str, folders: dict[str, Path]) -> None:
    images = pictures(6, seed=1)
    reward = reward_of(folders, name, batch=4)
    with torch.no_grad():
        told = reward.verdicts(CPU)(images, PROMPTS)
    kinds = [tuple(dict.fromkeys(each.kind for each in parse(prompt).include)) for prompt in PROMPTS]
    found = found_by(name, folders, images, kinds, 0.0)
    for row, prompt in enumerate(PROMPTS):
        bar = reward.counting_threshold if "three" in prompt else reward.threshold
        counts = {kind: len(objects) for kind, objects in sure(found[row], bar).items()}
        shares = [max(0.0, 1 - abs(counts.get(wanted.kind, 0) - wanted.count) / wanted.count) for wanted in parse(prompt).include]
        if not any(wanted.colour or wanted.position for wanted in parse(prompt).include):
            assert told[row].dense == pytest.approx(sum(shares) / len(shares))
        assert len([reason for reason in told[row].reasons if "found" in reason]) >= sum(share < 1 for share in shares)
    dense = reward.load(CPU)(images, PROMPTS)
    assert dense.dtype == torch.float32
    assert torch.allclose(dense, torch.tensor([verdict.dense for verdict in told]))
    assert torch.equal(dense, reward.load(CPU)(images, PROMPTS))
    for score in ("strict", "benchmark"):
        values = reward_of(folders, name, score=score).load(CPU)(images, PROMPTS)
        assert values.tolist() == [float(getattr(verdict, score)) for verdict in told]


def test_a_picture_scores_alike_alone_and_among_others(folders: dict[str, Path]) -> None:
    images = pictures(6, seed=2)
    score = reward_of(folders, "mask2former").load(CPU)
    alone = torch.cat([score(images[row : row + 1], [prompt]) for row, prompt in enumerate(PROMPTS)])
    assert torch.allclose(score(images, PROMPTS), alone)


def test_what_a_prompt_of_a_file_asks_for_is_read_there(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"tag": "x", "include": [{"class": "dog"}], "prompt": "my dog"}))
    images = pictures(1)
    own = reward_of(folders, "mask2former", metadata=str(path)).load(CPU)
    assert torch.equal(own(images, ["my dog"]), own(images, ["a photo of a dog"]))  # templates are understood beside it
    with pytest.raises(ValueError, match="prompt 'my dog' is of none of GenEval's templates"):
        reward_of(folders, "mask2former").load(CPU)(images, ["my dog"])
    with pytest.raises(ValueError, match=r"GenEval's metadata in .*none\.jsonl cannot be read"):
        reward_of(folders, "mask2former", metadata=str(tmp_path / "none.jsonl")).load(CPU)


def test_a_run_trains_on_it_and_tells_skills(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    geneval = reward_of(folders, "mask2former")
    run = FLUX.run(
        tiny_flux(tmp_path / "flux"),
        task={"name": "geneval", "count": 24},
        rewards=[{"reward": geneval.model_dump(), "weight": 1.0}],
        eval_rewards=[{"reward": {"name": "clip_score", "source": str(folders["clip"])}}],
        iterations=1,
        evaluation__images=24,
        evaluation__final_images=24,
        evaluation__group_size=2,
    )
    evaluated = [event for event in train(run) if isinstance(event, Evaluated)]
    assert set(evaluated[-1].breakdown) == set(SKILLS)
    (measures,) = evaluated[-1].measures.values()
    assert 0 <= measures["geneval"].value <= 1
    assert -100 <= measures["clip_score"].value <= 100
    wrong = run.model_copy(update={"prompts": ("my dog",)})
    with pytest.raises(ValueError, match="prompt 'my dog' is of none of GenEval's templates"):
        list(train(wrong))
