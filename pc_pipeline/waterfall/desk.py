"""Files in, plain data out: check, run and price a deal from the outside.

Here: what `pc deal check`, `pc deal run` and `pc price` call; every figure by payment date and by class, as
numbers, texts, lists and mappings that are JSON. Not here: the command line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError, DealError
from pc_pipeline.core.periods import month_index, parse_month
from pc_pipeline.schemas.units import CASH_CHANNELS
from pc_pipeline.waterfall.dates import PaymentCalendar, payment_calendar
from pc_pipeline.waterfall.deal import Deal, load_deal
from pc_pipeline.waterfall.engine import EXTRAS, WaterfallResult, run_waterfall
from pc_pipeline.waterfall.metrics import tranche_metrics
from pc_pipeline.waterfall.plan import make_plan
from pc_pipeline.waterfall.pool_projection import LONGEST_TERM, PoolLines, Speeds, pool_lines, project_pool
from pc_pipeline.waterfall.pricing import (
    convexity,
    discount_margin,
    effective_convexity,
    effective_duration,
    macaulay_duration,
    modified_duration,
    price_from_yield,
    yield_from_price,
)

Vector = float | Sequence[float]
CENT = 0.0051
LOWEST_YIELD = -11.0  # nominal, monthly: below this nearly all is lost and durations mean nothing
POOL_DUST = 1e-4  # percent of the original pool
SHIFT = 0.0025  # of index and yield, for effective durations
_ALIASES = {
    "principal": "scheduled_principal",
    "scheduled": "scheduled_principal",
    "prepaid": "prepaid_principal",
    "prepayment": "prepaid_principal",
    "prepayments": "prepaid_principal",
    "default": "defaulted_balance",
    "defaults": "defaulted_balance",
    "defaulted": "defaulted_balance",
    "charge_offs": "defaulted_balance",
    "recoveries": "recovery",
    "delinquent_balance": "delinquent",
    "date": "month",
    "reporting_month": "month",
    "ending_pool_balance": "pool_balance",
}


def vector(text: str) -> Vector:
    """One number, or a vector by month such as '2x12,5x12,8': 2 for a year, 5 for a year, then 8.

    Raises:
        DataError: it is neither.
    """
    values: list[float] = []
    for part in text.split(","):
        number, _, times = part.strip().partition("x")
        try:
            value, count = float(number), int(times or 1)
        except ValueError as error:
            raise DataError("not a number or a vector", expected="10, or 2x12,5x12,8", got=text) from error
        if not 1 <= count <= LONGEST_TERM or not math.isfinite(value):
            raise DataError("not a number or a vector", expected="10, or 2x12,5x12,8", got=text)
        values += [value] * count
    return values[0] if len(values) == 1 else values


def deal_check(path: str | Path) -> dict[str, Any]:
    """Read a deal and say what it is.

    Returns:
        ok, and the deal's outline; or not ok, and the problems by clause and line.
    """
    try:
        deal = load_deal(path)
    except DealError as error:
        return {"ok": False, "problems": [line.strip() for line in str(error).splitlines() if line.strip()]}
    steps = deal.steps
    return {
        "ok": True,
        "name": deal.name,
        "classes": deal.tranche_names,
        "tests": [test.name for test in deal.tests],
        "triggers": [trigger.name for trigger in deal.triggers],
        "steps": {
            pot: [step.label for step in getattr(steps, pot)]
            for pot in ("interest", "principal", "combined")
            if getattr(steps, pot)
        },
    }


# ---- reading --------------------------------------------------------------------------------------


def read_table(path: str | Path) -> pl.DataFrame:
    """A CSV file with a header; names in lower case but for what is no known column.

    Raises:
        DataError: it cannot be read.
    """
    try:
        frame = pl.read_csv(path, infer_schema_length=None, try_parse_dates=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError("the file cannot be read as CSV", got=error, where=path) from error
    if frame.is_empty():
        raise DataError("the file has no rows", where=path)
    return frame.rename({name: name.strip() for name in frame.columns})


def read_collections(
    path: str | Path, deal: Deal, opening_pool: float | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Collections by month from a CSV file.

    Columns: interest, scheduled_principal (or principal), prepaid_principal, defaulted_balance, recovery;
    optionally month, other_interest, other_principal, delinquent, ysoc, and a column per index, named as in
    the deal. Missing channels are zero. A column pool_balance (after the month) instead of
    defaulted_balance: what the pool fell by without principal was charged off.

    Args:
        opening_pool: pool before the first month, for pool_balance; default the deal's.

    Returns:
        (T, 5) cash, extras by name, index rates by name.

    Raises:
        DataError: no column of cash, months not consecutive, an unknown column, or not a number.
    """
    frame = read_table(path)
    indices = {name.lower(): name for name in make_plan(deal, 1.0, 1).indices}
    cash, extra, index = np.zeros((frame.height, 5)), {}, {}
    seen, ending = 0, None
    for column in frame.columns:
        plain = column.lower().replace(" ", "_").replace("-", "_")
        name = _ALIASES.get(plain, plain)
        if name in ("month", "period"):
            if name == "month":
                _check_months(frame[column], path)
            continue
        values = _numbers(frame[column], path)
        if name in CASH_CHANNELS:
            cash[:, CASH_CHANNELS.index(name)], seen = values, seen + 1
        elif name in EXTRAS:
            extra[name] = values
        elif name == "pool_balance":
            ending = values
        elif column.lower() in indices:
            index[indices[column.lower()]] = values
        elif name == "index":
            index |= dict.fromkeys(indices.values(), values)
        else:
            known = ["month", *CASH_CHANNELS, *EXTRAS, *indices.values()]
            raise DataError("unknown column", expected=", ".join(known), got=column, where=path)
    if seen == 0:
        raise DataError(
            "no collections in the file", expected=", ".join(CASH_CHANNELS), got=frame.columns, where=path
        )
    if ending is not None and not cash[:, 3].any():
        opening = opening_pool or deal.collateral.balance or deal.collateral.pool_balance
        cash[:, 3] = _charged_off(ending, cash, opening, path)
    return cash, extra, index


