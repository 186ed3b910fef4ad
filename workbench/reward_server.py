"""A reward served over HTTP, as the reward `remote` asks for it: JSON and PNG, nothing that could run code."""

import base64
import binascii
import io
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from workbench.contracts import Reward, RewardFailed
from workbench.rewards.remote import PATH
from workbench.scoring import Rewards
from workbench.settings import WeightedReward

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_BODY = 256 * 2**20
"""Most bytes of a request."""
MOST_IMAGES = 256
"""Most pictures of a request."""
LARGEST_SIDE = 4096
"""Most pixels of a picture's side."""
LARGEST_PIXELS = 2**28
"""Most pixels of a request, over all its pictures: what compresses well takes no more memory than this."""
MOST_WAITING = 8
"""Most requests that wait for their turn; whoever else asks is told to come again."""


class Asked(BaseModel):
    """A request: pictures, all of one size, as PNG files in base64, each with its prompt."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[Annotated[str, Field(max_length=10_000)]] = Field(min_length=1, max_length=MOST_IMAGES)
    images: list[str] = Field(min_length=1, max_length=MOST_IMAGES)


def make_app(reward: Reward, device: torch.device, token: str = "") -> FastAPI:
    """The application that serves a reward, loaded; one request is scored at a time.

    POST /score takes `Asked` and answers {"values": [N numbers]}; GET /health says which reward it is. Whatever goes wrong is
    told as {"detail": text} with a status: 401 a wrong token, 413 too much, 415 no JSON, 422 not to be understood, 500 the reward
    failed, 503 with Retry-After too many wait already.

    Args:
        token: what a request must bear; none where empty.
    """
    rewards = Rewards([WeightedReward.model_construct(reward=reward, weight=1.0)], device)  # it may be of nobody's list
    name = str(reward.name)  # type: ignore[attr-defined]
    told = {"reward": name, "settings": reward.model_dump(mode="json", exclude={"name"}), "device": str(device)}
    turn = anyio.Semaphore(1)

    def scored(asked: Asked) -> dict[str, Tensor]:
        with torch.no_grad():
            return rewards.score(_pictures(asked.images), asked.prompts)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(_bears(token))])

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return told

    @app.post(PATH)
    async def score(request: Request) -> dict[str, Any]:
        asked = _understood(await _body(request))
        if turn.statistics().tasks_waiting >= MOST_WAITING:
            raise HTTPException(503, f"{MOST_WAITING} requests wait here already", {"Retry-After": "1"})
        async with turn:
            if await request.is_disconnected():  # nobody waits any more, and others do
                raise HTTPException(408, "whoever asked has gone")
            try:
                values = await anyio.to_thread.run_sync(scored, asked)
            except RewardFailed as error:
                raise HTTPException(500, str(error)) from error
        return {"reward": name, "values": values[name].tolist()}

    return app


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until interrupted or asked to end."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that requests can come to. Raises: OSError: if the address is not this machine's, or the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or answers are held back for 40 ms
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise OSError(
            f"{host}:{port} cannot be listened at: {error.strerror or error}; choose another --port or --host"
        ) from error
    return listening


def _bears(token: str) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        if token and not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "this server asks for a token, and it is another one", {"WWW-Authenticate": "Bearer"})

    return check


async def _body(request: Request) -> bytes:
    """What was sent, as far as it is JSON and not too large: a page of another site cannot send JSON without asking first."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, as application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"send at most {LARGEST_BODY / 2**20:g} MiB at a time: fewer pictures in a request")
    return bytes(body)


def _understood(body: bytes) -> Asked:
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise HTTPException(422, f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from None
    if len(asked.prompts) != len(asked.images):
        raise HTTPException(422, f"{len(asked.images)} images came with {len(asked.prompts)} prompts; send as many")
    return asked


def _pictures(images: list[str]) -> Tensor:
    """PNG files in base64 as [N, 3, H, W] in [0, 1]."""
    import numpy as np

    opened = [_opened(place, text) for place, text in enumerate(images)]
    sizes = sorted({picture.size for picture in opened})
    if len(sizes) > 1:
        raise HTTPException(422, f"all images of a request have one size, got {' and '.join(f'{w} x {h}' for w, h in sizes)}")
    width, height = sizes[0]
    if (asked := width * height * len(opened)) > LARGEST_PIXELS:
        raise HTTPException(
            413,
            f"send at most {LARGEST_PIXELS} pixels at a time, got {asked}: fewer pictures in a request, or smaller ones",
        )
    try:
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in opened])
    except (OSError, SyntaxError, ValueError) as error:
        raise HTTPException(422, f"an image is damaged: {error}") from None
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def _opened(place: int, text: str) -> "Image":
    """A picture whose pixels have not been read yet, so that nobody has to hold more of them than are allowed."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HTTPException(422, f"image {place} is not a PNG file in base64: {error}") from None
    if max(picture.size) > LARGEST_SIDE:
        raise HTTPException(422, f"image {place} has {picture.width} x {picture.height} pixels; at most {LARGEST_SIDE} a side")
    return picture
