"""What every request meets before the application: who may ask, how much may come, how long it may take.

In this order: a request number, room among the requests in hand, the name by which the service was called,
the page it was called from, the token, the size of the body (counted as it comes, stated or not). Around the
application: patience with slow bodies, headers of every answer, one log line without personal
data (the address pattern, never the address; no query, no client). Not here: what is asked (`routes_*`), slow
headers and slow readers (`server`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pc_pipeline.service.faults import disk_problem, problem_document
from pc_pipeline.service.problems import Problem, problem_response
from pc_pipeline.service.settings import ServiceSettings

OPEN_PATHS: Final = ("/health", "/openapi.json", "/docs", "/docs/")
UPLOAD_PATHS: Final = ("/api/portfolios",)
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
logger = logging.getLogger("pc_pipeline.service")
access = logging.getLogger("pc_pipeline.service.access")


@dataclass(slots=True)
class _Exchange:
    """One request and its answer as they pass."""

    request_id: str
    begun: float = field(default_factory=time.monotonic)
    received: int = 0
    sent: int = 0
    status: int = 0
    body_ended: bool = False

    @property
    def has_answered(self) -> bool:
        return self.status != 0


class Guard:
    """ASGI middleware.

    Args:
        app: the application behind it.
        settings: limits and token.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app, self._settings = app, settings
        self._token = settings.token.encode()
        names = {*_LOOPBACK_NAMES, settings.host.lower(), *(name.lower() for name in settings.host_names)}
        self._names = frozenset(names)
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of scope pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(uuid.uuid4().hex)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        self._in_hand += 1
        try:
            await self._serve(scope, receive, send, exchange)
        finally:
            self._in_hand -= 1
            self._log(scope, exchange)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange) -> None:
        limit = self._body_limit(scope)
        outgoing = self._outgoing(send, exchange)
        try:
            self._check(scope, limit)
            await self._app(scope, self._incoming(receive, exchange, limit), outgoing)
        except Problem as problem:
            await self._answer(scope, outgoing, exchange, problem.document(), problem.headers)
        except Exception as error:
            document = disk_problem(error)
            if document is None:
                logger.error("request %s failed", exchange.request_id, exc_info=error)
                document = problem_document(500, "the service failed; its log says why")
            await self._answer(scope, outgoing, exchange, document)

    async def _answer(
        self,
        scope: Scope,
        send: Send,
        exchange: _Exchange,
        document: dict[str, Any],
        headers: Any = None,
    ) -> None:
        if exchange.has_answered:
            raise ConnectionError("the answer broke off")  # half an answer cannot become another
        response = problem_response(document, exchange.request_id, dict(headers or {}))
        await response(scope, _no_more, send)

    # ---- before ------------------------------------------------------------------------------

    def _check(self, scope: Scope, limit: int) -> None:
        """Refuse what may not come in.

        Raises:
            Problem: with its status.
        """
        headers = dict(scope["headers"])
        if self._in_hand > self._settings.max_requests:
            raise Problem(503, "too many requests in hand", headers={"Retry-After": "1"})
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            raise Problem(
                421, "the service does not go by that name", "expected: a name given by --host-name"
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise Problem(403, "requests from other sites' pages are not served")
        if self._token and scope["path"] not in OPEN_PATHS and not scope["path"].startswith("/docs/"):
            self._check_token(headers.get(b"authorization", b""))
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > limit:
            raise _too_large(limit)

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this service (a page elsewhere cannot rebind its name to us)."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") and host.count(":") != 0 else host
        return name in self._names or host in self._names

    def _check_token(self, header: bytes) -> None:
        scheme, _, given = header.partition(b" ")
        same = hmac.compare_digest(given.strip(), self._token)  # time tells nothing of where they differ
        if scheme.lower() != b"bearer" or not same:
            raise Problem(
                401,
                "a token is needed",
                "expected: Authorization: Bearer <token>",
                headers={"WWW-Authenticate": 'Bearer realm="pc_pipeline"'},
            )

    def _body_limit(self, scope: Scope) -> int:
        is_upload = scope["path"] in UPLOAD_PATHS
        return self._settings.upload_bytes if is_upload else self._settings.json_bytes

    # ---- around ------------------------------------------------------------------------------

    def _incoming(self, receive: Receive, exchange: _Exchange, limit: int) -> Receive:
        """The body, counted and timed; after its end, waiting for the client to leave is not timed."""
        deadline = exchange.begun + self._settings.body_seconds

        async def next_message() -> Message:
            if exchange.body_ended:
                return await receive()
            patience = min(self._settings.idle_seconds, deadline - time.monotonic())
            try:
                async with asyncio.timeout(max(patience, 0.0)):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, "the body came too slowly", headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                exchange.received += len(message.get("body", b""))
                exchange.body_ended = not message.get("more_body", False)
                if exchange.received > limit:
                    raise _too_large(limit)
            return message

        return next_message

    def _outgoing(self, send: Send, exchange: _Exchange) -> Send:
        """The answer, with the headers of every answer."""

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(b"x-request-id", exchange.request_id.encode()), *_HEADERS]
                if b"cache-control" not in present:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *extra]}
            elif message["type"] == "http.response.body":
                exchange.sent += len(message.get("body", b""))
            await send(message)

        return pass_on

    def _log(self, scope: Scope, exchange: _Exchange) -> None:
        route = getattr(scope.get("route"), "path", None) or "-"
        line = {
            "request": exchange.request_id,
            "method": scope["method"] if scope["method"].isalpha() else "-",
            "route": route,
            "status": exchange.status,
            "ms": round(1e3 * (time.monotonic() - exchange.begun), 1),
            "in": exchange.received,
            "out": exchange.sent,
        }
        access.info(json.dumps(line))


def _too_large(limit: int) -> Problem:
    return Problem(413, "the body is too large", f"expected: at most {limit} bytes")


async def _no_more() -> Message:
    return {"type": "http.disconnect"}