def _charged_off(ending: np.ndarray, cash: np.ndarray, opening: float | None, path: str | Path) -> np.ndarray:
    if opening is None:
        raise DataError("pool_balance in the file needs the pool before the first month", where=path)
    gone = -np.diff(np.concatenate([[opening], ending])) - cash[:, 1] - cash[:, 2]
    if (gone < -CENT).any():
        row = int(np.argmin(gone))
        raise DataError(
            "the pool fell by less than its principal",
            got=f"{gone[row]:,.2f}",
            where=f"{path}, row {row + 1}",
        )
    return np.maximum(gone, 0.0)


def _numbers(series: pl.Series, path: str | Path) -> np.ndarray:
    values = series.cast(pl.Float64, strict=False)
    if values.null_count() > 0:
        row = int(values.is_null().arg_true()[0])
        raise DataError(
            "not a number", got=repr(series[row]), where=f"{path}, row {row + 1}, column {series.name}"
        )
    return values.to_numpy().astype(float)


def _check_months(series: pl.Series, path: str | Path) -> None:
    months = [month_index(parse_month(str(value))) for value in series]
    for row, (before, after) in enumerate(itertools.pairwise(months), start=2):
        if after != before + 1:
            raise DataError("months must follow one another", got=series[row - 1], where=f"{path}, row {row}")


# ---- running --------------------------------------------------------------------------------------


def run_deal_json(
    deal: Deal | str | Path,
    collections_csv: str | Path,
    *,
    pool_balance: float | None = None,
    index_rate: Vector | None = None,
    price: float = 1.0,
) -> dict[str, Any]:
    """Run a deal on given collections.

    Args:
        deal: the deal or its YAML file.
        collections_csv: see `read_collections`.
        pool_balance: original pool, where the deal does not say.
        index_rate: for indices that the file does not bring, decimal per year; a number or by month.
        price: paid per 1 of opening balance, for yields.

    Returns:
        'deal', 'payments' (by date: classes, fees, accounts, tests, triggers, pool, residual) and 'classes'
        (WAL, yield, IRR, price, loss, percent of original balance); 'pool_outstanding_percent' above zero
        says that the collections end before the pool does.

    Raises:
        DealError, DataError: see `load_deal`, `read_collections`, `run_waterfall`.
    """
    terms = deal if isinstance(deal, Deal) else load_deal(deal)
    cash, extra, index = read_collections(collections_csv, terms, terms.collateral.balance or pool_balance)
    index = _fill_index(terms, index, index_rate, len(cash))
    result = run_waterfall(cash, terms, pool_balance=pool_balance, index_rate_PT=index, extra_PT=extra)
    return as_json(result, index, price=price)


