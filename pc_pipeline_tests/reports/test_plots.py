"""Figures: what they show, that they repeat to the byte, and that they survive odd input."""

from __future__ import annotations

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports import ink, model_plots, plots
from pc_pipeline.schemas.states import LOAN_STATE_NAMES

from . import samples

FANS = samples.macro_fan_report(("baseline", "adverse"))
FEW = FANS.filter(pl.col("series").is_in(["credit_spread_hy", "property_price_index"]))
CASH = samples.cash_flow_report(("baseline",))
BALANCES = samples.tranche_balance_report(("baseline",))
DRAWINGS = {
    "loss": lambda: plots.loss_distribution(samples.losses("baseline"), title="Losses"),
    "exceedance": lambda: plots.loss_exceedance(samples.loss_distribution(("baseline", "adverse"))),
    "measures": lambda: plots.measures_by_scenario(samples.pool_report()),
    "stack": lambda: plots.cash_stack(CASH, "baseline", currency="USD"),
    "channel": lambda: plots.cash_channel(CASH, "baseline", "recovery"),
    "bands": lambda: plots.cash_flow_bands(CASH.head(120), "baseline"),
    "balances": lambda: plots.tranche_balances(BALANCES, "baseline"),
    "series": lambda: plots.macro_series(FANS, "adverse", "unemployment_rate"),
    "fan": lambda: plots.macro_fan(FEW, "adverse"),
    "heat": lambda: model_plots.transition_heat_map(0.9 * np.eye(7) + 0.1 / 7),
    "curves": lambda: model_plots.training_curves({"train": [0.2, 0.1], "validation": [0.3, 0.2]}),
    "calibration": lambda: model_plots.calibration(
        [0.1, 0.2], [0.1, 0.3], weights=[5, 1], errors=[0.01, 0.1]
    ),
}
LABELS = {
    "loss": ["loss, % of original pool balance", "share of paths, %"],
    "exceedance": ["paths that lose more, %", "Adverse"],
    "measures": ["% of original pool balance, with 95% interval", "Severely adverse"],
    "stack": ["USD, million", "months from cut-off", "Defaulted balance (no cash)"],
    "channel": ["currency, thousand"],
    "bands": ["Scheduled principal", "currency, million"],
    "balances": ["Mezzanine", "currency, million"],
    "series": ["%", "months from cut-off"],
    "fan": ["High-yield spread", "bps", "index"],
    "heat": ["state next month", "90dpd", "91.4%"],
    "curves": ["epoch", "loss, nats", "validation"],
    "calibration": ["predicted, %", "observed, %"],
}


def texts(figure: Figure) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", ink.to_svg(figure))


@pytest.mark.parametrize("name", DRAWINGS)
def test_axes_carry_units_and_bytes_repeat(name: str) -> None:
    first, second = ink.to_svg(DRAWINGS[name]()), ink.to_svg(DRAWINGS[name]())
    assert first == second
    assert "<metadata" not in first
    found = re.findall(r"<text[^>]*>([^<]*)</text>", first)
    assert not set(LABELS[name]) - set(found)
    assert plt.get_fignums() == []


def test_png_uri_repeats_and_figures_are_cleared() -> None:
    figure = DRAWINGS["channel"]()
    uri = ink.to_png_uri(figure)
    assert uri == ink.to_png_uri(DRAWINGS["channel"]())
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert figure.axes == []


def test_the_callers_matplotlib_settings_neither_matter_nor_change() -> None:
    wanted = ink.to_svg(DRAWINGS["channel"]())
    with plt.rc_context({"font.size": 30, "axes.grid": False, "svg.fonttype": "path"}):
        assert ink.to_svg(DRAWINGS["channel"]()) == wanted
        assert plt.rcParams["font.size"] == 30


def test_inline_figures_share_no_id_and_carry_no_colour_of_the_light_page() -> None:
    pictures = [ink.to_inline_svg(DRAWINGS["balances"](), key, 'a "label" <b>') for key in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]+)"', picture)) for picture in pictures]
    assert ids[0]
    assert not ids[0] & ids[1]
    for key, picture in zip(("one", "two"), pictures, strict=True):
        used = set(re.findall(r"url\(#([^)]+)\)", picture)) | set(re.findall(r'href="#([^"]+)"', picture))
        assert used == set(re.findall(r' id="([^"]+)"', picture))
        assert all(name.startswith(key) for name in used)
        assert "var(--blue)" in picture
        assert not any(colour in picture for colour in ink.CSS_NAMES)
        assert 'aria-label="a &quot;label&quot; &lt;b&gt;"' in picture


# --- losses ---------------------------------------------------------------------------------------


def test_marks_of_a_sample_a_person_can_check() -> None:
    losses = np.arange(1, 101) / 1000.0  # 0.1 % .. 10 %
    marks = plots.loss_marks(losses)
    assert marks["expected_loss"] == pytest.approx(0.0505)
    assert marks["var_99"] == pytest.approx(0.099)
    assert marks["cvar_99"] == pytest.approx((0.099 + 0.100) / 2)


