"""GenEval's prompts: what each asks for, in its published format, and its templates read both ways."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.flow import seed_stream, seeded_uniform

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant"),
    *("stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork"),
    *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
    *("scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""The 80 classes of COCO in their order, by GenEval's names."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
POSITIONS = ("left of", "right of", "above", "below")
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""By GenEval's names."""

_OPENING = "a photo of "


@dataclass(frozen=True)
class Wanted:
    """Objects that a picture shall show, or that it shall show fewer of than `count`."""

    kind: str  # one of CLASSES
    count: int = 1
    colour: str = ""  # one of COLOURS; empty for any
    position: str = ""  # one of POSITIONS: where it stands to those that `target` names; empty for anywhere
    target: int = -1  # which of the objects before it


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for."""

    prompt: str
    skill: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


def single(kind: str) -> Scene:
    return Scene(f"{_OPENING}{_one(kind)}", "single_object", (Wanted(kind),))


def two(first: str, second: str) -> Scene:
    return Scene(f"{_OPENING}{_one(first)} and {_one(second)}", "two_object", (Wanted(first), Wanted(second)))


def counting(kind: str, count: int) -> Scene:
    """`count` of a kind and not one more."""
    prompt = f"{_OPENING}{NUMBERS[count]} {plural(kind)}"
    return Scene(prompt, "counting", (Wanted(kind, count),), (Wanted(kind, count + 1),))


def coloured(kind: str, colour: str) -> Scene:
    return Scene(f"{_OPENING}{_one(colour)} {kind}", "colors", (Wanted(kind, colour=colour),))


def placed(first: str, position: str, second: str) -> Scene:
    """The first kind stands so to the second, which comes first in the metadata."""
    prompt = f"{_OPENING}{_one(first)} {position} {_one(second)}"
    return Scene(prompt, "position", (Wanted(second), Wanted(first, position=position, target=0)))


def both_coloured(first: str, one: str, second: str, other: str) -> Scene:
    """A kind of each colour."""
    prompt = f"{_OPENING}{_one(one)} {first} and {_one(other)} {second}"
    return Scene(prompt, "color_attr", (Wanted(first, colour=one), Wanted(second, colour=other)))


def plural(kind: str) -> str:
    """As GenEval's templates write it, which is not always English."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Scene:
    """What a prompt of a template asks for. Raises: ValueError: if it is of none; shows them."""
    scene = _parsed(prompt)
    if scene is None:
        raise ValueError(
            f"prompt {prompt!r} is of none of GenEval's templates, such as 'a photo of a bench', 'a photo of a bench and a cat', "
            "'a photo of three cats', 'a photo of a red bench', 'a photo of a cat left of a bench', 'a photo of a red bench and "
            "a blue cat', with the classes of COCO; or name the file with its metadata"
        )
    return scene


def _parsed(prompt: str) -> Scene | None:
    if not prompt.startswith(_OPENING):
        return None
    text = prompt.removeprefix(_OPENING)
    for joint in ("and", *POSITIONS):
        first, found, second = text.partition(f" {joint} ")
        if not found:
            continue
        parts = _article(first), _article(second)
        if None in parts:
            return None
        (one, a), (other, b) = parts  # type: ignore[misc]
        if joint != "and":
            return placed(a, joint, b) if not one and not other else None
        if bool(one) != bool(other):
            return None
        return both_coloured(a, one, b, other) if one else two(a, b)
    number, _, noun = text.partition(" ")
    if number in NUMBERS and noun in _PLURALS:
        return counting(_PLURALS[noun], NUMBERS.index(number))
    part = _article(text)
    if part is None:
        return None
    colour, kind = part
    return coloured(kind, colour) if colour else single(kind)


def _article(text: str) -> tuple[str, str] | None:
    """'a red bench' -> its colour, empty for none, and its kind; None where the words are not of a template."""
    article, _, noun = text.partition(" ")
    if article != _one(noun).partition(" ")[0]:
        return None
    if noun in CLASSES:
        return "", noun
    colour, _, kind = noun.partition(" ")
    return (colour, kind) if colour in COLOURS and kind in CLASSES else None


def _one(name: str) -> str:
    return f"an {name}" if name[:1] in tuple("aeiou") else f"a {name}"


_PLURALS: Mapping[str, str] = {plural(kind): kind for kind in CLASSES}


def to_metadata(scene: Scene) -> dict[str, Any]:
    """A scene in GenEval's own format, one line of its files."""

    def wanted(each: Wanted) -> dict[str, Any]:
        told: dict[str, Any] = {"class": each.kind, "count": each.count}
        if each.colour:
            told["color"] = each.colour
        if each.position:
            told["position"] = [each.position, each.target]
        return told

    told: dict[str, Any] = {"tag": scene.skill, "include": [wanted(each) for each in scene.include]}
    if scene.exclude:
        told["exclude"] = [wanted(each) for each in scene.exclude]
    return {**told, "prompt": scene.prompt}


