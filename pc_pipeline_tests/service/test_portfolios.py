"""Uploads: what is accepted, refused, kept, replaced and erased."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline_tests.service.harness import Served, borrower_csv, generate, sequences, upload


def test_good_rows_are_kept_and_bad_rows_say_why(served: Served) -> None:
    lines = borrower_csv(6).decode().splitlines()
    lines[2] = lines[2].replace("601", "9000")  # score out of range
    lines[3] = lines[3].replace(",C,", ",Z,")  # no such grade
    lines.append(lines[1])  # the same loan again
    answer = upload(served.client, "mixed", "\n".join(lines).encode())
    assert answer.status_code == 201
    said = answer.json()
    assert (said["rows_in"], said["borrowers"], said["rows_quarantined"]) == (7, 4, 3)
    reasons = {(entry["column"], entry["reason"]) for entry in said["quarantine"]}
    assert reasons == {
        ("credit_score", "expected at most 850"),
        ("risk_grade", "expected one of A, B, C, D, E"),
        ("loan_id", "duplicate loan"),
    }
    refused = pl.read_csv(io.BytesIO(served.client.get(said["quarantine_url"]).content))
    assert sorted(refused["row_number"]) == [2, 3, 7]
    assert served.client.get("/api/portfolios/mixed").json() == said


@pytest.mark.parametrize("suffix", ["csv", "parquet", "xlsx"])
def test_a_loan_tape_is_read_like_any_other(served: Served, tmp_path: Path, suffix: str) -> None:
    tape = LoanTapeGenerator(n_loans=40, random_seed=3).generate_static_features()
    file = tmp_path / f"tape.{suffix}"
    if suffix == "xlsx":
        tape.to_pandas().to_excel(file, index=False)
    else:
        getattr(tape, f"write_{suffix}")(file)
    said = upload(served.client, f"tape_{suffix}", file.read_bytes(), file.name).json()
    assert (said["kind"], said["adapter"], said["borrowers"]) == ("loans", "canonical", 40)
    assert generate(served.client, f"tape_{suffix}", num_months=4).json()["total_records"] == 160
    rows = pl.read_csv(io.BytesIO(sequences(served.client, f"tape_{suffix}")), try_parse_dates=True)
    assert set(rows["loan_id"]) == set(tape["loan_id"])
    assert str(rows["payment_date"].min())[:7] > said["as_of"][:7]  # begins after what the tape knows


def test_borrowers_without_a_loan_id_and_ids_of_any_alphabet(served: Served) -> None:
    text = "borrower_id,credit_score,income\nÅsa,700,\n李雷,640,52000\n🏦,580,1e6\n"
    said = upload(served.client, "names", text.encode()).json()
    assert said["borrowers"] == 3
    assert generate(served.client, "names", num_months=2).status_code == 200
    frame = pl.read_csv(io.BytesIO(sequences(served.client, "names")))
    assert frame["loan_id"].unique(maintain_order=True).to_list() == ["Åsa", "李雷", "🏦"]


def test_an_id_is_taken_once_unless_replaced(served: Served) -> None:
    assert upload(served.client, "once", borrower_csv(3)).status_code == 201
    assert upload(served.client, "once", borrower_csv(5)).status_code == 409
    generate(served.client, "once").raise_for_status()
    again = served.client.post(
        "/api/portfolios",
        files={"files": ("b.csv", borrower_csv(5))},
        data={"portfolio_id": "once", "replace": "true"},
    )
    assert again.json()["borrowers"] == 5
    gone = served.client.get("/api/fintech/download/once/payment_sequences.csv")
    assert gone.status_code == 404  # sequences of the borrowers before are not these ones'


def test_erased_means_gone(served: Served) -> None:
    upload(served.client, "erase", borrower_csv(3)).raise_for_status()
    made = generate(served.client, "erase").json()
    folder = served.desk.shelf.portfolio_folder("erase")
    assert folder.is_dir()
    assert served.client.delete("/api/portfolios/erase").status_code == 204
    assert not folder.exists()
    assert served.client.delete("/api/portfolios/erase").status_code == 404
    assert served.client.get("/api/fintech/download/erase/payment_sequences.csv").status_code == 404
    assert served.client.get(made["status_url"]).json()["subject"] == ""
    assert generate(served.client, "erase").status_code == 404


BAD_FILES = {
    "empty.csv": b"",
    "header.csv": b"loan_id,credit_score\n",
    "other.csv": b"a,b\n1,2\n",
    "binary.csv": b"\x00\x01\x02" * 100,
    "latin.csv": "loan_id,credit_score\ngr\xfc\xdfe,700\n".encode("latin-1"),
    "torn.parquet": b"PAR1" + b"\x00" * 40,
    "torn.xlsx": b"PK\x03\x04" + b"\x00" * 40,
    "nan.csv": b"loan_id,credit_score\nL1,NaN\nL2,inf\n",
    "words.csv": b"loan_id,credit_score\nL1,high\nL2,low\n",
    "returns.csv": b"loan_id\rcredit_score\r1\r2",
    "long_name.csv": b"loan_id,credit_score," + b"x" * 200_000 + b"\n1,700,1\n",
    "floats.csv": b"loan_id,credit_score\n1.00007E+11,700\n1.00008E+11,710\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(served: Served, name: str) -> None:
    answer = upload(served.client, "bad", BAD_FILES[name], name)
    assert answer.status_code == 422, answer.text
    assert "Traceback" not in answer.text
    assert str(served.desk.shelf.root) not in answer.text  # no path of the server
    assert served.client.get("/api/portfolios/bad").status_code == 404
    uploads = served.desk.shelf.root / "uploads"
    assert not list(uploads.iterdir())


def test_a_parquet_that_claims_billions_of_rows_is_not_read(served: Served) -> None:
    bomb = io.BytesIO()
    rows = 3_000_000
    pl.DataFrame({"loan_id": pl.repeat("L", rows, eager=True)}).with_columns(
        credit_score=pl.lit(700.0)
    ).write_parquet(bomb, compression="zstd")
    assert len(bomb.getvalue()) < 100_000
    answer = upload(served.client, "bomb", bomb.getvalue(), "bomb.parquet")
    assert answer.status_code == 422
    assert answer.json()["title"] == "too many rows"


@pytest.mark.parametrize(
    "name", ["../../evil.csv", "..\\evil.csv", "/etc/evil.csv", "a\u0000b.csv", "=evil().csv"]
)
def test_file_names_lead_nowhere(served: Served, name: str) -> None:
    before = sorted(served.desk.shelf.root.parent.parent.iterdir())
    answer = upload(served.client, "names_of_files", borrower_csv(2), name)
    assert answer.status_code in (201, 409, 415, 422), answer.text
    assert sorted(served.desk.shelf.root.parent.parent.iterdir()) == before


def test_kinds_and_numbers_of_files(served: Served) -> None:
    assert upload(served.client, "kind", b"x", "book.exe").status_code == 415
    many = [("files", (f"{i}.csv", borrower_csv(1))) for i in range(9)]
    assert served.client.post("/api/portfolios", files=many).status_code == 422
    assert served.client.post("/api/portfolios", data={"portfolio_id": "x"}).status_code == 422
    assert served.client.post("/api/portfolios", content=b"not multipart").status_code == 422


def test_one_long_text_a_million_times_is_not_unfolded(served: Served) -> None:
    rows = 900_000
    names = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 200_000]))
    file = io.BytesIO()
    pq.write_table(pa.table({"loan_id": names, "credit_score": pa.array([700.0] * rows)}), file)
    assert len(file.getvalue()) < 100_000  # 180 GB unfolded
    answer = upload(served.client, "long", file.getvalue(), "long.parquet")
    assert (answer.status_code, answer.json()["title"]) == (422, "a cell is too long")
