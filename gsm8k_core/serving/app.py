"""The server's paths: OpenAI's, and a page to type into. It reads, asks the scheduler, and words what comes back."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.scoring.sampling import noise_key
from gsm8k_core.serving.chat_page import make_page
from gsm8k_core.serving.conversation import SYSTEM, ContextLimits, chat_prompt, plain_prompt
from gsm8k_core.serving.detokenizer import Detokenizer
from gsm8k_core.serving.guard import OriginGuard, Rules
from gsm8k_core.serving.protocol import (
    Answer,
    AnswerRequest,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Form,
    read,
)
from gsm8k_core.serving.scheduler import CLOSING, BusyError, ClosingError, News, Scheduler, Ticket
from gsm8k_core.types import DataError, GSM8KError, OutOfMemoryError, Sampling, UsageError

MOST_BYTES = 2**20  # of a request's body
GONE = 499  # nobody reads it
Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that may be asked: what it is called, what it was before training, and how it answers unless told."""

    name: str
    role: str  # trained or base; one model alone is trained
    model: ModelFolder
    limits: ContextLimits
    system: str  # the system turn of a conversation without one; empty: none
    sampling: Sampling
    created: int

    def as_json(self) -> dict[str, Any]:
        shape = {"id": self.name, "object": "model", "created": self.created, "owned_by": "gsm8k-finetune"}
        return shape | {"role": self.role, "max_model_len": self.limits.window}


@dataclass(slots=True)
class Replies:
    """The tickets of one request, and what is heard of them."""

    tickets: Sequence[Ticket]
    scheduler: Scheduler
    heard: asyncio.Queue[News] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        for ticket in self.tickets:
            ticket.hear = self.heard.put_nowait
        self.scheduler.submit(self.tickets)

    def cancel(self) -> None:
        """Nobody listens any more. Of one that has ended, nothing is left to be cancelled."""
        for ticket in self.tickets:
            self.scheduler.cancel(ticket)

    async def follow(self) -> AsyncIterator[tuple[Answer, str]]:
        """Each answer with each new piece of it. Raises what ended one of them that is not its end."""
        answers = {id(ticket): Answer(index) for index, ticket in enumerate(self.tickets)}
        left = len(answers)
        while left:
            news = await self.heard.get()
            if news.error is not None:
                raise news.error
            answer = answers[id(news.ticket)]
            answer.text += news.piece
            answer.tokens += news.tokens
            answer.done = news.done
            left -= news.is_last
            yield answer, news.piece


class Events(StreamingResponse):
    """Pieces as they come. However it ends, nobody is left in the batch for whom nobody listens."""

    media_type = "text/event-stream"

    def __init__(self, answers: Replies, form: Form) -> None:
        super().__init__(_events(answers, form))
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


async def _events(answers: Replies, form: Form) -> AsyncIterator[str]:
    """Server-sent events. What goes wrong is the last of them, without [DONE]."""
    seen: dict[int, Answer] = {}
    try:
        async for answer, piece in answers.follow():
            if answer.index not in seen:
                seen[answer.index] = answer
                if (first := form.first(answer)) is not None:
                    yield _event(first)
            if piece:
                yield _event(form.piece(answer, piece))
            if answer.done is not None:
                yield _event(form.last(answer))
        if form.with_usage:
            yield _event(form.last_usage(list(seen.values())))
        yield "data: [DONE]\n\n"
    except GSM8KError as error:
        yield _event(_worded(error).body)


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _worded(error: GSM8KError) -> ApiError:
    """An error of ours as OpenAI's."""
    if isinstance(error, BusyError):
        return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", headers={"retry-after": "1"})
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    if isinstance(error, ClosingError):
        return ApiError(503, str(error), kind="server_error", code="shutting_down")
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, str(error), kind="server_error", code="out_of_memory")
    return ApiError(500, str(error), kind="server_error")


