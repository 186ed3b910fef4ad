"""A vision-language model as a reward: what it is asked, and what counts as an answer."""

import base64
import io
import json
import re
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from answering import Answer, Answering, answering, free_address
from PIL import Image

import workbench.rewards.asking as asking
from workbench.config import configure, configure_reward
from workbench.contracts import RewardFailed, RewardFunction
from workbench.rewards.judge import QUESTION, Judge
from workbench.scoring import Judges, Rewards
from workbench.settings import WeightedReward

CPU = torch.device("cpu")
KEY = "WORKBENCH_JUDGE_KEY"
SECRET = "sk-0815"
IMAGES = torch.rand(6, 3, 10, 14, generator=torch.Generator().manual_seed(0))
PROMPTS = [f"{index} red foxes, {{low}}" for index in range(6)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BACKOFF", 0.002)
    monkeypatch.delenv(KEY, raising=False)


def judge(server: Answering | str, **settings: Any) -> RewardFunction:
    address = server if isinstance(server, str) else f"{server.address}/v1"
    return Judge(address=address, **{"model": "fox-vl", "retries": 1, "timeout": 20.0, **settings}).load(CPU)


def said(content: Any) -> Answer:
    return Answer({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]})


def text_of(body: Any) -> str:
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def count_asked_for(path: str, body: Any) -> Answer:
    """Rates a picture by the number that its prompt begins with."""
    return said(json.dumps({"score": int(text_of(body).split('description "')[1].split()[0])}))


# --- what is asked


def test_each_picture_is_asked_about_with_its_prompt_and_scored_on_the_scale() -> None:
    with answering(count_asked_for) as server:
        values = judge(server)(IMAGES, PROMPTS)
        assert torch.allclose(values, torch.arange(6) / 10)
        assert values.dtype == torch.float32
        assert {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
        by_prompt = {text_of(body): body for _, _, body in server.asked}
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        body = by_prompt[QUESTION.replace("{low}", "0").replace("{high}", "10").replace("{prompt}", prompt)]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("fox-vl", 0, 64)
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["score"] == {"type": "number", "minimum": 0, "maximum": 10}
        url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
        kind, _, content = url.partition(",")
        assert kind == "data:image/png;base64"
        sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert np.array_equal(sent, (image * 255).round().byte().permute(1, 2, 0).numpy())


def test_question_scale_and_form_of_the_answer_are_settings() -> None:
    settings = {"question": 'Is "{prompt}" there, from {low} to {high}?', "low": -1, "high": 1, "answers": "number"}
    with answering(lambda path, body: said(" -0.5\n")) as server:
        assert judge(server, temperature=0.7, max_tokens=9, **settings)(IMAGES[:1], PROMPTS[:1]).tolist() == [0.25]
        body = server.asked[0][2]
    assert text_of(body) == f'Is "{PROMPTS[0]}" there, from -1 to 1?'
    assert "response_format" not in body
    assert (body["temperature"], body["max_tokens"]) == (0.7, 9)


def test_questions_are_asked_at_the_same_time_but_no_more_than_allowed() -> None:
    gate = threading.Event()
    openers = [threading.Timer(0.1, gate.set)]

    def reply(path: str, body: Any) -> Answer:
        if server.at_once == 3:
            with suppress(IndexError):
                openers.pop().start()
        answer = count_asked_for(path, body)
        answer.wait = gate
        return answer

    with answering(reply) as server:
        assert torch.allclose(judge(server, concurrency=3)(IMAGES, PROMPTS), torch.arange(6) / 10)
        assert server.at_once == 3


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, body: Any) -> Answer:
        return Answer({"error": {"message": f"Incorrect API key provided: {SECRET}.", "type": "invalid_request_error"}}, 401)

    with answering(refuse) as server:
        with pytest.raises(RewardFailed, match=rf"answered 401 .*; put the key into \${KEY}"):
            judge(server)(IMAGES[:1], PROMPTS[:1])
        assert "authorization" not in server.asked[0][1]
        monkeypatch.setenv(KEY, SECRET)
        reward = Judge(address=server.address, model="fox-vl", retries=0)
        assert SECRET not in reward.model_dump_json() + repr(reward)
        with pytest.raises(RewardFailed, match=rf"provided: \*\*\*\.; \${KEY} holds a wrong key") as caught:
            reward.load(CPU)(IMAGES[:1], PROMPTS[:1])
        assert SECRET not in str(caught.value)
        assert server.asked[1][1]["authorization"] == f"Bearer {SECRET}"


# --- what is answered

