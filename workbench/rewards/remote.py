"""A reward that another process works out, on this machine or another; `python -m workbench serve-reward` is such a process."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFunction
from workbench.rewards.asking import Address, Question, Service, Unusable, Variable, excerpt, png

PATH = "/score"
"""Where a server takes {"prompts": [N texts], "images": [N PNG files in base64]}; its answer is {"values": [N numbers]}."""


class Remote(Reward):
    """Whatever reward a server gives, over HTTP; several servers share the work. Start one with `serve-reward NAME`.

    Pictures go as PNG of 8 bits a channel. A server that is down, slow, or answers with anything but one finite number for each
    picture is an error that keeps the run resumable, never a score.
    """

    name: Literal["remote"] = "remote"
    addresses: tuple[Address, ...] = Field(
        ("http://127.0.0.1:8400",), min_length=1, description="servers of one and the same reward, asked in turn"
    )
    batch: int = Field(8, ge=1, le=256, description="pictures of one request")
    concurrency: int = Field(2, ge=1, le=64, description="requests that a process has open at the same time, over all addresses")
    timeout: float = Field(120.0, gt=0, le=3600, description="seconds that one request may take")
    retries: int = Field(3, ge=0, le=20, description="how often a request is sent again that a server did not answer")
    token_variable: Variable = Field(
        "WORKBENCH_REWARD_TOKEN",
        description="environment variable that holds the servers' token, where they ask for one; over plain http it goes "
        "to this machine alone, and to hosts that $WORKBENCH_PLAIN_HOSTS lists",
    )

    background: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def load(self, device: torch.device) -> RewardFunction:
        return _Asked(self)


class _Asked:
    """The reward of a server."""

    def __init__(self, settings: Remote) -> None:
        self._batch = settings.batch
        self._service = Service(
            settings.addresses,
            PATH,
            variable=settings.token_variable,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            retries=settings.retries,
            remedy="see that `python -m workbench serve-reward NAME` runs there, or raise remote.timeout",
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]. Raises: RewardFailed: naming the address, a prompt and the cause."""
        parts = [slice(start, start + self._batch) for start in range(0, len(prompts), self._batch)]
        questions = [_question(images[part], prompts[part]) for part in parts]
        values = self._service.ask(questions)
        return torch.tensor([value for some in values for value in some])

    def close(self) -> None:
        """Break off what is asked."""
        self._service.close()


def _question(images: Tensor, prompts: Sequence[str]) -> Question[list[float]]:
    def body() -> dict[str, Any]:
        return {"prompts": list(prompts), "images": [png(image) for image in images]}

    return Question(body, prompts[0], partial(_read, count=len(prompts)))


def _read(answer: Any, count: int) -> list[float]:
    """One finite number for each picture. Raises: Unusable: if the answer is anything else."""
    values = answer.get("values") if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise Unusable(f"answered without a list of 'values': {excerpt(answer)}")
    if len(values) != count:
        raise Unusable(f"gave {len(values)} values for {count} pictures")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise Unusable(f"gave values that are not finite numbers: {excerpt(values)}")
    return [float(value) for value in values]
