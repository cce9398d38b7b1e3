"""Assumption sets: what the nine series do when nothing happens.

Here: the decided set (contract figures), the type that every set has, and reading and writing it as JSON;
sets that ship with the package lie in `sets/`. Not here: how a set is fitted (`calibration`), what scenarios
add (`scenario_means`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.store import replace_file
from pc_pipeline.scenarios.dynamics import LatentDynamics
from pc_pipeline.scenarios.marginals import LOWER_M, UPPER_M, Curve, fit_curve
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO

# Correlations of monthly shocks, upper triangle in series order. Source: related public documentation of the
# same systems (contract figures). Positive definite as it stands: smallest eigenvalue 0.073.
_SHOCKS: Final = (
    (-0.6, 0.3, 0.4, 0.3, -0.5, -0.6, 0.5, 0.4),
    (-0.2, -0.3, -0.2, 0.6, 0.7, -0.4, -0.3),
    (0.7, 0.6, 0.1, 0.0, 0.3, 0.0),
    (0.8, -0.2, -0.3, 0.2, 0.2),
    (-0.1, -0.2, 0.2, 0.1),
    (0.9, -0.3, -0.5),
    (-0.4, -0.6),
    (0.4,),
)


def _symmetric(upper: tuple[tuple[float, ...], ...]) -> np.ndarray:
    matrix = np.eye(N_MACRO)
    for row, values in enumerate(upper):
        matrix[row, row + 1 :] = matrix[row + 1 :, row] = values
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MacroAssumptions:
    """Long-run law of the nine series.

    Args:
        name: how reports call the set.
        mean, sd: (9,) stationary, in the units of the series; sd is limited as in `marginals.limit_sd`.
        persistence: (9,) lag-1 autocorrelation per month, 0..1.
        shock_correlation: (9, 9) correlation of the monthly innovations.
        transition, shock_covariance: (9, 9) of a full vector autoregression of the latent normals; both or
            neither. Without them each series is an AR(1) with the persistence above.
        source: where the numbers come from; `notes`: licence, sample, fit, as plain data.

    Raises:
        ConfigError: shapes or values that make no sense.
    """

    name: str
    mean: np.ndarray
    sd: np.ndarray
    persistence: np.ndarray
    shock_correlation: np.ndarray
    transition: np.ndarray | None = None
    shock_covariance: np.ndarray | None = None
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, shape in (
            ("mean", (N_MACRO,)),
            ("sd", (N_MACRO,)),
            ("persistence", (N_MACRO,)),
            ("shock_correlation", (N_MACRO, N_MACRO)),
            ("transition", (N_MACRO, N_MACRO)),
            ("shock_covariance", (N_MACRO, N_MACRO)),
        ):
            value = getattr(self, part)
            if value is None and part in ("transition", "shock_covariance"):
                continue
            array = np.array(value, dtype=float)
            if array.shape != shape or not np.isfinite(array).all():
                raise self._error(part, f"{shape} finite numbers", array.shape)
            array.setflags(write=False)
            object.__setattr__(self, part, array)
        if (self.transition is None) != (self.shock_covariance is None):
            raise self._error("transition", "transition and shock_covariance together", "one of them")
        self._check_values()

    def _check_values(self) -> None:
        for index, series in enumerate(MACRO_SERIES):
            if not series.lower < self.mean[index] < series.upper:
                raise self._error(
                    f"mean of {series.name}", f"inside {series.lower:g}..{series.upper:g}", self.mean[index]
                )
            if not self.sd[index] > 0:
                raise self._error(f"sd of {series.name}", "above 0", self.sd[index])
            if not 0 <= self.persistence[index] < 1:
                raise self._error(
                    f"persistence of {series.name}", "0 <= persistence < 1", self.persistence[index]
                )
        shocks = self.shock_correlation
        if not (
            np.allclose(shocks, shocks.T)
            and np.allclose(np.diag(shocks), 1.0)
            and np.abs(shocks).max() <= 1 + 1e-12
        ):
            raise self._error(
                "shock_correlation", "symmetric, unit diagonal, entries -1..1", "something else"
            )

    def _error(self, part: str, expected: str, got: object) -> ConfigError:
        return ConfigError(
            "macro assumptions make no sense", expected=expected, got=got, where=f"set {self.name!r}, {part}"
        )

    def curve(self) -> Curve:
        """(9,) stationary marginals."""
        return fit_curve(self.mean, self.sd)

    def dynamics(self) -> LatentDynamics:
        """Latent process that has these persistences and shock correlations, or the full autoregression."""
        if self.transition is not None and self.shock_covariance is not None:
            return LatentDynamics.from_matrices(self.transition, self.shock_covariance)
        return LatentDynamics.from_stated(self.curve(), self.persistence, self.shock_correlation)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, JSON ready."""
        data: dict[str, Any] = {"name": self.name, "source": self.source, "notes": dict(self.notes)}
        data["series"] = list(MACRO_NAMES)
        for part in ("mean", "sd", "persistence", "shock_correlation", "transition", "shock_covariance"):
            value = getattr(self, part)
            data[part] = None if value is None else value.tolist()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MacroAssumptions:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: other series, missing parts, or values that make no sense.
        """
        if not isinstance(data, Mapping) or data.get("series") != list(MACRO_NAMES):
            raise ConfigError(
                "not assumptions for the nine series", expected=MACRO_NAMES, got=str(data)[:200]
            )
        fields = {key: value for key, value in data.items() if key != "series"}
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "assumptions have the wrong fields", expected="those of to_dict", got=error
            ) from error

    def save(self, path: str | Path) -> Path:
        """Write as JSON (a temporary file, then renamed); returns the path."""
        file = Path(path)
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return file


def decided_assumptions() -> MacroAssumptions:
    """The contract's figures: means, standard deviations, persistences and shock correlations as decided."""
    return MacroAssumptions(
        name="decided",
        mean=np.array([series.mean for series in MACRO_SERIES]),
        sd=np.array([series.sd for series in MACRO_SERIES]),
        persistence=np.array([series.persistence for series in MACRO_SERIES]),
        shock_correlation=_symmetric(_SHOCKS),
        source="contract figures of docs/methods/macro.md",
    )


