"""The three cascade addresses: the users' own examples, files, limits, seeds."""

from __future__ import annotations

import io
import shlex

import httpx
import polars as pl
import pytest

from pc_pipeline.loans.payment_status import FALLBACK_MATRIX
from pc_pipeline.schemas.states import PAYMENT_STATUSES
from pc_pipeline_tests.service.harness import Served, borrower_csv, generate, sequences, upload

# as users have them, with another host
GENERATE_EXAMPLE = """curl -X POST http://localhost:8000/api/fintech/generate-payment-sequences \
  -H "Content-Type: application/json" \
  -d '{
    "portfolio_id": "SYNTH_20260202_163045_a1b2",
    "num_months": 24,
    "use_lstm": true
  }'"""
PROBABILITIES_EXAMPLE = "curl http://localhost:8000/api/fintech/cascade-probabilities/30_days"
COLUMNS = [
    "loan_id",
    "borrower_id",
    "month",
    "payment_status",
    "payment_amount",
    "principal_remaining",
    "days_past_due",
    "payment_date",
]


def curl(command: str, url: str) -> httpx.Response:
    """Run a curl command line of the simple sort."""
    words = iter(shlex.split(command.replace("http://localhost:8000", url))[1:])
    method, headers, body, address = "GET", {}, None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(":")
            headers[name] = value.strip()
        elif word == "-d":
            body = next(words)
        else:
            address = word
    return httpx.request(method, address, headers=headers, content=body, timeout=60.0)


def test_users_examples_run_with_another_host(served: Served) -> None:
    answer = curl(GENERATE_EXAMPLE, served.url)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    expected = {
        "portfolio_id": "SYNTH_20260202_163045_a1b2",
        "sequences_generated": 10000,
        "total_records": 240000,
        "months_per_sequence": 24,
        "download_url": "/api/fintech/download/SYNTH_20260202_163045_a1b2/payment_sequences.csv",
    }
    assert {name: made[name] for name in expected} == expected
    assert made["cascade_model"] == "fallback matrix"  # nothing is trained here, and the answer says so
    assert made["note"]
    frame = pl.read_csv(io.BytesIO(served.client.get(made["download_url"]).content), try_parse_dates=True)
    assert frame.columns == COLUMNS
    assert frame.height == 240000
    assert set(frame["payment_status"]) <= set(PAYMENT_STATUSES)

    known = served.client.get("/api/portfolios/SYNTH_20260202_163045_a1b2").json()
    assert (known["source"], known["borrowers"]) == ("generated", 10000)
    assert len(served.client.get(known["quarantine_url"]).text.splitlines()) == 1  # a heading, no row

    row = curl(PROBABILITIES_EXAMPLE, served.url).json()
    assert row["current_status"] == "30_days"
    assert row["transitions"] == {
        "on_time": 0.35,
        "grace_period": 0.10,
        "30_days": 0.15,
        "60_days": 0.38,
        "paid_off": 0.01,
        "prepaid": 0.01,
    }


@pytest.mark.parametrize("status", PAYMENT_STATUSES)
def test_every_status_has_its_row(served: Served, status: str) -> None:
    row = served.client.get(f"/api/fintech/cascade-probabilities/{status}").json()["transitions"]
    assert row == FALLBACK_MATRIX[status]
    assert sum(row.values()) == pytest.approx(1.0)


