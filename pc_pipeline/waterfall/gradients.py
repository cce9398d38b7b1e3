"""Figures of a class as tensors, so that they can be differentiated.

Here: price, expected loss, IRR, life and test cushion of a differentiable run (`run_waterfall` on tensors),
with gradients to collections and to deal terms (`overrides`). Not here: the same figures for reports
(`metrics`, `pricing`). torch is imported when a function is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pc_pipeline.core.errors import DealError
from pc_pipeline.waterfall.engine import WaterfallResult
from pc_pipeline.waterfall.metrics import irr, year_times


def present_value(flows: Any, times: Any, rate: Any) -> Any:
    """(..., ) value of flows (..., T) at an effective yearly rate: eq. (38)."""
    return (flows * (1.0 + rate) ** (-times)).sum(-1)


def differentiable_irr(flows: Any, times: Any) -> Any:
    """IRR of one flow vector (K,) as a tensor with its gradient: eq. (39).

    The root is found without gradients; one Newton step from it carries the implicit derivative
    dr/dflow_k = -(dNPV/dflow_k) / (dNPV/dr).

    Raises:
        DealError: there is no root.
    """
    found = irr(flows.detach().cpu().numpy(), times.detach().cpu().numpy())
    root = float(found.rate)
    if not np.isfinite(root):
        raise DealError("no IRR to differentiate", got=str(found.reason))
    slope = (-times * flows.detach() * (1.0 + root) ** (-times - 1.0)).sum()
    return root - present_value(flows, times, root) / slope


def soft_figures(result: WaterfallResult, tranche: str, discount_rate: float) -> dict[str, Any]:
    """Scalars of one class over the paths of a differentiable run.

    Args:
        discount_rate: effective per year, for the price.

    Returns:
        'price' (per 1 of opening balance, mean over paths), 'expected_loss' (share of original balance
        unpaid or written down), 'irr' (of the mean flows), 'wal_years' (of the mean flows), 'cushion'
        (mean of the class's OC ratio less its trigger over paths and dates; absent without a test).

    Raises:
        DealError: no such class, or numpy arrays instead of tensors.
    """
    import torch

    if not isinstance(result.balance, torch.Tensor):
        raise DealError("figures to differentiate need a run on tensors")
    place, like = result.tranche(tranche), result.balance
    times = torch.as_tensor(year_times(result.payment_dates), dtype=like.dtype, device=like.device)
    cash = (result.interest_paid + result.principal_paid)[..., place]
    opening = torch.as_tensor(result.opening_balance, dtype=like.dtype, device=like.device)[..., place]
    original = float(result.original_balance[place])
    mean = cash.mean(0)
    price = result.deal.tranches[place].price
    principal = result.principal_paid[..., place].mean(0)
    figures = {
        "price": present_value(cash, times[1:], discount_rate).mean() / opening,
        "expected_loss": (result.balance[:, -1, place] + result.written_down[:, -1, place]).mean() / original,
        "irr": differentiable_irr(torch.cat([(-price * opening).reshape(1), mean]), times),
        "wal_years": (principal * times[1:]).sum() / principal.sum(),
    }
    for k, test in enumerate(result.deal.tests):
        if test.kind == "oc" and test.of == tranche:
            ratio = result.ratios[..., k]
            finite = torch.isfinite(ratio)
            figures["cushion"] = (
                torch.where(finite, ratio - test.trigger, torch.zeros_like(ratio)).sum() / finite.sum()
            )
    return figures
