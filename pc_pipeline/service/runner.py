"""The worker processes: started, told when there is work, restarted when they die, stopped with the service.

Here: `ProcessRunner`. Not here: what a worker does (`worker`). Each lane is one process: one lane takes
uploads, so that a long simulation never delays them; the others take generation and simulation.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from pc_pipeline.service.jobs import JobStore
from pc_pipeline.service.settings import ServiceSettings

INTAKE_KINDS: Final = ("portfolio",)
WORK_KINDS: Final = ("sequences", "simulation")
_LONGEST_PAUSE: Final = 30.0
logger = logging.getLogger("pc_pipeline.service")
OnOver = Callable[[str], None]


class Runner(Protocol):
    """Whatever runs queued jobs."""

    def start(self, jobs: JobStore, settings: ServiceSettings, on_over: OnOver) -> None:
        """Begin; `on_over(job id)` is called from another thread when a job is over."""

    def wake(self) -> None:
        """There may be work."""

    def stop(self, seconds: float) -> None:
        """End within about so many seconds; a job in hand returns to the queue."""

    def alive(self) -> bool:
        """Whether jobs are being taken."""


class _Lane:
    """One worker process and the thread that watches it."""

    def __init__(
        self, kinds: tuple[str, ...], jobs: JobStore, settings: ServiceSettings, on_over: OnOver
    ) -> None:
        self._kinds, self._jobs, self._settings, self._on_over = kinds, jobs, settings, on_over
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=f"lane-{kinds[0]}")
        self._thread.start()

    def _watch(self) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._live_once()
            if self._stopping.is_set():
                return
            pause = 0.5 if time.monotonic() - begun > 60 else min(2 * pause, _LONGEST_PAUSE)
            logger.warning("a worker died; another starts in %.1f s", pause)
            self._stopping.wait(pause)

    def _live_once(self) -> None:
        """Start the process and follow what it says until it ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pc_pipeline.service.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C is the service's to handle
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        with self._lock:
            self._process = process
        lease = None
        self._tell(json.dumps({"settings": self._settings.for_worker(), "kinds": self._kinds}))
        if process.stdout is not None:
            for line in process.stdout:
                word, _, rest = line.strip().partition(" ")
                if word == "lease":
                    lease = rest
                elif word == "over":
                    self._on_over(rest)
            process.stdout.close()
        process.wait()
        if lease is not None:
            self._abandon(lease)

    def _abandon(self, lease: str) -> None:
        """Queue the dead worker's job again; on a full disk, as soon as there is room."""
        while True:
            try:
                over = self._jobs.abandon(lease)
                break
            except sqlite3.Error as error:
                logger.warning("the state of a job cannot be written: %s", error)
                if self._stopping.wait(2.0):
                    return  # the next service queues it
        for job_id in over:
            self._on_over(job_id)

    def _tell(self, line: str) -> None:
        with self._lock:
            process = self._process
            if process is None or process.stdin is None or process.poll() is not None:
                return
            try:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            except (BrokenPipeError, ValueError):
                return  # it has just died; the watcher starts another, which looks by itself

    def wake(self) -> None:
        self._tell("wake")

    def alive(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._tell("stop")

    def join(self, until: float) -> None:
        """Wait for the end until a time (monotonic seconds), then kill."""
        with self._lock:
            process = self._process
        if process is not None:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._thread.join(5.0)


class ProcessRunner:
    """One worker process for uploads, `settings.workers` for the rest."""

    def __init__(self) -> None:
        self._lanes: list[_Lane] = []

    def start(self, jobs: JobStore, settings: ServiceSettings, on_over: OnOver) -> None:
        """Start the processes."""
        kinds = [INTAKE_KINDS, *[WORK_KINDS] * settings.workers]
        self._lanes = [_Lane(lane, jobs, settings, on_over) for lane in kinds]

    def wake(self) -> None:
        """Tell every process to look."""
        for lane in self._lanes:
            lane.wake()

    def alive(self) -> bool:
        """Whether every process lives."""
        return bool(self._lanes) and all(lane.alive() for lane in self._lanes)

    def stop(self, seconds: float) -> None:
        """Ask all to stop, then kill those that have not."""
        for lane in self._lanes:
            lane.ask_to_stop()
        until = time.monotonic() + seconds
        for lane in self._lanes:
            lane.join(until)
        self._lanes = []