def test_weights_count_like_repeated_paths() -> None:
    losses, weights = np.array([0.01, 0.02, 0.30]), np.array([60.0, 38.0, 2.0])
    repeated = np.repeat(losses, weights.astype(int))
    assert plots.loss_marks(losses, weights) == pytest.approx(plots.loss_marks(repeated))
    weighted = plots.loss_distribution(losses, weights, marks={})
    heights = weighted.axes[0].patches[0].get_data().values
    assert heights.sum() == pytest.approx(1.0)
    assert heights[-1] == pytest.approx(0.02)


def test_marks_of_the_report_are_the_ones_drawn() -> None:
    found = texts(
        plots.loss_distribution(samples.losses("baseline"), marks={"var_99": 0.123, "cvar_99": None})
    )
    assert any("VaR 99" in text and "12.30%" in text for text in found)
    assert not any("CVaR 99" in text for text in found)


@pytest.mark.parametrize("losses", [[0.0] * 50, [0.02], [0.0, 0.0, 1.0]])
def test_degenerate_losses_draw(losses: list[float]) -> None:
    assert "loss, % of original pool balance" in texts(plots.loss_distribution(losses))
    frame = pl.DataFrame({"scenario": ["a"] * len(losses), "loss": losses})
    assert "A" in texts(plots.loss_exceedance(frame))


def test_losses_without_weight_are_refused() -> None:
    for losses, weights in (([], None), ([float("nan")], None), ([0.1], [0.0]), ([0.1, 0.2], [1.0])):
        with pytest.raises(DataError, match="loss"):
            plots.loss_distribution(losses, weights)


def test_exceedance_is_read_off_correctly() -> None:
    losses = np.arange(1, 1001) / 1000.0
    level, beyond = plots._exceedance(losses, np.ones(1000))
    np.testing.assert_allclose(beyond[:-1], 1.0 - level[:-1], atol=1e-9)
    assert level.size <= plots.N_CURVE_POINTS
    assert level[-1] == 1.0


# --- frames and names -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_text(tmp_path) -> None:
    name = "_$\\frac{<script>&日本🏦"
    frame = (
        BALANCES.with_columns(tranche=pl.lit(name)).unique("month_index").with_columns(scenario=pl.lit(name))
    )
    found = ink.to_svg(plots.tranche_balances(frame, name, title=name, currency=name))
    assert "<script" not in found
    assert "&lt;script&gt;" in found
    assert "$\\frac{" in found


def test_frames_without_rows_draw_empty_axes() -> None:
    for figure in (
        plots.cash_stack(CASH.clear(), "baseline"),
        plots.cash_flow_bands(CASH.clear(), "baseline"),
        plots.tranche_balances(BALANCES, "no such scenario"),
        plots.macro_fan(FANS.clear(), "baseline"),
        plots.measures_by_scenario(samples.pool_report().clear()),
        model_plots.training_curves({}),
        model_plots.calibration([], []),
    ):
        assert ink.to_svg(figure).endswith("</svg>\n")


def test_missing_months_and_values_draw() -> None:
    holes = CASH.filter(pl.col("month_index") % 7 > 0).with_columns(
        pl.when(pl.col("month_index") > 40).then(None).otherwise(pl.col("p95")).alias("p95")
    )
    assert "USD, million" in texts(plots.cash_stack(holes, "baseline", currency="USD"))
    assert "months from cut-off" in texts(plots.cash_channel(holes, "baseline", "interest"))


def test_fan_limits_hold_every_scenario() -> None:
    low, high = plots.fan_limits(FANS, "unemployment_rate")
    rows = FANS.filter(pl.col("series") == "unemployment_rate")
    assert low < rows["p05"].min()
    assert high > rows["p95"].max()
    assert plots.fan_limits(FANS, "no such series") is None


# --- models ---------------------------------------------------------------------------------------


def test_heat_map_shows_every_possible_move_and_only_those() -> None:
    matrix = np.eye(7)
    matrix[0, :2] = [0.9998, 0.0002]
    found = texts(model_plots.transition_heat_map(matrix))
    assert [text for text in found if "%" in text].count("100.0%") == 7
    assert "&lt;.1%" in found
    assert sum("%" in text for text in found) == 8
    with pytest.raises(DataError, match="matrix"):
        model_plots.transition_heat_map(np.eye(3), LOAN_STATE_NAMES)


def test_training_curves_leave_out_what_is_no_curve() -> None:
    figure = model_plots.training_curves(
        {"loss": [3.0, 2.0], "best_epoch": 2, "note": "early stop", "empty": []}
    )
    assert len(figure.axes[0].lines) == 1
    assert model_plots.training_curves({"loss": [1.0]}).axes[0].lines[0].get_marker() == "o"


def test_calibration_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="length"):
        model_plots.calibration([0.1], [0.1, 0.2])


def test_a_last_month_that_dwarfs_the_others_is_written_not_drawn() -> None:
    axes = Figure().subplots()
    plots.cut_last_month(axes, np.array([3.0, 4.0, 2.0, 1.0, 100.0]), "million")
    assert axes.get_ylim()[1] == pytest.approx(4.6)
    assert "last month 100 million" in axes.texts[0].get_text()
    plain = Figure().subplots()
    plain.plot([3.0, 4.0, 2.0, 1.0, 5.0])
    plots.cut_last_month(plain, np.array([3.0, 4.0, 2.0, 1.0, 5.0]), "million")
    assert not plain.texts
    assert plain.get_ylim()[1] > 5.0
