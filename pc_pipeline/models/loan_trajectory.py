"""The loan's own history against its cohort: an autoregressive transformer over states.

Here: `LoanTrajectoryModel` and its config. Not here: cohort rows (`transition_transformer`), values given
a state (`diffusion`), money (`paid_through`), what memory the inputs carry (`history`), training.

    logits_t = log P_cohort(s_{t-1}, .) + residual(s_{<t}, loan, age)    (docs/methods/loan_models.md, eq. 2)

The cohort sets the level and carries the macro path; the residual, zero before training, knows the loan.
A zero residual returns the cohort exactly, and a move the cohort excludes stays excluded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.diffusion import DiffusionHead
from pc_pipeline.models.history import N_RECENCY, N_RUN_FEATURES, StateHistory, state_history
from pc_pipeline.models.layers import (
    CausalBlock,
    KeyValueCache,
    NormalScores,
    check_heads,
    log_or_minus_infinity,
    require_months,
    require_shape,
    segment_effect,
    zero_init,
)
from pc_pipeline.models.loan_money import run_ledger
from pc_pipeline.models.payment_head import PaymentHead
from pc_pipeline.models.payment_history import N_PAYMENT_INPUTS, WINDOW, payment_inputs, shift_window
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.models.transition_transformer import CalendarTerm, age_features
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import (
    ASSET_CLASSES,
    LOAN_FEATURES,
    N_LOAN_INPUTS,
    N_SEGMENT_CODES,
    SEGMENT_CODES,
)

_COLUMN: Final = {name: number for number, name in enumerate(LOAN_FEATURES)}
# Typical raw features and their spread where training constants are not yet known; the others are flags.
_TYPICAL: Final = {
    "log_balance": (12.0, 2.0),
    "interest_rate": (0.08, 0.04),
    "spread": (0.03, 0.02),
    "term_months": (60.0, 60.0),
    "ltv": (0.7, 0.15),
    "dti_dscr": (1.0, 0.7),
    "internal_score": (60.0, 15.0),
    "external_score": (680.0, 70.0),
    "log_collateral_cover": (0.3, 0.3),
}
_SCALED: Final = [_COLUMN[name] for name in _TYPICAL]
_FLAGS: Final = [
    column for name, column in _COLUMN.items() if name not in (*_TYPICAL, "age_months", "vintage_index")
]
N_STATIC: Final = (2 + len(ASSET_CLASSES)) * len(_TYPICAL) + len(_FLAGS)
MAX_VINTAGES: Final = (
    120  # months after the model's reference month; other vintages get no effect of their own
)
_VINTAGE_WIDTH: Final = 4
N_AGE: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryConfig:
    """Sizes of the loan model.

    Attributes:
        n_loan_features: columns of a loan, `schemas.units.LOAN_FEATURES`.
        n_states: loan states.
        d_model, n_heads, n_layers: width, heads and blocks.
        diffusion_steps: steps of the value head while training.
        idio_scale: multiplier of the residual logits: smaller keeps loans nearer to their cohort.
        dropout: share, while training.
        reads_payments: whether past payments are an input beside past states (real tapes; where a state fixes
            its payment they say nothing new).
        n_members: networks whose residual logits are averaged; the value head reads the first.
        max_months: longest history.
    """

    n_loan_features: int = len(LOAN_FEATURES)
    n_states: int = N_STATES
    d_model: int = 256
    n_heads: int = 8
    n_layers: int = 6
    diffusion_steps: int = 100
    idio_scale: float = 0.3
    dropout: float = 0.1
    reads_payments: bool = False
    n_members: int = 1
    max_months: int = 600

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads)
        if (self.n_loan_features, self.n_states) != (len(LOAN_FEATURES), N_STATES):
            raise ConfigError(
                "loan features and states are fixed by the schemas",
                expected=(len(LOAN_FEATURES), N_STATES),
                got=(self.n_loan_features, self.n_states),
            )
        if min(self.n_layers, self.max_months, self.n_members) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "size out of range",
                expected="n_layers, max_months, n_members >= 1; 0 <= dropout < 1",
                got=f"{self.n_layers}, {self.max_months}, {self.n_members}, {self.dropout}",
            )
        if not self.idio_scale > 0 or self.diffusion_steps < 2:
            raise ConfigError(
                "out of range",
                expected="idio_scale > 0, diffusion_steps >= 2",
                got=f"{self.idio_scale}, {self.diffusion_steps}",
            )


def risk_directions(layer: nn.Linear) -> nn.Linear:
    """(28,V) weights whose first direction begins as 'worse': up for worse states, down for cures, exits."""
    rows = torch.zeros(N_LIVING, N_STATES)
    for state in range(N_LIVING):
        rows[state, state + 1 : LoanState.prepaid] = 1.0
        rows[state, :state] = -1.0
        rows[state, LoanState.prepaid :] = -0.5
    with torch.no_grad():
        layer.weight[:, 0] = rows.flatten()
    return layer


def loan_age_features(age_BT: Tensor, term_B1: Tensor) -> Tensor:
    """(B,T) months since origination -> (B,T,8): age, time left and its last months, all bounded."""
    left = (term_B1 - age_BT).clamp(min=-24.0)
    share = (age_BT / term_B1.clamp(min=1.0)).clamp(0.0, 1.5)
    near = torch.exp(-left.clamp(min=0.0) / 3.0)
    over = (left <= 0).to(age_BT.dtype)
    left_log = torch.log1p(left.clamp(min=0.0)) / 6.0
    return torch.cat([age_features(age_BT), torch.stack([share, near, over, left_log], dim=-1)], dim=-1)


@register(TrajectoryConfig)
class LoanTrajectoryModel(nn.Module):
    """p(state_t | states before t, loan, cohort) and the loan's values given its state.

    Loan features are raw units with NaN where missing; scaling constants live among the weights.
    Time: entry t is the state at the end of month t; `initial_state` is that at the end of month -1,
    when the loan is `age_months` old. `vintage_index` counts months from `reference_month` (a month index
    kept among the weights).
    """

    reference_month: Tensor

    def __init__(self, config: TrajectoryConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        mean, sd = zip(*_TYPICAL.values(), strict=True)
        self.loan_scale = NormalScores(torch.tensor(mean), torch.tensor(sd))
        self.register_buffer("reference_month", torch.tensor(0))
        self.loan_in = nn.Sequential(nn.Linear(N_STATIC, width), nn.GELU(), nn.Linear(width, width))
        self.state_in = nn.Embedding(N_STATES, width)
        self.recency_in = nn.Embedding(N_RECENCY, width)
        self.moment_in = nn.Linear(N_AGE + N_RUN_FEATURES, width)
        self.season = CalendarTerm(N_LIVING * N_STATES)
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.n_heads, config.max_months, config.dropout)
            for _ in range(config.n_layers)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = zero_init(nn.Linear(width, N_STATES))
        # A state-by-state linear map beside the network: logistic regression is the floor, not the goal.
        cells = N_LIVING * N_STATES
        self.wide_loan = zero_init(nn.Linear(N_STATIC, cells))
        self.wide_moment = zero_init(nn.Linear(N_AGE + N_RUN_FEATURES, cells))
        self.vintage = nn.Parameter(torch.zeros(len(ASSET_CLASSES) * MAX_VINTAGES, _VINTAGE_WIDTH))
        self.wide_vintage = risk_directions(nn.Linear(_VINTAGE_WIDTH, cells, bias=False))
        self.wide_recency = nn.Parameter(torch.zeros(N_RECENCY, cells))
        # Rows: industry x region, then industry, then region.
        self.segment = nn.Parameter(torch.zeros((N_SEGMENT_CODES + 2) * N_SEGMENT_CODES, _VINTAGE_WIDTH))
        self.wide_segment = risk_directions(nn.Linear(_VINTAGE_WIDTH, cells, bias=False))
        if config.reads_payments:
            self.history_in = nn.Linear(N_PAYMENT_INPUTS, width, bias=False)
            self.wide_history = zero_init(nn.Linear(N_PAYMENT_INPUTS, cells, bias=False))
        head = PaymentHead if config.reads_payments else DiffusionHead
        self.value_head = head(2 * width, config.diffusion_steps)
        self.members = nn.ModuleList(
            LoanTrajectoryModel(replace(config, n_members=1)) for _ in range(config.n_members - 1)
        )
        for member in self.members:
            del member.value_head

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`, in its order."""
        typical = [_TYPICAL.get(name, (0.5, 0.0)) for name in LOAN_FEATURES]
        shift, scale = (tuple(column) for column in zip(*typical, strict=True))
        return {
            "loan_features": TensorSpec(("B", len(LOAN_FEATURES)), shift=shift, scale=scale),
            "cohort_transitions": TensorSpec(("B", "T", N_STATES, N_STATES), kind="rows"),
            "target_states": TensorSpec(("B", "T"), kind="index", n=N_LIVING),
        }

    # ---- parts ------------------------------------------------------------------------------

    def encode_loan(self, loan_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,24 or more) raw -> static inputs (B,S), the loan's embedding (B,D), its own effects (B,28).

        Static inputs: normal scores, the same by class, missing flags, and the tape's own flags. Own effects:
        of (class, vintage) and of industry and region; zero where unknown or never seen.
        """
        scores = self.loan_scale(loan_features[:, _SCALED])
        classes = torch.nan_to_num(loan_features[:, : len(ASSET_CLASSES)])
        missing = torch.isnan(loan_features[:, _SCALED]).to(scores.dtype)
        by_class = (classes[:, :, None] * scores[:, None, :]).flatten(1)
        flags = torch.nan_to_num(loan_features[:, _FLAGS])
        static = torch.cat([scores, missing, by_class, flags], dim=-1)
        month = torch.nan_to_num(loan_features[:, _COLUMN["vintage_index"]], nan=-1.0).round().long()
        known = (month >= 0) & (month < MAX_VINTAGES)
        place = classes.argmax(dim=-1) * MAX_VINTAGES + month.clamp(0, MAX_VINTAGES - 1)
        own = self.wide_vintage(self.vintage[place] * known[:, None].to(scores.dtype))
        first = len(LOAN_FEATURES)
        if loan_features.shape[1] > first:
            codes = loan_features[:, first : first + len(SEGMENT_CODES)]
            own = own + self.wide_segment(segment_effect(self.segment, codes))
        return static, self.loan_in(static), own

    def _moments(self, loan_features: Tensor, past: StateHistory, first_month: int) -> Tensor:
        age0 = torch.nan_to_num(loan_features[:, _COLUMN["age_months"]], nan=0.0)
        term = torch.nan_to_num(loan_features[:, _COLUMN["term_months"]], nan=60.0)
        months = torch.arange(past.state.shape[1], device=age0.device, dtype=age0.dtype)
        age = age0[:, None] + 1 + first_month + months
        return torch.cat([loan_age_features(age, term[:, None]), past.run], dim=-1)

    def residual(
        self,
        loan_features: Tensor,
        past: StateHistory,
        history: Tensor | None = None,
        calendar: Tensor | None = None,
        first_month: int = 0,
        caches: list[KeyValueCache] | None = None,
        apart: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Residual logits (B,T,7), with `apart` (N,B,T,7) of each member, and hidden states (B,T,D)."""
        inputs = payment_inputs(history) if self.config.reads_payments and history is not None else None
        found, size = [], self.config.n_layers
        for number, network in enumerate([self, *self.others()]):
            own = None if caches is None else caches[number * size : (number + 1) * size]
            found.append(network.own_residual(loan_features, past, inputs, calendar, first_month, own))
        every = torch.stack([logits for logits, _ in found])
        return every if apart else every.mean(0), found[0][1]

    def own_residual(
        self,
        loan_features: Tensor,
        past: StateHistory,
        inputs: Tensor | None,
        calendar: Tensor | None,
        first_month: int,
        caches: list[KeyValueCache] | None,
    ) -> tuple[Tensor, Tensor]:
        """`residual` of this network without its other members, given `payment_inputs`."""
        static, loan, own_effects = self.encode_loan(loan_features)
        moments = self._moments(loan_features, past, first_month)
        x = (
            self.state_in(past.state)
            + self.recency_in(past.recency)
            + self.moment_in(moments)
            + loan[:, None]
        )
        wide = (self.wide_loan(static) + own_effects)[:, None]
        wide = wide + self.wide_moment(moments) + self.wide_recency[past.recency]
        if inputs is not None:
            x = x + self.history_in(inputs)
            wide = wide + self.wide_history(inputs)
        if calendar is not None:
            wide = wide + self.season(calendar)
        for number, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[number])
        hidden = self.out_norm(x)
        living = past.state.clamp(max=N_LIVING - 1)[..., None, None].expand(-1, -1, 1, N_STATES)
        own = wide.unflatten(-1, (N_LIVING, N_STATES)).gather(2, living)[:, :, 0]
        return self.config.idio_scale * (self.out(hidden) + own), torch.cat(
            [hidden, loan[:, None].expand_as(hidden)], dim=-1
        )

    def others(self) -> list[LoanTrajectoryModel]:
        """The members beside this network."""
        return [member for member in self.members if isinstance(member, LoanTrajectoryModel)]

    # ---- public -----------------------------------------------------------------------------

    def forward(
        self,
        loan_features: Tensor,
        cohort_transitions: Tensor,
        target_states: Tensor | None = None,
        initial_state: Tensor | None = None,
        calendar: Tensor | None = None,
        *,
        months_since_miss: Tensor | None = None,
        history: Tensor | None = None,
        is_final: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits of every month's state given the states before it.

        Args:
            loan_features: (B,24) raw units, NaN where missing; age at the end of month -1.
            cohort_transitions: (B,T,7,7) probabilities.
            target_states: (B,T) states 0-6, -1 padding; entry t is never seen by logits t. None: the loan
                stays where it begins.
            initial_state: (B,) state at the end of month -1; None: performing.
            calendar: (B,T,2) ints or None.
            months_since_miss: (B,) at the end of month -1, -1 never; None: never.
            history: (B,T,12) payment windows known at the end of month t-1 (`payment_history`); an empty
                one, like None, adds nothing.
            is_final: (B,T) bool, in or after the final contractual month; None: rows are used as given.

        Returns:
            state_logits (B,T,7), log-probabilities up to a constant, -inf where impossible;
            value_params (B,T,2D), what the diffusion head conditions on beside the state.
        """
        batch, months = self._check(loan_features, cohort_transitions)
        previous = previous_states(target_states, initial_state, batch, months, loan_features.device)
        rows = cohort_transitions.gather(2, previous[..., None, None].expand(-1, -1, 1, N_STATES))
        past = state_history(previous, months_since_miss)
        return self.condition(loan_features, rows[:, :, 0], past, history, calendar, is_final)

    def condition(
        self,
        loan_features: Tensor,
        rows_BTK: Tensor,
        past: StateHistory,
        history: Tensor | None = None,
        calendar: Tensor | None = None,
        is_final: Tensor | None = None,
        apart: bool = False,
    ) -> dict[str, Tensor]:
        """`forward` given the cohort's row of each month's starting state (B,T,7) and the past itself.

        With `apart`, state_logits is (N,B,T,7): each member's own.
        """
        residual, context = self.residual(loan_features, past, history, calendar, apart=apart)
        logits = log_or_minus_infinity(rows_BTK) + residual
        if is_final is not None:
            logits = settle_maturity(logits, past.state, is_final)
        return {"state_logits": logits, "value_params": context}

    @staticmethod
    def cohort_logits(rows_BTK: Tensor, past: StateHistory, is_final: Tensor | None = None) -> Tensor:
        """`condition` with a zero residual: the cohort itself."""
        logits = log_or_minus_infinity(rows_BTK)
        return logits if is_final is None else settle_maturity(logits, past.state, is_final)

    def fit_scaling(self, loan_features: Tensor, reference_month: int) -> None:
        """Take scaling constants from training loans (N,24 or more)."""
        self.loan_scale.fit(loan_features[:, _SCALED])
        self.reference_month.fill_(reference_month)
        for member in self.others():
            member.fit_scaling(loan_features, reference_month)

    @torch.no_grad()
    def silence(self) -> None:
        """Set the residual to zero: the model is its cohort. The value head stays as it is."""
        outputs = [self.out, self.wide_loan, self.wide_moment, self.wide_vintage, self.wide_segment]
        if self.config.reads_payments:
            outputs.append(self.wide_history)
        for layer in outputs:
            zero_init(layer)
        for table in (self.wide_recency, self.season.month, self.season.weekday):
            table.zero_()
        for member in self.others():
            member.silence()

    @torch.no_grad()
    def generate(
        self,
        loan_features: Tensor,
        cohort_transitions: Tensor,
        macro_path: Tensor | None = None,
        n_samples: int = 1,
        *,
        initial_state: Tensor | None = None,
        months_since_miss: Tensor | None = None,
        calendar: Tensor | None = None,
        schedule: Tensor | None = None,
        cash: str = "states",
        with_logits: bool = False,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Draw loan histories and their money.

        A model that reads payments starts from the window among the loan's inputs and goes on with the ratios
        that its value head draws.

        Args:
            loan_features: (B,24) raw units, or (B,38) with `LOAN_EXTRAS`. cohort_transitions: (B,T,7,7).
            macro_path: (B,T,9) or (T,9); its policy rate carries floating coupons. None: coupons stay.
            n_samples: histories per loan, S.
            initial_state, months_since_miss, calendar: as in `forward`.
            schedule: (B,n+1) scheduled balances S(0)..S(n); None: in closed form from the features.
            cash: 'states' (the paid-through ledger; a state fixes its payment) or 'ratios' (the value
                head proposes payment ratios; interest first, then principal).
            with_logits: also return 'state_logits' (S,B,T,7), given which each state was drawn.
            seed: of all draws.

        Returns:
            states (S,B,T) int64, payments, balances, losses (S,B,T) float64 in currency: cash without
            recoveries, balance after the month, severity times charge-off in the month of default;
            and principal, charge_offs, payment_ratios, severities.
        """
        if cash not in ("states", "ratios"):
            raise ModelError("unknown cash convention", expected="states, ratios", got=cash)
        batch, months = self._check(loan_features, cohort_transitions)
        was_training = self.training
        self.eval()
        generator = torch.Generator(loan_features.device).manual_seed(derive_seed(seed, "loan_trajectory"))
        try:
            features = loan_features.repeat(n_samples, 1)
            begin = torch.zeros(batch, dtype=torch.long, device=features.device)
            begin = (begin if initial_state is None else initial_state.long()).repeat(n_samples)
            since = None if months_since_miss is None else months_since_miss.repeat(n_samples)
            drawn = self._draw_states(
                features, cohort_transitions, begin, since, calendar, n_samples, generator
            )
        finally:
            self.train(was_training)
        states, values = drawn["states"], drawn["values"]
        money = run_ledger(features, states, begin, values, macro_path, schedule, cash, n_samples)
        shaped = {name: tensor.view(n_samples, batch, months) for name, tensor in money.items()}
        if with_logits:
            shaped["state_logits"] = drawn["logits"].view(n_samples, batch, months, N_STATES)
        return {"states": states.view(n_samples, batch, months), **shaped}

    def _draw_states(
        self,
        features: Tensor,
        cohort_transitions: Tensor,
        begin: Tensor,
        since: Tensor | None,
        calendar: Tensor | None,
        n_samples: int,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """'states' (N,T), 'values' (N,T,V) and 'logits' (N,T,7), month after month."""
        months = cohort_transitions.shape[1]
        caches = self.new_caches(len(begin), months)
        is_final = final_months(features, months)
        previous, window = begin[:, None], self._first_window(features)
        contexts, values, every = [], [], []
        for month in range(months):
            past = state_history(previous, since).last()
            day = None if calendar is None else calendar[:, month : month + 1].repeat(n_samples, 1, 1)
            seen = None if window is None else window[:, None]
            residual, context = self.residual(features, past, seen, day, month, caches)
            rows = cohort_transitions[:, month].repeat(n_samples, 1, 1)
            here = previous[:, -1]
            rows = rows.gather(1, here[:, None, None].expand(-1, 1, N_STATES))
            logits = log_or_minus_infinity(rows) + residual
            logits = settle_maturity(logits, here[:, None], is_final[:, month : month + 1])[:, 0]
            uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))
            state = (logits + gumbel).argmax(dim=-1)
            previous = torch.cat([previous, state[:, None]], dim=1)
            every.append(logits)
            if window is None:
                contexts.append(context)
            else:
                value = self.value_head.sample(context[:, 0], state, generator=generator, window_NW=window)
                window = shift_window(window, value[:, 0])
                values.append(value)
        states = previous[:, 1:]
        if window is None:
            flat = torch.cat(contexts, dim=1).flatten(0, 1)
            drawn = self.value_head.sample(flat, states.flatten(), generator=generator)
            drawn = drawn.view(*states.shape, -1)
        else:
            drawn = torch.stack(values, dim=1)
        return {"states": states, "values": drawn, "logits": torch.stack(every, dim=1)}

    def _first_window(self, features: Tensor) -> Tensor | None:
        """(N,12) payments before month 0, empty where not given; None for a model that reads none."""
        if not self.config.reads_payments:
            return None
        if features.shape[1] == N_LOAN_INPUTS:
            return features[:, -WINDOW:]
        return features.new_full((len(features), WINDOW), torch.nan)

    def new_caches(self, batch: int, months: int) -> list[KeyValueCache]:
        """One empty key-value cache per block of every member."""
        size = self.config.d_model // self.config.n_heads
        like = self.out.weight
        count = self.config.n_members * self.config.n_layers
        return [KeyValueCache(batch, self.config.n_heads, months, size, like) for _ in range(count)]

    def _check(self, loan_features: Tensor, cohort_transitions: Tensor) -> tuple[int, int]:
        if loan_features.dim() != 2 or loan_features.shape[1] != N_LOAN_INPUTS:
            require_shape("loan_features", loan_features, (None, self.config.n_loan_features))
        require_shape(
            "cohort_transitions", cohort_transitions, (len(loan_features), None, N_STATES, N_STATES)
        )
        require_months(cohort_transitions.shape[1], self.config.max_months)
        return cohort_transitions.shape[0], cohort_transitions.shape[1]


