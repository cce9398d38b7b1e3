"""What every command of `pc analyse` shares: its options, the open study, progress, where results go.

Here: `on_a_store`, which gives a command the common options, and `Asked`, which it is handed instead. Not
here: the commands (`analysis_commands`), the analyses (`engines.analysis`).
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pc_pipeline.cli import Data
from pc_pipeline.core.store import Store

if TYPE_CHECKING:
    from pc_pipeline.engines.analysis.study import Study

DealFile = Annotated[
    str, typer.Option("--deal", help="Deal YAML; default: the shipped one that fits the pool.")
]
Deals = Annotated[Path, typer.Option(help="Folder of the shipped deals.")]
Seed = Annotated[int, typer.Option(help="Of macro paths and loans.")]
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command works on.

    Attributes:
        study: the store's pool, models and deal. store: where results go.
    """

    study: Study
    store: Store

    @contextlib.contextmanager
    def work(self, what: str, steps: int | None = None) -> Iterator[Callable[[int, int], None]]:
        """Progress on a terminal while the block runs; yields what takes (steps done, steps in all)."""
        with working(what, steps) as done:
            yield done

    def keep(self, frames: Mapping[str, pl.DataFrame]) -> None:
        """Tables under `<store>/reports`."""
        for name, frame in frames.items():
            typer.echo(f"  {self.store.write_report(f'{name}.parquet', frame.write_parquet)}")

    def page(
        self,
        name: str,
        title: str,
        *,
        findings: Sequence[tuple[str, str]] = (),
        notes: Any = (),
        figures: Sequence[tuple[str, Any]] = (),
        tables: Mapping[str, pl.DataFrame] | None = None,
    ) -> None:
        """A page under `<store>/reports`: findings, figures, tables."""
        from pc_pipeline.reports.html import write_html

        # Tables of a run are written by their own rules; those of an analysis to four digits.
        rounded = pl.selectors.float().round_sig_figs(DIGITS)
        shown = {
            key: frame if key.endswith("_report") or not findings else frame.with_columns(rounded)
            for key, frame in (tables or {}).items()
        }

        def write(path: Path) -> None:
            write_html(path, shown, notes, title=title, figures=figures, findings=findings)

        with self.work("writing the page"):
            written = self.store.write_report(f"{name}.html", write)
        typer.echo(f"  {written}")


@contextlib.contextmanager
def working(what: str, steps: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar, or a spinner where the steps are unknown; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def on_a_store(command: Callable[..., None]) -> Callable[..., None]:
    """Hand a command the open study; its other options stay, the common ones are put behind them."""

    def run(
        *,
        deal: DealFile = "",
        deals_dir: Deals = Path("data/deals"),
        seed: Seed = 42,
        data: Data = Path("data"),
        **own: Any,
    ) -> None:
        store = Store(data)
        with working("reading the store"):
            from pc_pipeline.engines.analysis.study import Study

            study = Study.from_store(store, deal=deal, deals_dir=deals_dir, seed=seed)
        command(Asked(study=study, store=store), **own)

    own = _parameters(command)[1:]
    common = [one for one in _parameters(run) if one.kind is not inspect.Parameter.VAR_KEYWORD]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *common)]
    )
    run.__annotations__ = {one.name: one.annotation for one in (*own, *common)}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    """Parameters with their annotations resolved, where they are options."""
    known = {"Study": Any}
    hints = typing.get_type_hints(function, localns=known, include_extras=True)
    return [
        one.replace(annotation=hints.get(name, one.annotation))
        for name, one in inspect.signature(function).parameters.items()
    ]