def from_metadata(told: Any) -> Scene:
    """A scene from one line of GenEval's files. Raises: ValueError: naming what is missing, unknown or of the wrong kind."""
    if not isinstance(told, dict):
        raise ValueError(f"each line must be an object with tag, include and prompt, got {str(told)[:60]}")
    prompt = told.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"'prompt' must be text, got {prompt!r}")
    include = tuple(_wanted(each, place) for place, each in enumerate(_several(told, "include")))
    if not include:
        raise ValueError("'include' must name at least one class")
    return Scene(prompt, str(told.get("tag", "")), include, tuple(_wanted(each, 0) for each in _several(told, "exclude")))


def _several(told: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = told.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"{name!r} must be a list, got {found!r}")
    return found


def _wanted(told: Any, place: int) -> Wanted:
    if not isinstance(told, dict):
        raise ValueError(f"each of 'include' and 'exclude' must be an object with class and count, got {told!r}")
    kind, count, colour = told.get("class"), told.get("count", 1), told.get("color", "")
    if kind not in CLASSES:
        raise ValueError(f"unknown class {kind!r}; choose from: {', '.join(CLASSES)}")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"'count' of {kind} must be a whole number, 1 or more, got {count!r}")
    if colour and colour not in COLOURS:
        raise ValueError(f"unknown color {colour!r} of {kind}; choose from: {', '.join(COLOURS)}")
    position, target = "", -1
    if told.get("position"):
        position, target = told["position"] if isinstance(told["position"], list) and len(told["position"]) == 2 else ("", -1)
        if position not in POSITIONS or not isinstance(target, int) or not 0 <= target < place:
            raise ValueError(
                f"'position' of {kind} must be one of {', '.join(POSITIONS)} and the number of an object before it, got "
                f"{told['position']!r}"
            )
    return Wanted(kind, count, colour, position, target)


def read_scenes(file: str) -> Mapping[str, Scene]:
    """The scenes of a file of metadata by prompt, in their order; read again when it changes.

    Raises: ValueError: if it cannot be read, naming the line.
    """
    path = Path(file).expanduser()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(
            f"GenEval's metadata in {file} cannot be read: {told}; name a JSONL file such as evaluation_metadata.jsonl"
        ) from error


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Mapping[str, Scene]:
    found: dict[str, Scene] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            scene = from_metadata(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        found[scene.prompt] = scene
    if not found:
        raise ValueError(f"{path} holds no prompts; it must have one JSON object on each line")
    return found


def drawn(skill: str, most: int, seed: int) -> list[Scene]:
    """`most` different scenes of a skill, or all where there are fewer; any stretch of them is a fair draw.

    As in GenEval people are not coloured, and counts go from two to four.
    """
    if skill in _FEW:
        return sorted(_FEW[skill](), key=lambda scene: seed_stream("geneval", seed, scene.prompt))[:most]
    found: dict[str, Scene] = {}
    for turn in range(10 * most):  # thousands of scenes, so few come twice
        if len(found) == most:
            break
        scene = _MANY[skill](_Draw(seed, skill, turn))
        found.setdefault(scene.prompt, scene)
    return list(found.values())


class _Draw:
    """Fair choices, each by its own name."""

    def __init__(self, *key: int | str) -> None:
        self.key = key

    def __call__(self, name: str, choices: Sequence[str], than: str = "") -> str:
        """One of them, another than `than`."""
        left = [choice for choice in choices if choice != than]
        return left[int(seeded_uniform("geneval", *self.key, name) * len(left))]


_THINGS = CLASSES[1:]  # all but people


def _draw_two(draw: _Draw) -> Scene:
    first = draw("first", CLASSES)
    return two(first, draw("second", CLASSES, first))


def _draw_placed(draw: _Draw) -> Scene:
    first = draw("first", CLASSES)
    return placed(first, draw("position", POSITIONS), draw("second", CLASSES, first))


def _draw_both(draw: _Draw) -> Scene:
    first, one = draw("first", _THINGS), draw("one", COLOURS)
    return both_coloured(first, one, draw("second", _THINGS, first), draw("other", COLOURS, one))


_FEW: Mapping[str, Callable[[], list[Scene]]] = {
    "single_object": lambda: [single(kind) for kind in CLASSES],
    "counting": lambda: [counting(kind, count) for kind in CLASSES for count in (2, 3, 4)],
    "colors": lambda: [coloured(kind, colour) for kind in _THINGS for colour in COLOURS],
}
_MANY: Mapping[str, Callable[[_Draw], Scene]] = {
    "two_object": _draw_two,
    "position": _draw_placed,
    "color_attr": _draw_both,
}
