"""Deliveries over time: each stored whole or not at all, none ever changed, history as of any month.

Here: `deliver`, the list of deliveries, `history`. Not here: reading a delivery (`read`), how histories are
joined (`merge`).

    <root>/deliveries/<pool>/<number>-<hash>/
        loans.parquet panel.parquet recoveries.parquet quarantine.parquet quality.parquet
        filed.parquet     months as filed, where joining needs them (`rejoin`)
        delivery.json     written last; names every file with its SHA-256

A delivery is written into a folder with a temporary name, flushed to disk, then renamed into place: a
process killed at any moment leaves the deliveries there were before, or those and the new one. The same
bytes under the same adapter, mapping, as-of month and macro history are the same delivery: nothing is written
twice. Of the macro history only what the panel's covariates are made of counts: later months change nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl

from pc_pipeline.core.compact import scan_any
from pc_pipeline.core.errors import StoreError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.core.store import Store, check_name, file_sha256, write_frame
from pc_pipeline.core.swap import flush
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.ingest.adapter import Rejoinable
from pc_pipeline.loans.ingest.drift import drift_rows
from pc_pipeline.loans.ingest.files import source_sha256, survey
from pc_pipeline.loans.ingest.merge import History, merge_deliveries
from pc_pipeline.loans.ingest.read import ADAPTERS, read_tape
from pc_pipeline.loans.ingest.rejoin import rejoin_deliveries
from pc_pipeline.loans.ingest.result import IngestResult
from pc_pipeline.loans.panel_store import PANEL_FORMAT

TABLES: Final = ("loans", "panel", "recoveries", "quarantine", "quality")
FILED: Final = "filed"
CARD: Final = "delivery.json"
FOLDER: Final = "deliveries"
DEFAULT_POOL: Final = "pool"
_TEMPORARY: Final = ".tmp-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery as stored.

    Attributes:
        id: name of its folder: number and the first 12 digits of its key.
        number: 1, 2, ... in order of arrival.
        key: hash of source bytes, adapter, mapping, as-of month and macro.
        source: names of the delivered files.
        source_sha256, adapter, rule, as_of, counts: as in `IngestResult`; as_of in ISO form.
        files: table -> SHA-256 of its Parquet file.
        macro: digest of the macro history its covariates are made of, '' where it was read without one.
        months: first and last month of that history that can matter (ISO), empty without a panel.
        folder: where it lies.
        is_new: False when the same delivery was there before.
    """

    id: str
    number: int
    key: str
    source: list[str]
    source_sha256: str
    adapter: str
    rule: str
    as_of: str
    counts: dict[str, int]
    files: dict[str, str]
    folder: Path
    macro: str = ""
    months: list[str] = field(default_factory=list)
    is_new: bool = False

    @property
    def as_of_month(self) -> date:
        """as_of as a date."""
        return date.fromisoformat(self.as_of)

    def table(self, name: str) -> pl.DataFrame:
        """'loans', 'panel', 'recoveries', 'quarantine', 'quality'; 'filed' where it is among `files`.

        Raises:
            StoreError: no such table, or its file is torn or gone.
        """
        if name not in TABLES and name not in self.files:
            raise StoreError("a delivery has no such table", expected=", ".join(self.files), got=name)
        try:
            return scan_any(self.folder / f"{name}.parquet").collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise StoreError("a delivery cannot be read", got=error, where=self.folder) from error


