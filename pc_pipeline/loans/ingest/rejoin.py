"""Deliveries joined by their months as filed: for formats in which a month's state hangs on other deliveries.

Here: `rejoin_deliveries`. Not here: which deliveries count (`deliveries.history`), reading the joined months
(each adapter's `rejoin`), joining by states and balances, for formats that file a state (`merge`).

Where a state is counted from payments, or a recovery belongs to a default of an earlier month, a slice alone
tells too little. So such an adapter keeps each delivery's months as filed, and they are read again together:
a pool delivered month by month is the pool delivered whole. A month belongs to the last delivery that reports
it. The month that a tape files of itself owns nothing: it stands where no history files that loan's month.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from pc_pipeline.loans.ingest.adapter import Rejoinable
from pc_pipeline.loans.ingest.merge import History, owned_rows, owners_of
from pc_pipeline.loans.ingest.result import QualityLog

IS_TAPE: Final = "is_tape"
_KEYS: Final = ("loan_id", "reporting_month")
_COVARIATES: Final = ("ltv_current", "rate_incentive")
JOINED: Final = "deliveries joined"


def rejoin_deliveries(
    ordered: Sequence[tuple[str, pl.DataFrame, pl.DataFrame, pl.DataFrame]], adapter: Rejoinable
) -> History:
    """Join (id, loans, panel, filed), oldest first, and read the joined months anew.

    Covariates come from the deliveries' own panels; `quarantine` is what the joined months leave out.
    """
    loans = pl.concat([loans for _, loans, _, _ in reversed(ordered)]).unique(
        "loan_id", keep="first", maintain_order=True
    )
    months = [(name, filed.filter(~pl.col(IS_TAPE))) for name, _, _, filed in ordered]
    tapes = [(name, filed.filter(IS_TAPE)) for name, _, _, filed in ordered]
    owners = owners_of(months, "reporting_month")
    kept = owned_rows(months, owners, "reporting_month")
    latest = pl.concat([tape for _, tape in tapes]).unique(_KEYS, keep="last", maintain_order=True)
    opening = latest.join(kept, on=_KEYS, how="anti", maintain_order="left")
    filed = pl.concat([opening, kept]).join(loans.select("loan_id"), on="loan_id", how="semi").sort(_KEYS)
    log = QualityLog()
    tables = adapter.rejoin(filed, loans.sort("loan_id"), log, JOINED)
    unowned = owners_of([*tapes, *months], "reporting_month").join(owners, on="month", how="anti")
    known = pl.concat([panel for _, _, panel, _ in ordered]).select(*_KEYS, *_COVARIATES)
    known = known.unique(_KEYS, keep="last", maintain_order=True)
    panel = tables.panel.drop(_COVARIATES).join(known, on=_KEYS, how="left", maintain_order="left")
    return History(
        loans=tables.loans,
        panel=panel.select(tables.panel.columns),
        recoveries=tables.recoveries,
        owners=pl.concat([owners, unowned]).sort("month"),
        n_revived=log.counts.get("rows_after_end", 0),
        quarantine=log.quarantined(),
    )
