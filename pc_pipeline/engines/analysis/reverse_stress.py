"""Reverse stress: the most plausible macro path at which a stated thing goes wrong.

Here: the target as a margin of the noise, the search for the point of highest density on its boundary from
several starts, its plausibility, and the full simulation along the path found. Not here: the VAE
(`models.macro_vae`), expected cash (`simulation.gradient_cash`). docs/methods/analytics.md, section 2.

A path is a smooth function of standard normal noise e (T * 9 numbers), so the most plausible path with
margin g(e) >= 0 is the one of least |e|: the design point of first-order reliability (Hasofer and Lind 1974).
There e is parallel to the gradient of g. Each step turns the direction of e towards the gradient and goes
out along it to the boundary again; |e| never grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from scipy import stats
from torch import Tensor

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.engines.analysis.study import BATCH_PATHS, Lines, Study
from pc_pipeline.engines.tail_source import decode, loss_gradient
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO
from pc_pipeline.simulation.conditional import ConditionalPool
from pc_pipeline.simulation.estimators import Estimate, expected_loss, loss_probability
from pc_pipeline.simulation.gradient_cash import pool_losses
from pc_pipeline.simulation.monte_carlo import POLICY_RATE, SimulatedCash, SimulationConfig, simulate_pool
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall

KINDS = ("pool_loss", "tranche_loss", "oc_fails")
FARTHEST = 14.0  # distance beyond which nothing is looked for
_GRID, _ROUNDS = 8, 3  # points and refinements of a walk outwards
_PARALLEL, _GAIN = 0.9999, 2e-3  # a search ends where it points along the gradient, or gains no more
_DEEP = 0.93  # of the distance: where directions that gain are compared
_TURNS = np.array([1.0, 0.5, 0.2, 0.05])  # towards a better direction, tried together
_REACH, _FURTHER = (
    (0.8, 1.25),
    2.0,
)  # where the median simulation is looked for, in distances of expected cash
_HALVINGS = 6


class OutOfReach(SimulationError):
    """No start reaches the target within `FARTHEST`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to go wrong.

    Attributes:
        kind: 'pool_loss' (share `level` of the pool), 'tranche_loss' (currency `level` of class `of`), or
            'oc_fails' (the OC test `of` before month `level`).
    """

    kind: str
    of: str = ""
    level: float = 0.10

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not self.level > 0:
            raise ConfigError("unknown target", expected=f"{', '.join(KINDS)}, level > 0", got=self)

    def __str__(self) -> str:
        texts = {
            "pool_loss": f"pool loss of {self.level:.1%}",
            "tranche_loss": f"{self.of} loses {self.level:,.0f}",
            "oc_fails": f"{self.of} fails before month {self.level:.0f}",
        }
        return texts[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseStress:
    """The path found.

    Attributes:
        target, scenario: what was asked, under which scenario's law.
        macro_TM: the path. centre_TM: the scenario's path without noise. noise_TM: standard normal units.
        distance: |e|, the Mahalanobis distance of the path from the centre.
        probability: Phi(-distance), first-order chance of the target under the scenario.
        percentile: share of the scenario's own paths of lower density (larger |e|).
        distance_expected: distance at which the expected cash of all loans hits.
        distances: by start; infinite where none was found.
        hits: share of simulations along the path that hit the target. loss: their mean pool loss.
    """

    target: Target
    scenario: str
    macro_TM: np.ndarray
    centre_TM: np.ndarray
    noise_TM: np.ndarray
    distance: float
    probability: float
    percentile: float
    distance_expected: float
    distances: tuple[float, ...]
    hits: Estimate
    loss: Estimate

    @property
    def is_confirmed(self) -> bool:
        """About half or more of the simulations along the path hit: the share's interval reaches 1/2."""
        return self.hits.upper >= 0.5

    def frame(self) -> pl.DataFrame:
        """One row per month and series: value, centre, and the noise in standard deviations."""
        n_months = len(self.macro_TM)
        return pl.DataFrame(
            {
                "scenario": [self.scenario] * self.macro_TM.size,
                "target": [str(self.target)] * self.macro_TM.size,
                "series": np.repeat(MACRO_NAMES, n_months),
                "month_index": np.tile(np.arange(n_months, dtype=np.int64), N_MACRO),
                "value": self.macro_TM.T.ravel(),
                "centre": self.centre_TM.T.ravel(),
                "noise": self.noise_TM.T.ravel(),
            }
        )

    def row(self) -> pl.DataFrame:
        """The figures as one row."""
        return pl.DataFrame(
            {
                "scenario": [self.scenario],
                "distance": [self.distance],
                "expected_cash": [self.distance_expected],
                "chance": [self.probability],
                "less_plausible": [self.percentile],
                "hits": [self.hits.value],
                "lower": [self.hits.lower],
                "upper": [self.hits.upper],
                "pool_loss": [self.loss.value],
                "is_confirmed": [self.is_confirmed],
                "starts": [", ".join(f"{value:.2f}" for value in self.distances)],
            }
        )

    def summary(self) -> str:
        """A sentence for a committee."""
        odds = f"{1.0 / self.probability:,.0f}" if self.probability > 1e-9 else "a billion or more"
        verdict = "confirmed" if self.is_confirmed else "NOT CONFIRMED"
        own = f"{self.percentile:.0%} of the scenario's own paths are less plausible"
        return (
            f"{self.target} under {self.scenario}: nearest path at distance {self.distance:.2f} "
            f"({self.distance_expected:.2f} by expected cash; {own}), about one in {odds}; {verdict}: "
            f"along it {self.hits.value:.0%} of simulations hit "
            f"({self.hits.lower:.0%} to {self.hits.upper:.0%}), mean pool loss {self.loss.value:.2%}"
        )


