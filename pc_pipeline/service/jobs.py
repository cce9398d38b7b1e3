"""State of background work, in SQLite: survives a restart, shared by the service and its workers.

    queued -> running -> done | failed | cancelled
    running -> queued      the worker stopped or died; after too many deaths: failed
    failed -> queued       resumed by the user

Here: the table and its moves, each one transaction. Not here: what a job does (`task_*`), who runs it
(`worker`, `runner`). A running job carries the lease of its worker; a worker that has lost its lease can
change nothing.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pc_pipeline.core.errors import StoreError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES: Final = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
_FINAL_STATUSES: Final = (404, 409, 413, 422)
_BUSY_SECONDS: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    progress REAL NOT NULL DEFAULT 0,
    step TEXT NOT NULL DEFAULT '',
    checkpoint TEXT NOT NULL DEFAULT '{}',
    result TEXT NOT NULL DEFAULT '{}',
    problem TEXT NOT NULL DEFAULT '{}',
    attempts INTEGER NOT NULL DEFAULT 0,
    lease TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE INDEX IF NOT EXISTS jobs_by_subject ON jobs (kind, subject, number);
"""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of background work.

    Attributes:
        id: 32 hexadecimal digits.
        kind: 'portfolio', 'sequences' or 'simulation'.
        subject: what it is about (portfolio id), '' for none.
        request: what was asked, plain values.
        state: see the module. progress: 0-1. step: what it does now, in words.
        checkpoint: where a resumed run goes on. result: what came of it. problem: why it failed.
        attempts: times a worker began. lease: the worker that has it.
        created_at, started_at, finished_at: seconds since 1970.
    """

    number: int
    id: str
    kind: str
    subject: str
    request: dict[str, Any]
    state: str
    progress: float
    step: str
    checkpoint: dict[str, Any]
    result: dict[str, Any]
    problem: dict[str, Any]
    attempts: int
    lease: str
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def can_resume(self) -> bool:
        """Whether a failed job may do better the next time; one that was refused fails the same way again."""
        return self.state == FAILED and self.problem.get("status") not in _FINAL_STATUSES

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in (DONE, FAILED, CANCELLED)


class QueueFull(StoreError):
    """As many jobs wait as may."""


class JobStore:
    """The jobs of one service folder.

    Args:
        path: the SQLite file; made with its folder.
        max_attempts: a job whose worker dies this often is failed.
    """

    def __init__(self, path: Path, max_attempts: int = 3) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._max_attempts = max_attempts
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")  # an accepted job outlives a power cut
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # ---- asking ------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        """A job, None if there is none of that id."""
        return _first(self._read("SELECT * FROM jobs WHERE id = ?", job_id))

    def latest(self, kind: str, subject: str) -> Job | None:
        """The newest job of a kind about a subject."""
        sql = "SELECT * FROM jobs WHERE kind = ? AND subject = ? ORDER BY number DESC LIMIT 1"
        return _first(self._read(sql, kind, subject))

    def active(self, subject: str) -> list[Job]:
        """Jobs about a subject that wait or run."""
        sql = "SELECT * FROM jobs WHERE subject = ? AND state IN (?, ?) ORDER BY number"
        return self._read(sql, subject, QUEUED, RUNNING)

    def recent(self, limit: int, state: str = "") -> list[Job]:
        """The newest jobs, newest first."""
        if state:
            sql = "SELECT * FROM jobs WHERE state = ? ORDER BY number DESC LIMIT ?"
            return self._read(sql, state, limit)
        return self._read("SELECT * FROM jobs ORDER BY number DESC LIMIT ?", limit)

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        with self._lock:
            rows = self._connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        return dict.fromkeys(STATES, 0) | {str(state): int(n) for state, n in rows}

    def ahead(self, job: Job) -> int:
        """Jobs queued before this one."""
        if job.state != QUEUED:
            return 0
        sql = "SELECT count(*) FROM jobs WHERE state = ? AND kind = ? AND number < ?"
        with self._lock:
            return int(self._connection.execute(sql, (QUEUED, job.kind, job.number)).fetchone()[0])

    # ---- moves -------------------------------------------------------------------------------

    def submit(
        self, kind: str, subject: str, request: dict[str, Any], *, max_queued: int, job_id: str = ""
    ) -> Job:
        """Queue a job.

        Raises:
            QueueFull: `max_queued` jobs wait already.
        """
        job_id = job_id or uuid.uuid4().hex
        text = json.dumps(request)

        def move() -> None:
            sql = "SELECT count(*) FROM jobs WHERE state = ?"
            waiting = self._connection.execute(sql, (QUEUED,)).fetchone()[0]
            if waiting >= max_queued:
                raise QueueFull("the queue is full", expected=f"at most {max_queued} waiting", got=waiting)
            self._connection.execute(
                "INSERT INTO jobs (id, kind, subject, request, state, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (job_id, kind, subject, text, QUEUED, time.time()),
            )

        self._write(move)
        return self._known(job_id)

    def claim(self, kinds: Sequence[str], lease: str) -> Job | None:
        """Take the oldest queued job of these kinds; None if there is none."""
        marks = ", ".join("?" * len(kinds))

        def move() -> Job | None:
            sql = f"SELECT * FROM jobs WHERE state = ? AND kind IN ({marks}) ORDER BY number LIMIT 1"
            row = self._connection.execute(sql, (QUEUED, *kinds)).fetchone()
            if row is None:
                return None
            self._connection.execute(
                "UPDATE jobs SET state = ?, lease = ?, attempts = attempts + 1, "
                "started_at = coalesce(started_at, ?) WHERE number = ?",
                (RUNNING, lease, time.time(), row["number"]),
            )
            return _job(
                self._connection.execute("SELECT * FROM jobs WHERE number = ?", (row["number"],)).fetchone()
            )

        return self._write(move)

    def advance(self, job: Job, progress: float, step: str, checkpoint: dict[str, Any] | None = None) -> bool:
        """Say how far a running job is; False if the job is no longer this worker's."""
        values: list[Any] = [min(max(progress, 0.0), 1.0), step]
        extra = ""
        if checkpoint is not None:
            extra = ", checkpoint = ?"
            values.append(json.dumps(checkpoint))
        return self._update_mine(job, f"progress = ?, step = ?{extra}", values)

    def finish(self, job: Job, result: dict[str, Any]) -> bool:
        """A running job is done; False if it is no longer this worker's."""
        change = "state = ?, progress = 1, step = '', result = ?, problem = '{}', finished_at = ?, lease = ''"
        return self._update_mine(job, change, [DONE, json.dumps(result), time.time()])

    def fail(self, job: Job, problem: dict[str, Any]) -> bool:
        """A running job has failed; its checkpoint stays, so that it may be resumed."""
        change = "state = ?, problem = ?, finished_at = ?, lease = ''"
        return self._update_mine(job, change, [FAILED, json.dumps(problem), time.time()])

    def give_back(self, job: Job) -> bool:
        """A worker that stops returns its job to the queue; the attempt does not count."""
        return self._update_mine(job, "state = ?, lease = '', attempts = attempts - 1", [QUEUED])

    def abandon(self, lease: str | None = None) -> list[str]:
        """Workers died (one, or with None all): queue their jobs again, fail those begun too often.

        Returns:
            ids of the jobs that failed.
        """
        died = {
            "type": "about:blank",
            "title": "the worker died each time it ran this job",
            "status": 500,
            "detail": f"attempts: {self._max_attempts}; the job may be resumed",
        }

        def move() -> list[str]:
            where, values = ("lease = ? AND ", [lease]) if lease is not None else ("", [])
            over = self._connection.execute(
                f"SELECT id FROM jobs WHERE {where}state = ? AND attempts >= ?",
                (*values, RUNNING, self._max_attempts),
            ).fetchall()
            self._connection.execute(
                f"UPDATE jobs SET state = ?, problem = ?, finished_at = ?, lease = '' "
                f"WHERE {where}state = ? AND attempts >= ?",
                (FAILED, json.dumps(died), time.time(), *values, RUNNING, self._max_attempts),
            )
            self._connection.execute(
                f"UPDATE jobs SET state = ?, lease = '' WHERE {where}state = ?", (QUEUED, *values, RUNNING)
            )
            return [str(row["id"]) for row in over]

        return self._write(move)

    def resume(self, job_id: str) -> Job | None:
        """Queue a failed job again, from its checkpoint; None if it is not failed."""

        def move() -> int:
            return self._connection.execute(
                "UPDATE jobs SET state = ?, attempts = 0, problem = '{}', finished_at = NULL "
                "WHERE id = ? AND state = ?",
                (QUEUED, job_id, FAILED),
            ).rowcount

        return self._known(job_id) if self._write(move) else None

    def cancel(self, job_id: str) -> Job | None:
        """Stop a job that waits or runs; None if it does neither."""

        def move() -> int:
            return self._connection.execute(
                "UPDATE jobs SET state = ?, lease = '', finished_at = ? WHERE id = ? AND state IN (?, ?)",
                (CANCELLED, time.time(), job_id, QUEUED, RUNNING),
            ).rowcount

        return self._known(job_id) if self._write(move) else None

    def forget(self, subject: str) -> None:
        """Remove what jobs about a subject say (its data is being erased)."""
        self._write(
            lambda: self._connection.execute(
                "UPDATE jobs SET result = '{}', request = '{}', subject = '' WHERE subject = ?", (subject,)
            )
        )

    # ---- plumbing ----------------------------------------------------------------------------

    def _update_mine(self, job: Job, change: str, values: Sequence[Any]) -> bool:
        def move() -> int:
            return self._connection.execute(
                f"UPDATE jobs SET {change} WHERE id = ? AND lease = ? AND state = ?",
                (*values, job.id, job.lease, RUNNING),
            ).rowcount

        return self._write(move) == 1

    def _known(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job is None:
            raise StoreError("the job is gone", expected="a job", got=job_id)
        return job

    def _read(self, sql: str, *values: Any) -> list[Job]:
        with self._lock:
            rows = self._connection.execute(sql, values).fetchall()
        return [_job(row) for row in rows]

    def _write(self, move: Callable[[], _T]) -> _T:
        """Run one move in a transaction of its own."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                answer = move()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return answer


def _first(jobs: Sequence[Job]) -> Job | None:
    return jobs[0] if jobs else None


def _job(row: sqlite3.Row) -> Job:
    plain = dict(row)
    for name in ("request", "checkpoint", "result", "problem"):
        plain[name] = json.loads(plain[name])
    return Job(**plain)
