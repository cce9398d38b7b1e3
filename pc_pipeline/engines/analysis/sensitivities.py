"""Derivatives of expected loss and return to the macro path, to loans' attributes and to deal terms.

Here: one backward pass per target through waterfall, expected cash, compiled loan model and transition
network; and the same derivatives by bumping, with common random numbers. Not here: the differentiable parts
(`simulation.gradient_cash`, `waterfall.gradients`, `models`). docs/methods/analytics.md, section 1.

Conventions. Loans are represented by `n_lines`; tranches are paid from the cash expected given each macro
path (loans' own luck is averaged out before the waterfall). A macro derivative is that of one series in one
month on every path; later months of the series stay as they are. A loan attribute moves for all loans by the
same amount: through the loan model, the cohort's mean, and for rates the interest due (the schedule of
principal stays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.errors import ConfigError, DealError
from pc_pipeline.engines.analysis.study import Lines, Study
from pc_pipeline.schemas.units import COHORT_FEATURES, LOAN_FEATURES, MACRO_NAMES, MACRO_SERIES
from pc_pipeline.simulation.gradient_cash import pool_losses
from pc_pipeline.simulation.monte_carlo import POLICY_RATE
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.engine import run_waterfall
from pc_pipeline.waterfall.gradients import soft_figures
from pc_pipeline.waterfall.plan import make_plan

POOL = "pool expected loss"
# Loan attribute -> its mean among the cohort features, or None.
ATTRIBUTES: Mapping[str, str | None] = {
    "interest_rate": "mean_interest_rate",
    "spread": None,
    "term_months": None,
    "ltv": "mean_ltv",
    "dti_dscr": "mean_dti_dscr",
    "internal_score": "mean_score",
    "external_score": None,
    "log_balance": "mean_log_balance",
    "log_collateral_cover": None,
    "age_months": "vintage_age_months",
}
TERM_KINDS = ("coupon", "fee", "trigger", "level", "share", "limit")
SIZE_STEP = 1e-3  # share of the pool by which a class is made larger, its residual class smaller
BUMPS: Mapping[str, float] = {"macro": 0.02, "shift": 1e-4, "term": 1e-5}  # of a sd, of a spread, of the unit
N_CHECKED = 2  # derivatives of each kind that are bumped


def short_target(name: str) -> str:
    """'Senior expected loss' -> 'Senior EL', for the head of a column."""
    return name.replace("expected loss", "EL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """Derivatives of every target.

    Attributes:
        values: target -> its level.
        macro: target, series, month_index, per_unit (of the series), per_sd (of `units.MACRO_SERIES`).
        loans: target, attribute, per_unit. deal: target, term, level, per_unit.
    """

    scenario: str
    values: dict[str, float]
    macro: pl.DataFrame
    loans: pl.DataFrame
    deal: pl.DataFrame

    def by_series(self) -> pl.DataFrame:
        """Macro derivatives summed over months: the whole series moves by one sd. bps; one row per series."""
        summed = self.macro.group_by("target", "series", maintain_order=True).agg(
            pl.col("per_sd").sum() * 1e4
        )
        return self._moving(summed.pivot(on="target", index="series", values="per_sd"))

    def wide(self, frame: pl.DataFrame, key: str) -> pl.DataFrame:
        """`loans` or `deal` with one column per target, rows that move none left out."""
        table = self._moving(frame.pivot(on="target", index=key, values="per_unit"))
        return table.filter(pl.sum_horizontal(pl.exclude(key).abs()) > 0)

    def _moving(self, table: pl.DataFrame) -> pl.DataFrame:
        first, *targets = table.columns
        kept = [name for name in targets if self.moves(name)]
        return table.select(first, *(pl.col(name).alias(short_target(name)) for name in kept))

    def moves(self, target: str) -> bool:
        """Whether any macro series or deal term moves the target visibly (1e-9 per unit)."""
        macro = self.macro.filter(pl.col("target") == target)["per_sd"].abs().max()
        terms = self.deal.filter(pl.col("target") == target)["per_unit"].abs().max()
        return max(float(str(macro)), float(str(terms))) > 1e-9

    def findings(self) -> list[tuple[str, str]]:
        """Sentences: each expected loss that moves, and what moves it most."""
        table, told = self.by_series(), []
        for target in [name for name in self.values if short_target(name) in table.columns]:
            column = short_target(target)
            if not column.endswith("EL"):
                continue
            largest = table.sort(pl.col(column).abs(), descending=True).head(3)
            parts = [
                f"{row['series'].replace('_', ' ')} {row[column]:+.1f} bps"
                for row in largest.iter_rows(named=True)
            ]
            told.append(
                (
                    f"{target}: {self.values[target]:.2%}",
                    f"A whole series one standard deviation higher: {', '.join(parts)}.",
                )
            )
        return told


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What targets are differentiated by; every field but `lines` is a leaf.

    Attributes:
        macro: (P, T, 9). shift: (A,) common shift of each of ATTRIBUTES. terms: name -> value.
    """

    lines: Lines
    macro: Tensor
    shift: Tensor
    terms: dict[str, Tensor]

    def leaves(self) -> list[Tensor]:
        """All of them."""
        return [self.macro, self.shift, *self.terms.values()]