def check_target(study: Study, target: Target) -> None:
    """The class or test exists.

    Raises:
        ConfigError: otherwise.
    """
    names = {
        "tranche_loss": list(study.deal.tranche_names),
        "oc_fails": [test.name for test in study.deal.tests if test.kind == "oc"],
    }.get(target.kind)
    if names is not None and target.of not in names:
        raise ConfigError("the deal has no such class or test", expected=", ".join(names), got=target.of)


def margin(study: Study, target: Target, lines: Lines, macro_PTM: Tensor) -> Tensor:
    """(P,) how far the target is exceeded, from expected cash on representative loans; < 0 before it."""
    cash, balance = lines.cash(macro_PTM), lines.pool.balance
    if target.kind == "pool_loss":
        return pool_losses(cash, balance) - target.level
    paid = run_waterfall(
        cash, study.deal, pool_balance=balance, index_rate_PT=macro_PTM[..., POLICY_RATE], gate="hard"
    )
    return cast(Tensor, _margin_paid(study, target, paid))


def _margins(
    study: Study, target: Target, carried: ConditionalPool, macro_PTM: np.ndarray, balance: float
) -> np.ndarray:
    """(P,) `margin` from the exact expected cash of some loans, without gradients."""
    index = macro_PTM[:, :, POLICY_RATE]
    cash = carried.cash(study.rows(macro_PTM), index)
    if target.kind == "pool_loss":
        return np.asarray((cash[:, :, 3] - cash[:, :, 4]).sum(axis=1) / balance - target.level)
    paid = run_waterfall(cash, study.deal, pool_balance=balance, index_rate_PT=index)
    return np.asarray(_margin_paid(study, target, paid))