def price_deal_json(
    deal: Deal | str | Path,
    pool_csv: str | Path,
    *,
    cpr: Vector | None = None,
    psa: Vector | None = None,
    abs_speed: Vector | None = None,
    cdr: Vector | None = None,
    sda: Vector | None = None,
    severity: Vector = 40.0,
    lag: int = 0,
    advances: bool = False,
    convention: str = "bma",
    roll_months: int = 0,
    roll_rate: float = 1.0,
    index_rate: Vector | None = None,
    price: float = 100.0,
    yield_percent: float | None = None,
    n_months: int | None = None,
) -> dict[str, Any]:
    """Project a pool at stated speeds and price a deal on it. Speeds, severity and prices are percent.

    A speed, the severity or the index is one number, or a vector by month whose last value holds on.

    Args:
        pool_csv: loans or rep lines: balance, rate (decimal), remaining_term, and optionally
            original_term, age, amortization_term.
        lag: months from default to recovery.
        roll_months, roll_rate: delinquent balance reported to haircuts and triggers, see `Speeds`.
        index_rate: of floating coupons, decimal per year.
        price: percent of opening balance, for yields; `yield_percent` also gives prices at a yield.

    Returns:
        As `run_deal_json`, with 'assumptions' and 'collections'.

    Raises:
        DealError, DataError, ConfigError: terms, pool or speeds make no sense.
    """
    terms = deal if isinstance(deal, Deal) else load_deal(deal)
    lines: PoolLines = pool_lines(read_table(pool_csv))

    def share(value: Vector | None) -> Any:
        return None if value is None else np.asarray(value, dtype=float) / 100.0

    speeds = Speeds(
        cpr=share(cpr),
        psa=share(psa),
        abs_speed=share(abs_speed),
        cdr=share(cdr),
        sda=share(sda),
        severity=share(severity),
        lag_months=lag,
        advances=advances,
        roll_months=roll_months,
        roll_rate=roll_rate,
        convention=convention,
    )
    pool = project_pool(lines, speeds, n_months)
    balance = terms.collateral.pool_balance or pool.opening_balance
    terms = scale_pool(terms, pool.opening_balance)
    index = _fill_index(terms, {}, index_rate, len(pool.cash))
    extra = {"delinquent": pool.delinquent}
    result = run_waterfall(pool.cash, terms, pool_balance=balance, index_rate_PT=index, extra_PT=extra)
    answer = as_json(result, index, price=price / 100.0, at_yield=share(yield_percent))
    shifted = {
        shift: run_waterfall(
            pool.cash,
            terms,
            pool_balance=balance,
            index_rate_PT={name: values + shift for name, values in index.items()},
            extra_PT=extra,
        )
        for shift in (-SHIFT, SHIFT)
    }
    _add_effective(answer["classes"], result, shifted)
    answer["assumptions"] = {
        "convention": convention, "cpr": cpr, "psa": psa, "abs": abs_speed, "cdr": cdr, "sda": sda,
        "severity": severity, "lag_months": lag, "advances": advances, "index_rate": index_rate,
        "roll_months": roll_months, "roll_rate": roll_rate,
        "pool_balance": pool.opening_balance, "n_lines": len(lines.balance),
    }  # fmt: skip
    answer["collections"] = {name: pool.cash[:, place].tolist() for place, name in enumerate(CASH_CHANNELS)}
    return answer


