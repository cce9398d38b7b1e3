"""Stages that make tables: macro paths, tape, panel, transitions, pool."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import add_months, month_range
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store, replace_file
from pc_pipeline.engines.results import macro_fan as quantiles_by_month
from pc_pipeline.engines.stages.landing import Landing, claim_store, read_landing
from pc_pipeline.engines.stages.scoring import ScoringSet, fresh_test_set, held_out_rows, learning_rows
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.pool import pool_snapshot, scheduled_pool
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.scenarios.calibration import calibrate
from pc_pipeline.scenarios.definitions import ScenarioDefinition, load_scenarios, standard_scenario
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.scenarios.history import MacroHistory, load_history
from pc_pipeline.scenarios.supervisory import load_supervisory
from pc_pipeline.schemas.states import LOAN_STATE_NAMES
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import (
    ASSET_CLASSES,
    MACRO_NAMES,
    MACRO_SERIES,
    OBSERVED,
    STANDARD_SCENARIOS,
    canonical_scenario,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TapeConfig:
    """The generated pool.

    Attributes:
        n_loans: number of loans.
        n_months: panel months from the first vintage.
        n_vintages: months over which loans originate.
        start_month: first vintage, YYYY-MM.
        n_paths: macro paths of each scenario that the loans are spread over.
        seed: of tape and panel.
    """

    n_loans: int = 1000
    n_months: int = 60
    n_vintages: int = 12
    start_month: str = "2020-01"
    n_paths: int = 32
    seed: int = 42

    def __post_init__(self) -> None:
        if min(self.n_loans, self.n_months, self.n_vintages) < 1 or self.n_vintages >= self.n_months:
            raise ConfigError(
                "no such tape", expected="n_loans >= 1 and 1 <= n_vintages < n_months", got=self
            )

    def generator(self) -> LoanTapeGenerator:
        """The generator of this tape."""
        return LoanTapeGenerator(
            n_loans=self.n_loans,
            n_months=self.n_months,
            n_vintages=self.n_vintages,
            start_date=f"{self.start_month}-01",
            random_seed=derive_seed(self.seed, "tape"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MacroPathsConfig:
    """The macro paths of each scenario.

    Attributes:
        n_paths: draws per scenario.
        n_months: length of each.
        start_month: first month for a generated pool; a real tape starts after its last month.
        seed: shared by all scenarios, so that differences between them are not noise.
    """

    n_paths: int = 64
    n_months: int = 60
    start_month: str = "2020-01"
    seed: int = 42


@dataclass(frozen=True, slots=True)
class MacroPaths:
    """Table `macro_scenarios` of one scenario, and where it came from."""

    frame: pl.DataFrame
    source: str


@dataclass(frozen=True, slots=True)
class PanelTables:
    """Tables `loan_panel` and `recoveries` of one scenario."""

    panel: pl.DataFrame
    recoveries: pl.DataFrame


# ---- macro -----------------------------------------------------------------------------------


def _scenario_folder(store: Store) -> Path:
    return store.root / "scenarios"


def keep_scenarios(store: Store, file: Path) -> list[str]:
    """Check a file of custom scenarios and keep it in the store; returns their names.

    Raises:
        ConfigError: the file breaks the scenario contract or takes a standard name.
    """
    definitions = _read_scenarios(file)
    taken = [d.name for d in definitions if canonical_scenario(d.name) in (*STANDARD_SCENARIOS, OBSERVED)]
    if taken:
        raise ConfigError("a custom scenario takes a reserved name", expected="another name", got=taken)
    for definition in definitions:
        with replace_file(_scenario_folder(store) / f"{definition.name}.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(definition.to_dict(), sort_keys=False))
    return [definition.name for definition in definitions]


def _read_scenarios(path: Path) -> list[ScenarioDefinition]:
    """Custom scenarios of a YAML file, or supervisory projections of a folder or CSV."""
    if path.is_dir() or path.suffix.lower() == ".csv":
        return load_supervisory(path)
    return load_scenarios(path)


def custom_scenarios(store: Store) -> dict[str, ScenarioDefinition]:
    """The kept custom scenarios by name."""
    folder = _scenario_folder(store)
    files = sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    return {definition.name: definition for file in files for definition in load_scenarios(file)}


def find_scenario(store: Store, name: str) -> ScenarioDefinition:
    """A standard or kept custom scenario.

    Raises:
        ConfigError: there is none of that name.
    """
    if canonical_scenario(name) in STANDARD_SCENARIOS:
        return standard_scenario(name)
    custom = custom_scenarios(store)
    if name not in custom:
        raise ConfigError("unknown scenario", expected=", ".join([*STANDARD_SCENARIOS, *custom]), got=name)
    return custom[name]


def macro_paths(store: Store, config: MacroPathsConfig, scenario: str, history: str = "") -> MacroPaths:
    """Paths of one scenario; for a real tape they begin where its real history ends."""
    landing = read_landing(store)
    if landing is None:
        generator = MacroScenarioGenerator(
            n_months=config.n_months, start_date=f"{config.start_month}-01", random_seed=config.seed
        )
        table = macro_table(generator, find_scenario(store, scenario), config.n_paths)
        return MacroPaths(table, "generator, decided calibration")
    source = history or landing.history
    real = load_history(source) if source else None
    if scenario == OBSERVED:
        return _observed_macro(store, landing, real)
    start = add_months(landing.as_of_month, 1)
    assumptions = initial = None
    if real is not None:
        past = history_until(real, landing.as_of_month)
        assumptions = calibrate(past)
        initial = past.last_values()
    generator = MacroScenarioGenerator(
        n_months=config.n_months,
        start_date=start.isoformat(),
        random_seed=config.seed,
        assumptions=assumptions,
        initial=initial,
    )
    table = macro_table(generator, find_scenario(store, scenario), config.n_paths)
    named = (
        f"generator calibrated to {Path(source).name}"
        if real is not None
        else "generator, decided calibration"
    )
    return MacroPaths(table, named)


def with_current_scenarios(
    store: Store, config: MacroPathsConfig, macro: pl.DataFrame, history: str = ""
) -> pl.DataFrame:
    """Stored macro paths, with every standard scenario that is missing or begins elsewhere drawn anew.

    A new tape moves the month at which scenarios begin; models must not learn from the old ones.
    """
    landing = read_landing(store)
    if landing is None:
        return macro
    start = add_months(landing.as_of_month, 1)
    first = macro.group_by("scenario").agg(pl.col("month").min().alias("first"))
    current = first.filter((pl.col("scenario") == OBSERVED) | (pl.col("first") == start))[
        "scenario"
    ].to_list()
    missing = [name for name in STANDARD_SCENARIOS if name not in current]
    drawn = [macro_paths(store, config, name, history).frame for name in missing]
    return pl.concat([macro.filter(pl.col("scenario").is_in(current)), *drawn])


def history_until(real: MacroHistory, as_of: date) -> MacroHistory:
    """What was known of a history at a date; nothing later may shape a calibration."""
    past = real.frame.filter(pl.col("month") <= as_of)
    if past.is_empty():
        raise ConfigError(
            "macro history begins after the tape ends", expected=f"<= {as_of}", got=real.coverage
        )
    return dataclasses.replace(real, frame=past)


def _observed_macro(store: Store, landing: Landing, real: MacroHistory | None) -> MacroPaths:
    panel = store.read_table("landing_panel")
    last = landing.as_of_month
    first = panel["reporting_month"].min() if panel.height else last
    if not isinstance(first, date):
        raise ConfigError("the landed panel has no months", expected="dates", got=first)
    months = pl.DataFrame({"month": _months_between(add_months(first, -12), last)})
    if real is None:
        values = months.with_columns(pl.lit(s.mean).alias(s.name) for s in MACRO_SERIES)
        source = "no macro history: flat at the baseline means"
    else:
        values = months.join(real.frame, on="month", how="left").sort("month")
        missing = values.filter(pl.any_horizontal(pl.col(MACRO_NAMES).is_null()))
        if missing.height:
            raise ConfigError(
                "macro history does not cover the panel",
                expected=f"{months['month'][0]} .. {months['month'][-1]}",
                got=f"{missing.height} months without values, first {missing['month'][0]}",
            )
        source = "real history"
    frame = values.select(
        pl.lit(OBSERVED).alias("scenario"), pl.lit(0, pl.Int64).alias("macro_path_id"), "month", *MACRO_NAMES
    )
    return MacroPaths(validate("macro_scenarios", frame), source)


def _months_between(first: date, last: date) -> list[date]:
    return month_range(first, (last.year - first.year) * 12 + last.month - first.month + 1)


def macro_fan(paths: MacroPaths) -> pl.DataFrame:
    """Table `macro_fan_report` of one scenario's stored paths."""
    ordered = paths.frame.sort("macro_path_id", "month")
    values = ordered.select(MACRO_NAMES).to_numpy()
    n_paths = ordered["macro_path_id"].n_unique()
    return quantiles_by_month(values.reshape(n_paths, -1, len(MACRO_NAMES)), ordered["scenario"][0])


