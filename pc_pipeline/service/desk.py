"""What every address works with: settings, jobs, shelf, the runner, and requests that wait for a job.

Here: `Desk`, put on `app.state.desk`, and answers that several addresses share. Not here: any address.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from dataclasses import dataclass, field
from typing import IO, Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pc_pipeline.service.faults import problem_document
from pc_pipeline.service.jobs import FAILED, Job, JobStore, QueueFull
from pc_pipeline.service.payloads import JobAnswer, ProblemDocument
from pc_pipeline.service.problems import MEDIA_TYPE, Problem
from pc_pipeline.service.runner import Runner
from pc_pipeline.service.settings import ServiceSettings
from pc_pipeline.service.shelf import Shelf

logger = logging.getLogger("pc_pipeline.service")
JOB_ID = r"^[0-9a-f]{32}$"


class Waiters:
    """Requests that wait for a job to be over."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def open(self) -> None:
        """Belong to the running loop."""
        self._loop, self._closed = asyncio.get_running_loop(), False

    def release(self, job_id: str | None = None) -> None:
        """A job is over (None: the service stops); from any thread."""
        if job_id is None:
            self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set, job_id)

    def _set(self, job_id: str | None) -> None:
        with self._lock:
            names = list(self._events) if job_id is None else [job_id]
            for name in names:
                for event in self._events.get(name, ()):
                    event.set()

    async def wait(self, jobs: JobStore, job: Job, seconds: float) -> Job:
        """The job when it is over, or as it stands after `seconds`."""
        event = asyncio.Event()
        with self._lock:
            self._events.setdefault(job.id, set()).add(event)
        try:
            now = await run_in_threadpool(jobs.get, job.id) or job  # it may be over before anyone waited
            if now.is_over or self._closed or seconds <= 0:
                return now
            try:
                async with asyncio.timeout(seconds):
                    await event.wait()
            except TimeoutError:
                pass  # the caller answers 202
            return await run_in_threadpool(jobs.get, job.id) or job
        finally:
            with self._lock:
                self._events[job.id].discard(event)
                if not self._events[job.id]:
                    del self._events[job.id]


@dataclass(slots=True)
class Desk:
    """One service's working parts.

    Attributes:
        settings, jobs, shelf, runner: see their modules. lock: holds the folder.
        waiters: requests that wait.
    """

    settings: ServiceSettings
    jobs: JobStore
    shelf: Shelf
    runner: Runner
    lock: IO[bytes]
    waiters: Waiters = field(default_factory=Waiters)

    def close(self) -> None:
        """Queue again what was in hand (on a full disk the next service does), and let the folder go."""
        try:
            self.jobs.abandon()
        except sqlite3.Error as error:
            logger.warning("the state of jobs cannot be written: %s", error)
        self.jobs.close()
        self.lock.close()

    def submit(self, kind: str, subject: str, request: dict[str, Any], job_id: str = "") -> Job:
        """Queue a job and tell the workers.

        Raises:
            Problem: 429, the queue is full.
        """
        try:
            job = self.jobs.submit(kind, subject, request, max_queued=self.settings.max_queued, job_id=job_id)
        except QueueFull as error:
            raise Problem(
                429, error.message, f"expected: {error.expected}", headers={"Retry-After": "10"}
            ) from None
        self.runner.wake()
        return job

    def need_room(self, wanted_bytes: int) -> None:
        """Refuse work whose result would not fit on the disk.

        Raises:
            Problem: 507.
        """
        free = self.shelf.free_bytes()
        if free < wanted_bytes + self.settings.min_free_bytes:
            raise Problem(
                507,
                "the disk is too full for this",
                f"expected: about {wanted_bytes + self.settings.min_free_bytes} bytes free; got: {free}",
            )

    def job_answer(self, job: Job) -> dict[str, Any]:
        """A job as its address shows it."""
        return JobAnswer(
            job_id=job.id,
            kind=job.kind,
            status=job.state,  # type: ignore[arg-type]
            progress=round(job.progress, 4),
            step=job.step,
            jobs_ahead=self.jobs.ahead(job),
            attempts=job.attempts,
            subject=job.subject,
            status_url=status_url(job),
            result=job.result or None,
            problem=ProblemDocument(**problem_document(500, "failed") | job.problem) if job.problem else None,
            can_resume=job.can_resume,
        ).model_dump(mode="json")


def desk_of(request: Request) -> Desk:
    """The desk of the application that serves a request."""
    desk: Desk = request.app.state.desk
    return desk


def status_url(job: Job) -> str:
    """Where to ask how a job stands."""
    return f"/api/{'simulations' if job.kind == 'simulation' else 'jobs'}/{job.id}"


def raise_failure(job: Job) -> None:
    """Answer with the problem of a job that failed or was cancelled.

    Raises:
        Problem: its status, and where the job is.
    """
    if job.state == "cancelled":
        raise Problem(409, "the job was cancelled", job_id=job.id)
    if job.state == FAILED:
        status = int(job.problem.get("status", 500))
        raise Problem(
            status,
            str(job.problem.get("title", "the job failed")),
            str(job.problem.get("detail", "")),
            job_id=job.id,
            can_resume=job.can_resume,
        )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an address: its own errors and those any address has."""
    words = {
        400: "not a readable request",
        401: "no token, or another",
        403: "called from another site's page",
        404: "there is none of that name",
        405: "not a method of this address",
        408: "the body came too slowly",
        409: "not now: it exists already, or is being made",
        413: "the body is too large",
        415: "another content type is needed",
        416: "no such range",
        421: "another host name",
        422: "not as expected",
        429: "the queue is full",
        500: "a defect of the service",
        503: "too many requests in hand",
        507: "the disk is full",
    }
    schema = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
    every = (400, 401, 403, 408, 413, 421, 422, 503, *statuses)
    return {
        status: {"description": words[status], "content": {MEDIA_TYPE: schema}}
        for status in sorted(set(every))
    }
