"""The loan model in compiled form: a residual per loan and history class, and an intercept per month.

Here: `LoanResidual`, small enough to tabulate over a pool. Not here: how it is taught
(`simulation.distil`), what a history class is (`simulation.history`), the autoregressive model it stands for
(`loan_trajectory`).

    logits(t) = log P_cohort(state, .) + b(t, state, .) + r(loan, history class, .)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.layers import Scaler, require_shape, zero_init
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.schemas.states import N_LIVING
from pc_pipeline.schemas.units import LOAN_FEATURES

N_MOVES = 6  # performing, 30dpd, 60dpd, 90dpd, default, prepaid


@dataclass(frozen=True, kw_only=True, slots=True)
class LoanResidualConfig:
    """Sizes.

    Attributes:
        n_classes: history classes. n_months: months with an intercept of their own; later ones keep the last.
        width: of the hidden layer.
    """

    n_classes: int = 15
    n_months: int = 60
    width: int = 32

    def __post_init__(self) -> None:
        if min(self.n_classes, self.n_months, self.width) < 1:
            raise ConfigError("sizes must be positive", got=(self.n_classes, self.n_months, self.width))


@register(LoanResidualConfig)
class LoanResidual(nn.Module):
    """r(loan, class) from raw loan features, and the intercepts b(month, state)."""

    intercept: Tensor
    severity: Tensor

    def __init__(self, config: LoanResidualConfig) -> None:
        super().__init__()
        self.config = config
        n_features, cells = len(LOAN_FEATURES), config.n_classes * N_MOVES
        self.scale = Scaler(torch.zeros(n_features), torch.ones(n_features))
        self.hidden = nn.Sequential(nn.Linear(2 * n_features, config.width), nn.GELU())
        self.out = zero_init(nn.Linear(config.width, cells))
        self.wide = zero_init(nn.Linear(2 * n_features, cells))
        self.register_buffer("intercept", torch.zeros(config.n_months, N_LIVING, N_MOVES))
        self.register_buffer("severity", torch.zeros(4, 33))  # quantiles of loss given default by class

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`."""
        return {"loan_features": TensorSpec(("B", len(LOAN_FEATURES)))}

    def forward(self, loan_features: Tensor) -> Tensor:
        """(B, 24) raw features, NaN where missing -> residual logits (B, classes, 6)."""
        require_shape("loan_features", loan_features, (None, len(LOAN_FEATURES)))
        x = torch.cat([self.scale(loan_features), torch.isnan(loan_features).float()], dim=-1)
        flat = self.out(self.hidden(x)) + self.wide(x)
        return flat.unflatten(-1, (self.config.n_classes, N_MOVES))
