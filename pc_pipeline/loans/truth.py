"""The exact law of the synthetic portfolio: monthly moves given loan, macro, season and history.

    index x = sqrt(.60) m(macro, class) + sqrt(.25) C + sqrt(.10) F + sqrt(.05) I
    P(k -> j) proportional to base[class, k, j] * exp(g_f * x_f)     f: kind of move; staying has x = 0

A miss is also multiplied by season and memory odds; a prepayment by the coupon's. From the final contractual
month on, the mass on performing and prepaid is matured (`schemas.states.mature_rows`). Details and numbers:
docs/methods/loans.md, section 1. Not here: drawing states (`panel_generator`), hidden effects (`effects`),
scoring a panel (`oracle`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numba
import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.asset_classes import asset_classes, base_moves
from pc_pipeline.loans.effects import codes_of, loan_effects
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import (
    CURE,
    MISS,
    MOVE_KINDS,
    PREPAY,
    WORSEN,
    MacroPaths,
    macro_index,
    sensitivities,
    single_path,
)
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES

NO_KIND: Final = -1
_STATED_SERIES = [MACRO_NAMES.index(n) for n in ("gdp_growth_yoy", "unemployment_rate")]
_SPREADS = [MACRO_NAMES.index(n) for n in ("credit_spread_ig", "credit_spread_hy")]
_RISK_SIGN: Final = np.array([1.0, 1.0, -1.0, -1.0])  # a bad index raises miss, worsen; lowers cure, prepay


def _kinds() -> np.ndarray:
    kinds = np.full((N_LIVING, N_STATES), NO_KIND, dtype=np.int64)
    kinds[0, 1] = MISS
    for state in (1, 2, 3):
        kinds[state, :state] = CURE
        kinds[state, state + 1] = WORSEN  # 90dpd + 1 is default
    kinds[:, LoanState.prepaid] = PREPAY
    return kinds


KIND_OF_MOVE: Final = _kinds()


@dataclass(frozen=True, kw_only=True, slots=True)
class LawConfig:
    """Constants of the law.

    Attributes:
        index_scale: log-odds of a miss per standard deviation of the latent index; other kinds of move
            scale by the length of their stated elasticities (GDP, unemployment, spreads) over that of a miss.
        macro_share, cohort_share, factor_share, idiosyncratic_share: of the index variance; sum to 1.
        miss_ratio: odds of a miss one month after a late month over those of one never late.
        memory_decay_months: e-folding time of the log of that ratio. memory_months: after which it is 1.
        december, february, march: log-odds added to a miss in that month.
        coupon_prepay: log-odds of prepayment per unit of coupon above the middle of the class range (fixed).
    """

    index_scale: float = 0.80
    macro_share: float = 0.60
    cohort_share: float = 0.25
    factor_share: float = 0.10
    idiosyncratic_share: float = 0.05
    miss_ratio: float = 3.0
    memory_decay_months: float = 4.0
    memory_months: int = 12
    december: float = 0.30
    february: float = -0.25
    march: float = -0.25
    coupon_prepay: float = 8.0

    def __post_init__(self) -> None:
        shares = (self.macro_share, self.cohort_share, self.factor_share, self.idiosyncratic_share)
        if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9:
            raise ConfigError("variance shares must be >= 0 and sum to 1", expected=1.0, got=shares)
        if self.index_scale < 0 or self.miss_ratio <= 0 or self.memory_decay_months <= 0:
            raise ConfigError("law constants must be positive", got=self)
        if not 0 <= self.memory_months <= 120:
            raise ConfigError("memory outside the calendar", expected="0..120 months", got=self.memory_months)

    @property
    def own_weights(self) -> np.ndarray:
        """(3,) weights of C, F, I in the index."""
        return np.sqrt([self.cohort_share, self.factor_share, self.idiosyncratic_share])


def kind_strengths(config: LawConfig) -> np.ndarray:
    """(4,) log-odds per standard deviation of the index, by kind of move, before the sign."""
    corporate = sensitivities()[:, 0]
    stated = np.column_stack([corporate[:, _STATED_SERIES], corporate[:, _SPREADS].sum(axis=1)])
    lengths = np.linalg.norm(stated, axis=1)
    return config.index_scale * lengths / lengths[MISS]


@numba.njit(cache=True, inline="always")
def fill_row(
    out: np.ndarray,
    state: int,
    base: np.ndarray,
    kinds: np.ndarray,
    macro: np.ndarray,
    loan: np.ndarray,
    miss_odds: float,
    is_final: bool,
) -> None:
    """Write the seven probabilities of a living state into `out`.

    base, kinds: (4, 7) of the class. macro, loan: (4,) odds by kind. miss_odds: season x memory.
    """
    total = 0.0
    for to in range(7):
        odds = base[state, to]
        kind = kinds[state, to]
        if kind >= 0:
            odds *= macro[kind] * loan[kind]
            if kind == 0:
                odds *= miss_odds
        out[to] = odds
        total += odds
    for to in range(7):
        out[to] /= total
    if is_final:
        out[6] += out[0] + out[5]
        out[0] = 0.0
        out[5] = 0.0


@numba.njit(cache=True, inline="always")
def draw_performing(draw: float, stay: float, miss: float, prepay: float, is_final: bool) -> int:
    """State reached from performing at a uniform `draw`, given the odds: `fill_row` for the common row.

    A performing borrower stays, misses or prepays, in this order of states; in the end what is not
    missed matures.
    """
    place = draw * (stay + miss + prepay)
    if is_final:
        return 1 if place < miss else 6
    if place < stay:
        return 0
    return 1 if place < stay + miss else 5


@numba.njit(cache=True)
def _fill_rows(
    out: np.ndarray,
    state: np.ndarray,
    class_code: np.ndarray,
    loan_row: np.ndarray,
    path_row: np.ndarray,
    month: np.ndarray,
    month_of_year: np.ndarray,
    memory_class: np.ndarray,
    is_final: np.ndarray,
    base: np.ndarray,
    kinds: np.ndarray,
    macro_odds: np.ndarray,
    loan_odds: np.ndarray,
    season_odds: np.ndarray,
    memory_odds: np.ndarray,
) -> None:
    for row in range(out.shape[0]):
        cls = class_code[row]
        fill_row(
            out[row],
            state[row],
            base[cls],
            kinds,
            macro_odds[path_row[row], month[row], cls],
            loan_odds[loan_row[row]],
            season_odds[month_of_year[row]] * memory_odds[memory_class[row]],
            is_final[row],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrueLaw:
    """The law of one synthetic world.

    Args:
        world_seed: fixes the cohort, factor and idiosyncratic effects.
        config: its constants.
    """

    world_seed: int = 0
    config: LawConfig = field(default_factory=LawConfig)

    def macro_odds(self, macro_PTM: np.ndarray) -> np.ndarray:
        """(P, T, 9) -> (P, T, 4 classes, 4 kinds) odds multipliers of the arrival month's macro."""
        weight = kind_strengths(self.config) * np.sqrt(self.config.macro_share)
        return np.exp(macro_index(macro_PTM) * weight)

    def loan_odds(self, loans: pl.DataFrame, number: np.ndarray | None = None) -> np.ndarray:
        """(L, 4 kinds) odds multipliers of the loan's own effects and coupon; loan numbers if known."""
        class_code = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")
        own = loan_effects(loans, self.world_seed, class_code, number) @ self.config.own_weights
        logits = own[:, None] * (_RISK_SIGN * kind_strengths(self.config))
        middle = np.array([np.mean(asset_classes()[name].range("rate") or 0.0) for name in ASSET_CLASSES])
        above = loans["interest_rate"].to_numpy() - middle[class_code]
        is_fixed = (loans["rate_type"] == "fixed").to_numpy()
        logits[:, PREPAY] += self.config.coupon_prepay * np.where(is_fixed, above, 0.0)
        return np.exp(logits)

    def season_odds(self) -> np.ndarray:
        """(12,) odds multipliers of a miss, January first."""
        logits = np.zeros(12)
        logits[[11, 1, 2]] = self.config.december, self.config.february, self.config.march
        return np.exp(logits)

    def memory_odds(self) -> np.ndarray:
        """(memory_months + 2,) odds multipliers of a miss by `memory_class`: never, 0, 1, ..., memory_months.

        Month 0 means late now, where no first miss is left to make: 1.
        """
        logits = np.zeros(self.config.memory_months + 2)
        since = np.arange(1, self.config.memory_months + 1)
        logits[2:] = np.log(self.config.miss_ratio) * np.exp(-(since - 1) / self.config.memory_decay_months)
        return np.exp(logits)

    def memory_class(self, months_since_miss: np.ndarray) -> np.ndarray:
        """Months since miss (-1 never) -> place in `memory_odds`; beyond the memory counts as never."""
        since = np.asarray(months_since_miss, dtype=np.int64)
        return np.where(since > self.config.memory_months, 0, since + 1)

    def latent_index(
        self, loans: Any, paths: MacroPaths, path_row: np.ndarray, month: np.ndarray
    ) -> np.ndarray:
        """(N,) index of a miss for row-wise loans: mean 0, variance 1 over loans and the pooled mix.

        Args:
            loans: one tape row per output row. path_row, month: (N,) place in `paths`.
        """
        frame = to_polars(loans, ["loan_id", "asset_class"], "loans")
        class_code = codes_of(frame["asset_class"], ASSET_CLASSES, "asset_class")
        macro = macro_index(paths.values)[path_row, month, class_code, MISS]
        own = loan_effects(frame, self.world_seed) @ self.config.own_weights
        return np.sqrt(self.config.macro_share) * macro + own

    def rows(
        self,
        *,
        loans: pl.DataFrame,
        paths: MacroPaths,
        loan_row: np.ndarray,
        path_row: np.ndarray,
        month: np.ndarray,
        from_state: np.ndarray,
        months_since_miss: np.ndarray,
        is_final: np.ndarray,
    ) -> np.ndarray:
        """(N, 7) exact probabilities, one row per move.

        Args:
            loans: tape. paths: macro. loan_row, path_row: (N,) rows in them.
            month: (N,) month index (year * 12 + month - 1) of arrival.
            from_state: (N,) 0-3. months_since_miss: (N,) at the month moved from. is_final: (N,) bool.

        Raises:
            DataError: a month outside the macro paths or a state that is not living.
        """
        column, state = np.asarray(month) - paths.start_month, np.asarray(from_state)
        if column.size and (column.min() < 0 or column.max() >= paths.n_months):
            raise DataError(
                "months outside the macro paths",
                expected=(paths.start_month, paths.start_month + paths.n_months - 1),
                got=(int(np.min(month)), int(np.max(month))),
            )
        if state.size and (state.min() < 0 or state.max() >= N_LIVING):
            raise DataError("only living states move", expected="0..3", got=(state.min(), state.max()))
        class_code = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")[loan_row]
        out = np.zeros((column.size, N_STATES))
        _fill_rows(
            out,
            state.astype(np.int64),
            class_code,
            np.asarray(loan_row, dtype=np.int64),
            np.asarray(path_row, dtype=np.int64),
            column.astype(np.int64),
            np.asarray(month, dtype=np.int64) % 12,
            self.memory_class(months_since_miss),
            np.asarray(is_final, dtype=bool),
            base_moves(),
            KIND_OF_MOVE,
            self.macro_odds(paths.values),
            self.loan_odds(loans),
            self.season_odds(),
            self.memory_odds(),
        )
        return out


