"""One rule, two rooms: the simulator's ledger, given a generated panel's states, pays the panel's money."""

from __future__ import annotations

import numpy as np
import polars as pl

from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.simulation.pool import pool_arrays
from pc_pipeline.simulation.reference import cash_of_states

N_MONTHS = 48
CENTS_A_ROW = 0.006  # the panel rounds interest to cents, the simulator does not


def test_panel_and_simulator_turn_states_into_the_same_cash():
    macro = MacroScenarioGenerator(n_months=N_MONTHS + 1, random_seed=3).generate_scenario("severely_adverse")
    maker = LoanTapeGenerator(n_loans=400, n_months=N_MONTHS + 1, n_vintages=1, random_seed=3)
    loans, panel = maker.generate(macro)
    fixed = loans.filter(pl.col("rate_type") == "fixed")
    panel = panel.join(fixed.select("loan_id"), on="loan_id", how="semi").with_columns(
        (month_index_expr("reporting_month") - month_index_expr("vintage_month") - 1).alias("t")
    )
    first = int(panel["t"].min())
    pool = pool_snapshot(fixed)
    arrays = pool_arrays(pool, cohort_table(pool), N_MONTHS)
    place = {name: row for row, name in enumerate(pool["loan_id"])}
    states = np.full((pool.height, N_MONTHS), -1)
    for name, t, state in panel.select("loan_id", "t", "loan_state").iter_rows():
        if t < N_MONTHS:
            states[place[name], t] = state
    last = np.maximum.accumulate(np.where(states >= 0, np.arange(N_MONTHS), 0), axis=1)
    states = np.take_along_axis(states, last, axis=1)
    assert first == 0
    assert set(np.unique(states)) >= {0, 1, 2, 3, 4, 5, 6}
    cash = cash_of_states(arrays, states, np.zeros(N_MONTHS))[:-1]  # the last month holds the sale
    monthly = (
        panel.filter(pl.col("t") < N_MONTHS - 1)
        .group_by("t")
        .agg(
            pl.col("interest_paid").sum(),
            (pl.col("principal_paid") - pl.col("prepayment_amount")).sum().alias("scheduled"),
            pl.col("prepayment_amount").sum(),
            pl.col("charge_off_amount").sum(),
        )
        .sort("t")
    )
    money = monthly.drop("t").to_numpy()
    np.testing.assert_allclose(cash[:, 1:4], money[:, 1:], atol=0.05)
    assert np.abs(cash[:, 0] - money[:, 0]).max() < CENTS_A_ROW * pool.height
