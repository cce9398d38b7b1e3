"""The loan's own history against its cohort: an autoregressive transformer over states.

Here: `LoanTrajectoryModel` and its config. Not here: cohort rows (`transition_transformer`), values given
a state (`diffusion`), money (`paid_through`), what memory the inputs carry (`history`), training.

    logits_t = log P_cohort(s_{t-1}, .) + residual(s_{<t}, loan, age)    (docs/methods/loan_models.md, eq. 2)

The cohort sets the level and carries the macro path; the residual, zero before training, knows the loan.
A zero residual returns the cohort exactly, and a move the cohort excludes stays excluded.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    Scaler,
    check_heads,
    log_or_minus_infinity,
    require_months,
    require_shape,
    zero_init,
)
from pc_pipeline.models.paid_through import month_cash, scheduled_balances
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.models.transition_transformer import CalendarTerm, age_features
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, LOAN_FEATURES, MACRO_NAMES, N_MACRO

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
        n_history_features: width of the optional observed history (payment ratio, arrears, ...).
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
    n_history_features: int = 0
    max_months: int = 600

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads)
        if (self.n_loan_features, self.n_states) != (len(LOAN_FEATURES), N_STATES):
            raise ConfigError(
                "loan features and states are fixed by the schemas",
                expected=(len(LOAN_FEATURES), N_STATES),
                got=(self.n_loan_features, self.n_states),
            )
        if (
            self.n_layers < 1
            or self.max_months < 1
            or not 0 <= self.dropout < 1
            or self.n_history_features < 0
        ):
            raise ConfigError(
                "size out of range",
                expected="n_layers, max_months >= 1; 0 <= dropout < 1; n_history_features >= 0",
                got=f"{self.n_layers}, {self.max_months}, {self.dropout}, {self.n_history_features}",
            )
        if not self.idio_scale > 0 or self.diffusion_steps < 2:
            raise ConfigError(
                "out of range",
                expected="idio_scale > 0, diffusion_steps >= 2",
                got=f"{self.idio_scale}, {self.diffusion_steps}",
            )


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
        self.history_scale = Scaler(
            torch.zeros(config.n_history_features), torch.ones(config.n_history_features)
        )
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
        self.wide_vintage = nn.Linear(_VINTAGE_WIDTH, cells, bias=False)
        self.wide_recency = nn.Parameter(torch.zeros(N_RECENCY, cells))
        if config.n_history_features:
            self.history_in = nn.Linear(2 * config.n_history_features + 1, width)
            self.wide_history = zero_init(nn.Linear(2 * config.n_history_features + 1, cells))
        self.value_head = DiffusionHead(2 * width, config.diffusion_steps)

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
        """(B,24) raw -> static inputs (B,S), the loan's embedding (B,D), its vintage effect (B,V).

        Static inputs: normal scores, the same by class, missing flags, and the tape's own flags.
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
        return static, self.loan_in(static), self.vintage[place] * known[:, None].to(scores.dtype)

    def _moments(self, loan_features: Tensor, past: StateHistory, first_month: int) -> Tensor:
        age0 = torch.nan_to_num(loan_features[:, _COLUMN["age_months"]], nan=0.0)
        term = torch.nan_to_num(loan_features[:, _COLUMN["term_months"]], nan=60.0)
        months = torch.arange(past.state.shape[1], device=age0.device, dtype=age0.dtype)
        age = age0[:, None] + 1 + first_month + months
        return torch.cat([loan_age_features(age, term[:, None]), past.run], dim=-1)

    def _observed(self, history: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(B,T,F) raw history -> scaled values with missing flags, and (B,T,1) whether anything is known."""
        if not self.config.n_history_features or history is None:
            return None
        missing = torch.isnan(history)
        known = (~missing).any(-1, keepdim=True).to(self.out.weight.dtype)
        return torch.cat([self.history_scale(history), missing.to(known.dtype), known], dim=-1), known

    def residual(
        self,
        loan_features: Tensor,
        past: StateHistory,
        history: Tensor | None = None,
        calendar: Tensor | None = None,
        first_month: int = 0,
        caches: list[KeyValueCache] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Residual logits (B,T,7) and hidden states (B,T,D) of the months that `past` covers."""
        static, loan, vintage = self.encode_loan(loan_features)
        moments = self._moments(loan_features, past, first_month)
        x = (
            self.state_in(past.state)
            + self.recency_in(past.recency)
            + self.moment_in(moments)
            + loan[:, None]
        )
        wide = (self.wide_loan(static) + self.wide_vintage(vintage))[:, None]
        wide = wide + self.wide_moment(moments) + self.wide_recency[past.recency]
        observed = self._observed(history)
        if observed is not None:
            inputs, known = observed
            x = x + known * self.history_in(inputs)
            wide = wide + known * self.wide_history(inputs)
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
            history: (B,T,F) observed inputs known at the end of month t-1, NaN where missing; a month with
                nothing known, like None, adds nothing.
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
    ) -> dict[str, Tensor]:
        """`forward` given the cohort's row of each month's starting state (B,T,7) and the past itself."""
        residual, context = self.residual(loan_features, past, history, calendar)
        logits = log_or_minus_infinity(rows_BTK) + residual
        if is_final is not None:
            logits = settle_maturity(logits, past.state, is_final)
        return {"state_logits": logits, "value_params": context}

    @staticmethod
    def cohort_logits(rows_BTK: Tensor, past: StateHistory, is_final: Tensor | None = None) -> Tensor:
        """`condition` with a zero residual: the cohort itself."""
        logits = log_or_minus_infinity(rows_BTK)
        return logits if is_final is None else settle_maturity(logits, past.state, is_final)

    def fit_scaling(self, loan_features: Tensor, reference_month: int, history: Tensor | None = None) -> None:
        """Take scaling constants from training loans (N,24) and observed history (N,T,F)."""
        self.loan_scale.fit(loan_features[:, _SCALED])
        self.reference_month.fill_(reference_month)
        if self.config.n_history_features and history is not None:
            self.history_scale.fit(history.flatten(0, 1))

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
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Draw loan histories and their money.

        Args:
            loan_features: (B,24) raw units. cohort_transitions: (B,T,7,7).
            macro_path: (B,T,9) or (T,9); its policy rate carries floating coupons. None: coupons stay.
            n_samples: histories per loan, S.
            initial_state, months_since_miss, calendar: as in `forward`.
            schedule: (B,n+1) scheduled balances S(0)..S(n); None: in closed form from the features.
            cash: 'states' (the paid-through ledger; a state fixes its payment) or 'ratios' (the value
                head proposes payment ratios; interest first, then principal).
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
            states, contexts = self._draw_states(
                features, cohort_transitions, begin, since, calendar, n_samples, generator
            )
            living_or_default = states.flatten()
            values = self.value_head.sample(contexts.flatten(0, 1), living_or_default, generator=generator)
        finally:
            self.train(was_training)
        values = values.view(*states.shape, -1)
        money = _run_ledger(features, states, begin, values, macro_path, schedule, cash, n_samples)
        shaped = {name: tensor.view(n_samples, batch, months) for name, tensor in money.items()}
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
    ) -> tuple[Tensor, Tensor]:
        batch, months = len(begin), cohort_transitions.shape[1]
        caches = self.new_caches(batch, months)
        is_final = final_months(features, months)
        previous = begin[:, None]
        contexts = []
        for month in range(months):
            past = state_history(previous, since).last()
            day = None if calendar is None else calendar[:, month : month + 1].repeat(n_samples, 1, 1)
            residual, context = self.residual(features, past, None, day, month, caches)
            rows = cohort_transitions[:, month].repeat(n_samples, 1, 1)
            here = previous[:, -1]
            rows = rows.gather(1, here[:, None, None].expand(-1, 1, N_STATES))
            logits = log_or_minus_infinity(rows) + residual
            logits = settle_maturity(logits, here[:, None], is_final[:, month : month + 1])[:, 0]
            uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))
            previous = torch.cat([previous, (logits + gumbel).argmax(dim=-1)[:, None]], dim=1)
            contexts.append(context)
        return previous[:, 1:], torch.cat(contexts, dim=1)

    def new_caches(self, batch: int, months: int) -> list[KeyValueCache]:
        """One empty key-value cache per block."""
        size = self.config.d_model // self.config.n_heads
        like = self.out.weight
        return [KeyValueCache(batch, self.config.n_heads, months, size, like) for _ in self.blocks]

    def _check(self, loan_features: Tensor, cohort_transitions: Tensor) -> tuple[int, int]:
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


