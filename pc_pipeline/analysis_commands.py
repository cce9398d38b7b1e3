"""Commands on a finished run: `pc analyse tails | sensitivities | reverse-stress | ...`.

Here: what they print and write. Not here: the analyses (`engines`). Each works on the store that `make run`
filled (pool and joint models), and writes its tables as Parquet and its figures as a page into the
store's `reports`. Heavy imports wait until a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer

from pc_pipeline.cli import Data, print_frame
from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.store import Store

if TYPE_CHECKING:
    from pc_pipeline.engines.analysis.study import Study

analyse_app = typer.Typer(no_args_is_help=True, help="Tails, sensitivities, reverse stress, attribution.")

DealFile = Annotated[
    str, typer.Option("--deal", help="Deal YAML; default: the shipped one that fits the pool.")
]
Deals = Annotated[Path, typer.Option(help="Folder of the shipped deals.")]
Scenario = Annotated[str, typer.Option(help="Scenario whose macro paths are meant.")]
Mix = Annotated[str, typer.Option(help="Scenarios with shares, e.g. baseline=0.6,severe=0.4.")]
Seed = Annotated[int, typer.Option(help="Of macro paths and loans.")]
PATHS = Annotated[int, typer.Option("--paths", help="Macro paths.")]
STANDARD_MIX = "baseline=0.60,adverse=0.20,severely_adverse=0.10,stagflation=0.10"


def read_mix(text: str) -> dict[str, float]:
    """'a=0.6,b=0.4' or 'a' -> shares.

    Raises:
        ConfigError: not readable.
    """
    if "=" not in text:
        return {text.strip(): 1.0}
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ConfigError("cannot read the mix", expected="name=share,name=share", got=text) from None


def open_study(data: Path, deal: str, deals_dir: Path, seed: int) -> Study:
    """The store's pool, models and deal; trained scenarios only."""
    from pc_pipeline.engines.analysis.study import Study

    return Study.from_store(Store(data), deal=deal, deals_dir=deals_dir, seed=seed)


def _keep(data: Path, frames: dict[str, pl.DataFrame]) -> None:
    """Tables under `<store>/reports/analysis`."""
    store = Store(data)
    for name, frame in frames.items():
        path = store.write_report(f"{name}.parquet", frame.write_parquet)
        typer.echo(f"  {path}")


def _page(
    data: Path,
    name: str,
    title: str,
    notes: list[tuple[str, str]],
    figures: list[tuple[str, Any]],
    frames: dict[str, pl.DataFrame] | None = None,
) -> None:
    """A page under `<store>/reports`; `frames` are those of a run, for its headline."""
    from pc_pipeline.reports.html import write_html

    def write(path: Path) -> None:
        write_html(path, frames or {}, notes, title=title, figures=figures)

    typer.echo(f"  {Store(data).write_report(name, write)}")


