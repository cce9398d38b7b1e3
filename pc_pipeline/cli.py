"""What Dagster does not do: look at a file, map it, check and price a deal, query the store.

The commands that run assets are in `orchestration.commands`; `__main__` joins both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from pc_pipeline.core.errors import PcError
from pc_pipeline.core.store import Store

app = typer.Typer(
    name="pc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a loan tape to a tranche report.",
)
deal_app = typer.Typer(no_args_is_help=True, help="Check and run deals.")
app.add_typer(deal_app, name="deal")

Data = Annotated[Path, typer.Option("--data", help="Folder of the store.", envvar="PC_DATA")]


def print_error(error: PcError) -> None:
    """The error, readable, on stderr."""
    head, *rest = str(error).split("\n")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{type(error).__name__}[/bold red] ", end="")
    console.print(head, markup=False)
    for line in rest:
        console.print(line, markup=False)


def print_frame(frame: object, title: str = "") -> None:
    """A polars frame as a console table."""
    table = RichTable(title=title or None, title_justify="left", header_style="bold")
    for name in frame.columns:  # type: ignore[attr-defined]
        table.add_column(name)
    for row in frame.iter_rows():  # type: ignore[attr-defined]
        table.add_row(*("" if value is None else _cell(value) for value in row))
    Console().print(table)


def _cell(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


@app.command()
def ingest(
    files: Annotated[list[Path], typer.Argument(help="Tape files or folders.")],
    adapter: Annotated[str, typer.Option(help="Format; default: recognised from the content.")] = "",
    mapping: Annotated[str, typer.Option(help="YAML mapping of your columns to ours.")] = "",
    as_of: Annotated[str, typer.Option(help="Cut-off month YYYY-MM.")] = "",
    rejected: Annotated[Path | None, typer.Option(help="Write refused rows to this CSV.")] = None,
) -> None:
    """Read a tape as `run` would and say what was accepted, repaired and refused."""
    from pc_pipeline.engines.stages import quarantine_reasons
    from pc_pipeline.loans.ingest import read_tape

    for file in files:
        result = read_tape(file, adapter=adapter or None, mapping=mapping or None, as_of=as_of or None)
        typer.echo(
            f"{file}: {result.adapter}; {result.loans.height} loans, {result.panel.height} loan-months, "
            f"{result.quarantine.height} rows refused; as of {result.as_of:%Y-%m}"
        )
        typer.echo(f"rule: {result.rule}")
        if result.quarantine.height:
            print_frame(quarantine_reasons(result.quarantine), "refused rows")
        if rejected is not None:
            result.quarantine.write_csv(rejected)


@app.command()
def tables(data: Data = Path("data")) -> None:
    """List the stored tables."""
    store = Store(data)
    listing = RichTable(header_style="bold")
    for name in ("table", "partitions", "rows"):
        listing.add_column(name)
    for folder in sorted((data / "tables").glob("*")):
        if store.has_table(folder.name):
            rows = store.query(f'SELECT count(*) AS n FROM "{folder.name}"')["n"][0]
            listing.add_row(folder.name, ", ".join(store.scenarios(folder.name)), f"{rows:,}")
    Console().print(listing)


@app.command()
def sql(query: Annotated[str, typer.Argument(help="Any SELECT.")], data: Data = Path("data")) -> None:
    """Run SQL over the stored tables."""
    print_frame(Store(data).query(query))


@deal_app.command("check")
def deal_check(file: Annotated[Path, typer.Argument(help="Deal YAML.")]) -> None:
    """Check a deal's terms; errors name the clause."""
    from pc_pipeline.waterfall import load_deal

    deal = load_deal(file)
    typer.echo(f"{file}: ok, {deal.name}, {len(deal.tranches)} tranches")


@app.command()
def recipes() -> None:
    """Show the recipes."""
    from pc_pipeline.recipes import RECIPES, describe_recipe

    typer.echo(json.dumps({name: describe_recipe(make()) for name, make in RECIPES.items()}, indent=2))
