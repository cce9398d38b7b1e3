"""What lies in the store's landing: a real tape, or nothing (then the pool is generated).

A store holds one pool. When the source of the pool changes, everything derived from the old one is
dropped, so that no training ever mixes two pools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pc_pipeline.core.store import Store, write_frame
from pc_pipeline.loans.panel_store import PACKED_TABLES

LANDED_TABLES = ("landing_loans", "landing_panel", "landing_recoveries")
DERIVED_TABLES = (
    "macro_scenarios",
    "loan_tape",
    "loan_panel",
    "recoveries",
    "transitions",
    "pool",
    "simulations",
    "macro_fan_report",
    "tranche_report",
    "pool_report",
    "cash_flow_report",
    "tranche_balance_report",
)
QUALITY_TABLES = ("quarantine", "data_quality")


@dataclass(frozen=True, kw_only=True, slots=True)
class Landing:
    """The note beside the landed tables.

    Attributes:
        source: path the last delivery came from.
        sha256: digest of its bytes, or of the deliveries that the pool comes from.
        adapter: format it was read as.
        rule: how a delinquency state was derived.
        as_of: last reported month (ISO date).
        rows_in, rows_quarantined: counts over tape and panel.
        history: path of the real macro history used with it, '' for none.
        has_history: whether a panel came with the tape in which some loan is seen more than once.
        pool: name of the pool among the deliveries.
        until: month asked for (YYYY-MM), '' for all that is known.
    """

    source: str
    sha256: str
    adapter: str
    rule: str
    as_of: str
    rows_in: int
    rows_quarantined: int
    history: str
    has_history: bool
    pool: str = ""
    until: str = ""

    @property
    def as_of_month(self) -> date:
        """`as_of` as a date."""
        return date.fromisoformat(self.as_of)


def _note(store: Store) -> Path:
    return store.root / "pool_source.json"


def read_landing(store: Store) -> Landing | None:
    """The landed tape's note; None while the pool is generated."""
    source = _read(store)
    return Landing(**source["landing"]) if source.get("landing") else None


def _read(store: Store) -> dict[str, Any]:
    store.settle()
    path = _note(store)
    return json.loads(path.read_text()) if path.exists() else {}


def claim_store(
    store: Store,
    pool: str,
    landing: Landing | None = None,
    tables: Mapping[str, pl.DataFrame] | None = None,
) -> None:
    """Say which pool this store holds; drop what was derived from another one.

    Args:
        store: the store.
        pool: anything that identifies the pool (recipe and seed, or the delivered pool's name). A restated
            month is the same pool.
        landing: the landed tape's note, None for a generated pool.
        tables: the landed tables. Note, tables and what is dropped change in one moment (`core.swap`).
    """
    before = _read(store)
    after = {"pool": pool, "landing": asdict(landing) if landing else None}
    files: dict[Path, Callable[[Path], object]] = {
        store.table_path(name): partial(write_frame, frame=frame, form=PACKED_TABLES.get(name))
        for name, frame in (tables or {}).items()
    }
    if after != before:
        text = json.dumps(after, indent=2, sort_keys=True)
        files[_note(store)] = lambda path: path.write_text(text, encoding="utf-8")
    is_other = bool(before) and before.get("pool") != pool
    dropped = DERIVED_TABLES + (() if landing else LANDED_TABLES + QUALITY_TABLES) if is_other else ()
    if files or dropped:
        store.write_together(files, dropped)