def previous_states(
    target_states: Tensor | None, initial_state: Tensor | None, batch: int, months: int, device: torch.device
) -> Tensor:
    """(B,T) state before each month; padding reads as the last absorbing state, which stays."""
    begin = (
        torch.zeros(batch, dtype=torch.long, device=device) if initial_state is None else initial_state.long()
    )
    if target_states is None:
        return begin[:, None].expand(-1, months).contiguous()
    require_shape("target_states", target_states, (batch, months))
    before = torch.cat([begin[:, None], target_states[:, :-1].long()], dim=1)
    return torch.where(before < 0, torch.full_like(before, int(LoanState.matured)), before)


def settle_maturity(logits: Tensor, previous: Tensor, is_final: Tensor) -> Tensor:
    """`schemas.states.mature_rows` on log-probabilities (B,T,7) of living loans."""
    performing, prepaid, matured = (
        logits[..., state] for state in (LoanState.performing, LoanState.prepaid, LoanState.matured)
    )
    never = torch.full_like(performing, -torch.inf)
    early = safe_logaddexp(prepaid, matured)
    paid_up = safe_logaddexp(performing, early)
    living = previous < N_LIVING
    final = is_final & living
    columns = list(logits.unbind(-1))
    columns[LoanState.performing] = torch.where(final, never, performing)
    columns[LoanState.prepaid] = torch.where(living, torch.where(final, never, early), prepaid)
    columns[LoanState.matured] = torch.where(living, torch.where(final, paid_up, never), matured)
    return torch.stack(columns, dim=-1)


