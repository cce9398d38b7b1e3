"""Hidden effects of the synthetic world: cohort C, factor F, idiosyncratic I, each standard normal.

C belongs to (asset class, vintage month), F to (industry, region), I to the loan number; each is a
counter-based function of the world seed and those keys, so the truth needs no side table and a new tape in
the same world meets the same cohorts. Not here: how they enter a probability (`truth`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.counter import normals
from pc_pipeline.schemas.units import ASSET_CLASSES

INDUSTRIES: Final = (
    "construction",
    "energy",
    "finance",
    "healthcare",
    "hospitality",
    "manufacturing",
    "retail",
    "services",
    "technology",
    "transport",
)
REGIONS: Final = (
    "east_north_central",
    "east_south_central",
    "mid_atlantic",
    "mountain",
    "new_england",
    "pacific",
    "south_atlantic",
    "west_north_central",
    "west_south_central",
)


def codes_of(values: pl.Series, names: tuple[str, ...], where: str) -> np.ndarray:
    """(N,) position of each value in `names`.

    Raises:
        DataError: a value is not among them.
    """
    codes = values.cast(pl.Enum(names), strict=False)
    if codes.null_count():
        unknown = values.filter(codes.is_null())[0]
        raise DataError("value outside the known list", expected=", ".join(names), got=unknown, where=where)
    return codes.to_physical().to_numpy().astype(np.int64)


def loan_numbers(loans: pl.DataFrame) -> np.ndarray:
    """(L,) the number in each loan id (L00000012), the key of the loan's own random numbers.

    Raises:
        DataError: an id is no such number: the loan is not from the synthetic generator.
    """
    numbers = loans["loan_id"].str.strip_prefix("L").cast(pl.Int64, strict=False)
    if numbers.null_count():
        raise DataError(
            "only generated loans have a known truth",
            expected="loan_id such as L00000012",
            got=loans["loan_id"].filter(numbers.is_null())[0],
        )
    return numbers.to_numpy()


def cohort_effect(world_seed: int, class_code: np.ndarray, vintage: np.ndarray) -> np.ndarray:
    """(L,) C by class code and vintage month index."""
    return normals(derive_seed(world_seed, "cohort_effect"), class_code, vintage)


def factor_effect(world_seed: int, industry_code: np.ndarray, region_code: np.ndarray) -> np.ndarray:
    """(L,) F by industry and region code."""
    return normals(derive_seed(world_seed, "factor_effect"), industry_code, region_code)


def idiosyncratic_effect(world_seed: int, number: np.ndarray) -> np.ndarray:
    """(L,) I by loan number."""
    return normals(derive_seed(world_seed, "idiosyncratic_effect"), number)


def loan_effects(
    loans: pl.DataFrame,
    world_seed: int,
    class_code: np.ndarray | None = None,
    number: np.ndarray | None = None,
) -> np.ndarray:
    """(L, 3) C, F, I of each loan of a generated tape; class codes and loan numbers if already known."""
    if class_code is None:
        class_code = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")
    if number is None:
        number = loan_numbers(loans)
    vintage = loans.select(month_index_expr("vintage_month"))["vintage_month"].to_numpy()
    industry = codes_of(loans["industry_sector"], INDUSTRIES, "industry_sector")
    region = codes_of(loans["geography_region"], REGIONS, "geography_region")
    return np.column_stack(
        [
            cohort_effect(world_seed, class_code, vintage),
            factor_effect(world_seed, industry, region),
            idiosyncratic_effect(world_seed, number),
        ]
    )
