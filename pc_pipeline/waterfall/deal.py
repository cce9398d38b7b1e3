"""A deal as data: the whole of it, its cross-checks, and reading it from YAML.

Here: `Deal`, `load_deal`, and errors that name the clause and the line. Not here: the single clauses
(`terms`), the standard order of payments (`standard`), the arithmetic (`rules`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pc_pipeline.core.errors import DealError
from pc_pipeline.waterfall.standard import standard_steps
from pc_pipeline.waterfall.terms import (
    Account,
    Call,
    Clause,
    Collateral,
    CoverageTest,
    Fee,
    Payments,
    Reinvestment,
    Step,
    Swap,
    Tranche,
    Trigger,
    WaterfallSteps,
)

SIZE_TOLERANCE = 1e-9  # shares
MONEY_TOLERANCE = 0.01  # amounts: one cent


class ClauseError(ValueError):
    """A cross-check failed at a clause; `path` leads to it from the top of the deal."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        self.path, self.message = path, message
        super().__init__(message)


class Deal(Clause):
    """A securitisation's terms.

    Attributes:
        closing_date: interest accrues from here.
        tranches: in order of seniority, residual classes last.
        waterfall: lists of steps; left out or 'standard': the order of docs/methods/waterfall.md section
            2, built by `standard_steps`.
        losses: unpaid (balances stand until the end) or write_down (junior first, as the pool falls
            below the balances; written up again when it does not).
        reproduced: what of it has been checked against published figures, and how close.
        rounding: payments are rounded to this unit (0.01: cents); 0 means not at all.
        soft_temperature: of the gates when gradients are asked for.
    """

    name: str = Field(min_length=1)
    description: str = ""
    source: str = ""
    reproduced: list[str] = Field(default_factory=list)
    currency: str = "USD"
    closing_date: dt.date = dt.date(2024, 1, 1)
    payments: Payments = Field(default_factory=Payments)
    collateral: Collateral = Field(default_factory=Collateral)
    tranches: list[Tranche] = Field(min_length=1)
    accounts: list[Account] = Field(default_factory=list)
    fees: list[Fee] = Field(default_factory=list)
    tests: list[CoverageTest] = Field(default_factory=list)
    triggers: list[Trigger] = Field(default_factory=list)
    swaps: list[Swap] = Field(default_factory=list)
    reinvestment: Reinvestment | None = None
    call: Call | None = None
    waterfall: WaterfallSteps | None = None
    subordinated_fees: list[str] = Field(default_factory=list)
    losses: Literal["unpaid", "write_down"] = "unpaid"
    rounding: float = Field(default=0.0, ge=0)
    soft_temperature: float = Field(default=0.1, gt=0)

    @field_validator("waterfall", mode="before")
    @classmethod
    def _standard(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "standard":
            raise ValueError(f"waterfall is 'standard' or lists of steps, not {value!r}")
        return None if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for check in (check_names, check_sizes, check_seniority, check_references, check_dates, check_steps):
            check(self)
        return self

    @property
    def steps(self) -> WaterfallSteps:
        """The lists of steps, built from the clauses where the deal says 'standard'."""
        if self.waterfall is not None:
            return self.waterfall
        return standard_steps(
            self.tranches, self.fees, self.tests, self.accounts, self.reinvestment, self.subordinated_fees
        )

    @property
    def tranche_names(self) -> list[str]:
        """Names of the classes, senior first."""
        return [tranche.name for tranche in self.tranches]

    def tranche(self, name: str) -> Tranche:
        """The class called `name`.

        Raises:
            DealError: there is none.
        """
        for tranche in self.tranches:
            if tranche.name == name:
                return tranche
        raise DealError("no such class", expected=", ".join(self.tranche_names), got=name, where=self.name)

    def as_of(
        self,
        payment_date: dt.date,
        *,
        pool: float,
        balances: Mapping[str, float],
        accounts: Mapping[str, float] | None = None,
    ) -> Deal:
        """The deal as it stood after a payment: interest accrues from there, balances are those given.

        Args:
            payment_date: last payment date, unadjusted.
            pool: pool balance after it.
            balances: of the classes that still have one; classes left out are paid off.
            accounts: account balances; default as at closing.

        Raises:
            DealError: a name is unknown.
        """
        held = dict(accounts or {})
        for name in [*balances, *held]:
            if name not in [*self.tranche_names, *(a.name for a in self.accounts)]:
                raise DealError("no such class or account", got=name, where=self.name)
        tranches = [t.model_copy(update={"balance": balances.get(t.name, 0.0)}) for t in self.tranches]
        kept = [a.model_copy(update={"balance": held.get(a.name, a.balance)}) for a in self.accounts]
        return self.model_copy(
            update={
                "closing_date": payment_date,
                "payments": self.payments.model_copy(update={"first": None}),
                "collateral": self.collateral.model_copy(update={"balance": pool}),
                "tranches": tranches,
                "accounts": kept,
            }
        )

    def rank(self, name: str) -> int:
        """Seniority of a class: 0 is the most senior; classes of equal rank are equal in tests."""
        index = self.tranche_names.index(name)
        rank = self.tranches[index].rank
        return index if rank is None else rank

    def balances(self, pool_balance: float) -> list[float]:
        """Initial balance of each class for an original pool; shares are of the adjusted pool."""
        base = pool_balance - (self.collateral.ysoc[0] if self.collateral.ysoc else 0.0)
        return [(t.amount if t.amount is not None else (t.size or 0.0) * base) for t in self.tranches]


# ---- cross-checks: each raises ClauseError with the path of the offending clause ----------------


def check_names(deal: Deal) -> None:
    """Every name once, over all clauses; pots keep their names."""
    seen = {"interest", "principal", "pool"}
    for kind in ("tranches", "accounts", "fees", "tests", "triggers", "swaps"):
        for index, clause in enumerate(getattr(deal, kind)):
            if clause.name in seen:
                raise ClauseError((kind, index, "name"), f"the name {clause.name!r} is already taken")
            seen.add(clause.name)


def check_sizes(deal: Deal) -> None:
    """Shares add up to 1; amounts add up to adjusted pool less overcollateralisation, to the cent."""
    sized = [t for t in deal.tranches if t.kind != "io"]
    shares = [t.size for t in sized if t.size is not None]
    if shares and len(shares) != len(sized):
        raise ClauseError(("tranches",), "sizes are shares of some classes and amounts of others")
    pool = deal.collateral.pool_balance
    held = deal.collateral.overcollateralization
    if shares:
        held_share = held / pool if pool else 0.0
        if held and not pool:
            raise ClauseError(("collateral", "overcollateralization"), "needs collateral.pool_balance")
        if abs(sum(shares) + held_share - 1.0) > SIZE_TOLERANCE:
            raise ClauseError(("tranches",), f"sizes add up to {sum(shares) + held_share:.10g}, not to 1")
    elif pool is not None:
        ysoc = deal.collateral.ysoc[0] if deal.collateral.ysoc else 0.0
        total = sum(t.amount or 0.0 for t in sized) + held
        if abs(total - (pool - ysoc)) > MONEY_TOLERANCE:
            raise ClauseError(
                ("tranches",),
                f"amounts and overcollateralization add up to {total:,.2f}, "
                f"pool less yield supplement is {pool - ysoc:,.2f}",
            )


def check_seniority(deal: Deal) -> None:
    """Residual classes come last; ranks never fall down the list; some class earns a coupon."""
    kinds = [t.kind for t in deal.tranches]
    if "residual" in kinds and any(k != "residual" for k in kinds[kinds.index("residual") :]):
        raise ClauseError(("tranches", kinds.index("residual")), "residual classes come last in seniority")
    ranks = [deal.rank(name) for name in deal.tranche_names]
    for index in range(1, len(ranks)):
        if ranks[index] < ranks[index - 1]:
            raise ClauseError(("tranches", index, "rank"), "a class cannot rank above the one before it")
    if all(kind == "residual" for kind in kinds):
        raise ClauseError(("tranches",), "a deal needs at least one class that is no residual")


def check_references(deal: Deal) -> None:
    """Every name that a clause uses exists and is of the right kind; nothing supports itself."""
    notes = {t.name for t in deal.tranches if t.kind in ("note", "accrual")}
    names = {t.name for t in deal.tranches}
    accounts = {a.name for a in deal.accounts if a.kind != "facility"}
    tests = {t.name for t in deal.tests}
    residuals = {t.name for t in deal.tranches if t.kind == "residual"}
    for i, tranche in enumerate(deal.tranches):
        if tranche.notional != ["pool"]:
            _known(tranche.notional, notes, ("tranches", i, "notional"), "class with a balance")
        _known(
            tranche.accrues_until_paid, names - {tranche.name}, ("tranches", i, "accrues_until_paid"), "class"
        )
    _no_circle({t.name: t.accrues_until_paid for t in deal.tranches})
    for i, test in enumerate(deal.tests):
        _known([test.of], notes, ("tests", i, "of"), "class with a coupon")
    for i, trigger in enumerate(deal.triggers):
        _known(trigger.tests, tests, ("triggers", i, "tests"), "test")
        _known(trigger.classes, names, ("triggers", i, "classes"), "class")
        if trigger.account is not None:
            _known([trigger.account], accounts, ("triggers", i, "account"), "account")
    for i, fee in enumerate(deal.fees):
        if fee.hurdle_class is not None:
            _known([fee.hurdle_class], residuals, ("fees", i, "hurdle_class"), "residual class")
    for i, swap in enumerate(deal.swaps):
        if swap.notional != ["pool"]:
            _known(swap.notional, notes, ("swaps", i, "notional"), "class with a balance")
    if deal.reinvestment is not None and deal.reinvestment.tests is not None:
        _known(deal.reinvestment.tests, tests, ("reinvestment", "tests"), "test")
    _known(deal.subordinated_fees, {f.name for f in deal.fees}, ("subordinated_fees",), "fee")
    if 0 < deal.rounding < 1e-6:
        raise ClauseError(
            ("rounding",), f"rounding is 0 or a unit of money such as 0.01, not {deal.rounding:g}"
        )


def check_dates(deal: Deal) -> None:
    """Maturities, coupon steps, calls and the first payment lie after closing."""
    for i, tranche in enumerate(deal.tranches):
        if tranche.maturity is not None and tranche.maturity <= deal.closing_date:
            raise ClauseError(("tranches", i, "maturity"), f"{tranche.maturity} is not after closing")
        for j, step in enumerate(tranche.coupon.steps if tranche.coupon else []):
            if step.start < deal.closing_date:
                raise ClauseError(("tranches", i, "coupon", "steps", j), f"{step.start} is before closing")
    if deal.payments.first is not None and deal.payments.first <= deal.closing_date:
        raise ClauseError(("payments", "first"), f"first payment {deal.payments.first} is not after closing")
    if deal.call is not None and deal.call.date is not None and deal.call.date <= deal.closing_date:
        raise ClauseError(("call", "date"), f"call date {deal.call.date} is not after closing")


def check_steps(deal: Deal) -> None:
    """Every step names clauses that exist; every class with a coupon is paid interest somewhere."""
    if deal.waterfall is None:
        return
    known = {
        "fee": ({f.name for f in deal.fees if f.share is None}, "fee"),
        "incentive": ({f.name for f in deal.fees if f.share is not None}, "incentive fee"),
        "interest": ({t.name for t in deal.tranches if t.kind != "residual"}, "class with a coupon"),
        "cure": ({t.name for t in deal.tests}, "test"),
        "principal": ({t.name for t in deal.tranches if t.kind != "io"}, "class with a balance"),
        "fund": ({a.name for a in deal.accounts if a.kind == "reserve"}, "reserve account"),
        "release": ({a.name for a in deal.accounts if a.kind != "facility"}, "account"),
        "repay": ({a.name for a in deal.accounts if a.kind == "facility"}, "facility"),
        "residual": ({t.name for t in deal.tranches if t.kind == "residual"}, "residual class"),
        "accrue": ({t.name for t in deal.tranches if t.kind == "accrual"}, "accrual class"),
        "swap": ({s.name for s in deal.swaps}, "swap"),
    }
    conditions = {t.name for t in deal.triggers} | {t.name for t in deal.tests}
    sources = {"interest", "principal"} | {a.name for a in deal.accounts if a.kind != "prefunding"}
    if deal.waterfall.combined:
        sources |= {"combined"}
        sources -= {"interest", "principal"}
    for path, step in _walk_steps(deal.waterfall):
        value = getattr(step, step.verb)
        if step.verb in known:
            allowed, what = known[step.verb]
            used = (
                _flat(value.groups)
                if step.verb == "principal"
                else value
                if isinstance(value, list)
                else [value]
            )
            _known(used, allowed, (*path, step.verb), what)
        filled = {"fund": step.fund, "repay": step.repay, "move": step.move}.get(step.verb)
        if filled is not None and filled in (step.sources or [str(path[1])]):
            raise ClauseError((*path, step.verb), f"circular support: {filled!r} would be paid from itself")
        if step.move == "interest" or (step.move is not None and path[1] == "combined"):
            raise ClauseError((*path, "move"), "cash moves from interest to principal: the other comes first")
        if step.verb == "reinvest" and deal.reinvestment is None:
            raise ClauseError((*path, "reinvest"), "the deal has no reinvestment clause")
        _known(step.sources, sources, (*path, "from"), "pot or account")
        _known([*step.when, *step.unless], conditions, path, "trigger or test")
    _all_served(deal)


def _all_served(deal: Deal) -> None:
    steps = [step for _, step in _walk_steps(deal.steps)]
    earning = _flat([s.interest for s in steps if s.interest]) + [s.accrue for s in steps if s.accrue]
    repaid = _flat([_flat(s.principal.groups) for s in steps if s.principal]) + [s.residual for s in steps]
    for i, tranche in enumerate(deal.tranches):
        pays_coupon = tranche.coupon is not None and tranche.coupon.rate != 0
        if tranche.kind != "residual" and pays_coupon and tranche.name not in earning:
            raise ClauseError(("tranches", i), f"no step pays interest to {tranche.name!r}")
        if tranche.kind != "io" and tranche.name not in repaid:
            raise ClauseError(("tranches", i), f"no step pays principal to {tranche.name!r}")


def _walk_steps(steps: WaterfallSteps) -> Iterator[tuple[tuple[str | int, ...], Step]]:
    for pot in ("interest", "principal", "combined"):
        for index, step in enumerate(getattr(steps, pot)):
            yield ("waterfall", pot, index), step


def _flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for entry in lists for item in entry]


