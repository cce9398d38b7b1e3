"""Job 'portfolio': read an upload, keep it as a portfolio. Not here: which rows are good (`loans.ingest`)."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.loans.ingest.borrowers import BorrowerDelivery, read_borrowers
from pc_pipeline.schemas.tables import validate
from pc_pipeline.service.worker import Work

MAPPING_NAME: Final = "mapping.yaml"
MOST_REASONS: Final = 50


def run(work: Work) -> dict[str, Any]:
    """Read, check, keep; what is returned is the job's result.

    Raises:
        IngestError: it cannot be read, or no row is good. ConfigError: the id was taken meanwhile.
    """
    asked, portfolio_id = work.job.request, work.job.subject
    folder = work.shelf.upload_folder(work.job.id)
    files = [folder / name for name in asked["files"] if name != MAPPING_NAME]
    mapping = folder / MAPPING_NAME if MAPPING_NAME in asked["files"] else None
    work.advance(0.05, "reading")
    read = read_borrowers(
        files, mapping=mapping, as_of=asked["as_of"] or None, max_rows=work.settings.max_borrowers
    )
    work.advance(0.8, "keeping")
    present = work.shelf.portfolio(portfolio_id)
    if present is not None and not asked["replace"] and present["version"] != work.job.id:
        raise ConfigError("there is a portfolio of this id", expected="another id, or replace=true")
    work.shelf.keep_portfolio(portfolio_id, work.job.id, _tables(read), _note(read))
    return {"portfolio_id": portfolio_id, "borrowers": read.borrowers.height}


def _tables(read: BorrowerDelivery) -> dict[str, pl.DataFrame]:
    tables = {"borrowers": validate("borrowers", read.borrowers), "quarantine": read.quarantine}
    if read.tape is not None:
        tables |= {"loans": read.tape.loans, "panel": read.tape.panel, "recoveries": read.tape.recoveries}
    return tables


def _note(read: BorrowerDelivery) -> dict[str, Any]:
    reasons = (
        read.quarantine.group_by("table", "column", "reason")
        .agg(pl.len().alias("rows"))
        .sort(["rows", "table", "column", "reason"], descending=[True, False, False, False])
    )
    return {
        "source": "uploaded",
        "kind": "borrowers" if read.tape is None else "loans",
        "adapter": read.adapter,
        "borrowers": read.borrowers.height,
        "rows_in": read.rows_in,
        "rows_quarantined": read.quarantine.height,
        "quarantine": reasons.head(MOST_REASONS).to_dicts(),
        "as_of": None if read.tape is None else read.tape.as_of.isoformat(),
    }
