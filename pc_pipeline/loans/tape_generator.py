"""The synthetic loan tape and the front door of the synthetic portfolio.

Here: `LoanTapeGenerator`, which draws the static facts of loans and hands them to the panel generator.
Scores, coupon, LTV and debt ratios are noisy readings of each loan's own risk (its cohort, factor and
idiosyncratic effect), so a model can learn that risk from the tape. Not here: the law (`truth`), monthly rows
(`panel_generator`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl
from scipy.special import ndtr

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.periods import month_index, parse_month
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.asset_classes import FLOATING_SHARE, asset_classes
from pc_pipeline.loans.effects import (
    INDUSTRIES,
    REGIONS,
    cohort_effect,
    factor_effect,
    idiosyncratic_effect,
)
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.panel_generator import LoanBook, generate_book
from pc_pipeline.loans.truth import LawConfig, TrueLaw, true_transition_probabilities
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import AMORTIZATION_TYPES, ASSET_CLASSES, BORROWER_TYPES

BENCHMARK: Final = "policy_rate"
BENCHMARK_AT_ORIGINATION: Final = 0.03  # baseline mean of the policy rate, decimal per year
MINIMUM_SPREAD: Final = 0.005
N_ORIGINATORS: Final = 8

# Correlation of each reading with the loan's own risk; sign: a riskier loan has a lower score and DSCR,
# a higher coupon, LTV and DTI. Conventions.
_READING = {"internal": -0.90, "external": -0.75, "rate": 0.50, "ltv": 0.35, "dti": 0.40, "dscr": -0.40}
_BORROWER_SHARES: Final = {
    "corporate": (0.50, 0.30, 0.00, 0.20),
    "consumer": (0.00, 0.00, 1.00, 0.00),
    "realestate": (0.20, 0.10, 0.60, 0.10),
    "receivables": (0.40, 0.60, 0.00, 0.00),
}
_COLLATERAL: Final = {
    "corporate": "business_assets",
    "consumer": "none",
    "realestate": "property",
    "receivables": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """Codes and own risk of the loans being drawn."""

    class_code: np.ndarray
    vintage: np.ndarray
    industry: np.ndarray
    region: np.ndarray
    risk: np.ndarray


class _Named:
    """A column of names as small codes; a slice of it is text."""

    def __init__(self, code: np.ndarray, names: Sequence[str | None]) -> None:
        self._code = code.astype(np.uint16)
        self._names = pl.Series(names, dtype=pl.String)

    def __getitem__(self, rows: slice) -> pl.Series:
        return self._names.gather(pl.Series(self._code[rows].astype(np.uint32)))


class LoanTapeGenerator:
    """Synthetic loans with a known truth.

    Args:
        n_loans: on the tape. n_months: calendar months from `start_date`. n_vintages: months, from the first,
            over which originations spread evenly.
        asset_class_weights: class -> weight (any scale; absent classes get none); default the stated
            .40/.25/.25/.10.
        random_seed: of the tape and its panels. start_date: first vintage, ISO text or date.
        world_seed: of the hidden cohort, factor and idiosyncratic effects; default `random_seed`. Two tapes
            of one world differ in their loans but meet the same cohorts.
        law: constants of the law.

    Raises:
        ConfigError: counts or weights make no sense.
    """

    def __init__(
        self,
        n_loans: int = 1000,
        n_months: int = 60,
        n_vintages: int = 12,
        asset_class_weights: Mapping[str, float] | None = None,
        random_seed: int = 0,
        start_date: str | date = "2024-01-01",
        *,
        world_seed: int | None = None,
        law: LawConfig | None = None,
    ) -> None:
        if n_loans < 1 or n_months < 2 or not 1 <= n_vintages < n_months:
            raise ConfigError(
                "counts make no portfolio",
                expected="n_loans >= 1, n_months >= 2, 1 <= n_vintages < n_months",
                got=(n_loans, n_months, n_vintages),
            )
        self.n_loans, self.n_months, self.n_vintages = n_loans, n_months, n_vintages
        self.random_seed = random_seed
        self.world_seed = random_seed if world_seed is None else world_seed
        self.start_month = month_index(parse_month(start_date))
        self.class_shares = _class_shares(asset_class_weights)
        self.law = TrueLaw(world_seed=self.world_seed, config=law or LawConfig())

    # ---- tape -------------------------------------------------------------------------------

    def generate_static_features(self) -> pl.DataFrame:
        """(n_loans) rows of table `loan_tape`, in order of loan_id; the same seed gives the same bytes."""
        return self._rows(self._facts(), 0, self.n_loans)

    def _facts(self) -> dict[str, Any]:
        """All loans as numbers and codes, about 120 bytes each; text is made of them chunk by chunk."""
        drawn = self._draw()
        return {
            **self._dates(drawn),
            **self._terms(drawn),
            **self._readings(drawn),
            "asset_class": _Named(drawn.class_code, ASSET_CLASSES),
            "industry_sector": _Named(drawn.industry, INDUSTRIES),
            "geography_region": _Named(drawn.region, REGIONS),
            "borrower_type": _Named(
                self._choose("borrower", _BORROWER_SHARES, drawn.class_code), BORROWER_TYPES
            ),
            **self._lending(drawn),
        }

    def _rows(self, facts: Mapping[str, Any], start: int, stop: int) -> pl.DataFrame:
        """Rows start..stop of table `loan_tape`."""
        stop = min(stop, self.n_loans)
        number = pl.Series(range(start, stop), dtype=pl.Int64).cast(pl.String).str.zfill(8)
        frame = pl.DataFrame({name: values[start:stop] for name, values in facts.items()})
        return _with_collateral(
            frame.with_columns(
                (pl.lit("L") + number).alias("loan_id"),
                pl.lit("US").alias("geography_country"),
                pl.lit("monthly").alias("payment_frequency"),
                pl.col(pl.Float64).fill_nan(None),
            )
        ).select(columns("loan_tape"))

    def _stream(self, name: str) -> np.random.Generator:
        return stream(self.random_seed, "loan_tape", name)

    def _draw(self) -> _Drawn:
        size = self.n_loans
        class_code = self._stream("class").choice(len(ASSET_CLASSES), size, p=self.class_shares)
        vintage = self.start_month + self._stream("vintage").integers(0, self.n_vintages, size)
        industry = self._stream("industry").integers(0, len(INDUSTRIES), size)
        region = self._stream("region").integers(0, len(REGIONS), size)
        effects = np.column_stack(
            [
                cohort_effect(self.world_seed, class_code, vintage),
                factor_effect(self.world_seed, industry, region),
                idiosyncratic_effect(self.world_seed, np.arange(size)),
            ]
        )
        weights = self.law.config.own_weights
        length = np.linalg.norm(weights)
        risk = effects @ weights / length if length > 0 else np.zeros(size)
        return _Drawn(class_code=class_code, vintage=vintage, industry=industry, region=region, risk=risk)

    def _choose(
        self, name: str, shares: Mapping[str, tuple[float, ...]], class_code: np.ndarray
    ) -> np.ndarray:
        cumulative = np.cumsum([shares[cls] for cls in ASSET_CLASSES], axis=1)[class_code]
        return (self._stream(name).random(self.n_loans)[:, None] >= cumulative[:, :-1]).sum(axis=1)

    def _dates(self, drawn: _Drawn) -> dict[str, Any]:
        low, high = _class_range("term_months", drawn.class_code)
        # Short terms are as likely as long ones on a log scale, save that whole months must stay in range.
        uniform = self._stream("term").random(self.n_loans)
        term = np.floor(np.exp(np.log(low) + uniform * np.log((high + 1) / low)))
        term = np.clip(term, low, high).astype(np.int64)
        first = _dates_of(drawn.vintage)
        day = self._stream("day").integers(0, 28, self.n_loans)
        return {
            "origination_date": (first + day).astype("datetime64[ms]"),
            "maturity_date": _dates_of(drawn.vintage + term).astype("datetime64[ms]"),
            "vintage_month": first.astype("datetime64[ms]"),
            "term_months": term,
        }

    def _terms(self, drawn: _Drawn) -> dict[str, Any]:
        low, high = _class_range("balance", drawn.class_code)
        place = ndtr(0.7 * self._stream("balance").standard_normal(self.n_loans))
        balance = np.round(np.exp(np.log(low) + place * np.log(high / low)), 2)
        low, high = _class_range("rate", drawn.class_code)
        rate = low + self._reading("rate", drawn.risk) * (high - low)
        floating_share = np.array([FLOATING_SHARE[cls] for cls in ASSET_CLASSES])[drawn.class_code]
        is_floating = self._stream("rate_type").random(self.n_loans) < floating_share
        spread = np.maximum(rate - BENCHMARK_AT_ORIGINATION, MINIMUM_SPREAD)
        rate = np.round(np.where(is_floating, BENCHMARK_AT_ORIGINATION + spread, rate), 6)
        amortizing = {
            cls: tuple(asset_classes()[cls][f"share_{kind}"] for kind in ("amortizing", "bullet", "balloon"))
            for cls in ASSET_CLASSES
        }
        kind = self._choose("amortization", amortizing, drawn.class_code)
        return {
            "original_balance": balance,
            "interest_rate": rate,
            "rate_type": _Named(is_floating, ("fixed", "floating")),
            "spread_bps": np.where(is_floating, np.round(1e4 * (rate - BENCHMARK_AT_ORIGINATION), 2), np.nan),
            "benchmark": _Named(is_floating, (None, BENCHMARK)),
            "amortization_type": _Named(kind, AMORTIZATION_TYPES),
        }

    def _reading(self, name: str, risk: np.ndarray) -> np.ndarray:
        """(L,) uniforms whose normal score correlates with the loan's own risk as stated."""
        correlation = _READING[name]
        noise = self._stream(f"reading_{name}").standard_normal(self.n_loans)
        return ndtr(correlation * risk + np.sqrt(1.0 - correlation**2) * noise)

    def _readings(self, drawn: _Drawn) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in ("ltv", "dti", "dscr"):
            low, high = _class_range(name, drawn.class_code)
            values[name] = np.round(low + self._reading(name, drawn.risk) * (high - low), 4)
        ratio = np.where(np.isnan(values["dti"]), values["dscr"], values["dti"])  # a class has one or neither
        external = np.round(300.0 + 550.0 * self._reading("external", drawn.risk))
        is_rated = drawn.class_code != ASSET_CLASSES.index("receivables")
        return {
            "ltv_origination": values["ltv"],
            "dti_dscr_origination": ratio,
            "internal_score_origination": np.round(100.0 * self._reading("internal", drawn.risk), 1),
            "external_score_origination": np.where(is_rated, external, np.nan),
        }

    def _lending(self, drawn: _Drawn) -> dict[str, Any]:
        originator = self._stream("originator").integers(1, N_ORIGINATORS + 1, self.n_loans)
        half_years = (drawn.vintage - self.start_month) // 6
        return {
            "collateral_type": _Named(drawn.class_code, [_COLLATERAL[cls] for cls in ASSET_CLASSES]),
            "originator_id": _Named(originator - 1, [f"ORIG{k + 1:02d}" for k in range(N_ORIGINATORS)]),
            "underwriting_standard_version": _Named(
                half_years, [f"UW{k + 1}" for k in range(self.n_vintages // 6 + 1)]
            ),
        }

    # ---- panel ------------------------------------------------------------------------------

    def generate(
        self, macro_df: Any, scenario: str = "baseline", macro_path_id: int = 0
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(loans, panel) along one macro path: a frame with `month` and the nine series (polars or pandas).

        Raises:
            DataError: the path does not begin at or before `start_date`, or has gaps.
        """
        book = self.generate_book(macro_df, scenario=scenario, macro_path_id=macro_path_id)
        return book.loans, book.panel

    def generate_scenario(self, macro_table: Any) -> LoanBook:
        """Tape, panel and recoveries along a `macro_scenarios` table, loans spread over its paths."""
        return self.generate_book(macro_table)

    def generate_book(self, macro: Any, scenario: str | None = None, macro_path_id: int = 0) -> LoanBook:
        """`generate` with the recoveries too."""
        return generate_book(
            self.generate_static_features(),
            macro,
            law=self.law,
            seed=self.random_seed,
            last_month=self.start_month + self.n_months - 1,
            scenario=scenario,
            macro_path_id=macro_path_id,
        )

    def stream_scenario(self, macro_table: Any, chunk_loans: int = 20_000) -> Iterator[LoanBook]:
        """`generate_scenario` in chunks of loans, for portfolios whose panel exceeds memory.

        Chunks together hold the same rows; with several scenarios, each chunk holds all of its loans' lives.

        Raises:
            ConfigError: a chunk of no loans. DataError: as `generate`.
        """
        if chunk_loans < 1:
            raise ConfigError("a chunk holds loans", expected=">= 1", got=chunk_loans)
        facts, paths = self._facts(), macro_paths(macro_table)
        last_month = self.start_month + self.n_months - 1
        for start in range(0, self.n_loans, chunk_loans):
            chunk = self._rows(facts, start, start + chunk_loans)
            yield generate_book(chunk, paths, law=self.law, seed=self.random_seed, last_month=last_month)

    def true_transition_probabilities(
        self, loans: Any, macro: Any, months_since_miss: int | np.ndarray = -1, **options: Any
    ) -> np.ndarray:
        """`truth.true_transition_probabilities` in this generator's world."""
        return true_transition_probabilities(
            loans,
            macro,
            world_seed=self.world_seed,
            config=self.law.config,
            months_since_miss=months_since_miss,
            **options,
        )


def _class_shares(weights: Mapping[str, float] | None) -> np.ndarray:
    given = weights or {name: asset_classes()[name]["weight"] for name in ASSET_CLASSES}
    unknown = sorted(set(given) - set(ASSET_CLASSES))
    values = np.array([float(given.get(name, 0.0)) for name in ASSET_CLASSES])
    if unknown or not np.isfinite(values).all() or values.min() < 0 or values.sum() <= 0:
        raise ConfigError(
            "asset class weights must be >= 0 with a positive sum", expected=ASSET_CLASSES, got=dict(given)
        )
    return values / values.sum()


def _class_range(quantity: str, class_code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L,) lower and upper end by class; NaN where the quantity does not apply."""
    table = np.array([asset_classes()[cls].range(quantity) or (np.nan, np.nan) for cls in ASSET_CLASSES])
    return table[class_code, 0], table[class_code, 1]


def _dates_of(months: np.ndarray) -> np.ndarray:
    """Month indices -> datetime64[D] of the first day."""
    return (np.asarray(months) - 1970 * 12).astype("datetime64[M]").astype("datetime64[D]")


def _with_collateral(frame: pl.DataFrame) -> pl.DataFrame:
    """Collateral worth balance / LTV, to the cent; dates as dates."""
    return frame.with_columns(
        (pl.col("original_balance") / pl.col("ltv_origination"))
        .round(2)
        .alias("collateral_value_origination"),
        pl.col("origination_date", "maturity_date", "vintage_month").cast(pl.Date),
    )
