"""Real processes, really killed: no job is lost, no half-written file is read, a stop is graceful."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from pc_pipeline_tests.service.harness import (
    Process,
    borrower_csv,
    generate,
    is_alive,
    sequences,
    upload,
    wait_for,
)

BORROWERS, MONTHS = 60_000, 24  # six pieces
ASYNC = {"Prefer": "respond-async"}
DOWNLOAD = "/api/fintech/download/book/payment_sequences.csv"


def _ask(client: httpx.Client, seed: int, portfolio_id: str = "book") -> str:
    body = {"portfolio_id": portfolio_id, "num_months": MONTHS, "seed": seed}
    answer = client.post("/api/fintech/generate-payment-sequences", json=body, headers=ASYNC)
    assert answer.status_code == 202
    return str(answer.json()["status_url"])


def _state(client: httpx.Client, place: str) -> dict[str, object]:
    return dict(client.get(place).json())


@pytest.mark.slow
def test_kill_9_during_a_job_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = Process(folder)
    upload(service.client, "book", borrower_csv(BORROWERS)).raise_for_status()
    generate(service.client, "book", num_months=MONTHS, seed=1).raise_for_status()
    expected = sequences(service.client, "book")
    generate(service.client, "book", num_months=MONTHS, seed=2).raise_for_status()
    before = sequences(service.client, "book")

    upload(service.client, "other", borrower_csv(10)).raise_for_status()
    running, queued = _ask(service.client, 1), _ask(service.client, 3, "other")
    wait_for(lambda: 0.1 < float(str(_state(service.client, running)["progress"])) < 0.9, 60.0)
    workers = service.workers()
    service.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in workers))  # workers do not outlive the service

    again = Process(folder, service.port)
    try:
        found = again.client.get(DOWNLOAD)
        assert found.content in (before, expected)  # whole, never half
        wait_for(lambda: _state(again.client, running)["status"] == "done", 60.0)
        assert _state(again.client, running)["attempts"] == 2
        assert sequences(again.client, "book") == expected
        wait_for(lambda: _state(again.client, queued)["status"] == "done", 60.0)
        assert sorted(path.suffix for path in (folder / "service" / "partial").iterdir()) == []
    finally:
        again.stop()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_stop_returns_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = Process(folder)
    upload(service.client, "book", borrower_csv(BORROWERS)).raise_for_status()
    place = _ask(service.client, 1)
    wait_for(lambda: float(str(_state(service.client, place)["progress"])) > 0.1, 60.0)
    for pid in service.workers():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _state(service.client, place)["status"] == "done", 90.0)
    assert _state(service.client, place)["attempts"] == 2
    first = sequences(service.client, "book")

    place = _ask(service.client, 1)
    wait_for(lambda: 0.1 < float(str(_state(service.client, place)["progress"])) < 0.9, 60.0)
    service.stop()
    assert "Traceback" not in service.log.read_text()
    again = Process(folder, service.port)
    try:
        wait_for(lambda: _state(again.client, place)["status"] == "done", 60.0)
        assert _state(again.client, place)["attempts"] == 1  # a stop is no failure
        assert sequences(again.client, "book") == first
    finally:
        again.stop()