class Paths:
    """What is done for each path."""

    def __init__(self, offers: Mapping[str, Offer], scheduler: Scheduler, needs_key: bool) -> None:
        self._offers, self._scheduler = dict(offers), scheduler
        self._page = make_page(needs_key)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page.html, headers={"content-security-policy": self._page.policy})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [offer.as_json() for offer in self._offers.values()]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._offer(request.path_params["name"]).as_json())

    async def chat(self, request: Request) -> Response:
        asked = read(ChatRequest, await _body(request))
        offer = self._offer(asked.model)
        turns = [message.turn for message in asked.messages]
        if offer.system and turns[0]["role"] != SYSTEM:
            turns = [{"role": SYSTEM, "content": offer.system}, *turns]
        prompt = await _rendered("messages", chat_prompt, offer.model, turns)
        return await self._answer(request, asked, offer, [prompt], "messages")

    async def complete(self, request: Request) -> Response:
        asked = read(CompletionRequest, await _body(request))
        offer = self._offer(asked.model)
        if not asked.prompts:
            raise ApiError(400, "prompt is an empty list", param="prompt")
        try:
            self._scheduler.check_room(offer.name, len(asked.prompts) * (asked.n or 1))  # before any is made
        except GSM8KError as error:
            raise _worded(error) from None
        prompts = [await self._prompt(offer, prompt) for prompt in asked.prompts]
        return await self._answer(request, asked, offer, prompts, "prompt")

    async def _prompt(self, offer: Offer, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            return await _rendered("prompt", plain_prompt, offer.model, prompt)
        if any(not 0 <= token < offer.model.vocabulary for token in prompt):
            raise ApiError(400, f"tokens are numbers from 0 to {offer.model.vocabulary - 1}", param="prompt")
        return tuple(prompt)

    def _offer(self, name: str) -> Offer:
        if name not in self._offers:
            there = ", ".join(self._offers)
            raise ApiError(
                404, f"the model {name[:100]!r} is not here (there are {there})", param="model", code="model_not_found"
            )
        return self._offers[name]

    async def _answer(
        self, request: Request, asked: AnswerRequest, offer: Offer, prompts: Sequence[Prompt], param: str
    ) -> Response:
        tickets = _tickets(asked, offer, prompts, param)
        try:
            answers = Replies(tickets, self._scheduler)
        except GSM8KError as error:
            raise _worded(error) from None
        chat = isinstance(asked, ChatRequest)
        form = Form(chat, offer.name, sum(map(len, prompts)), asked.with_usage)
        return Events(answers, form) if asked.stream else await _whole(request, answers, form)


async def _rendered(param: str, render: Any, *arguments: object) -> Prompt:
    """The tokens of a prompt, beside the loop: a long one takes a while."""
    try:
        prompt: Prompt = await run_in_threadpool(render, *arguments)
    except DataError as error:
        raise ApiError(400, str(error), param=param) from None
    return prompt


def _tickets(asked: AnswerRequest, offer: Offer, prompts: Sequence[Prompt], param: str) -> list[Ticket]:
    """One for each answer that is wanted, all of one manner."""
    given = {name: getattr(asked, name) for name in ("temperature", "top_p", "top_k")}
    manner = replace(offer.sampling, **{name: value for name, value in given.items() if value is not None})
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    tickets: list[Ticket] = []
    for prompt in prompts:
        sampling = replace(manner, max_new_tokens=_room(asked, offer, len(prompt), param))
        for _ in range(asked.n or 1):
            text = Detokenizer(offer.model.tokenizer, asked.stops)
            key = noise_key(str(seed), len(tickets))
            tickets.append(Ticket(offer.name, prompt, sampling, key, text, lambda news: None))
    return tickets


def _room(asked: AnswerRequest, offer: Offer, num_prompt: int, param: str) -> int:
    """How long the answer may get. Raises ApiError where it does not fit."""
    window = offer.limits.window
    if num_prompt == 0:
        raise ApiError(400, f"{param} has no token to begin from", param=param)
    longest = offer.limits.room(num_prompt) if asked.longest is None else asked.longest
    if num_prompt + max(longest, 1) > window:
        wanted = "" if asked.longest is None else f" and {longest} for the answer"
        raise ApiError(
            400,
            f"this model reads {window} tokens, prompt and answer together; {param} has {num_prompt}{wanted}",
            param=param,
            code="context_length_exceeded",
        )
    return longest


async def _whole(request: Request, answers: Replies, form: Form) -> Response:
    """The answers in one piece; none where the client goes away first."""

    async def collect() -> list[Answer]:
        return sorted({answer.index: answer async for answer, _ in answers.follow()}.values(), key=lambda a: a.index)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=GONE)
        return JSONResponse(form.whole(collecting.result()))
    except GSM8KError as error:
        raise _worded(error) from None
    finally:
        answers.cancel()
        collecting.cancel()
        leaving.cancel()


async def _body(request: Request) -> object:
    """The body's JSON, which has an end: also of a client that sends none, once the server ends."""
    reading = asyncio.ensure_future(_content(request))
    closing = asyncio.ensure_future(request.app.state.closing.wait())
    try:
        await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise _worded(ClosingError(CLOSING))
        content = reading.result()
    finally:
        reading.cancel()
        closing.cancel()
    try:
        asked = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        halves = re.search("[\ud800-\udfff]", json.dumps(asked, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({str(error)[:200]})") from None
    if halves:  # an emoji that was cut in two: JSON can say it, and no tokenizer can read it
        raise ApiError(400, f"the body holds half a character (\\u{ord(halves[0]):x}), which is no text")
    return asked


async def _content(request: Request) -> bytearray:
    """The body's bytes."""
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > MOST_BYTES:
                raise ApiError(413, f"a request has {MOST_BYTES >> 20} MiB at most, and this one is larger; send less")
    except ClientDisconnect:
        raise ApiError(GONE, "the client went away") from None
    return content


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, what).body, error.status_code, headers=error.headers)


def _defect(request: Request, error: Exception) -> Response:
    """A defect of ours; uvicorn shows the traceback where the server runs."""
    return JSONResponse(ApiError(500, f"unexpected {type(error).__name__}", kind="server_error").body, 500)


def make_app(offers: Mapping[str, Offer], scheduler: Scheduler, rules: Rules) -> Starlette:
    """The server. What is heard from the decoding thread comes to the loop that it runs in."""
    paths = Paths(offers, scheduler, needs_key=rules.key is not None)
    handlers = {ApiError: _refused, HTTPException: _no_such_path, Exception: _defect}
    app = Starlette(
        routes=paths.routes(), middleware=[Middleware(OriginGuard, rules=rules)], exception_handlers=handlers
    )
    app.state.closing = asyncio.Event()  # nobody is taken any more
    return app


def post_to(loop: asyncio.AbstractEventLoop, scheduler: Scheduler) -> None:
    """From now on news are told in `loop`; once it is closed nobody is there to hear them."""

    def tell(news: Sequence[News]) -> None:
        for each in news:
            each.tell()

    def post(news: Sequence[News]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, news)

    scheduler.post = post
