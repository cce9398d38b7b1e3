"""Job 'sequences': a payment history for every borrower of a portfolio, written piece by piece.

Pieces of so many borrowers are generated, appended and noted one after the other, so that memory
does not grow with the portfolio and a resumed job goes on after its last whole piece. A history depends on
the seed and the borrower's place in the portfolio, not on its piece. Not here: how a history is generated
(`engines`), what its payments are (`loans.payment_records`).
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import add_months, parse_month
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator
from pc_pipeline.loans.borrower_features import borrowers_of_tape
from pc_pipeline.loans.ingest.result import QUARANTINE_SCHEMA
from pc_pipeline.loans.payment_records import RECORD_COLUMNS, csv_ready
from pc_pipeline.loans.payment_status import LSTM_ENGINE
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.schemas.tables import validate
from pc_pipeline.service.cascade import cascade_folder
from pc_pipeline.service.shelf import GENERATED_BORROWERS
from pc_pipeline.service.worker import Work

PIECE_BORROWERS: Final = 10_000  # at most; and
PIECE_RECORDS: Final = 500_000
_DEFAULT_START: Final = date(2024, 1, 1)
_HEADER: Final = (",".join(RECORD_COLUMNS) + "\n").encode()


def run(work: Work) -> dict[str, Any]:
    """Generate and keep; what is returned is the job's result.

    Raises:
        PcError: the portfolio is gone or was replaced, or its borrowers cannot be used.
    """
    asked, portfolio_id = work.job.request, work.job.subject
    work.advance(work.job.progress, "reading the portfolio")
    borrowers = _borrowers(work)
    version = _version(work)
    generator, note = _generator(work, bool(asked["use_lstm"]))
    start = date.fromisoformat(asked["start_date"]) if asked["start_date"] else _first_month(work)
    path, months = work.shelf.partial(work.job.id), int(asked["num_months"])
    engine = str(work.job.checkpoint.get("engine", generator.engine))
    done = _open_partial(path, work.job.checkpoint if engine == generator.engine else {})
    n = borrowers.height
    while done < n:
        piece = borrowers.slice(done, max(1, min(PIECE_BORROWERS, PIECE_RECORDS // months)))
        numbers = np.arange(done, done + piece.height)
        made = generator.generate_sequences(
            piece, months, seed=int(asked["seed"]), start_date=start, numbers=numbers
        )
        _append(path, generator.sequences_to_records(made, piece, start))
        done += piece.height
        mark = {"borrowers": done, "bytes": path.stat().st_size, "engine": generator.engine}
        work.advance(0.95 * done / n, "generating", mark)
    if asked["parquet"]:
        work.advance(0.95, "writing Parquet")
        _to_parquet(path)
    result = {
        "portfolio_id": portfolio_id,
        "sequences_generated": n,
        "total_records": n * months,
        "months_per_sequence": months,
        "cascade_model": generator.engine,
        "note": note,
    }
    work.advance(0.99, "keeping")
    if _version(work) != version:
        raise ConfigError("the portfolio was replaced meanwhile", expected="ask again for the new one")
    work.shelf.keep_sequences(portfolio_id, work.job.id, result | {"seed": asked["seed"]})
    return result


def _borrowers(work: Work) -> pl.DataFrame:
    """Table borrowers of the portfolio; a generated portfolio is made the first time it is asked for."""
    portfolio_id = work.job.subject
    if work.shelf.portfolio(portfolio_id) is None:
        seed = derive_seed(0, "portfolio", portfolio_id)
        maker = LoanTapeGenerator(
            n_loans=GENERATED_BORROWERS, asset_class_weights={"consumer": 1.0}, random_seed=seed
        )
        borrowers = validate("borrowers", borrowers_of_tape(maker.generate_static_features()))
        note = {
            "source": "generated",
            "kind": "borrowers",
            "adapter": "tape generator",
            "borrowers": borrowers.height,
            "rows_in": borrowers.height,
            "rows_quarantined": 0,
            "quarantine": [],
            "as_of": None,
        }
        tables = {"borrowers": borrowers, "quarantine": pl.DataFrame(schema=QUARANTINE_SCHEMA)}
        work.shelf.keep_portfolio(portfolio_id, work.job.id, tables, note)
    return pl.read_parquet(work.shelf.table_path(portfolio_id, "borrowers"))


def _version(work: Work) -> str:
    return str((work.shelf.portfolio(work.job.subject) or {}).get("version"))


def _first_month(work: Work) -> date:
    """The month after the tape's last, or a fixed one: nothing made here depends on today."""
    as_of = (work.shelf.portfolio(work.job.subject) or {}).get("as_of")
    return add_months(parse_month(str(as_of)[:7]), 1) if as_of else _DEFAULT_START


def _generator(work: Work, use_lstm: bool) -> tuple[LSTMCascadeGenerator, str]:
    """The trained engine if asked for and there, else the statistical matrix; and why not, '' if as asked."""
    folder = cascade_folder(Store(work.settings.data_dir).root)
    if not use_lstm:
        return LSTMCascadeGenerator(), ""
    if folder is None:
        return LSTMCascadeGenerator(), "no trained cascade in the store: the statistical matrix was used"
    generator = LSTMCascadeGenerator.load(folder)
    return generator, "" if generator.engine == LSTM_ENGINE else generator.reason


def _open_partial(path: Path, checkpoint: dict[str, Any]) -> int:
    """Borrowers already written; what lies behind the last whole piece is cut off."""
    done, size = int(checkpoint.get("borrowers", 0)), int(checkpoint.get("bytes", 0))
    if done and path.exists() and path.stat().st_size >= size:
        os.truncate(path, size)
        return done
    with path.open("wb") as handle:
        handle.write(_HEADER)
    return 0


def _append(path: Path, frame: pl.DataFrame) -> None:
    with path.open("ab") as handle:
        csv_ready(frame).write_csv(handle, include_header=False)
        handle.flush()
        os.fsync(handle.fileno())


def _to_parquet(path: Path) -> None:
    """The CSV as Parquet, streamed."""
    pl.scan_csv(path, schema=dict(RECORD_COLUMNS)).sink_parquet(
        path.with_suffix(".parquet"), compression="zstd"
    )
