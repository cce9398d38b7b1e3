"""The door of the ingest: which adapter a delivery is for, and `read_tape`.

Here: the list of adapters, recognition by content, one result. Not here: any format (one module each),
storing deliveries (`deliveries`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.ingest.adapter import Adapter, Options
from pc_pipeline.loans.ingest.canonical import Canonical
from pc_pipeline.loans.ingest.covariates import add_covariates
from pc_pipeline.loans.ingest.fannie_mae import FannieMae
from pc_pipeline.loans.ingest.files import DELIMITERS, Part, check_doubles, source_sha256, survey, where
from pc_pipeline.loans.ingest.mapping import load_mapping, mapped_parts
from pc_pipeline.loans.ingest.not_tapes import why_no_tape
from pc_pipeline.loans.ingest.quarterly_mortgage import QuarterlyMortgage
from pc_pipeline.loans.ingest.result import IngestResult, QualityLog
from pc_pipeline.loans.ingest.sba import Sba
from pc_pipeline.loans.ingest.sec_auto import SecAuto
from pc_pipeline.loans.ingest.sec_auto_xml import SecAutoXml
from pc_pipeline.loans.ingest.sec_cmbs import SecCmbs
from pc_pipeline.loans.ingest.uci_cards import UciCards

ADAPTERS: Final[dict[str, Adapter]] = {
    adapter.name: adapter
    for adapter in (
        SecAuto(),
        SecAutoXml(),
        SecCmbs(),
        FannieMae(),
        QuarterlyMortgage(),
        UciCards(),
        Sba(),
        Canonical(),
    )
}


def recognise(path: str | Path | Sequence[str | Path]) -> str:
    """Name of the adapter that reads what lies at `path`, by its columns.

    Raises:
        IngestError: nothing readable there, or no adapter knows it; the message says what was found and what
            each adapter expects.
    """
    return _recognise(survey(path))


def _recognise(parts: Sequence[Part]) -> str:
    for adapter in ADAPTERS.values():
        if adapter.matches(parts):
            return adapter.name
    known = why_no_tape(parts)
    if known:
        raise IngestError("this is no loan tape", expected="one row a loan", got=known, where=_place(parts))
    for part in parts:
        titles = [name for name in part.columns if name]
        if part.kind == "workbook" and len(titles) == 1 < len(part.columns):
            raise IngestError(
                "the first line is a title, not column names",
                expected="column names in the first line",
                got=titles[0][:100],
                where=where(part),
            )
        check_doubles(part)
        if part.kind == "delimited" and len(part.columns) == 1:
            raise IngestError(
                "the first line is one field",
                expected=f"column names separated by one of {' '.join(map(repr, DELIMITERS))}",
                got=part.columns[0][:100],
                where=part.path,
            )
    raise IngestError(
        "no adapter knows this delivery",
        expected="columns of one of these, or a mapping of yours (pc map drafts one):\n"
        + "\n".join(f"    {adapter.name}: {adapter.expects}" for adapter in ADAPTERS.values()),
        got="; ".join(f"{where(part)}: {', '.join(part.columns[:12]) or part.kind}" for part in parts[:5]),
        where=parts[0].path,
    )


def _place(parts: Sequence[Part]) -> Path:
    return parts[0].path if len(parts) == 1 else parts[0].path.parent


def read_tape(
    path: str | Path | Sequence[str | Path],
    adapter: str | None = None,
    mapping: str | Path | None = None,
    as_of: str | date | None = None,
    *,
    macro: Any = None,
) -> IngestResult:
    """Read one delivery: a file, a folder of files, or several files.

    Args:
        path: the file or folder, or the files that together are one delivery.
        adapter: name of the adapter; recognised from the content when None.
        mapping: YAML file that maps the user's columns, units and codes to ours.
        as_of: months after this one are refused; by default the last month delivered.
        macro: frame with month and yield_10y (and property_price_index), for structural covariates.

    Returns:
        Tables, quarantine and quality; nothing is written anywhere.

    Raises:
        IngestError: not readable as what it claims to be; says expected, got and where.
    """
    parts = survey(path)
    if mapping is not None:
        parts = mapped_parts(parts, load_mapping(mapping))
        adapter = adapter or Canonical.name
    name = adapter if adapter is not None else _recognise(parts)
    if name not in ADAPTERS:
        raise IngestError("no such adapter", expected=", ".join(ADAPTERS), got=name, where=path)
    chosen = ADAPTERS[name]
    options = Options(
        as_of=None if as_of is None else parse_month(as_of),
        macro=None if macro is None else to_polars(macro, ("month", "yield_10y"), "macro"),
    )
    log = QualityLog()
    hashing = ThreadPoolExecutor(max_workers=1)
    digest = hashing.submit(source_sha256, parts)  # beside the reading: hashing needs no interpreter
    hashing.shutdown(wait=False)
    try:
        tables = chosen.read(parts, log, options)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise IngestError(
            "the delivery holds values that cannot be worked with",
            expected=chosen.expects,
            got=str(error).partition("\n")[0][:300],
            where=path,
        ) from error
    if tables.loans.is_empty():
        raise IngestError(
            "no loan of the delivery is good",
            expected="at least one",
            got="; ".join(log.quarantined()["reason"].unique().sort().head(5).to_list()) or "no rows",
            where=path,
        )
    panel = tables.panel
    if options.macro is not None and not panel.is_empty():
        panel = add_covariates(panel, tables.loans, options.macro)
    return IngestResult(
        loans=tables.loans,
        panel=panel,
        recoveries=tables.recoveries,
        quarantine=log.quarantined(),
        quality=log.frame(),
        adapter=name,
        rule=chosen.rule,
        as_of=options.as_of or _last_month(tables.loans, tables.panel),
        source_sha256=digest.result(),
        counts=dict(log.counts),
        filed=tables.filed,
    )


def _last_month(loans: pl.DataFrame, panel: pl.DataFrame) -> date:
    column = loans["vintage_month"] if panel.is_empty() else panel["reporting_month"]
    latest = column.max()
    if not isinstance(latest, date):
        raise IngestError("the delivery has no date", expected="a month", got=latest)
    return latest
