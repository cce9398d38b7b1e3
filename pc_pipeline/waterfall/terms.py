"""The clauses a deal is made of, as validated data.

Here: one model per clause (tranche, coupon, fee, account, test, trigger, call, step). Not here: how the
clauses fit together (`deal`), what a step does with money (`rules`).

Money is in the deal's currency, rates are decimals per year, shares are decimals. Every model refuses
fields it does not know.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DayCount = Literal["30/360", "30E/360", "Act/360", "Act/365", "Act/Act"]
Names = list[str]


class Clause(BaseModel):
    """Base: frozen, strict, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _as_decimal(value: float | None, what: str) -> float | None:
    if value is not None and abs(value) > 1.0:
        raise ValueError(
            f"{what} {value:g} looks like percent; rates are decimals per year: write {value / 100:g}"
        )
    return value


class CouponStep(Clause):
    """From a date on, another fixed rate or another spread."""

    start: dt.date
    rate: float

    @field_validator("rate")
    @classmethod
    def _decimal(cls, value: float) -> float:
        _as_decimal(value, "coupon step")
        return value


class Coupon(Clause):
    """What a class earns: a fixed rate, or index + spread within floor and cap; or the pool's net rate.

    Attributes:
        rate: fixed rate; for a floating coupon leave it out.
        index: name of the index; its values come with the run.
        spread: over the index (decimal).
        floor, cap: of the whole coupon.
        steps: later rates (fixed) or spreads (floating).
        available_funds_cap: the coupon never exceeds the pool's interest rate of the month.
    """

    rate: float | None = None
    index: str | None = None
    spread: float = 0.0
    floor: float | None = None
    cap: float | None = None
    steps: list[CouponStep] = Field(default_factory=list)
    available_funds_cap: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in ("rate", "spread", "floor", "cap"):
            _as_decimal(getattr(self, what), f"coupon {what}")
        if (self.rate is None) == (self.index is None):
            raise ValueError("a coupon has either a rate or an index (with a spread)")
        if self.index is None and self.rate is not None and self.rate < 0:
            raise ValueError(f"coupon rate {self.rate:g} is negative")
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise ValueError(f"coupon floor {self.floor:g} is above its cap {self.cap:g}")
        starts = [step.start for step in self.steps]
        if starts != sorted(set(starts)):
            raise ValueError("coupon steps must be in order of their dates")
        return self


class Tranche(Clause):
    """One class of notes or certificates. The order in the deal is the order of seniority.

    Attributes:
        kind: note; residual (takes what is left); io (interest on a notional); accrual (interest is
            added to the balance until the classes in `accrues_until_paid` are paid).
        size: share of the (adjusted) pool, or
        amount: initial balance in money.
        balance: balance at the start of the run when the deal is seasoned (default: `amount`).
        pik: unpaid interest is added to the balance instead of carried.
        interest_on_shortfall: carried shortfalls bear interest at the coupon.
        rank: classes of equal rank are equal in tests; default the place in the list.
        notional: of an io class: names of classes, or ['pool'].
        maturity: final scheduled payment date.
        price: issue price per 1 of balance, used for IRR.
    """

    name: str = Field(min_length=1)
    kind: Literal["note", "residual", "io", "accrual"] = "note"
    size: float | None = None
    amount: float | None = None
    balance: float | None = Field(default=None, ge=0)
    coupon: Coupon | None = None
    day_count: DayCount = "30/360"
    pik: bool = False
    interest_on_shortfall: bool = False
    rank: int | None = None
    notional: Names = Field(default_factory=list)
    accrues_until_paid: Names = Field(default_factory=list)
    maturity: dt.date | None = None
    price: float = Field(default=1.0, gt=0)

    @field_validator("coupon", mode="before")
    @classmethod
    def _plain_rate(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"rate": float(value)} if is_number else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "io":
            if not self.notional:
                raise ValueError(f"io class {self.name!r} needs a notional: class names or ['pool']")
            if self.size is not None or self.amount is not None:
                raise ValueError(f"io class {self.name!r} has a notional and no size of its own")
        elif (self.size is None) == (self.amount is None):
            raise ValueError(f"class {self.name!r} has either a size (share) or an amount")
        elif self.notional:
            raise ValueError(f"class {self.name!r} is no io class, so it has no notional")
        if self.size is not None and not 0 <= self.size <= 1:
            raise ValueError(f"size {self.size:g} of {self.name!r} is a share between 0 and 1")
        if self.amount is not None and self.amount < 0:
            raise ValueError(f"amount {self.amount:g} of {self.name!r} is negative")
        if self.kind != "residual" and self.coupon is None:
            raise ValueError(f"class {self.name!r} needs a coupon (0 for a principal-only class)")
        if self.kind == "residual" and self.coupon is not None and self.coupon.rate != 0:
            raise ValueError(f"residual class {self.name!r} has no coupon: it takes what is left")
        if self.kind == "accrual" and not self.accrues_until_paid:
            raise ValueError(f"accrual class {self.name!r} must say which classes it waits for")
        return self