def test_same_seed_same_file_and_pieces_do_not_show(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(served.client, "seeds", borrower_csv(700)).raise_for_status()
    files = []
    for piece in (10_000, 64):
        monkeypatch.setattr("pc_pipeline.service.task_sequences.PIECE_BORROWERS", piece)
        assert generate(served.client, "seeds", seed=5, num_months=6).status_code == 200
        files.append(sequences(served.client, "seeds"))
    assert files[0] == files[1]
    assert generate(served.client, "seeds", seed=6, num_months=6).status_code == 200
    assert sequences(served.client, "seeds") != files[0]


def test_parquet_twin_ranges_and_start(served: Served) -> None:
    upload(served.client, "twin", borrower_csv(50)).raise_for_status()
    made = generate(served.client, "twin", parquet=True, start_date="2025-01-31", num_months=3)
    assert made.status_code == 200
    whole = sequences(served.client, "twin")
    address = "/api/fintech/download/twin/payment_sequences"
    twin = pl.read_parquet(io.BytesIO(served.client.get(f"{address}.parquet").content))
    assert twin.equals(pl.read_csv(io.BytesIO(whole), schema=twin.schema))
    assert [str(day) for day in twin["payment_date"][:3]] == ["2025-01-31", "2025-02-28", "2025-03-31"]
    part = served.client.get(f"{address}.csv", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    late = served.client.get(f"{address}.csv", headers={"Range": f"bytes={len(whole)}-"})
    assert (late.status_code, late.headers["content-type"]) == (416, "application/problem+json")
    assert late.headers["content-range"] == f"bytes */{len(whole)}"
    for odd in (
        "bytes=5-1",
        "lines=1-2",
        "bytes=",
        "bytes=" + ",".join(f"{i}-{i}" for i in range(0, 4000, 2)),
    ):
        assert served.client.get(f"{address}.csv", headers={"Range": odd}).content == whole
    assert int(served.client.head(f"{address}.csv").headers["content-length"]) == len(whole)


def test_no_cell_begins_as_a_formula(served: Served) -> None:
    ids = ["-1+2", "+CMD", "=1", "@x", "plain"]
    text = "loan_id,credit_score,principal\n" + "\n".join(f"{name},700,1000" for name in ids)
    answer = upload(served.client, "cells", text.encode()).json()
    assert answer["borrowers"] + answer["rows_quarantined"] == len(ids)
    assert generate(served.client, "cells").status_code == 200
    refused = served.client.get(answer["quarantine_url"]).text
    for line in [*sequences(served.client, "cells").decode().splitlines(), *refused.splitlines()]:
        assert all(cell[:1] not in "=+-@" for cell in line.split(",")[:2] if cell), line


def test_limits_are_said(served: Served) -> None:
    upload(served.client, "limits", borrower_csv(10)).raise_for_status()
    for body, status in [
        ({"num_months": 361}, 422),
        ({"num_months": 0}, 422),
        ({"num_months": 10**30}, 422),
        ({"num_months": "24"}, 422),
        ({"num_months": True}, 422),
        ({"num_months": 1.5}, 422),
        ({"use_lstm": "yes"}, 422),
        ({"use_lstm": None}, 422),
        ({"seed": -1}, 422),
        ({"seed": 2**64}, 422),
        ({"start_date": "yesterday"}, 422),
        ({"start_date": "0001-01-01"}, 422),
        ({"unknown": 1}, 422),
        ({"portfolio_id": "nobody"}, 404),
        ({"portfolio_id": "../etc"}, 422),
        ({"portfolio_id": "ünï"}, 422),
        ({"portfolio_id": "limits\n"}, 422),
        ({"portfolio_id": "x" * 10_000}, 422),
    ]:
        answer = generate(served.client, **({"portfolio_id": "limits"} | body))  # type: ignore[arg-type]
        assert answer.status_code == status, (body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"]


def test_download_before_there_is_one(served: Served) -> None:
    upload(served.client, "early", borrower_csv(10)).raise_for_status()
    address = "/api/fintech/download/early/payment_sequences.csv"
    assert served.client.get(address).status_code == 404
    served.runner.hold.set()
    try:
        asked = served.client.post(
            "/api/fintech/generate-payment-sequences",
            json={"portfolio_id": "early"},
            headers={"Prefer": "respond-async"},
        )
        assert asked.status_code == 202
        assert asked.json()["status"] == "queued"
        waiting = served.client.get(address)
        assert waiting.status_code == 409
        assert waiting.json()["status_url"] == asked.headers["location"]
    finally:
        served.runner.hold.clear()
    assert generate(served.client, "early").status_code == 200
    assert served.client.get(address).status_code == 200