def _known(used: Iterable[str], allowed: set[str], path: tuple[str | int, ...], what: str) -> None:
    for name in used:
        if name not in allowed:
            raise ClauseError(
                path, f"{name!r} is no {what}; there are: {', '.join(sorted(allowed)) or 'none'}"
            )


def _no_circle(waits: dict[str, list[str]]) -> None:
    for start in waits:
        reached, frontier = set(), list(waits[start])
        while frontier:
            name = frontier.pop()
            if name == start:
                raise ClauseError(
                    ("tranches",), f"circular support: {start!r} waits, through others, for itself"
                )
            if name not in reached:
                reached.add(name)
                frontier.extend(waits.get(name, []))


# ---- reading ------------------------------------------------------------------------------------


def parse_deal(
    terms: dict[str, Any], *, where: str = "deal", lines: dict[tuple[str | int, ...], int] | None = None
) -> Deal:
    """A `Deal` from plain data.

    Args:
        terms: nested mappings and lists as YAML gives them.
        where: name of the source, for messages.
        lines: line number of each clause path.

    Raises:
        DealError: a clause is missing, misspelt, of the wrong type, or contradicts another; the message
            names the clause and, from a file, its line.
    """
    try:
        return Deal.model_validate(terms)
    except ValidationError as error:
        problems = [_describe(problem, where, lines or {}) for problem in error.errors()]
        raise DealError(
            f"the deal's terms do not hold: {len(problems)} problem(s)\n" + "\n".join(problems), where=where
        ) from error