ANSWERS: dict[str, tuple[dict[str, Any], Any, float | str]] = {
    "a whole number": ({}, '{"score": 7}', 0.7),
    "a fraction": ({}, '\n {"score": 2.5} ', 0.25),
    "the ends": ({"low": 1, "high": 5}, '{"score": 5}', 1.0),
    "more keys": ({}, '{"reason": "blurred", "score": 0}', 0.0),
    "a number alone": ({"answers": "number"}, " 7.5 ", 0.75),
    "no number": ({}, "I cannot rate this picture.", "said 'I cannot rate this picture.', which is not JSON as"),
    "a fenced one": ({}, '```json\n{"score": 7}\n```', "which is not JSON as"),
    "text for a number": ({}, '{"score": "7"}', "which is not JSON as"),
    "truth for a number": ({}, '{"score": true}', "which is not JSON as"),
    "not finite": ({}, '{"score": NaN}', "which is not JSON as"),
    "infinite": ({}, '{"score": 1e999}', "which is not JSON as"),
    "another key": ({}, '{"rating": 7}', "which is not JSON as"),
    "a list": ({}, "[7]", "which is not JSON as"),
    "lists in lists": ({}, "[" * 100_000, "which is not JSON as"),
    "gigantic": ({}, f'{{"score": {10**400}}}', "which is not from 0 to 10"),
    "words and a number": ({"answers": "number"}, "Score: 7", "said 'Score: 7', which is not a number alone"),
    "a share": ({"answers": "number"}, "7/10", "which is not a number alone"),
    "nan as text": ({"answers": "number"}, "nan", "which is not a number alone"),
    "JSON for a number": ({"answers": "number"}, '{"score": 7}', "which is not a number alone"),
    "too much": ({}, '{"score": 11}', "which is not from 0 to 10"),
    "too little": ({"answers": "number", "low": 1}, "0", "said '0', which is not from 1 to 10"),
    "nothing": ({}, None, "said 'None', which is not JSON as"),
    "parts": ({}, [{"type": "text", "text": "7"}], "which is not JSON as"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_only_a_number_of_the_scale_is_an_answer(name: str) -> None:
    settings, content, wanted = ANSWERS[name]
    with answering(lambda path, body: said(content)) as server:
        if isinstance(wanted, float):
            assert judge(server, **settings)(IMAGES[:1], PROMPTS[:1]).tolist() == pytest.approx([wanted])
            return
        with pytest.raises(RewardFailed) as caught:
            judge(server, **settings)(IMAGES[:1], PROMPTS[:1])
        for part in (wanted, repr(PROMPTS[0]), server.address, "2 times", "judge.question"):
            assert part in str(caught.value)


def test_an_answer_of_no_use_is_asked_for_again() -> None:
    answers = iter([said("well..."), Answer({"error": "busy"}, 429), said('{"score": 4}')])
    with answering(lambda path, body: next(answers)) as server:
        assert judge(server, retries=2)(IMAGES[:1], PROMPTS[:1]).tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, [], {"object": "error", "message": "no such model"}])
def test_what_is_no_chat_completion_is_told(body: Any) -> None:
    with answering(lambda path, _: Answer(body)) as server, pytest.raises(RewardFailed, match="gave no chat completion"):
        judge(server)(IMAGES[:1], PROMPTS[:1])


def test_a_server_without_schemas_says_so() -> None:
    def refuse(path: str, body: Any) -> Answer:
        return Answer({"error": {"message": "response_format is not supported"}}, 400)

    with answering(refuse) as server:
        with pytest.raises(RewardFailed, match=r"400 .*response_format is not supported.*judge\.answers = number") as caught:
            judge(server)(IMAGES[:1], PROMPTS[:1])
        assert len(server.asked) == 1
        assert repr(PROMPTS[0]) in str(caught.value)


def test_a_judge_that_is_away_is_named_and_one_bad_answer_among_many_fails_the_batch() -> None:
    with pytest.raises(RewardFailed, match="cannot be reached"):
        judge(free_address())(IMAGES, PROMPTS)

    def one_is_bad(path: str, body: Any) -> Answer:
        return said("hm") if "3 red foxes" in text_of(body) else count_asked_for(path, body)

    with answering(one_is_bad) as server, pytest.raises(RewardFailed, match=r"said 'hm'.*'3 red foxes"):
        judge(server)(IMAGES, PROMPTS)


# --- settings, and its place in a run


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"low": 10, "high": 10}, "judge.low = 10 must be below judge.high = 10"),
        ({"question": "Rate {promt}"}, "nothing is known to put for {promt}; choose from: prompt, low, high"),
        ({"address": "localhost:8000"}, "is not an address"),
        ({"address": "http://me:sk-1@host/v1"}, "may not hold a password"),
        ({"key_variable": "OPENAI_API_KEY"}, "should match pattern"),
        ({"key_variable": "WORKBENCH_AUTH"}, "should match pattern"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is compared below
        configure_reward("judge", settings)
    assert told in str(caught.value)


def test_the_question_survives_a_form_of_one_line() -> None:
    assert "\n" not in QUESTION
    assert re.findall(r"\{(\w+)\}", QUESTION) == ["prompt", "low", "high"]


def test_a_model_has_to_be_named_before_a_run_begins() -> None:
    with pytest.raises(ValueError, match=r"needs judge\.model"):
        Judge().load(CPU)


def test_braces_that_are_no_places_stay_as_they_are() -> None:
    with answering(lambda path, body: said("5")) as server:
        judge(server, question='{prompt}? Answer {"score": 5}.', answers="number")(IMAGES[:1], ["a {high} tower"])
        assert text_of(server.asked[0][2]) == 'a {high} tower? Answer {"score": 5}.'


def test_it_is_trained_on_by_weight_and_judges_beside_the_training() -> None:
    config = configure("shapes", {"rewards.judge": "0.5", "rewards.judge.model": "fox-vl", "rewards.shapes_exact": 0})
    assert config.rewards[-1].reward == Judge(model="fox-vl")
    with answering(count_asked_for) as server:
        reward = Judge(address=f"{server.address}/v1", model="fox-vl")
        rewards = Rewards([WeightedReward(reward=reward, weight=2.0)], CPU)
        assert torch.allclose(rewards.total(rewards.score(IMAGES, PROMPTS)), torch.arange(6) / 5)
        with Judges([reward], CPU) as judges:
            pending = judges.submit(IMAGES, PROMPTS)
            assert not pending.quick
            assert torch.allclose(pending.result()["judge"], torch.arange(6) / 10)
