"""The service under load: many clients at the same time ask for probabilities while generations are queued.

    python benchmarks/service_load.py [--clients 200] [--seconds 60] [--jobs 60] [--loops 2]

Starts a service of its own in a temporary folder, with worker processes. Every client keeps one connection
and asks again as soon as it is answered. `--loops` client processes share the clients, so that one client
process is not what is measured. A failed request, or a job not done in the end, fails the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine_line, write_result

LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")
STATUSES = ("on_time", "grace_period", "30_days", "60_days", "90_days")
SERVE = (
    "import sys; from pathlib import Path; from pc_pipeline.service.server import serve;"
    "from pc_pipeline.service.settings import ServiceSettings as S;"
    "serve(S(data_dir=Path(sys.argv[1]), port=int(sys.argv[2])), Path(sys.argv[1]) / 'log')"
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str) -> None:
    """Return when the service answers."""
    for _ in range(300):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the service did not start")


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered.

    Bare: a full HTTP client costs ten times what the service spends on a request, and would be measured.
    """

    def __init__(self, number: int, until: float) -> None:
        self.turn, self.until = number, until
        self.spent: list[float] = []
        self.wrong: list[str] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = b""

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if time.monotonic() >= self.until:
            self._transport.close()
            return
        status = STATUSES[self.turn % len(STATUSES)]
        self.turn += 1
        self._answer, self._begun = b"", time.perf_counter()
        self._transport.write(
            f"GET /api/fintech/cascade-probabilities/{status} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of it."""
        self._answer += data
        head, gap, body = self._answer.partition(b"\r\n\r\n")
        if not gap or len(body) < int(LENGTH.findall(head)[0]):
            return
        self.spent.append(1e3 * (time.perf_counter() - self._begun))
        if not head.startswith(b"HTTP/1.1 200") or b"transitions" not in body:
            self.wrong.append(head.partition(b"\r\n")[0].decode())
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        """The end; early, if the service closed it."""
        if time.monotonic() < self.until:
            self.wrong.append(f"closed early: {error}")
        self.over.set_result(None)


async def ask_for(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of every answer, and what went wrong, of `clients` clients for `seconds`."""
    until, loop = time.monotonic() + seconds, asyncio.get_running_loop()
    host, _, port = url.removeprefix("http://").partition(":")
    made = [
        await loop.create_connection(lambda number=number: Client(number, until), host, int(port))
        for number in range(clients)
    ]
    await asyncio.gather(*(client.over for _, client in made))
    return {
        "ms": [ms for _, client in made for ms in client.spent],
        "wrong": [text for _, client in made for text in client.wrong],
    }


def ask_in_process(url: str, clients: int, seconds: float, answers: Any) -> None:
    """`ask_for` in a process of its own."""
    answers.put(asyncio.run(ask_for(url, clients, seconds)))


def queue_jobs(url: str, jobs: int, seconds: float) -> list[str]:
    """Queue generations evenly over the time; returns where they are."""
    places = []
    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        for number in range(jobs):
            answer = client.post(
                "/api/fintech/generate-payment-sequences",
                json={"portfolio_id": f"SYNTH_{number % 4}", "num_months": 24, "seed": number},
                headers={"Prefer": "respond-async"},
            )
            answer.raise_for_status()
            places.append(answer.json()["status_url"])
            time.sleep(seconds / jobs * 0.8)
    return places


def states_of(url: str, places: list[str]) -> list[str]:
    """State of each job."""
    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        return [str(client.get(place).json()["status"]) for place in places]


def measure(url: str, clients: int, seconds: float, jobs: int, loops: int) -> dict[str, Any]:
    """All clients and all jobs at the same time, then until the last job is over."""
    answers: Any = multiprocessing.Queue()
    shares = [clients // loops + (n < clients % loops) for n in range(loops)]
    processes = [
        multiprocessing.Process(target=ask_in_process, args=(url, share, seconds, answers))
        for share in shares
    ]
    for process in processes:
        process.start()
    places = queue_jobs(url, jobs, seconds) if jobs else []
    parts = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    under_load = states_of(url, places).count("done")
    until = time.monotonic() + 600
    while time.monotonic() < until and not set(states_of(url, places)) <= {"done", "failed", "cancelled"}:
        time.sleep(1.0)
    final = states_of(url, places)
    return {
        "ms": np.concatenate([part["ms"] for part in parts]),
        "wrong": [text for part in parts for text in part["wrong"]],
        "jobs": len(places),
        "done_under_load": under_load,
        "done": final.count("done"),
    }


def row(name: str, seconds: float, found: dict[str, Any]) -> str:
    """One line of the table."""
    ms = found["ms"]
    p50, p99, worst = np.percentile(ms, [50, 99, 100])
    return (
        f"| {name} | {len(ms):,} | {len(ms) / seconds:,.0f} | {p50:.1f} | {p99:.1f} | {worst:.0f} | "
        f"{len(found['wrong'])} | {found['jobs']} | {found['done_under_load']} | {found['done']} |"
    )


def main() -> None:
    """Measure and write the note."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--loops", type=int, default=2)
    asked = parser.parse_args()
    machine = machine_line()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with subprocess.Popen([sys.executable, "-c", SERVE, folder, str(port)]) as service:
            try:
                wait_until_up(url)
                alone = measure(url, 1, min(5.0, asked.seconds), 0, 1)
                quiet = measure(url, asked.clients, min(10.0, asked.seconds), 0, asked.loops)
                loaded = measure(url, asked.clients, asked.seconds, asked.jobs, asked.loops)
            finally:
                service.terminate()
                service.wait(30)
    text = "\n".join(
        [
            "# Service under load",
            "",
            machine,
            "",
            "`GET /api/fintech/cascade-probabilities/{status}` over HTTP, one connection per client, each "
            "asking again as soon as it is answered; clients, service and workers share the cores. "
            "Milliseconds as the client sees them.",
            "",
            "| clients | requests | per second | p50 ms | p99 ms | worst ms | errors | jobs queued | "
            "done meanwhile | done in the end |",
            "|---|---|---|---|---|---|---|---|---|---|",
            row("1, idle service", min(5.0, asked.seconds), alone),
            row(f"{asked.clients}, no jobs", min(10.0, asked.seconds), quiet),
            row(f"{asked.clients}, with jobs of 240,000 records", asked.seconds, loaded),
            "",
            f"`python benchmarks/service_load.py --clients {asked.clients} --seconds {asked.seconds:.0f} "
            f"--jobs {asked.jobs} --loops {asked.loops}`",
            "",
        ]
    )
    write_result(Path(__file__).parent / "results", "service-load", text)
    lost = loaded["jobs"] - loaded["done"]
    wrong = alone["wrong"] + quiet["wrong"] + loaded["wrong"]
    if wrong or lost:
        raise SystemExit(f"failed: {json.dumps({'errors': wrong[:5], 'jobs not done': lost})}")


if __name__ == "__main__":
    main()
