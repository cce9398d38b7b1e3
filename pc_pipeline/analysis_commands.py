"""Commands on a finished run: `pc analyse tails | sensitivities | reverse-stress | ...`.

Here: what they ask and print. Not here: the analyses (`engines.analysis`), options that all of them have,
progress and pages (`analysis_desk`). Each works on the store that `make run` filled (pool and joint models),
and writes its tables as Parquet and its figures as a page into the store's `reports`. Heavy imports wait
until a command runs.
"""

from __future__ import annotations

from typing import Annotated

import polars as pl
import typer

from pc_pipeline.analysis_desk import Asked, on_a_store
from pc_pipeline.cli import print_frame
from pc_pipeline.core.errors import ConfigError

analyse_app = typer.Typer(no_args_is_help=True, help="Tails, sensitivities, reverse stress, attribution.")

Scenario = Annotated[str, typer.Option(help="Scenario whose macro paths are meant.")]
Mix = Annotated[str, typer.Option(help="Scenarios with shares, e.g. baseline=0.6,severe=0.4.")]
Paths = Annotated[int, typer.Option(help="Macro paths.")]
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


@analyse_app.command("tails")
@on_a_store
def tails(
    asked: Asked,
    mix: Mix = STANDARD_MIX,
    paths: Paths = 1000,
    plain: Annotated[bool, typer.Option("--plain", help="Plain sampling, all paths alike.")] = False,
) -> None:
    """Losses of a scenario mix with paths drawn along the loss: narrow intervals in the tail."""
    from pc_pipeline.engines.analysis.mix import simulate_mix

    shares = read_mix(mix)
    with asked.work("simulating"):
        run = simulate_mix(asked.study, shares, paths, is_plain=plain)
    typer.echo(f"{run.source}; {paths:,} paths, effective {run.results.effective_paths:,.0f}")
    print_frame(run.results.summary(), digits=4, is_worded=True)
    asked.keep({"analysis_tails": run.results.summary()})


@analyse_app.command("scenarios")
@on_a_store
def scenarios_command(asked: Asked, paths: Paths = 400) -> None:
    """Every trained scenario, paths drawn along the loss: measures with intervals, and a page of figures."""
    from pc_pipeline.engines.analysis.mix import simulate_mix
    from pc_pipeline.engines.results import macro_fan
    from pc_pipeline.engines.stages.learning import trained_scenarios

    study, runs = asked.study, []
    names = trained_scenarios(study.macro_vae)
    with asked.work("scenarios", len(names)) as done:
        for number, name in enumerate(names, start=1):
            runs.append(simulate_mix(study, {name: 1.0}, paths))
            done(number, len(names))
    named = [run.results.frames() for run in runs]
    frames = {key: pl.concat([one[key] for one in named]) for key in named[0]}
    fans = [macro_fan(study.macro(name, 256), name) for name in names]
    frames["macro_fan_report"] = pl.concat(fans)
    wide = frames["pool_report"].pivot(on="measure", index="scenario", values="value")
    print_frame(wide, f"{len(names)} scenarios, {paths:,} paths each", digits=4, is_worded=True)
    asked.keep({"analysis_scenarios": frames["pool_report"]})
    asked.page("scenarios", "Scenarios", notes=[("run: paths", runs[0].source)], tables=frames)


@analyse_app.command("sensitivities")
@on_a_store
def sensitivities_command(
    asked: Asked,
    scenario: Scenario = "baseline",
    paths: Paths = 8,
    lines: Annotated[int, typer.Option(help="Representative loans.")] = 64,
    soft: Annotated[bool, typer.Option("--soft", help="Soft gates: see tests about to flip.")] = False,
) -> None:
    """Derivatives of expected losses and returns to macro series by month, loan attributes, deal terms."""
    from pc_pipeline.engines.analysis.sensitivities import check_by_bumps, inputs, sensitivities
    from pc_pipeline.reports.analysis_plots import sensitivity_heat_map

    study, gate = asked.study, "soft" if soft else "hard"
    with asked.work("differentiating"):
        given = inputs(study, scenario, paths, lines)
        found = sensitivities(study, scenario, given=given, gate=gate)
    with asked.work("checking by bumps"):
        checks = check_by_bumps(study, found, given, gate)
    tables = {
        "macro, bps per sd of a whole series": found.by_series(),
        "loan attributes, per unit": found.wide(found.loans, "attribute"),
        "deal terms, per unit": found.wide(found.deal, "term"),
        "check, derivative against central difference": checks,
    }
    for title, frame in tables.items():
        print_frame(frame, f"{scenario}: {title}", digits=3, is_worded=True)
    asked.keep(
        {
            "sensitivities_macro": found.macro,
            "sensitivities_loans": found.loans,
            "sensitivities_deal": found.deal,
            "sensitivities_check": checks,
        }
    )
    moved = [name for name in found.values if name.endswith("loss") and found.moves(name)]
    figures = [(f"{name}: by series and month", sensitivity_heat_map(found.macro, name)) for name in moved]
    asked.page(
        "sensitivities",
        f"Sensitivities, {scenario}",
        findings=found.findings(),
        notes=[("run: scenario", scenario), ("run: macro paths", str(paths)), ("run: gates", gate)],
        figures=figures,
        tables=tables,
    )