def _run_ledger(
    features: Tensor,
    states: Tensor,
    begin: Tensor,
    values: Tensor,
    macro_path: Tensor | None,
    schedule: Tensor | None,
    cash: str,
    n_samples: int,
) -> dict[str, Tensor]:
    """Money (S*B,T) of drawn histories."""
    f = {name: features[:, column].double() for name, column in _COLUMN.items()}
    term = torch.nan_to_num(f["term_months"], nan=60.0).round().long().clamp(min=1)
    age0 = torch.nan_to_num(f["age_months"], nan=0.0).round().long()
    months = states.shape[1]
    if schedule is None:
        plan = scheduled_balances(
            torch.nan_to_num(f["log_balance"]).exp(),
            torch.nan_to_num(f["interest_rate"]),
            term,
            f["amortization_bullet"] > 0.5,
            f["amortization_balloon"] > 0.5,
            int(max(term.max(), (age0 + months).max())),
        )
    else:
        plan = schedule.double().repeat(n_samples, 1)
    tau = torch.minimum((age0 - begin).clamp(min=0), term)
    balance = plan.gather(1, tau.clamp(max=plan.shape[1] - 1)[:, None])[:, 0]
    unpaid_interest = torch.zeros_like(balance)
    out: dict[str, list[Tensor]] = {name: [] for name in ("payments", "principal", "balances", "charge_offs")}
    for month in range(months):
        rate = _coupon(f, macro_path, month, n_samples)
        state = states[:, month]
        due = age0 + month + 1
        step = month_cash(plan, tau, due, state, term, rate)
        if cash == "ratios":
            level = (
                plan.gather(1, (due - 1).clamp(0, plan.shape[1] - 1)[:, None])
                - plan.gather(1, due.clamp(0, plan.shape[1] - 1)[:, None])
            )[:, 0]
            unpaid_interest = unpaid_interest + rate / 12.0 * balance
            scheduled = level.clamp(min=0.0) + rate / 12.0 * balance
            step = _pay_ratio(balance, unpaid_interest, scheduled, values[:, month, 0].double(), state)
            unpaid_interest = step["unpaid_interest"]
        else:
            tau = step["tau"]
        balance = step["balance"]
        out["payments"].append(step["interest"] + step["principal"])
        out["principal"].append(step["principal"])
        out["balances"].append(balance)
        out["charge_offs"].append(step["charge_off"])
    money = {name: torch.stack(columns, dim=1) for name, columns in out.items()}
    is_default = states == LoanState.default
    severity = torch.where(is_default, values[..., 1].double(), torch.zeros_like(money["balances"]))
    money["losses"] = severity * money["charge_offs"]
    money["payment_ratios"] = torch.where(
        states < N_LIVING, values[..., 0].double(), torch.zeros_like(money["balances"])
    )
    money["severities"] = severity
    return money