def safe_logaddexp(first: Tensor, second: Tensor) -> Tensor:
    """log(e^a + e^b), -inf where both are, with gradients that stay finite."""
    none = torch.isneginf(first) & torch.isneginf(second)
    zero = torch.zeros_like(first)
    total = torch.logaddexp(torch.where(none, zero, first), torch.where(none, zero, second))
    return torch.where(none, torch.full_like(total, -torch.inf), total)


def final_months(loan_features: Tensor, months: int) -> Tensor:
    """(B,T) bool: month t is the loan's final contractual month or later; a loan without term never ends."""
    age0 = torch.nan_to_num(loan_features[:, _COLUMN["age_months"]], nan=0.0)
    term = torch.nan_to_num(loan_features[:, _COLUMN["term_months"]], nan=1e9)
    arrival = age0[:, None] + 1 + torch.arange(months, device=age0.device, dtype=age0.dtype)
    return arrival >= term[:, None] - 0.5


def state_loss(state_logits: Tensor, target_states: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean -log p of the states that happened, over (B,T) entries that are not padding.

    Entries after an absorbing state add nothing; callers mask them as padding.
    """
    known = target_states >= 0
    losses = F.cross_entropy(state_logits[known], target_states[known].long(), reduction="none")
    if weight is None:
        return losses.mean()
    chosen = weight[known]
    return (losses * chosen).sum() / chosen.sum()