class Target(Clause):
    """An amount as a rule: max(amount + a x original pool + b x current (adjusted) pool, floors).

    Never more than `cap_notes_share` x the outstanding notes.
    """

    amount: float = Field(default=0.0, ge=0)
    share_of_original: float = Field(default=0.0, ge=0, le=1)
    share_of_pool: float = Field(default=0.0, ge=0, le=1)
    floor_amount: float = Field(default=0.0, ge=0)
    floor_share_of_original: float = Field(default=0.0, ge=0, le=1)
    cap_notes_share: float | None = Field(default=None, gt=0)


class Account(Clause):
    """A named account.

    Attributes:
        kind: reserve (funded at closing, drawn and refilled), prefunding (buys collateral until
            `until_month`, the rest is principal), facility (a lender's limit; draws are owed back).
        initial: balance at closing; of a facility: the limit.
        balance: balance at the start of the run when seasoned (default: `initial`).
        target: what `fund` fills to and `release` keeps; the target is zero once the notes are paid
            and on the last payment date.
        releases_when_enough: once account and cash together pay every class and everything owed, the target
            is zero.
        earnings_rate: paid monthly into interest collections; of a facility: the rate owed on draws.
    """

    name: str = Field(min_length=1)
    kind: Literal["reserve", "prefunding", "facility"] = "reserve"
    initial: Target
    balance: float | None = Field(default=None, ge=0)
    target: Target | None = None
    releases_when_enough: bool = False
    earnings_rate: float = Field(default=0.0, ge=0, le=1)
    until_month: int = Field(default=0, ge=0)


class Fee(Clause):
    """A fee, paid where a step says so; arrears are carried unless `carry` is false.

    Attributes:
        rate: per year on `base`, or
        amount: money per year.
        base: opening pool, opening notes, original pool, or this month's interest collections.
        cap_amount: most that is paid in a period; the excess is carried to the next.
        hurdle_irr, share: of an incentive fee: the share of residual cash it takes once the residual
            class has earned the hurdle.
        hurdle_class: the residual class whose return is measured.
    """

    name: str = Field(min_length=1)
    rate: float | None = None
    amount: float | None = Field(default=None, ge=0)
    base: Literal["pool", "notes", "original_pool", "interest"] = "pool"
    day_count: DayCount = "30/360"
    cap_amount: float | None = Field(default=None, ge=0)
    carry: bool = True
    hurdle_irr: float | None = Field(default=None, ge=0, le=1)
    share: float | None = Field(default=None, ge=0, le=1)
    hurdle_class: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _as_decimal(self.rate, f"fee {self.name!r}: rate")
        incentive = self.hurdle_irr is not None
        if incentive != (self.share is not None) or incentive != (self.hurdle_class is not None):
            raise ValueError(f"incentive fee {self.name!r} needs hurdle_irr, share and hurdle_class together")
        if not incentive and (self.rate is None) == (self.amount is None):
            raise ValueError(f"fee {self.name!r} has either a rate or an amount per year")
        if incentive and (self.rate is not None or self.amount is not None):
            raise ValueError(f"incentive fee {self.name!r} takes a share of the residual, not a rate")
        if self.rate is not None and self.rate < 0:
            raise ValueError(f"fee {self.name!r}: rate {self.rate:g} is negative")
        return self


