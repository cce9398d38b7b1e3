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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

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
_GRID = 16
_REACH = (0.6, 1.6)  # where the median simulation is looked for, in distances of expected cash
_HALVINGS = 7


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

    def summary(self) -> str:
        """A sentence for a committee."""
        odds = 1.0 / max(self.probability, 1e-12)
        verdict = "confirmed" if self.is_confirmed else "NOT CONFIRMED"
        return (
            f"{self.target} under {self.scenario}: nearest path at distance {self.distance:.2f} "
            f"({self.distance_expected:.2f} by expected cash), about "
            f"one in {odds:,.0f}; {verdict}: along it {self.hits.value:.0%} of simulations hit "
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
    return _margin_paid(study, target, paid)


def _margin_of_all(study: Study, target: Target, whole: ConditionalPool, macro_PTM: np.ndarray) -> np.ndarray:
    """`margin` from the exact expected cash of every loan."""
    index = macro_PTM[:, :, POLICY_RATE]
    cash = torch.from_numpy(whole.cash(study.rows(macro_PTM), index))
    if target.kind == "pool_loss":
        return (pool_losses(cash, study.balance) - target.level).numpy()
    paid = run_waterfall(
        cash, study.deal, pool_balance=study.balance, index_rate_PT=torch.from_numpy(index), gate="hard"
    )
    return _margin_paid(study, target, paid).numpy()


def _margin_paid(study: Study, target: Target, paid: WaterfallResult) -> Tensor:
    if target.kind == "tranche_loss":
        place = list(paid.tranche_names).index(target.of)
        original = float(paid.original_balance[place])
        return (paid.balance[:, -1, place] + paid.written_down[:, -1, place] - target.level) / original
    place = [test.name for test in study.deal.tests].index(target.of)
    trigger = study.deal.tests[place].trigger
    dates = max(1, int(target.level) // study.deal.payments.every_months)
    ratio = paid.ratios[:, :dates, place]
    gap = trigger - torch.where(torch.isfinite(ratio), ratio, torch.full_like(ratio, 1e3))
    return gap.amax(1)


def reverse_stress(
    study: Study,
    target: Target,
    scenario: str = "baseline",
    *,
    n_starts: int = 4,
    n_lines: int = 64,
    n_steps: int = 10,
    n_confirm: int = 256,
) -> ReverseStress:
    """The most plausible path of a scenario at which the target is hit.

    Args:
        n_starts: searches, from the centre's loss direction and from random paths'.
        n_lines: representative loans of the search; the last steps out take all loans, first their expected
            cash, then simulations, until half of them hit.
        n_confirm: simulations of all loans along the path found, with other random numbers than the search.

    Raises:
        SimulationError: no start reaches the target within `FARTHEST`.
    """
    check_target(study, target)
    lines, shape = study.lines(n_lines), (study.n_months, N_MACRO)
    draw = stream(derive_seed(study.seed, "reverse stress"), scenario)
    found: list[tuple[float, np.ndarray]] = []
    for start in range(n_starts):
        at = (draw.standard_normal((1, *shape)) * (start > 0)).astype(np.float32)
        direction = loss_gradient(study, lines, scenario, at)[0]
        found.append(_search(study, target, lines, scenario, direction / np.linalg.norm(direction), n_steps))
    nearest, unit = min(found, key=lambda pair: pair[0])
    distance = (
        _radius(study, target, None, scenario, unit, 1.3 * nearest) if np.isfinite(nearest) else nearest
    )
    if not np.isfinite(distance):
        raise SimulationError(
            "no macro path reaches the target",
            expected=f"one within {FARTHEST:g} standard deviations",
            got=f"{target}: none found from {n_starts} starts",
            where=f"scenario {scenario}",
        )
    expected, distance = distance, _median_radius(study, target, scenario, unit, distance, n_confirm)
    noise = (distance * unit).reshape(shape)
    with torch.no_grad():
        both = decode(study, scenario, torch.from_numpy(np.stack([noise, 0 * noise]).astype(np.float32)))
    macro, centre = both.numpy().astype(float)
    hits, loss = confirm(study, target, macro, n_confirm)
    return ReverseStress(
        target=target,
        scenario=scenario,
        macro_TM=macro,
        centre_TM=centre,
        noise_TM=noise,
        distance=distance,
        probability=float(stats.norm.sf(distance)),
        distance_expected=expected,
        distances=tuple(pair[0] for pair in found),
        hits=hits,
        loss=loss,
    )


def _search(
    study: Study, target: Target, lines: Lines, scenario: str, unit: np.ndarray, n_steps: int
) -> tuple[float, np.ndarray]:
    """(least distance, direction) from one start."""
    best, turn = _radius(study, target, lines, scenario, unit, FARTHEST), 1.0
    for _ in range(n_steps):
        if not np.isfinite(best):
            break
        slope = _gradient(study, target, lines, scenario, unit * best * 1.01)
        size = np.linalg.norm(slope)
        if size == 0 or float(slope @ unit) / size > 0.9999:
            break
        towards = (1 - turn) * unit + turn * slope / size
        towards /= np.linalg.norm(towards)
        reached = _radius(study, target, lines, scenario, towards, best * 1.2)
        if reached < best - 1e-4:
            best, unit = reached, towards
        else:
            turn *= 0.5
            if turn < 0.1:
                break
    return best, unit


def _gradient(study: Study, target: Target, lines: Lines, scenario: str, noise_D: np.ndarray) -> np.ndarray:
    shape = (1, study.n_months, N_MACRO)
    noise = torch.from_numpy(noise_D.reshape(shape).astype(np.float32)).requires_grad_(True)
    value = margin(study, target, lines, decode(study, scenario, noise))
    (slope,) = torch.autograd.grad(value.sum(), noise)
    return slope.flatten().double().numpy()


def _radius(
    study: Study, target: Target, lines: Lines | None, scenario: str, unit: np.ndarray, farthest: float
) -> float:
    """Least distance along a direction at which the margin reaches 0: grids ever finer, to a thousandth.

    Without lines, all loans are carried forward (exact expected cash).
    """
    low, high = 0.0, farthest
    whole = study.conditional() if lines is None else None
    for _ in range(3):
        radii = np.linspace(low, high, _GRID + 1)
        noise = (radii[:, None] * unit).reshape(-1, study.n_months, N_MACRO).astype(np.float32)
        with torch.no_grad():
            macro = decode(study, scenario, torch.from_numpy(noise))
            values = (
                _margin_of_all(study, target, whole, macro.numpy().astype(float))
                if whole is not None
                else margin(study, target, cast(Lines, lines), macro).numpy()
            )
        over = np.flatnonzero(values >= 0)
        if over.size == 0:
            return float("inf")
        if over[0] == 0:
            return float(radii[0])
        low, high = radii[over[0] - 1], radii[over[0]]
    return float(high)


def _median_radius(
    study: Study, target: Target, scenario: str, unit: np.ndarray, expected: float, n_paths: int
) -> float:
    """Least distance along a direction at which half of the simulations hit; `expected` where none does.

    Common random numbers make the share of hits nearly monotone in the distance, so halving finds it.
    """
    seed = derive_seed(study.seed, "reverse stress", "median")

    def share(distance: float) -> float:
        noise = (distance * unit).reshape(1, study.n_months, N_MACRO).astype(np.float32)
        with torch.no_grad():
            macro = decode(study, scenario, torch.from_numpy(noise))[0].numpy().astype(float)
        return float(hits_of(study, target, _along(study, macro, n_paths, seed)).mean())

    low, high = _REACH[0] * expected, min(_REACH[1] * expected, FARTHEST)
    if expected == 0 or share(high) < 0.5:
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
    study: Study, target: Target, scenarios: Sequence[str], **options: int
) -> list[ReverseStress]:
    """The search under each scenario, nearest first; scenarios out of reach are left out."""
    found = []
    for name in scenarios:
        try:
            found.append(reverse_stress(study, target, name, **options))
        except SimulationError:
            continue
    return sorted(found, key=lambda one: one.distance)
