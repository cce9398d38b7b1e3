"""Macro paths and what each counts: what every macro source hands to the simulation.

Here: `MacroPaths`, the `MacroSource` protocol, the checks of paths and weights. Not here: the sources
(`engines.macro_sources`, `engines.tail_source`), the simulation along the paths
(`simulation.monte_carlo`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroPaths:
    """Macro paths with what each counts.

    Attributes:
        values_PTM: (P, T, 9) original units.
        weights_P: likelihood ratio of the law to how paths were drawn, any scale; None counts all alike.
        strata_P: label of the stratum a path was drawn in; None where paths are independent.
        offset_P: a guess of each path's loss less its mean over the stratum, share of the pool, or None.
        scenario_P: name of each path's scenario, or None.
        source: where they come from, in words.
    """

    values_PTM: np.ndarray
    weights_P: np.ndarray | None = None
    strata_P: np.ndarray | None = None
    offset_P: np.ndarray | None = None
    scenario_P: np.ndarray | None = None
    source: str = ""


class MacroSource(Protocol):
    """Draws macro paths of a scenario; path k depends on (source, scenario, months, seed, k) alone."""

    @property
    def longest(self) -> int | None:
        """Months it can give; None where any number."""

    def draw(
        self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0
    ) -> MacroPaths | Any:
        """Paths first_path, first_path + 1, ...; anything with the fields of `MacroPaths`."""


def check_macro(macro_PTM: np.ndarray) -> np.ndarray:
    """The macro paths, if they are finite and of nine series.

    Raises:
        SimulationError: misshapen, or a number that is not finite.
    """
    macro = np.asarray(macro_PTM)
    if macro.ndim != 3 or macro.shape[2] != N_MACRO or 0 in macro.shape:
        raise SimulationError(
            "macro paths are misshapen", expected=f"(paths, months, {N_MACRO})", got=macro.shape
        )
    if not np.isfinite(macro).all():
        bad = np.argwhere(~np.isfinite(macro))[0]
        raise SimulationError(
            "macro paths hold a number that is not finite",
            where=f"path {bad[0]}, month {bad[1]}, {MACRO_NAMES[bad[2]]}",
        )
    return macro


def path_weights(weights_P: np.ndarray | None, n_paths: int) -> np.ndarray:
    """Weights of mean 1.

    Raises:
        SimulationError: not one finite number >= 0 per path, or all 0.
    """
    if weights_P is None:
        return np.ones(n_paths)
    weights = np.asarray(weights_P, dtype=float)
    if (
        weights.shape != (n_paths,)
        or not np.isfinite(weights).all()
        or weights.min() < 0
        or weights.sum() <= 0
    ):
        raise SimulationError("path weights make no sense", expected=f"{n_paths} numbers >= 0, not all 0")
    return weights * (n_paths / weights.sum())
