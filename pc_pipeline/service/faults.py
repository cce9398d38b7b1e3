"""What went wrong, as plain members of a problem document: one wording for requests and for jobs.

Here: a full disk, the errors of the rooms below. Not here: the HTTP answer (`problems`).
"""

from __future__ import annotations

import errno
import sqlite3
from typing import Any, Final

from pc_pipeline.core.errors import PcError, StoreError

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS: Final = ("No space left on device", "File too large", "Disk quota exceeded", "disk is full")
_LONGEST: Final = 2000


def problem_document(status: int, title: str, detail: str = "", **more: Any) -> dict[str, Any]:
    """type, title, status, detail and further members."""
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail[:_LONGEST]
    return document | more


def disk_problem(error: BaseException | None) -> dict[str, Any] | None:
    """The problem of a full disk, if that is what an error (or its cause) says.

    Libraries wrap the system's error in one of their own, so its words count as well.
    """
    while error is not None:
        by_number = isinstance(error, OSError) and error.errno in DISK_FULL
        wrapped = isinstance(error, OSError | sqlite3.Error) or type(error).__module__.startswith("polars")
        if by_number or (wrapped and any(word in str(error) for word in _WORDS)):
            return problem_document(
                507, "the disk is full", "expected: room for the result; make some, then resume or send again"
            )
        error = error.__cause__ or error.__context__
    return None


def pc_problem(error: PcError) -> dict[str, Any]:
    """The problem of an error of the rooms below; paths of this machine are left out."""
    status = 409 if isinstance(error, StoreError) else 422
    lines = [
        f"{label}: {value}"
        for label, value in (("expected", error.expected), ("got", error.got))
        if value is not None
    ]
    return problem_document(status, error.message, "; ".join(lines), kind=type(error).__name__)
