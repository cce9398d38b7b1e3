"""One worker process: claims jobs of its kinds, runs them one after the other, says when one is over.

Started by `runner` as `python -m pc_pipeline.service.worker`. The first line on stdin is its settings; then
`wake` (there may be work) and `stop` (return the job in hand and leave). The end of stdin means that the
service is gone: the worker leaves at once, and its job is queued again when a service starts. On stdout it
writes `over <job id>`. Not here: what a job does (`task_*`).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Final, TypeVar

from pc_pipeline.core.errors import PcError
from pc_pipeline.service.faults import disk_problem, pc_problem, problem_document
from pc_pipeline.service.jobs import Job, JobStore
from pc_pipeline.service.settings import ServiceSettings
from pc_pipeline.service.shelf import Shelf

KINDS: Final = {
    "portfolio": "pc_pipeline.service.task_portfolio",
    "sequences": "pc_pipeline.service.task_sequences",
    "simulation": "pc_pipeline.service.task_simulation",
}
PRELOADED: Final = ("portfolio", "sequences")  # 'simulation' loads networks: when it is asked for
_ROOM_SECONDS: Final = 2.0  # between attempts to write when the disk is full
_LOOK_SECONDS: Final = 5.0  # how often an idle worker looks by itself
_T = TypeVar("_T")
logger = logging.getLogger("pc_pipeline.service.worker")


class JobStopped(Exception):
    """The worker is to stop, or the job is no longer its own."""


@dataclass(slots=True)
class Work:
    """What a task is given.

    Attributes:
        job: the job. jobs: where its state goes. shelf: where its files go. settings: of the service.
        stop: set when the worker is to stop.
    """

    job: Job
    jobs: JobStore
    shelf: Shelf
    settings: ServiceSettings
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, share: float, step: str, checkpoint: dict[str, Any] | None = None) -> None:
        """Say how far the job is.

        Raises:
            JobStopped: it is to go no further here (the checkpoint is kept all the same).
        """
        if not self.jobs.advance(self.job, share, step, checkpoint) or self.stop.is_set():
            raise JobStopped


def run_job(work: Work) -> None:
    """Run one claimed job and write its end."""
    task: Callable[[Work], dict[str, Any]] = importlib.import_module(KINDS[work.job.kind]).run
    try:
        result = task(work)
    except JobStopped:
        if not insist(lambda: work.jobs.give_back(work.job), work.stop):  # cancelled, or another's by now
            _drop_unless_resumable(work)
        return
    except Exception as error:
        problem = _as_problem(error)
        insist(lambda: work.jobs.fail(work.job, problem), work.stop)
        _drop_unless_resumable(work)
        return
    if insist(lambda: work.jobs.finish(work.job, result), work.stop):
        work.shelf.drop_job_files(work.job.id)
    else:
        _drop_unless_resumable(work)


def insist(move: Callable[[], _T], stop: threading.Event) -> _T:
    """Write a job's state; on a full disk, try again until there is room or the worker is to stop."""
    while True:
        try:
            return move()
        except sqlite3.OperationalError as error:
            logger.warning("the state of a job cannot be written: %s", error)
            if stop.wait(_ROOM_SECONDS):
                raise


def _drop_unless_resumable(work: Work) -> None:
    now = work.jobs.get(work.job.id)
    if now is not None and now.is_over and not now.can_resume:
        work.shelf.drop_job_files(work.job.id)


def _as_problem(error: Exception) -> dict[str, Any]:
    """What the user is told; a defect of ours goes to the log with its traceback, not to the user."""
    full = disk_problem(error)
    if full is not None:
        return full
    if isinstance(error, PcError):
        return pc_problem(error)
    if isinstance(error, MemoryError):
        return problem_document(507, "not enough memory for this job")
    logger.error("a job failed", exc_info=error)
    return problem_document(500, "the job failed for a reason of the service's own")


# ---- the process -----------------------------------------------------------------------------


def _listen(lines: IO[str], wake: threading.Event, stop: threading.Event) -> None:
    """Follow the service's commands; leave at once when it is gone."""
    for line in lines:
        if line.strip() == "stop":
            stop.set()
        wake.set()
    os._exit(3)


def serve_jobs(settings: ServiceSettings, kinds: list[str], lines: IO[str], say: IO[str]) -> None:
    """Claim and run jobs until told to stop."""
    shelf = Shelf(settings.service_dir)
    jobs = JobStore(shelf.jobs_file, settings.max_attempts)
    wake, stop = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(lines, wake, stop), daemon=True).start()
    lease = f"{os.getpid()}-{uuid.uuid4().hex}"
    say.write(f"lease {lease}\n")
    for kind in kinds:
        if kind in PRELOADED:
            importlib.import_module(KINDS[kind])  # while nobody waits
    while not stop.is_set():
        wake.clear()
        job = insist(lambda: jobs.claim(kinds, lease), stop)
        if job is None:
            wake.wait(_LOOK_SECONDS)
            continue
        run_job(Work(job=job, jobs=jobs, shelf=shelf, settings=settings, stop=stop))
        say.write(f"over {job.id}\n")
    jobs.close()


def main() -> None:
    """Run as a child of the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when its workers stop
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message
    logging.basicConfig(level=logging.WARNING, format="worker %(process)d: %(message)s")
    start = json.loads(sys.stdin.readline())
    settings, kinds = ServiceSettings.from_plain(start["settings"]), list(start["kinds"])
    if "portfolio" in kinds:  # strangers' files: what grows without end ends this process, not the machine
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = settings.intake_bytes if hard < 0 else min(settings.intake_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    serve_jobs(settings, kinds, sys.stdin, say)


if __name__ == "__main__":
    main()