def inputs(study: Study, scenario: str, n_paths: int, n_lines: int) -> Inputs:
    """Leaves at their present values."""
    if n_paths < 1 or n_lines < 1:
        raise ConfigError("nothing to differentiate", expected=">= 1", got=(n_paths, n_lines))
    levels = deal_levels(study)
    return Inputs(
        lines=study.lines(n_lines),
        macro=torch.from_numpy(study.macro(scenario, n_paths)).requires_grad_(True),
        shift=torch.zeros(len(ATTRIBUTES), dtype=torch.float64, requires_grad=True),
        terms={
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in levels.items()
        },
    )


def deal_levels(study: Study) -> dict[str, float]:
    """Coupons, fees and triggers that are one number for life, by the name `run_waterfall` overrides them."""
    every = study.deal.payments.every_months
    plan = make_plan(study.deal, study.balance, -(-study.n_months // every))
    return {
        name: float(np.asarray(values)[0])
        for name, values in plan.constants.items()
        if name.split(".")[0] in TERM_KINDS and np.ptp(np.asarray(values)) == 0
    }


def targets(study: Study, given: Inputs, gate: str = "hard") -> dict[str, Tensor]:
    """Scalars: expected loss of pool and classes, IRR of each class's mean flows where it has one."""
    cash, index = expected_pool_cash(study, given)
    balance = given.lines.pool.balance
    found = {POOL: pool_losses(cash, balance).mean()}
    return found | class_targets(study.deal, cash, index, balance, gate, given.terms)


def class_targets(
    deal: Deal, cash: Tensor, index: Tensor, balance: float, gate: str, terms: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Expected loss and IRR of each class, by 'Senior expected loss', 'Senior IRR', ..."""
    paid = run_waterfall(
        cash, deal, pool_balance=balance, index_rate_PT=index, gate=gate, overrides=dict(terms)
    )
    found = {}
    for tranche in deal.tranches:
        if tranche.kind == "io":
            continue
        try:
            figures = soft_figures(paid, tranche.name, 0.0)
        except DealError:  # total loss: no return to differentiate
            continue
        found[f"{tranche.name} expected loss"] = figures["expected_loss"]
        found[f"{tranche.name} IRR"] = figures["irr"]
    return found


def expected_pool_cash(study: Study, given: Inputs) -> tuple[Tensor, Tensor]:
    """(expected cash (P, T, 5), index (P, T))."""
    lines, place = given.lines, {name: k for k, name in enumerate(ATTRIBUTES)}
    features = torch.from_numpy(study.features_LF[lines.picked]).double()
    moved = torch.zeros(features.shape[1], dtype=torch.float64)
    own = torch.zeros(len(COHORT_FEATURES), dtype=torch.float64)
    for name, mean in ATTRIBUTES.items():
        unit = torch.zeros_like(moved)
        unit[LOAN_FEATURES.index(name)] = 1.0
        moved = moved + given.shift[place[name]] * unit
        if mean is not None:
            unit = torch.zeros_like(own)
            unit[COHORT_FEATURES.index(mean)] = 1.0
            own = own + given.shift[place[name]] * unit
    pool = lines.pool
    rate = pool.rate_L + torch.where(
        pool.floating_L > 0, given.shift[place["spread"]], given.shift[place["interest_rate"]]
    )
    cash = lines.cash(
        given.macro,
        rows=study.tensor_rows(given.macro, study.cohort_tensor() + own.float()),
        residual=lines.residual(features + moved),
        pool=pool.with_fields({"rate_L": rate}),
    )
    return cash, given.macro[..., POLICY_RATE]


def size_slopes(study: Study, given: Inputs, gate: str) -> list[tuple[str, str, float, float]]:
    """(target, 'size.<class>', share of the pool, derivative): the class larger, the residual class smaller.

    By central differences along the same cash, since a size is no number that the waterfall is handed.
    """
    deal, found = study.deal, []
    residual = next((k for k, t in enumerate(deal.tranches) if t.kind == "residual" and t.size), None)
    if residual is None:
        return []
    with torch.no_grad():
        cash, index = expected_pool_cash(study, given)
        for place, tranche in enumerate(deal.tranches):
            if place == residual or not tranche.size or (deal.tranches[residual].size or 0.0) <= SIZE_STEP:
                continue
            ends = []
            for step in (SIZE_STEP, -SIZE_STEP):
                classes = list(deal.tranches)
                for row, by in ((place, step), (residual, -step)):
                    classes[row] = classes[row].model_copy(update={"size": (classes[row].size or 0.0) + by})
                moved = deal.model_copy(update={"tranches": classes})
                ends.append(class_targets(moved, cash, index, given.lines.pool.balance, gate, {}))
            for name in ends[0].keys() & ends[1].keys():
                slope = float(ends[0][name] - ends[1][name]) / (2 * SIZE_STEP)
                found.append((name, f"size.{tranche.name}", float(tranche.size), slope))
    return sorted(found)


def sensitivities(
    study: Study,
    scenario: str = "baseline",
    *,
    n_paths: int = 8,
    n_lines: int = 64,
    gate: str = "hard",
    given: Inputs | None = None,
) -> Sensitivities:
    """All derivatives of all targets under a scenario.

    Args:
        n_paths: macro paths averaged over. n_lines: representative loans.
        gate: 'hard' differentiates the deal as it pays; 'soft' also sees tests about to flip.
        given: what `inputs` made of the scenario, paths and lines.
    """
    given = given or inputs(study, scenario, n_paths, n_lines)
    values = targets(study, given, gate)
    macro, loans, deal = [], [], []
    for name, value in values.items():
        found = torch.autograd.grad(value, given.leaves(), retain_graph=True, allow_unused=True)
        plain = [
            torch.zeros_like(leaf) if g is None else torch.nan_to_num(g)
            for g, leaf in zip(found, given.leaves(), strict=True)
        ]
        macro.append(_macro_rows(name, plain[0].sum(0).numpy()))
        loans += [(name, attribute, float(plain[1][k])) for k, attribute in enumerate(ATTRIBUTES)]
        deal += [
            (name, term, float(given.terms[term].detach()), float(g))
            for term, g in zip(given.terms, plain[2:], strict=True)
        ]
    deal += size_slopes(study, given, gate)
    return Sensitivities(
        scenario=scenario,
        values={name: float(value.detach()) for name, value in values.items()},
        macro=pl.concat(macro),
        loans=_frame(loans, ["target", "attribute"], ["per_unit"]),
        deal=_frame(deal, ["target", "term"], ["level", "per_unit"]),
    )


def _frame(rows: Sequence[tuple[object, ...]], texts: list[str], numbers: list[str]) -> pl.DataFrame:
    schema = dict.fromkeys(texts, pl.String) | dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _macro_rows(target: str, gradient_TM: np.ndarray) -> pl.DataFrame:
    n_months = len(gradient_TM)
    sd = np.array([series.sd for series in MACRO_SERIES])
    return pl.DataFrame(
        {
            "target": [target] * gradient_TM.size,
            "series": np.repeat(MACRO_NAMES, n_months),
            "month_index": np.tile(np.arange(n_months, dtype=np.int64), len(MACRO_NAMES)),
            "per_unit": gradient_TM.T.ravel(),
            "per_sd": (gradient_TM * sd).T.ravel(),
        }
    )


# ---- by bumping ------------------------------------------------------------------------------------


def bumped(
    study: Study, given: Inputs, leaf: str, place: tuple[int, ...], step: float, gate: str = "hard"
) -> dict[str, float]:
    """Central differences of every target, same paths and lines.

    Args:
        leaf: 'macro' (place = month, series: moved on every path), 'shift' (attribute), or a deal term.
    """
    ends = []
    for sign in (1.0, -1.0):
        macro, shift = given.macro.detach().clone(), given.shift.detach().clone()
        terms = {name: value.detach().clone() for name, value in given.terms.items()}
        if leaf == "macro":
            macro[:, place[0], place[1]] += sign * step
        elif leaf == "shift":
            shift[place[0]] += sign * step
        else:
            terms[leaf] += sign * step
        with torch.no_grad():
            moved = Inputs(lines=given.lines, macro=macro, shift=shift, terms=terms)
            ends.append(targets(study, moved, gate))
    return {name: float(ends[0][name] - ends[1][name]) / (2 * step) for name in ends[0] if name in ends[1]}


def check_by_bumps(
    study: Study, found: Sensitivities, given: Inputs, gate: str = "hard", n_checked: int = N_CHECKED
) -> pl.DataFrame:
    """The largest derivatives of each kind beside central differences on the same paths and lines.

    Returns:
        moved, target, derivative, bump. A difference that crosses a test's flip is not the hard derivative.
    """
    rows = []
    for leaf, moved, place, step, frame in _largest(found, given, n_checked):
        bump = bumped(study, given, leaf, place, step, gate)
        own = dict(frame.select("target", "per_unit").rows())
        rows += [
            (moved, name, own[name], bump[name])
            for name in found.values
            if name in bump and max(abs(own[name]), abs(bump[name])) > 1e-7
        ]
    return pl.DataFrame(rows, schema=["moved", "target", "derivative", "bump"], orient="row")


def _largest(
    found: Sensitivities, given: Inputs, n_checked: int
) -> list[tuple[str, str, tuple[int, ...], float, pl.DataFrame]]:
    """(leaf, words, place, step, its rows) of the largest derivatives of the pool, and of terms in all."""
    sd = {series.name: series.sd for series in MACRO_SERIES}
    macro = found.macro.filter(pl.col("target") == POOL).sort(pl.col("per_sd").abs(), descending=True)
    picked: list[tuple[str, str, tuple[int, ...], float, pl.DataFrame]] = []
    for series in macro["series"].unique(maintain_order=True).to_list()[:n_checked]:
        row = macro.filter(pl.col("series") == series).row(0, named=True)
        month, step = int(row["month_index"]), BUMPS["macro"] * sd[series]
        rows = found.macro.filter((pl.col("series") == series) & (pl.col("month_index") == month))
        picked.append(("macro", f"{series}, month {month}", (month, MACRO_NAMES.index(series)), step, rows))
    features = given.lines.models.features_LF
    for name in ("interest_rate", "internal_score", "ltv")[:n_checked]:
        spread = float(np.nanstd(features[:, LOAN_FEATURES.index(name)]))
        if not spread > 0:
            continue
        rows = found.loans.filter(pl.col("attribute") == name)
        place = (list(ATTRIBUTES).index(name),)
        picked.append(("shift", name, place, BUMPS["shift"] * spread, rows))
    terms = (
        found.deal.filter(pl.col("term").is_in(list(given.terms)))
        .group_by("term")
        .agg(pl.col("per_unit").abs().max())
    )
    for term in terms.sort("per_unit", "term", descending=True)["term"].to_list()[:n_checked]:
        picked.append((term, term, (), BUMPS["term"], found.deal.filter(pl.col("term") == term)))
    return picked


def bumped_simulation(
    study: Study, scenario: str, series: str, step: float, n_paths: int
) -> tuple[float, float]:
    """Derivative of the pool's expected loss to a whole series, drawn with common random numbers.

    Returns:
        (derivative, its standard error over paths).
    """
    macro, place = study.macro(scenario, n_paths), MACRO_NAMES.index(series)
    up, down = macro.copy(), macro.copy()
    up[:, :, place] += step
    down[:, :, place] -= step
    slopes = (study.simulate(up).losses_P - study.simulate(down).losses_P) / (2 * step)
    return float(slopes.mean()), float(slopes.std(ddof=1) / np.sqrt(n_paths))
