"""Loan months drawn from the true law, with exact cash and dated recoveries.

Here: the kernel that draws states, and the assembly of tables `loan_panel` and `recoveries`. A draw depends
on (seed, scenario, loan, month, path) only, so chunks, order and threads do not matter. Not here: the tape
(`tape_generator`), the law (`truth`), cash (`ledger`), severity and lag (`recoveries`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.amortisation import payment_cents
from pc_pipeline.loans.asset_classes import base_moves
from pc_pipeline.loans.cores import on_all_cores
from pc_pipeline.loans.counter import counter_uniform
from pc_pipeline.loans.effects import codes_of, loan_numbers
from pc_pipeline.loans.ledger import MONEY_COLUMNS, Contracts, walk_ledger
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.panel_rows import month_numbers
from pc_pipeline.loans.recoveries import DefaultedLoans, lag_months, month_dates, severities
from pc_pipeline.loans.truth import KIND_OF_MOVE, TrueLaw, draw_performing, fill_row
from pc_pipeline.schemas.states import PADDING, LoanState
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import AMORTIZATION_TYPES, ASSET_CLASSES, MACRO_NAMES

_POLICY, _YIELD, _PROPERTY = (
    MACRO_NAMES.index(name) for name in ("policy_rate", "yield_10y", "property_price_index")
)
_WHOLE: Final = ("loan_state", "days_past_due", "months_in_state", "month_end_weekday", "macro_path_id")
_WHOLE_AND_DATE: Final = len(_WHOLE)  # place of reporting_month after them


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


@numba.njit(cache=True, nogil=True)
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
        cls, path = class_code[loan], path_row[loan]
        class_base, own = base[cls], loan_odds[loan]
        state = 0
        since_miss = -1
        t = 0
        while state < 4 and first[loan] + t < n_columns:
            column = first[loan] + t
            month = start_month + column
            memory_class = since_miss + 1 if since_miss <= memory_months else 0
            miss_odds = season_odds[month % 12] * memory_odds[memory_class]
            is_final = t + 1 >= term[loan]
            draw = counter_uniform(seed, np.uint64(number[loan]), np.uint64(month), np.uint64(path_id[loan]))
            if state == 0:
                miss = class_base[0, 1] * macro_odds[path, column, cls, 0] * own[0] * miss_odds
                prepay = class_base[0, 5] * macro_odds[path, column, cls, 3] * own[3]
                state = draw_performing(draw, class_base[0, 0], miss, prepay, is_final)
            else:
                macro = macro_odds[path, column, cls]
                fill_row(row, state, class_base, kinds, macro, own, miss_odds, is_final)
                total = 0.0
                for to in range(7):
                    if row[to] > 0.0:
                        total += row[to]
                        state = to
                        if draw < total:
                            break
            if 1 <= state <= 3:
                since_miss = 0
            elif since_miss >= 0:
                since_miss += 1
            states[loan, t] = state
            t += 1
        n_rows[loan] = t


@numba.njit(cache=True, nogil=True)
def _describe(
    row: int,
    first_loan: int,
    states: np.ndarray,
    n_rows: np.ndarray,
    first: np.ndarray,
    path_row: np.ndarray,
    path_id: np.ndarray,
    collateral: np.ndarray,
    is_property: np.ndarray,
    property_index: np.ndarray,
    yields: np.ndarray,
    month_days: np.ndarray,
    month_weekday: np.ndarray,
    balance: np.ndarray,
    rate: np.ndarray,
    whole: np.ndarray,
    loan_row: np.ndarray,
    day: np.ndarray,
    ltv: np.ndarray,
    incentive: np.ndarray,
) -> None:
    """Fill all columns that are not cash: `whole` (5, N) state, days past due, run, weekday, path id."""
    for loan in range(states.shape[0]):
        previous, run, days = -1, 0, 0
        path = path_row[loan]
        for position in range(n_rows[loan]):
            column = first[loan] + position
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
            whole[0, row], whole[1, row], whole[2, row] = state, days, run
            whole[3, row], whole[4, row] = month_weekday[column], path_id[loan]
            loan_row[row] = first_loan + loan
            day[row] = month_days[column]
            value = collateral[loan]
            if is_property[loan]:
                value *= property_index[path, column] / property_index[path, first[loan] - 1]
            ltv[row] = np.rint(1e4 * balance[row] / value) / 1e4
            incentive[row] = np.rint(1e6 * (rate[row] - yields[path, column])) / 1e6
            previous = state
            row += 1


def draw_states(
    lives: _Lives, loans: pl.DataFrame, paths: MacroPaths, law: TrueLaw, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """States (L, T) int8 by loan age, padded -1 after the terminal row, and rows in use (L,)."""
    states = np.full((loans.height, paths.n_months), PADDING, dtype=np.int8)
    n_rows = np.zeros(loans.height, dtype=np.int64)
    macro_odds, own = law.macro_odds(paths.values), law.loan_odds(loans, lives.number)
    season, memory, base = law.season_odds(), law.memory_odds(), base_moves()
    facts = (lives.number, lives.class_code, lives.path_row, lives.path_id, lives.first, lives.term)

    def draw(part: slice) -> None:
        place = [states[part], n_rows[part], np.uint64(seed), paths.start_month]
        mine = [values[part] for values in facts]
        arguments: list[Any] = [*place, *mine, base, KIND_OF_MOVE, macro_odds, own[part], season, memory]
        _draw_states(*arguments)

    on_all_cores(draw, loans.height)
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
    code = codes_of(loans["amortization_type"], AMORTIZATION_TYPES, "amortization_type")
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


def _calendar(start_month: int, n_months: int) -> tuple[np.ndarray, np.ndarray]:
    """Days since 1970 of each first of month, and weekday of each last day, Monday 1 .. Sunday 7."""
    months = (np.arange(start_month, start_month + n_months + 1) - 1970 * 12).astype("datetime64[M]")
    days = months.astype("datetime64[D]").astype(np.int32)
    return days[:-1], (days[1:] - 1 + 3) % 7 + 1  # day 0 was a Thursday


def _described(
    loans: pl.DataFrame,
    lives: _Lives,
    paths: MacroPaths,
    states: np.ndarray,
    n_rows: np.ndarray,
    balance: np.ndarray,
    rate: np.ndarray,
) -> tuple[list[pl.Series], np.ndarray]:
    """The columns of a panel that are not cash, and each row's row on the tape.

    ltv_current has 4 digits; property collateral moves with the index since origination, other collateral
    does not. rate_incentive is the rate accrued less the 10-year yield, to a hundredth of a basis point.
    """
    total = rate.size
    whole, loan_row = np.empty((len(_WHOLE), total), dtype=np.int64), np.empty(total, dtype=np.uint32)
    day, ltv, incentive = np.empty(total, dtype=np.int32), np.empty(total), np.empty(total)
    starts = np.cumsum(n_rows) - n_rows
    value = loans["collateral_value_origination"].fill_null(np.nan).to_numpy()
    is_property = (loans["asset_class"] == "realestate").to_numpy()
    world = (
        np.ascontiguousarray(paths.values[..., _PROPERTY]),
        np.ascontiguousarray(paths.values[..., _YIELD]),
        *_calendar(paths.start_month, paths.n_months),
    )
    by_loan = (states, n_rows, lives.first, lives.path_row, lives.path_id, value, is_property)

    def describe(part: slice) -> None:
        mine = [values[part] for values in by_loan]
        filled = [whole, loan_row, day, ltv, incentive]
        arguments: list[Any] = [int(starts[part.start]), part.start, *mine, *world, balance, rate, *filled]
        _describe(*arguments)

    on_all_cores(describe, loans.height)
    series = [pl.Series(name, whole[place]) for place, name in enumerate(_WHOLE)]
    series += [
        pl.Series("reporting_month", day).cast(pl.Date),
        pl.Series("ltv_current", ltv, nan_to_null=True),
    ]
    return [*series, pl.Series("rate_incentive", incentive)], loan_row


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
    cash = dict(zip(MONEY_COLUMNS, money, strict=True))
    described, loan_row = _described(loans, lives, paths, states, n_rows, cash["outstanding_balance"], rate)
    dates, charged_off = described[_WHOLE_AND_DATE], cash["charge_off_amount"]

    last = np.cumsum(n_rows) - 1  # every loan is given a row: the macro reaches beyond its vintage
    defaulted = last[states[np.arange(loans.height), n_rows - 1] == LoanState.default]
    month = month_numbers(dates.gather(defaulted)).astype(np.int64)
    losses = DefaultedLoans(
        loans=loans[loan_row[defaulted]], month=month, path_id=lives.path_id[loan_row[defaulted]]
    )
    recovery, loss = np.zeros(rate.size), np.zeros(rate.size)
    recovery[defaulted] = np.round(charged_off[defaulted] * (1.0 - severities(losses, seed, scenario)), 2)
    loss[defaulted] = np.round(charged_off[defaulted] - recovery[defaulted], 2)

    static = loans.select("loan_id", "asset_class", "vintage_month", "original_balance")
    panel = static[loan_row].with_columns(
        pl.lit(scenario).alias("scenario"),
        *described,
        *(pl.Series(name, values) for name, values in cash.items()),
        pl.Series("recovery_amount", recovery),
        pl.Series("loss_amount", loss),
    )
    recovery_month = month_dates(month + lag_months(losses, seed, scenario))
    recoveries = panel[defaulted].select(
        "loan_id",
        "scenario",
        "macro_path_id",
        pl.col("reporting_month").alias("default_month"),
        recovery_month.alias("recovery_month"),
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
