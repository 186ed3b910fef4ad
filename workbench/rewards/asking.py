"""Questions to services over HTTP: several at a time, in bounded time, asked again where that may help, every failure told."""

import base64
import io
import ipaddress
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from torch import Tensor

from workbench.contracts import RewardFailed

if TYPE_CHECKING:
    from httpx import AsyncClient

T = TypeVar("T")

BACKOFF = 0.5
"""Seconds before a question is asked again; twice as long each time, at most 16 times as long."""
LARGEST_ANSWER = 2**20
"""Most bytes of an answer that are read."""

PLAIN_HOSTS = "WORKBENCH_PLAIN_HOSTS"
"""The environment variable that lists hosts, separated by commas, to which keys may go over plain http."""

_EXCERPT = 300  # characters of an answer that a message quotes
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def _is_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is not an address; write http://HOST:PORT or https://HOST")
    if parts.username or parts.password:
        raise ValueError("an address is recorded with the run and may not hold a password; name a variable that holds it")
    if parts.query or parts.fragment:
        raise ValueError(f"{address!r} has more than a path after its host; leave out '?' and '#'")
    return address.rstrip("/")


Address = Annotated[str, AfterValidator(_is_address)]
"""An http or https URL without password, query and trailing slash."""

Variable = Annotated[str, Field(pattern=r"^WORKBENCH_[A-Z0-9_]*(KEY|TOKEN)$", max_length=100)]
"""The name of an environment variable that holds a key. No other variable can be named: who may set an address could read it."""


class Unusable(ValueError):
    """An answer that cannot be used, and why."""


class _Passing(Exception):
    """A failure that may have passed by the next time."""


class _Busy(_Passing):
    """No failure: the server says when to come again."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """What is posted, the prompt that it is about, and how its answer is read."""

    body: Callable[[], dict[str, Any]]  # made when its turn has come
    prompt: str
    read: Callable[[Any], T]  # takes the JSON of an answer; raises Unusable where it is of no use, which asks again


class Service:
    """Addresses that all answer alike and are asked in turn; a question that one fails goes to the next.

    Args:
        path: what is posted to, after each address.
        variable: the environment variable that holds the key, sent as a bearer token where it is set; over plain http only to
            this machine and to hosts that $WORKBENCH_PLAIN_HOSTS lists.
        concurrency: questions that are open at the same time.
        timeout: seconds that one question may take.
        retries: how often it is asked again. A server that is busy and says when to come again has not failed: it is asked again
            as long as failures might have taken altogether.
        remedy: what to do where all fails, for messages.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        path: str,
        *,
        variable: str,
        concurrency: int,
        timeout: float,
        retries: int,
        remedy: str,
    ) -> None:
        import httpx

        self._addresses, self._path, self._variable = tuple(addresses), path, variable
        self._concurrency, self._timeout, self._retries, self._remedy = concurrency, timeout, retries, remedy
        self._key = key_in(variable)
        if self._key:
            _expect_private(addresses, variable)
        self._trusted = httpx.create_ssl_context()
        self._asked: Future[Any] | None = None
        self._closed = False

    def ask(self, questions: Sequence[Question[T]]) -> list[T]:
        """The answers as they were read, in the order of the questions. For one thread at a time.

        Raises: RewardFailed: the first failure that asking again did not mend, naming the address, the prompt and the cause.
        """
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:  # works inside a notebook's own loop, and lets `close` end what is open
            self._asked = portal.start_task_soon(self._ask_all, questions)
            if self._closed:
                self._asked.cancel()
            try:
                return self._asked.result()
            except CancelledError:
                raise RewardFailed("it was closed before it had its answers") from None

    def close(self) -> None:
        """Break off what is asked, from any thread; nothing can be asked afterwards."""
        self._closed = True
        if self._asked is not None:
            self._asked.cancel()

    async def _ask_all(self, questions: Sequence[Question[T]]) -> list[T]:
        import anyio
        import httpx

        answers: dict[int, T] = {}
        turn = anyio.CapacityLimiter(self._concurrency)
        straight = {f"all://{host}": None for host in _LOOPBACK}  # this machine is not reached through a proxy

        async def answer(place: int) -> None:
            async with turn:
                answers[place] = await self._ask(client, place, questions[place])

        async with httpx.AsyncClient(verify=self._trusted, timeout=None, mounts=straight) as client:
            try:
                async with anyio.create_task_group() as open_questions:
                    for place in range(len(questions)):
                        open_questions.start_soon(answer, place)
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from group.exceptions[0].__cause__
        return [answers[place] for place in range(len(questions))]

    async def _ask(self, client: "AsyncClient", place: int, question: Question[T]) -> T:
        import anyio
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

        body = await anyio.to_thread.run_sync(lambda: json.dumps(question.body()).encode())
        deadline = anyio.current_time() + (self._retries + 1) * self._timeout
        address, busy = "", 0

        def over(state: RetryCallState) -> bool:
            turned_away = state.outcome is not None and isinstance(state.outcome.exception(), _Busy)
            return anyio.current_time() > deadline if turned_away else state.attempt_number - busy > self._retries

        def pause(state: RetryCallState) -> float:
            return BACKOFF * 2 ** min(max(state.attempt_number - busy - 1, 0), 4)

        tries = AsyncRetrying(
            stop=over, wait=pause, retry=retry_if_exception_type((_Passing, Unusable)), reraise=True, sleep=anyio.sleep
        )
        try:
            async for attempt in tries:
                with attempt:
                    turn = place + attempt.retry_state.attempt_number - 1
                    address = self._addresses[turn % len(self._addresses)]
                    try:
                        return _made_of(await self._post(client, address + self._path, body), question.read)
                    except _Busy:
                        busy += 1
                        raise
        except _Busy as error:
            told = f"{address} {error}, for {(self._retries + 1) * self._timeout:g} s"
            raise RewardFailed(f"{told}, for prompt {question.prompt!r}; {self._remedy}") from error
        except (_Passing, Unusable) as error:
            tries_made = f", {self._retries + 1} times" if self._retries else ""
            raise RewardFailed(f"{address} {error}{tries_made}, for prompt {question.prompt!r}; {self._remedy}") from error
        except RewardFailed as error:
            raise RewardFailed(f"{address} {error}, for prompt {question.prompt!r}; {self._remedy}") from error
        raise AssertionError("a question is either answered or fails")

    async def _post(self, client: "AsyncClient", url: str, body: bytes) -> Any:
        """The JSON of an answer. Raises: _Passing, Unusable; RewardFailed, where asking again would not help."""
        import anyio
        import httpx

        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            with anyio.fail_after(self._timeout):
                async with client.stream("POST", url, content=body, headers=headers) as answer:
                    content = b""
                    async for chunk in answer.aiter_bytes():
                        content += chunk
                        if len(content) > LARGEST_ANSWER:
                            raise Unusable(f"sent more than {LARGEST_ANSWER} bytes")
        except TimeoutError:
            raise _Passing(f"did not answer within {self._timeout:g} s") from None
        except httpx.TransportError as error:
            raise _Passing(f"cannot be reached ({type(error).__name__}: {error})") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RewardFailed(f"cannot be asked ({type(error).__name__}: {error})") from error
        text = content.decode(errors="replace")
        text = text.replace(self._key, "***") if self._key else text  # some quote the key that they refuse
        said = f"answered {answer.status_code} {answer.reason_phrase}: {_reason(text)}"
        if answer.status_code in (401, 403):
            missing = f"${self._variable} holds a wrong key" if self._key else f"put the key into ${self._variable}"
            raise RewardFailed(f"{said}; {missing}")
        if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
            raise _Busy(said)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _Passing(said)
        if not answer.is_success:
            raise RewardFailed(said)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Unusable(f"answered what is not JSON: {excerpt(text)}") from None


