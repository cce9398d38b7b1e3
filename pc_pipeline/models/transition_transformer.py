"""Cohort transition probabilities given the macro path so far.

Here: `TransitionTransformer` and its config. Not here: the loss on counts (`training.transitions`),
the loan's own deviation from its cohort (`loan_trajectory`), the contract's end (`schemas.states`).

    logits[c, t] = base[class] + sum_m B[class, m] z_m(t) + season[t] + net(c, age, z(1..t))      each (4, 7)
    net = h(q) + W (g(q) * m),     q = query(c, age),  m = memory(z(1..t))

z are macro series scaled by training constants. The additive macro term extrapolates where data are
thin; the network adds what is not additive. A causal transformer reads the macro path once into m; a cohort
of an age gates what it reads of it (docs/methods/loan_models.md, eq. 1). What is not of the macro path
is worked out once for all paths, and given it the rows are one matrix product a month.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import narwhals as nw
import numpy as np
import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.layers import (
    CausalBlock,
    FeedForward,
    Scaler,
    check_heads,
    require_months,
    require_shape,
    zero_init,
)
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.schemas.states import (
    ABSORBING_STATES,
    N_LIVING,
    N_STATES,
    LoanState,
    contract_moves,
    observable_moves,
)
from pc_pipeline.schemas.units import ASSET_CLASSES, COHORT_FEATURES, MACRO_NAMES, MACRO_SERIES, N_MACRO

MOVES: Final = {"contract": contract_moves, "observable": observable_moves}
AGE_COLUMN: Final = COHORT_FEATURES.index("vintage_age_months")
N_CLASSES: Final = len(ASSET_CLASSES)
PATHS_AT_ONCE: Final = 32  # of `rows`; a fixed size, because a product's last bits depend on its size
LARGEST_LOGIT: Final = 60.0  # e^60 and a sum of seven fit float32
MIN_MACRO_PATHS: Final = 8  # below this a macro effect is not identified and stays at its stated value

# Level, before any data: monthly rows of a plain consumer pool.
_PRIOR_ROWS: Final = (
    (0.972, 0.018, 0.0, 0.0, 0.0, 0.010, 0.0),
    (0.40, 0.28, 0.30, 0.0, 0.0, 0.02, 0.0),
    (0.20, 0.10, 0.28, 0.40, 0.0, 0.02, 0.0),
    (0.10, 0.05, 0.05, 0.29, 0.50, 0.01, 0.0),
)
# Typical raw cohort features and their spread; replaced by training constants.
_COHORT_MEAN: Final = (0.25, 0.25, 0.25, 0.25, 24.0, 12.0, 0.08, 0.7, 1.0, 60.0, 0.3, 0.7)
_COHORT_SD: Final = (0.43, 0.43, 0.43, 0.43, 24.0, 2.0, 0.04, 0.15, 0.7, 15.0, 0.3, 0.3)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionConfig:
    """Sizes of the transition network.

    Attributes:
        n_cohort_features: columns of a cohort, `schemas.units.COHORT_FEATURES`.
        n_macro_vars: macro series.
        d_model, n_heads, n_layers: width, heads and blocks of the macro encoder.
        n_states: loan states.
        dropout: share, in the encoder while training.
        moves: 'contract' (one bucket worse a month) or 'observable' (bucket jumps, early default).
        max_months: longest macro path.
    """

    n_cohort_features: int = len(COHORT_FEATURES)
    n_macro_vars: int = N_MACRO
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 3
    n_states: int = N_STATES
    dropout: float = 0.1
    moves: str = "contract"
    max_months: int = 600

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads)
        fixed = (self.n_cohort_features, self.n_macro_vars, self.n_states)
        expected = (len(COHORT_FEATURES), N_MACRO, N_STATES)
        if fixed != expected:
            raise ConfigError(
                "cohort features, macro series and states are fixed by the schemas",
                expected=expected,
                got=fixed,
            )
        if self.moves not in MOVES:
            raise ConfigError("unknown set of moves", expected=", ".join(MOVES), got=self.moves)
        if self.n_layers < 1 or self.max_months < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "size out of range",
                expected="n_layers >= 1, max_months >= 1, 0 <= dropout < 1",
                got=f"{self.n_layers}, {self.max_months}, {self.dropout}",
            )


@dataclass(frozen=True, slots=True)
class CohortReading:
    """The part of all cohorts' logits that no macro path changes, and how they answer to one.

    Attributes:
        given_TXY: (T, D + 9, C * 28) by memory and scaled series. level_T1Y: (T, 1, C * 28) logits.
    """

    given_TXY: Tensor
    level_T1Y: Tensor


def allowed_rows(moves: str) -> Tensor:
    """(4, 7) bool: moves a living state can make before the final month; matured is never among them."""
    allowed = torch.from_numpy(MOVES[moves]()[:N_LIVING].copy())
    allowed[:, LoanState.matured] = False
    return allowed


def age_features(age_months: Tensor) -> Tensor:
    """(...) months since origination -> (..., 4), all bounded, so that old loans do not extrapolate."""
    age = age_months.clamp(min=0.0)
    return torch.stack(
        [
            torch.log1p(age) / 6.0,
            age / (age + 12.0),
            (age / 24.0).clamp(max=1.0),
            (age / 120.0).clamp(max=1.0),
        ],
        dim=-1,
    )


class CalendarTerm(nn.Module):
    """Additive seasonal logits by month of the year and by weekday of the month's last day; both centred."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.month = nn.Parameter(torch.zeros(12, n_outputs))
        self.weekday = nn.Parameter(torch.zeros(7, n_outputs))

    def forward(self, calendar: Tensor) -> Tensor:
        """(..., 2) ints: month of year 0-11, weekday 0-6 -> (..., n_outputs)."""
        month = self.month - self.month.mean(0)
        weekday = self.weekday - self.weekday.mean(0)
        return month[calendar[..., 0]] + weekday[calendar[..., 1]]


