"""Expected cash of loans given their transition rows: exact, differentiable, no sampling.

Here: propagation of state probabilities with the memory that the paid-through ledger needs, and the
choice of representative loans. Not here: where rows come from (`transition_transformer`,
`loan_trajectory`), sampled cash (`paid_through`, `simulation`).

Given the macro path, a loan is a Markov chain on (state, instalments in arrears d, months since its
last miss), and its cash is linear in the chain's probabilities. Performing loans have d = 0, 30dpd
d = 1, 60dpd d = 1 or 2 (1 after a jump from performing), 90dpd any d >= 1. For d >= 3 every cure pays
down to the same place, so instead of a distribution over d four moments are carried, each an exact sum
over the mass in the slot (docs/methods/joint.md, eqs. (3)-(6)):

    mass,  E[S(tau)],  E[I(tau)],  E[R(tau) S(tau)]

S(tau) is the scheduled balance after tau instalments, I(tau) the scheduled interest of the first tau
instalments, R(tau) the sum of their monthly rates.

Shapes: leading dimensions (...) are paths; L loan, T month, K state, G row class, C cash channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from pc_pipeline.core.errors import ModelError
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import N_CASH

_MASS, _BALANCE, _INTEREST, _RATED = range(4)  # the four moments of a slot
_SLOTS: Final = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3))  # (state, arrears; 3 means 3 or more)
_SLOT_ROWS: Final = [state - 1 for state, _ in _SLOTS]  # row of each slot among 30dpd, 60dpd, 90dpd


@dataclass(frozen=True, slots=True)
class Lines:
    """Loans, or representative loans, at the cut-off.

    Attributes:
        balance_LX: (L, N+1) scheduled balance S(tau) after tau = 0..N instalments; 0 from the term on.
        term_L: (L,) instalments n.
        age_L: (L,) instalments due up to the cut-off, < n.
        state_L: (L,) state 0-3 at the cut-off.
        arrears_L: (L,) unpaid instalments among those due, 0 where performing, >= 1 elsewhere.
        since_miss_L: (L,) months since the last delinquent month, -1 never.
        weight_L: (L,) loans that each line stands for.
    """

    balance_LX: torch.Tensor
    term_L: torch.Tensor
    age_L: torch.Tensor
    state_L: torch.Tensor
    arrears_L: torch.Tensor
    since_miss_L: torch.Tensor
    weight_L: torch.Tensor

    @classmethod
    def make(
        cls,
        balance_LX: torch.Tensor,
        term_L: torch.Tensor,
        age_L: torch.Tensor | None = None,
        state_L: torch.Tensor | None = None,
        arrears_L: torch.Tensor | None = None,
        since_miss_L: torch.Tensor | None = None,
        weight_L: torch.Tensor | None = None,
    ) -> Lines:
        """Defaults: new, performing, arrears equal to the state's buckets, never missed, one loan each.

        Raises:
            ModelError: shapes or positions that contradict each other.
        """
        n_lines = len(term_L)
        zeros = torch.zeros(n_lines, dtype=torch.long, device=balance_LX.device)
        state = zeros if state_L is None else state_L.long()
        since = torch.where(state > 0, zeros, zeros - 1) if since_miss_L is None else since_miss_L.long()
        lines = cls(
            balance_LX.double(),
            term_L.long(),
            zeros if age_L is None else age_L.long(),
            state,
            state if arrears_L is None else arrears_L.long(),
            since,
            torch.ones(n_lines, dtype=torch.float64, device=balance_LX.device)
            if weight_L is None
            else weight_L.double(),
        )
        lines.check()
        return lines

    def check(self) -> None:
        """Raise where positions contradict each other."""
        if self.balance_LX.ndim != 2 or int(self.term_L.max()) >= self.balance_LX.shape[1]:
            raise ModelError(
                "schedules are too short",
                expected=f"S(0)..S({int(self.term_L.max())})",
                got=tuple(self.balance_LX.shape),
            )
        wrong = {
            "age below 0 or not below the term": (self.age_L < 0) | (self.age_L >= self.term_L),
            "state that is not living": (self.state_L < 0) | (self.state_L >= N_LIVING),
            "arrears against the state": (self.arrears_L == 0) != (self.state_L == 0),
            "more arrears than instalments due": self.arrears_L > self.age_L,
        }
        for what, mask in wrong.items():
            if bool(mask.any()):
                raise ModelError(f"a loan has {what}", where=f"line {int(mask.nonzero()[0, 0])}")

    @property
    def outstanding_L(self) -> torch.Tensor:
        """(L,) balance at the cut-off, S(age - arrears)."""
        return _at(self.balance_LX, self.age_L - self.arrears_L)


def expected_cash(
    rows: torch.Tensor,
    lines: Lines,
    rate: torch.Tensor,
    severity: torch.Tensor | float = 0.0,
    *,
    recovery_lag: Sequence[float] | torch.Tensor = (1.0,),
    since_class: torch.Tensor | None = None,
    horizon_sale: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected monthly cash of each line, and where its probability stands.

    Args:
        rows: (..., L, T, G, 7) probabilities from living states before the contract's end is applied.
            G = 4: one row per living state. G = H + 3 with `since_class`: H rows for performing loans
            by class of months since the last miss, then 30dpd, 60dpd, 90dpd.
        rate: (L,) or (..., L, T) coupon in force each month, decimal per year. Arrears from before the
            cut-off accrued at the first month's rate.
        severity: loss share of the charge-off, scalar or broadcastable to (..., L, T) (by month of default).
        recovery_lag: shares of the recovery that arrive 0, 1, 2, ... months after default.
        since_class: (S+1,) row class of a performing loan: entry 0 never missed, entry s missed s months
            ago, the last entry that long or longer.
        horizon_sale: in the last month sell living balances below 90dpd at par, charge off 90dpd with
            recovery at once, and collect pending recoveries.

    Returns:
        (cash (..., L, T, 5) per single loan in the order of `CASH_CHANNELS`, states (..., L, T, 7)
        probabilities at the end of each month before any sale); both float64.

    Raises:
        ModelError: shapes that do not fit.
    """
    n_lines, n_months = len(lines.term_L), rows.shape[-3] if rows.ndim >= 4 else 0
    classes = torch.zeros(1, dtype=torch.long) if since_class is None else since_class.long()
    expected = (n_lines, n_months, int(classes.max()) + 1 + 3, N_STATES)
    if rows.ndim < 4 or tuple(rows.shape[-4:]) != expected or n_months < 1:
        raise ModelError("rows do not fit the lines", expected=f"(..., {expected})", got=tuple(rows.shape))
    chain = _Chain(rows.double(), lines, rate.double(), classes.to(rows.device))
    parts = [chain.step(month) for month in range(n_months)]
    cash = torch.stack([part[0] for part in parts], dim=-2)
    states = torch.stack([part[1] for part in parts], dim=-2)
    share = 1.0 - torch.as_tensor(severity, dtype=torch.float64, device=rows.device)
    living = chain.living_balances() if horizon_sale else None
    return _with_recoveries(cash, share, recovery_lag, living), states


