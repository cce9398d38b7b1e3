"""Scenario definitions as data: the four standard ones, custom ones from a dict or YAML.

Here: what a scenario says (shifts with their timing, pinned values, supplied paths) and whether it makes
sense. Not here: what the series do because of it (`scenario_means`), drawing of paths (`generator`), the
supervisory scenarios' files (`supervisory`).

Timing, months counted from 0 at the start of the path: the shift is 0 up to and including `onset_month`,
rises over `ramp_months`, stays at its peak for `hold_months`, and falls back over `recovery_months`. Both
slopes are half cosines, so there is no jump and no kink at either end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
import yaml

from pc_pipeline.core.errors import ConfigError, PcError
from pc_pipeline.schemas.units import (
    MACRO_NAMES,
    MACRO_SERIES,
    OBSERVED,
    SCENARIO_ALIASES,
    STANDARD_SCENARIOS,
    canonical_scenario,
)

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")
_SERIES = {series.name: series for series in MACRO_SERIES}
MAX_MONTH: Final = 1200  # no scenario says anything about months later than a century


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Displacement of one series' mean at the peak of a scenario.

    Args:
        kind: 'add' (in the unit of the series) or 'multiply' (a factor, reached geometrically).
        peak: the number; 0 for 'add' and 1 for 'multiply' mean no shift.
    """

    kind: Literal["add", "multiply"]
    peak: float

    def __post_init__(self) -> None:
        if self.kind not in ("add", "multiply"):
            raise ConfigError("unknown kind of shift", expected="'add' or 'multiply'", got=repr(self.kind))
        if not _is_number(self.peak) or (self.kind == "multiply" and self.peak <= 0):
            raise ConfigError(
                "shift has no usable peak",
                expected="a finite number" if self.kind == "add" else "a factor above 0",
                got=repr(self.peak),
            )
        object.__setattr__(self, "peak", float(self.peak))

    def apply(self, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """`values` moved by `weight` (0..1) of the peak, elementwise."""
        if self.kind == "add":
            return values + self.peak * weight
        return values * self.peak**weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioDefinition:
    """One scenario: a distribution over macro paths, described by what is known about it.

    Args:
        name: letters, digits, '_', '-', '.'; it becomes a file and partition name.
        shifts: series -> `Shift` of its mean.
        onset_month, ramp_months, hold_months, recovery_months: timing of all shifts, months.
        pins: series -> {month: value}; every path passes through these values.
        path: series -> values of its mean from month 0; after the last one the mean goes back to the
            baseline at the series' own persistence.
        noise_scale: factor on the standard deviation of all series; 0 leaves the mean path alone.
        reacts: whether policy rate, 10-year yield and equity follow the reaction rules of
            `scenario_means` where no shift or path is given for them.
        description: one sentence for reports.

    Raises:
        ConfigError: any part makes no sense; the message says which.
    """

    name: str
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    onset_month: int = 6
    ramp_months: int = 6
    hold_months: int = 6
    recovery_months: int = 24
    pins: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    path: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    noise_scale: float = 1.0
    reacts: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        _check_scenario_name(self.name)
        for label, minimum in (
            ("onset_month", 0),
            ("ramp_months", 1),
            ("hold_months", 0),
            ("recovery_months", 1),
        ):
            _check_months(getattr(self, label), minimum, f"scenario {self.name!r}, {label}")
        if not _is_number(self.noise_scale) or not 0 <= self.noise_scale <= 3:
            raise self._error("noise_scale", "a number from 0 to 3", self.noise_scale)
        if not isinstance(self.reacts, bool):
            raise self._error("reacts", "true or false", self.reacts)
        object.__setattr__(self, "shifts", {s: self._shift(s, v) for s, v in _items(self, "shifts")})
        object.__setattr__(self, "pins", {s: self._pinned(s, v) for s, v in _items(self, "pins")})
        object.__setattr__(self, "path", {s: self._supplied(s, v) for s, v in _items(self, "path")})
        if self.pins and self.noise_scale == 0:
            raise self._error("pins", "noise_scale above 0, since pins condition the noise", "noise_scale 0")
        both = sorted(set(self.shifts) & set(self.path))
        if both:
            raise self._error("path", "a shift or a path for a series, not both", ", ".join(both))

    # ---- checks -----------------------------------------------------------------------------

    def _error(self, part: str, expected: str, got: object) -> ConfigError:
        return ConfigError(
            "scenario definition makes no sense",
            expected=expected,
            got=got if isinstance(got, str) else repr(got),
            where=f"scenario {self.name!r}, {part}",
        )

    def _series(self, part: str, name: object) -> str:
        if name not in _SERIES:
            raise self._error(part, "one of " + ", ".join(MACRO_NAMES), repr(name))
        return str(name)

    def _shift(self, name: str, value: object) -> Shift:
        series = self._series("shifts", name)
        if not isinstance(value, Shift):
            raise self._error(f"shifts.{series}", "a Shift", value)
        return value

    def _pinned(self, name: str, value: object) -> dict[int, float]:
        series = self._series("pins", name)
        if not isinstance(value, Mapping) or not value:
            raise self._error(f"pins.{series}", "a mapping of month to value", value)
        pinned = {}
        for month, number in value.items():
            _check_months(month, 0, f"scenario {self.name!r}, pins.{series}")
            pinned[int(month)] = self._within(f"pins.{series}.{month}", series, number, strict=True)
        return dict(sorted(pinned.items()))

    def _supplied(self, name: str, value: object) -> tuple[float, ...]:
        series = self._series("path", name)
        if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
            raise self._error(f"path.{series}", "a list of monthly values", value)
        numbers = tuple(
            self._within(f"path.{series}, month {month}", series, number, strict=False)
            for month, number in enumerate(value)
        )
        if not 1 <= len(numbers) <= MAX_MONTH:
            raise self._error(f"path.{series}", f"1 to {MAX_MONTH} monthly values", f"{len(numbers)} values")
        return numbers

    def _within(self, part: str, series: str, number: Any, *, strict: bool) -> float:
        lower, upper = _SERIES[series].lower, _SERIES[series].upper
        outside = not _is_number(number) or not lower <= number <= upper
        if outside or (strict and number in (lower, upper)):
            between = "strictly between" if strict else "between"
            raise self._error(part, f"a value {between} {lower:g} and {upper:g}", number)
        return float(number)

    # ---- what it says -----------------------------------------------------------------------

    @property
    def last_month(self) -> int:
        """Last month that any part of the definition speaks of."""
        shifted = self.onset_month + self.ramp_months + self.hold_months + self.recovery_months
        pinned = [max(values) for values in self.pins.values()]
        supplied = [len(values) - 1 for values in self.path.values()]
        return max([shifted if self.shifts else 0, *pinned, *supplied])

    def profile(self, n_months: int) -> np.ndarray:
        """(T,) share of the peak shift in force in each month, 0..1."""
        month = np.arange(n_months, dtype=float)
        up = (month - self.onset_month) / self.ramp_months
        down = (month - self.onset_month - self.ramp_months - self.hold_months) / self.recovery_months
        return _half_cosine(up) * (1.0 - _half_cosine(down))

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON and YAML ready) from which `from_dict` makes an equal definition."""
        return {
            "name": self.name,
            "description": self.description,
            "shifts": {series: {shift.kind: shift.peak} for series, shift in self.shifts.items()},
            "onset_month": self.onset_month,
            "ramp_months": self.ramp_months,
            "hold_months": self.hold_months,
            "recovery_months": self.recovery_months,
            "pins": {series: dict(values) for series, values in self.pins.items()},
            "path": {series: list(values) for series, values in self.path.items()},
            "noise_scale": self.noise_scale,
            "reacts": self.reacts,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScenarioDefinition:
        """Definition from plain data, as written by `to_dict` or by hand.

        A shift is `{add: number}` or `{multiply: factor}`. Months may be text, as JSON makes them.

        Raises:
            ConfigError: an unknown field, or a value that makes no sense.
        """
        if not isinstance(data, Mapping):
            raise ConfigError("not a scenario", expected="a mapping with a name", got=repr(data))
        known = set(cls.__dataclass_fields__)
        unknown = sorted(str(key) for key in set(data) - known)
        name = data.get("name", "?")
        if unknown or "name" not in data:
            raise ConfigError(
                "scenario definition has the wrong fields",
                expected="name, and any of " + ", ".join(sorted(known - {"name"})),
                got=", ".join(unknown) or "no name",
                where=f"scenario {name!r}",
            )
        fields = dict(data)
        fields["shifts"] = _read_shifts(str(name), data.get("shifts") or {})
        fields["pins"] = _read_pins(data.get("pins") or {})
        fields["path"] = data.get("path") or {}
        return cls(**fields)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _half_cosine(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, (1 - cos(pi x)) / 2 between."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(x, 0.0, 1.0))


def _items(definition: ScenarioDefinition, part: str) -> Iterable[tuple[Any, Any]]:
    value = getattr(definition, part)
    if not isinstance(value, Mapping):
        raise ConfigError(
            "scenario definition makes no sense",
            expected="a mapping keyed by series",
            got=repr(value),
            where=f"scenario {definition.name!r}, {part}",
        )
    return value.items()


def _check_scenario_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.match(name) or ".." in name or name == OBSERVED:
        raise ConfigError(
            "not a usable scenario name",
            expected=f"letters, digits, '_', '-', '.'; at most 100; not {OBSERVED!r}",
            got=repr(name),
        )
    if name in SCENARIO_ALIASES:
        raise ConfigError(
            "scenario name is taken by an alias", expected=canonical_scenario(name), got=repr(name)
        )


def _check_months(value: object, minimum: int, where: str) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not minimum <= value <= MAX_MONTH:  # type: ignore[operator]
        raise ConfigError(
            "not a number of months",
            expected=f"a whole number {minimum}..{MAX_MONTH}",
            got=repr(value),
            where=where,
        )


def _read_shifts(name: str, data: object) -> object:
    if not isinstance(data, Mapping):
        return data
    shifts: dict[str, Shift] = {}
    for series, value in data.items():
        if isinstance(value, Shift):
            shifts[series] = value
            continue
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ConfigError(
                "not a shift",
                expected="{add: number} or {multiply: factor}",
                got=repr(value),
                where=f"scenario {name!r}, shifts.{series}",
            )
        ((kind, peak),) = value.items()
        try:
            shifts[series] = Shift(kind=kind, peak=peak)
        except ConfigError as error:
            error.where = f"scenario {name!r}, shifts.{series}"
            raise
    return shifts


def _read_pins(data: object) -> object:
    if not isinstance(data, Mapping):
        return data
    return {
        series: (
            {int(m) if isinstance(m, str) and m.isdigit() else m: v for m, v in values.items()}
            if isinstance(values, Mapping)
            else values
        )
        for series, values in data.items()
    }


# ---- the four standard scenarios ----------------------------------------------------------------


def _standard(
    name: str,
    description: str,
    *,
    gdp: float = 0.0,
    unemployment: float = 0.0,
    inflation: float = 0.0,
    spreads: float = 1.0,
    property_prices: float = 1.0,
    ramp_and_hold: int = 12,
    recovery: int = 24,
) -> ScenarioDefinition:
    """A standard scenario; ramp and hold share `ramp_and_hold` months half and half."""
    shifts = {
        "gdp_growth_yoy": Shift(kind="add", peak=gdp),
        "unemployment_rate": Shift(kind="add", peak=unemployment),
        "inflation_rate": Shift(kind="add", peak=inflation),
        "credit_spread_ig": Shift(kind="multiply", peak=spreads),
        "credit_spread_hy": Shift(kind="multiply", peak=spreads),
        "property_price_index": Shift(kind="multiply", peak=property_prices),
    }
    return ScenarioDefinition(
        name=name,
        description=description,
        shifts={} if name == "baseline" else shifts,
        onset_month=6,
        ramp_months=ramp_and_hold // 2,
        hold_months=ramp_and_hold - ramp_and_hold // 2,
        recovery_months=recovery,
    )


_STANDARD: Final[dict[str, ScenarioDefinition]] = {
    definition.name: definition
    for definition in (
        _standard("baseline", "No shock: every series around its long-run mean."),
        _standard(
            "adverse",
            "A recession of ordinary depth.",
            gdp=-0.03,
            unemployment=0.03,
            inflation=-0.005,
            spreads=2.0,
            property_prices=0.85,
            ramp_and_hold=12,
            recovery=24,
        ),
        _standard(
            "severely_adverse",
            "A deep recession with a credit and property crash.",
            gdp=-0.06,
            unemployment=0.08,
            inflation=-0.01,
            spreads=4.0,
            property_prices=0.65,
            ramp_and_hold=18,
            recovery=36,
        ),
        _standard(
            "stagflation",
            "Inflation and tight money with falling output.",
            gdp=-0.02,
            unemployment=0.03,
            inflation=0.05,
            spreads=2.5,
            property_prices=0.90,
            ramp_and_hold=24,
            recovery=36,
        ),
    )
}


def standard_scenario(name: str) -> ScenarioDefinition:
    """One of baseline, adverse, severely_adverse (alias severe), stagflation.

    Raises:
        ConfigError: the name is none of them.
    """
    canonical = canonical_scenario(name)
    if canonical not in _STANDARD:
        expected = ", ".join((*STANDARD_SCENARIOS, *SCENARIO_ALIASES))
        raise ConfigError("not a standard scenario", expected=expected, got=repr(name))
    return _STANDARD[canonical]


def as_definition(scenario: str | ScenarioDefinition) -> ScenarioDefinition:
    """The definition itself, or the standard one of that name.

    Raises:
        ConfigError: neither.
    """
    if isinstance(scenario, ScenarioDefinition):
        return scenario
    if isinstance(scenario, str):
        return standard_scenario(scenario)
    raise ConfigError(
        "not a scenario", expected="a standard name or a ScenarioDefinition", got=type(scenario).__name__
    )


def load_scenarios(path: str | Path) -> list[ScenarioDefinition]:
    """Custom scenarios of a YAML (or JSON) file: one, a list, or a mapping with the list under
    `scenarios`.

    A scenario may give `path_file: file.csv` (relative to the YAML) instead of `path`: a CSV or Parquet table
    whose columns are named like our series, one row per month from month 0.

    Raises:
        ConfigError: the file cannot be read, a definition makes no sense, a name comes twice or is taken by a
            standard scenario.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "scenario file cannot be read", expected="YAML text", got=error, where=file
        ) from error
    entries = data
    if isinstance(data, Mapping):
        entries = [data] if "name" in data else data.get("scenarios")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            "no scenarios in the file",
            expected="a scenario with its name, a list, or `scenarios:` with a list",
            got=repr(data)[:200],
            where=file,
        )
    definitions: list[ScenarioDefinition] = []
    for position, entry in enumerate(entries):
        try:
            definition = ScenarioDefinition.from_dict(_with_path_file(entry, file.parent))
            _check_free_name(definition.name, definitions)
        except PcError as error:
            error.where = f"{file}, scenario number {position + 1}" + (
                f": {error.where}" if error.where else ""
            )
            raise
        definitions.append(definition)
    return definitions


def _check_free_name(name: str, taken: list[ScenarioDefinition]) -> None:
    if name in STANDARD_SCENARIOS:
        raise ConfigError(
            "scenario name is taken", expected="a name that is no standard scenario's", got=repr(name)
        )
    if any(name == other.name for other in taken):
        raise ConfigError("scenario name comes twice", expected="one definition per name", got=repr(name))


def _with_path_file(entry: object, folder: Path) -> Any:
    if not isinstance(entry, Mapping) or "path_file" not in entry:
        return entry
    fields = {key: value for key, value in entry.items() if key != "path_file"}
    if fields.get("path"):
        raise ConfigError("path is given twice", expected="path or path_file", got="both")
    file = folder / str(entry["path_file"])
    try:
        frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            "path_file cannot be read", expected="CSV or Parquet", got=error, where=file
        ) from error
    series = [column for column in frame.columns if column in MACRO_NAMES]
    if not series:
        raise ConfigError(
            "path_file has no macro series",
            expected=", ".join(MACRO_NAMES),
            got=", ".join(frame.columns),
            where=file,
        )
    fields["path"] = {column: frame[column].to_list() for column in series}
    return fields
