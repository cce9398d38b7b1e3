"""Running a deal over paths and payment dates.

Here: `run_waterfall`, its result, the checks on what comes in and on what has been paid out. Not here: the
rules (`rules`), measures of a result (`metrics`).

Paths come first in every array: P path, T payment date, C cash channel, N tranche. The same code runs one
path or ten thousand; the figures of a path do not depend on the others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pc_pipeline.core.errors import DataError, DealError, SimulationError
from pc_pipeline.schemas.units import CASH_CHANNELS, N_CASH
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.ops import NumpyOps, Ops, TorchOps
from pc_pipeline.waterfall.plan import Plan, make_plan
from pc_pipeline.waterfall.rules import run_month

DatedFlow = Callable[[int, str, str, str, Any], None]
CONSERVATION_TOLERANCE = 1e-9  # of the original pool, per path and date
POOL_TOLERANCE = 1e-6  # collections may exceed the pool by this share of it (rounding)
BLOCK_PATHS = 2048  # paths worked on at a time, so that a month's figures stay in cache
CASH_NAMES = ("interest", "scheduled", "prepaid", "defaulted", "recovery")
EXTRAS = ("other_interest", "other_principal", "delinquent", "ysoc")
_SUMMED = ("other_interest", "other_principal")

TRANCHE_FIGURES = (
    "interest_due",
    "interest_paid",
    "principal_paid",
    "balance",
    "shortfall",
    "capitalized",
    "written_down",
)
POOL_FIGURES = (
    "collections",
    "pool",
    "multiplier",
    "residual",
    "reinvested",
    "cured",
    "sale",
    "called",
    "account_earnings",
    "facility_draws",
    "facility_repaid",
    "swap_paid",
    "swap_received",
    "imbalance",
)
KEPT_FOR_CLASSES = (
    "interest_paid",
    "principal_paid",
    "balance",
    "shortfall",
    "written_down",
    "passed",
    "residual",
    "imbalance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallResult:
    """What was paid, by path (P), payment date (T) and class (N), fee (F), account (A) or test (K).

    Money is in the deal's currency. Arrays are numpy, or torch when tensors came in. A run that kept the
    classes' figures alone (`KEPT_FOR_CLASSES`) has None in place of the others.

    Attributes:
        interest_due, interest_paid, principal_paid: (P, T, N); a residual class's interest is income.
        balance: (P, T, N) after each payment; interest_shortfall: (P, T, N) carried after it.
        capitalized, written_down: (P, T, N) interest added to the balance; written down so far.
        fees: (P, T, F); accounts: (P, T, A) after each payment; reserve: (P, T) sum of accounts.
        residual: (P, T) all that residual holders got, whether they have a class or not.
        ratios, passed: (P, T, K) by test, as measured on the determination date.
        triggers: (P, T, G) 1 where on.
        pool: (P, T) collateral balance; multiplier: (P, T) of the pool by reinvestment.
        totals: further (P, T) figures by name ('collections', 'reinvested', 'cured', 'sale', ...).
        opening_balance: (N,) or (P, N) at the start of the run.
        conservation_error: largest difference of cash in and out, as a share of the original pool.
    """

    deal: Deal
    pool_balance: float
    payment_dates: tuple[dt.date, ...]
    interest_due: Any
    interest_paid: Any
    principal_paid: Any
    balance: Any
    interest_shortfall: Any
    capitalized: Any
    written_down: Any
    fees: Any
    accounts: Any
    residual: Any
    ratios: Any
    passed: Any
    triggers: Any
    pool: Any
    multiplier: Any
    totals: dict[str, Any]
    opening_balance: Any
    original_balance: np.ndarray
    conservation_error: float
    gate: str = "hard"
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def tranche_names(self) -> tuple[str, ...]:
        """Names of the classes, senior first."""
        return self.names["tranche"]

    @property
    def n_paths(self) -> int:
        """P."""
        return int(self.balance.shape[0])

    @property
    def reserve(self) -> Any:
        """(P, T) sum of the account balances."""
        return self.accounts.sum(-1)

    @property
    def cash(self) -> Any:
        """(P, T, N) all that each class received."""
        return self.interest_paid + self.principal_paid

    @property
    def oc_ratio(self) -> np.ndarray:
        """(P, T, N) ratio of each class's OC test; NaN where it has none."""
        return self._by_class("oc", self.ratios, np.nan)

    @property
    def ic_ratio(self) -> np.ndarray:
        """(P, T, N) ratio of each class's IC test; NaN where it has none."""
        return self._by_class("ic", self.ratios, np.nan)

    @property
    def test_passed(self) -> np.ndarray:
        """(P, T, N) bool: every test of the class passed; True where it has none."""
        passed = np.asarray(_plain(self.passed)) >= 0.5
        result = np.ones(self.balance.shape, dtype=bool)
        for place, test in enumerate(self.deal.tests):
            result[..., self.tranche_names.index(test.of)] &= passed[..., place]
        return result

    def _by_class(self, kind: str, values: Any, missing: float) -> np.ndarray:
        result = np.full(self.balance.shape, missing)
        for place, test in enumerate(self.deal.tests):
            if test.kind == kind:
                result[..., self.tranche_names.index(test.of)] = _plain(values)[..., place]
        return result

    def tranche(self, name: str) -> int:
        """Place of a class in the last dimension.

        Raises:
            DealError: there is none of that name.
        """
        if name not in self.tranche_names:
            raise DealError("no such class", expected=", ".join(self.tranche_names), got=name)
        return self.tranche_names.index(name)