def key_in(variable: str) -> str:
    """The key that an environment variable holds; empty where it is not set.

    Raises: ValueError: if it holds only blanks, or what no header takes; does not show it.
    """
    held = os.environ.get(variable, "")
    key = held.strip()
    if held and not key:
        raise ValueError(f"${variable} holds nothing but blanks; put a key into it, or unset it")
    if not (key.isascii() and key.isprintable()):  # it would be quoted by the error that a header raises
        raise ValueError(f"what ${variable} holds cannot be a key: it has characters that no header takes")
    return key


def _expect_private(addresses: Sequence[str], variable: str) -> None:
    """Raise ValueError where a key would go unencrypted over a network that nobody has said is private."""
    listed = {host.strip().lower() for host in os.environ.get(PLAIN_HOSTS, "").split(",")}
    for address in addresses:
        parts = urlsplit(address)
        host = parts.hostname or ""
        if parts.scheme == "http" and not _is_loopback(host) and host not in listed:
            raise ValueError(
                f"the key in ${variable} would go to {address} for everyone on the way to read; use https, unset ${variable}, "
                f"or, where the network is your own, list {host} in ${PLAIN_HOSTS}"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _made_of(answer: Any, read: Callable[[Any], T]) -> T:
    """What an answer says. Raises: Unusable: also of numbers and nestings beyond what a program can take."""
    try:
        return read(answer)
    except (OverflowError, RecursionError) as error:
        raise Unusable(f"gave what nothing can be made of ({type(error).__name__}: {error})") from error


def excerpt(text: Any) -> str:
    """What was answered, short, on one line and in quotes, for a message."""
    return repr(_short(str(text)))


def _reason(text: str) -> str:
    """What a refusal says, in the two forms that are common: {"detail": text} and {"error": {"message": text}}."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return excerpt(text)
    said = said.get("detail", said.get("error")) if isinstance(said, dict) else said
    said = said.get("message") if isinstance(said, dict) else said
    return _short(said) if isinstance(said, str) else excerpt(text)


def _short(text: str) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."


def png(image: Tensor) -> str:
    """A picture [3, H, W] in [0, 1] as a PNG of 8 bits a channel, in base64."""
    from PIL import Image

    file = io.BytesIO()
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
