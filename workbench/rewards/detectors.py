"""Networks of transformers that find objects in pictures: Mask2Former by its own classes, Grounding DINO by their names."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.models.diffusers_folder import loading
from workbench.models.transformers_folder import transformers_folder
from workbench.rewards.clip import check_is, read_tokenizer
from workbench.rewards.views import View, read_view
from workbench.tasks.geneval_prompts import CLASSES
from workbench.tasks.geneval_rules import Found

SOURCES = {
    "mask2former": "facebook/mask2former-swin-small-coco-instance",
    "grounding_dino": "IDEA-Research/grounding-dino-base",
}
"""Where each is found on the hub."""

_OTHER_NAMES: Mapping[str, str] = {
    **{"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard", "hair dryer": "hair drier"},
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv", "television": "tv"},
    **{"pottedplant": "potted plant", "diningtable": "dining table", "doughnut": "donut", "cellphone": "cell phone"},
}
"""COCO's classes as other lists name them."""


class Detector(ABC):
    """What is where in pictures."""

    @abstractmethod
    def __call__(self, images: Tensor, kinds: Sequence[Sequence[str]], least: Sequence[float]) -> list[list[Found]]:
        """The objects in pictures [N, 3, H, W] in [0, 1], for each only those of its `kinds` that are surer than `least`."""


def load_detector(name: str, source: str, device: torch.device, *, setting: str, dtype: torch.dtype, offline: bool) -> Detector:
    """One of SOURCES, from a folder or the hub.

    Raises: ValueError: if it is missing, gated, damaged, another network, or does not know the classes of GenEval.
    """
    folder = transformers_folder(source or SOURCES[name], setting, offline=offline)
    check_is(folder, name.replace("_", "-"), setting)
    from transformers import GroundingDinoForObjectDetection, Mask2FormerForUniversalSegmentation

    kind = Mask2FormerForUniversalSegmentation if name == "mask2former" else GroundingDinoForObjectDetection
    with loading(folder):
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device).requires_grad_(False).eval()
    view = read_view(folder)
    return Segmenter(model, view, str(folder)) if name == "mask2former" else Grounder(model, view, read_tokenizer(folder))


class Segmenter(Detector):
    """Mask2Former for instances: each of its queries is a mask and a confidence for each class.

    Raises: ValueError: if it does not know a class of GenEval, saying so of `origin`.
    """

    def __init__(self, model: Any, view: View, origin: str) -> None:
        self.model, self.view = model, view
        labels = {int(number): str(label).lower() for number, label in model.config.id2label.items()}
        self.places = {_OTHER_NAMES.get(label, label): number for number, label in labels.items()}
        if unknown := [kind for kind in CLASSES if kind not in self.places]:
            raise ValueError(
                f"{origin} does not know {len(unknown)} of GenEval's classes, such as {unknown[0]}; take one of COCO's instances"
            )

    def __call__(self, images: Tensor, kinds: Sequence[Sequence[str]], least: Sequence[float]) -> list[list[Found]]:
        seen = self.view(images)
        told = self.model(pixel_values=seen.to(self.model.dtype))
        sureness = told.class_queries_logits.float().softmax(-1)[..., :-1]  # the last one is "nothing"
        found: list[list[Found]] = []
        for masks, sure, own, bar in zip(told.masks_queries_logits, sureness, kinds, least, strict=True):
            places = torch.tensor([self.places[kind] for kind in own], device=sure.device)
            query, kind = torch.nonzero(sure[:, places] > bar, as_tuple=True)
            if not len(query):
                found.append([])
                continue
            which, row = query.unique(return_inverse=True)
            whole = functional.interpolate(masks[which][None].float(), images.shape[-2:], mode="bilinear", align_corners=False)[0]
            inside = whole > 0
            clarity = (whole.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
            scores = sure[query, places[kind]] * clarity[row]
            boxes = _boxes_of(inside)
            found.append(
                [
                    Found(own[number], score, tuple(box), inside[at])
                    for number, score, box, at in zip(
                        kind.tolist(), scores.tolist(), boxes[row].tolist(), row.tolist(), strict=True
                    )
                    if score > bar
                ]
            )
        return found


class Grounder(Detector):
    """Grounding DINO: it reads the names of the kinds that are looked for, and has boxes alone."""

    def __init__(self, model: Any, view: View, tokenizer: Any) -> None:
        self.model, self.view, self.tokenizer = model, view, tokenizer

    def __call__(self, images: Tensor, kinds: Sequence[Sequence[str]], least: Sequence[float]) -> list[list[Found]]:
        seen = self.view(images)
        tokens = self.tokenizer(
            [" ".join(f"{kind}." for kind in own) for own in kinds],
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        offsets = tokens.pop("offset_mapping")
        tokens = tokens.to(seen.device)
        mask = torch.ones(len(seen), *seen.shape[-2:], dtype=torch.long, device=seen.device)
        told = self.model(pixel_values=seen.to(self.model.dtype), pixel_mask=mask, **tokens)
        height, width = images.shape[-2:]
        corners = _corners(told.pred_boxes.float()) * told.pred_boxes.new_tensor([width, height, width, height]).float()
        found = []
        for sure, boxes, own, places, bar in zip(told.logits.float().sigmoid(), corners, kinds, offsets, least, strict=True):
            names = torch.stack([sure[:, spelt].mean(-1) for spelt in _spelt(own, places, sure.device)], 1)
            score, kind = names.max(1)  # a box is one thing
            rows = torch.nonzero(score > bar).flatten()
            found.append(
                [
                    Found(own[number], value, tuple(box))
                    for number, value, box in zip(kind[rows].tolist(), score[rows].tolist(), boxes[rows].tolist(), strict=True)
                ]
            )
        return found


def _spelt(kinds: Sequence[str], offsets: Tensor, device: torch.device) -> list[Tensor]:
    """The places of the tokens that spell each kind, of "one. another." """
    rows, start = [], 0
    for kind in kinds:
        end = start + len(kind)
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
        rows.append(torch.nonzero(inside).flatten().to(device))
        start = end + 2
    return rows


def _boxes_of(masks: Tensor) -> Tensor:
    """Masks [K, H, W] -> their edges [K, 4]: left, top, and the first pixels beyond at the right and below; 0 where empty."""
    edges = []
    for axis in (1, 2):  # what is in any row is in a column
        line = masks.any(axis)
        place = torch.arange(line.shape[1], device=masks.device)
        first = torch.where(line, place, line.shape[1]).amin(1)
        last = torch.where(line, place + 1, 0).amax(1)
        edges += [torch.where(last > 0, first, 0), last]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], 1).float()


def _corners(boxes: Tensor) -> Tensor:
    """Centres and sizes [..., 4] -> left, top, right, bottom."""
    centre, size = boxes.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)
