"""Errors as `application/problem+json` (RFC 9457). Nothing of the request's content is repeated in them.

Here: the form, and how the errors of the rooms below, the framework's and the disk's become one.
Not here: their wording (`faults`), who raises them.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from pc_pipeline.core.errors import ConfigError, PcError, StoreError
from pc_pipeline.service.faults import disk_problem, pc_problem, problem_document

MEDIA_TYPE: Final = "application/problem+json"
_PARSING_FAILED: Final = "There was an error parsing the body"  # FastAPI's word for a body it cannot read
_MOST_ERRORS: Final = 20
logger = logging.getLogger("pc_pipeline.service")


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        status: HTTP status.
        title: one sentence.
        detail: expected, got, where; '' for none.
        headers: such as Retry-After.
        more: further members of the document.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        *,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status_code=status, detail=detail or title, headers=headers)
        self.title, self.more = title, more

    def document(self) -> dict[str, Any]:
        """The members of the problem document."""
        return problem_document(
            self.status_code, self.title, self.detail if self.detail != self.title else "", **self.more
        )


def problem_response(
    document: dict[str, Any], request_id: str = "", headers: dict[str, str] | None = None
) -> Response:
    """A problem document as a response."""
    if request_id:
        document = document | {"instance": f"urn:uuid:{request_id}"}
    return Response(
        json.dumps(document, allow_nan=False),
        status_code=document["status"],
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the application as a problem document."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(PcError, _on_ours)
    app.add_exception_handler(OSError, _on_disk)
    app.add_exception_handler(sqlite3.OperationalError, _on_disk)


def _on_validation(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    wrong = [
        {"where": ".".join(str(step) for step in entry["loc"])[:200], "reason": str(entry["msg"])[:300]}
        for entry in found[:_MOST_ERRORS]
    ]
    document = problem_document(422, "the request is not as expected", errors=wrong)
    return problem_response(document, request_id(request))


def _on_http(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return problem_response(error.document(), request_id(request), dict(error.headers or {}))
    if not isinstance(error, HTTPException):
        raise error
    status, detail = error.status_code, str(error.detail)
    if detail == _PARSING_FAILED:
        full = disk_problem(error.__cause__)
        if full is not None:
            return problem_response(full, request_id(request))
        detail = "expected: a whole body of the stated content type"
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_here(request))
    title = HTTPStatus(status).phrase
    document = problem_document(status, title, detail if detail != title else "")
    return problem_response(document, request_id(request), headers)


def _methods_here(request: Request) -> list[str]:
    """Every method of an address (the framework names those of its first route only)."""
    known = {"GET", "POST", "PUT", "PATCH", "DELETE"}
    return sorted(
        method
        for method in known
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    )


def _on_ours(request: Request, error: Exception) -> Response:
    if not isinstance(error, PcError):
        raise error
    if isinstance(error, ConfigError | StoreError):
        logger.info("refused: %s", error.message)
    return problem_response(pc_problem(error), request_id(request))


def _on_disk(request: Request, error: Exception) -> Response:
    full = disk_problem(error)
    if full is None:
        raise error
    return problem_response(full, request_id(request))


def request_id(request: Request) -> str:
    """The request's own number, as the guard gave it."""
    return str(request.scope.get("state", {}).get("request_id", ""))
