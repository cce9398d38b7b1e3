"""A service under test: real uvicorn on a free port, jobs in a thread of this process or in worker processes.

Not a test.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from pc_pipeline.service.jobs import JobStore
from pc_pipeline.service.runner import Runner
from pc_pipeline.service.server import make_server
from pc_pipeline.service.settings import ServiceSettings
from pc_pipeline.service.shelf import Shelf
from pc_pipeline.service.worker import KINDS, Work, run_job

ROOT = Path(__file__).resolve().parents[2]
DEALS = ROOT / "data" / "deals"


class ThreadRunner:
    """Runs jobs in one thread of this process: what worker processes do, without their start."""

    def __init__(self) -> None:
        self._wake, self._stop = threading.Event(), threading.Event()
        self.hold = threading.Event()  # set: take no job
        self._thread: threading.Thread | None = None

    def start(self, jobs: JobStore, settings: ServiceSettings, on_over: Callable[[str], None]) -> None:
        self._wake, self._stop = threading.Event(), threading.Event()
        shelf = Shelf(settings.service_dir)

        def loop() -> None:
            while not self._stop.is_set():
                self._wake.clear()
                job = None if self.hold.is_set() else jobs.claim(tuple(KINDS), "thread")
                if job is None:
                    self._wake.wait(0.05)
                    continue
                run_job(Work(job=job, jobs=jobs, shelf=shelf, settings=settings, stop=self._stop))
                on_over(job.id)

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self, seconds: float) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)


class Served:
    """A running service: its address, a client, its parts."""

    def __init__(self, server: uvicorn.Server, port: int, runner: Any) -> None:
        self.server, self.port, self.runner = server, port, runner
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30.0)

    @property
    def desk(self) -> Any:
        return self.server.app.state.desk  # type: ignore[attr-defined]

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10.0)


def quick_settings(folder: Path, **changes: Any) -> ServiceSettings:
    """Settings for tests: nothing waits long."""
    plain: dict[str, Any] = {
        "data_dir": folder,
        "deals_dir": DEALS,
        "port": 0,
        "min_free_bytes": 0,
        "wait_seconds": 20.0,
        "stop_seconds": 3.0,
    }
    return ServiceSettings(**(plain | changes))


@contextlib.contextmanager
def serving(settings: ServiceSettings, runner: Runner | None = None) -> Iterator[Served]:
    """A service on a real socket in a thread of this process."""
    runner = runner or ThreadRunner()
    server = make_server(settings, runner)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    served = Served(server, listener.getsockname()[1], runner)
    try:
        yield served
    finally:
        served.client.close()
        server.should_exit = True
        thread.join(15.0)
        listener.close()


class Process:
    """A service in a process of its own, with worker processes; may be killed."""

    def __init__(self, folder: Path, port: int = 0, *options: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        code = (
            "import sys; from pathlib import Path; from pc_pipeline.service.server import serve;"
            "from pc_pipeline.service.settings import ServiceSettings as S;"
            "serve(S(data_dir=Path(sys.argv[1]), port=int(sys.argv[2]), min_free_bytes=0, stop_seconds=5.0))"
        )
        self.log = folder.parent / f"log-{self.port}-{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(folder), str(self.port)], stdout=log, stderr=log
            )
        self.client = httpx.Client(base_url=self.url, timeout=60.0)
        wait_for(self._answers, 40.0)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health").status_code == 200
        return False

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        children = Path(f"/proc/{self._process.pid}/task")
        found = [pid for task in children.iterdir() for pid in (task / "children").read_text().split()]
        return [int(pid) for pid in found]

    def kill(self) -> None:
        """kill -9, of the service alone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.client.close()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self._process.terminate()
        status = self._process.wait(30.0)
        self.client.close()
        return status


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `condition`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def borrower_csv(n: int, first: int = 0) -> bytes:
    """A borrower file of n rows."""
    rows = [
        f"L{i:06d},B{i:06d},{600 + i % 200},0.{10 + i % 40},{40000 + i % 50000},{5000 + i % 20000},36,0.12,"
        f"{'ABCDE'[i % 5]},{i % 120},{i % 3},0"
        for i in range(first, first + n)
    ]
    head = (
        "loan_id,borrower_id,credit_score,dti,income,principal,term_months,interest_rate,risk_grade,"
        "employment_months,delinquencies_2y,bankruptcies"
    )
    return "\n".join([head, *rows, ""]).encode()


def upload(client: httpx.Client, portfolio_id: str, content: bytes, name: str = "book.csv") -> httpx.Response:
    """POST one file as a portfolio."""
    return client.post(
        "/api/portfolios", files={"files": (name, content)}, data={"portfolio_id": portfolio_id}
    )


def generate(client: httpx.Client, portfolio_id: str, **more: Any) -> httpx.Response:
    """POST a generation."""
    return client.post(
        "/api/fintech/generate-payment-sequences",
        json={"portfolio_id": portfolio_id, "num_months": 12} | more,
    )


def sequences(client: httpx.Client, portfolio_id: str) -> bytes:
    """The generated CSV."""
    answer = client.get(f"/api/fintech/download/{portfolio_id}/payment_sequences.csv")
    assert answer.status_code == 200, answer.text
    return answer.content