def _describe(problem: Any, where: str, lines: dict[tuple[str | int, ...], int]) -> str:
    cause = (problem.get("ctx") or {}).get("error")
    path = tuple(cause.path) if isinstance(cause, ClauseError) else tuple(problem["loc"])
    known = path
    while known and known not in lines:
        known = known[:-1]
    place = f"{where}:{lines[known]}: " if known in lines else ""
    dotted = ".".join(str(part) for part in path if not str(part).startswith("function-")) or "deal"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {place}{dotted}: {message}"


def load_deal(path: str | Path) -> Deal:
    """Read and check one deal from YAML.

    Raises:
        DealError: no such file, not YAML, a repeated key, or terms that do not hold (see `parse_deal`).
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DealError("the deal cannot be read", got=error, where=source) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise DealError("the deal is not YAML", got=str(error), where=source) from error
    if not isinstance(root, yaml.MappingNode):
        raise DealError("a deal is a mapping of clauses", got="something else", where=source)
    lines: dict[tuple[str | int, ...], int] = {}
    _map_lines(root, (), lines, source.name)
    terms = yaml.safe_load(text)
    return parse_deal(terms, where=source.name, lines=lines)


def _map_lines(
    node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], where: str
) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise DealError(
                    f"{where}:{key.start_mark.line + 1}: the key {key.value!r} is repeated", where=where
                )
            seen.add(key.value)
            _map_lines(value, (*path, key.value), lines, where)
            lines[(*path, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _map_lines(value, (*path, index), lines, where)
    elif isinstance(node, yaml.ScalarNode) and node.tag.endswith(":timestamp"):
        try:
            yaml.SafeLoader("").construct_yaml_timestamp(node)
        except ValueError as error:
            raise DealError(
                f"{where}:{lines[path]}: {node.value!r} is off the calendar", got=error, where=where
            ) from error
