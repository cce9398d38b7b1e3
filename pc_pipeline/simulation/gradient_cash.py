"""Expected cash of loans given macro paths, as a differentiable function of rows, residuals, rates and more.

Here: the law of `simulation.conditional` on tensors (loans and paths at once, months in turn), for gradients
to macro series, loan attributes and deal terms. Not here: the fast form without gradients
(`simulation.conditional`; tests hold the two to each other), the derivatives
(`engines.analysis.sensitivities`).

Shapes: P path, L loan, H history class (15), J move (6), W schedule column. Slots as in `conditional`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation.history import HISTORY_STATE, SINCE_MISS_FROM
from pc_pipeline.simulation.lanes import N_MOVES
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, PoolArrays, mean_severity

_CLOCKS: Final = SINCE_MISS_FROM[-1] + 1
_CLASS_OF_CLOCK: Final = np.searchsorted(SINCE_MISS_FROM, np.arange(_CLOCKS), side="right").tolist()
_STATE_OF_KNOWN: Final = [0, 1, 1, 2, 2]  # 30dpd, 60dpd, 60dpd, 90dpd, 90dpd, as rows of the late states
_BEHIND: Final = [1, 1, 2, 1, 2]  # instalments behind


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPool:
    """Loans, or representative ones, as tensors (float64); replace a field to differentiate by it.

    Attributes:
        cohort_L, final_L, lag_L: as in `PoolArrays`.
        schedule_LW: scheduled balances. rate_L, floating_L: yearly margin or coupon; 1.0 where floating.
        severity_L: mean loss given default. weight_L: loans that each stands for.
        start_LX: mass at the cut-off: 13 performing clocks, 5 x 3 late slots, 3 of 90dpd further behind.
        behind_L: schedule column of loans three instalments behind at the cut-off.
    """

    cohort_L: Tensor
    final_L: Tensor
    lag_L: Tensor
    schedule_LW: Tensor
    rate_L: Tensor
    floating_L: Tensor
    severity_L: Tensor
    weight_L: Tensor
    start_LX: Tensor
    behind_L: Tensor

    @property
    def balance(self) -> float:
        """Balance at the cut-off of all loans stood for, currency."""
        return float((self.weight_L * self._at_cutoff()).sum())

    def _at_cutoff(self) -> Tensor:
        behind = torch.tensor([0] * _CLOCKS + [n for n in _BEHIND for _ in range(3)] + [3] * 3)
        arrears = (self.start_LX * behind).sum(1).round().long()
        return self.schedule_LW.gather(1, (DUE_AT_CUTOFF - arrears)[:, None])[:, 0]

    def with_fields(self, changes: Mapping[str, Tensor]) -> GradientPool:
        """A copy with other tensors."""
        return replace(self, **changes)


def gradient_pool(pool: PoolArrays, weight_L: np.ndarray | None = None) -> GradientPool:
    """The pool as tensors; `weight_L` loans that each stands for (1 each without it)."""
    n = pool.n_loans
    start = np.zeros((n, _CLOCKS + 18))
    held = np.minimum(pool.in_state_L, 3) - 1
    since = np.where(pool.since_miss_L < 0, 0, np.clip(pool.since_miss_L, 1, _CLOCKS - 1))
    arrears = np.maximum(pool.arrears_L, 1)
    place = np.select(
        [pool.state_L == 1, pool.state_L == 2, arrears < 3], [0 * arrears, arrears, 2 + arrears], 5
    )
    column = np.where(pool.state_L == 0, since, _CLOCKS + 3 * place + held)
    start[np.arange(n), column] = 1.0
    return GradientPool(
        cohort_L=torch.from_numpy(pool.cohort_L.astype(np.int64)),
        final_L=torch.from_numpy(pool.final_L.astype(np.int64)),
        lag_L=torch.from_numpy(pool.recovery_lag_L.astype(np.int64)),
        schedule_LW=torch.from_numpy(pool.schedule_LW.astype(float)),
        rate_L=torch.from_numpy(pool.rate_L.astype(float)),
        floating_L=torch.from_numpy(pool.is_floating_L.astype(float)),
        severity_L=torch.from_numpy(mean_severity(pool)[pool.loss_group_L]),
        weight_L=torch.ones(n, dtype=torch.float64) if weight_L is None else torch.from_numpy(weight_L),
        start_LX=torch.from_numpy(start),
        behind_L=torch.from_numpy(DUE_AT_CUTOFF - np.minimum(arrears, DUE_AT_CUTOFF)),
    )


def gradient_cash(
    pool: GradientPool, rows_PCTKJ: Tensor, index_PT: Tensor, residual_LHJ: Tensor | None = None
) -> Tensor:
    """(P, T, 5) expected cash of the pool given each path, currency, with gradients.

    Args:
        rows_PCTKJ: (P, C, T, 4, 7) cohort probabilities. index_PT: index of floating loans.
        residual_LHJ: exp(residual) (L, 15, 6); None: every loan moves as its cohort.

    Raises:
        SimulationError: the schedules are shorter than the paths.
    """
    walk = _Walk(pool, rows_PCTKJ, index_PT, residual_LHJ)
    cash = torch.stack([walk.month(t) for t in range(walk.n_months)], dim=2)  # (P, L, T, 4)
    cash = torch.cat([cash[:, :, :-1], cash[:, :, -1:] + walk.sale()[:, :, None]], dim=2)
    charged = cash[..., 3] * (1.0 - pool.severity_L)[:, None]
    months = torch.arange(walk.n_months)
    arrival = (months + pool.lag_L[:, None]).clamp(max=walk.n_months - 1)
    arrival[:, -1] = walk.n_months - 1
    recovery = torch.zeros_like(charged).scatter_add(2, arrival.expand_as(charged), charged)
    whole = torch.cat([cash, recovery[..., None]], dim=-1)
    return torch.einsum("pltc,l->ptc", whole, pool.weight_L)


class _Walk:
    """Probability of every slot, month by month."""

    def __init__(self, pool: GradientPool, rows: Tensor, index_PT: Tensor, residual: Tensor | None) -> None:
        self.pool, self.n_months = pool, index_PT.shape[1]
        width = pool.schedule_LW.shape[1]
        if width < self.n_months + DUE_AT_CUTOFF + 1 or rows.shape[2] < self.n_months:
            raise SimulationError(
                "schedules or rows are shorter than the paths",
                expected=self.n_months,
                got=(width - DUE_AT_CUTOFF - 1, rows.shape[2]),
            )
        folded = torch.cat([rows[..., :5], rows[..., 5:6] + rows[..., 6:7]], dim=-1).double()
        self.rows = folded[:, :, :, torch.from_numpy(HISTORY_STATE)].unbind(2)  # by month (P, C, 15, 6)
        self.residual = residual if residual is None else residual.double()
        self._accrue(index_PT.double())
        n_paths, x = len(index_PT), pool.start_LX
        self.performing = x[:, :_CLOCKS].expand(n_paths, -1, -1)
        self.late = x[:, _CLOCKS : _CLOCKS + 15].reshape(-1, 5, 3).expand(n_paths, -1, -1, -1)
        balance, paid, rated = self._at(pool.behind_L)
        moments = torch.stack([torch.ones_like(paid), balance.expand_as(paid), paid, rated * balance], dim=-1)
        self.further = x[:, -3:, None] * moments[:, :, None, :]  # (P, L, 3, 4)

    def _accrue(self, index_PT: Tensor) -> None:
        pool, width = self.pool, self.pool.schedule_LW.shape[1]
        month = (torch.arange(width - 1) - DUE_AT_CUTOFF).clamp(min=0, max=self.n_months - 1)
        rate = pool.rate_L[:, None] + pool.floating_L[:, None] * index_PT[:, None, month]
        monthly = rate.clamp(min=0.0) / 12.0
        zero = torch.zeros_like(monthly[..., :1])
        self.rated = torch.cat([zero, monthly.cumsum(-1)], dim=-1)
        self.paid = torch.cat([zero, (monthly * pool.schedule_LW[:, :-1]).cumsum(-1)], dim=-1)

    def _at(self, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(balance (L, ...), interest paid and rate sum (P, L, ...)) at schedule columns (L, ...)."""
        flat = column.reshape(len(column), -1)
        places = flat.expand(len(self.paid), -1, -1)
        shape = (len(self.paid), *column.shape)
        return (
            self.pool.schedule_LW.gather(1, flat).reshape(column.shape),
            self.paid.gather(2, places).reshape(shape),
            self.rated.gather(2, places).reshape(shape),
        )

    def _odds(self, t: int) -> Tensor:
        """(P, L, 15, 7) probabilities, the contract's end applied."""
        weights = self.rows[t][:, self.pool.cohort_L]
        if self.residual is not None:
            weights = weights * self.residual
        p = weights / weights.sum(-1, keepdim=True)
        final = (t >= self.pool.final_L)[:, None]
        none = torch.zeros_like(p[..., 0])
        ends = torch.where(final, p[..., 0] + p[..., N_MOVES - 1], none)
        stays = torch.where(final, none, p[..., 0])
        early = torch.where(final, none, p[..., N_MOVES - 1])
        return torch.stack([stays, p[..., 1], p[..., 2], p[..., 3], p[..., 4], early, ends], dim=-1)

    def month(self, t: int) -> Tensor:
        """(P, L, 4) interest, scheduled, prepaid, charged off of the month."""
        pool = self.pool
        p = self._odds(t)
        due = torch.minimum(torch.full_like(pool.final_L, t), pool.final_L) + DUE_AT_CUTOFF + 1
        before = torch.minimum(torch.full_like(pool.final_L, t - 1), pool.final_L) + DUE_AT_CUTOFF + 1
        grows = (t <= pool.final_L)[:, None].double()
        s0, i0, r0 = self._at(due)
        s1, i1, _ = self._at(due - 1)
        s2, i2, _ = self._at(due - 2)
        column = before[:, None] - torch.tensor(_BEHIND)
        sk, ik, rk = self._at(column)
        st, it, _ = self._at(torch.maximum(column, due[:, None] - 2))
        sp, ip, rp = self._at(torch.full_like(due, t + DUE_AT_CUTOFF))
        of_clock = self.performing[..., None] * p[:, :, _CLASS_OF_CLOCK]
        f = of_clock.sum(-2)
        late_p = p[:, :, 6:].unflatten(2, (3, 3))  # (P, L, state, months held, 7)
        known = self.late[..., None] * late_p[:, :, _STATE_OF_KNOWN]  # (P, L, 5, 3, 7)
        fk = known.sum(-2)
        deep = torch.einsum("plhm,plhj->pljm", self.further, late_p[:, :, 2])
        mass, balance, paid, rated = deep.unbind(-1)
        stays, early = f[..., 0] + f[..., 6], f[..., 5]
        cures, gone = fk[..., 0] + fk[..., 6], fk[..., 5]
        interest = (
            stays * (i0 - ip)
            + early * (r0 - rp) * sp
            + (
                cures * (i0[..., None] - ik)
                + fk[..., 1] * (i1[..., None] - ik)
                + fk[..., 2] * (it - ik)
                + gone * (r0[..., None] - rk) * sk
            ).sum(-1)
            + (mass[..., 0] + mass[..., 6]) * i0
            - paid[..., 0]
            - paid[..., 6]
            + mass[..., 1] * i1
            - paid[..., 1]
            + mass[..., 2] * i2
            - paid[..., 2]
            + r0 * balance[..., 5]
            - rated[..., 5]
        )
        scheduled = (
            (stays + early) * (sp - s0)
            + (
                (cures + gone) * (sk - s0[:, None]) + fk[..., 1] * (sk - s1[:, None]) + fk[..., 2] * (sk - st)
            ).sum(-1)
            + (balance[..., [0, 5, 6]] - mass[..., [0, 5, 6]] * s0[:, None]).sum(-1)
            + balance[..., 1]
            - mass[..., 1] * s1
            + balance[..., 2]
            - mass[..., 2] * s2
        )
        ahead = (early + gone.sum(-1) + mass[..., 5]) * s0
        charged = f[..., 4] * sp + (fk[..., 4] * sk).sum(-1) + balance[..., 4]
        self._settle(of_clock[..., 0], f, known, deep, (sk, ik, rk), grows, late_p)
        self.due = due
        return torch.stack([interest, scheduled, ahead, charged], dim=-1)

    def _settle(
        self,
        stayed: Tensor,
        f: Tensor,
        known: Tensor,
        deep: Tensor,
        at: tuple[Tensor, Tensor, Tensor],
        grows: Tensor,
        late_p: Tensor,
    ) -> None:
        """Put the moved mass into its new slots."""
        sk, ik, rk = at
        cured = known[..., 0].sum((-1, -2)) + deep[..., 0, 0]
        self.performing = torch.cat(
            [stayed[..., :1], cured[..., None], stayed[..., 1:11], stayed[..., 11:12] + stayed[..., 12:]],
            dim=-1,
        )
        moved = known[..., 1:4]  # (P, L, 5, 3, to 30/60/90)
        aged = [  # by months held after the move: same state goes on, another begins
            _age(moved[:, :, n, :, to], to == state)
            for n, state in enumerate(_STATE_OF_KNOWN)
            for to in range(3)
        ]
        take = {(n, to): aged[3 * n + to] for n in range(5) for to in range(3)}
        first = torch.tensor([1.0, 0.0, 0.0], dtype=f.dtype)

        def fresh(x: Tensor) -> Tensor:
            return x[..., None] * first

        keeps = 1.0 - grows
        to_30 = fresh(f[..., 1] + deep[..., 1, 0]) + sum(take[n, 0] for n in range(5))
        near = sum(take[n, 1] for n in (0, 1, 3))
        far = sum(take[n, 1] for n in (2, 4))
        to_60 = fresh(f[..., 2]) + near * keeps, fresh(deep[..., 2, 0]) + near * grows + far
        near_90 = sum(take[n, 2] for n in (0, 1, 3))
        far_90 = sum(take[n, 2] for n in (2, 4))
        to_90 = fresh(f[..., 3]) + near_90 * keeps, near_90 * grows + far_90 * keeps
        self.late = torch.stack([to_30, *to_60, *to_90], dim=2)
        stay = self.further * late_p[:, :, 2, :, 3][..., None]
        aged_moments = torch.stack(
            [torch.zeros_like(stay[:, :, 0]), stay[:, :, 0], stay[:, :, 1] + stay[:, :, 2]], 2
        )
        for n in (2, 4):
            beyond = take[n, 2] * grows
            moments = torch.stack(
                [
                    torch.ones_like(ik[..., n]),
                    sk[:, n].expand_as(ik[..., n]),
                    ik[..., n],
                    rk[..., n] * sk[:, n],
                ],
                dim=-1,
            )
            aged_moments = aged_moments + beyond[..., None] * moments[:, :, None, :]
        self.further = aged_moments

    def sale(self) -> Tensor:
        """(P, L, 4) what `horizon_sale` adds to the last month."""
        end = torch.full_like(self.due, self.n_months + DUE_AT_CUTOFF)
        living = self.performing.sum(-1) * self.pool.schedule_LW.gather(1, end[:, None])[:, 0]
        column = self.due[:, None] - torch.tensor(_BEHIND)
        late = self.late.sum(-1) * self.pool.schedule_LW.gather(1, column)
        sold = living + late[..., :3].sum(-1)
        charged = late[..., 3:].sum(-1) + self.further[..., 1].sum(-1)
        return torch.stack([torch.zeros_like(sold), torch.zeros_like(sold), sold, charged], dim=-1)


def _age(x: Tensor, is_same: bool) -> Tensor:
    """(..., 3) mass by months held after a move: a month on in the same state, else in its first."""
    if is_same:
        return torch.stack([torch.zeros_like(x[..., 0]), x[..., 0], x[..., 1] + x[..., 2]], dim=-1)
    total = x.sum(-1)
    return torch.stack([total, torch.zeros_like(total), torch.zeros_like(total)], dim=-1)


def pool_losses(cash_PTC: Tensor, balance: float) -> Tensor:
    """(P,) charge-offs less recoveries, share of the balance."""
    totals = cash_PTC.sum(1)
    return (totals[:, 3] - totals[:, 4]) / balance


def as_tensor(values: Any) -> Tensor:
    """Double tensor of an array."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)
