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


async def ask_for(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of every answer, and what went wrong, of `clients` clients for `seconds`."""
    spent: list[float] = []
    wrong: list[str] = []
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as session:
            turn = number
            while time.monotonic() < until:
                turn += 1
                begun = time.perf_counter()
                try:
                    answer = await session.get(
                        f"/api/fintech/cascade-probabilities/{STATUSES[turn % len(STATUSES)]}"
                    )
                    if answer.status_code != 200:
                        wrong.append(f"status {answer.status_code}")
                except httpx.HTTPError as error:
                    wrong.append(type(error).__name__)
                spent.append(1e3 * (time.perf_counter() - begun))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return {"ms": spent, "wrong": wrong}


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
        f"| {name} | {len(ms):,} | {len(ms) / seconds:,.0f} | {p50:.0f} | {p99:.0f} | {worst:.0f} | "
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
