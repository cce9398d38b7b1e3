"""Macro paths: one scenario, many paths, nine bounded series.

Here: drawing. A path is mean + noise: the scenario moves the mean (`scenario_means`), the noise is a linear
Gaussian process (`dynamics`) bent into the bounds (`marginals`) so that mean and standard deviation are exact
in every month. Not here: the figures (`assumptions`), learning from generated paths (`models.macro_vae`).

Random numbers: path k is drawn in block k // 256 of the stream (seed, "macro", block), month by month. So it
depends neither on how many paths are asked for nor on how many months follow, and all scenarios of a seed
share the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import month_range, parse_month
from pc_pipeline.core.rng import stream
from pc_pipeline.scenarios.assumptions import (
    MacroAssumptions,
    as_vector,
    decided_assumptions,
    load_assumptions,
)
from pc_pipeline.scenarios.definitions import MAX_MONTH, ScenarioDefinition, as_definition
from pc_pipeline.scenarios.dynamics import Conditioning, condition
from pc_pipeline.scenarios.marginals import Curve, fit_curve, inside, limit_sd
from pc_pipeline.scenarios.scenario_means import check_pins, hold_inside, scenario_mean
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO

BLOCK: Final = 256  # paths per random stream


@dataclass(frozen=True, slots=True)
class _Law:
    """Everything about one scenario that does not depend on random numbers."""

    curve: Curve  # (T, 9)
    mean_TM: np.ndarray
    sd_TM: np.ndarray
    pins: Conditioning | None


class MacroScenarioGenerator:
    """Draws macro paths under named scenarios.

    Args:
        n_months: length of a path.
        start_date: first month.
        random_seed: same seed, same bytes.
        assumptions: long-run law; a `MacroAssumptions`, the name of a shipped set, or a path to a JSON set.
            None is the decided set.
        initial: last observed values (mapping by series or (9,)), in the month before `start_date`; paths
            start there and go back to the long-run law. None draws the start from the stationary law.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        n_months: int = 60,
        start_date: str | date = "2024-01-01",
        random_seed: int = 0,
        assumptions: MacroAssumptions | str | Path | None = None,
        initial: Mapping[str, float] | np.ndarray | None = None,
    ) -> None:
        if not isinstance(n_months, int | np.integer) or not 1 <= n_months <= MAX_MONTH:
            raise ConfigError(
                "n_months makes no sense", expected=f"a whole number 1..{MAX_MONTH}", got=repr(n_months)
            )
        if not isinstance(random_seed, int | np.integer):
            raise ConfigError("random_seed makes no sense", expected="a whole number", got=repr(random_seed))
        self.n_months = int(n_months)
        self.start_date = parse_month(start_date)
        self.random_seed = int(random_seed)
        if assumptions is None:
            self.assumptions = decided_assumptions()
        elif isinstance(assumptions, MacroAssumptions):
            self.assumptions = assumptions
        else:
            self.assumptions = load_assumptions(assumptions)
        self.initial = None if initial is None else as_vector(initial, "initial")
        self._dynamics = self.assumptions.dynamics()
        self._covariance_T = self._dynamics.variances(self.n_months, stationary_start=self.initial is None)
        self._noise_sd = np.sqrt(np.einsum("tmm->tm", self._covariance_T))
        self._base_mean, self._base_sd = self._baseline_moments()
        self._laws: dict[str, _Law] = {}

    # ---- the law ----------------------------------------------------------------------------

    def _baseline_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """(T, 9) mean and sd of the values when no scenario acts: linear in the values, from `initial` on."""
        long_run, sd = self.assumptions.mean, self.assumptions.sd
        if self.initial is None:
            return np.tile(long_run, (self.n_months, 1)), np.tile(limit_sd(long_run, sd), (self.n_months, 1))
        gap = (self.initial - long_run) / sd
        if self.assumptions.transition is None:
            remaining = self.assumptions.persistence ** np.arange(1, self.n_months + 1)[:, None]
            mean, spread = long_run + sd * gap * remaining, sd * np.sqrt(1.0 - remaining**2)
        else:
            mean, spread = long_run + sd * self._dynamics.decay(gap, self.n_months), sd * self._noise_sd
        mean = hold_inside(mean, inside(self.initial), sd)
        return mean, limit_sd(mean, spread)

    def _law(self, scenario: str | ScenarioDefinition) -> _Law:
        definition = as_definition(scenario)
        key = json.dumps(definition.to_dict(), sort_keys=True)
        if key not in self._laws:
            self._laws[key] = self._make_law(definition)
        return self._laws[key]

    def _make_law(self, definition: ScenarioDefinition) -> _Law:
        check_pins(definition, self.n_months)
        wanted = scenario_mean(definition, self._base_mean, self.assumptions.persistence, self.assumptions.sd)
        curve = fit_curve(wanted, self._base_sd * definition.noise_scale)
        if not definition.pins:
            return _Law(curve, *curve.moments(), None)
        pins = self._condition(definition, curve)
        return _Law(curve, *curve.moments(pins.mean, pins.sd), pins)

    def _condition(self, definition: ScenarioDefinition, curve: Curve) -> Conditioning:
        entries = [
            (month, MACRO_NAMES.index(series), value)
            for series, values in definition.pins.items()
            for month, value in values.items()
        ]
        months = np.array([entry[0] for entry in entries])
        series = np.array([entry[1] for entry in entries])
        wanted = self._base_mean[months].copy()
        wanted[np.arange(len(entries)), series] = [entry[2] for entry in entries]
        target = Curve(curve.a[months], curve.b[months]).normals(wanted)[np.arange(len(entries)), series]
        return condition(self._dynamics, self._covariance_T, months, series, target)

    def mean_path(self, scenario: str | ScenarioDefinition) -> np.ndarray:
        """(T, 9) exact mean of the scenario's paths."""
        return self._law(scenario).mean_TM.copy()

    def sd_path(self, scenario: str | ScenarioDefinition) -> np.ndarray:
        """(T, 9) exact standard deviation of the scenario's paths."""
        return self._law(scenario).sd_TM.copy()

    def pin_distance(self, scenario: str | ScenarioDefinition) -> float:
        """Squared Mahalanobis distance of the pinned values from the law without them; 0 without pins.

        Chi-square with as many degrees of freedom as there are pins: a large value says that the scenario's
        unpinned law would hardly ever pass there.
        """
        pins = self._law(scenario).pins
        return 0.0 if pins is None else pins.distance

    def latent_law(self, scenario: str | ScenarioDefinition) -> tuple[Curve, np.ndarray, np.ndarray]:
        """(marginal curves (T, 9), transition A (9, 9), covariances of z (T, 9, 9)), without pins."""
        return self._law(scenario).curve, self._dynamics.transition, self._covariance_T

    # ---- drawing ----------------------------------------------------------------------------

    def generate_paths(
        self, scenario: str | ScenarioDefinition, n_paths: int, first_path: int = 0
    ) -> np.ndarray:
        """(P, T, 9) float64 paths `first_path` .. `first_path + n_paths - 1` of a scenario.

        Args:
            scenario: standard name, alias, or definition.

        Raises:
            ConfigError: unknown scenario, or no sensible number of paths.
        """
        if not isinstance(n_paths, int | np.integer) or n_paths < 1:
            raise ConfigError("n_paths makes no sense", expected="a whole number from 1", got=repr(n_paths))
        if not isinstance(first_path, int | np.integer) or first_path < 0:
            raise ConfigError(
                "first_path makes no sense", expected="a whole number from 0", got=repr(first_path)
            )
        law = self._law(scenario)
        paths = np.empty((n_paths, self.n_months, N_MACRO))
        last_path = first_path + n_paths
        for block in range(first_path // BLOCK, (last_path - 1) // BLOCK + 1):
            begin, end = max(first_path, block * BLOCK), min(last_path, (block + 1) * BLOCK)
            values = self._draw_block(law, block)[:, begin - block * BLOCK : end - block * BLOCK]
            paths[begin - first_path : end - first_path] = values.swapaxes(0, 1)
        return paths

    def _draw_block(self, law: _Law, block: int) -> np.ndarray:
        """(T, 256, 9) values of one block of paths."""
        z = self._standard_noise(block)
        if law.pins is not None:
            z = law.pins.apply(z)
        return Curve(law.curve.a[:, None], law.curve.b[:, None]).values(z)

    def _standard_noise(self, block: int) -> np.ndarray:
        """(T, 256, 9) standard normals with the dynamics' dependence over time and series."""
        generator = stream(self.random_seed, "macro", block)
        start = generator.standard_normal((BLOCK, N_MACRO))
        shocks = generator.standard_normal((self.n_months, BLOCK, N_MACRO))
        shocks = shocks @ np.linalg.cholesky(self._dynamics.shock_covariance).T
        if self.initial is None:
            current = start @ np.linalg.cholesky(self._dynamics.stationary).T
        else:
            current = np.zeros((BLOCK, N_MACRO))
        transition = self._dynamics.transition.T
        for month in range(self.n_months):
            # the stationary draw stands for month -1, so that every month is one step of the same recursion
            current = current @ transition + shocks[month]
            shocks[month] = current
        return shocks / self._noise_sd[:, None]

    def generate_scenario(self, scenario: str | ScenarioDefinition) -> pl.DataFrame:
        """One path (number 0 of `generate_paths`): month and the nine series."""
        return self._frame(self.generate_paths(scenario, 1)[0])

    def mean_frame(self, scenario: str | ScenarioDefinition) -> pl.DataFrame:
        """`mean_path` as a frame: month and the nine series."""
        return self._frame(self.mean_path(scenario))

    def _frame(self, values_TM: np.ndarray) -> pl.DataFrame:
        months = pl.Series("month", month_range(self.start_date, self.n_months), dtype=pl.Date)
        return pl.DataFrame([months, *(pl.Series(n, values_TM[:, i]) for i, n in enumerate(MACRO_NAMES))])


def macro_table(
    generator: MacroScenarioGenerator, scenario: str | ScenarioDefinition, n_paths: int
) -> pl.DataFrame:
    """Table `macro_scenarios` of one scenario: paths 0 .. n_paths - 1, one row per path and month.

    Raises:
        ConfigError: unknown scenario, or no sensible number of paths.
        SchemaError: the table breaks its contract.
    """
    definition = as_definition(scenario)
    return paths_table(generator.generate_paths(definition, n_paths), definition.name, generator.start_date)


def paths_table(paths_PTM: np.ndarray, scenario: str, start_date: date) -> pl.DataFrame:
    """Table `macro_scenarios` of any paths (P, T, 9), for instance sampled by a trained model.

    Raises:
        ConfigError: the array has another shape.
        SchemaError: the table breaks its contract.
    """
    if paths_PTM.ndim != 3 or paths_PTM.shape[2] != N_MACRO:
        raise ConfigError("not macro paths", expected=f"(paths, months, {N_MACRO})", got=paths_PTM.shape)
    n_paths, n_months, _ = paths_PTM.shape
    months = pl.Series("month", month_range(start_date, n_months), dtype=pl.Date)
    frame = pl.DataFrame(
        [
            pl.repeat(scenario, n_paths * n_months, eager=True).alias("scenario"),
            pl.Series("macro_path_id", np.repeat(np.arange(n_paths, dtype=np.int64), n_months)),
            pl.concat([months] * n_paths),
            *(
                pl.Series(name, np.ascontiguousarray(paths_PTM[:, :, index]).reshape(-1))
                for index, name in enumerate(MACRO_NAMES)
            ),
        ]
    )
    return validate("macro_scenarios", frame, where=f"scenario {scenario!r}")