@analyse_app.command("tails")
def tails(
    mix: Mix = STANDARD_MIX,
    paths: PATHS = 1000,
    plain: Annotated[bool, typer.Option("--plain", help="Plain sampling, all paths alike.")] = False,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """Losses of a scenario mix with paths drawn along the loss: narrow intervals in the tail."""
    from pc_pipeline.engines.analysis.mix import simulate_mix

    study = open_study(data, deal, deals_dir, seed)
    run = simulate_mix(study, read_mix(mix), paths, is_plain=plain)
    typer.echo(f"{run.source}; {paths:,} paths, effective {run.results.effective_paths:,.0f}")
    print_frame(run.results.summary())
    _keep(data, {"analysis_tails": run.results.summary()})


@analyse_app.command("scenarios")
def scenarios_command(
    paths: PATHS = 400,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """Every trained scenario, paths drawn along the loss: measures with intervals, and a page of figures."""
    from pc_pipeline.engines.analysis.mix import simulate_mix
    from pc_pipeline.engines.stages.learning import trained_scenarios

    study = open_study(data, deal, deals_dir, seed)
    runs = [simulate_mix(study, {name: 1.0}, paths) for name in trained_scenarios(study.macro_vae)]
    named = [run.results.frames() for run in runs]
    frames = {key: pl.concat([one[key] for one in named]) for key in named[0]}
    names = [run.results.scenario for run in runs]
    wide = frames["pool_report"].pivot(on="measure", index="scenario", values="value")
    print_frame(wide, f"{len(names)} scenarios, {paths:,} paths each", digits=4)
    _keep(data, {"analysis_scenarios": frames["pool_report"]})
    _page(data, "scenarios.html", "Scenarios", [("run: paths", runs[0].source)], [], frames)


@analyse_app.command("sensitivities")
def sensitivities_command(
    scenario: Scenario = "baseline",
    paths: PATHS = 8,
    lines: Annotated[int, typer.Option(help="Representative loans.")] = 64,
    soft: Annotated[bool, typer.Option("--soft", help="Soft gates: see tests about to flip.")] = False,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """Derivatives of expected losses and returns to macro series by month, loan attributes, deal terms."""
    from pc_pipeline.engines.analysis.sensitivities import POOL, sensitivities
    from pc_pipeline.reports.analysis_plots import sensitivity_heat_map

    study = open_study(data, deal, deals_dir, seed)
    found = sensitivities(study, scenario, n_paths=paths, n_lines=lines, gate="soft" if soft else "hard")
    by_series = found.by_series().unpivot(index="target", variable_name="series", value_name="per_sd")
    print_frame(
        by_series.filter(by_series["per_sd"] != 0).sort("target", maintain_order=True),
        f"{scenario}: a whole series moves by one standard deviation",
    )
    for frame, name, title in (
        (found.loans, "attribute", "per unit of a loan attribute (those that are not zero)"),
        (found.deal, "term", "per unit of a deal term (those that are not zero)"),
    ):
        print_frame(frame.filter(frame["per_unit"] != 0).select("target", name, "per_unit"), title)
    _keep(
        data,
        {
            "sensitivities_macro": found.macro,
            "sensitivities_loans": found.loans,
            "sensitivities_deal": found.deal,
        },
    )
    figures = [(f"Sensitivity of {name}", sensitivity_heat_map(found.macro, name)) for name in [POOL]]
    _page(data, "sensitivities.html", f"Sensitivities, {scenario}", [("run: scenario", scenario)], figures)


@analyse_app.command("reverse-stress")
def reverse_stress_command(
    target: Annotated[str, typer.Option(help="pool=0.10, loss=Senior[:1], oc=oc_Senior[:24].")] = "pool=0.10",
    scenario: Annotated[str, typer.Option(help="Scenario, or 'all'.")] = "all",
    starts: Annotated[int, typer.Option(help="Searches.")] = 4,
    lines: Annotated[int, typer.Option(help="Representative loans of the search.")] = 64,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """The most plausible macro path at which a target is hit, confirmed by simulation along it."""
    from pc_pipeline.engines.analysis.reverse_stress import FARTHEST, all_scenarios, read_target
    from pc_pipeline.engines.stages.learning import trained_scenarios
    from pc_pipeline.reports.analysis_plots import reverse_stress_paths

    wanted = read_target(target)
    study = open_study(data, deal, deals_dir, seed)
    names = list(trained_scenarios(study.macro_vae)) if scenario == "all" else [scenario]
    found = all_scenarios(study, wanted, names, n_starts=starts, n_lines=lines)
    missing = [name for name in names if name not in {one.scenario for one in found}]
    if missing:
        reach = f"{starts} starts, up to {FARTHEST:g} standard deviations"
        typer.echo(f"{wanted}: none found under {', '.join(missing)} ({reach})")
    if not found:
        raise typer.Exit(1)
    for one in found:
        typer.echo(one.summary())
    frame = pl.concat([one.frame() for one in found])
    _keep(data, {"reverse_stress": frame})
    figures = [(one.summary(), reverse_stress_paths(one.frame())) for one in found]
    _page(data, "reverse_stress.html", f"Reverse stress: {wanted}", [("run: target", str(wanted))], figures)


@analyse_app.command("attribution")
def attribution_command(
    mix: Mix = STANDARD_MIX,
    paths: PATHS = 400,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """Expected loss and CVaR of pool and classes split over loans, cohorts, scenarios, series, sources."""
    from pc_pipeline.engines.analysis.attribution import attribute
    from pc_pipeline.engines.analysis.mix import simulate_mix
    from pc_pipeline.reports.analysis_plots import attribution_bars

    study = open_study(data, deal, deals_dir, seed)
    run = simulate_mix(study, read_mix(mix), paths)
    found = attribute(study, run.results, run.macro_PTM)
    for name, frame in found.frames().items():
        if name not in ("attribution_loan", "attribution_cohort"):
            print_frame(frame, name)
    _keep(data, found.frames())
    keys = {"asset_class": found.by("asset_class"), "scenario": found.scenarios}
    keys |= {"series": found.series, "source": found.sources}  # type: ignore[dict-item]
    figures = [
        (f"Pool losses by {key.replace('_', ' ')}", attribution_bars(frame, key))
        for key, frame in keys.items()
        if frame is not None
    ]
    _page(data, "attribution.html", "Attribution", run.results.notes(), figures, run.results.frames())


@analyse_app.command("pool-change")
def pool_change_command(
    remove: Annotated[str, typer.Option(help="loan_id,loan_id,... or an SQL condition on the pool.")],
    mix: Mix = "baseline",
    paths: PATHS = 400,
    full: Annotated[bool, typer.Option("--full", help="Check against a full run.")] = False,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """What a loan or a block contributes: the pool without it, by reuse of the run."""
    from pc_pipeline.engines.analysis.mix import pick_loans, simulate_mix
    from pc_pipeline.engines.analysis.pool_changes import PoolChanges, compare

    study = open_study(data, deal, deals_dir, seed)
    loans = pick_loans(study, remove)
    run = simulate_mix(study, read_mix(mix), paths, is_plain=True)
    changes = PoolChanges(study, run.macro_PTM, run.simulated)
    found = changes.remove(loans)
    typer.echo(f"{found.n_loans:,} loans, balance {found.balance:,.2f}")
    print_frame(found.table, "without the block")
    if full:
        print_frame(compare(found.after, changes.full_run(loans)), "against a full run (after = full run)")
    _keep(data, {"pool_change": found.table})


@analyse_app.command("uncertainty")
def uncertainty_command(
    mix: Mix = "baseline",
    members: Annotated[int, typer.Option(help="Models trained on resampled histories, 2 or more.")] = 3,
    paths: PATHS = 200,
    deal: DealFile = "",
    deals_dir: Deals = Path("data/deals"),
    seed: Seed = 42,
    data: Data = Path("data"),
) -> None:
    """Figures over an ensemble of models retrained on resamples; variance split by where it comes from."""
    from pc_pipeline.engines.analysis.uncertainty import carry, uncertainty
    from pc_pipeline.models.checkpoint import load_model
    from pc_pipeline.reports.analysis_plots import uncertainty_bars
    from pc_pipeline.training.ensemble import EnsembleConfig, train_ensemble

    if members < 2:
        raise ConfigError("one model has no spread", expected="2 members or more", got=members)
    study, store = open_study(data, deal, deals_dir, seed), Store(data)
    teacher = load_model(store.model_folder("joint_model") / "loan_trajectory")[0]
    found = train_ensemble(
        study.transition_model.requires_grad_(True),
        teacher,
        store.read_table("loan_tape"),
        store.read_table("loan_panel"),
        store.read_table("macro_scenarios"),
        EnsembleConfig(members=members, seed=seed),
    )
    networks = [member.transitions.requires_grad_(False).eval() for member in found]
    table = uncertainty(carry(study, networks, read_mix(mix), paths))
    print_frame(table, f"{members} members, two families")
    _keep(data, {"uncertainty": table})
    figures = [("Expected loss and where its uncertainty comes from", uncertainty_bars(table))]
    _page(data, "uncertainty.html", "Model uncertainty", [("run: mix", mix)], figures)


def add_analysis_commands(app: typer.Typer) -> None:
    """Put the commands on `pc`."""
    app.add_typer(analyse_app, name="analyse")