class Level(Clause):
    """From a payment number (1 is the first) on, another level."""

    from_month: int = Field(ge=1)
    level: float


class CoverageTest(Clause):
    """An OC or IC test of a class together with all senior or equal classes. At the trigger it passes.

    OC = (pool - haircuts + principal cash) / balances. IC = (interest collections - senior fees) /
    interest due.
    """

    name: str = Field(min_length=1)
    kind: Literal["oc", "ic"]
    of: str
    trigger: float = Field(gt=0)
    schedule: list[Level] = Field(default_factory=list)


class Trigger(Clause):
    """A condition that steps name in `when` and `unless`.

    Attributes:
        kind: cumulative_loss (charge-offs less recoveries over the original pool at or above `level`),
            delinquency (delinquent share of the pool, mean of `average_months`, at or above `level`),
            pool_factor (pool over original pool at or below `level`), test (any of `tests` fails),
            date (on or after `date` or payment `from_month`), paid_off (all `classes` are paid),
            interest_shortfall (any of `classes` carries one), undercollateralized (balances of
            `classes` over the adjusted pool above `level`), account_below (`account` below its target).
        schedule: later levels.
        cure: never (sticks), or passing (off as soon as the condition is no longer met).
    """

    name: str = Field(min_length=1)
    kind: Literal[
        "cumulative_loss",
        "delinquency",
        "pool_factor",
        "test",
        "date",
        "paid_off",
        "interest_shortfall",
        "undercollateralized",
        "account_below",
    ]
    level: float | None = None
    schedule: list[Level] = Field(default_factory=list)
    average_months: Literal[1, 3] = 1
    tests: Names = Field(default_factory=list)
    classes: Names = Field(default_factory=list)
    account: str | None = None
    date: dt.date | None = None
    from_month: int | None = Field(default=None, ge=1)
    cure: Literal["never", "passing"] = "passing"

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs: dict[str, bool] = {
            "level": self.kind in ("cumulative_loss", "delinquency", "pool_factor", "undercollateralized"),
            "tests": self.kind == "test",
            "classes": self.kind in ("paid_off", "interest_shortfall", "undercollateralized"),
            "account": self.kind == "account_below",
        }
        for field, needed in needs.items():
            given = getattr(self, field) not in (None, [])
            if given != needed:
                verb = "needs" if needed else "takes no"
                raise ValueError(f"trigger {self.name!r} of kind {self.kind} {verb} {field}")
        if (self.kind == "date") != (self.date is not None or self.from_month is not None):
            raise ValueError(f"trigger {self.name!r}: a date or from_month belongs to the kind date")
        return self


class Swap(Clause):
    """A swap leg pair on a notional: the deal pays one rate and receives the other.

    Attributes:
        notional: names of classes, or ['pool'].
        pay, receive: coupons.
    """

    name: str = Field(min_length=1)
    notional: Names = Field(min_length=1)
    pay: Coupon
    receive: Coupon
    day_count: DayCount = "Act/360"


