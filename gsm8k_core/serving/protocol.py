"""OpenAI's words: what a request may say, what an answer looks like whole and in pieces, and how an error does.

What is not known is refused by name, and so is what is known and would change an answer: nothing is dropped that
somebody may count on. Values that ask for nothing (null, false, 0, an empty list) are taken from every client.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from gsm8k_core.config.fields import one_line
from gsm8k_core.serving.conversation import ASSISTANT, SYSTEM, USER, Turn
from gsm8k_core.types import Completion

INVALID = "invalid_request_error"
COMPLETION_TOKENS = 16  # of /v1/completions where max_tokens is not given: OpenAI's number
MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 128, 4, 500
# What says something about the caller, or asks for what is so anyway.
WITHOUT_EFFECT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "best_of": (1,),
    "repetition_penalty": (1,),
}
# Of these 0 asks for something: the logprobs of the chosen tokens alone, or what no sampling can do.
ZERO_ASKS = {"logprobs", "best_of", "repetition_penalty"}
KNOWN = {
    *NEUTRAL,
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "tools",
    "functions",
    "echo",
    "suffix",
    "audio",
    "prediction",
    "reasoning_effort",
    "web_search_options",
    "verbosity",
    "min_p",
    "stop_token_ids",
}
ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}
FINISHED: Mapping[str, str] = {"stop": "stop", "complete": "stop", "length": "length"}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(pydantic.BaseModel):
    """How an answer comes in pieces."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against who can count bytes on the way; there is none here


class TextPart(pydantic.BaseModel):
    """A piece of a message: text alone is read."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["text"]
    text: str


class Message(pydantic.BaseModel):
    """One turn, as a client sends it; what an answer's message has beside its text is null there."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None  # no chat template here reads it

    @pydantic.model_validator(mode="after")
    def _nothing_more(self) -> Message:
        more = [name for name, value in (self.model_extra or {}).items() if value not in (None, [], {})]
        if more:
            raise ValueError(f"{', '.join(sorted(more))} cannot be read here; send text alone")
        return self

    @property
    def turn(self) -> Turn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": ROLES[self.role], "content": text}


class AnswerRequest(pydantic.BaseModel):
    """What both kinds of request may say."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None  # not OpenAI's: what this project's sampling has besides
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> AnswerRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        if len(self.stops) > MOST_STOPS or "" in self.stops:
            raise ValueError(f"stop takes up to {MOST_STOPS} texts, none of them empty")
        if any(len(stop) > LONGEST_STOP for stop in self.stops):
            raise ValueError(f"stop takes texts of {LONGEST_STOP} characters at most")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        """The longest answer that is asked for."""
        return self.max_tokens

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(AnswerRequest):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(AnswerRequest):
    """/v1/completions: a prompt, or several, as texts or as tokens."""

    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def longest(self) -> int | None:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(each, int) for each in self.prompt):
            return [[each for each in self.prompt if isinstance(each, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


Request = TypeVar("Request", bound=AnswerRequest)


def read(kind: type[Request], body: object) -> Request:
    """A request's JSON. Raises ApiError for what is missing, wrong, unknown, or known and not done here."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    asked = {}
    for name, value in body.items():
        if name in kind.model_fields:
            asked[name] = value
        elif name not in WITHOUT_EFFECT and not _asks_for_nothing(name, value):
            what = "is not supported here" if name in KNOWN else "is not known here"
            raise ApiError(400, f"{_short(name)} {what}", param=_short(name), code="unsupported_parameter")
    try:
        return kind.model_validate(asked)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ApiError(400, one_line(error, str, most=3)[:1000], param=place[:100] or None) from None


def _asks_for_nothing(name: str, value: object) -> bool:
    if name not in KNOWN:
        return value is None
    if name in ZERO_ASKS and value == 0 and value is not False:
        return False
    return value in (None, False, 0, "", [], {}) or value in NEUTRAL.get(name, ())


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}..."


@dataclass(slots=True)
class Answer:
    """One answer of a request, while it is written."""

    index: int
    text: str = ""
    tokens: int = 0
    done: Completion | None = None

    @property
    def finish_reason(self) -> str | None:
        return None if self.done is None else FINISHED[self.done.finish_reason]


@dataclass(slots=True)
class Form:
    """The shape of the answers to one request: a chat's, or a text's that is gone on with."""

    chat: bool
    model: str
    num_prompt: int  # tokens of the prompts, all together
    with_usage: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def _frame(self, piece: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if piece else "chat.completion") if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        frame: dict[str, Any] = {"id": name, "object": kind, "created": self.created, "model": self.model}
        return frame | {"choices": choices} | ({"usage": None} if piece and self.with_usage else {})

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        written = sum(answer.tokens for answer in answers)
        counts = {"prompt_tokens": self.num_prompt, "completion_tokens": written}
        return counts | {"total_tokens": self.num_prompt + written}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for answer in answers:
            message = {"role": ASSISTANT, "content": answer.text, "refusal": None}
            said = {"message": message} if self.chat else {"text": answer.text}
            choices.append({"index": answer.index, **said, "logprobs": None, "finish_reason": answer.finish_reason})
        return self._frame(False, choices) | {"usage": self.usage(answers)}

    def first(self, answer: Answer) -> dict[str, Any] | None:
        """What comes before the first piece."""
        return self._piece(answer, {"role": ASSISTANT, "content": "", "refusal": None}, None) if self.chat else None

    def piece(self, answer: Answer, text: str) -> dict[str, Any]:
        """A piece of text."""
        return self._piece(answer, {"content": text} if self.chat else text, None)

    def last(self, answer: Answer) -> dict[str, Any]:
        """What says how an answer ended."""
        return self._piece(answer, {} if self.chat else "", answer.finish_reason)

    def _piece(self, answer: Answer, said: Any, reason: str | None) -> dict[str, Any]:
        what = {"delta": said} if self.chat else {"text": said}
        return self._frame(True, [{"index": answer.index, **what, "logprobs": None, "finish_reason": reason}])

    def last_usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """What follows the last piece, where it was asked for."""
        return self._frame(True, []) | {"usage": self.usage(answers)}
