"""Loan months drawn from the true law, with exact cash and dated recoveries.

Here: the kernel that draws states, and the assembly of tables `loan_panel` and `recoveries`. A draw depends
on (seed, scenario, loan, month, path) only, so chunks, order and threads do not matter. Not here: the tape
(`tape_generator`), the law (`truth`), cash (`ledger`).
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
import polars as pl
from scipy.special import ndtr

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.amortisation import amortization_codes, payment_cents
from pc_pipeline.loans.asset_classes import RECOVERY_LAG_MONTHS, asset_classes, base_moves
from pc_pipeline.loans.counter import counter_uniform, normals, uniforms
from pc_pipeline.loans.effects import codes_of, loan_numbers
from pc_pipeline.loans.ledger import MONEY_COLUMNS, Contracts, walk_ledger
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.truth import KIND_OF_MOVE, TrueLaw, fill_row
from pc_pipeline.schemas.states import PADDING, LoanState
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES

_POLICY, _YIELD, _PROPERTY = (
    MACRO_NAMES.index(name) for name in ("policy_rate", "yield_10y", "property_price_index")
)
_SEVERITY_LTV_CORRELATION: Final = 0.5  # a higher LTV loses more; convention


@dataclass(frozen=True, kw_only=True, slots=True)
class LoanBook:
    """Tables `loan_tape`, `loan_panel` and `recoveries` of one portfolio."""

    loans: pl.DataFrame
    panel: pl.DataFrame
    recoveries: pl.DataFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lives:
    """Where each loan lives: its path, calendar place and codes, all (L,)."""

    number: np.ndarray
    class_code: np.ndarray
    path_row: np.ndarray
    path_id: np.ndarray
    first: np.ndarray
    term: np.ndarray


@numba.njit(cache=True)
def _draw_states(
    states: np.ndarray,
    n_rows: np.ndarray,
    seed: np.uint64,
    start_month: int,
    number: np.ndarray,
    class_code: np.ndarray,
    path_row: np.ndarray,
    path_id: np.ndarray,
    first: np.ndarray,
    term: np.ndarray,
    base: np.ndarray,
    kinds: np.ndarray,
    macro_odds: np.ndarray,
    loan_odds: np.ndarray,
    season_odds: np.ndarray,
    memory_odds: np.ndarray,
) -> None:
    n_columns = macro_odds.shape[1]
    memory_months = memory_odds.size - 2
    row = np.empty(7)
    for loan in range(states.shape[0]):
        cls = class_code[loan]
        state = 0
        since_miss = -1
        t = 0
        while state < 4 and first[loan] + t < n_columns:
            column = first[loan] + t
            month = start_month + column
            memory_class = since_miss + 1 if since_miss <= memory_months else 0
            fill_row(
                row,
                state,
                base[cls],
                kinds,
                macro_odds[path_row[loan], column, cls],
                loan_odds[loan],
                season_odds[month % 12] * memory_odds[memory_class],
                t + 1 >= term[loan],
            )
            draw = counter_uniform(seed, np.uint64(number[loan]), np.uint64(month), np.uint64(path_id[loan]))
            total = 0.0
            reached = state
            for to in range(7):
                if row[to] > 0.0:
                    total += row[to]
                    reached = to
                    if draw < total:
                        break
            state = reached
            if 1 <= state <= 3:
                since_miss = 0
            elif since_miss >= 0:
                since_miss += 1
            states[loan, t] = state
            t += 1
        n_rows[loan] = t


@numba.njit(cache=True)
def _count_in_state(
    states: np.ndarray, n_rows: np.ndarray, state_out: np.ndarray, run_out: np.ndarray, dpd_out: np.ndarray
) -> None:
    row = 0
    for loan in range(states.shape[0]):
        previous = -1
        run = 0
        days = 0
        for position in range(n_rows[loan]):
            state = states[loan, position]
            run = run + 1 if state == previous else 1
            if state <= 2:
                days = 30 * state
            elif state == 3:
                days = 60 + 30 * run
            elif state == 4:
                days += 30
            else:
                days = 0
            state_out[row] = state
            run_out[row] = run
            dpd_out[row] = days
            previous = state
            row += 1


def draw_states(
    lives: _Lives, loans: pl.DataFrame, paths: MacroPaths, law: TrueLaw, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """States (L, T) int8 by loan age, padded -1 after the terminal row, and rows in use (L,)."""
    states = np.full((loans.height, paths.n_months), PADDING, dtype=np.int8)
    n_rows = np.zeros(loans.height, dtype=np.int64)
    _draw_states(
        states,
        n_rows,
        np.uint64(seed),
        paths.start_month,
        lives.number,
        lives.class_code,
        lives.path_row,
        lives.path_id,
        lives.first,
        lives.term,
        base_moves(),
        KIND_OF_MOVE,
        law.macro_odds(paths.values),
        law.loan_odds(loans),
        law.season_odds(),
        law.memory_odds(),
    )
    return states, n_rows


def _lives(loans: pl.DataFrame, paths: MacroPaths) -> _Lives:
    vintage = loans.select(month_index_expr("vintage_month")).to_series().to_numpy().astype(np.int64)
    if vintage.min() < paths.start_month:
        raise DataError(
            "the macro path begins after the first vintage",
            expected=f"month index <= {vintage.min()}",
            got=paths.start_month,
            where="macro",
        )
    number = loan_numbers(loans)
    path_row = number % len(paths.keys)
    path_id = np.array([key[1] for key in paths.keys], dtype=np.int64)
    return _Lives(
        number=number,
        class_code=codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class"),
        path_row=path_row,
        path_id=path_id[path_row],
        first=vintage - paths.start_month + 1,
        term=loans["term_months"].to_numpy().astype(np.int64),
    )


def contracts_of(loans: pl.DataFrame) -> Contracts:
    """Terms of a tape as the ledger reads them."""
    balance = loans["original_balance"].to_numpy()
    coupon = loans["interest_rate"].to_numpy()
    term = loans["term_months"].to_numpy().astype(np.int64)
    code = amortization_codes(loans["amortization_type"].to_numpy())
    is_floating = (loans["rate_type"] == "floating").to_numpy()
    spread = loans["spread_bps"].fill_null(0.0).to_numpy() / 1e4
    return Contracts(
        balance_cents=np.rint(100.0 * balance),
        payment_cents=payment_cents(balance, coupon, term, code),
        coupon=coupon,
        spread=np.where(is_floating, spread, np.nan),
        term=term,
        code=code,
    )


def _severity(
    loans: pl.DataFrame, lives: _Lives, loan_row: np.ndarray, month: np.ndarray, seed: int
) -> np.ndarray:
    """(N,) loss given default inside the class range, higher for higher LTV."""
    ranges = np.array([asset_classes()[name].range("lgd") for name in ASSET_CLASSES])[
        lives.class_code[loan_row]
    ]
    ltv_ranges = np.array([asset_classes()[name].range("ltv") or (np.nan, np.nan) for name in ASSET_CLASSES])
    low, high = ltv_ranges[lives.class_code[loan_row]].T
    ltv = loans["ltv_origination"].to_numpy()[loan_row]
    z_ltv = (ltv - (low + high) / 2) / ((high - low) / np.sqrt(12.0))
    weight = np.where(np.isnan(z_ltv), 0.0, _SEVERITY_LTV_CORRELATION)
    noise = normals(seed, lives.number[loan_row], month, lives.path_id[loan_row])
    place = ndtr(weight * np.nan_to_num(z_ltv) + np.sqrt(1.0 - weight**2) * noise)
    return ranges[:, 0] + place * (ranges[:, 1] - ranges[:, 0])


def _lag_months(lives: _Lives, loan_row: np.ndarray, month: np.ndarray, seed: int) -> np.ndarray:
    """(N,) whole months from default to recovery cash, even over the class range."""
    lags = np.array([RECOVERY_LAG_MONTHS[name] for name in ASSET_CLASSES])[lives.class_code[loan_row]]
    draw = uniforms(seed, lives.number[loan_row], month, lives.path_id[loan_row])
    return lags[:, 0] + np.floor(draw * (lags[:, 1] - lags[:, 0] + 1)).astype(np.int64)


def _ltv_current(
    loans: pl.DataFrame,
    lives: _Lives,
    paths: MacroPaths,
    loan_row: np.ndarray,
    column: np.ndarray,
    balance: np.ndarray,
) -> np.ndarray:
    """(N,) balance over collateral, to 4 digits; property moves with its index since origination."""
    property_index = paths.values[..., _PROPERTY]
    path = lives.path_row[loan_row]
    growth = property_index[path, column] / property_index[path, lives.first[loan_row] - 1]
    is_property = (loans["asset_class"] == "realestate").to_numpy()[loan_row]
    value = loans["collateral_value_origination"].to_numpy()[loan_row] * np.where(is_property, growth, 1.0)
    return np.rint(1e4 * balance / value) / 1e4


def _rate_incentive(rate: np.ndarray, paths: MacroPaths, path: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(N,) rate accrued less the 10-year yield, to the hundredth of a basis point."""
    return np.rint(1e6 * (rate - paths.values[path, column, _YIELD])) / 1e6