def shipped_sets() -> list[str]:
    """Names that `load_assumptions` knows."""
    folder = resources.files("pc_pipeline.scenarios") / "sets"
    files = folder.iterdir() if folder.is_dir() else iter(())
    return ["decided", *sorted(entry.name[:-5] for entry in files if entry.name.endswith(".json"))]


def load_assumptions(name_or_path: str | Path) -> MacroAssumptions:
    """A shipped set by name, or a set from a JSON file.

    Raises:
        ConfigError: no such set, or its values make no sense.
        DataError: the file is no JSON.
    """
    if name_or_path == "decided":
        return decided_assumptions()
    if str(name_or_path) in shipped_sets():
        text = (resources.files("pc_pipeline.scenarios") / "sets" / f"{name_or_path}.json").read_text(
            encoding="utf-8"
        )
    else:
        file = Path(name_or_path)
        if not file.is_file():
            raise ConfigError(
                "no such assumption set",
                expected=", ".join(shipped_sets()) + ", or a JSON file",
                got=name_or_path,
            )
        text = file.read_text(encoding="utf-8", errors="replace")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError("assumption set is no JSON", got=error, where=name_or_path) from error
    return MacroAssumptions.from_dict(data)


def as_vector(values: Mapping[str, float] | np.ndarray, what: str) -> np.ndarray:
    """(9,) values in series order from a mapping by name or an array, clipped to the bounds' inside.

    Raises:
        ConfigError: a series is missing or unknown, or a value is not finite or out of bounds.
    """
    if isinstance(values, Mapping):
        if set(values) != set(MACRO_NAMES):
            raise ConfigError(
                f"{what} is not about the nine series", expected=MACRO_NAMES, got=sorted(values)
            )
        values = np.array([values[name] for name in MACRO_NAMES], dtype=float)
    array = np.asarray(values, dtype=float)
    if array.shape != (N_MACRO,):
        raise ConfigError(f"{what} has the wrong shape", expected=(N_MACRO,), got=array.shape)
    bad = ~((array >= LOWER_M) & (array <= UPPER_M))
    if bad.any():
        series = MACRO_SERIES[int(np.argmax(bad))]
        raise ConfigError(
            f"{what} out of bounds",
            expected=f"{series.lower:g}..{series.upper:g}",
            got=float(array[bad][0]),
            where=series.name,
        )
    return array
