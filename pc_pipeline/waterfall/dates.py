"""The payment calendar of a deal: dates, year fractions, coupons and levels by payment date.

Here: dates on and off the calendar, day counts (pyxirr), what is constant across paths. Not here: money.

30/360 counts from unadjusted to unadjusted dates, actual day counts from payment date to payment date.
"""

from __future__ import annotations

import calendar as month_calendar
import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyxirr

from pc_pipeline.core.errors import DealError
from pc_pipeline.core.periods import add_months
from pc_pipeline.waterfall.terms import Coupon, DayCount, Level, Payments

_DAY_COUNTS = {
    "30/360": pyxirr.DayCount.THIRTY_U_360,
    "30E/360": pyxirr.DayCount.THIRTY_E_360,
    "Act/360": pyxirr.DayCount.ACT_360,
    "Act/365": pyxirr.DayCount.ACT_365F,
    "Act/Act": pyxirr.DayCount.ACT_ACT_ISDA,
}
_ROLLS = {"following": "following", "modified_following": "modifiedfollowing", "preceding": "preceding"}


def year_fraction(start: dt.date, end: dt.date, day_count: DayCount) -> float:
    """Years from `start` to `end` under a day count.

    Raises:
        DealError: the day count is unknown.
    """
    if day_count not in _DAY_COUNTS:
        raise DealError("unknown day count", expected=", ".join(_DAY_COUNTS), got=day_count)
    return float(pyxirr.year_fraction(start, end, _DAY_COUNTS[day_count]))


@dataclass(frozen=True, slots=True)
class PaymentCalendar:
    """Payment dates of a deal.

    Attributes:
        accrual: n + 1 unadjusted dates, the closing date first.
        payment: n + 1 payment dates moved to business days, the closing date first.
        delay_days: from the end of accrual to payment; with a delay all interest accrues unadjusted.
    """

    accrual: tuple[dt.date, ...]
    payment: tuple[dt.date, ...]
    delay_days: int = 0

    @property
    def n_periods(self) -> int:
        """Number of payments."""
        return len(self.payment) - 1

    def year_fractions(self, day_count: DayCount) -> np.ndarray:
        """(T,) years of each interest period."""
        dates = self.accrual if day_count.startswith("30") or self.delay_days else self.payment
        return np.array([year_fraction(a, b, day_count) for a, b in itertools.pairwise(dates)])

    def yield_times(self) -> np.ndarray:
        """(T,) years from closing to each payment, 30/360, with the delay."""
        return self.year_fractions("30/360").cumsum() + self.delay_days / 360.0

    def coupon_levels(self, coupon: Coupon) -> np.ndarray:
        """(T,) fixed rate, or spread of a floating coupon, that holds at the start of each period."""
        first = coupon.spread if coupon.rate is None else coupon.rate
        levels = np.full(self.n_periods, first)
        for step in coupon.steps:
            levels[[start >= step.start for start in self.accrual[:-1]]] = step.rate
        return levels

    def on_or_after(self, date: dt.date | None, from_month: int | None = None) -> np.ndarray:
        """(T,) 1.0 where the payment date is on or after `date`, or its number at least `from_month`."""
        numbers = np.arange(1, self.n_periods + 1)
        reached = np.zeros(self.n_periods, dtype=bool)
        if date is not None:
            reached |= np.array([d >= date for d in self.payment[1:]])
        if from_month is not None:
            reached |= numbers >= from_month
        return reached.astype(float)


def level_path(first: float, schedule: Sequence[Level], n_periods: int) -> np.ndarray:
    """(T,) a level that changes by payment number."""
    levels = np.full(n_periods, first)
    for step in sorted(schedule, key=lambda item: item.from_month):
        levels[step.from_month - 1 :] = step.level
    return levels


def payment_calendar(closing: dt.date, payments: Payments, n_periods: int) -> PaymentCalendar:
    """The first `n_periods` payment dates after closing.

    The first unadjusted date is `payments.first`, or `payments.day` of the month `every_months` after
    closing.
    """
    first = payments.first or _on_day(add_months(closing, payments.every_months), payments.day)
    months = [add_months(first, k * payments.every_months) for k in range(n_periods)]
    accrual = [first, *(_on_day(month, payments.day) for month in months[1:])]
    if payments.first is not None and payments.day == 1:
        accrual = [_on_day(month, first.day) for month in months]
    delay = dt.timedelta(days=payments.delay_days)
    adjusted = [_business_day(date + delay, payments) for date in accrual]
    return PaymentCalendar(
        (closing, *accrual[:n_periods]), (closing, *adjusted[:n_periods]), payments.delay_days
    )


def _on_day(month: dt.date, day: int) -> dt.date:
    return month.replace(day=min(day, month_calendar.monthrange(month.year, month.month)[1]))


def _business_day(date: dt.date, payments: Payments) -> dt.date:
    if payments.business_days == "none":
        return date
    holidays = [np.datetime64(day) for day in payments.holidays]
    moved = np.busday_offset(np.datetime64(date), 0, roll=_ROLLS[payments.business_days], holidays=holidays)  # type: ignore[call-overload]
    return dt.date.fromisoformat(str(moved))
