"""What a request may say, and that an error has OpenAI's form."""

from __future__ import annotations

from typing import Any

import pytest

from gsm8k_core.serving.guard import Rules, check
from gsm8k_core.serving.protocol import ApiError, ChatRequest, CompletionRequest, read

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_a_plain_request_is_read() -> None:
    asked = read(ChatRequest, {**ASKED, "max_completion_tokens": 7, "temperature": 1, "stop": "x", "user": "me"})
    assert (asked.longest, asked.temperature, asked.stops, asked.n) == (7, 1.0, ("x",), None)
    assert read(CompletionRequest, {"model": "m", "prompt": "x"}).longest == 16


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"logprobs": None},
        {"logprobs": False, "top_logprobs": 0},
        {"frequency_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    ],
)
def test_what_asks_for_nothing_more_is_taken(more: dict[str, Any]) -> None:
    assert read(ChatRequest, ASKED | more).model == "m"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ([], None, "must be a JSON object"),
        ({}, "model", "model"),
        ({"model": "m"}, "messages", "messages"),
        (ASKED | {"messages": []}, "messages", "messages must not be empty (got [])"),
        (ASKED | {"temperature": 3}, "temperature", "temperature must be less than or equal to 2 (got 3)"),
        (ASKED | {"temperature": "0"}, "temperature", "temperature"),
        (ASKED | {"temperature": True}, "temperature", "temperature"),
        (ASKED | {"top_p": 0}, "top_p", "top_p"),
        (ASKED | {"max_tokens": 0}, "max_tokens", "max_tokens"),
        (ASKED | {"n": 1000}, "n", "n must be"),
        (ASKED | {"stop": ["a", "b", "c", "d", "e"]}, None, "up to 4 texts"),
        (ASKED | {"stop": ""}, None, "none of them empty"),
        (ASKED | {"stop": "a" * 501}, None, "500 characters at most"),
        (ASKED | {"stream_options": {"include_usage": True}}, None, "stream_options is for stream: true"),
        (ASKED | {"tools": [{"type": "function"}]}, "tools", "tools is not supported here"),
        (ASKED | {"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not supported here"),
        (ASKED | {"logprobs": 0}, "logprobs", "logprobs is not supported here"),  # the chosen tokens' own
        (ASKED | {"repetition_penalty": 0.0}, "repetition_penalty", "is not supported here"),
        (ASKED | {"response_format": {"type": "json_object"}}, "response_format", "is not supported here"),
        (ASKED | {"temprature": 0.5}, "temprature", "temprature is not known here"),
        (ASKED | {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "messages.0.role"),
        (ASKED | {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages.0", "tool_calls"),
        (ASKED | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "must be 'text'"),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(body: Any, param: str | None, says: str) -> None:
    with pytest.raises(ApiError) as found:
        read(ChatRequest, body)
    error = found.value.body["error"]
    assert found.value.status == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in str(error["message"])
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]]), ([], [])],
)
def test_a_prompt_is_texts_or_tokens(prompt: Any, prompts: Any) -> None:
    assert read(CompletionRequest, {"model": "m", "prompt": prompt}).prompts == prompts


HERE = Rules.of("127.0.0.1", True, None)
KEYED = Rules.of("0.0.0.0", False, "sesame-open")
MINE = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("headers", "rules", "path", "status"),
    [
        (MINE, HERE, "/v1/models", None),
        ({"host": "localhost"}, HERE, "/v1/models", None),
        ({"host": "[::1]:8000"}, HERE, "/v1/models", None),
        ({"host": "LOCALHOST:1"}, HERE, "/v1/models", None),
        (MINE | {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, HERE, "/v1/models", None),
        (MINE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, HERE, "/", None),
        ({"host": "evil.example:8000"}, HERE, "/v1/models", 403),
        ({"host": "127.0.0.1.evil.example"}, HERE, "/", 403),
        ({"host": "[::1].evil.example"}, Rules.of("127.0.0.1", True, None), "/", 403),
        ({"host": ""}, HERE, "/", 403),
        (MINE | {"origin": "http://evil.example"}, HERE, "/v1/models", 403),
        (MINE | {"origin": "null"}, HERE, "/v1/models", 403),
        (MINE | {"origin": "http://127.0.0.1:3000"}, HERE, "/v1/models", 403),
        (MINE | {"origin": "http://127.0.0.1:8000.evil.example"}, HERE, "/v1/models", 403),
        (MINE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, HERE, "/v1/models", 403),
        (MINE | {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, HERE, "/v1/models", 403),
        ({"host": "my-machine:8000"}, KEYED, "/v1/models", 401),
        ({"host": "my-machine:8000", "authorization": "Bearer sesame"}, KEYED, "/v1/models", 401),
        ({"host": "my-machine:8000", "authorization": "sesame-open"}, KEYED, "/v1/models", 401),
        ({"host": "my-machine:8000", "authorization": "Bearer \xff"}, KEYED, "/v1/models", 401),
        ({"host": "my-machine:8000", "authorization": "Bearer sesame-open"}, KEYED, "/v1/models", None),
        ({"host": "my-machine:8000"}, KEYED, "/", None),
    ],
)
def test_who_may_speak(headers: dict[str, str], rules: Rules, path: str, status: int | None) -> None:
    if status is None:
        check(headers, path, rules)
        return
    with pytest.raises(ApiError) as found:
        check(headers, path, rules)
    assert found.value.status == status
    assert "sesame-open" not in str(found.value.body)
