"""Files as answers: one range or the whole, never a bundle of ranges. Not here: which file (`routes_*`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from pc_pipeline.service.problems import Problem

_ONE_RANGE: Final = re.compile(rb"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


class ResultFile(FileResponse):
    """A file; a Range header that is not one plain range is not heeded (RFC 9110, 14.2)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        heeded = [(name, value) for name, value in scope["headers"] if name != b"range" or _is_plain(value)]
        await super().__call__({**scope, "headers": heeded}, receive, send)


def _is_plain(value: bytes) -> bool:
    found = _ONE_RANGE.fullmatch(value.strip())
    return found is not None and not (found[2] and int(found[2]) < int(found[1]))


def send_file(request: Request, path: Path, media_type: str, name: str) -> ResultFile:
    """The file under a name to save it by.

    Raises:
        Problem: 404, it has just been removed; 416, it is shorter than where the range begins.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise Problem(404, "the file is gone") from None
    asked = _ONE_RANGE.fullmatch(request.headers.get("range", "").encode("latin-1").strip())
    if asked is not None and asked[1] and int(asked[1]) >= status.st_size:
        raise Problem(
            416,
            "the file is shorter than that",
            f"expected: a range below {status.st_size}",
            headers={"Content-Range": f"bytes */{status.st_size}"},
        )
    return ResultFile(path, media_type=media_type, filename=name, stat_result=status)
