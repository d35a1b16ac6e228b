"""Who may speak to the server: a page of another site never, and elsewhere than on this machine nobody without the key.

A browser lets any page send requests to 127.0.0.1, and a name of that page's owner can be made to lead there (DNS
rebinding). So on loopback the Host has to be a name of loopback, an Origin has to be the server's own, and what a
browser calls cross-site is refused. No answer has a header that would let another site read it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gsm8k_core.serving.protocol import ApiError

NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]*)?")  # a name or an address, and a port
OPEN = frozenset({"/", "/health"})  # they tell nothing: the page asks for the key itself
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """Which hosts a request may be for (None: any, with the key alone), and the key."""

    hosts: frozenset[str] | None
    key: str | None

    @classmethod
    def of(cls, host: str, is_loopback: bool, key: str | None) -> Rules:
        """For a server that listens on `host`, which nobody but this machine reaches, or others as well."""
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return cls(NAMES | {shown.lower()} if is_loopback else None, key)


class OriginGuard:
    """Refuses before anything is read, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check(Headers(scope=scope), scope["path"], self._rules)
        except ApiError as error:
            response = JSONResponse(error.body, error.status, headers={**HEADERS, **error.headers})
            await response(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent


def check(headers: Mapping[str, str], path: str, rules: Rules) -> None:
    """Raises ApiError for who may not."""
    host = headers.get("host", "").lower()
    found = HOST.fullmatch(host)
    if rules.hosts is not None and (found is None or found[1] not in rules.hosts):
        raise ApiError(403, "this server answers to localhost and 127.0.0.1 alone", code="host_not_allowed")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):  # a proxy speaks TLS
        raise ApiError(403, "a page of another site may not use this server", code="origin_not_allowed")
    foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if foreign and headers.get("sec-fetch-mode") != "navigate":
        raise ApiError(403, "a page of another site may not use this server", code="origin_not_allowed")
    if rules.key is not None and path not in OPEN:
        _check_key(headers.get("authorization", ""), rules.key)


def _check_key(given: str, key: str) -> None:
    kind, _, value = given.partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(value.strip().encode("latin-1"), key.encode()):
        what = "the key is wrong" if given else "this server wants a key: Authorization: Bearer KEY"
        raise ApiError(401, what, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