class Call(Clause):
    """The pool is sold at `price` and the deal ends, if that and the cash at hand pay every note.

    Called when the pool factor is at or below `pool_factor`, or on and after `date` / `from_month`.
    """

    pool_factor: float | None = Field(default=None, gt=0, lt=1)
    date: dt.date | None = None
    from_month: int | None = Field(default=None, ge=1)
    price: float = Field(default=1.0, gt=0, le=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pool_factor is None and self.date is None and self.from_month is None:
            raise ValueError("a call needs a pool_factor, a date or from_month")
        return self


class PrincipalStep(Clause):
    """Pay principal to classes: the outer list in turn, an inner list pro rata by balance.

    Attributes:
        amount: all (whatever the sources hold); to_target (notes down to the adjusted pool less the OC
            target; with a `target` of its own: the listed classes down to the adjusted pool less that
            enhancement); planned (the listed classes down to the balance of `plan`); parity
            (the listed classes down to the adjusted pool; a class at or past its maturity
            is due in full); collections (this period's principal collections and charge-offs, at
            most); shifting (the senior share of scheduled, and a larger share of unscheduled,
            principal, see `shift`); share (the listed classes' share of all balances).
        target: see to_target. plan: of `planned`: balance by payment number, as a PAC or a controlled
            amortisation has it.
        shift: of `shifting`: part of the junior share of unscheduled principal that goes to the senior
            classes, by payment number.
    """

    to: list[str | list[str]] = Field(min_length=1)
    amount: Literal["all", "to_target", "planned", "parity", "collections", "shifting", "share"] = "all"
    target: Target | None = None
    plan: list[Level] = Field(default_factory=list)
    shift: list[Level] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.amount == "shifting") != bool(self.shift):
            raise ValueError("shift belongs to the amount 'shifting', and that needs it")
        if (self.amount == "planned") != bool(self.plan):
            raise ValueError("plan belongs to the amount 'planned', and that needs it")
        if self.target is not None and self.amount != "to_target":
            raise ValueError("target belongs to the amount 'to_target'")
        names = [name for group in self.groups for name in group]
        if len(set(names)) < len(names) or not all(self.groups):
            raise ValueError(f"a principal step names each class once, and no empty group; got {self.to}")
        return self

    @property
    def groups(self) -> list[list[str]]:
        """The outer list, every entry as a group."""
        return [[entry] if isinstance(entry, str) else list(entry) for entry in self.to]


VERBS = (
    "fee",
    "interest",
    "cure",
    "principal",
    "fund",
    "release",
    "reinvest",
    "residual",
    "move",
    "accrue",
    "swap",
    "repay",
    "incentive",
)