@analyse_app.command("reverse-stress")
@on_a_store
def reverse_stress_command(
    asked: Asked,
    target: Annotated[str, typer.Option(help="pool=0.10, loss=Senior[:1], oc=oc_Senior[:24].")] = "pool=0.10",
    scenario: Annotated[str, typer.Option(help="Scenario, or 'all'.")] = "all",
    starts: Annotated[int, typer.Option(help="Searches.")] = 4,
    lines: Annotated[int, typer.Option(help="Representative loans of the search.")] = 64,
) -> None:
    """The most plausible macro path at which a target is hit, confirmed by simulation along it."""
    from pc_pipeline.engines.analysis.reverse_stress import all_scenarios, check_target, read_target
    from pc_pipeline.engines.stages.learning import trained_scenarios
    from pc_pipeline.reports.analysis_plots import reverse_stress_paths

    wanted = read_target(target)
    study = asked.study
    check_target(study, wanted)
    names = list(trained_scenarios(study.macro_vae)) if scenario == "all" else [scenario]
    with asked.work("searching", len(names)) as done:
        found, missing = all_scenarios(study, wanted, names, n_starts=starts, n_lines=lines, progress=done)
    findings = [(one.scenario, one.summary()) for one in found] + list(missing.items())
    for name, text in findings:
        typer.echo(text if name not in missing else f"{name}: {text}")
    tables = {} if not found else {"reverse stress": pl.concat([one.row() for one in found])}
    for frame in tables.values():
        print_frame(frame.drop("less_plausible", "lower", "upper", "starts"), digits=3, is_worded=True)
    asked.keep({} if not found else {"reverse_stress": pl.concat([one.frame() for one in found])})
    asked.page(
        "reverse_stress",
        f"Reverse stress: {wanted}",
        findings=findings,
        figures=[(f"{one.scenario}: {wanted}", reverse_stress_paths(one.frame())) for one in found],
        tables=tables,
    )


@analyse_app.command("attribution")
@on_a_store
def attribution_command(asked: Asked, mix: Mix = STANDARD_MIX, paths: Paths = 400) -> None:
    """Expected loss and CVaR of pool and classes split over loans, cohorts, scenarios, series, sources."""
    from pc_pipeline.engines.analysis.attribution import attribute
    from pc_pipeline.engines.analysis.mix import simulate_mix
    from pc_pipeline.reports import formats
    from pc_pipeline.reports.analysis_plots import attribution_bars

    study, shares = asked.study, read_mix(mix)
    with asked.work("simulating"):
        run = simulate_mix(study, shares, paths)
    with asked.work("splitting", 1) as done:
        found = attribute(study, run.results, run.macro_PTM, progress=done)
    tables = {
        f"by {key.replace('_', ' ')}, % of {of}": found.wide(key, of)
        for key in found.KEYS
        for of in found.losers()
        if found.has(key)
    }
    for title, frame in tables.items():
        print_frame(frame, title, digits=4, is_worded=True)
    asked.keep(found.frames())
    figures = [
        (
            f"{formats.humanize(of)}: by {key.replace('_', ' ')}",
            attribution_bars(found.table(key), key, of=of),
        )
        for of in found.losers()
        for key in found.KEYS
        if found.has(key)
    ]
    asked.page(
        "attribution",
        "Attribution",
        findings=found.findings(),
        notes=run.results.notes(),
        figures=figures,
        tables=tables,
    )


@analyse_app.command("pool-change")
@on_a_store
def pool_change_command(
    asked: Asked,
    remove: Annotated[str, typer.Option(help="loan_id,loan_id,... or an SQL condition on the pool.")],
    mix: Mix = "baseline",
    paths: Paths = 400,
    full: Annotated[bool, typer.Option("--full", help="Check against a full run.")] = False,
) -> None:
    """What a loan or a block contributes: the pool without it, by reuse of the run."""
    from pc_pipeline.engines.analysis.mix import pick_loans, simulate_mix
    from pc_pipeline.engines.analysis.pool_changes import PoolChanges, compare

    study, shares = asked.study, read_mix(mix)
    loans = pick_loans(study, remove)
    with asked.work("simulating"):
        run = simulate_mix(study, shares, paths, is_plain=True)
        changes = PoolChanges(study, run.macro_PTM, run.simulated)
        found = changes.remove(loans)
    typer.echo(f"{found.n_loans:,} loans, balance {found.balance:,.2f}")
    print_frame(found.table, "without the block", is_worded=True)
    if full:
        after = compare(found.after, changes.full_run(loans))
        print_frame(after, "against a full run (after = full run)", is_worded=True)
    asked.keep({"pool_change": found.table})


@analyse_app.command("uncertainty")
@on_a_store
def uncertainty_command(
    asked: Asked,
    mix: Mix = "baseline",
    members: Annotated[int, typer.Option(help="Models refitted to resampled histories, 2 or more.")] = 8,
    paths: Paths = 400,
) -> None:
    """Figures over an ensemble of models refitted to resamples; variance split by where it comes from."""
    from pc_pipeline.engines.analysis.uncertainty import (
        carry,
        findings,
        store_members,
        uncertainty,
        written_out,
    )
    from pc_pipeline.reports.analysis_plots import uncertainty_bars

    study, shares = asked.study, read_mix(mix)
    with asked.work("members", members) as done:
        found = store_members(study, asked.store, members, study.seed, done)
    with asked.work("simulating", members) as done:
        table = uncertainty(carry(study, found, shares, paths, done), study.seed)
    shown = written_out(table)
    print_frame(
        shown,
        f"{members} members, two families, {paths:,} paths: % and parts of the sd",
        digits=3,
        is_worded=True,
    )
    asked.keep({"uncertainty": table})
    asked.page(
        "uncertainty",
        "Model uncertainty",
        findings=findings(table),
        notes=[("run: mix", mix), ("run: members", str(members)), ("run: paths", f"{paths:,}")],
        figures=[("Expected loss and where its uncertainty comes from", uncertainty_bars(table))],
        tables={"figures, % and parts of the sd": shown},
    )


def add_analysis_commands(app: typer.Typer) -> None:
    """Put the commands on `pc`."""
    app.add_typer(analyse_app, name="analyse")
