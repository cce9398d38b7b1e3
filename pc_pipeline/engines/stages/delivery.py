"""From a delivered file to this store's pool: which pool it belongs to, what is known of it now.

Here: `take_in` (store a delivery), `land` (make its pool the store's), where macro history lies. Not here:
reading and storing deliveries (`loans.ingest`), the note and what another pool drops (`landing`).

**Name of a pool.** The one given; else the file's or folder's name without its dates: `book_2024-01.csv` and
`book_2024-02.csv` are deliveries of pool `book`. A name is not enough: where the loans in common do not agree
in month of origination and balance (or there are none), the delivery is of another pool, named
`book-<digits of its hash>`, and later deliveries find that one by its loans. A given name is trusted.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.core.store import Store
from pc_pipeline.engines.stages.landing import Landing, claim_store, read_landing
from pc_pipeline.loans.ingest import (
    Delivery,
    IngestResult,
    add_covariates,
    deliver,
    deliveries,
    pools,
    read_tape,
    source_digest,
)
from pc_pipeline.loans.ingest import history as delivered_history
from pc_pipeline.loans.ingest.result import LEAVES
from pc_pipeline.scenarios.history import load_history
from pc_pipeline.schemas.tables import validate

HISTORY_NAMES: Final = ("macro_fred", "macro", "macro_history.csv", "macro_history.parquet")
QUIET_SECONDS: Final = 2.0  # a file written to this recently may still be on its way
_DATE: Final = re.compile(
    r"(?:^|[-_. ]+)(?:19|20)\d\d(?:[-_.]?(?:0[1-9]|1[0-2])(?:[-_.]?\d\d)?|[-_.]?[Qq][1-4])(?=$|[-_. ])"
)
_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class TakenIn:
    """A stored delivery and the pool it was found to belong to."""

    delivery: Delivery
    pool: str


def take_in(
    store: Store,
    paths: Sequence[str | Path],
    *,
    pool: str = "",
    adapter: str = "",
    mapping: str = "",
    as_of: str = "",
    macro: pl.DataFrame | None = None,
) -> TakenIn:
    """Store one delivery under its pool; the same delivery again changes nothing.

    Raises:
        IngestError: it cannot be read; nothing was written.
        StoreError: another process is delivering to the same pool.
    """
    places = [Path(path).expanduser() for path in paths]
    said = {"adapter": adapter or None, "mapping": mapping or None, "as_of": as_of or None}
    known = pool or _pool_of_bytes(store, places)
    if known:
        return TakenIn(deliver(store, places, pool=known, **said, macro=macro, read=None), known)
    read = read_tape(places, **said, macro=macro)
    found = _pool_of_loans(store, places, read)
    return TakenIn(deliver(store, places, pool=found, **said, macro=macro, read=read), found)


def land(
    store: Store,
    path: str,
    *,
    pool: str = "",
    adapter: str = "",
    mapping: str = "",
    as_of: str = "",
    history: str = "",
) -> IngestResult:
    """Take a delivery in and make its pool, as known (by `as_of`), this store's pool.

    A restated month replaces the old one; both stay in the deliveries. Another pool drops what was derived
    from the last. The tables are written first and swapped in together: a failure leaves the old ones.

    Args:
        path: file or folder.
        pool: its name; '' finds it (see the module).
        adapter, mapping, as_of: as for `read_tape`; '' for none.
        history: real macro history; '' looks for one beside the tape.

    Returns:
        The pool over its deliveries: rates of the macro history filled in where they can be known; quarantine
        and quality (with drift against the delivery before) of the deliveries that its months come from.

    Raises:
        IngestError: the delivery cannot be read, or no row of it is usable. Nothing was written.
    """
    tape = Path(path).expanduser()
    found = find_history(tape, history)
    macro = load_history(found).frame if found else None
    taken = take_in(store, [tape], pool=pool, adapter=adapter, mapping=mapping, as_of=as_of, macro=macro)
    result = as_known(store, taken.pool, as_of=as_of, macro=macro)
    _claim(store, taken.pool, result, source=str(path), history=str(found or ""), until=as_of)
    return result


def land_known(store: Store) -> IngestResult | None:
    """Land deliveries of the landed pool that came since (`pc ingest`); None where there are none.

    A pool that was landed as of a month stays so: what came later is not known then.
    """
    landing = read_landing(store)
    if landing is None or landing.pool not in pools(store):
        return None
    if landing.history and not Path(landing.history).exists():
        raise ConfigError("the macro history of the landed pool is gone", expected=landing.history)
    macro = load_history(landing.history).frame if landing.history else None
    result = as_known(store, landing.pool, as_of=landing.until, macro=macro)
    if result.source_sha256 == landing.sha256:
        return None
    _claim(store, landing.pool, result, source=landing.source, history=landing.history, until=landing.until)
    return result


def _claim(store: Store, pool: str, result: IngestResult, *, source: str, history: str, until: str) -> None:
    """Make a pool as known this store's: note and tables in one swap."""
    for table in ("quarantine", "data_quality"):
        validate(table, result.quarantine if table == "quarantine" else result.quality, where=source)
    claim_store(
        store,
        pool=f"delivered {pool}",
        landing=Landing(
            source=source,
            pool=pool,
            sha256=result.source_sha256,
            adapter=result.adapter,
            rule=result.rule,
            as_of=result.as_of.isoformat(),
            rows_in=result.loans.height + result.panel.height + result.quarantine.height,
            rows_quarantined=result.quarantine.height,
            history=history,
            has_history=has_moves(result.panel),
            until=until,
        ),
        tables={
            "landing_loans": result.loans,
            "landing_panel": result.panel,
            "landing_recoveries": result.recoveries,
            "quarantine": result.quarantine,
            "data_quality": result.quality,
        },
    )