def pool_cash(cash: torch.Tensor, lines: Lines) -> torch.Tensor:
    """(..., T, 5) cash of the pool: lines times the loans they stand for."""
    return torch.einsum("...ltc,l->...tc", cash, lines.weight_L)


class _Chain:
    """Probability and moments of every slot, moved one month at a time."""

    def __init__(self, rows: torch.Tensor, lines: Lines, rate: torch.Tensor, classes: torch.Tensor) -> None:
        self.lines, self.classes = lines, classes
        self.n_classes = rows.shape[-2] - 3
        self.lead = rows.shape[:-4]
        self.absorbed = rows.new_zeros(*rows.shape[:-3], 3)  # default, prepaid, matured
        months = rows.shape[-3]
        steps = torch.arange(1, months + 1, device=rows.device)
        self.due_LT = torch.minimum(lines.age_L[:, None] + steps, lines.term_L[:, None])
        self.clock_LT = lines.age_L[:, None] + steps
        self.is_due_LT = self.clock_LT <= lines.term_L[:, None]
        self.is_final_LT = self.clock_LT >= lines.term_L[:, None]
        self._accrue(
            rate.expand(*rate.shape[:-1], months) if rate.ndim > 1 else rate[:, None].expand(-1, months)
        )
        # Unbound once: a slice a month would cost a full gradient tensor each time.
        self.rows = self._matured(rows).unbind(-3)
        self.paid = [self._moments(self.due_LT - behind).unbind(-2) for behind in range(3)]
        self.rated = self.rate_sum[..., self.back + 1 :].unbind(-1)  # runs on past the term
        self.grow = self._growth()
        self._place()

    def _accrue(self, rate: torch.Tensor) -> None:
        """Cumulative monthly rate R and scheduled interest I through each calendar month, from arrears on.

        Column j of the tables stands for instalment age - A + j, with A the largest arrears.
        """
        lines = self.lines
        self.back = int(lines.arrears_L.max()) + 3  # room for tau = due - 2 and for the arrears
        past = rate[..., :1].expand(*rate.shape[:-1], self.back)
        monthly = torch.cat([past, rate], dim=-1) / 12.0
        first = lines.age_L[:, None] - self.back
        instalment = first + torch.arange(1, monthly.shape[-1] + 1, device=rate.device)
        before = _at(lines.balance_LX, instalment - 1)
        counts = (instalment >= 1) & (instalment <= lines.term_L[:, None])
        zero = torch.zeros_like(monthly[..., :1])
        self.rate_sum = torch.cat([zero, monthly.cumsum(-1)], dim=-1)
        self.interest_sum = torch.cat([zero, (monthly * before * counts).cumsum(-1)], dim=-1)

    def _moments(self, tau: torch.Tensor) -> torch.Tensor:
        """(..., L, T, 4) moments of unit mass paid through instalments tau (L, T)."""
        column = (tau - self.lines.age_L[:, None] + self.back).clamp(min=0)
        index = column.expand(*self.rate_sum.shape[:-2], *column.shape)
        balance = _at(self.lines.balance_LX, tau)
        interest = self.interest_sum.gather(-1, index)
        rated = self.rate_sum.gather(-1, index) * balance
        return torch.stack(
            [torch.ones_like(interest), balance.expand(interest.shape), interest, rated], dim=-1
        )

    def _growth(self) -> torch.Tensor:
        """(T, L, 3, 6) 0/1: unpaid instalments (1, 2, 3 or more) of each slot after this one fell due."""
        still, grown = torch.zeros(3, len(_SLOTS)), torch.zeros(3, len(_SLOTS))
        for place, (_, arrears) in enumerate(_SLOTS):
            still[arrears - 1, place] = 1.0
            grown[min(arrears, 2), place] = 1.0
        is_due = self.is_due_LT.T[..., None, None]
        return torch.where(is_due, grown.to(is_due.device), still.to(is_due.device)).double()

    def _place(self) -> None:
        """All mass where the cut-off finds it."""
        lines = self.lines
        start = self._moments((lines.age_L - lines.arrears_L)[:, None])[..., 0, :]
        start = start.expand(*self.lead, *start.shape[-2:])
        longest = len(self.classes) - 1
        since = torch.where(lines.since_miss_L > 0, lines.since_miss_L.clamp(max=longest), 0)
        since = torch.where(lines.since_miss_L == 0, min(1, longest), since)
        at = torch.nn.functional.one_hot(since, longest + 1) * (lines.state_L == 0)[:, None]
        # Performing loans are all paid through the same instalment: masses by memory, one set of moments.
        self.performing = at.to(start).expand(*self.lead, *at.shape)  # (..., L, S+1)
        self.on_schedule = start  # (..., L, 4) of unit mass; read where a loan performs
        here = [
            (lines.state_L == state) & (lines.arrears_L.clamp(max=3) == arrears) for state, arrears in _SLOTS
        ]
        self.slots = start[..., None, :] * torch.stack(here, dim=-1)[..., None]  # (..., L, 6, 4)

    def _matured(self, rows: torch.Tensor) -> torch.Tensor:
        """`schemas.states.mature_rows` for rows (..., L, T, G, 7), with gradients."""
        final = self.is_final_LT[..., None]
        early = rows[..., 5] + rows[..., 6]
        none = torch.zeros_like(early)
        return torch.stack(
            [
                torch.where(final, none, rows[..., 0]),
                *(rows[..., k] for k in range(1, 5)),
                torch.where(final, none, early),
                torch.where(final, rows[..., 0] + early, none),
            ],
            dim=-1,
        )

    def step(self, month: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cash (..., L, 5) without recoveries, state probabilities (..., L, 7)) of one month."""
        rows = self.rows[month]
        by_class, late = rows.split([self.n_classes, 3], dim=-2)
        late = late[..., _SLOT_ROWS, :]
        moved = torch.einsum("...c,...ck->...k", self._by_class(), by_class)
        flow = self.on_schedule[..., :, None] * moved[..., None, :] + self.slots.mT @ late  # (..., L, 4, 7)
        grow = self.grow[month]
        to_60 = grow @ (self.slots * late[..., 2, None])  # (..., L, 3, 4) by unpaid instalments
        to_90 = grow @ (self.slots * late[..., 3, None])
        on_time = torch.tensor([1.0, 0.0, 0.0], device=rows.device)[:, None]  # performing: one behind now
        to_60 = to_60 + on_time * (self.on_schedule * moved[..., 2, None])[..., None, :]
        to_90 = to_90 + on_time * (self.on_schedule * moved[..., 3, None])[..., None, :]
        paid = [moments[month] for moments in self.paid]
        down = to_60[..., 1:, :].sum(-2)  # of those, who pays down to two instalments behind
        cash = self._cash(month, flow, down, paid)
        self._settle(by_class, flow, to_60, to_90, down, paid)
        return cash, self._state_probabilities()

    def _cash(
        self, month: int, flow: torch.Tensor, down: torch.Tensor, paid: list[torch.Tensor]
    ) -> torch.Tensor:
        """(..., L, 5) of the month, recoveries 0."""
        early = flow[..., 5]
        ahead = early[..., _MASS] * paid[0][..., _BALANCE]
        interest = self.rated[month] * early[..., _BALANCE] - early[..., _RATED]
        scheduled = early[..., _BALANCE] - ahead
        for moments, to in (
            (flow[..., LoanState.performing], paid[0]),
            (flow[..., LoanState.dpd30], paid[1]),
            (down, paid[2]),
            (flow[..., LoanState.matured], paid[0]),
        ):
            mass = moments[..., _MASS]
            interest = interest + mass * to[..., _INTEREST] - moments[..., _INTEREST]
            scheduled = scheduled + moments[..., _BALANCE] - mass * to[..., _BALANCE]
        defaulted = flow[..., LoanState.default][..., _BALANCE]
        return torch.stack([interest, scheduled, ahead, defaulted, torch.zeros_like(defaulted)], dim=-1)

    def _by_class(self) -> torch.Tensor:
        """(..., L, H) performing mass of each row class."""
        member = torch.nn.functional.one_hot(self.classes, self.n_classes).to(self.performing)
        return self.performing @ member

    def _settle(
        self,
        by_class: torch.Tensor,
        flow: torch.Tensor,
        to_60: torch.Tensor,
        to_90: torch.Tensor,
        down: torch.Tensor,
        paid: list[torch.Tensor],
    ) -> None:
        """Put the moved mass into its new slots."""
        stayed = self.performing * by_class[..., self.classes, 0]
        cured = (flow[..., _MASS, 0] - stayed.sum(-1))[..., None]
        longest = len(self.classes) - 1
        if longest == 0:
            self.performing = stayed + cured
        else:  # one month further from the last miss; the last entry collects
            last = stayed[..., longest:] + (stayed[..., longest - 1 : longest] if longest > 1 else cured)
            between = (
                torch.cat([cured, stayed[..., 1 : longest - 1]], dim=-1) if longest > 1 else cured[..., :0]
            )
            self.performing = torch.cat([stayed[..., :1], between, last], dim=-1)
        self.on_schedule = paid[0]
        to_30 = flow[..., _MASS, 1, None] * paid[1]
        down_60 = down[..., _MASS, None] * paid[2]
        self.slots = torch.cat([torch.stack([to_30, to_60[..., 0, :], down_60], dim=-2), to_90], dim=-2)
        self.absorbed = self.absorbed + flow[..., _MASS, 4:]

    def _state_probabilities(self) -> torch.Tensor:
        mass = self.slots[..., _MASS]
        parts = [self.performing.sum(-1), mass[..., 0], mass[..., 1:3].sum(-1), mass[..., 3:].sum(-1)]
        return torch.cat([torch.stack(parts, dim=-1), self.absorbed], dim=-1)

    def living_balances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(balance of states 0-2, balance of 90dpd), each (..., L), at the end."""
        late = self.slots[..., _BALANCE]
        on_time = self.performing.sum(-1) * self.on_schedule[..., _BALANCE]
        return on_time + late[..., :3].sum(-1), late[..., 3:].sum(-1)