def _month_dates(start_month: int, n_months: int) -> tuple[np.ndarray, np.ndarray]:
    """First days (datetime64[D]) and weekday of the last day, Monday 1 .. Sunday 7, by calendar column."""
    months = np.arange(start_month, start_month + n_months)
    firsts = (months - 1970 * 12).astype("datetime64[M]").astype("datetime64[D]")
    weekdays = [
        calendar.weekday(m // 12, m % 12 + 1, calendar.monthrange(m // 12, m % 12 + 1)[1]) + 1
        for m in months.tolist()
    ]
    return firsts, np.array(weekdays, dtype=np.int64)


def _one_scenario(
    loans: pl.DataFrame, paths: MacroPaths, law: TrueLaw, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(panel, recoveries) of the paths of one scenario."""
    scenario = paths.keys[0][0]
    lives = _lives(loans, paths)
    states, n_rows = draw_states(lives, loans, paths, law, derive_seed(seed, "loan_panel", scenario))
    money, rate = walk_ledger(
        states, n_rows, contracts_of(loans), paths.values[..., _POLICY], lives.path_row, lives.first
    )
    total = rate.size
    state, run, days = (np.empty(total, dtype=np.int64) for _ in range(3))
    _count_in_state(states, n_rows, state, run, days)
    loan_row = np.repeat(np.arange(loans.height), n_rows)
    age = np.arange(total) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    column = lives.first[loan_row] + age
    firsts, weekdays = _month_dates(paths.start_month, paths.n_months)

    defaulted = np.flatnonzero(state == LoanState.default)
    month = paths.start_month + column[defaulted]
    severity = _severity(loans, lives, loan_row[defaulted], month, derive_seed(seed, "severity", scenario))
    charged_off = money[MONEY_COLUMNS.index("charge_off_amount")]
    recovery = np.zeros(total)
    recovery[defaulted] = np.round(charged_off[defaulted] * (1.0 - severity), 2)

    panel = loans.select("loan_id", "asset_class", "vintage_month", "original_balance")[
        loan_row
    ].with_columns(
        pl.Series("reporting_month", firsts[column].astype("datetime64[ms]")).cast(pl.Date),
        pl.lit(scenario).alias("scenario"),
        pl.Series("macro_path_id", lives.path_id[loan_row]),
        pl.Series("loan_state", state),
        pl.Series("days_past_due", days),
        pl.Series("months_in_state", run),
        *(pl.Series(name, money[place]) for place, name in enumerate(MONEY_COLUMNS)),
        pl.Series("recovery_amount", recovery),
        pl.Series("loss_amount", np.round(charged_off - recovery, 2)),
        pl.Series(
            "ltv_current",
            _ltv_current(
                loans, lives, paths, loan_row, column, money[MONEY_COLUMNS.index("outstanding_balance")]
            ),
            nan_to_null=True,
        ),
        pl.Series("rate_incentive", _rate_incentive(rate, paths, lives.path_row[loan_row], column)),
        pl.Series("month_end_weekday", weekdays[column]),
    )
    lag = _lag_months(lives, loan_row[defaulted], month, derive_seed(seed, "recovery_lag", scenario))
    recoveries = panel[defaulted].select(
        "loan_id",
        "scenario",
        "macro_path_id",
        pl.col("reporting_month").alias("default_month"),
        pl.Series(
            "recovery_month", (month + lag - 1970 * 12).astype("datetime64[M]").astype("datetime64[ms]")
        ).cast(pl.Date),
        "recovery_amount",
    )
    return panel.select(columns("loan_panel")), recoveries


def _scenarios_of(paths: MacroPaths) -> Iterator[MacroPaths]:
    names = list(dict.fromkeys(key[0] for key in paths.keys))
    for name in names:
        rows = [row for row, key in enumerate(paths.keys) if key[0] == name]
        yield MacroPaths(
            values=paths.values[rows],
            start_month=paths.start_month,
            keys=tuple(paths.keys[row] for row in rows),
        )


def generate_book(
    loans: pl.DataFrame,
    macro: Any,
    *,
    law: TrueLaw,
    seed: int,
    last_month: int | None = None,
    scenario: str | None = None,
    macro_path_id: int = 0,
) -> LoanBook:
    """Panel and recoveries of a generated tape along the paths of each scenario in `macro`.

    Args:
        loans: generated tape, whole or a chunk of one. macro: one path or a `macro_scenarios` table; loan
            number n lives through path n mod P of each scenario.
        law: of the world. seed: of the draws. last_month: month index after which nothing is reported.
        scenario, macro_path_id: names of a single path without such columns.

    Raises:
        DataError: macro rows missing, or they begin after the first vintage.
    """
    paths = macro if isinstance(macro, MacroPaths) else macro_paths(macro, scenario, macro_path_id)
    if last_month is not None:
        n_months = min(paths.n_months, max(last_month - paths.start_month + 1, 0))
        paths = MacroPaths(values=paths.values[:, :n_months], start_month=paths.start_month, keys=paths.keys)
    parts = [_one_scenario(loans, part, law, seed) for part in _scenarios_of(paths)]
    return LoanBook(
        loans=loans,
        panel=pl.concat([panel for panel, _ in parts]),
        recoveries=pl.concat([recoveries for _, recoveries in parts]),
    )