def run_waterfall(
    cash_PTC: Any,
    deal: Deal,
    *,
    pool_balance: float | None = None,
    index_rate_PT: Any = None,
    extra_PT: Mapping[str, Any] | None = None,
    gate: str = "auto",
    temperature: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    flow: DatedFlow | None = None,
    method: str = "arrays",
    keep: str = "all",
) -> WaterfallResult:
    """Distribute collections by a deal's terms.

    Args:
        cash_PTC: (P, T, 5) or (T, 5) monthly collections by channel (`schemas.units.CASH_CHANNELS`:
            interest, scheduled principal, prepaid principal, defaulted balance, recovery). A torch
            tensor makes a differentiable run.
        deal: the terms. Where it pays less often than monthly, months are summed by payment period.
        pool_balance: original pool; None takes the deal's own.
        index_rate_PT: index of floating coupons, decimal per year: scalar, (T,), (P, T), or a mapping
            from index name to these.
        extra_PT: 'other_interest', 'other_principal', 'delinquent' (balance), 'ysoc' (after each
            payment): (T,) or (P, T).
        gate: 'hard', 'soft' (tensors only), or 'auto': soft for tensors.
        temperature: of soft gates; None takes the deal's.
        overrides: see `plan.make_plan`; values may be tensors.
        flow: called with (payment number from 0, step, payer, payee, amount (P,)) for every payment; see
            `ledger`.
        method: 'arrays', or 'compiled' machine code recorded from the same rules: seconds to prepare, then
            several times faster (for millions of path-months; no tensors, no ledger).
        keep: 'all' figures, or 'classes': a third of the memory, for many paths.

    Returns:
        The result, checked for conservation.

    Raises:
        DataError: collections that are NaN, negative, misshapen or more than the pool.
        DealError: a missing pool balance or index.
        SimulationError: cash in and out differ.
    """
    tensors = [cash_PTC, *(overrides or {}).values()]
    is_torch = any(hasattr(value, "requires_grad") for value in tensors)
    if method not in ("arrays", "compiled") or (method == "compiled" and (is_torch or flow is not None)):
        raise DealError(
            "unknown method", expected="arrays, or compiled without tensors and ledger", got=method
        )
    if keep not in ("all", "classes"):
        raise DealError("unknown figures to keep", expected="all or classes", got=keep)
    if gate not in ("auto", "hard", "soft") or (gate == "soft" and not is_torch):
        raise DealError("unknown gate", expected="auto, hard, or soft with tensors", got=gate)
    cash = cash_PTC if is_torch else np.asarray(cash_PTC, dtype=np.float64)
    cash = cash[None] if cash.ndim == 2 else cash
    check_collections(_plain(cash))
    every = deal.payments.every_months
    n_paths, n_months = cash.shape[:2]
    n_periods = -(-n_months // every)
    plan = make_plan(deal, pool_balance, n_periods, overrides)
    check_pool(_plain(cash), plan)
    inputs = _inputs(cash, plan, index_rate_PT, extra_PT, n_months)
    soft = is_torch and gate != "hard"
    places = figure_places(plan, keep)
    if is_torch:
        ops = _torch_ops(tensors, (temperature or deal.soft_temperature) if soft else None)
        figures = _run_tensors(ops, plan, inputs, n_paths, flow, places)
    elif method == "compiled":
        from pc_pipeline.waterfall.compiled import run_compiled  # numba takes half a second to import

        figures = run_compiled(plan, inputs, list(places), n_paths)
    else:
        figures = _run_arrays(plan, inputs, n_paths, flow, places)
    return _result(plan, figures, "soft" if soft else "hard", places)


# ---- what comes in --------------------------------------------------------------------------------


def check_collections(cash_PTC: np.ndarray) -> None:
    """Shape (P, T, 5), finite, not negative.

    Raises:
        DataError: otherwise, naming the first offending path, month and channel.
    """
    if cash_PTC.ndim != 3 or cash_PTC.shape[-1] != N_CASH or 0 in cash_PTC.shape:
        expected = f"(paths, months, {N_CASH}): {', '.join(CASH_CHANNELS)}"
        raise DataError("collections are misshapen", expected=expected, got=cash_PTC.shape)
    if cash_PTC.min() >= 0.0 and np.isfinite(cash_PTC.max()):
        return
    with np.errstate(invalid="ignore"):
        bad = ~(cash_PTC >= 0.0) | np.isinf(cash_PTC)
    if bad.any():
        path, month, channel = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            "collections must be finite and not negative",
            got=float(cash_PTC[path, month, channel]),
            where=f"path {path}, month {month + 1}, {CASH_CHANNELS[channel]}",
        )


