"""A server in this process: the tiny model on a backend, the app over it, and OpenAI's own client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import backends
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.serving.app import Offer, make_app
from gsm8k_core.serving.conversation import ContextLimits
from gsm8k_core.serving.guard import Rules
from gsm8k_core.serving.scheduler import Scheduler, Served
from gsm8k_core.serving.server import run_server
from gsm8k_core.types import Sampling
from tests import tiny
from tests.waiting import CEILING, wait_for

if TYPE_CHECKING:  # two seconds that every worker would need to collect
    import openai
    import uvicorn

PLACES, WAITING, WINDOW = 64, 16, 200


@dataclass
class Running:
    """A server that runs."""

    url: str
    scheduler: Scheduler
    server: uvicorn.Server
    model: ModelFolder
    said: list[str]

    def client(self, **options: Any) -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=CEILING, max_retries=0, **options)


@contextmanager
def serving(
    name: str, folder: Path, places: int = PLACES, waiting: int = WAITING, key: str | None = None, grace: float = 60.0
) -> Iterator[Running]:
    """On a free port of loopback. `tiny` and `other` are the same folder; the second is opened when it is asked."""
    model, said = ModelFolder(folder), []
    offers = {
        each: Offer(each, role, ModelFolder(folder), ContextLimits(WINDOW, 24), "", Sampling(24, 1), 0)
        for each, role in (("tiny", "trained"), ("other", "base"))
    }

    def open_it() -> Any:
        return backends.open(name, folder, "cpu", "float32")

    scheduler = Scheduler({each: Served(open_it, places, WINDOW) for each in offers}, waiting, said.append)
    scheduler.start()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        app = make_app(offers, scheduler, Rules.of("127.0.0.1", True, key))
        made: list[uvicorn.Server] = []
        thread = threading.Thread(target=run_server, args=(app, scheduler, sock, grace, made.append))
        thread.start()
        wait_for(lambda: made and made[0].started)
        try:
            yield Running(f"http://127.0.0.1:{port}", scheduler, made[0], model, said)
        finally:
            made[0].should_exit = True
            thread.join(CEILING)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, frameworks: None) -> Path:
    return tiny.make(tmp_path_factory.mktemp("serving") / "llama", "llama")


@pytest.fixture(scope="session", params=list(backends.PROVIDERS))
def running(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Running]:
    if not backends.installed(request.param):
        pytest.skip(f"backend {request.param} is not installed here")
    with serving(request.param, tiny_llama) as found:
        yield found
