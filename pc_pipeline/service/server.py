"""uvicorn, with patience that ends: slow headers, endless headers, readers that do not read.

Here: the protocol with its timers, `serve`. Not here: slow bodies and all that needs the request (`guard`).
uvicorn times only idle connections between requests; a client that sends a header a minute, or asks for a
file and never reads it, would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from pathlib import Path
from typing import Any, ClassVar, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pc_pipeline.service.app import create_app, open_desk
from pc_pipeline.service.runner import ProcessRunner, Runner
from pc_pipeline.service.settings import ServiceSettings

MAX_HEADER_BYTES: Final = 64 * 1024
KEEP_ALIVE_SECONDS: Final = 15
MAX_CONNECTIONS: Final = 4000
_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the time and size of headers and on the time of unread answers.

    Attributes:
        header_seconds, write_seconds: patience, set from the settings by `serve`.
    """

    header_seconds: ClassVar[float] = 10.0
    write_seconds: ClassVar[float] = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None  # for the headers of a request
        self._unread: asyncio.TimerHandle | None = None  # for the client to read
        self._header_bytes: int | None = 0  # None while no headers are being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; its headers must follow."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()
        self._waiting = self._unread = None
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of one that has been answered already."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle:
            self._await_headers()
        super().data_received(data)
        if self._header_bytes is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.transport.write(_TOO_LONG)
                self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._header_bytes = 0
        self._await_headers()

    def on_headers_complete(self) -> None:
        """The headers are whole."""
        self._header_bytes = None
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Server(uvicorn.Server):
    """uvicorn's server that lets waiting requests go when it stops."""

    app: FastAPI

    async def shutdown(self, sockets: Any = None) -> None:
        """Answer requests that wait for a job, then stop as usual."""
        desk = getattr(self.app.state, "desk", None)
        if desk is not None:
            desk.waiters.release()
        await super().shutdown(sockets)


def make_server(settings: ServiceSettings, runner: Runner | None = None) -> uvicorn.Server:
    """A server ready to run; `run()` blocks until it is told to stop.

    Raises:
        ConfigError, StoreError: its folder is another service's, or its jobs cannot be opened.
    """
    open_desk(settings, runner or ProcessRunner()).close()  # refused here, in the user's words
    limits = {"header_seconds": settings.header_seconds, "write_seconds": settings.write_seconds}
    app = create_app(settings, runner=runner)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=type("Protocol", (PatientProtocol,), limits),
            ws="none",
            access_log=False,  # it would hold addresses and queries; the guard writes one without
            server_header=False,
            log_config=None,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, int(settings.stop_seconds)),
        )
    )
    server.app = app
    return server


def serve(settings: ServiceSettings, log_file: Path | None = None) -> bool:
    """Run the service until SIGTERM or Ctrl-C; whether it had started.

    Args:
        log_file: where the log goes; stderr by default.

    Raises:
        ConfigError, StoreError: as `make_server`.
    """
    _set_up_log(log_file)
    _allow_connections()
    server = make_server(settings)
    server.run()
    return server.started


def _set_up_log(file: Path | None) -> None:
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in ("pc_pipeline.service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def _allow_connections() -> None:
    """As many open files as the system lets this process have, up to what the limits need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 1000
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