def true_transition_probabilities(
    loans: Any,
    macro: Any,
    *,
    world_seed: int = 0,
    config: LawConfig | None = None,
    start_month: str | date | None = None,
    months_since_miss: int | np.ndarray = -1,
) -> np.ndarray:
    """(L, T, 7, 7) exact monthly moves of each loan along one macro path.

    Args:
        loans: generated tape (polars or pandas). macro: frame with `month` and the nine series, or (T, 9)
            with `start_month`. world_seed: of the generator that made the tape.
        months_since_miss: history of the state moved from, scalar, (L,) or (L, T); -1 never. It matters for
            performing borrowers only.

    Returns:
        Entry [l, t] moves loan l into month t; absorbing rows are the identity. Months before a loan's
        first instalment carry the law's rows too, though no loan lives through them.
    """
    frame = to_polars(loans, ["loan_id", "asset_class", "vintage_month", "maturity_date"], "loans")
    paths = single_path(macro, start_month)
    n_loans, n_months = frame.height, paths.n_months
    months = paths.start_month + np.arange(n_months)
    final_month = frame.select(month_index_expr("maturity_date")).to_series().to_numpy()
    history = np.asarray(months_since_miss)
    history = history[:, None] if history.ndim == 1 else history
    shape = (n_loans, n_months, N_LIVING)
    loan_row, month, state = (axis.ravel() for axis in np.indices(shape))
    since = np.broadcast_to(np.broadcast_to(history, (n_loans, n_months))[..., None], shape).ravel()
    out = np.zeros((n_loans, n_months, N_STATES, N_STATES))
    out[:, :, np.arange(N_LIVING, N_STATES), np.arange(N_LIVING, N_STATES)] = 1.0
    out[:, :, :N_LIVING] = (
        TrueLaw(world_seed=world_seed, config=config or LawConfig())
        .rows(
            loans=frame,
            paths=paths,
            loan_row=loan_row,
            path_row=np.zeros_like(loan_row),
            month=months[month],
            from_state=state,
            months_since_miss=since,
            is_final=(months[None, :] >= final_month[:, None])[loan_row, month],
        )
        .reshape(*shape, N_STATES)
    )
    return out


__all__ = [
    "KIND_OF_MOVE",
    "MOVE_KINDS",
    "LawConfig",
    "TrueLaw",
    "draw_performing",
    "fill_row",
    "kind_strengths",
    "true_transition_probabilities",
]
