"""A reward over HTTP: the server, the client, and what each makes of the other's faults."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Literal

import httpx
import pytest
import torch
import uvicorn
from answering import Answer, answering, free_address
from PIL import Image
from torch import Tensor
from toy_training import keep, kinds, plain, told, toy

import workbench.rewards.asking as asking
from workbench.__main__ import main
from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.events import CheckpointReady, IterationDone
from workbench.reward_server import LARGEST_SIDE, MOST_IMAGES, listen, make_app
from workbench.rewards.asking import png
from workbench.rewards.function import Function
from workbench.rewards.jpeg import JPEGSize
from workbench.rewards.remote import Remote
from workbench.settings import WeightedReward
from workbench.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # toy rewards are in no registry

CPU = torch.device("cpu")
TOKEN = "WORKBENCH_REWARD_TOKEN"
IMAGES = torch.rand(11, 3, 20, 28, generator=torch.Generator().manual_seed(0))
ROUNDED = (IMAGES * 255).round() / 255  # what PNG keeps of them
PROMPTS = [f"prompt {index}" for index in range(11)]
SECRET = "sesame-0815"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BACKOFF", 0.002)
    monkeypatch.delenv(TOKEN, raising=False)


def remote(*addresses: str, **settings: Any) -> RewardFunction:
    return Remote(addresses=addresses, **{"batch": 4, "retries": 2, "timeout": 20.0, **settings}).load(CPU)


def messages(error: BaseException | None) -> str:
    """What an error and those behind it say."""
    return f"{error}\n{messages(error.__cause__ or error.__context__)}" if error else ""


def values(*numbers: Any) -> Answer:
    return Answer({"values": list(numbers)})


@contextmanager
def serving(reward: Reward, token: str = "") -> Iterator[str]:
    """A server of a reward in a thread of this process; its address."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(reward, CPU, token), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


class Picky(Reward):
    """Red; fails at one prompt."""

    name: Literal["picky"] = "picky"
    seen: ClassVar[list[tuple[int, bool]]] = []

    def load(self, device: torch.device) -> RewardFunction:
        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            self.seen.append((len(prompts), torch.is_grad_enabled()))
            if "prompt 6" in prompts:
                raise KeyError("six")
            return images[:, 0].mean((1, 2))

        return score


# --- both together


@pytest.fixture(scope="module")
def jpeg_server() -> Iterator[str]:
    with serving(JPEGSize(quality=80)) as address:
        yield address


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_remote_reward_is_the_reward_itself_of_pictures_of_eight_bits(jpeg_server: str, batch: int) -> None:
    there = remote(jpeg_server, batch=batch)(IMAGES, PROMPTS)
    assert torch.equal(there, JPEGSize(quality=80).load(CPU)(ROUNDED, PROMPTS))
    assert there.dtype == torch.float32


def test_it_can_be_asked_inside_a_loop_as_in_a_notebook(jpeg_server: str) -> None:
    async def cell() -> Tensor:
        return remote(jpeg_server)(IMAGES, PROMPTS)

    assert asyncio.run(cell()).shape == (11,)
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name.lower()]


def test_answers_are_not_held_back_for_more_to_send(jpeg_server: str) -> None:
    seconds = []
    with httpx.Client() as client:
        for _ in range(20):  # on one connection
            began = time.perf_counter()
            client.get(f"{jpeg_server}/health")
            seconds.append(time.perf_counter() - began)
    assert min(seconds[10:]) < 0.035  # the kernel's delay is 0.04 s


def test_health_tells_which_reward_it_is(jpeg_server: str) -> None:
    told = httpx.get(f"{jpeg_server}/health").json()
    assert told == {"reward": "jpeg_size", "settings": {"wanted": "large", "quality": 80}, "device": "cpu"}
    assert httpx.get(f"{jpeg_server}/docs").status_code == 404