def as_known(store: Store, pool: str, *, as_of: str = "", macro: pl.DataFrame | None = None) -> IngestResult:
    """A pool over all its deliveries (until `as_of`), as if it had come in one.

    A tape without history is a snapshot: the last one is the pool. source_sha256 is the file's where one
    delivery, read without macro history, counts, else a digest of the deliveries that do: a restated month
    changes it, and so does a restated macro history.

    Raises:
        StoreError: nothing was delivered by then.
    """
    known = delivered_history(store, pool, as_of=as_of or None)
    by_id = {one.id: one for one in deliveries(store, pool)}
    until = [one for one in by_id.values() if not as_of or one.as_of_month <= parse_month(as_of)]
    last = max(until, key=lambda one: (one.as_of_month, one.number))
    counted = sorted({*known.owners["delivery"].to_list(), last.id})
    loans, panel = known.loans, known.panel
    if panel.is_empty():
        counted, loans = [last.id], last.table("loans")
    elif macro is not None:
        panel = add_covariates(panel, loans, macro)
    used = [by_id[name] for name in counted]
    keys = "\n".join(one.key for one in used)
    is_plain = len(used) == 1 and not used[0].macro
    quality = [one.table("quality").with_columns(pl.lit(one.id).alias("delivery")) for one in used]
    return IngestResult(
        loans=loans,
        panel=panel,
        recoveries=known.recoveries,
        quarantine=_refused([one.table("quarantine") for one in used], known.quarantine),
        quality=pl.concat(quality),
        adapter=last.adapter,
        rule=last.rule,
        as_of=last.as_of_month,
        source_sha256=used[0].source_sha256 if is_plain else hashlib.sha256(keys.encode()).hexdigest(),
        counts=dict(last.counts),
    )


def _refused(delivered: Sequence[pl.DataFrame], joined: pl.DataFrame | None) -> pl.DataFrame:
    """Rows refused in the deliveries; a balance that is missing only where the joined months say so too.

    A slice that begins after a loan's end cannot know why its balance is missing; the joined history can.
    """
    rows = pl.concat(delivered)
    if joined is None:
        return rows
    months = ("loan_id", "reporting_month")
    keys = [pl.col("row_json").str.json_path_match(f"$.{name}").alias(name) for name in months]
    keyed, found = rows.with_columns(keys), joined.with_columns(keys)
    open_ends = keyed.filter(pl.col("reason") == LEAVES).join(
        found, on=months, how="semi", maintain_order="left"
    )
    others = keyed.filter(pl.col("reason") != LEAVES)
    new = found.join(keyed, on=months, how="anti", maintain_order="left")
    return pl.concat([others, open_ends, new]).select(rows.columns)


