"""GenEval: whether a detector finds what the prompt asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from workbench.contracts import RewardFunction
from workbench.models.pipeline import DTYPES
from workbench.models.transformers_folder import cached_files
from workbench.rewards.clip import CLIP, load_clip
from workbench.rewards.detectors import SOURCES, load_detector
from workbench.rewards.learned import LearnedReward
from workbench.tasks.geneval_prompts import COLOURS, Scene, parse, read_scenes
from workbench.tasks.geneval_rules import Found, Verdict, judge, sure

_SAID = ("a photo of a {colour} {kind}", "a photo of a {colour}-colored {kind}", "a photo of a {colour} object")
_GREY = 0.6  # 153 of 255
_CROPS = 64  # that CLIP sees at a time
_LONGEST = 8  # times its width that a crop is long, which is enlarged until its shorter edge is as CLIP wants it


class GenEval(LearnedReward):
    """GenEval: objects, counts, colours and positions that a prompt asks for, as a detector sees them; in [0, 1].

    Objects are found by Mask2Former, or by Grounding DINO; their colour is CLIP's opinion of the object alone, on grey. It looks
    at nothing else, so pictures may lose in taste: let another reward, or a judge, watch that.

    GenEval's own detector is a Mask2Former on Swin-S that MMDetection trained on COCO. The one here has the same architecture,
    data and classes but other weights, those of its authors, so scores do not compare digit by digit with published ones.

    Source: GenEval (arXiv:2310.11513); the dense score is that of Flow-GRPO (arXiv:2505.05470), kept within [0, 1].
    """

    name: Literal["geneval"] = "geneval"
    score: Literal["dense", "strict", "benchmark"] = Field(
        "dense",
        description="dense: share of what is asked, by counts, colours and places (Flow-GRPO trains on it); strict: 1 where all "
        "is right and counts are exact, else 0; benchmark: 1 by GenEval's own rule, where only counting has a most",
    )
    detector: Literal["mask2former", "grounding_dino"] = Field(
        "mask2former",
        description="what finds objects: mask2former, the kind that GenEval uses; grounding_dino reads class names, has no masks",
    )
    source: str = Field(
        "",
        description="folder or id of the detector; empty: facebook/mask2former-swin-small-coco-instance, a near relative of "
        "GenEval's own and not the same weights, or IDEA-Research/grounding-dino-base",
    )
    clip: str = Field("openai/clip-vit-large-patch14", description="folder or id of the CLIP that tells colours")
    metadata: str = Field("", description="the task's own file of metadata; empty reads what is asked from the prompt's template")
    threshold: float = Field(0.3, ge=0, le=1, description="least confidence of an object, 0.3 as published for its detector")
    counting_threshold: float = Field(
        0.9,
        ge=0,
        le=1,
        description="the same where objects are counted: 0.9 as published for its detector; about 0.4 for grounding_dino",
    )
    max_overlap: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of two objects of a kind that overlap by this share only the surer stays; 1 keeps all, as published",
    )
    position_threshold: float = Field(
        0.1, ge=0, le=1, description="how far objects are apart, in their own sizes, before a side counts; 0.1 as published"
    )
    batch: int = Field(8, ge=1, le=256, description="pictures that the detector sees at a time")

    domain = "geneval"
    published = 68_741_083 + 427_616_513  # Mask2Former and CLIP

    def weight_files(self) -> tuple[Path, ...]:
        return (*cached_files(self.source or SOURCES[self.detector]), *cached_files(self.clip))

    def check(self, prompt: str) -> None:
        self.scene(prompt)

    def scene(self, prompt: str) -> Scene:
        """What a prompt asks for. Raises: ValueError: if the metadata has it not, or cannot be read, and it is of no template."""
        known = read_scenes(self.metadata) if self.metadata else {}
        return known.get(prompt) or parse(prompt)

    def scorer(self, device: torch.device) -> RewardFunction:
        verdicts = self.verdicts(device)

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.tensor([float(getattr(verdict, self.score)) for verdict in verdicts(images, prompts)])

        return score

    def verdicts(self, device: torch.device) -> Callable[[Tensor, Sequence[str]], list[Verdict]]:
        """What gives a verdict with its reasons on each of one portion of pictures [N, 3, H, W] in [0, 1].

        Raises: ValueError: as `load` does; and from the call, where it is not known what a prompt asks for.
        """
        dtype, offline = DTYPES[self.dtype], self.offline
        if self.metadata:
            read_scenes(self.metadata)  # which may be missing
        detect = load_detector(self.detector, self.source, device, setting="geneval.source", dtype=dtype, offline=offline)
        colours = Colours(load_clip(self.clip, device, setting="geneval.clip", dtype=dtype, offline=offline))

        @torch.no_grad()
        def told(images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
            scenes = [self.scene(prompt) for prompt in prompts]
            kinds = [tuple(dict.fromkeys(each.kind for each in (*scene.include, *scene.exclude))) for scene in scenes]
            bars = [self.counting_threshold if scene.skill == "counting" else self.threshold for scene in scenes]
            found = detect(images, kinds, bars)
            objects = [sure(own, bar, self.max_overlap) for own, bar in zip(found, bars, strict=True)]
            objects = colours(images, scenes, objects)
            pairs = zip(scenes, objects, strict=True)
            return [judge(scene, own, self.position_threshold) for scene, own in pairs]

        return told


class Colours:
    """Tells the colour of objects: CLIP's choice for the object alone, on grey where there is a mask, cut to its box."""

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self._directions: dict[str, Tensor] = {}

    def __call__(
        self, images: Tensor, scenes: Sequence[Scene], objects: Sequence[Mapping[str, Sequence[Found]]]
    ) -> list[dict[str, list[Found]]]:
        """The same objects; those whose colour is asked for know it, the surest ones, as many as are wanted."""
        told = [{kind: list(own) for kind, own in found.items()} for found in objects]
        asked = [
            (row, wanted.kind, place)
            for row, scene in enumerate(scenes)
            for wanted in scene.include
            if wanted.colour
            for place in range(min(wanted.count, len(told[row].get(wanted.kind, ()))))
        ]
        asked = list(dict.fromkeys(asked))
        for start in range(0, len(asked), _CROPS):
            portion = asked[start : start + _CROPS]
            seen = torch.cat([self.clip.view(cut_out(images[row], told[row][kind][place])) for row, kind, place in portion])
            choices = torch.stack([self.directions(kind) for _, kind, _ in portion])
            best = torch.einsum("nd,ncd->nc", self.clip.seen(seen), choices).argmax(1).tolist()
            for (row, kind, place), colour in zip(portion, best, strict=True):
                told[row][kind][place] = replace(told[row][kind][place], colour=COLOURS[colour])
        return told

    def directions(self, kind: str) -> Tensor:
        """[colours, D] of length 1: a kind in every colour, said in three ways."""
        if kind not in self._directions:
            texts = [text.format(colour=colour, kind=kind) for colour in COLOURS for text in _SAID]
            said = self.clip.texts(texts).view(len(COLOURS), len(_SAID), -1)
            self._directions[kind] = functional.normalize(said.mean(1), dim=-1)
        return self._directions[kind]


def cut_out(image: Tensor, found: Found) -> Tensor:
    """An object of a picture [3, H, W] as [1, 3, h, w]: what is around it grey where there is a mask, cut to its box.

    Of very long boxes only the middle is left, more than CLIP sees of them.
    """
    height, width = image.shape[1:]
    if found.mask is not None:
        image = torch.where(found.mask, image, torch.full_like(image, _GREY))
    left, top, right, bottom = (round(edge) for edge in found.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    right, bottom = max(min(right, width), left + 1), max(min(bottom, height), top + 1)
    trim = max(0, right - left - _LONGEST * (bottom - top)) // 2, max(0, bottom - top - _LONGEST * (right - left)) // 2
    return image[None, :, top + trim[1] : bottom - trim[1], left + trim[0] : right - trim[0]]