def test_a_reward_that_fails_there_is_an_error_here_that_names_prompt_and_cause() -> None:
    Picky.seen.clear()
    with serving(Picky()) as address:
        assert torch.equal(remote(address)(IMAGES[:4], PROMPTS[:4]), ROUNDED[:4, 0].mean((1, 2)))
        with pytest.raises(RewardFailed, match=r"answered 500 .*reward 'picky' raised KeyError: 'six', .*prompt 'prompt 6'"):
            remote(address)(IMAGES, PROMPTS)
    assert not any(gradients for _, gradients in Picky.seen)


def test_a_token_is_asked_for_and_kept_out_of_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(JPEGSize(), SECRET) as address:
        assert httpx.get(f"{address}/health").status_code == 401
        with pytest.raises(RewardFailed, match=rf"answered 401 .* put the key into \${TOKEN}"):
            remote(address)(IMAGES, PROMPTS)
        monkeypatch.setenv(TOKEN, "wrong-0816")
        with pytest.raises(RewardFailed, match=rf"\${TOKEN} holds a wrong key") as caught:
            remote(address)(IMAGES, PROMPTS)
        assert "0816" not in messages(caught.value)
        assert SECRET not in str(caught.value)
        monkeypatch.setenv(TOKEN, SECRET)
        assert remote(address)(IMAGES, PROMPTS).shape == (11,)
        monkeypatch.setenv("WORKBENCH_OTHER_TOKEN", SECRET)
        monkeypatch.delenv(TOKEN)
        assert remote(address, token_variable="WORKBENCH_OTHER_TOKEN")(IMAGES, PROMPTS).shape == (11,)


# --- the client, of servers that are at fault


def test_servers_share_the_work_and_answers_keep_their_order() -> None:
    def lengths(path: str, body: Any) -> Answer:
        return values(*(float(prompt.split()[1]) for prompt in body["prompts"]))

    with answering(lengths) as one, answering(lengths) as other:
        assert remote(one.address, f"{other.address}/", batch=2)(IMAGES, PROMPTS).tolist() == list(range(11))
        assert [path for path, _, _ in one.asked] == ["/score"] * 3
        assert len(other.asked) == 3
        picture = Image.open(io.BytesIO(base64.b64decode(one.asked[0][2]["images"][0])))
        assert (picture.format, picture.size) == ("PNG", (28, 20))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_open_than_are_allowed(concurrency: int) -> None:
    gate = threading.Event()
    openers = [threading.Timer(0.1, gate.set)]  # time enough for one too many

    def reply(path: str, body: Any) -> Answer:
        if server.at_once == concurrency:
            with suppress(IndexError):
                openers.pop().start()
        return Answer({"values": [1.0]}, wait=gate)

    with answering(reply) as server:
        assert remote(server.address, batch=1, concurrency=concurrency)(IMAGES, PROMPTS).tolist() == [1.0] * 11
        assert server.at_once == concurrency


def test_what_one_server_fails_goes_to_the_next() -> None:
    with answering(lambda path, body: values(*[2.0] * len(body["prompts"]))) as server:
        assert remote(free_address(), server.address)(IMAGES, PROMPTS).tolist() == [2.0] * 11


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_is_overcharged_is_asked_again(status: int) -> None:
    answers = iter([Answer({}, status), Answer(b"<html>", status), values(3.0)])
    with answering(lambda path, body: next(answers)) as server:
        assert remote(server.address)(IMAGES[:1], PROMPTS[:1]).tolist() == [3.0]
        assert len(server.asked) == 3


def test_a_server_that_says_when_to_come_again_has_not_failed() -> None:
    busy = Answer({"detail": "8 requests wait here already"}, 503, {"Retry-After": "1"})
    answers = iter([*[busy] * 6, Answer({}, 500), busy, values(3.0)])
    with answering(lambda path, body: next(answers)) as server:
        assert remote(server.address, retries=1)(IMAGES[:1], PROMPTS[:1]).tolist() == [3.0]
    with answering(lambda path, body: busy) as server:
        with pytest.raises(RewardFailed, match=r"answered 503 .*8 requests wait here already, for 0\.2 s, for prompt 'prompt 0'"):
            remote(server.address, retries=1, timeout=0.1)(IMAGES[:1], PROMPTS[:1])
        assert len(server.asked) > 2


