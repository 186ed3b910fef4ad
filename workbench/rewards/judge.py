"""What a vision-language model says of a picture, asked over the interface that most servers of such models share."""

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from workbench.contracts import Reward, RewardFunction
from workbench.rewards.asking import Address, Question, Service, Unusable, Variable, excerpt, png

PATH = "/chat/completions"
QUESTION = (
    'This picture was made from the description "{prompt}". '
    "How well does it show everything that the description asks for, and how well is it made? "
    "Rate it from {low} (not at all) to {high} (perfectly). Answer with the number alone."
)

_PLACES = ("prompt", "low", "high")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


def _is_question(text: str) -> str:
    unknown = [place for place in re.findall(r"\{(\w+)\}", text) if place not in _PLACES]
    if unknown:
        raise ValueError(f"nothing is known to put for {{{unknown[0]}}}; choose from: {', '.join(_PLACES)}")
    return text


class Judge(Reward):
    """How a vision-language model rates each picture, scaled to [0, 1]; any server that speaks OpenAI's chat completions.

    vLLM, SGLang, llama.cpp, Ollama and hosted models do. An answer that is no number of the scale is asked for again and then an
    error that names the prompt and what was said, never a score.
    """

    name: Literal["judge"] = "judge"
    address: Address = Field("http://127.0.0.1:8000/v1", description="what /chat/completions follows in the server's URL")
    model: str = Field("", max_length=200, description="the model's name, as its server knows it")
    question: Annotated[str, AfterValidator(_is_question)] = Field(
        QUESTION, min_length=1, max_length=8000, description="what is asked; {prompt}, {low} and {high} are filled in"
    )
    low: float = Field(0.0, description="the worst rating, which scores 0")
    high: float = Field(10.0, description="the best rating, which scores 1")
    answers: Literal["json", "number"] = Field(
        "json", description="json: by a JSON schema, which most servers hold the model to; number: as text that is a number alone"
    )
    temperature: float = Field(0.0, ge=0, le=2, description="randomness of the answers; 0 for the likeliest")
    max_tokens: int = Field(64, ge=1, le=32_768, description="most tokens of an answer; a model that thinks first needs many")
    concurrency: int = Field(8, ge=1, le=256, description="questions that are open at the same time, one for each picture")
    timeout: float = Field(60.0, gt=0, le=3600, description="seconds that one question may take")
    retries: int = Field(3, ge=0, le=20, description="how often a question without a usable answer is asked again")
    key_variable: Variable = Field(
        "WORKBENCH_JUDGE_KEY",
        description="environment variable that holds the server's key, where it asks for one; over plain http it goes to "
        "this machine alone, and to hosts that $WORKBENCH_PLAIN_HOSTS lists",
    )

    background: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    @model_validator(mode="after")
    def _ascends(self) -> "Judge":
        if self.low >= self.high:
            raise ValueError(f"judge.low = {self.low:g} must be below judge.high = {self.high:g}")
        return self

    def load(self, device: torch.device) -> RewardFunction:
        """Raises: ValueError: if no model is named."""
        if not self.model:
            raise ValueError("the reward 'judge' needs judge.model, the name by which its server knows the model")
        return _Asked(self)


class _Asked:
    """The ratings of one model."""

    def __init__(self, settings: Judge) -> None:
        self._settings = settings
        self._service = Service(
            (settings.address,),
            PATH,
            variable=settings.key_variable,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            retries=settings.retries,
            remedy="see that the server runs and knows judge.model; judge.answers = number asks it without a schema, and "
            "judge.question, judge.max_tokens and judge.timeout may not suit the model",
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] in [0, 1] of images [N, 3, H, W] in [0, 1]. Raises: RewardFailed: naming a prompt and what was answered."""
        settings = self._settings
        questions = [
            Question(partial(_body, settings, image, prompt), prompt, partial(rating, settings=settings))
            for image, prompt in zip(images, prompts, strict=True)
        ]
        ratings = torch.tensor(self._service.ask(questions), dtype=torch.float64)
        return ((ratings - settings.low) / (settings.high - settings.low)).float()

    def close(self) -> None:
        """Break off what is asked."""
        self._service.close()


def _body(settings: Judge, image: Tensor, prompt: str) -> dict[str, Any]:
    """One question in the form of OpenAI's chat completions."""
    filled = {"prompt": prompt, "low": f"{settings.low:g}", "high": f"{settings.high:g}"}
    text = re.sub(r"\{(\w+)\}", lambda place: filled[place[1]], settings.question)
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(image)}"}}
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": "user", "content": [picture, {"type": "text", "text": text}]}],
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
    }
    if settings.answers == "json":
        number = {"type": "number", "minimum": settings.low, "maximum": settings.high}
        schema = {"type": "object", "properties": {"score": number}, "required": ["score"], "additionalProperties": False}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "rating", "strict": True, "schema": schema}}
    return body


def rating(answer: Any, settings: Judge) -> float:
    """The number in a chat completion. Raises: Unusable: if there is none, or it is not on the scale; says what there is."""
    try:
        said = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Unusable(f"gave no chat completion: {excerpt(answer)}") from None
    number = said.strip() if isinstance(said, str) else ""
    if settings.answers == "json":
        number = _score(number)
    if not _NUMBER.fullmatch(number):
        wanted = 'JSON as {"score": 5}' if settings.answers == "json" else "a number alone"
        raise Unusable(f"said {excerpt(said)}, which is not {wanted}")
    if not settings.low <= float(number) <= settings.high:
        raise Unusable(f"said {excerpt(said)}, which is not from {settings.low:g} to {settings.high:g}")
    return float(number)


def _score(text: str) -> str:
    """The number in {"score": 5} as text; empty where there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    value = found.get("score") if isinstance(found, dict) else None
    return repr(value) if type(value) in (int, float) else ""
