"""One factory: table schemas and identities become asset checks.

A schema or identity check blocks what is downstream; a check of plausibility (scenario order, the model
against its baseline) warns. Every check reads what was stored, not what was meant to be stored.
"""

import warnings
from collections.abc import Callable

import dagster as dg
import polars as pl

from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import as_markdown
from pc_pipeline.orchestration.partitions import SCENARIOS
from pc_pipeline.orchestration.resources import StoreResource
from pc_pipeline.schemas.tables import TABLES, describe, failures

PARTITIONED = (
    "macro_scenarios",
    "loan_panel",
    "recoveries",
    "simulations",
    "macro_fan_report",
    "tranche_report",
    "pool_report",
    "cash_flow_report",
    "tranche_balance_report",
)
UNPARTITIONED = ("loan_tape", "transitions", "pool")

# identity name -> (asset, what it says, breaches of it among the stored tables of a scenario)
IDENTITIES: dict[str, tuple[str, str, Callable[[Store, str], pl.DataFrame]]] = {
    "cash_balances_to_the_cent": (
        "loan_panel",
        "original balance - principal paid - charged off = outstanding, on every row",
        stages.panel_breaches,
    ),
    "principal_is_accounted_for": (
        "simulations",
        "scheduled + prepaid + defaulted principal = pool balance on every path, to 1e-6 of it",
        stages.simulation_breaches,
    ),
    "senior_loses_last": (
        "tranche_report",
        "expected loss does not fall from senior to junior",
        stages.seniority_breaches,
    ),
}


def _scenario(context: dg.AssetCheckExecutionContext) -> str | None:
    return context.partition_key if context.has_partition_key else None


def _result(breaches: pl.DataFrame, **metadata: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=breaches.is_empty(),
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "breaches": breaches.height,
            "first": as_markdown(breaches.head(10).to_dicts()),
            **metadata,
        },
    )


def _schema_check(table: str, partitioned: bool) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table,
        name="schema",
        blocking=True,
        partitions_def=SCENARIOS if partitioned else None,
        description=f"Pandera model {TABLES[table].__name__}: {len(describe(table))} columns, by value.",
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        frame = store.store.read_table(table, _scenario(context) if partitioned else None)
        return _result(failures(table, frame), rows=frame.height)

    return check


def _identity_check(name: str) -> dg.AssetChecksDefinition:
    asset, text, breaches = IDENTITIES[name]

    @dg.asset_check(asset=asset, name=name, blocking=True, partitions_def=SCENARIOS, description=text)
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        return _result(breaches(store.store, context.partition_key))

    return check


@dg.asset_check(
    asset="joint_model",
    description="Held-out log-loss is below that of the class x maturity Markov table.",
)
def beats_the_markov_table(store: StoreResource) -> dg.AssetCheckResult:
    scores = stages.model_scores(store.store)
    return dg.AssetCheckResult(
        passed=stages.beats_markov(scores),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"scores": as_markdown(scores)},
    )


@dg.asset_check(
    asset="payment_cascade",
    description="Generated payment histories match those of loans left out: rates, survival, two-sample AUC, "
    "memorisation, each within its pass mark.",
)
def histories_match(store: StoreResource) -> dg.AssetCheckResult:
    table = stages.cascade_validation(store.store)
    return dg.AssetCheckResult(
        passed=bool(table) and all(row["passed"] for row in table),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"validation": as_markdown(table)},
    )


@dg.asset_check(
    asset="committee_report",
    description="Expected loss: severely adverse > adverse > baseline.",
)
def scenarios_are_ordered(store: StoreResource) -> dg.AssetCheckResult:
    losses = stages.expected_losses(store.store)
    return dg.AssetCheckResult(
        passed=stages.is_ordered(losses),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=dict(losses),
    )


NAMES = (*IDENTITIES, "beats_the_markov_table", "histories_match", "scenarios_are_ordered")


def build_checks() -> list[dg.AssetChecksDefinition]:
    """All checks."""
    with warnings.catch_warnings():
        # Partitioned checks are in preview; without them a check of one scenario would read them all.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return _all_checks()


def _all_checks() -> list[dg.AssetChecksDefinition]:
    return [
        *(_schema_check(table, partitioned=True) for table in PARTITIONED),
        *(_schema_check(table, partitioned=False) for table in UNPARTITIONED),
        *(_identity_check(name) for name in IDENTITIES),
        beats_the_markov_table,
        histories_match,
        scenarios_are_ordered,
    ]
