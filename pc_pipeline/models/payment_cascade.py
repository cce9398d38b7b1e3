"""The LSTM of payment histories: P(next status | history, borrower), with the month's calendar and macro.

Here: `LSTMCascadeModel` and its config. Not here: training (`training.payment_cascade`), fast sampling
(`cascade_sampler`), borrowers and amounts (`loans`).

    logits[t] = log P1[s] + (C + D[s]) (x_t, h_t) + sum_m B[s, m] z_m(t) + LSTM(e[s_0..s_{t-1}], x_0..x_t) W

s is the status before month t, P1 the first-order matrix of the training data, x the ten borrower features,
further features and the centred calendar, h what the history says (`cascade_history`: misses, how many,
how long ago), z the macro series scaled by constants. C, D and W start at zero, so an untrained network is
the first-order Markov chain (docs/methods/payment_cascade.md, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.cascade_history import N_HISTORY, history_inputs
from pc_pipeline.models.cascade_lstm import lstm_layer
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.layers import zero_init
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.schemas.states import N_STATUSES, PAYMENT_STATUSES, TERMINAL_STATUSES
from pc_pipeline.schemas.units import MACRO_SERIES, N_MACRO

START: Final = N_STATUSES  # input code of 'before the first month'
N_CALENDAR: Final = 12 + 7
IMPOSSIBLE: Final = -1e4  # exp of it is exactly 0 in float32, and its gradient is finite
_TERMINAL: Final = [PAYMENT_STATUSES.index(name) for name in TERMINAL_STATUSES]
_PAID_OFF, _PREPAID = PAYMENT_STATUSES.index("paid_off"), PAYMENT_STATUSES.index("prepaid")
_PAID_UP: Final = [
    PAYMENT_STATUSES.index(name) for name in ("on_time", "grace_period", "paid_off", "prepaid")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeConfig:
    """Sizes and inputs of the cascade network.

    Attributes:
        num_status_classes: payment statuses, fixed by the alphabet.
        borrower_feature_dim: columns of `borrower_features`: the ten, then `extra_features`.
        hidden_dim, num_layers: of the LSTM. dropout: between layers and before the output, while training.
        extra_features: names of features beyond the ten, scaled, 0 where unknown.
        uses_calendar: whether seasonality was learned.
        macro: 'stated' (elasticities stated in docs/methods/loans.md, not learned) or 'learned'.
        has_contract_end: whether histories were learned with their last contractual month, before which
            paying off is prepaying (`schemas.states.mature_rows`).
    """

    num_status_classes: int = N_STATUSES
    borrower_feature_dim: int = 10
    hidden_dim: int = 64
    num_layers: int = 2
    dropout: float = 0.2
    extra_features: tuple[str, ...] = ()
    uses_calendar: bool = False
    macro: str = "stated"
    has_contract_end: bool = False

    def __post_init__(self) -> None:
        if self.num_status_classes != N_STATUSES:
            raise ConfigError("statuses are fixed", expected=N_STATUSES, got=self.num_status_classes)
        if self.hidden_dim < 2 or self.hidden_dim % 2 or self.hidden_dim > 1024:
            raise ConfigError(
                "hidden_dim is no width", expected="an even number, 2..1024", got=self.hidden_dim
            )
        if not 1 <= self.num_layers <= 8:
            raise ConfigError("num_layers out of range", expected="1..8", got=self.num_layers)
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is no share", expected="0 <= dropout < 1", got=self.dropout)
        if self.borrower_feature_dim < 1 + len(self.extra_features):
            raise ConfigError("more extra features than columns", got=self.borrower_feature_dim)
        if self.macro not in ("stated", "learned"):
            raise ConfigError("unknown macro term", expected="stated, learned", got=self.macro)


@register(CascadeConfig)
class LSTMCascadeModel(nn.Module):
    """Autoregressive LSTM over payment statuses.

    Guarantees: probabilities sum to 1; moves outside `allowed` have probability exactly 0; terminal statuses
    stay; month t sees statuses before t and calendar and macro up to t only.

    Args:
        config: sizes; or the same names as keywords.
    """

    allowed: Tensor
    log_prior: Tensor
    macro_mean: Tensor
    macro_sd: Tensor
    feature_mean: Tensor
    feature_sd: Tensor
    calendar_mean: Tensor

    def __init__(self, config: CascadeConfig | None = None, **sizes: Any) -> None:
        super().__init__()
        self.config = config = config or CascadeConfig(**sizes)
        self.is_fused = False  # True: the layers of `cascade_lstm` in place of nn.LSTM (CPU, bfloat16)
        width, inputs = config.hidden_dim, config.borrower_feature_dim + N_CALENDAR
        self.status_embedding = nn.Embedding(N_STATUSES + 1, width // 2)
        self.lstm = nn.LSTM(
            input_size=width // 2 + inputs + N_MACRO,
            hidden_size=width,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.fc = zero_init(nn.Linear(width, N_STATUSES))
        self.common = nn.Parameter(torch.zeros(N_STATUSES, inputs + N_HISTORY))
        self.direct = nn.Parameter(torch.zeros(N_STATUSES + 1, N_STATUSES, inputs + N_HISTORY))
        self.macro_effect = nn.Parameter(torch.zeros(N_STATUSES + 1, N_STATUSES, N_MACRO))
        self.register_buffer("allowed", torch.ones(N_STATUSES + 1, N_STATUSES, dtype=torch.bool))
        self.register_buffer("log_prior", torch.zeros(N_STATUSES + 1, N_STATUSES))
        self.register_buffer("macro_mean", torch.tensor([series.mean for series in MACRO_SERIES]))
        self.register_buffer("macro_sd", torch.tensor([series.sd for series in MACRO_SERIES]))
        self.register_buffer("feature_mean", torch.zeros(config.borrower_feature_dim))
        self.register_buffer("feature_sd", torch.ones(config.borrower_feature_dim))
        self.register_buffer("calendar_mean", torch.zeros(N_CALENDAR))

    def direct_term(self) -> Tensor:
        """(9, 8, K) C + D[s] of eq. 1; K features, calendar, history."""
        return self.common + self.direct

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`, in its order."""
        return {
            "status_sequence": TensorSpec(("B", "T"), kind="index", n=5),
            "borrower_features": TensorSpec(("B", self.config.borrower_feature_dim), scale=0.3, shift=0.5),
        }

    def set_prior(self, rows: Tensor, allowed: Tensor) -> None:
        """Take the first-order law (9, 8) and the possible moves (9, 8) bool of the training data.

        Raises:
            ModelError: a row gives mass to an impossible move.
        """
        if bool((rows[~allowed] > 0).any()):
            raise ModelError("the prior gives mass to an impossible move")
        self.allowed.copy_(allowed)
        self.log_prior.copy_(rows.clamp(min=1e-12).log().masked_fill(~allowed, IMPOSSIBLE))

    def describe_features(self, features_NF: Tensor, calendar_share: Tensor | None = None) -> None:
        """Take scaling constants from training features (N, F), and the mean calendar row (19,)."""
        self.feature_mean.copy_(features_NF.mean(0))
        sd = features_NF.std(0)
        self.feature_sd.copy_(torch.where(sd > 1e-4, sd, torch.ones_like(sd)))
        if calendar_share is not None:
            self.calendar_mean.copy_(calendar_share)

    def scaled(self, borrower_features: Tensor) -> Tensor:
        """(B, F) -> centred and scaled by training constants, clipped at 6 sd."""
        return ((borrower_features - self.feature_mean) / self.feature_sd).clamp(-6.0, 6.0)

    def calendar_inputs(self, calendar: Tensor) -> Tensor:
        """(..., 2) month of year and weekday -> (..., 19) centred indicators."""
        month = nn.functional.one_hot(calendar[..., 0], 12)
        weekday = nn.functional.one_hot(calendar[..., 1], 7)
        return torch.cat([month, weekday], -1).to(self.calendar_mean.dtype) - self.calendar_mean

    def macro_inputs(self, macro: Tensor) -> Tensor:
        """(..., 9) raw series -> scaled, clipped at 8 sd."""
        return ((macro - self.macro_mean) / self.macro_sd).clamp(-8.0, 8.0)

    def forward(
        self,
        status_sequence: Tensor,
        borrower_features: Tensor,
        calendar: Tensor | None = None,
        macro_path: Tensor | None = None,
        is_final: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next status.

        Args:
            status_sequence: (B, T) codes 0-8; entry t is the status before month t (8: no month before).
            borrower_features: (B, F) normalised.
            calendar: (B, T, 2) of the months predicted; None or no seasonality learned: the average month.
            macro_path: (B, T, 9) raw series of the months predicted; None: the neutral macro.
            is_final: (B, T) bool, in or after the last contractual month; None: never.

        Returns:
            (B, T, 8) logits; softmax gives exact zeros for impossible moves.
        """
        batch, months = status_sequence.shape
        x = self.scaled(borrower_features)[:, None].expand(-1, months, -1)
        season = x.new_zeros(batch, months, N_CALENDAR)
        if calendar is not None and self.config.uses_calendar:
            season = self.calendar_inputs(calendar)
        z = x.new_zeros(batch, months, N_MACRO)
        if macro_path is not None:
            z = self.macro_inputs(macro_path)
        seen = z if self.config.macro == "learned" else torch.zeros_like(z)
        x = torch.cat([x, season], -1)
        embedded = self.status_embedding(status_sequence)
        hidden = self._hidden(torch.cat([embedded, x, seen], -1))
        logits = self.fc(self.dropout(hidden)) + self.log_prior[status_sequence]
        logits = logits + self._own_terms(
            status_sequence,
            torch.cat([x, history_inputs(status_sequence)], -1),
            None if macro_path is None else z,
        )
        logits = logits.masked_fill(~self.allowed[status_sequence], IMPOSSIBLE)
        return self.end_contract(logits, status_sequence, is_final)

    def _hidden(self, x_BTK: Tensor) -> Tensor:
        """(B, T, H) of the LSTM stack."""
        if not self.is_fused:
            return self.lstm(x_BTK)[0]
        x = x_BTK.transpose(0, 1)
        for layer in range(self.config.num_layers):
            w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[layer]
            if layer:
                x = nn.functional.dropout(x, self.config.dropout, self.training)
            x = lstm_layer(x, w_ih, w_hh, b_ih + b_hh)
        return x.transpose(0, 1).float()

    def _own_terms(self, status: Tensor, x_BTF: Tensor, z_BTM: Tensor | None) -> Tensor:
        """(C + D[s]) x + B[s] z, one product for all statuses, then the row of each."""
        every = x_BTF @ self.direct_term().flatten(0, 1).T
        if z_BTM is not None:
            every = every + z_BTM @ self.macro_effect.flatten(0, 1).T
        every = every.unflatten(-1, (N_STATUSES + 1, N_STATUSES))
        index = status[..., None, None].expand(*status.shape, 1, N_STATUSES)
        return every.gather(-2, index).squeeze(-2)

    def end_contract(self, logits: Tensor, status: Tensor, is_final: Tensor | None) -> Tensor:
        """The contract's end: from the last month on, being paid up is being paid off. Where the training
        data had it, paying off before it is prepaying. Terminal statuses and first months are left alone.
        """
        if is_final is None and not self.config.has_contract_end:
            return logits
        final = torch.zeros_like(status, dtype=torch.bool) if is_final is None else is_final
        living = (status < _TERMINAL[0])[..., None]
        ended, ongoing = logits.clone(), logits
        ended[..., _PAID_UP] = IMPOSSIBLE
        ended[..., _PAID_OFF] = torch.logsumexp(logits[..., _PAID_UP], -1)
        if self.config.has_contract_end:
            ongoing = logits.clone()
            ongoing[..., _PAID_OFF] = IMPOSSIBLE
            ongoing[..., _PREPAID] = torch.logsumexp(logits[..., [_PREPAID, _PAID_OFF]], -1)
        return torch.where(living, torch.where(final[..., None], ended, ongoing), logits)

    def log_probabilities(self, *inputs: Tensor | None) -> Tensor:
        """(B, T, 8) log-probabilities; inputs of `forward`."""
        return torch.log_softmax(self(*inputs), -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainConfig:
    """A `StatusChain` has no sizes; `source` says where its matrix is from."""

    source: str = "fallback matrix"


@register(ChainConfig)
class StatusChain(nn.Module):
    """A matrix over the eight statuses, kept like a network: the fallback engine on disk."""

    matrix: Tensor

    def __init__(self, config: ChainConfig | None = None) -> None:
        super().__init__()
        self.config = config or ChainConfig()
        self.register_buffer("matrix", torch.eye(N_STATUSES, dtype=torch.float64))
