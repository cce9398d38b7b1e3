"""Where macro paths come from: a VAE, scenarios, history, or the user.

Here: the plain macro sources and `as_source`, which makes one of whatever a user holds. Not here: sources
that draw along the loss (`engines.tail_source`), what a source hands over (`simulation.paths`).

Scenarios share random numbers: path k of one scenario and path k of another are moved by the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import narwhals as nw
import numpy as np
import torch

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.core.rng import stream
from pc_pipeline.scenarios.assumptions import MacroAssumptions
from pc_pipeline.scenarios.definitions import ScenarioDefinition
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.scenarios.history import MacroHistory
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO
from pc_pipeline.simulation.paths import MacroPaths, MacroSource

_DRAWN_AT_ONCE: Final = 1024  # paths of a network call; bounds its memory


@dataclass(frozen=True, slots=True)
class VaeSource:
    """Paths of a `MacroVAE`, drawn piece by piece; path k does not depend on the pieces."""

    vae: Any
    longest: int | None = None

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """(P, T, 9) float32 paths of a scenario that the VAE knows."""
        values = np.empty((n_paths, n_months, N_MACRO), np.float32)
        for low in range(0, n_paths, _DRAWN_AT_ONCE):
            count = min(_DRAWN_AT_ONCE, n_paths - low)
            with torch.inference_mode():
                drawn = self.vae.generate(scenario, n_months, count, seed=seed, first_sample=first_path + low)
            values[low : low + count] = drawn.cpu().numpy()
        return MacroPaths(values_PTM=values, source="macro VAE")


@dataclass(frozen=True, slots=True)
class ScenarioSource:
    """Paths of the scenario generator: standard, custom or supervisory scenarios.

    Attributes:
        definitions: further scenarios by name, e.g. from `load_supervisory`; standard names always work.
        assumptions: the law of the noise; None is the decided one.
    """

    definitions: Mapping[str, ScenarioDefinition]
    assumptions: MacroAssumptions | None = None
    longest: int | None = None

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """(P, T, 9) paths around the scenario's mean."""
        generator = MacroScenarioGenerator(n_months=n_months, random_seed=seed, assumptions=self.assumptions)
        paths = generator.generate_paths(self.definitions.get(scenario, scenario), n_paths, first_path)
        return MacroPaths(values_PTM=paths, source=f"scenario generator, {scenario}")


@dataclass(frozen=True, slots=True)
class HistoryBootstrap:
    """Windows of what really happened, drawn with replacement; the scenario plays no part.

    A window is whole, so persistence, dependence between series and crises are history's own.
    """

    history: MacroHistory

    @property
    def longest(self) -> int:
        """Months of history."""
        return int(self.history.frame.height)

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """(P, T, 9) windows."""
        values = self.history.values()
        n_starts = len(values) - n_months + 1
        starts = [
            int(stream(seed, "history bootstrap", path).integers(n_starts))
            for path in range(first_path, first_path + n_paths)
        ]
        windows = np.stack([values[start : start + n_months] for start in starts])
        return MacroPaths(values_PTM=windows, source=f"windows of history: {self.history.source}")


@dataclass(frozen=True, slots=True)
class FixedPaths:
    """Paths that the user gives, in their order; the scenario and the seed play no part.

    Attributes:
        values_PTM: (P, T, 9). weights_P: what each counts, or None.
    """

    values_PTM: np.ndarray
    weights_P: np.ndarray | None = None

    @property
    def longest(self) -> int:
        """Months of a path."""
        return int(self.values_PTM.shape[1])

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """The paths first_path, first_path + 1, ...; a single path serves any number."""
        if len(self.values_PTM) == 1:
            values = np.repeat(self.values_PTM, n_paths, axis=0)
            return MacroPaths(values_PTM=values[:, :n_months], source="one given path")
        stop = first_path + n_paths
        if stop > len(self.values_PTM):
            raise SimulationError(
                "the macro source holds fewer paths than the run",
                expected=f"{stop} paths",
                got=f"{len(self.values_PTM)} paths",
            )
        weights = None if self.weights_P is None else np.asarray(self.weights_P)[first_path:stop]
        return MacroPaths(
            values_PTM=self.values_PTM[first_path:stop, :n_months], weights_P=weights, source="given paths"
        )


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A function scenario, paths, months, seed -> (P, T, 9); a path must have the same values every time."""

    function: Callable[[str, int, int, int], np.ndarray]
    longest: int | None = None

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """Paths first_path.. of the function's first `first_path + n_paths`."""
        paths = np.asarray(self.function(scenario, first_path + n_paths, n_months, seed))
        return MacroPaths(values_PTM=paths[first_path:], source="user's function")


