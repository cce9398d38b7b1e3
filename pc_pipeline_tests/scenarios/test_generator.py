"""Generated macro paths: bounds, moments, persistence, correlations, scenario shapes, reproducibility."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.assumptions import decided_assumptions
from pc_pipeline.scenarios.definitions import ScenarioDefinition, Shift, standard_scenario
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table, paths_table
from pc_pipeline.scenarios.marginals import LOWER_M, UPPER_M
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, STANDARD_SCENARIOS

N_PATHS = 4_000
Z_LIMIT = 4.5  # 540 strongly dependent comparisons per scenario: P(any |z| > 4.5) < 0.4 %
BASE_MEAN = np.array([series.mean for series in MACRO_SERIES])
BASE_SD = np.array([series.sd for series in MACRO_SERIES])
PERSISTENCE = np.array([series.persistence for series in MACRO_SERIES])


@pytest.fixture(scope="module")
def generator():
    return MacroScenarioGenerator(n_months=60, random_seed=11)


@pytest.fixture(scope="module")
def paths(generator):
    return {name: generator.generate_paths(name, N_PATHS) for name in STANDARD_SCENARIOS}


def series(name):
    return MACRO_NAMES.index(name)


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_paths_stay_strictly_inside_the_bounds(paths, name):
    assert (paths[name] > LOWER_M).all()
    assert (paths[name] < UPPER_M).all()


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_means_are_the_stated_path_in_every_month(generator, paths, name):
    z = (paths[name].mean(axis=0) - generator.mean_path(name)) / (generator.sd_path(name) / np.sqrt(N_PATHS))
    assert np.abs(z).max() < Z_LIMIT


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_dispersion_is_the_stated_one_in_every_month(generator, paths, name):
    centred = paths[name] - paths[name].mean(axis=0)
    variance = (centred**2).mean(axis=0)
    standard_error = np.sqrt(((centred**4).mean(axis=0) - variance**2) / N_PATHS)
    z = (variance - generator.sd_path(name) ** 2) / standard_error
    assert np.abs(z).max() < Z_LIMIT + 1  # the squares' own skewness adds to the tail of z


def test_baseline_moments_are_the_decided_figures(generator):
    np.testing.assert_allclose(generator.mean_path("baseline"), np.tile(BASE_MEAN, (60, 1)), rtol=1e-9)
    np.testing.assert_allclose(generator.sd_path("baseline"), np.tile(BASE_SD, (60, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_dispersion_stays_outside_the_neighbourhood_of_a_bound(generator, name):
    """Shifts move the mean, the noise stays; only the policy rate meets its lower bound."""
    ratio = generator.sd_path(name) / BASE_SD
    others = [i for i in range(9) if i != series("policy_rate")]
    np.testing.assert_allclose(ratio[:, others], 1.0, rtol=1e-6)


def test_persistence_is_the_decided_one(paths):
    """Lag-1 autocorrelation, path by path bootstrap-free: standard error from the spread over 40 groups."""
    groups = (paths["baseline"] - BASE_MEAN).reshape(40, -1, 60, 9)
    rho = (groups[:, :, 1:] * groups[:, :, :-1]).sum(axis=(1, 2)) / (groups[:, :, :-1] ** 2).sum(axis=(1, 2))
    z = (rho.mean(axis=0) - PERSISTENCE) / (rho.std(axis=0, ddof=1) / np.sqrt(40))
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("name", STANDARD_SCENARIOS[1:])
def test_noise_keeps_its_persistence_and_correlations_under_stress(generator, paths, name):
    """The curve bends differently where the mean has moved; that may cost 0.02 beyond the standard error."""
    rate = series("policy_rate")  # squeezed against its floor in recessions
    z = {
        scenario: (paths[scenario] - generator.mean_path(scenario)) / generator.sd_path(scenario)
        for scenario in ("baseline", name)
    }
    kept = [i for i in range(9) if i != rate]
    lagged = {s: (v[:, 1:] * v[:, :-1]).mean(axis=(0, 1))[kept] for s, v in z.items()}
    assert np.abs(lagged[name] - lagged["baseline"]).max() < 0.02
    same = {s: np.einsum("pti,ptj->ij", v, v)[np.ix_(kept, kept)] / v[..., 0].size for s, v in z.items()}
    assert np.abs(same[name] - same["baseline"]).max() < 0.03


def test_innovations_correlate_as_decided(paths):
    centred = paths["baseline"] - BASE_MEAN
    innovations = (centred[:, 1:] - PERSISTENCE * centred[:, :-1]).reshape(40, -1, 9)
    correlations = np.stack([np.corrcoef(group.T) for group in innovations])
    upper = np.triu_indices(9, 1)
    error = correlations.std(axis=0, ddof=1)[upper] / np.sqrt(40)
    z = (correlations.mean(axis=0) - decided_assumptions().shock_correlation)[upper] / error
    assert np.abs(z).max() < 4


def test_autocorrelation_falls_geometrically(paths):
    centred = paths["baseline"] - BASE_MEAN
    for lag in (3, 12):
        rho = (centred[:, lag:] * centred[:, :-lag]).mean(axis=(0, 1)) / BASE_SD**2
        np.testing.assert_allclose(rho, PERSISTENCE**lag, atol=0.06)


def test_peaks_of_the_stated_shifts(generator):
    severe = generator.mean_path("severe")
    assert severe[:, series("gdp_growth_yoy")].min() == pytest.approx(-0.04)
    assert severe[:, series("unemployment_rate")].max() == pytest.approx(0.13)
    assert severe[:, series("inflation_rate")].min() == pytest.approx(0.01)
    assert severe[:, series("credit_spread_ig")].max() == pytest.approx(400)
    assert severe[:, series("credit_spread_hy")].max() == pytest.approx(1600)
    assert severe[:, series("property_price_index")].min() == pytest.approx(65)


@pytest.mark.parametrize("name", STANDARD_SCENARIOS[1:])
def test_a_shock_moves_all_nine_series(generator, name):
    moved = np.abs(generator.mean_path(name) - generator.mean_path("baseline")).max(axis=0)
    assert (moved > 0.5 * BASE_SD).all()


def test_monetary_policy_answers_in_the_right_direction(generator):
    policy = series("policy_rate")
    assert generator.mean_path("severe")[:, policy].min() < 0.005
    assert generator.mean_path("adverse")[:, policy].min() < 0.015
    assert generator.mean_path("stagflation")[:, policy].max() > 0.07


def test_equity_falls_in_the_onset_and_rebounds(generator):
    for name in STANDARD_SCENARIOS[1:]:
        equity = generator.mean_path(name)[:, series("equity_return")]
        definition = standard_scenario(name)
        end_of_hold = definition.onset_month + definition.ramp_months + definition.hold_months
        assert equity[: end_of_hold + 1].min() < -0.05
        assert equity[end_of_hold + 1 :].max() > 0.12


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_mean_paths_do_not_jump(generator, name):
    """A half cosine over 6 months, the shortest ramp, moves by sin(pi/12) = 26 % of its peak at most."""
    mean = generator.mean_path(name)
    travel = np.abs(mean - mean[0]).max(axis=0)
    steps = np.abs(np.diff(mean, axis=0)).max(axis=0)
    assert (steps <= 0.5 * travel + 1e-12).all()
    assert (np.abs(mean[7] - mean[6]) <= 0.12 * travel + 1e-12).all()


def test_same_seed_same_bytes_and_another_seed_other_paths():
    one, two, three = (MacroScenarioGenerator(random_seed=s).generate_paths("severe", 3) for s in (5, 5, 6))
    assert one.tobytes() == two.tobytes()
    assert not np.isclose(one, three).any(axis=(1, 2)).all()


def test_a_path_depends_neither_on_how_many_there_are_nor_on_later_months(generator, paths):
    few = generator.generate_paths("severe", 7)
    assert few.tobytes() == paths["severely_adverse"][:7].tobytes()
    later = generator.generate_paths("severe", 5, first_path=254)
    assert later.tobytes() == paths["severely_adverse"][254:259].tobytes()
    short = MacroScenarioGenerator(n_months=24, random_seed=11).generate_paths("severe", 7)
    np.testing.assert_array_equal(short, few[:, :24])


def test_scenarios_share_their_random_numbers(paths):
    """Before the onset all scenarios are the same; afterwards their noises rank paths alike."""
    np.testing.assert_allclose(paths["baseline"][:, :7], paths["severely_adverse"][:, :7], rtol=1e-9)
    for index in range(9):
        ranks = [
            np.argsort(np.argsort(paths[name][:, 20, index])) for name in ("baseline", "severely_adverse")
        ]
        assert (ranks[0] == ranks[1]).all()


def test_table_keeps_its_contract(generator):
    table = macro_table(generator, "severe", 3)
    assert table["scenario"].unique().to_list() == ["severely_adverse"]
    assert table.shape == (180, 12)
    path = table.filter(pl.col("macro_path_id") == 2).select(MACRO_NAMES).to_numpy()
    np.testing.assert_array_equal(path, generator.generate_paths("severe", 3)[2])
    with pytest.raises(ConfigError, match="not macro paths"):
        paths_table(np.zeros((2, 3)), "x", generator.start_date)


def test_one_scenario_frame(generator):
    frame = generator.generate_scenario("adverse")
    assert frame.columns == ["month", *MACRO_NAMES]
    assert [str(frame["month"][i]) for i in (0, 59)] == ["2024-01-01", "2028-12-01"]


def test_paths_start_where_history_ends():
    initial = dict(zip(MACRO_NAMES, BASE_MEAN + 1.5 * BASE_SD, strict=True))
    initial["policy_rate"] = 0.0  # on its bound
    generator = MacroScenarioGenerator(n_months=240, random_seed=3, initial=initial)
    mean, sd = generator.mean_path("baseline"), generator.sd_path("baseline")
    months = np.arange(1, 241)[:, None]
    gap = np.array(list(initial.values())) - BASE_MEAN
    np.testing.assert_allclose(mean, BASE_MEAN + gap * PERSISTENCE**months, rtol=1e-9)
    free = [i for i in range(9) if i != series("policy_rate")]
    one_shock = BASE_SD * np.sqrt(1 - PERSISTENCE**2)
    np.testing.assert_allclose(sd[0, free], one_shock[free], rtol=1e-6)
    assert sd[0, series("policy_rate")] <= 0.75 * mean[0, series("policy_rate")] + 1e-12
    np.testing.assert_allclose(sd[-1], BASE_SD, rtol=1e-2)
    paths = generator.generate_paths("baseline", 2_000)
    z = (paths.mean(axis=0) - mean) / (sd / np.sqrt(2_000))
    assert np.abs(z).max() < Z_LIMIT


def test_pinned_values_are_hit_and_bend_the_rest():
    definition = ScenarioDefinition(
        name="pinned", pins={"gdp_growth_yoy": {12: -0.005}, "unemployment_rate": {24: 0.065}}
    )
    generator = MacroScenarioGenerator(random_seed=2)
    paths = generator.generate_paths(definition, 2_000)
    np.testing.assert_allclose(paths[:, 12, series("gdp_growth_yoy")], -0.005, rtol=1e-9)
    np.testing.assert_allclose(paths[:, 24, series("unemployment_rate")], 0.065, rtol=1e-9)
    mean, sd = generator.mean_path(definition), generator.sd_path(definition)
    assert sd[12, series("gdp_growth_yoy")] == pytest.approx(0, abs=1e-6)
    z = (paths.mean(axis=0) - mean) / np.maximum(sd / np.sqrt(2_000), 1e-12)
    assert np.abs(np.where(sd > 1e-6, z, 0)).max() < Z_LIMIT
    # gross product falls: spreads up with it, equity down, at the same month
    assert mean[12, series("credit_spread_hy")] > 420
    assert mean[12, series("equity_return")] < 0.05
    assert generator.pin_distance(definition) > 2.5**2


def test_pinning_agrees_with_rejection():
    """Conditional law by formula against paths of the unconditional law that happen to pass near the pin."""
    generator = MacroScenarioGenerator(n_months=24, random_seed=4)
    paths = generator.generate_paths("baseline", 60_000)
    gdp, spread = series("gdp_growth_yoy"), series("credit_spread_ig")
    chosen = paths[np.abs(paths[:, 10, gdp] - 0.008) < 0.0004]
    definition = ScenarioDefinition(name="p", pins={"gdp_growth_yoy": {10: 0.008}})
    mean, sd = generator.mean_path(definition), generator.sd_path(definition)
    for month in (9, 10, 11, 13):
        error = sd[month, spread] / np.sqrt(len(chosen))
        assert abs(chosen[:, month, spread].mean() - mean[month, spread]) < 4 * error + 0.2


def test_supplied_path_is_the_mean_and_then_goes_back():
    definition = ScenarioDefinition(name="rates", path={"policy_rate": tuple(np.linspace(0.03, 0.08, 12))})
    generator = MacroScenarioGenerator()
    mean = generator.mean_path(definition)
    np.testing.assert_allclose(mean[:12, series("policy_rate")], np.linspace(0.03, 0.08, 12), rtol=1e-9)
    assert mean[12, series("policy_rate")] == pytest.approx(0.03 + 0.98 * 0.05)
    assert mean[11, series("yield_10y")] == pytest.approx(0.035 + 0.4 * 0.05)  # the rule answers


def test_noise_scale_zero_is_the_mean_path():
    definition = ScenarioDefinition(
        name="still", noise_scale=0, shifts={"gdp_growth_yoy": Shift(kind="add", peak=-0.03)}
    )
    generator = MacroScenarioGenerator()
    paths = generator.generate_paths(definition, 3)
    np.testing.assert_allclose(paths, np.tile(generator.mean_path(definition), (3, 1, 1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_months": 0}, "n_months"),
        ({"n_months": 6.5}, "n_months"),
        ({"random_seed": "x"}, "random_seed"),
        ({"assumptions": "nobody's"}, "no such assumption set"),
        ({"initial": {"policy_rate": 0.03}}, "nine series"),
        ({"initial": BASE_MEAN * 100}, "out of bounds"),
        ({"initial": np.full(9, np.nan)}, "out of bounds"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MacroScenarioGenerator(**arguments)


def test_bad_requests(generator):
    with pytest.raises(ConfigError, match="not a standard scenario"):
        generator.generate_paths("boom", 2)
    with pytest.raises(ConfigError, match="n_paths"):
        generator.generate_paths("baseline", 0)
    with pytest.raises(ConfigError, match="beyond the last month"):
        generator.generate_paths(ScenarioDefinition(name="x", pins={"policy_rate": {60: 0.01}}), 2)