def _add_effective(
    classes: dict[str, Any], result: WaterfallResult, shifted: dict[float, WaterfallResult]
) -> None:
    """Effective duration and convexity of each class: index and yield moved together, speeds unchanged."""
    times = _calendar(result).yield_times()
    for n, name in enumerate(result.tranche_names):
        figures = classes[name]
        rate, face = figures.get("yield_percent"), figures["opening_balance"]
        if rate is None or not face > 0 or rate / 100.0 - SHIFT <= LOWEST_YIELD:
            continue

        def price(shift: float, place: int = n, at: float = rate / 100.0, face: float = face) -> float:
            run = shifted.get(shift, result)
            return float(price_from_yield(np.asarray(run.cash)[0, :, place], times, at + shift, face))

        with np.errstate(all="ignore"):  # a yield near -100 % overflows: reported as null
            figures["effective_duration"] = _number(effective_duration(price, SHIFT))
            figures["effective_convexity"] = _number(effective_convexity(price, SHIFT))


def scale_pool(deal: Deal, balance: float) -> Deal:
    """The deal with the pool at the start of the run set to the balance that came, where it differs."""
    declared = deal.collateral.pool_balance
    if declared is None or abs(declared - balance) < 0.01:
        return deal
    return deal.model_copy(update={"collateral": deal.collateral.model_copy(update={"balance": balance})})


def _fill_index(
    deal: Deal, given: dict[str, np.ndarray], rate: Vector | None, n_months: int
) -> dict[str, np.ndarray]:
    needed = make_plan(deal, 1.0, 1).indices
    filled = dict(given)
    for name in needed:
        if name not in filled and rate is not None:
            values = np.atleast_1d(np.asarray(rate, dtype=float))[:n_months]
            filled[name] = np.concatenate([values, np.full(n_months - len(values), values[-1])])
    return filled


# ---- writing --------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """A JSON number; what is no number is null."""
    number = float(value)
    return number if math.isfinite(number) else None


def as_json(
    result: WaterfallResult,
    index: dict[str, np.ndarray] | None = None,
    *,
    price: float = 1.0,
    at_yield: float | None = None,
    path: int = 0,
) -> dict[str, Any]:
    """One path of a result as plain data; see `run_deal_json`."""
    return {
        "deal": result.deal.name,
        "currency": result.deal.currency,
        "pool_balance": result.pool_balance,
        "closing_date": result.payment_dates[0].isoformat(),
        "conventions": {
            "losses": result.deal.losses,
            "waterfall": "combined" if result.deal.steps.combined else "interest and principal",
            "wal": "actual/365 from closing",
            "yield": "nominal, monthly compounding, 30/360",
            "irr": "effective, actual/365",
            "discount_margin": "the class's own day count",
            "reinvestment": "pro rata slice of the living pool",
        },
        "conservation_error": result.conservation_error,
        "pool_outstanding_percent": _pool_left(result, path),
        "payments": [_payment(result, t, path) for t in range(result.balance.shape[1])],
        "classes": class_figures(result, index or {}, price=price, at_yield=at_yield, path=path),
    }


def _pool_left(result: WaterfallResult, path: int) -> float:
    """Percent of the original pool that stands after the last payment; 0 when that is dust or it was sold."""
    left = 100.0 * float(result.pool[path, -1]) / result.pool_balance
    sold = bool(np.asarray(result.totals["sale"])[path].any())
    return 0.0 if sold or left < POOL_DUST else left


def _payment(result: WaterfallResult, t: int, path: int) -> dict[str, Any]:
    names = result.names
    classes = {
        name: {
            "interest": _number(result.interest_paid[path, t, n]),
            "principal": _number(result.principal_paid[path, t, n]),
            "balance": _number(result.balance[path, t, n]),
            "interest_due": _number(result.interest_due[path, t, n]),
            "shortfall": _number(result.interest_shortfall[path, t, n]),
            "written_down": _number(result.written_down[path, t, n]),
        }
        for n, name in enumerate(names["tranche"])
    }
    tests = {
        name: {"ratio": _number(result.ratios[path, t, k]), "passed": bool(result.passed[path, t, k] >= 0.5)}
        for k, name in enumerate(names["test"])
    }
    return {
        "number": t + 1,
        "date": result.payment_dates[t + 1].isoformat(),
        "collections": _number(result.totals["collections"][path, t]),
        "pool": _number(result.pool[path, t]),
        "reinvested": _number(result.totals["reinvested"][path, t]),
        "sale": _number(result.totals["sale"][path, t]),
        "classes": classes,
        "fees": {name: _number(result.fees[path, t, f]) for f, name in enumerate(names["fee"])},
        "accounts": {name: _number(result.accounts[path, t, a]) for a, name in enumerate(names["account"])},
        "tests": tests,
        "triggers": {
            name: bool(result.triggers[path, t, g] >= 0.5) for g, name in enumerate(names["trigger"])
        },
        "residual": _number(result.residual[path, t]),
    }


