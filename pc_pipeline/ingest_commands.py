"""Commands on delivered files: `pc ingest`, `pc map`, `pc history`.

Heavy imports wait until a command runs, so that `pc --help` stays quick.

Here: what they print. Not here: reading and storing (`loans.ingest`), which pool a delivery is of
(`engines.stages.delivery`), running assets (`orchestration.commands`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer

from pc_pipeline.cli import Data, print_frame
from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.core.store import Store, replace_file

if TYPE_CHECKING:
    from pc_pipeline.loans.ingest import Delivery, IngestResult

Adapter = Annotated[str, typer.Option(help="Format; default: recognised from the content.")]
Mapping = Annotated[str, typer.Option(help="YAML mapping of your columns to ours.")]


def ingest(
    files: Annotated[list[Path], typer.Argument(help="Files or a folder: together one delivery.")],
    adapter: Adapter = "",
    mapping: Mapping = "",
    as_of: Annotated[str, typer.Option(help="Cut-off month YYYY-MM; later months are refused.")] = "",
    pool: Annotated[str, typer.Option(help="Name of its pool; default: by name and loans.")] = "",
    macro: Annotated[str, typer.Option(help="Real macro history; default: beside the tape.")] = "",
    rejected: Annotated[Path | None, typer.Option(help="Write refused rows to this CSV.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look only, store nothing.")] = False,
    data: Data = Path("data"),
) -> None:
    """Store one delivery and say what was accepted, repaired and refused; the same again changes nothing."""

    from pc_pipeline.engines import stages
    from pc_pipeline.loans.ingest import read_tape
    from pc_pipeline.scenarios.history import load_history

    paths = [file.expanduser() for file in files]
    found = stages.find_history(paths[0], macro)
    known = load_history(found).frame if found else None
    if check:
        result = read_tape(paths, adapter or None, mapping or None, as_of or None, macro=known)
        typer.echo(f"look only, nothing stored: would be of pool {pool or stages.pool_name(paths)!r}")
        _say_read(result, result.quarantine, result.quality, rejected)
        return
    store = Store(data)
    taken = stages.take_in(
        store, paths, pool=pool, adapter=adapter, mapping=mapping, as_of=as_of, macro=known
    )
    one = taken.delivery
    state = "new" if one.is_new else "already known, nothing changed"
    typer.echo(f"delivery {one.id} of pool {taken.pool!r}: {state}")
    quarantine, quality = one.table("quarantine"), one.table("quality")
    _say_read(one, quarantine, quality, rejected)
    if quarantine.height:
        typer.echo(f"quarantine: {one.folder / 'quarantine.parquet'}")
    typer.echo(f"quality:    {one.folder / 'quality.parquet'}")
    place = paths[0] if len(paths) == 1 else paths[0].parent
    typer.echo(f"next:       make run TAPE={place}" + (f" MAPPING={mapping}" if mapping else ""))
    landed = stages.read_landing(store)
    if one.is_new and landed is not None and landed.pool == taken.pool:
        typer.echo("            or pc backfill --retrain, which lands it and learns anew")


def _say_read(
    read: Delivery | IngestResult, quarantine: pl.DataFrame, quality: pl.DataFrame, rejected: Path | None
) -> None:
    """Rows in, accepted, repaired, refused; the rule; drift; what was odd."""

    from pc_pipeline.engines.stages import quarantine_reasons

    whole = quality.filter((pl.col("column") == "*") & pl.col("month").is_null())
    rows_in, accepted = int(whole["rows_in"].sum()), int(whole["accepted"].sum())
    repaired = int(quality.filter(pl.col("month").is_null())["repaired"].sum())
    typer.echo(
        f"{read.adapter}, as of {str(read.as_of)[:7]}: {rows_in:,} rows in, {accepted:,} accepted, "
        f"{repaired:,} values repaired, {quarantine.height:,} rows quarantined"
    )
    typer.echo(f"rule: {read.rule}")
    repairs = quality.filter((pl.col("repaired") > 0) & pl.col("month").is_null())
    if repairs.height:
        print_frame(repairs.select("file", "column", "repaired", "how"), "repaired")
    if quarantine.height:
        print_frame(quarantine_reasons(quarantine), "quarantined")
    if rejected is not None:
        quarantine.write_csv(rejected)
        typer.echo(f"refused rows: {rejected}")
    if "drift_psi" in quality.columns and quality["drift_psi"].count():
        drift = quality.group_by("column").agg(pl.col("drift_psi").max()).drop_nulls()
        worst = drift.sort(["drift_psi", "column"], descending=[True, False]).head(5)
        print_frame(worst, "drift (PSI)")
        typer.echo("drift is against the delivery before: under 0.1 stable, over 0.25 another population")


def map_columns(
    file: Annotated[Path, typer.Argument(help="A tape in any columns; or a folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write here, not to the screen.")
    ] = None,
) -> None:
    """Draft a mapping of a file's columns, units and codes to ours: read it, mend it, use it."""

    from pc_pipeline.loans.ingest import draft_mapping

    text = draft_mapping(file.expanduser())
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise ConfigError("a mapping is there already", expected="a new file", got=output)
    with replace_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(f"{output}: read every line, then: pc ingest {file} --mapping {output} --check")


def list_history(
    as_of: Annotated[str, typer.Option(help="Only what was known by YYYY-MM.")] = "",
    pool: Annotated[str, typer.Option(help="One pool; default: all.")] = "",
    data: Data = Path("data"),
) -> None:
    """List deliveries by pool, and the months of the history that each one owns."""

    from pc_pipeline.loans.ingest import deliveries, pools
    from pc_pipeline.loans.ingest import history as delivered_history

    store = Store(data)
    rows = []
    for name in [pool] if pool else pools(store):
        until = [one for one in deliveries(store, name) if not as_of or one.as_of_month <= parse_month(as_of)]
        if not until:
            continue
        owners = delivered_history(store, name, as_of=as_of or None).owners
        owned = dict(owners.group_by("delivery").len().iter_rows())
        rows += [
            (
                name,
                one.id,
                f"{one.as_of_month:%Y-%m}",
                one.adapter,
                owned.get(one.id, 0),
                ", ".join(one.source),
            )
            for one in until
        ]
    if not rows:
        typer.echo(f"nothing was delivered to {data}" + (f" by {as_of}" if as_of else ""))
        return
    names = ["pool", "delivery", "as of", "adapter", "months it owns", "files"]
    print_frame(pl.DataFrame(rows, schema=names, orient="row"), "deliveries")


def add_ingest_commands(app: typer.Typer) -> None:
    """Put the commands on `pc`."""
    app.command()(ingest)
    app.command("map")(map_columns)
    app.command("history")(list_history)
