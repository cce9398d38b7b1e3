"""What a loan's past states say, as causal inputs: months since the last miss, run length, recent misses.

Here: pure functions of the states before each month. Not here: the network that reads them
(`loan_trajectory`), the table that the compiled simulator makes of them (`simulation`).

`months_since_miss` is -1 for never, 0 while delinquent; a recency class is its bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

RECENCY_EDGES: Final = (0, 1, 2, 3, 4, 5, 6, 9, 12, 18, 24)  # lower edges in months; the last is open
N_RECENCY: Final = len(RECENCY_EDGES) + 1  # and 'never', the last class
N_RUN_FEATURES: Final = 7
_NEVER: Final = -10_000


@dataclass(frozen=True, slots=True)
class StateHistory:
    """Inputs known before each month.

    Attributes:
        state: (B,T) state at the end of the month before.
        recency: (B,T) recency class, `recency_class`.
        run: (B,T,7) months in state, misses in 3, 12 and all months, ever missed, two decays since the miss.
    """

    state: Tensor
    recency: Tensor
    run: Tensor

    def last(self) -> StateHistory:
        """The last month only, T = 1."""
        return StateHistory(self.state[:, -1:], self.recency[:, -1:], self.run[:, -1:])


def recency_class(months_since_miss: Tensor) -> Tensor:
    """Bucket of months since the last miss: 0..10 by `RECENCY_EDGES`, 11 for never (-1)."""
    edges = torch.tensor(RECENCY_EDGES, device=months_since_miss.device)
    bucket = torch.bucketize(months_since_miss, edges, right=True) - 1
    return torch.where(months_since_miss < 0, torch.full_like(bucket, N_RECENCY - 1), bucket)


def months_since_miss(previous_BT: Tensor, since0: Tensor | None = None) -> Tensor:
    """Months from the last delinquent month to the month before each entry, -1 never; (B,T) int64.

    Args:
        previous_BT: state at the end of the month before.
        since0: (B,) value at the first entry, for what happened before the window.
    """
    months = torch.arange(previous_BT.shape[1], device=previous_BT.device)
    missed = (previous_BT >= 1) & (previous_BT <= 3)
    at = torch.where(missed, months, torch.full_like(previous_BT, _NEVER))
    if since0 is not None:
        before = torch.where(since0 >= 0, -since0.long(), torch.full_like(since0.long(), _NEVER))
        at = torch.cat([torch.maximum(at[:, :1], before[:, None]), at[:, 1:]], dim=1)
    since = months - at.cummax(dim=1).values
    return torch.where(since > -_NEVER // 2, torch.full_like(since, -1), since)


def state_history(previous_BT: Tensor, since0: Tensor | None = None) -> StateHistory:
    """All derived inputs of (B,T) previous states; entry t uses entries 0..t only."""
    since = months_since_miss(previous_BT, since0)
    months = torch.arange(previous_BT.shape[1], device=previous_BT.device)
    missed = ((previous_BT >= 1) & (previous_BT <= 3)).to(torch.get_default_dtype())
    changed = torch.ones_like(previous_BT, dtype=torch.bool)
    changed[:, 1:] = previous_BT[:, 1:] != previous_BT[:, :-1]
    started = torch.where(changed, months, torch.zeros_like(previous_BT)).cummax(dim=1).values
    run = (months - started + 1).to(missed.dtype)
    total = missed.cumsum(dim=1)
    ever = (since >= 0).to(missed.dtype)
    gone = since.clamp(min=0).to(missed.dtype)
    features = torch.stack(
        [
            torch.log1p(run) / 3.0,
            (total - _lagged(total, 3)) / 3.0,
            (total - _lagged(total, 12)) / 6.0,
            torch.log1p(total) / 2.0,
            ever,
            ever * torch.exp(-gone / 3.0),
            ever * torch.exp(-gone / 12.0),
        ],
        dim=-1,
    )
    return StateHistory(previous_BT, recency_class(since), features)


def _lagged(total_BT: Tensor, months: int) -> Tensor:
    lagged = torch.zeros_like(total_BT)
    lagged[:, months:] = total_BT[:, : total_BT.shape[1] - months] if total_BT.shape[1] > months else 0.0
    return lagged