def class_figures(
    result: WaterfallResult,
    index: dict[str, np.ndarray],
    *,
    price: float = 1.0,
    at_yield: float | None = None,
    path: int = 0,
) -> dict[str, Any]:
    """WAL, yield, IRR, price, durations, loss and percent of original balance by class."""
    measures, plain = tranche_metrics(result), {}
    calendar = _calendar(result)
    times = calendar.yield_times()
    for n, name in enumerate(result.tranche_names):
        tranche = result.deal.tranches[n]
        flows = np.asarray(result.cash)[path, :, n]
        face = float(np.asarray(result.opening_balance)[..., n])
        original = float(result.original_balance[n])
        figures: dict[str, Any] = {
            "opening_balance": face,
            "original_balance": original,
            "interest": _number(np.asarray(result.interest_paid)[path, :, n].sum()),
            "principal": _number(np.asarray(result.principal_paid)[path, :, n].sum()),
            "percent_of_original_repaid": _number(
                100 * np.asarray(result.principal_paid)[path, :, n].sum() / original
            )
            if original > 0
            else None,
            "percent_of_original_outstanding": _number(
                100 * np.asarray(result.balance)[path, -1, n] / original
            )
            if original > 0
            else None,
            "loss_percent": _number(100 * measures.loss_share[path, n]),
            "wal_years": _number(measures.wal_years[path, n]),
            "irr": _number(measures.irr[path, n]),
            "irr_reason": str(measures.irr_reason[path, n]),
            "final_payment": _last_date(result, flows),
        }
        if face > 0:
            figures |= _priced(flows, times, face, price, at_yield)
            if tranche.coupon is not None and tranche.coupon.index in index:
                years = calendar.year_fractions(tranche.day_count)
                margin = discount_margin(
                    flows, years, _by_payment(result, index[tranche.coupon.index]), price, face
                )
                figures["discount_margin_bps"] = _number(1e4 * margin[0])
        plain[name] = figures
    return plain


def _priced(
    flows: np.ndarray, times: np.ndarray, face: float, price: float, at_yield: float | None
) -> dict[str, Any]:
    rate, reason = yield_from_price(flows, times, price, face)
    figures: dict[str, Any] = {
        "price": 100 * price,
        "yield_percent": _number(100 * rate),
        "yield_reason": reason,
    }
    with np.errstate(all="ignore"):  # a yield near -100 % overflows: reported as null
        if math.isfinite(rate) and rate > LOWEST_YIELD:
            figures["macaulay_duration"] = _number(macaulay_duration(flows, times, rate))
            figures["modified_duration"] = _number(modified_duration(flows, times, rate))
            figures["convexity"] = _number(convexity(flows, times, rate))
        if at_yield is not None:
            figures["price_at_yield"] = _number(100 * price_from_yield(flows, times, at_yield, face))
    return figures


def _calendar(result: WaterfallResult) -> PaymentCalendar:
    return payment_calendar(result.deal.closing_date, result.deal.payments, result.balance.shape[1])


def _by_payment(result: WaterfallResult, index: np.ndarray) -> np.ndarray:
    return index[:: result.deal.payments.every_months]


def _last_date(result: WaterfallResult, flows: np.ndarray) -> str | None:
    paid = np.flatnonzero(flows > 0)
    return result.payment_dates[int(paid[-1]) + 1].isoformat() if len(paid) else None