@register(TransitionConfig)
class TransitionTransformer(nn.Module):
    """P(t) = f(cohort, macro path up to t): monthly transition matrices of a cohort.

    Guarantees: rows sum to 1 within 1e-6; moves outside `config.moves` have probability exactly 0;
    absorbing states stay; the matured column is 0 (apply `schemas.states.mature_rows` per loan);
    month t does not see the macro path after t.

    Time: entry t moves the state at the end of month t-1 to that at the end of month t. A cohort's
    `vintage_age_months` is its age at the end of month -1, so it arrives in month t at age + t + 1.
    """

    allowed: Tensor
    macro_anchored: Tensor

    def __init__(self, config: TransitionConfig) -> None:
        super().__init__()
        self.config = config
        width, cells = config.d_model, N_LIVING * N_STATES
        self.macro_scale = Scaler(
            torch.tensor([series.mean for series in MACRO_SERIES]),
            torch.tensor([series.sd for series in MACRO_SERIES]),
        )
        self.cohort_scale = Scaler(torch.tensor(_COHORT_MEAN), torch.tensor(_COHORT_SD))
        self.register_buffer("allowed", allowed_rows(config.moves), persistent=False)
        self.register_buffer("macro_anchored", torch.tensor(False))
        self.base = nn.Parameter(prior_logits().expand(N_CLASSES, -1, -1).clone())
        self.macro_effect = nn.Parameter(torch.zeros(N_CLASSES, cells, N_MACRO))
        self.season = CalendarTerm(cells)
        self.macro_in = nn.Linear(N_MACRO, width)
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.n_heads, config.max_months, config.dropout)
            for _ in range(config.n_layers)
        )
        self.memory_norm = nn.LayerNorm(width)
        n_inputs = 2 * len(COHORT_FEATURES) + age_features(torch.zeros(1)).shape[-1]
        self.cohort_in = nn.Sequential(nn.Linear(n_inputs, width), nn.GELU(), nn.Linear(width, width))
        self.mix_norm = nn.LayerNorm(width)
        self.mix = FeedForward(width, dropout=config.dropout)
        self.out_norm = nn.LayerNorm(width)
        self.own = zero_init(nn.Linear(width, cells))
        self.gate = nn.Linear(width, width)
        self.out = zero_init(nn.Linear(width, cells, bias=False))

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`, in its order."""
        means = tuple(float(value) for value in self.macro_scale.mean)
        spreads = tuple(float(value) for value in self.macro_scale.sd)
        return {
            "cohort_features": TensorSpec(("B", len(COHORT_FEATURES)), shift=_COHORT_MEAN, scale=_COHORT_SD),
            "macro_path": TensorSpec(("B", "T", N_MACRO), shift=means, scale=spreads),
        }

    # ---- parts ------------------------------------------------------------------------------

    def encode_macro(self, macro_PTM: Tensor) -> Tensor:
        """Read each macro path once: (P,T,9) raw units -> memory (P,T,D). Neutral where anchored."""
        z = self.macro_scale(macro_PTM)
        x = self.macro_in(z * (~self.macro_anchored).to(z.dtype))
        for block in self.blocks:
            x = block(x)
        return self.memory_norm(x)

    def encode_cohorts(self, cohort_features: Tensor, months: int, age0: Tensor | None = None) -> Tensor:
        """(C,12) raw features (NaN: missing) -> one query per month of age, (C,T,D)."""
        age = cohort_features[:, AGE_COLUMN] if age0 is None else age0.to(cohort_features)
        age = torch.nan_to_num(age, nan=0.0)
        arrival = age[:, None] + 1 + torch.arange(months, device=age.device, dtype=age.dtype)
        static = self.cohort_scale(cohort_features).clone()
        static[:, AGE_COLUMN] = 0.0
        static = torch.cat([static, torch.isnan(cohort_features).to(static.dtype)], dim=-1)
        static = static[:, None, :].expand(-1, months, -1)
        query = self.cohort_in(torch.cat([static, age_features(arrival)], dim=-1))
        return self.out_norm(query + self.mix(self.mix_norm(query)))

    def _macro_effect(self, cohort_features: Tensor) -> Tensor:
        """(C,28,9) logit change of each cohort per scaled unit of a series."""
        weights = torch.nan_to_num(cohort_features[:, :N_CLASSES], nan=0.0)
        return (weights @ self.macro_effect.flatten(1)).view(len(weights), -1, N_MACRO)

    def _level(self, cohort_features: Tensor, queries: Tensor, calendar: Tensor | None) -> Tensor:
        """(C,T,28) logits of cohorts that no macro path changes; calendar (T,2), (C,T,2) or None."""
        weights = torch.nan_to_num(cohort_features[:, :N_CLASSES], nan=0.0)
        level = self.own(queries) + (weights @ self.base.flatten(1))[:, None, :]
        return level if calendar is None else level + self.season(calendar)

    def normalise(self, logits: Tensor) -> Tensor:
        """(..., 28) logits -> (..., 4, 7) probabilities; impossible moves exactly 0."""
        rows = logits.unflatten(-1, (N_LIVING, N_STATES))
        return rows.masked_fill(~self.allowed, -torch.inf).softmax(dim=-1)

    # ---- public -----------------------------------------------------------------------------

    def forward(self, cohort_features: Tensor, macro_path: Tensor, calendar: Tensor | None = None) -> Tensor:
        """Transition matrices of B cohorts, each along its own macro path.

        Args:
            cohort_features: (B,12) raw units; NaN where missing.
            macro_path: (B,T,9) raw units.
            calendar: (B,T,2) ints or None (neutral).

        Returns:
            (B,T,7,7) probabilities.
        """
        batch, months = self._check(cohort_features, macro_path)
        if len(macro_path) != batch:
            raise ModelError("one macro path per cohort", expected=batch, got=len(macro_path))
        if calendar is not None:
            require_shape("calendar", calendar, (batch, months, 2))
        each = torch.arange(batch, device=macro_path.device)
        return with_absorbing_rows(self.pair_rows(cohort_features, macro_path, each, calendar))

    def pair_rows(
        self,
        cohort_features: Tensor,
        macro_paths: Tensor,
        path_of: Tensor,
        calendar: Tensor | None = None,
        age0: Tensor | None = None,
    ) -> Tensor:
        """Rows of N cohorts, each on one of P paths; each path is read once.

        Args:
            cohort_features: (N,12). macro_paths: (P,T,9). path_of: (N,) path number.
            calendar: (T,2) shared or (N,T,2), or None. age0: (N,) or None, as in `rows`.

        Returns:
            (N,T,4,7) probabilities.
        """
        _, months = self._check(cohort_features, macro_paths)
        queries = self.encode_cohorts(cohort_features, months, age0)
        memory = self.encode_macro(macro_paths)[path_of]
        logits = self._level(cohort_features, queries, calendar) + self.out(self.gate(queries) * memory)
        effect = self._macro_effect(cohort_features)
        return self.normalise(logits + self.macro_scale(macro_paths)[path_of] @ effect.transpose(1, 2))

    def rows(
        self,
        cohort_features: Tensor,
        macro_paths: Tensor,
        calendar: Tensor | None = None,
        age0: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Rows of the living states for every path and cohort; each macro path is read once.

        Paths are worked on in groups of a fixed size, so a path's rows do not depend on its company.

        Args:
            cohort_features: (C,12) raw units.
            macro_paths: (P,T,9) raw units.
            calendar: (T,2) ints shared by all paths, or None.
            age0: (C,) age at the end of month -1, instead of the feature column.
            extra: (T,4,7) further logits of all cohorts, or None.

        Returns:
            (P,C,T,4,7) probabilities; months lie outermost in memory.
        """
        _, months = self._check(cohort_features, macro_paths)
        return self.rows_given(self.read_cohorts(cohort_features, months, calendar, age0, extra), macro_paths)

    def read_cohorts(
        self,
        cohort_features: Tensor,
        months: int,
        calendar: Tensor | None = None,
        age0: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> CohortReading:
        """What `rows` needs of the cohorts, whatever the macro paths; arguments as there."""
        if calendar is not None:
            require_shape("calendar", calendar, (months, 2))
        queries = self.encode_cohorts(cohort_features, months, age0)
        level = self._level(cohort_features, queries, calendar)
        if extra is not None:
            level = level + extra.flatten(1)
        level = level.masked_fill(~self.allowed.flatten(), -torch.inf)
        read = self.gate(queries)[..., None, :] * self.out.weight  # (C,T,28,D)
        effect = self._macro_effect(cohort_features)[:, None].expand(-1, months, -1, -1)
        given = torch.cat([read, effect], dim=-1).permute(1, 3, 0, 2).flatten(2).contiguous()  # (T,D+9,C 28)
        return CohortReading(given, level.transpose(0, 1).reshape(months, 1, -1))

    def rows_given(self, cohorts: CohortReading, macro_paths: Tensor) -> Tensor:
        """`rows` of cohorts that have been read."""
        self._check_macro(macro_paths)
        rows = [
            self._rows_of(cohorts, macro_paths[first : first + PATHS_AT_ONCE])
            for first in range(0, len(macro_paths), PATHS_AT_ONCE)
        ]
        together = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        shape = (macro_paths.shape[1], len(macro_paths), -1, N_LIVING, N_STATES)
        return together.reshape(shape).permute(1, 2, 0, 3, 4)

    def _rows_of(self, cohorts: CohortReading, macro_PTM: Tensor) -> Tensor:
        """(T,P,C*28) probabilities of at most PATHS_AT_ONCE paths, as (T,P,C,28) flattened."""
        count = len(macro_PTM)
        if count < PATHS_AT_ONCE:
            macro_PTM = torch.cat([macro_PTM, macro_PTM[-1:].expand(PATHS_AT_ONCE - count, -1, -1)])
        seen = torch.cat([self.encode_macro(macro_PTM), self.macro_scale(macro_PTM)], dim=-1).transpose(0, 1)
        logits = torch.baddbmm(cohorts.level_T1Y, seen, cohorts.given_TXY)
        # exp over sums by a product: a softmax over seven takes twenty times as long.
        weights = logits.clamp(max=LARGEST_LOGIT).exp().view(-1, N_STATES)
        rows = weights / (weights @ weights.new_ones(N_STATES, 1))
        return rows.view(logits.shape)[:, :count]

    def predict(
        self, cohort_features: Any, macro_paths: Any, calendar: Any = None, age0: Any = None
    ) -> Tensor:
        """Transition matrices from frames, without gradients.

        Args:
            cohort_features: pandas or polars frame with the columns `COHORT_FEATURES` (others are
                ignored), or an array (C,12).
            macro_paths: (P,T,9) or (T,9) tensor or array, or a frame of one path with the nine series.
            calendar: (T,2) ints or None.
            age0: (C,) months or None.

        Returns:
            (P,C,T,7,7) probabilities.
        """
        cohorts = matrix_from(cohort_features, COHORT_FEATURES)
        macro = matrix_from(macro_paths, MACRO_NAMES)
        macro = macro[None] if macro.dim() == 2 else macro
        device = self.base.device
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                rows = self.rows(
                    cohorts.to(device),
                    macro.to(device),
                    None if calendar is None else torch.as_tensor(calendar).long().to(device),
                    None if age0 is None else torch.as_tensor(age0).float().to(device),
                )
        finally:
            self.train(was_training)
        return with_absorbing_rows(rows)

    def anchor_macro(self, effect: Tensor | None = None) -> None:
        """Freeze the macro term at stated sensitivities and show the network the neutral macro.

        For data that hold fewer than `MIN_MACRO_PATHS` macro paths, which cannot tell a macro effect
        from the passing of time.

        Args:
            effect: (4,28,9) logit change per scaled unit of a series, or None to keep what is set.
        """
        if effect is not None:
            require_shape("effect", effect, tuple(self.macro_effect.shape))
            with torch.no_grad():
                self.macro_effect.copy_(effect)
        self.macro_effect.requires_grad_(False)
        self.macro_anchored.fill_(True)

    def _check(self, cohort_features: Tensor, macro_path: Tensor) -> tuple[int, int]:
        require_shape("cohort_features", cohort_features, (None, self.config.n_cohort_features))
        self._check_macro(macro_path)
        return len(cohort_features), macro_path.shape[1]

    def _check_macro(self, macro_path: Tensor) -> None:
        require_shape("macro_path", macro_path, (None, None, self.config.n_macro_vars))
        require_months(macro_path.shape[1], self.config.max_months)
        if not torch.isfinite(macro_path).all():
            raise ModelError(
                "macro path holds values that are not finite", expected="finite numbers", got="NaN or inf"
            )


def prior_logits() -> Tensor:
    """(4,7) log of the stated level; impossible cells get a small number (they are masked anyway)."""
    return torch.tensor(_PRIOR_ROWS).clamp(min=1e-4).log()


def with_absorbing_rows(rows: Tensor) -> Tensor:
    """(..., 4, 7) -> (..., 7, 7): default, prepaid and matured stay where they are."""
    stay = torch.eye(N_STATES, dtype=rows.dtype, device=rows.device)[list(ABSORBING_STATES)]
    return torch.cat([rows, stay.expand(*rows.shape[:-2], -1, -1)], dim=-2)


def matrix_from(data: Any, names: tuple[str, ...]) -> Tensor:
    """Float tensor of a tensor, an array, or the named columns of a pandas or polars frame.

    Raises:
        ModelError: columns are missing or the last dimension does not fit.
    """
    if isinstance(data, Tensor):
        tensor = data.float()
    elif isinstance(data, np.ndarray):
        tensor = torch.from_numpy(np.asarray(data, dtype=np.float32).copy())
    else:
        frame = nw.from_native(data, eager_only=True)
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ModelError(
                "columns are missing", expected=", ".join(names), got=f"without {', '.join(missing)}"
            )
        columns = [frame[name].cast(nw.Float32).to_numpy() for name in names]
        tensor = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    if tensor.shape[-1] != len(names):
        raise ModelError("wrong number of columns", expected=len(names), got=tensor.shape[-1])
    return tensor
