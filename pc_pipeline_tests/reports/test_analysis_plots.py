"""Figures of analyses: they draw what they are given, and say what is missing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports.analysis_plots import (
    attribution_bars,
    reverse_stress_paths,
    sensitivity_heat_map,
    uncertainty_bars,
)
from pc_pipeline.reports.ink import to_svg
from pc_pipeline.schemas.units import MACRO_NAMES


def test_bars_keep_the_largest_parts_and_their_size():
    parts = pl.DataFrame(
        {
            "of": ["pool"] * 30,
            "measure": ["expected_loss"] * 30,
            "cohort": [f"c{n:02d}" for n in range(30)],
            "part": np.arange(30) / 1000.0,
        }
    )
    figure = attribution_bars(parts, "cohort")
    bars = figure.axes[0].patches
    assert len(bars) == 12
    assert max(bar.get_width() for bar in bars) == pytest.approx(0.029)
    svg = to_svg(figure)
    assert "c29" in svg.lower()
    assert "c17" not in svg.lower()
    with pytest.raises(DataError, match="nothing to draw"):
        attribution_bars(parts, "cohort", of="Senior")


def test_heat_map_is_in_basis_points_of_the_target():
    macro = pl.DataFrame(
        {
            "target": ["pool expected loss"] * 18,
            "series": np.repeat(MACRO_NAMES, 2),
            "month_index": [0, 1] * 9,
            "per_sd": np.linspace(-0.001, 0.002, 18),
        }
    )
    figure = sensitivity_heat_map(macro, "pool expected loss")
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().max() == pytest.approx(20.0)
    assert mesh.get_clim() == (-20.0, 20.0)
    with pytest.raises(DataError, match="nothing to draw"):
        sensitivity_heat_map(macro, "nobody")


def test_paths_and_their_centre():
    rows = [("pool loss of 10.0%", name, t, 0.1 + 0.01 * t, 0.1) for name in MACRO_NAMES for t in range(6)]
    names = ["target", "series", "month_index", "value", "centre"]
    figure = reverse_stress_paths(pl.DataFrame(rows, schema=names, orient="row"))
    assert len(figure.axes) == 9
    centre, path = figure.axes[0].lines
    assert centre.get_ydata().tolist() == [0.1] * 6
    assert path.get_ydata()[-1] == pytest.approx(0.15)


def test_variance_shares_fill_the_bar():
    table = pl.DataFrame(
        {
            "of": ["pool", "Mezz"],
            "measure": ["expected_loss"] * 2,
            "value": [0.02, 0.01],
            "lower": [0.015, 0.0],
            "upper": [0.025, 0.03],
            "sampling": [1.0, 0.0],
            "parameter": [1.0, 3.0],
            "model": [2.0, 1.0],
        }
    )
    figure = uncertainty_bars(table)
    widths = np.array([bar.get_width() for bar in figure.axes[1].patches]).reshape(3, 2)
    np.testing.assert_allclose(widths.sum(axis=0), 1.0)
    assert widths[:, 0].tolist() == [0.25, 0.25, 0.5]
