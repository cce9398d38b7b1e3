"""State of jobs: moves, leases, restarts, the bounded queue, a full disk."""

from __future__ import annotations

import errno
import sqlite3
import threading
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, StoreError
from pc_pipeline.service import worker
from pc_pipeline.service.jobs import Job, JobStore, QueueFull
from pc_pipeline.service.runner import ProcessRunner
from pc_pipeline.service.server import make_server
from pc_pipeline_tests.service.harness import (
    Served,
    borrower_csv,
    generate,
    quick_settings,
    sequences,
    serving,
    upload,
    wait_for,
)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite", max_attempts=3)


def submit(store: JobStore, kind: str = "sequences") -> Job:
    return store.submit(kind, "book", {"seed": 1}, max_queued=100)


def test_oldest_first_and_each_once(store: JobStore) -> None:
    jobs = [submit(store) for _ in range(20)]
    taken: list[str] = []

    def take(lease: str) -> None:
        while (job := store.claim(["sequences"], lease)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=take, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(job.id for job in jobs)
    assert store.claim(["sequences"], "w") is None
    assert store.counts()["running"] == 20


def test_a_lost_lease_changes_nothing(store: JobStore) -> None:
    submit(store)
    first = store.claim(["sequences"], "first")
    assert first is not None
    assert store.advance(first, 0.5, "half", {"borrowers": 10})
    assert store.abandon("first") == []
    second = store.claim(["sequences"], "second")
    assert second is not None
    assert second.checkpoint == {"borrowers": 10}  # it goes on where the first was
    assert not store.advance(first, 0.9, "late")
    assert not store.finish(first, {"wrong": True})
    assert store.finish(second, {"right": True})
    found = store.get(second.id)
    assert found is not None
    assert (found.state, found.result) == ("done", {"right": True})


def test_a_job_that_kills_its_workers_fails_and_can_be_resumed(store: JobStore) -> None:
    job = submit(store)
    for attempt in range(3):
        assert store.claim(["sequences"], f"w{attempt}") is not None
        assert store.abandon(f"w{attempt}") == ([job.id] if attempt == 2 else [])
    failed = store.get(job.id)
    assert failed is not None
    assert (failed.state, failed.attempts) == ("failed", 3)
    resumed = store.resume(job.id)
    assert resumed is not None
    assert (resumed.state, resumed.attempts) == ("queued", 0)


def test_a_worker_that_stops_does_not_use_up_an_attempt(store: JobStore) -> None:
    submit(store)
    for lease in ("a", "b", "c", "d"):
        job = store.claim(["sequences"], lease)
        assert job is not None
        assert job.attempts == 1
        assert store.give_back(job)


def test_state_outlives_the_connection(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    job = submit(first)
    assert first.claim(["sequences"], "w") is not None
    first.close()  # as after a kill: the row still says running
    second = JobStore(tmp_path / "jobs.sqlite")
    second.abandon()
    found = second.get(job.id)
    assert found is not None
    assert (found.state, found.request) == ("queued", {"seed": 1})


def test_the_queue_is_bounded(store: JobStore) -> None:
    for _ in range(3):
        store.submit("sequences", "book", {}, max_queued=3)
    with pytest.raises(QueueFull):
        store.submit("sequences", "book", {}, max_queued=3)
    assert store.counts()["queued"] == 3


def test_a_full_queue_is_429_and_queued_jobs_are_all_done(tmp_path: Path) -> None:
    with serving(quick_settings(tmp_path / "data", max_queued=5)) as served:
        upload(served.client, "book", borrower_csv(20)).raise_for_status()
        served.runner.hold.set()
        headers = {"Prefer": "respond-async"}
        address = "/api/fintech/generate-payment-sequences"
        asked = [
            served.client.post(address, json={"portfolio_id": "book", "seed": seed}, headers=headers)
            for seed in range(8)
        ]
        assert [answer.status_code for answer in asked] == [202] * 5 + [429] * 3
        assert asked[-1].headers["retry-after"]
        assert asked[4].json()["status"] == "queued"
        assert served.client.get(asked[4].json()["status_url"]).json()["jobs_ahead"] == 4
        served.runner.hold.clear()
        for answer in asked[:5]:
            place = answer.json()["status_url"]
            wait_for(lambda place=place: served.client.get(place).json()["status"] == "done")


def test_cancel_while_queued_and_when_over(served: Served) -> None:
    upload(served.client, "cancel", borrower_csv(5)).raise_for_status()
    served.runner.hold.set()
    asked = served.client.post(
        "/api/fintech/generate-payment-sequences",
        json={"portfolio_id": "cancel"},
        headers={"Prefer": "respond-async"},
    ).json()
    assert served.client.delete("/api/portfolios/cancel").status_code == 409  # a job works on it
    gone = served.client.delete(f"/api/jobs/{asked['job_id']}")
    served.runner.hold.clear()
    assert (gone.status_code, gone.json()["status"]) == (200, "cancelled")
    assert served.client.delete(f"/api/jobs/{asked['job_id']}").status_code == 409
    assert served.client.post(f"/api/jobs/{asked['job_id']}/resume").status_code == 409


def test_a_full_disk_fails_the_job_which_goes_on_when_there_is_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pc_pipeline.service import task_sequences

    upload(served.client, "disk", borrower_csv(300)).raise_for_status()
    generate(served.client, "disk", seed=9).raise_for_status()
    expected = sequences(served.client, "disk")

    monkeypatch.setattr(task_sequences, "PIECE_BORROWERS", 100)
    append, calls = task_sequences._append, []

    def full_at_the_second(path: Path, frame: object) -> None:
        calls.append(frame)
        if len(calls) == 2:
            append(path, frame.head(7))  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(task_sequences, "_append", full_at_the_second)
    answer = generate(served.client, "disk", seed=9)
    assert answer.status_code == 507
    assert answer.json()["can_resume"]
    job = served.client.get(f"/api/jobs/{answer.json()['job_id']}").json()
    assert (job["status"], job["problem"]["title"]) == ("failed", "the disk is full")
    resumed = served.client.post(f"/api/jobs/{job['job_id']}/resume")
    assert resumed.status_code == 202
    wait_for(lambda: served.client.get(job["status_url"]).json()["status"] == "done")
    assert len(calls) == 4  # pieces 1, 2 (torn), 2, 3: the first was not made again
    assert sequences(served.client, "disk") == expected


def test_too_little_room_is_507_before_anything_is_queued(tmp_path: Path) -> None:
    with serving(quick_settings(tmp_path / "data", min_free_bytes=1 << 60)) as served:
        assert upload(served.client, "book", borrower_csv(5)).status_code == 507
        assert generate(served.client, "SYNTH_x").status_code == 507
        assert sum(served.desk.jobs.counts().values()) == 0
        assert served.client.get("/health").json()["status"] == "degraded"


def test_a_defect_in_a_job_is_500_without_its_words(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from pc_pipeline.service import task_sequences

    def broken(path: Path, frame: object) -> None:
        raise ZeroDivisionError("secret of borrower 7")

    upload(served.client, "defect", borrower_csv(5)).raise_for_status()
    monkeypatch.setattr(task_sequences, "_append", broken)
    answer = generate(served.client, "defect")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["can_resume"]


def test_worker_processes_do_the_work(tmp_path: Path) -> None:
    with serving(quick_settings(tmp_path / "data"), ProcessRunner()) as served:
        assert upload(served.client, "book", borrower_csv(20)).status_code == 201
        assert served.client.get("/health").json()["workers"]
        lanes = [lane._process for lane in served.runner._lanes]
    assert all(process is not None and process.poll() == 0 for process in lanes)  # stopped, not killed


def test_state_that_cannot_be_written_is_written_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_ROOM_SECONDS", 0.01)
    tries: list[int] = []

    def move() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise sqlite3.OperationalError("database or disk is full")
        return "written"

    assert worker.insist(move, threading.Event()) == "written"
    stopped = threading.Event()
    stopped.set()
    tries.clear()
    with pytest.raises(sqlite3.OperationalError):
        worker.insist(move, stopped)


def test_a_damaged_job_file_is_said(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path / "data")
    settings.service_dir.mkdir(parents=True)
    (settings.service_dir / "jobs.sqlite").write_bytes(b"not sqlite" * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        make_server(settings)


def test_one_service_a_folder(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path / "data")
    with serving(settings), pytest.raises(ConfigError, match="another service"):
        make_server(settings)


def test_sequences_of_a_portfolio_replaced_meanwhile_are_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pc_pipeline.service import task_sequences

    append = task_sequences._append

    def replaced_while_writing(path: Path, frame: pl.DataFrame) -> None:
        append(path, frame)
        table = pl.read_parquet(served.desk.shelf.table_path("swap", "borrowers"))
        note = served.desk.shelf.portfolio("swap")
        served.desk.shelf.keep_portfolio("swap", "another", {"borrowers": table}, note)

    upload(served.client, "swap", borrower_csv(5)).raise_for_status()
    monkeypatch.setattr(task_sequences, "_append", replaced_while_writing)
    answer = generate(served.client, "swap")
    assert (answer.status_code, answer.json()["title"]) == (422, "the portfolio was replaced meanwhile")
    assert served.client.get("/api/fintech/download/swap/payment_sequences.csv").status_code == 404
