"""The loan model in compiled form: a residual per loan and history class, and an intercept per month.

Here: `LoanResidual`, small enough to tabulate over a pool. Not here: how it is taught
(`simulation.distil`), what a history class is (`simulation.history`), the autoregressive model it stands for
(`loan_trajectory`).

    logits(t) = log P_cohort(state, .) + b(t, state, .) + r(loan, history class, .)

r is a small network plus a level for each third of the internal score and history class, which is set so that
the third's mean moves are right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.layers import Scaler, require_shape, segment_effect, zero_init
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.schemas.states import N_LIVING
from pc_pipeline.schemas.units import LOAN_FEATURES, N_LOAN_INPUTS, N_SEGMENT_CODES, SEGMENT_CODES

SCORE = LOAN_FEATURES.index("internal_score")
NO_EDGE = 1e30  # finite, so that a pool without scores can be saved: every loan is in the middle third
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
    third_edges: Tensor
    third_level: Tensor

    def __init__(self, config: LoanResidualConfig) -> None:
        super().__init__()
        self.config = config
        n_features, cells = len(LOAN_FEATURES), config.n_classes * N_MOVES
        self.scale = Scaler(torch.zeros(N_LOAN_INPUTS), torch.ones(N_LOAN_INPUTS))
        self.hidden = nn.Sequential(nn.Linear(2 * n_features, config.width), nn.GELU())
        self.out = zero_init(nn.Linear(config.width, cells))
        self.wide = zero_init(nn.Linear(2 * n_features, cells))
        # Industry x region, then industry, then region; as in the loan model.
        self.segment = nn.Parameter(torch.zeros((N_SEGMENT_CODES + 2) * N_SEGMENT_CODES, cells))
        self.register_buffer("intercept", torch.zeros(config.n_months, N_LIVING, N_MOVES))
        self.register_buffer("third_edges", torch.tensor([-NO_EDGE, NO_EDGE]))
        self.register_buffer("third_level", torch.zeros(3, config.n_classes, N_MOVES))
        self.register_buffer("severity", torch.zeros(4, 33))  # quantiles of loss given default by class

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`."""
        return {"loan_features": TensorSpec(("B", len(LOAN_FEATURES)))}

    def forward(self, loan_features: Tensor) -> Tensor:
        """(B, 24) raw features, or (B, 38) with `LOAN_EXTRAS` -> residual logits (B, classes, 6).

        NaN where missing. Of the extras it reads the segment codes; payments are history, as is the class.
        """
        size = len(LOAN_FEATURES)
        if loan_features.dim() != 2 or loan_features.shape[1] != N_LOAN_INPUTS:
            require_shape("loan_features", loan_features, (None, size))
            loan_features = pad(loan_features, (0, N_LOAN_INPUTS - size), value=torch.nan)
        x = torch.cat([self.scale(loan_features)[:, :size], torch.isnan(loan_features[:, :size]).float()], -1)
        flat = self.out(self.hidden(x)) + self.wide(x)
        flat = flat + segment_effect(self.segment, loan_features[:, size : size + len(SEGMENT_CODES)])
        return (
            flat.unflatten(-1, (self.config.n_classes, N_MOVES)) + self.third_level[self.third(loan_features)]
        )

    def third(self, loan_features: Tensor) -> Tensor:
        """(B,) third by internal score, 0 the lowest; unknown scores count as the middle."""
        score = loan_features[:, SCORE]
        return torch.where(torch.isnan(score), 1, (score[:, None] > self.third_edges).sum(dim=-1))
