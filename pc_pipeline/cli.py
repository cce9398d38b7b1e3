"""What Dagster does not do: check and price a deal, query the store, print.

The commands on delivered files are in `ingest_commands`, those that run assets in `orchestration.commands`;
`__main__` joins them.
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