# ---- loans -----------------------------------------------------------------------------------


def _learning_config(store: Store, config: TapeConfig) -> TapeConfig:
    """The generated tape, beginning where a landed tape without history ends."""
    landing = read_landing(store)
    if landing is None:
        return config
    return dataclasses.replace(config, start_month=f"{add_months(landing.as_of_month, 1):%Y-%m}")


def has_real_history(store: Store) -> bool:
    """Whether models learn from a real panel."""
    landing = read_landing(store)
    return landing is not None and landing.has_history


def loan_tape(store: Store, config: TapeConfig) -> pl.DataFrame:
    """Table `loan_tape`, the loans that models learn from: the landed tape, or a generated one.

    A landed tape without history has nothing to learn from: its pool is simulated with models of
    generated loans, and the report says so.
    """
    if has_real_history(store):
        return store.read_table("landing_loans")
    if read_landing(store) is None:
        claim_store(store, pool=f"generated {config}")
    return _learning_config(store, config).generator().generate_static_features()


def loan_panel(
    store: Store, config: TapeConfig, scenario: str, tape: pl.DataFrame, macro: pl.DataFrame
) -> PanelTables:
    """Tables `loan_panel` and `recoveries` of one scenario.

    A real pool has one history: partition 'observed' holds it, the scenarios' partitions are empty.
    """
    if has_real_history(store):
        panel, recoveries = store.read_table("landing_panel"), store.read_table("landing_recoveries")
        return (
            PanelTables(panel, recoveries)
            if scenario == OBSERVED
            else PanelTables(panel.clear(), recoveries.clear())
        )
    if scenario == OBSERVED:
        raise ConfigError("a generated pool has no observed history", expected="a landed tape", got="none")
    lived = macro.filter(pl.col("macro_path_id") < config.n_paths)
    book: LoanBook = _learning_config(store, config).generator().generate_scenario(lived)
    if not book.loans["loan_id"].equals(tape["loan_id"]):
        raise ConfigError("tape and panel come from different recipes", expected="the stored tape's loans")
    return PanelTables(book.panel, book.recoveries)


