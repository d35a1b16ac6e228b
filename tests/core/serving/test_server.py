"""The server with OpenAI's own client, on both backends, over the tiny model."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import backends
from gsm8k_core.problems.prompts import decode
from gsm8k_core.serving.conversation import chat_prompt
from gsm8k_core.types import Sampling
from tests.core.serving.conftest import PLACES, WAITING, WINDOW, Running, serving
from tests.waiting import CEILING, SOONEST, wait_for

CLIENTS, QUESTIONS = 64, 16


def question(number: int) -> list[dict[str, str]]:
    words = ["how", "many", "apples", "has", "Tom", "?", "he", "buys", "2", "3", "4", "5", "6", "7", "8", "9", "10"]
    return [{"role": "user", "content": " ".join(words[number % 7 :] * (1 + number % 3)) + " ?" * (number // 7)}]


def alone(running: Running, numbers: range) -> dict[int, str]:
    """The texts of one at a time, by the same backend without a server."""
    backend = backends.open(running.scheduler.models["tiny"].backend.name, running.model.path, "cpu", "float32")
    texts = {}
    for number in numbers:
        prompt = chat_prompt(running.model, question(number))
        ((_, done),) = backend.generate([prompt], Sampling(24, 1))
        texts[number] = decode(running.model.tokenizer, done.tokens)
    return texts


def test_64_clients_at_once_lose_nothing_and_get_the_text_of_one_at_a_time(running: Running) -> None:
    together = threading.Barrier(CLIENTS)
    before = running.scheduler.answered

    def ask(number: int) -> str:
        with running.client() as client:
            together.wait(CEILING)
            asked: Any = {"model": "tiny", "messages": question(number % QUESTIONS)}
            if number // QUESTIONS % 2:
                return client.chat.completions.create(**asked).choices[0].message.content or ""
            stream = client.chat.completions.create(**asked, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(ask, range(CLIENTS)))
    texts = alone(running, range(QUESTIONS))
    assert found == [texts[number % QUESTIONS] for number in range(CLIENTS)]
    assert len(set(texts.values())) > QUESTIONS // 2
    assert running.scheduler.answered - before == CLIENTS


def test_what_an_answer_holds(running: Running) -> None:
    client = running.client()
    one: Any = {"model": "tiny", "max_tokens": 5}
    ends = ((n, client.chat.completions.create(**one, messages=question(n)).choices[0]) for n in range(16))
    asked = one | {"messages": question(next(number for number, end in ends if end.finish_reason == "length"))}
    whole = client.chat.completions.create(**asked, n=2, temperature=1.5, seed=4)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].message.content != whole.choices[1].message.content
    again = client.chat.completions.create(**asked, n=2, temperature=1.5, seed=4)
    assert [c.message.content for c in again.choices] == [c.message.content for c in whole.choices]
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_an_answer_ends_before_a_stop_text(running: Running) -> None:
    client = running.client()

    def ask(number: int, **more: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=question(number), **more).choices[0]  # type: ignore

    number, text = next((n, text) for n in range(16) if len((text := ask(n).message.content).split()) > 4)
    stop = f" {text.split()[2]}"
    for more in ({"stop": stop}, {"stop": ["never", stop]}):
        stopped = ask(number, **more)
        assert (stopped.finish_reason, stopped.message.content) == ("stop", text[: text.index(stop)])


def test_a_text_is_gone_on_with_and_another_model_answers(running: Running) -> None:
    client = running.client()
    one = client.completions.create(model="tiny", prompt="how many apples", max_tokens=4)
    tokens = running.model.tokenizer(["how many apples"])["input_ids"][0]
    several = client.completions.create(model="other", prompt=[tokens, tokens], max_tokens=4)
    assert [choice.text for choice in several.choices] == [one.choices[0].text] * 2
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "gone"}, 404, "model_not_found"),
        ({"max_tokens": WINDOW}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "how many " * 200}]}, 400, "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
        ({"n": PLACES + WAITING + 1}, 400, None),
        ({"messages": 3}, 400, None),
        ({"messages": [{"role": "user", "content": "x" * 2**20}]}, 413, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"temperature": NaN}', 400, None),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, 400, None),  # half of an emoji
        ({"\ud83d": 1}, 400, None),
    ],
)
def test_bad_input_is_an_error_in_openais_form(running: Running, body: Any, status: int, code: str | None) -> None:
    if not isinstance(body, bytes):
        body = json.dumps({"model": "tiny", "messages": question(0)} | body).encode()
    found = httpx.post(f"{running.url}/v1/chat/completions", content=body, timeout=CEILING)
    assert found.status_code == status, found.text
    assert found.json()["error"].keys() == {"message", "type", "param", "code"}
    assert found.json()["error"]["code"] == code
    assert ("a request has 1 MiB at most" in found.text) == (status == 413)


def test_other_paths_and_pages_of_others_are_refused_in_that_form_too(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=CEILING) as client:
        assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
        assert client.get("/v1/chat/completions").status_code == 405
        refused = client.post("/v1/chat/completions", headers={"origin": "http://evil.example"}, content="{}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        rebound = client.get("/", headers={"host": "evil.example"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_not_allowed")
        asked = client.options("/v1/chat/completions", headers={"origin": running.url})
        assert not [name for name in asked.headers if name.startswith("access-control")]
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"


# --- one that is small, and one that ends ---------------------------------------------------------------------


def endless(client: Any, number: int, **more: Any) -> Any:
    """A stream that is not over soon: what is drawn at a high temperature seldom is an end token."""
    asked: Any = {"model": "tiny", "messages": question(number), "max_tokens": 150, "temperature": 2, "seed": number}
    return client.chat.completions.create(**asked, stream=True, **more)


def test_who_is_one_too_many_gets_a_429_and_a_client_that_goes_away_frees_its_place(tiny_llama: Path) -> None:
    import openai

    with serving(SOONEST, tiny_llama, places=1, waiting=1) as running:
        served = running.scheduler.models["tiny"]
        hold = threading.Event()
        real = served.backend.answer
        began = threading.Event()

        def slow(incoming: Any, *rest: Any) -> Any:
            for done in real(incoming, *rest):
                if served.active:
                    began.set()
                    hold.wait(CEILING)
                yield done

        served.backend.answer = slow  # type: ignore[method-assign, union-attr]
        with (
            running.client() as first,
            running.client() as second,
            running.client() as third,
            ThreadPoolExecutor() as pool,
        ):
            running_one = pool.submit(endless, first, 1)
            assert began.wait(CEILING)
            waiting_one = pool.submit(endless, second, 2)
            wait_for(lambda: running.scheduler._waiting["tiny"])
            with pytest.raises(openai.RateLimitError, match="1 answer being written and 1 waiting") as refused:
                endless(third, 3)
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.code == "queue_full"
            (ticket,) = served.active.values()
            running_one.result().close()  # the client goes away in the middle of its answer
            wait_for(lambda: ticket.gone)
            hold.set()
            assert "".join(chunk.choices[0].delta.content or "" for chunk in waiting_one.result())
        wait_for(lambda: running.scheduler.is_idle)
        assert running.scheduler.answered == 1


def test_what_goes_wrong_in_a_step_ends_the_answers_in_it_and_no_others(tiny_llama: Path) -> None:
    import openai

    with serving(SOONEST, tiny_llama) as running, running.client() as client:
        served = running.scheduler.models["tiny"]
        real, broken = served.backend.answer, [True]

        def answer(*arguments: Any) -> Any:
            for done in real(*arguments):
                if served.active and broken:
                    broken.clear()
                    raise RuntimeError("a kernel broke")
                yield done

        served.backend.answer = answer  # type: ignore[method-assign, union-attr]
        with pytest.raises(openai.InternalServerError, match="a kernel broke"):
            client.chat.completions.create(model="tiny", messages=question(1))  # type: ignore[arg-type]
        assert "a kernel broke" in "".join(running.said)
        assert client.chat.completions.create(model="tiny", messages=question(1)).choices  # type: ignore[arg-type]


def test_the_end_cuts_what_runs_and_says_so(tiny_llama: Path) -> None:
    import openai

    with serving(SOONEST, tiny_llama, grace=0.0) as running, running.client() as client:
        served = running.scheduler.models["tiny"]
        real = served.backend.answer

        def answer(*arguments: Any) -> Any:
            for done in real(*arguments):
                yield done
                if served.active:
                    wait_for(lambda: running.scheduler._end_at is not None)

        served.backend.answer = answer  # type: ignore[method-assign, union-attr]
        stream = endless(client, 1)
        next(iter(stream))
        running.server.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert running.scheduler.cut == 1
    assert running.scheduler.join(CEILING)


def test_a_second_signal_cuts_at_once_and_who_neither_reads_nor_sends_is_not_waited_for(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import openai

    with serving(SOONEST, tiny_llama, grace=600.0) as running, running.client() as client, running.client() as deaf:
        served, connections = running.scheduler.models["tiny"], running.server.server_state.connections
        real = served.backend.answer

        def answer(*arguments: Any) -> Any:
            for done in real(*arguments):
                yield done
                if served.active:
                    wait_for(lambda: len(served.active) + len(running.scheduler._waiting["tiny"]) == 2)
                if len(served.active) == 2:
                    wait_for(lambda: (running.scheduler._end_at or time.monotonic() + 1) <= time.monotonic())

        served.backend.answer = answer  # type: ignore[method-assign, union-attr]
        unread = endless(deaf, 2)
        for connection in connections:
            connection.flow.pause_writing()  # as where a client does not read
        stream = endless(client, 1)
        next(iter(stream))
        with socket.create_connection((running.url[7:].split(":")[0], int(running.url.split(":")[2]))) as silent:
            silent.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{")
            wait_for(lambda: len(connections) == 3)
            for _ in range(2):
                running.server.handle_exit(signal.SIGINT, None)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
            silent.settimeout(CEILING)
            assert silent.recv(99).startswith(b"HTTP/1.1 503")
        monkeypatch.setattr("gsm8k_core.serving.server.AFTER", 0.0)  # after which who does not read is let go
        running.server.handle_exit(signal.SIGINT, None)
    del unread
    assert running.scheduler.cut == 2
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_with_a_key_nobody_is_answered_without_it(tiny_llama: Path) -> None:
    import openai

    with serving(SOONEST, tiny_llama, key="sesame-open") as running:
        with running.client() as wrong, pytest.raises(openai.AuthenticationError, match="the key is wrong"):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="sesame-open", timeout=CEILING) as right:
            assert [model.id for model in right.models.list()] == ["tiny", "other"]
        assert httpx.get(running.url, timeout=CEILING).status_code == 200
        assert running.scheduler.models["tiny"].places == PLACES