def check_pool(cash_PTC: np.ndarray, plan: Plan) -> None:
    """Principal and charge-offs never exceed the pool they come from.

    Raises:
        DataError: otherwise.
    """
    gone = cash_PTC[..., 1:4].sum(axis=(-2, -1))
    limit = plan.opening_pool + POOL_TOLERANCE * plan.pool
    if (gone > limit).any():
        path = int(np.argmax(gone))
        raise DataError(
            "principal and charge-offs exceed the pool",
            expected=f"at most {plan.opening_pool:,.2f}",
            got=f"{gone[path]:,.2f}",
            where=f"path {path}",
        )


def _inputs(
    cash: Any, plan: Plan, index: Any, extra: Mapping[str, Any] | None, n_months: int
) -> dict[str, Any]:
    """Every cash figure by payment date: (P, T) or (T,) each."""
    unknown = set(extra or {}) - set(EXTRAS)
    if unknown:
        raise DataError("unknown extra collections", expected=", ".join(EXTRAS), got=sorted(unknown))
    every = plan.deal.payments.every_months
    inputs = {name: _by_period(cash[..., c], every, "sum") for c, name in enumerate(CASH_NAMES)}
    for name in EXTRAS:
        if extra is None or name not in extra:
            continue
        values = _series(extra[name], n_months, name)
        if not np.isfinite(_plain(values)).all() or (_plain(values) < 0).any():
            raise DataError("extra collections must be finite and not negative", got=name)
        inputs[name] = _by_period(values, every, "sum" if name in _SUMMED else "last")
    for name in plan.indices:
        if index is None or (isinstance(index, Mapping) and name not in index):
            raise DealError("the deal needs an index that did not come", expected=name, where=plan.deal.name)
        values = _series(index[name] if isinstance(index, Mapping) else index, n_months, f"index {name}")
        if not np.isfinite(_plain(values)).all():
            raise DataError("index rates must be finite", got=name)
        inputs[f"index.{name}"] = _by_period(values, every, "first")
    return inputs