def deliver(
    store: Store,
    paths: str | Path | Sequence[str | Path],
    *,
    pool: str = DEFAULT_POOL,
    adapter: str | None = None,
    mapping: str | Path | None = None,
    as_of: str | date | None = None,
    macro: Any = None,
    read: IngestResult | None = None,
) -> Delivery:
    """Read one delivery and store it; the same delivery again changes nothing.

    Args:
        paths: the file or folder, or the files that together are one delivery.
        pool: name of the pool it belongs to.
        adapter, mapping, as_of, macro: as for `read_tape`.
        read: what `read_tape` made of the same arguments, where it has been called already.

    Raises:
        IngestError: it cannot be read; nothing was written.
        StoreError: another process is delivering to the same pool.
    """
    folder = _pool_folder(store, pool)
    source = source_digest(paths) if read is None else read.source_sha256
    said = _key(source, adapter, mapping, as_of)
    history_of = None if macro is None else to_polars(macro, ("month", "yield_10y"), "macro")
    with _one_writer(folder):
        present = deliveries(store, pool)
        for known in reversed(present):
            digest = known.macro if history_of is None else macro_digest(history_of, known.months)
            if known.key == _with_macro(said, digest):
                return known
        result = read or read_tape(paths, adapter, mapping, as_of, macro=macro)
        months = covariate_months(result.panel)
        digest = "" if history_of is None else macro_digest(history_of, months)
        names = _names(paths)
        card = {
            "number": 1 + max((known.number for known in present), default=0),
            "key": _with_macro(said, digest),
            "source": names,
            "macro": digest,
            "months": months,
        }
        return _store(folder, card, result, with_drift(result, _latest(present), ", ".join(names)))


def covariate_months(panel: pl.DataFrame) -> list[str]:
    """First and last month whose macro can enter a panel's covariates, ISO; empty for an empty panel."""
    if panel.is_empty():
        return []
    first, last = panel["vintage_month"].min(), panel["reporting_month"].max()
    return [str(first), str(last)]


def macro_digest(macro: pl.DataFrame, months: Sequence[str]) -> str:
    """Digest of what covariates read of a macro history between two months; '' where none can matter."""
    if not months:
        return ""
    first, last = (date.fromisoformat(month) for month in months)
    names = [name for name in ("month", "yield_10y", "property_price_index") if name in macro.columns]
    rows = macro.select(names).filter(pl.col("month").is_between(first, last)).unique("month").sort("month")
    return hashlib.sha256(rows.write_csv().encode()).hexdigest()


def source_digest(paths: str | Path | Sequence[str | Path]) -> str:
    """Content hash of the delivered files, as in `IngestResult.source_sha256`."""
    return source_sha256(survey(paths))


def pools(store: Store) -> list[str]:
    """Names of the pools that were delivered to."""
    folder = store.root / FOLDER
    return sorted({card.parent.parent.name for card in folder.glob(f"*/[0-9]*/{CARD}")})


def deliveries(store: Store, pool: str = DEFAULT_POOL) -> list[Delivery]:
    """What has been delivered to a pool, in order of arrival."""
    cards = _pool_folder(store, pool).glob(f"[0-9]*/{CARD}")
    return sorted((_read_card(card) for card in cards), key=lambda delivery: delivery.number)


def history(
    store: Store,
    pool: str = DEFAULT_POOL,
    *,
    as_of: str | date | None = None,
    delivery: str | None = None,
) -> History:
    """The pool's tape, panel and recoveries as they were known.

    Args:
        as_of: only deliveries as of this month or earlier; all when None. Of months delivered more than once
            the delivery with the latest as-of month (then the latest arrival) counts.
        delivery: id of one delivery, to see it alone.

    Raises:
        StoreError: nothing was delivered by then, or no delivery of that id.
    """
    found = deliveries(store, pool)
    if delivery is not None:
        found = [known for known in found if known.id == delivery]
    if as_of is not None:
        found = [known for known in found if known.as_of_month <= parse_month(as_of)]
    if not found:
        wanted = delivery or (f"a delivery as of {as_of}" if as_of is not None else "a delivery")
        known = [f"{one.id} as of {one.as_of}" for one in deliveries(store, pool)]
        raise StoreError(
            "nothing was delivered", expected=wanted, got=known or "none", where=f"pool {pool!r}"
        )
    return _joined(sorted(found, key=lambda one: (one.as_of_month, one.number)))


def _joined(ordered: Sequence[Delivery]) -> History:
    """Deliveries of one format that keeps its months as filed: read together; else merged."""
    adapter = ADAPTERS.get(ordered[0].adapter)
    is_one_format = len({one.adapter for one in ordered}) == 1
    if (
        len(ordered) > 1
        and is_one_format
        and isinstance(adapter, Rejoinable)
        and all(FILED in one.files for one in ordered)
    ):
        return rejoin_deliveries(
            [(one.id, one.table("loans"), one.table("panel"), one.table(FILED)) for one in ordered], adapter
        )
    return merge_deliveries(
        [(one.id, one.table("loans"), one.table("panel"), one.table("recoveries")) for one in ordered]
    )