def has_moves(panel: pl.DataFrame) -> bool:
    """Whether some loan is seen more than once: positions alone, or outcomes alone, teach no transition."""
    return panel.height > panel["loan_id"].n_unique()


def pool_name(paths: Sequence[str | Path]) -> str:
    """The pool a delivery is of by its name alone: stem of the file or folder, dates and odd letters out."""
    places = [Path(path).absolute() for path in paths]
    place = places[0] if len(places) == 1 else Path(os.path.commonpath([one.parent for one in places]))
    for name in (place.name if place.is_dir() else place.stem, place.parent.name):
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", _DATE.sub("", name)).strip("_.-")[:60]
        plain = re.sub(r"\.{2,}", ".", plain)
        if plain:
            return plain
    return "pool"


def is_same_pool(new: pl.DataFrame, old: pl.DataFrame) -> bool:
    """Whether two tapes have loans in common, and most of those agree in origination and balance."""
    facts = ["vintage_month", "original_balance"]
    common = new.select("loan_id", *facts).join(old.select("loan_id", *facts), on="loan_id", suffix="_old")
    agree = common.filter(
        (pl.col("vintage_month") == pl.col("vintage_month_old"))
        & ((pl.col("original_balance") - pl.col("original_balance_old")).abs() < 0.01)
    )
    return 2 * agree.height >= max(common.height, 1)


def _candidates(store: Store, places: Sequence[Path]) -> list[str]:
    """Pools that a delivery of this name may be of."""
    stem = pool_name(places)
    pattern = re.compile(re.escape(stem) + rf"(-[0-9a-f]{{{_DIGITS}}})?")
    return [name for name in pools(store) if pattern.fullmatch(name)]


def _pool_of_bytes(store: Store, places: Sequence[Path]) -> str:
    """The pool to which these very bytes were delivered before, under whatever name; '' for none."""
    present = pools(store)
    if not present:
        return ""
    digest = source_digest(places)
    first = _candidates(store, places)
    for name in [*first, *(other for other in present if other not in first)]:
        if any(one.source_sha256 == digest for one in deliveries(store, name)):
            return name
    return ""


def _pool_of_loans(store: Store, places: Sequence[Path], read: IngestResult) -> str:
    """The pool whose last delivery holds the same loans, else a new name."""
    taken = []
    for name in _candidates(store, places):
        present = deliveries(store, name)
        if not present or is_same_pool(read.loans, present[-1].table("loans")):
            return name
        taken.append(name)
    stem = pool_name(places)
    return f"{stem}-{read.source_sha256[:_DIGITS]}" if stem in taken else stem


def forget_landing(store: Store) -> None:
    """Return the store to a generated pool; the deliveries stay."""
    if read_landing(store) is not None:
        claim_store(store, pool="generated")


def find_history(tape: Path, history: str) -> Path | None:
    """Real macro history for a tape: the one named, else one that lies in or beside the tape's folder.

    Raises:
        ConfigError: the one named is not there.
    """
    if history:
        if not Path(history).exists():
            raise ConfigError("no macro history there", expected="a file or folder", got=history)
        return Path(history)
    folder = tape if tape.is_dir() else tape.parent
    for place in (folder, folder.parent):
        for name in HISTORY_NAMES:
            if (place / name).exists():
                return place / name
    return None


def landed_files(folder: Path) -> list[Path]:
    """Complete deliveries in the landing folder: files at rest, no temporary names, no documentation."""
    if not folder.is_dir():
        return []
    skip = (".part", ".tmp", ".crdownload", ".md")
    quiet_since = time.time() - QUIET_SECONDS
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith((".", "~"))
        and path.suffix not in skip
        and path.stat().st_mtime < quiet_since
    ]


def quarantine_reasons(quarantine: pl.DataFrame) -> pl.DataFrame:
    """Rows refused, counted by table, column and reason."""
    return (
        quarantine.group_by("table", "column", "reason")
        .agg(pl.len().alias("rows"))
        .sort(["rows", "table", "column", "reason"], descending=[True, False, False, False])
    )