def as_source(given: Any) -> MacroSource:
    """A macro source of whatever holds macro paths.

    Args:
        given: a source; a `MacroVAE`; `MacroHistory`; scenario definitions (one, or a list as from
            `load_supervisory`); an array (P, T, 9) or (T, 9); a frame with the nine series and, for several
            paths, `macro_path_id`; or a function scenario, paths, months, seed -> (P, T, 9).

    Raises:
        ConfigError: none of these.
    """
    if hasattr(given, "draw"):
        found: MacroSource = given
        return found
    if hasattr(given, "generate"):
        return VaeSource(given)
    if isinstance(given, MacroHistory):
        return HistoryBootstrap(given)
    if isinstance(given, ScenarioDefinition):
        return ScenarioSource({given.name: given})
    if isinstance(given, np.ndarray):
        return FixedPaths(given[None] if given.ndim == 2 else given)
    if isinstance(given, Sequence) and given and all(isinstance(one, ScenarioDefinition) for one in given):
        return ScenarioSource({one.name: one for one in given})
    if callable(given):
        return FunctionSource(given)
    return FixedPaths(_paths_of_frame(given))


def _paths_of_frame(given: Any) -> np.ndarray:
    """(P, T, 9) of a frame of one path or of several with `macro_path_id`."""
    frame = nw.from_native(given, eager_only=True, pass_through=True)
    if not isinstance(frame, nw.DataFrame):
        raise ConfigError(
            "no macro source",
            expected="a VAE, history, scenarios, paths (array or frame), or a function",
            got=type(given).__name__,
        )
    table = frame.to_polars()
    missing = [name for name in MACRO_NAMES if name not in table.columns]
    if missing:
        raise SimulationError("the macro frame lacks series", expected=", ".join(MACRO_NAMES), got=missing)
    order = [name for name in ("macro_path_id", "month") if name in table.columns]
    table = table.sort(order) if order else table
    n_paths = table["macro_path_id"].n_unique() if "macro_path_id" in table.columns else 1
    if table.height % n_paths:
        raise SimulationError(
            "macro paths differ in length", expected="as many months each", got=f"{table.height} rows"
        )
    return np.asarray(table.select(MACRO_NAMES).to_numpy(), dtype=float).reshape(n_paths, -1, N_MACRO)


def paths_by_scenario(mix: Mapping[str, float], n_paths: int) -> dict[str, int]:
    """Paths to each scenario, in proportion (largest remainder), none drawn at random."""
    exact = {name: share * n_paths for name, share in mix.items()}
    counts = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: n_paths - sum(counts.values())]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count > 0}


def check_count(n_paths: int, n_months: int) -> None:
    """Refuse a run of no paths or no months.

    Raises:
        ConfigError: it is one.
    """
    if n_paths < 1 or n_months < 1:
        raise ConfigError(
            "nothing to simulate", expected="n_simulations, n_months >= 1", got=(n_paths, n_months)
        )


def draw_macro(given: Any, mix: Mapping[str, float], n_paths: int, n_months: int, seed: int) -> MacroPaths:
    """Macro paths of a mix, scenarios one after the other, or as the source's own `draw_mix` sets them.

    Raises:
        ConfigError: nothing to draw. SimulationError: the source is shorter than the run.
    """
    check_count(n_paths, n_months)
    source = as_source(given)
    longest = getattr(source, "longest", None)
    if longest is not None and longest < n_months:
        raise SimulationError(
            "the macro source is shorter than the run", expected=f"{n_months} months", got=f"{longest} months"
        )
    if hasattr(source, "draw_mix"):
        return _as_paths(source.draw_mix(mix, n_paths, n_months, seed), "")
    parts, first = [], 0
    for name, count in paths_by_scenario(mix, n_paths).items():
        start = first if isinstance(source, FixedPaths) else 0
        parts.append(_as_paths(source.draw(name, count, n_months, seed, start), name))
        first += count
    return parts[0] if len(parts) == 1 else _together(parts)


def _as_paths(drawn: Any, scenario: str) -> MacroPaths:
    """What a source drew, with each path's scenario named."""
    values = np.asarray(drawn.values_PTM)
    named = np.full(len(values), scenario) if scenario else drawn.scenario_P
    return MacroPaths(
        values_PTM=values,
        weights_P=drawn.weights_P,
        strata_P=drawn.strata_P,
        scenario_P=named,
        source=drawn.source,
    )


def _together(parts: list[MacroPaths]) -> MacroPaths:
    """Scenarios one after the other; weights have mean 1 within each, since counts carry the shares."""
    weights = None
    if any(part.weights_P is not None for part in parts):
        weights = np.concatenate([_mean_one(part) for part in parts])
    strata = None
    if any(part.strata_P is not None for part in parts):
        strata, used = np.empty(0, dtype=np.int64), 0
        for part in parts:
            own = np.zeros(len(part.values_PTM), np.int64) if part.strata_P is None else part.strata_P
            strata = np.concatenate([strata, own - own.min() + used])
            used = int(strata.max()) + 1
    return MacroPaths(
        values_PTM=np.concatenate([part.values_PTM for part in parts]),
        weights_P=weights,
        strata_P=strata,
        scenario_P=np.concatenate([part.scenario_P for part in parts if part.scenario_P is not None]),
        source="; ".join(dict.fromkeys(part.source for part in parts)),
    )


def _mean_one(part: MacroPaths) -> np.ndarray:
    if part.weights_P is None:
        return np.ones(len(part.values_PTM))
    if not part.weights_P.sum() > 0:
        raise SimulationError("path weights make no sense", expected="numbers >= 0, not all 0")
    return np.asarray(part.weights_P / part.weights_P.mean())
