"""What Dagster does not do: check and price a deal, query the store, print.

The commands on delivered files are in `ingest_commands`, those that run assets in `orchestration.commands`;
`__main__` joins them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from pc_pipeline.core.errors import PcError
from pc_pipeline.core.store import Store
from pc_pipeline.reports import formats

if TYPE_CHECKING:
    import polars as pl

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


_LONGEST_WHOLE = 24  # characters of a cell that are kept on one line


def print_frame(frame: pl.DataFrame, title: str = "", digits: int = 6, *, is_worded: bool = False) -> None:
    """A frame as a console table; numbers to so many digits.

    Args:
        is_worded: headings in words, which wrap; else the columns' own names, as a query would use them.
    """
    table = RichTable(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    cells = [["" if value is None else _cell(value, digits) for value in column] for column in frame]
    for name, dtype, column in zip(frame.columns, frame.dtypes, cells, strict=True):
        longest = max((len(cell) for cell in column), default=0)
        table.add_column(
            name.replace("_", " ") if is_worded else name,
            overflow="fold",  # an identifier cut short cannot be used
            justify="right" if dtype.is_numeric() else "left",
            min_width=min(longest, _LONGEST_WHOLE),
        )
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    Console().print(table)


def _cell(value: object, digits: int) -> str:
    return f"{value:,.{digits}g}" if isinstance(value, float) else str(value)


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


@app.command()
def rate(
    table: Annotated[Path, typer.Argument(help="CSV of published cumulative default rates.")],
    data: Data = Path("data"),
) -> None:
    """Indicative ratings: simulated tranche losses against a published table of default rates."""
    from pc_pipeline.evaluation.ratings import implied_ratings, read_default_rates

    rates = read_default_rates(table)
    rated = implied_ratings(Store(data).query("SELECT * FROM tranche_report"), rates)
    shown = rated.select("scenario", "tranche", "life_years", "loss_probability", "implied_by_probability",
                         "best", "worst", "expected_loss", "implied_by_loss")  # fmt: skip
    shown.columns = ["scenario", "tranche", "years", "P(loss)", "grade", "best", "worst", "EL", "by EL"]
    print_frame(shown, f"Indicative, against {rates.source}; best and worst: ends of the interval", digits=3)


Json = Annotated[bool, typer.Option("--json", help="Everything, by payment date, as JSON.")]


def print_deal(answer: dict[str, Any], as_json: bool) -> None:
    """A deal's figures: all of them as JSON, or one line per class."""
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    scale, word = formats.money_scale(max(f["opening_balance"] for f in answer["classes"].values()))
    table = RichTable(
        title=f"{answer['deal']}, {answer['currency']} {word}".strip(),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # nine columns fit a terminal of 80
        show_edge=False,
        pad_edge=False,
    )
    for name in ("class", "opening", "interest", "principal", "WAL\nyears", "IRR", "yield", "price", "loss"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, figures in answer["classes"].items():
        money = [f"{figures[n] / scale:,.2f}" for n in ("opening_balance", "interest", "principal")]
        table.add_row(
            name,
            *money,
            _two_digits(figures.get("wal_years")),
            formats.percent(figures.get("irr")),
            _percent_points(figures.get("yield_percent")),
            _two_digits(figures.get("price")),
            _percent_points(figures.get("loss_percent")),
        )
    Console().print(table)
    left = answer["pool_outstanding_percent"]
    if left > 0:
        typer.echo(
            f"The collections end with {left:.1f} % of the pool outstanding: loss is what has not been\n"
            "repaid so far, and the returns count that as lost."
        )
    typer.echo("payment by payment: --json")


def _two_digits(value: float | None) -> str:
    return formats.MISSING if formats.is_missing(value) else f"{value:,.2f}"


def _percent_points(value: float | None) -> str:
    """A figure that is in percent already."""
    return formats.percent(None if value is None else value / 100.0)


@deal_app.command("check")
def deal_check(file: Annotated[Path, typer.Argument(help="Deal YAML.")]) -> None:
    """Check a deal's terms; errors name the line and the clause."""
    from pc_pipeline.waterfall.deal import load_deal

    deal = load_deal(file)
    typer.echo(f"{file}: ok, {deal.name}, {len(deal.tranches)} classes")


@deal_app.command("run")
def deal_run(
    file: Annotated[Path, typer.Argument(help="Deal YAML.")],
    collections: Annotated[Path, typer.Option(help="CSV of collections by month.")],
    pool_balance: Annotated[float | None, typer.Option(help="Opening pool, currency.")] = None,
    index_rate: Annotated[str | None, typer.Option(help="Index of floating coupons, decimal.")] = None,
    price: Annotated[float, typer.Option(help="Percent of opening balance, for yields.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Run a deal on given collections."""
    from pc_pipeline.waterfall.desk import run_deal_json, vector

    index = None if index_rate is None else vector(index_rate)
    print_deal(
        run_deal_json(file, collections, pool_balance=pool_balance, index_rate=index, price=price / 100.0),
        as_json,
    )


@app.command()
def price(
    file: Annotated[Path, typer.Argument(help="Deal YAML.")],
    pool: Annotated[Path, typer.Option(help="CSV of loans or rep lines: balance, rate, remaining_term, ...")],
    cpr: Annotated[str | None, typer.Option(help="Prepayment, percent per year.")] = None,
    psa: Annotated[str | None, typer.Option(help="Prepayment, percent of PSA.")] = None,
    abs_speed: Annotated[str | None, typer.Option("--abs", help="ABS speed, percent.")] = None,
    cdr: Annotated[str | None, typer.Option(help="Default, percent per year.")] = None,
    sda: Annotated[str | None, typer.Option(help="Default, percent of SDA.")] = None,
    severity: Annotated[str, typer.Option(help="Loss severity, percent.")] = "40",
    lag: Annotated[int, typer.Option(help="Months from default to recovery.")] = 0,
    advances: Annotated[bool, typer.Option(help="The servicer advances.")] = False,
    convention: Annotated[str, typer.Option(help="bma or default_first.")] = "bma",
    index_rate: Annotated[str | None, typer.Option(help="Index of floating coupons, decimal.")] = None,
    roll_months: Annotated[int, typer.Option(help="Months delinquent before default, for haircuts.")] = 0,
    roll_rate: Annotated[float, typer.Option(help="Share of delinquent balance that defaults.")] = 1.0,
    at_price: Annotated[float, typer.Option("--price", help="Percent of balance, for yields.")] = 100.0,
    at_yield: Annotated[float | None, typer.Option("--yield", help="Percent, for prices.")] = None,
    as_json: Json = False,
) -> None:
    """Project a pool at stated speeds and price a deal on it, no models involved.

    A speed, the severity or the index is a number, or a vector by month: 2x12,5x12,8 is 2 for a year, 5 for a
    year, then 8.
    """
    from pc_pipeline.waterfall.desk import price_deal_json, vector

    def given(text: str | None) -> Any:
        return None if text is None else vector(text)

    answer = price_deal_json(
        file,
        pool,
        cpr=given(cpr),
        psa=given(psa),
        abs_speed=given(abs_speed),
        cdr=given(cdr),
        sda=given(sda),
        severity=vector(severity),
        lag=lag,
        advances=advances,
        convention=convention,
        roll_months=roll_months,
        roll_rate=roll_rate,
        index_rate=given(index_rate),
        price=at_price,
        yield_percent=at_yield,
    )
    print_deal(answer, as_json)


@app.command()
def recipes() -> None:
    """Show the recipes."""
    from pc_pipeline.recipes import RECIPES, describe_recipe

    typer.echo(json.dumps({name: describe_recipe(make()) for name, make in RECIPES.items()}, indent=2))