def transitions(panel: pl.DataFrame, tape: pl.DataFrame) -> pl.DataFrame:
    """Table `transitions`: moves of the loans that may be learned from (`scoring.learning_rows`).

    Raises:
        ConfigError: the panel shows no move at all, so that nothing can be learned from it.
    """
    table = transition_table(learning_rows(panel), tape)
    if table.is_empty():
        raise ConfigError(
            "the panel shows no monthly move",
            expected="loans reported in consecutive months",
            got=f"{panel.height} rows of {panel['loan_id'].n_unique()} loans",
        )
    return table


def transition_matrix(table: pl.DataFrame) -> np.ndarray:
    """(7, 7) shares by from-state of all counted moves; absorbing rows are the identity."""
    counts = np.zeros((7, 7))
    sums = table.group_by("from_state", "to_state").agg(pl.col("n_moves").sum())
    counts[sums["from_state"].to_numpy(), sums["to_state"].to_numpy()] = sums["n_moves"].to_numpy()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    shares[[4, 5, 6], [4, 5, 6]] = 1.0
    return shares


def pool(store: Store, tape: pl.DataFrame) -> pl.DataFrame:
    """Table `pool`: a fresh pool at origination, or the living loans of a real one at its last month."""
    landing = read_landing(store)
    if landing is None:
        return pool_snapshot(tape)
    if not landing.has_history:
        loans, panel = store.read_table("landing_loans"), store.read_table("landing_panel")
        if panel.is_empty():
            return scheduled_pool(loans, landing.as_of_month)
        return pool_snapshot(loans, panel, as_of=landing.as_of_month)
    return pool_snapshot(tape, store.read_table("landing_panel"), as_of=landing.as_of_month)


def scoring_set(
    store: Store,
    tape_config: TapeConfig,
    macro_config: MacroPathsConfig,
    panel: pl.DataFrame,
    tape: pl.DataFrame,
    macro: pl.DataFrame,
) -> ScoringSet:
    """Loans that no model has seen: fresh ones of the generated world, or a real tape's held-out ones."""
    if has_real_history(store):
        held = held_out_rows(panel)
        return ScoringSet(panel=held, loans=tape, macro=macro.filter(pl.col("scenario") == OBSERVED))
    fresh = dataclasses.replace(macro_config, n_paths=8, seed=derive_seed(macro_config.seed, "test") % 2**31)
    paths = pl.concat([macro_paths(store, fresh, name).frame for name in STANDARD_SCENARIOS])
    generator = _learning_config(store, tape_config).generator()
    return fresh_test_set(generator, paths, n_loans=min(tape_config.n_loans, 1000))


def tape_profile(tape: pl.DataFrame) -> pl.DataFrame:
    """Loans, balance, mean rate and term by asset class."""
    return (
        tape.group_by("asset_class", maintain_order=True)
        .agg(
            pl.len().alias("loans"),
            pl.col("original_balance").sum().round(2),
            pl.col("interest_rate").mean().alias("mean rate"),
            pl.col("term_months").mean().alias("mean term"),
        )
        .sort(pl.col("asset_class").replace_strict(ASSET_CLASSES, list(range(4)), return_dtype=pl.Int8))
    )


def state_profile(panel: pl.DataFrame) -> pl.DataFrame:
    """Loan-months by state."""
    names = pl.DataFrame({"loan_state": range(7), "state": LOAN_STATE_NAMES})
    counts = panel.group_by("loan_state").agg(pl.len().alias("loan-months"))
    return names.join(counts, on="loan_state", how="left").fill_null(0).sort("loan_state").drop("loan_state")
