"""From a socket that listens to the end of the last connection: uvicorn, and how it is ended."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette

from gsm8k_core.serving.app import post_to
from gsm8k_core.serving.scheduler import Scheduler

AFTER = 2.0  # seconds that a connection gets to close, when the last answer is there


class Server(uvicorn.Server):
    """One that lets running answers end, or cuts them, before connections are closed."""

    def __init__(
        self, config: uvicorn.Config, app: Starlette, scheduler: Scheduler, grace: float, say: Callable[[str], object]
    ) -> None:
        super().__init__(config)
        self._app, self._scheduler, self._grace, self._say = app, scheduler, grace, say

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        post_to(self._loop, self._scheduler)
        await super().startup(sockets)

    async def shutdown(self, sockets: Any = None) -> None:
        if self._grace and not self._scheduler.is_idle:
            self._say(f"ending   answers get {self._grace:g} s more; Ctrl-C again cuts them")
        self._end_within(self._grace)
        self._app.state.closing.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal. The second one cuts; uvicorn's own way would cancel each answer where it stands."""
        if self.should_exit and self.started:
            self._loop.call_soon_threadsafe(self._end_within, 0.0)
        self.should_exit = True

    def _end_within(self, seconds: float) -> None:
        self._scheduler.close(seconds)
        self._loop.call_later(seconds + AFTER, self._drop)

    def _drop(self) -> None:
        """Whoever does not read, or does not send, is as one that went away."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def run_server(
    app: Starlette,
    scheduler: Scheduler,
    sock: socket.socket,
    grace: float,
    made: Callable[[Server], object] = lambda server: None,
    say: Callable[[str], object] = lambda line: None,
) -> None:
    """Until a signal, or until nobody can be answered any more. `made` gets the server, to end it by `should_exit`."""
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(grace + 2 * AFTER),  # not reached, unless _drop is not enough
    )
    server = Server(config, app, scheduler, grace, say)
    made(server)

    def end() -> None:
        server.should_exit = True

    scheduler.on_end = end
    try:
        server.run(sockets=[sock])
    finally:
        scheduler.close(0.0)
        scheduler.join(AFTER)