def _with_recoveries(
    cash: torch.Tensor,
    share: torch.Tensor,
    recovery_lag: Sequence[float] | torch.Tensor,
    living: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Fill the recovery channel; with `living`, sell what is left in the last month."""
    lag = torch.as_tensor(recovery_lag, dtype=cash.dtype, device=cash.device)
    months = cash.shape[-2]
    ultimate = cash[..., int(LoanState.default) - 1] * share
    recovery = torch.zeros_like(ultimate)
    for wait, part in enumerate(lag):
        if wait < months:
            recovery = recovery + part * torch.nn.functional.pad(ultimate[..., : months - wait], (wait, 0))
    channels = [cash[..., c] for c in range(N_CASH - 1)] + [recovery]
    if living is not None:
        saleable, late = living
        last_share = share.expand(ultimate.shape)[..., -1]
        pending = ultimate.sum(-1) * lag.sum() - recovery.sum(-1)
        end = torch.zeros(months, dtype=cash.dtype, device=cash.device)
        end[-1] = 1.0
        channels[2] = channels[2] + saleable[..., None] * end
        channels[3] = channels[3] + late[..., None] * end
        channels[4] = channels[4] + (pending + late * last_share)[..., None] * end
    return torch.stack(channels, dim=-1)


def _at(balance_LX: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """S(tau) for tau (L,) or (L, X); before the first and after the last instalment its ends."""
    index = tau.clamp(0, balance_LX.shape[1] - 1)
    return balance_LX.gather(1, index[:, None])[:, 0] if index.ndim == 1 else balance_LX.gather(1, index)


def representative_lines(
    balance_L: np.ndarray, keys_LX: np.ndarray, n_lines: int
) -> tuple[np.ndarray, np.ndarray]:
    """A few loans that stand for many: (rows (R,), weights (R,)) with R <= n_lines.

    Loans are sorted by the keys, first column first, and picked at equal steps of cumulative balance
    (systematic sampling in proportion to size); weights keep the pool's balance exactly.

    Args:
        balance_L: (L,) > 0. keys_LX: (L, X) numbers, e.g. class, state, remaining term, rate, score.

    Raises:
        ModelError: no loans, a balance that is not positive, or keys of another length.
    """
    if len(balance_L) == 0 or not (balance_L > 0).all() or len(keys_LX) != len(balance_L) or n_lines < 1:
        raise ModelError("loans cannot be grouped", expected="positive balances and one key row each")
    if len(balance_L) <= n_lines:
        return np.arange(len(balance_L)), np.ones(len(balance_L))
    order = np.lexsort(keys_LX.T[::-1])
    cumulative = np.cumsum(balance_L[order])
    points = (np.arange(n_lines) + 0.5) / n_lines * cumulative[-1]
    picked, hits = np.unique(np.searchsorted(cumulative, points), return_counts=True)
    rows = order[picked]
    return rows, hits * (cumulative[-1] / n_lines) / balance_L[rows]