def test_a_server_that_is_down_is_named_with_what_to_do() -> None:
    address = free_address()
    with pytest.raises(RewardFailed) as caught:
        remote(address)(IMAGES, PROMPTS)
    for part in (address, "cannot be reached", "3 times", "'prompt ", "serve-reward NAME"):
        assert part in str(caught.value)


def test_a_server_that_is_slow_is_given_up_in_time() -> None:
    gate, began = threading.Event(), time.monotonic()
    with answering(lambda path, body: Answer({}, wait=gate)) as server:
        with pytest.raises(
            RewardFailed, match=r"did not answer within 0\.2 s, 2 times, for prompt 'prompt 0'; .*remote\.timeout"
        ):
            remote(server.address, timeout=0.2, retries=1)(IMAGES[:3], PROMPTS[:3])
        gate.set()
    assert time.monotonic() - began < 10


GARBAGE = {
    "too few": (values(1.0), "gave 1 values for 2 pictures"),
    "too many": (values(1.0, 2.0, 3.0), "gave 3 values for 2 pictures"),
    "nan": (Answer(b'{"values": [1.0, NaN]}'), "not finite numbers: '[1.0, nan]'"),
    "infinite": (Answer(b'{"values": [1.0, 1e999]}'), "not finite numbers: '[1.0, inf]'"),
    "text": (values("1", "2"), "not finite numbers"),
    "truth": (values(True, False), "not finite numbers"),
    "none": (values(None, 1.0), "not finite numbers"),
    "no list": (Answer({"values": 1.0}), "without a list of 'values'"),
    "no object": (Answer([1.0, 2.0]), "without a list of 'values': '[1.0, 2.0]'"),
    "no values": (Answer({"error": "x"}), "without a list of 'values'"),
    "no JSON": (Answer(b"<html>it works</html>"), "answered what is not JSON: '<html>it works</html>'"),
    "nothing": (Answer(b""), "answered what is not JSON: ''"),
    "gigantic": (values(10**400, 1.0), "nothing can be made of (OverflowError: int too large"),
    "deep": (Answer(b"[" * 100_000), "answered what is not JSON: '[[[["),
    "deep and refused": (Answer(b"[" * 100_000, 500), "answered 500 Internal Server Error: '[[[["),
    "endless": (Answer(b"[" * (asking.LARGEST_ANSWER + 1)), "sent more than 1048576 bytes"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_an_error_and_never_a_score(name: str) -> None:
    answer, told = GARBAGE[name]
    with answering(lambda path, body: answer) as server:
        with pytest.raises(RewardFailed) as caught:
            remote(server.address, retries=1)(IMAGES[:2], PROMPTS[:2])
        assert told in str(caught.value)
        assert server.address in str(caught.value)
        assert len(server.asked) == 2  # it might have been a hiccup


@pytest.mark.parametrize(("status", "headers"), [(404, {}), (400, {}), (307, {"Location": "http://example.org/"})])
def test_what_asking_again_cannot_mend_is_told_at_once(status: int, headers: dict[str, str]) -> None:
    with answering(lambda path, body: Answer({"detail": "not here"}, status, headers)) as server:
        with pytest.raises(RewardFailed, match=rf"answered {status} .*not here"):
            remote(server.address)(IMAGES[:1], PROMPTS[:1])
        assert len(server.asked) == 1


def test_a_key_that_a_server_quotes_is_hidden_and_one_that_no_header_takes_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, SECRET)
    with (
        answering(lambda path, body: Answer({"detail": f"no such key: {SECRET}"}, 403)) as server,
        pytest.raises(RewardFailed, match=r"no such key: \*\*\*") as caught,
    ):
        remote(server.address)(IMAGES[:1], PROMPTS[:1])
    assert SECRET not in messages(caught.value)
    assert server.asked[0][1]["authorization"] == f"Bearer {SECRET}"
    monkeypatch.setenv(TOKEN, f"{SECRET}\r\nX: y")
    with pytest.raises(ValueError, match="characters that no header takes") as refused:
        remote(server.address)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "listed", "allowed"),
    [
        ("http://gpu-2:8400", "", False),
        ("http://gpu-2:8400", "gpu-1, gpu-20", False),
        ("http://127.0.0.1.example.org", "", False),
        ("http://GPU-2:8400", "gpu-1, gpu-2", True),
        ("https://example.org", "", True),
        ("http://localhost:8400", "", True),
        ("http://127.0.0.2:8400", "", True),
        ("http://[::1]:8400", "", True),
    ],
)
def test_a_key_goes_unencrypted_only_where_its_owner_says(
    address: str, listed: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(asking.PLAIN_HOSTS, listed)
    remote("http://127.0.0.1:8400", address)  # there is no key yet
    monkeypatch.setenv(TOKEN, SECRET)
    if allowed:
        remote("http://127.0.0.1:8400", address)
        return
    with pytest.raises(
        ValueError, match=rf"key in \${TOKEN} would go to {address} .*use https, .* in \$WORKBENCH_PLAIN_HOSTS"
    ) as told:
        remote("http://127.0.0.1:8400", address)
    assert SECRET not in str(told.value)


def test_a_key_may_end_in_a_line_break_but_not_be_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, f" {SECRET}\n")
    with answering(lambda path, body: values(1.0)) as server:
        remote(server.address)(IMAGES[:1], PROMPTS[:1])
        assert server.asked[0][1]["authorization"] == f"Bearer {SECRET}"
        monkeypatch.setenv(TOKEN, " \n")
        with pytest.raises(ValueError, match="holds nothing but blanks"):
            remote(server.address)