def verify(delivery: Delivery) -> None:
    """Check every file of a delivery against its card.

    Raises:
        StoreError: a file is gone or not the one that was written.
    """
    for name, digest in delivery.files.items():
        path = delivery.folder / f"{name}.parquet"
        got = file_sha256(path) if path.exists() else "nothing"
        if got != digest:
            raise StoreError("a delivery is torn", expected=digest, got=got, where=path)


def with_drift(result: IngestResult, last: Delivery | None, source: str) -> pl.DataFrame:
    """The quality table with column drift_psi: rows against the last delivery added, null elsewhere."""
    quality = result.quality.with_columns(pl.lit(None, pl.Float64).alias("drift_psi"))
    if last is None:
        return quality
    now = {"loans": result.loans, "panel": result.panel}
    before = {"loans": last.table("loans"), "panel": last.table("panel")}
    rows = pl.DataFrame(
        drift_rows(now, before, source),
        schema={
            "file": pl.String,
            "column": pl.String,
            "month": pl.Date,
            "rows_in": pl.Int64,
            "drift_psi": pl.Float64,
        },
    ).with_columns(
        pl.lit(0, pl.Int64).alias("repaired"),
        pl.lit(0, pl.Int64).alias("quarantined"),
        pl.col("rows_in").alias("accepted"),
        pl.lit(f"drift against {last.id}").alias("how"),
        pl.lit("").alias("why"),
    )
    return pl.concat([quality, rows.select(quality.columns)])


def _pool_folder(store: Store, pool: str) -> Path:
    return store.root / FOLDER / check_name(pool, "pool name")


def _key(source: str, adapter: str | None, mapping: str | Path | None, as_of: str | date | None) -> str:
    mapped = (
        file_sha256(Path(mapping)) if mapping is not None and Path(mapping).is_file() else str(mapping or "")
    )
    month = "" if as_of is None else parse_month(as_of).isoformat()
    return hashlib.sha256("\x1f".join([source, adapter or "", mapped, month]).encode()).hexdigest()


def _with_macro(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key}\x1f{digest}".encode()).hexdigest() if digest else key


def _names(paths: str | Path | Sequence[str | Path]) -> list[str]:
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    return [Path(path).name for path in several]


def _latest(present: Sequence[Delivery]) -> Delivery | None:
    return max(present, key=lambda one: (one.as_of_month, one.number), default=None)


def _store(folder: Path, said: dict[str, Any], result: IngestResult, quality: pl.DataFrame) -> Delivery:
    """Write into a temporary folder, flush, rename."""
    identity = f"{said['number']:06d}-{said['key'][:12]}"
    temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        frames = {name: getattr(result, name) for name in TABLES if name != "quality"} | {"quality": quality}
        if result.filed is not None:
            frames[FILED] = result.filed
        files = {}
        for name, frame in frames.items():
            path = temporary / f"{name}.parquet"
            write_frame(path, frame, PANEL_FORMAT if name == "panel" else None)
            files[name] = file_sha256(path)
            flush(path)
        card: dict[str, Any] = {
            **said,
            "id": identity,
            "source_sha256": result.source_sha256,
            "adapter": result.adapter,
            "rule": result.rule,
            "as_of": result.as_of.isoformat(),
            "counts": result.counts,
            "files": files,
        }
        (temporary / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush(temporary / CARD)
        flush(temporary)
        os.rename(temporary, folder / identity)
        flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Delivery(**card, folder=folder / identity, is_new=True)


def _read_card(path: Path) -> Delivery:
    needed = {one.name for one in fields(Delivery)} - {"folder", "is_new", "macro", "months"}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Delivery(
            **{name: content[name] for name in needed},
            macro=content.get("macro", ""),
            months=content.get("months", []),
            folder=path.parent,
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise StoreError("a delivery's card cannot be read", got=error, where=path) from error


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Hold the pool's lock, which the system releases when a process dies; sweep what a dead one left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError("another process is delivering to this pool", where=folder) from None
        for leftover in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
