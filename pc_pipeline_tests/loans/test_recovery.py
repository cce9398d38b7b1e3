"""What was put in comes out: variance shares, the threefold miss, seasons. Three worlds, from their panels.

Standard errors are those of the estimators, so the tolerances are derived, not chosen.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.loans.asset_classes import base_moves
from pc_pipeline.loans.effects import codes_of, loan_effects
from pc_pipeline.loans.macro_index import MISS, macro_index, macro_paths, moments_of, pooled_moments
from pc_pipeline.loans.panel_rows import final_months, panel_moves
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import ASSET_CLASSES, STANDARD_SCENARIOS

SEEDS = (1, 2, 3)
SHARES = {"macro": 0.60, "cohort": 0.25, "factor": 0.10, "idiosyncratic": 0.05}
SCALE = 0.80
STANDARD_ERRORS = 4.0


@pytest.fixture(scope="module")
def scenarios() -> pl.DataFrame:
    macro = MacroScenarioGenerator(n_months=60, start_date="2024-01-01", random_seed=5)
    return pl.concat(macro_table(macro, name, 10) for name in STANDARD_SCENARIOS)


def logistic(x: np.ndarray, y: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors by Newton's method."""
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1.0 / (1.0 + np.exp(-(offset + x @ beta)))
        information = (x * (p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(information, x.T @ (y - p))
        beta += step
        if np.abs(step).max() < 1e-10:
            break
    return beta, np.sqrt(np.diag(np.linalg.inv(information)))


def misses(
    generator: LoanTapeGenerator, scenarios: pl.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design, outcome and offset of every month in which a performing borrower could miss or stay."""
    book = generator.generate_scenario(scenarios)
    moves = panel_moves(book.panel)
    final = moves.month >= final_months(moves.frame, book.loans)
    used = (moves.from_state == 0) & ~final & (moves.state <= 1)
    rows = moves.frame.select("loan_id", "scenario", "macro_path_id").filter(pl.Series(used))
    paths = macro_paths(scenarios)
    place = book.loans.select("loan_id").with_row_index("row")
    loan_row = rows.join(place, on="loan_id", how="left", maintain_order="left")["row"].to_numpy()
    class_code = codes_of(book.loans["asset_class"], ASSET_CLASSES, "asset_class")[loan_row]
    month, since = moves.month[used], moves.months_since_miss[used]
    index = macro_index(paths.values)[paths.rows_of(rows), month - paths.start_month, class_code, MISS]
    of_year = month % 12
    faded = np.where(since > 1, np.exp(-(since - 1) / 4.0) * (since <= 12), 0.0)
    design = np.column_stack(
        [
            index,
            loan_effects(book.loans, generator.world_seed)[loan_row],
            since == 1,
            faded,
            of_year == 11,
            of_year == 1,
            of_year == 2,
        ]
    ).astype(float)
    base = base_moves()[class_code]
    return design, (moves.state[used] == 1).astype(float), np.log(base[:, 0, 1] / base[:, 0, 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_memory_and_seasons_come_back_from_the_panel(seed: int, scenarios: pl.DataFrame):
    generator = LoanTapeGenerator(n_loans=2000, random_seed=seed)
    beta, error = logistic(*misses(generator, scenarios))
    truth = [SCALE * np.sqrt(share) for share in SHARES.values()]
    truth += [np.log(3.0), np.log(3.0), 0.30, -0.25, -0.25]
    assert (np.abs(beta - truth) < STANDARD_ERRORS * error).all(), (beta - truth) / error
    # Shares are squares of coefficients over their sum; first-order errors.
    share = beta[:4] ** 2 / (beta[:4] ** 2).sum()
    share_error = 2 * beta[:4] * error[:4] / (beta[:4] ** 2).sum()
    assert (np.abs(share - list(SHARES.values())) < STANDARD_ERRORS * share_error).all()
    assert share_error.max() < 0.03  # the test has power: macro .60 is told from .70
    assert np.exp(beta[4]) == pytest.approx(3.0, abs=0.6)


@pytest.mark.parametrize("seed", SEEDS)
def test_index_variance_splits_as_stated_without_knowing_the_effects(seed: int, scenarios: pl.DataFrame):
    """ANOVA of the index over loans x (path, month), by labels only.

    The sampling error of a share estimated from n group effects is share * sqrt(2 / n).
    """
    generator = LoanTapeGenerator(n_loans=6000, n_vintages=24, random_seed=seed)
    loans, paths = generator.generate_static_features(), macro_paths(scenarios)
    path_row, month = (axis.ravel() for axis in np.indices(paths.values.shape[:2]))
    one_loan = loans.head(1)
    over_time = np.array(
        [
            generator.law.latent_index(
                pl.concat([one_loan.with_columns(asset_class=pl.lit(name))] * month.size),
                paths,
                path_row,
                month,
            ).var()
            for name in ASSET_CLASSES
        ]
    )
    row = np.zeros(loans.height, dtype=np.int64)
    own = generator.law.latent_index(loans, paths, row, row)
    class_code = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")
    own = own - np.sqrt(0.60) * macro_index(paths.values)[0, 0, class_code, MISS]
    frame = loans.select("asset_class", "vintage_month", "industry_sector", "geography_region").with_columns(
        own=own
    )
    # Two-way fit by alternating group means.
    residual, sums = frame["own"].to_numpy().copy(), {}
    groups = {"cohort": ["asset_class", "vintage_month"], "factor": ["industry_sector", "geography_region"]}
    effects = {name: np.zeros(loans.height) for name in groups}
    for _ in range(20):
        for name, keys in groups.items():
            held = residual + effects[name]
            effects[name] = (
                frame.select(*keys, held=held).select(pl.col("held").mean().over(keys))["held"].to_numpy()
            )
            residual = held - effects[name]
    for name, keys in groups.items():
        heads = (
            frame.with_columns(effect=effects[name]).group_by(keys).agg(pl.col("effect").first())["effect"]
        )
        sums[name] = (heads.var(), SHARES[name] * np.sqrt(2.0 / heads.len()))
    assert (
        abs(residual.var() - 0.05) < STANDARD_ERRORS * 0.05 * np.sqrt(2.0 / loans.height) + 0.05 * 140 / 6000
    )
    for name, (variance, error) in sums.items():
        assert abs(variance - SHARES[name]) < STANDARD_ERRORS * error, (name, variance)
    # 40 paths of slow series: about as many independent looks at the mix, besides its four fixed means.
    assert (np.abs(over_time - 0.60) < STANDARD_ERRORS * 0.60 * np.sqrt(2.0 / 40)).all(), over_time


def test_packaged_moments_are_those_of_the_scenario_generator():
    macro = MacroScenarioGenerator(n_months=60, start_date="2024-01-01", random_seed=1)
    fresh = moments_of(np.concatenate([macro.generate_paths(name, 500) for name in STANDARD_SCENARIOS]))
    packed = pooled_moments()
    assert (np.abs(fresh.mean - packed.mean) < 0.05 * packed.sd).all()
    np.testing.assert_allclose(fresh.sd, packed.sd, rtol=0.05)
    np.testing.assert_allclose(fresh.correlation, packed.correlation, atol=0.05)