class Step(Clause):
    """One line of a waterfall: exactly one verb, and when it applies.

    Attributes:
        fee: pay a fee. interest: pay interest of classes, pro rata. cure: pay principal until the tests
        pass. principal: see `PrincipalStep`. fund / release: an account to its target / above it.
        reinvest: buy collateral while the reinvestment period lasts and its tests pass. residual: all
        that is left to a residual class. move: all that is left to the other pot. accrue: add an
        accrual class's interest to its balance and its cash to principal. swap: settle. repay: a
        facility. incentive: an incentive fee's share of what is left.
        sources: pots and accounts it is paid from, in order; default the waterfall's own pot.
        when, unless: names of triggers (on) and tests (failing); all of `when`, none of `unless`.
    """

    fee: str | None = None
    interest: Names | None = None
    cure: Names | None = None
    principal: PrincipalStep | None = None
    fund: str | None = None
    release: str | None = None
    reinvest: bool | None = None
    residual: str | None = None
    move: Literal["interest", "principal"] | None = None
    accrue: str | None = None
    swap: str | None = None
    repay: str | None = None
    incentive: str | None = None
    sources: Names = Field(default_factory=list, alias="from")
    when: Names = Field(default_factory=list)
    unless: Names = Field(default_factory=list)

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    @field_validator("interest", "cure", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("principal", mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        return (
            {"to": value} if isinstance(value, list) else {"to": [value]} if isinstance(value, str) else value
        )

    @model_validator(mode="after")
    def _one_verb(self) -> Self:
        given = [verb for verb in VERBS if getattr(self, verb) is not None]
        if len(given) != 1:
            raise ValueError(f"a step has exactly one verb of {', '.join(VERBS)}; got {given or 'none'}")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"a step draws on each source once; got {self.sources}")
        for names in (self.interest, self.cure):
            if names is not None and (not names or len(set(names)) < len(names)):
                raise ValueError(f"a step names each class or test once, and at least one; got {names}")
        return self

    @property
    def verb(self) -> str:
        """The one verb."""
        return next(verb for verb in VERBS if getattr(self, verb) is not None)

    @property
    def label(self) -> str:
        """How reports name the step, e.g. 'interest Senior'."""
        value = getattr(self, self.verb)
        if isinstance(value, PrincipalStep):
            names = ", ".join("+".join(group) for group in value.groups)
            return f"principal {names} ({value.amount})"
        if isinstance(value, list):
            return f"{self.verb} {', '.join(value)}"
        return self.verb if value is True else f"{self.verb} {value}"


class Collateral(Clause):
    """What the deal says of its pool.

    Attributes:
        pool_balance: original pool; may also come with the run.
        balance: pool at the start of the run when seasoned.
        recoveries: the pot that recoveries go to.
        ysoc: yield-supplement overcollateralisation at closing, then after each payment date; the
            adjusted pool is the pool less this. A run may bring its own.
        overcollateralization: part of the initial adjusted pool that no class is sold against.
        oc_target: adjusted pool less notes that `to_target` aims at.
        delinquent_haircut: part of delinquent par that OC tests leave out.
        default_credit: part of defaulted par not yet recovered that OC tests count.
    """

    pool_balance: float | None = Field(default=None, gt=0)
    balance: float | None = Field(default=None, ge=0)
    recoveries: Literal["interest", "principal"] = "principal"
    ysoc: list[float] = Field(default_factory=list)
    overcollateralization: float = Field(default=0.0, ge=0)
    oc_target: Target | None = None
    delinquent_haircut: float = Field(default=0.0, ge=0, le=1)
    default_credit: float = Field(default=0.0, ge=0, le=1)


class Reinvestment(Clause):
    """Principal buys collateral in the first `months` months while `tests` (default all) pass.

    Attributes:
        months: length of the period.
        tests: that must pass.
        price: paid per 1 of par.
        min_pool_factor: below this share of the original pool nothing is bought.
        recovery_lag_months: mean time from default to recovery. A slice of the living pool brings no share
            of older defaults, so recoveries scale with the pool of the time of default.
    """

    months: int = Field(ge=0)
    tests: Names | None = None
    price: float = Field(default=1.0, gt=0, le=2)
    min_pool_factor: float = Field(default=0.0, ge=0, le=1)
    recovery_lag_months: float = Field(default=12.0, ge=0)


class Payments(Clause):
    """The calendar: a payment every `every_months` on `day`, moved off weekends and `holidays`.

    Attributes:
        first: first payment date, where it is not `day` of the month `every_months` after closing.
        delay_days: interest accrues to `day`, cash is paid this many days later.
    """

    every_months: Literal[1, 3, 6, 12] = 1
    day: int = Field(default=1, ge=1, le=31)
    business_days: Literal["none", "following", "modified_following", "preceding"] = "none"
    holidays: list[dt.date] = Field(default_factory=list)
    first: dt.date | None = None
    delay_days: int = Field(default=0, ge=0, le=90)


class WaterfallSteps(Clause):
    """The lists of steps: interest and principal apart, or combined in one."""

    interest: list[Step] = Field(default_factory=list)
    principal: list[Step] = Field(default_factory=list)
    combined: list[Step] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.combined) == bool(self.interest or self.principal):
            raise ValueError("a waterfall is either combined, or interest and principal")
        if not self.combined and not (self.interest and self.principal):
            raise ValueError("separate waterfalls need both interest and principal steps")
        return self