def test_closing_breaks_off_what_is_asked_at_once() -> None:
    gate = threading.Event()
    with answering(lambda path, body: Answer({}, wait=gate)) as server:
        reward, failures = remote(server.address, timeout=3600.0), []

        def score() -> None:
            with pytest.raises(RewardFailed, match="closed before it had its answers") as caught:
                reward(IMAGES, PROMPTS)
            failures.append(caught.value)

        thread = threading.Thread(target=score)
        thread.start()
        while not server.asked:
            assert thread.is_alive()
            thread.join(0.01)
        reward.close()
        thread.join(10)
        assert not thread.is_alive()
        assert len(failures) == 1
        with pytest.raises(RewardFailed, match="closed"):
            reward(IMAGES, PROMPTS)
        gate.set()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"addresses": ["ftp://host"]}, "is not an address; write http"),
        ({"addresses": ["http://"]}, "is not an address"),
        ({"addresses": ["file:///etc/passwd"]}, "is not an address"),
        ({"addresses": ["http://user:word@host"]}, "may not hold a password"),
        ({"addresses": ["http://host/?key=1"]}, "more than a path"),
        ({"addresses": []}, "at least 1 item"),
        ({"token_variable": "WORKBENCH_STORE"}, "should match pattern"),
        ({"token_variable": "AWS_SECRET_ACCESS_KEY"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Remote(**settings)


# --- the server, of clients that are at fault


def post(address: str, body: Any, timeout: float = 30.0, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{address}/score", content=content, headers=told, timeout=timeout)


def picture(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SMALL = png(IMAGES[0])
REFUSED: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"images", 422, "Invalid JSON"),
    "nothing": ({}, 422, "prompts: Field required"),
    "more than known": ({"prompts": ["a"], "images": [SMALL], "code": "x"}, 422, "code: Extra inputs"),
    "no pictures": ({"prompts": [], "images": []}, 422, "at least 1 item"),
    "too many": ({"prompts": ["a"] * (MOST_IMAGES + 1), "images": [SMALL]}, 422, f"at most {MOST_IMAGES} items"),
    "uneven": ({"prompts": ["a"], "images": [SMALL, SMALL]}, 422, "2 images came with 1 prompts"),
    "no base64": ({"prompts": ["a"], "images": ["?"]}, 422, "image 0 is not a PNG file in base64"),
    "no PNG": ({"prompts": ["a"], "images": [base64.b64encode(b"GIF89a").decode()]}, 422, "image 0 is not a PNG"),
    "cut off": ({"prompts": ["a"], "images": [base64.b64encode(base64.b64decode(SMALL)[:90]).decode()]}, 422, "damaged"),
    "huge": ({"prompts": ["a"], "images": [picture(LARGEST_SIDE + 1, 1)]}, 422, "4097 x 1 pixels; at most 4096 a side"),
    "two sizes": ({"prompts": ["a", "b"], "images": [SMALL, picture(9, 9)]}, 422, "one size, got 9 x 9 and 28 x 20"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_make_no_sense_are_refused_with_the_reason(jpeg_server: str, name: str) -> None:
    body, status, told = REFUSED[name]
    answer = post(jpeg_server, body)
    assert answer.status_code == status
    assert told in answer.json()["detail"]


def test_a_page_of_another_site_cannot_ask_and_too_much_is_refused(jpeg_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_text = post(jpeg_server, {"prompts": ["a"], "images": [SMALL]}, **{"Content-Type": "text/plain"})
    assert plain_text.status_code == 415
    monkeypatch.setattr("workbench.reward_server.LARGEST_BODY", 1000)
    assert post(jpeg_server, b" " * 2000).status_code == 413


def test_pictures_that_would_take_too_much_memory_are_refused_unread(jpeg_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.reward_server.LARGEST_PIXELS", 3 * 28 * 20)
    assert post(jpeg_server, {"prompts": ["a"] * 3, "images": [SMALL] * 3}).status_code == 200
    damaged = base64.b64encode(base64.b64decode(SMALL)[:90]).decode()  # its size can be read, its pixels cannot
    refused = post(jpeg_server, {"prompts": ["a"] * 4, "images": [damaged] * 4})
    assert refused.status_code == 413
    assert "at most 1680 pixels at a time, got 2240: fewer pictures in a request" in refused.json()["detail"]


class Gated(Reward):
    """Scores once `gate` is open; remembers for which prompts."""

    name: Literal["gated"] = "gated"
    gate: ClassVar[threading.Event] = threading.Event()
    seen: ClassVar[list[str]] = []

    def load(self, device: torch.device) -> RewardFunction:
        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            self.seen.extend(prompts)
            assert self.gate.wait(30)
            return images[:, 0].mean((1, 2))

        return score


def test_a_server_that_is_busy_drops_who_has_gone_and_turns_others_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.reward_server.MOST_WAITING", 2)
    Gated.seen.clear()
    Gated.gate.clear()
    question = {"images": [SMALL]}
    with serving(Gated()) as address, ThreadPoolExecutor() as threads:
        at_work = threads.submit(post, address, {**question, "prompts": ["first"]})
        while not Gated.seen:
            time.sleep(0.01)
        gone = threads.submit(post, address, {**question, "prompts": ["gone"]}, timeout=1.0)
        time.sleep(0.3)
        waits = threads.submit(post, address, {**question, "prompts": ["waits"]})
        time.sleep(0.3)
        refused = post(address, {**question, "prompts": ["refused"]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        with pytest.raises(httpx.ReadTimeout):
            gone.result()
        Gated.gate.set()
        assert at_work.result().status_code == waits.result().status_code == 200
    assert Gated.seen == ["first", "waits"]


# --- the command


def test_the_command_serves_until_it_is_asked_to_end(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "workbench", "serve-reward", "jpeg_size", "--set", "quality=30", "--port", "0", "--json"]
    environment = os.environ | {TOKEN: f"{SECRET}\n", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            ready = json.loads(process.stdout.readline())
            assert (ready["reward"], ready["device"], ready["token"]) == ("jpeg_size", "cpu", True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(TOKEN, SECRET)
                there = remote(ready["address"])(IMAGES, PROMPTS)
            assert torch.equal(there, JPEGSize(quality=30).load(CPU)(ROUNDED, PROMPTS))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["jpeg_size", "--host", "0.0.0.0"], 2, [TOKEN, "127.0.0.1"]),
        (["jpeg"], 2, ["unknown reward 'jpeg'", "jpeg_size"]),
        (["jpeg_size", "--set", "quality=300"], 2, ["quality = '300'"]),
        (["jpeg_size", "--device", "cuda:99"], 2, ["--device cuda:99 is not here"]),
        (["jpeg_size", "--host", "192.0.2.1"], 1, ["192.0.2.1:8400 cannot be listened at"]),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(
    arguments: list[str], status: int, told: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if status == 1:
        monkeypatch.setenv(TOKEN, SECRET)
    assert main(["serve-reward", *arguments]) == status
    error = capsys.readouterr().err
    assert all(part in error for part in told), error


def test_a_token_that_nobody_could_send_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for token, words in ((" \n", "holds nothing but blanks"), (f"{SECRET}\n{SECRET}", "characters that no header takes")):
        monkeypatch.setenv(TOKEN, token)
        assert main(["serve-reward", "jpeg_size", "--port", "0"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert SECRET not in error


def test_a_port_that_is_taken_is_named(jpeg_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = jpeg_server.rpartition(":")[2]
    assert main(["serve-reward", "jpeg_size", "--port", port]) == 1
    assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err


# --- in a run


def test_a_run_whose_server_goes_down_keeps_its_last_state_and_goes_on_bit_for_bit() -> None:
    fails = threading.Event()

    def redness(path: str, body: Any) -> Answer:
        if fails.is_set():
            return Answer({"detail": "out of memory"}, 503)
        pictures = [Image.open(io.BytesIO(base64.b64decode(image))) for image in body["images"]]
        return values(*(each.getpixel((3, 3))[0] / 255 - each.getpixel((3, 3))[2] / 255 for each in pictures))

    with answering(redness) as server:
        config = toy(Remote(addresses=(server.address,), retries=1), iterations=4)
        whole = told(train(config))
        events: list[Any] = []

        def until_it_fails() -> None:
            for event in train(config):
                events.append(keep(event))
                if isinstance(event, IterationDone) and event.iteration == 3:
                    fails.set()

        with pytest.raises(RewardFailed, match=r"reward 'remote': .*503 .*out of memory.*; mend it, then resume the run"):
            until_it_fails()
        assert isinstance(events[-1], CheckpointReady)
        assert events[-1].iteration == 3
        fails.clear()
        resumed = told(train(config, resume=events[-1]))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reward", "judge"))]
    last = [event for event in whole if isinstance(event, IterationDone)][-1]
    assert plain([event for event in resumed if isinstance(event, IterationDone)][-1]) == plain(last)
    assert kinds(resumed)[-1] == kinds(whole)[-1]


@pytest.mark.parametrize("combine", ["sum", "gdpo"])
def test_rewards_from_elsewhere_are_combined_with_others_by_weight(
    combine: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def blue(images, prompts):\n    return images[:, 2].mean((1, 2)).tolist()\n")
    monkeypatch.setenv("WORKBENCH_REWARDS", str(tmp_path))
    with serving(JPEGSize()) as address:
        chosen = {Remote(addresses=(address,)): 0.25, Function(function="mine.py:blue"): 2.0, JPEGSize(wanted="small"): 0.5}
        weighted = tuple(WeightedReward.model_construct(reward=reward, weight=weight) for reward, weight in chosen.items())
        config = toy(iterations=1, grpo__combine=combine).model_copy(update={"rewards": weighted})
        (groups,) = (event for event in told(train(config)) if type(event).__name__ == "GroupsScored")
    assert list(groups.parts) == ["remote", "function", "jpeg_size"]
    parts = {name: torch.tensor(part) for name, part in groups.parts.items()}
    total = 0.25 * parts["remote"] + 2.0 * parts["function"] + 0.5 * parts["jpeg_size"]
    assert groups.rewards == pytest.approx(total.tolist())
    assert (torch.tensor(groups.advantages).view(-1, groups.group_size).mean(1).abs() < 1e-5).all()
    assert torch.tensor(groups.advantages).abs().max() > 0.1