def _margin_paid(study: Study, target: Target, paid: WaterfallResult) -> Any:
    if target.kind == "tranche_loss":
        place = list(paid.tranche_names).index(target.of)
        original = float(paid.original_balance[place])
        return (paid.balance[:, -1, place] + paid.written_down[:, -1, place] - target.level) / original
    place = [test.name for test in study.deal.tests].index(target.of)
    trigger = study.deal.tests[place].trigger
    dates = max(1, int(target.level) // study.deal.payments.every_months)
    ratio = paid.ratios[:, :dates, place]
    if isinstance(ratio, Tensor):
        return (trigger - torch.where(torch.isfinite(ratio), ratio, torch.full_like(ratio, 1e3))).amax(1)
    return (trigger - np.where(np.isfinite(ratio), ratio, 1e3)).max(axis=1)


def reverse_stress(
    study: Study,
    target: Target,
    scenario: str = "baseline",
    *,
    n_starts: int = 4,
    n_lines: int = 64,
    n_steps: int = 8,
    n_confirm: int = 256,
) -> ReverseStress:
    """The most plausible path of a scenario at which the target is hit.

    Args:
        n_starts: searches, from the centre's loss direction and from random paths'.
        n_lines: representative loans of the search; the last steps out take all loans, first their expected
            cash, then simulations, until half of them hit.
        n_confirm: simulations of all loans along the path found, with other random numbers than the search.

    Raises:
        OutOfReach: no start reaches the target within `FARTHEST`.
    """
    check_target(study, target)
    surface, shape = _Surface.of(study, target, scenario, n_lines), (study.n_months, N_MACRO)
    draw = stream(derive_seed(study.seed, "reverse stress"), scenario)
    starts = draw.standard_normal((n_starts, *shape)).astype(np.float32)
    starts[0] = 0.0
    slopes = loss_gradient(study, surface.lines, scenario, starts)
    distances, units = _search(surface, slopes / np.linalg.norm(slopes, axis=1, keepdims=True), n_steps)
    best = int(distances.argmin())
    distance, unit = float(distances[best]), units[best]
    expected = _radius_of_all(study, target, scenario, unit, distance) if np.isfinite(distance) else distance
    if not np.isfinite(expected):
        lost = float(study.expected_losses(_path(study, scenario, FARTHEST * units[0])).max())
        raise OutOfReach(
            "no macro path reaches the target",
            expected=f"one within {FARTHEST:g} standard deviations",
            got=f"{target}: none found from {n_starts} starts within {FARTHEST:g} standard deviations; at "
            f"that distance along its loss direction the pool loses {lost:.1%}",
            where=f"scenario {scenario}",
        )
    distance = _median_radius(study, target, scenario, unit, expected, n_confirm)
    noise = (distance * unit).reshape(shape)
    macro, centre = _path(study, scenario, distance * unit)[0], _path(study, scenario, 0 * unit)[0]
    hits, loss = confirm(study, target, macro, n_confirm)
    return ReverseStress(
        target=target,
        scenario=scenario,
        macro_TM=macro,
        centre_TM=centre,
        noise_TM=noise,
        distance=distance,
        probability=float(stats.norm.sf(distance)),
        percentile=float(stats.chi2.sf(distance**2, noise.size)),
        distance_expected=expected,
        distances=tuple(float(value) for value in distances),
        hits=hits,
        loss=loss,
    )


def _path(study: Study, scenario: str, noise_D: np.ndarray) -> np.ndarray:
    """(P, T, 9) paths of noise (P, T * 9), or of one noise."""
    noise = noise_D.reshape(-1, study.n_months, N_MACRO).astype(np.float32)
    with torch.no_grad():
        return np.asarray(decode(study, scenario, torch.from_numpy(noise)).numpy().astype(float))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surface:
    """The margin on representative loans, without gradients (fast) and with them.

    Attributes:
        lines: representative loans. carried: the same, their balances scaled to what they stand for.
    """

    study: Study
    target: Target
    scenario: str
    lines: Lines
    carried: ConditionalPool

    @classmethod
    def of(cls, study: Study, target: Target, scenario: str, n_lines: int) -> _Surface:
        """On so many representative loans."""
        lines = study.lines(n_lines)
        few = study.arrays.take(lines.picked)
        scaled = replace(few, schedule_LW=few.schedule_LW * lines.pool.weight_L.numpy()[:, None])
        residual = None if study.residual_LHJ is None else study.residual_LHJ[lines.picked]
        return cls(
            study=study,
            target=target,
            scenario=scenario,
            lines=lines,
            carried=ConditionalPool(scaled, residual),
        )

    def margins(self, noise_PD: np.ndarray) -> np.ndarray:
        """(P,) margins."""
        macro = _path(self.study, self.scenario, noise_PD)
        return _margins(self.study, self.target, self.carried, macro, self.lines.pool.balance)

    def gradients(self, noise_SD: np.ndarray) -> np.ndarray:
        """(S, D) their gradients."""
        shape = (len(noise_SD), self.study.n_months, N_MACRO)
        noise = torch.from_numpy(noise_SD.reshape(shape).astype(np.float32)).requires_grad_(True)
        value = margin(self.study, self.target, self.lines, decode(self.study, self.scenario, noise))
        (slope,) = torch.autograd.grad(value.sum(), noise)
        return np.asarray(slope.flatten(1).double().numpy())

    def radii(self, units_SD: np.ndarray, farthest_S: np.ndarray) -> np.ndarray:
        """(S,) least distance along each direction at which the margin reaches 0; infinite where none."""
        low, high = np.zeros(len(units_SD)), farthest_S.astype(float)
        found = np.full(len(units_SD), np.inf)
        live = np.arange(len(units_SD))
        for _ in range(_ROUNDS):
            if live.size == 0:
                break
            steps = np.linspace(low[live], high[live], _GRID + 1, axis=1)  # (live, G + 1)
            noise = steps[:, :, None] * units_SD[live, None, :]
            over = self.margins(noise.reshape(-1, units_SD.shape[1])).reshape(steps.shape) >= 0
            first = np.where(over.any(axis=1), over.argmax(axis=1), -1)
            found[live[first < 0]] = np.inf
            found[live[first == 0]] = steps[first == 0, 0]
            on = first > 0
            low[live[on]], high[live[on]] = steps[on, first[on] - 1], steps[on, first[on]]
            found[live[on]] = high[live[on]]
            live = live[on]
        return found


def _search(surface: _Surface, units: np.ndarray, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(least distances (S,), directions (S, D)), all starts at once.

    Every step tries several turns towards the gradient and towards the best start's direction: the margin
    has kinks (tests, triggers), where the gradient alone zigzags.
    """
    units = units.copy()
    best = surface.radii(units, np.full(len(units), FARTHEST))
    live = np.flatnonzero(np.isfinite(best) & (best > 0))
    for _ in range(n_steps):
        if live.size == 0:
            break
        slopes = surface.gradients(units[live] * best[live, None] * 1.01)
        size = np.linalg.norm(slopes, axis=1)
        along = (slopes * units[live]).sum(axis=1) / np.maximum(size, 1e-300)
        go = (size > 0) & (along < _PARALLEL)
        live, slopes, size = live[go], slopes[go], size[go]
        if live.size == 0:
            break
        goals = np.stack([slopes / size[:, None], np.broadcast_to(units[best.argmin()], slopes.shape)])
        tried = (1 - _TURNS[:, None, None, None]) * units[live] + _TURNS[:, None, None, None] * goals
        flat = tried.reshape(-1, live.size, units.shape[1])
        flat /= np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), 1e-300)
        ends = np.stack([flat * (best[live] * inward)[:, None] for inward in (1 - _GAIN, _DEEP)])
        near, deep = surface.margins(ends.reshape(-1, units.shape[1])).reshape(2, len(flat), live.size)
        hits = near >= 0  # there already; of those the one that is over by most further in
        pick, nearer = np.where(hits, deep, -np.inf).argmax(axis=0), hits.any(axis=0)
        live, chosen = live[nearer], flat[pick, np.arange(live.size)][nearer]
        if live.size == 0:
            break
        reached = surface.radii(chosen, best[live] * (1 - _GAIN))
        units[live], best[live] = chosen, np.minimum(reached, best[live])
    return best, units


def _radius_of_all(study: Study, target: Target, scenario: str, unit: np.ndarray, nearest: float) -> float:
    """The distance along a direction from the expected cash of every loan, looked for around `nearest`."""
    whole = study.conditional()
    for near, far in ((0.9, 1.15), (0.0, 0.9), (1.15, 1.6)):
        low, high = near * nearest, min(far * nearest, FARTHEST)
        for _ in range(2):
            radii = np.linspace(low, high, 5)
            macro = _path(study, scenario, radii[:, None] * unit)
            over = _margins(study, target, whole, macro, study.balance) >= 0
            if not over.any() or (over[0] and low > 0):
                break
            first = max(int(over.argmax()), 1)
            low, high = float(radii[first - 1]), float(radii[first])
        else:
            return high if high > 0 else 0.0
        if nearest == 0:
            return 0.0
    return float("inf")


def _median_radius(
    study: Study, target: Target, scenario: str, unit: np.ndarray, expected: float, n_paths: int
) -> float:
    """Least distance along a direction at which half of the simulations hit; `expected` where none does.

    Common random numbers make the share of hits nearly monotone in the distance, so halving finds it.
    """
    seed = derive_seed(study.seed, "reverse stress", "median")

    def share(distance: float) -> float:
        macro = _path(study, scenario, distance * unit)[0]
        return float(hits_of(study, target, _along(study, macro, n_paths, seed)).mean())

    if expected == 0:
        return expected
    low, high = (factor * expected for factor in _REACH)
    while share(high) < 0.5:
        low, high = high, high * _REACH[1]
        if high > min(_FURTHER * expected, FARTHEST):
            return expected
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) >= 0.5 else (middle, high)
    return high


def _along(study: Study, macro_TM: np.ndarray, n_paths: int, seed: int) -> SimulatedCash:
    """All loans drawn n times along one macro path, whose rows are read once."""
    rows = study.rows(macro_TM[None])
    return simulate_pool(
        study.arrays,
        study.cohorts.height,
        np.repeat(macro_TM[None], n_paths, axis=0),
        lambda macro: np.repeat(rows, len(macro), axis=0),
        study.residual_LHJ,
        SimulationConfig(seed=seed, batch_paths=BATCH_PATHS),
    )


def confirm(study: Study, target: Target, macro_TM: np.ndarray, n_paths: int) -> tuple[Estimate, Estimate]:
    """Simulate all loans along one macro path: (share that hits the target, mean pool loss)."""
    run = _along(study, macro_TM, n_paths, study.loan_seed)
    return loss_probability(hits_of(study, target, run).astype(float), 0.5), expected_loss(run.losses_P)


def hits_of(study: Study, target: Target, run: SimulatedCash) -> np.ndarray:
    """(P,) bool: the target is hit on a simulated path."""
    if target.kind == "pool_loss":
        return run.losses_P >= target.level
    paid = run_waterfall(
        run.cash_PTC, study.deal, pool_balance=run.pool_balance, index_rate_PT=run.index_rate_PT
    )
    if target.kind == "tranche_loss":
        place = list(paid.tranche_names).index(target.of)
        return np.asarray(paid.balance[:, -1, place] + paid.written_down[:, -1, place] >= target.level)
    place = [test.name for test in study.deal.tests].index(target.of)
    dates = max(1, int(target.level) // study.deal.payments.every_months)
    return np.asarray((np.asarray(paid.passed)[:, :dates, place] < 0.5).any(axis=1))


def read_target(text: str) -> Target:
    """'pool=0.10', 'loss=Senior', 'loss=Senior:1000', 'oc=oc_Senior:24' -> Target.

    Raises:
        ConfigError: it reads as none of these.
    """
    kind, _, rest = text.partition("=")
    name, _, level = rest.partition(":")
    try:
        if kind == "pool":
            return Target(kind="pool_loss", level=float(rest))
        if kind == "loss" and name:
            return Target(kind="tranche_loss", of=name, level=float(level or 1.0))
        if kind == "oc" and name:
            return Target(kind="oc_fails", of=name, level=float(level or 24))
    except ValueError:
        pass
    raise ConfigError(
        "cannot read the target", expected="pool=0.10, loss=Senior or oc=oc_Senior:24", got=text
    )


def all_scenarios(
    study: Study,
    target: Target,
    scenarios: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: int,
) -> tuple[list[ReverseStress], dict[str, str]]:
    """The search under each scenario: (those found, nearest first; why not, by scenario out of reach)."""
    found, missing = [], {}
    for done, name in enumerate(scenarios, start=1):
        try:
            found.append(reverse_stress(study, target, name, **options))
        except OutOfReach as error:
            missing[name] = str(error.got)
        if progress is not None:
            progress(done, len(scenarios))
    return sorted(found, key=lambda one: one.distance), missing