def _coupon(f: dict[str, Tensor], macro_path: Tensor | None, month: int, n_samples: int) -> Tensor:
    fixed = torch.nan_to_num(f["interest_rate"])
    if macro_path is None:
        return fixed
    if macro_path.shape[-1] != N_MACRO:
        raise ModelError("macro path does not fit", expected=f"{N_MACRO} series", got=tuple(macro_path.shape))
    policy = macro_path[..., month, MACRO_NAMES.index("policy_rate")].double()
    policy = policy.repeat(n_samples) if policy.dim() else policy
    floating = (policy + torch.nan_to_num(f["spread"])).clamp(min=0.0)
    return torch.where((f["is_floating"] > 0.5) & torch.isfinite(f["spread"]), floating, fixed)


def _pay_ratio(
    balance: Tensor, owed_interest: Tensor, scheduled: Tensor, ratio: Tensor, state: Tensor
) -> dict[str, Tensor]:
    """Interest first, then principal; a loan that ends by paying pays all it owes."""
    pays_all = state >= LoanState.prepaid
    is_default = state == LoanState.default
    offered = torch.where(pays_all, balance + owed_interest, ratio * scheduled)
    offered = torch.where(is_default, torch.zeros_like(offered), offered)
    interest = torch.minimum(offered, owed_interest)
    principal = torch.minimum(offered - interest, balance)
    charge_off = torch.where(is_default, balance, torch.zeros_like(balance))
    return {
        "interest": interest,
        "principal": principal,
        "charge_off": charge_off,
        "balance": balance - principal - charge_off,
        "unpaid_interest": torch.where(is_default, torch.zeros_like(interest), owed_interest - interest),
    }


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