def _series(values: Any, n_months: int, name: str) -> Any:
    if not hasattr(values, "requires_grad"):
        values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0:
        values = values + np.zeros(n_months)
    if values.ndim > 2 or values.shape[-1] != n_months:
        raise DataError(f"{name} is misshapen", expected=f"(.., {n_months})", got=tuple(values.shape))
    return values


def _by_period(values: Any, every: int, how: str) -> Any:
    if every == 1:
        return values
    n_months = values.shape[-1]
    groups = [slice(start, min(start + every, n_months)) for start in range(0, n_months, every)]
    pick = {
        "sum": lambda g: values[..., g].sum(-1),
        "first": lambda g: values[..., g.start],
        "last": lambda g: values[..., g.stop - 1],
    }[how]
    parts = [pick(g) for g in groups]
    return np.stack(parts, -1) if isinstance(values, np.ndarray) else _stack(parts, -1)


# ---- the loops ------------------------------------------------------------------------------------


def layout(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Names along the last dimension of each figure."""
    deal = plan.deal
    return {
        "tranche": tuple(t.name for t in deal.tranches),
        "fee": tuple(f.name for f in deal.fees),
        "account": tuple(a.name for a in deal.accounts),
        "test": tuple(t.name for t in deal.tests),
        "trigger": tuple(t.name for t in deal.triggers),
    }


def figure_places(plan: Plan, keep: str = "all") -> dict[str, int]:
    """Where each recorded figure stands in one long list; see `run_waterfall` for `keep`."""
    names = layout(plan)
    keys = [f"{figure}.{name}" for figure in TRANCHE_FIGURES for name in names["tranche"]]
    keys += [f"fee.{name}" for name in names["fee"]] + [f"account.{name}" for name in names["account"]]
    keys += [f"{figure}.{name}" for figure in ("ratio", "passed") for name in names["test"]]
    keys += [f"on.{name}" for name in names["trigger"]] + list(POOL_FIGURES)
    kept = [key for key in keys if keep == "all" or key.partition(".")[0] in KEPT_FOR_CLASSES]
    return {key: place for place, key in enumerate(kept)}


def _month_inputs(
    plan: Plan, inputs: Mapping[str, Any], t: int, rows: slice | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    constants = {name: values[t] for name, values in plan.constants.items()}
    cash = {"other_interest": 0.0, "other_principal": 0.0, "delinquent": 0.0, "ysoc": constants["ysoc"]}
    for name, values in inputs.items():
        own = (
            values[..., t]
            if values.ndim == 1 or rows is None
            else values[rows, t]
            if len(values) > 1
            else values[0, t]
        )
        cash[name] = own
    return cash, constants


def _run_arrays(
    plan: Plan,
    inputs: Mapping[str, np.ndarray],
    n_paths: int,
    flow: DatedFlow | None,
    places: Mapping[str, int],
) -> np.ndarray:
    """(J, T, P) every recorded figure, block of paths by block."""
    ops = NumpyOps()
    constants = {name: np.asarray(values).tolist() for name, values in plan.constants.items()}
    plain = _with_constants(plan, constants)
    figures = np.zeros((len(places), plan.n_periods, n_paths))
    block = n_paths if flow is not None else BLOCK_PATHS
    for start in range(0, n_paths, block):
        rows = slice(start, min(start + block, n_paths))
        width = rows.stop - rows.start
        state: dict[str, Any] = {name: np.full(width, float(value)) for name, value in plan.state.items()}
        with np.errstate(over="ignore"):
            for t in range(plan.n_periods):
                cash, k = _month_inputs(plain, inputs, t, rows)
                state, out = run_month(ops, plan, state, cash, k, flow and partial(flow, t))
                for name in places.keys() & out.keys():
                    figures[places[name], t, rows] = out[name]
    return figures


def _with_constants(plan: Plan, constants: dict[str, Any]) -> Plan:
    return replace(plan, constants=constants)


def _torch_ops(tensors: list[Any], temperature: float | None) -> TorchOps:
    first = next(value for value in tensors if hasattr(value, "requires_grad"))
    return TorchOps(temperature, first.dtype, first.device)


def _run_tensors(
    ops: Any,
    plan: Plan,
    inputs: Mapping[str, Any],
    n_paths: int,
    flow: DatedFlow | None,
    places: Mapping[str, int],
) -> Any:
    """Tensor (J, T, P) of every recorded figure."""
    zero = ops._tensor(np.zeros(n_paths))
    inputs = {name: ops._tensor(values) for name, values in inputs.items()}
    state: dict[str, Any] = {name: zero + value for name, value in plan.state.items()}
    months = []
    for t in range(plan.n_periods):
        cash, k = _month_inputs(plan, inputs, t, None)
        state, out = run_month(ops, plan, state, cash, k, flow and partial(flow, t))
        months.append(_stack([zero + out.get(name, 0.0) for name in places], 0))
    return _stack(months, 1)


def _stack(parts: list[Any], dim: int) -> Any:
    import torch

    return torch.stack(parts, dim)


def _plain(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


# ---- what goes out --------------------------------------------------------------------------------


def _result(plan: Plan, figures: Any, gate: str, places: Mapping[str, int]) -> WaterfallResult:
    names = layout(plan)

    def group(figure: str, kind: str) -> Any:
        keys = [f"{figure}.{name}" for name in names[kind]]
        if keys and keys[0] not in places:
            return None
        first = places[keys[0]] if keys else 0
        block = figures[first : first + len(keys)]
        return block.permute(2, 1, 0) if hasattr(block, "permute") else block.transpose(2, 1, 0)

    def single(figure: str) -> Any:
        return figures[places[figure]].T if figure in places else None

    error = float(np.max(np.abs(_plain(figures[places["imbalance"]])))) / plan.pool
    opening = [plan.state.get(f"balance.{name}", 0.0) for name in names["tranche"]]
    is_plain = not any(hasattr(value, "requires_grad") for value in opening)
    original = np.array(plan.deal.balances(plan.pool))
    result = WaterfallResult(
        deal=plan.deal,
        pool_balance=plan.pool,
        payment_dates=plan.calendar.payment,
        **{figure: group(figure, "tranche") for figure in TRANCHE_FIGURES if figure != "shortfall"},
        interest_shortfall=group("shortfall", "tranche"),
        fees=group("fee", "fee"),
        accounts=group("account", "account"),
        ratios=group("ratio", "test"),
        passed=group("passed", "test"),
        triggers=group("on", "trigger"),
        residual=single("residual"),
        pool=single("pool"),
        multiplier=single("multiplier"),
        totals={name: single(name) for name in POOL_FIGURES if name in places},
        opening_balance=np.array(opening)
        if is_plain
        else _stack([0.0 * figures[0, 0, 0] + o for o in opening], 0),
        original_balance=original,
        conservation_error=error,
        gate=gate,
        names=names,
    )
    if not result.conservation_error <= CONSERVATION_TOLERANCE * (1.0 if is_float64(figures) else 1e4):
        raise SimulationError(
            "cash paid out differs from cash taken in",
            expected=f"at most {CONSERVATION_TOLERANCE} of the pool",
            got=result.conservation_error,
            where=plan.deal.name,
        )
    return result


def is_float64(values: Any) -> bool:
    """Whether an array or tensor is in double precision."""
    return "float64" in str(values.dtype)


__all__ = ["Ops", "WaterfallResult", "run_waterfall"]
