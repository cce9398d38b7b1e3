"""Real macro history: figures a person can look up, units, bounds, and what is refused."""

from __future__ import annotations

import contextlib
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError, IngestError
from pc_pipeline.scenarios.calibration import calibrate
from pc_pipeline.scenarios.fed_files import read_fed_file
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.scenarios.history import history_from_frame, load_history
from pc_pipeline.scenarios.quarterly import level_from_growth, parse_quarter, to_months, year_on_year
from pc_pipeline.scenarios.supervisory import load_supervisory
from pc_pipeline.schemas.units import MACRO_NAMES
from pc_pipeline_tests.shared_data import shared_path

# Header of the supervisory files of other years; the figures are made up.
OLD_HEADER = (
    '"Scenario Name","Date","Real GDP growth","Nominal GDP growth","Unemployment rate","CPI inflation rate",'
    '"3-month Treasury yield","10-year Treasury yield","BBB corporate yield",'
    '"Dow Jones Total Stock Market Index","House Price Index","Market Volatility Index (VIX)"'
)


def test_quarters_in_every_spelling():
    spellings = ("1976 Q2", "1976Q2", "1976:Q2", "1976-Q2", "Q2 1976", "Q2-1976", "2Q1976", "1976 q2")
    spellings += ("1976-06-30", "6/30/1976", "06/30/1976")
    assert {parse_quarter(text) for text in spellings} == {date(1976, 4, 1)}
    with pytest.raises(IngestError, match="not a quarter"):
        parse_quarter("1976 Q5")
    with pytest.raises(IngestError, match="not a quarter"):
        parse_quarter("1976-05-31")  # no end of a quarter


def test_quarters_to_months_worked_example():
    months, values = to_months([date(2020, 1, 1), date(2020, 4, 1)], np.array([1.0, 4.0]))
    assert months == [date(2020, m, 1) for m in range(1, 7)]
    assert values.tolist() == [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]
    _, at_end = to_months([date(2020, 1, 1), date(2020, 4, 1)], np.array([1.0, 4.0]), at_end=True)
    assert at_end.tolist() == [1.0, 1.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(IngestError, match="do not follow"):
        to_months([date(2020, 1, 1), date(2020, 7, 1)], np.array([1.0, 4.0]))


def test_growth_worked_example():
    """Four quarters at 2 % annualised are 2 % over the year."""
    level = level_from_growth(np.full(8, 2.0))
    assert year_on_year(level, 4)[4:] == pytest.approx([0.02] * 4)
    assert np.isnan(year_on_year(level, 4)[:4]).all()


def test_fred_says_what_is_known():
    history = load_history(shared_path("data/macro_fred"))
    frame = history.frame
    first, last = history.coverage
    assert first <= date(2007, 1, 1)
    assert last == date(2023, 9, 1)
    row = frame.row(by_predicate=pl.col("month") == date(2020, 4, 1), named=True)
    assert row["unemployment_rate"] == pytest.approx(0.147)
    assert frame["policy_rate"][-1] == pytest.approx(0.0533)
    crisis = frame.row(by_predicate=pl.col("month") == date(2008, 11, 1), named=True)
    assert crisis["credit_spread_ig"] == pytest.approx(480, abs=10)
    assert crisis["equity_return"] < -0.3
    assert history.table().height == frame.height
    assert history.window("2015-01-01", 60).height == 60
    assert set(history.rules) == set(MACRO_NAMES)


def test_fred_alone_cannot_give_equity(tmp_path):
    for name in ("fred_md.parquet", "fred_qd.parquet"):
        (tmp_path / "alone").mkdir(exist_ok=True)
        (tmp_path / "alone" / name).symlink_to(shared_path(f"data/macro_fred/{name}"))
    with pytest.raises(IngestError, match="no equity_return"):
        load_history(tmp_path / "alone")
    completed = load_history(tmp_path / "alone", complete_with=shared_path("data/macro_fed_scenarios"))
    assert "equity_return" in completed.frame.columns


def published_panels(folder):
    """The panels as the St. Louis Fed publishes them: CSV, rows of codes, US dates; with a stock index."""
    folder.mkdir()
    fred = shared_path("data/macro_fred")
    for name, codes in (("fred_md", ["Transform:"]), ("fred_qd", ["factors", "transform"])):
        frame = pl.read_parquet(fred / f"{name}.parquet")
        if name == "fred_md":
            frame = frame.with_columns(pl.Series("S&P 500", 100 * 1.005 ** np.arange(frame.height)))
        dates = frame["date"].dt.strftime("%-m/%-d/%Y").alias("sasdate")
        body = frame.select(dates, pl.exclude("date")).write_csv().splitlines()
        width = len(frame.columns) - 1
        rows = [body[0], *(code + ",5" * width for code in codes), *body[1:], "," * width]
        (folder / f"{name}_2023-10.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_panels_as_published(tmp_path):
    history = load_history(published_panels(tmp_path / "csv"), complete_with=None)
    assert "completed" not in history.source
    assert history.clipped["policy_rate"] == 13  # above 15 % in 1980-81
    assert history.frame["equity_return"].to_numpy() == pytest.approx(1.005**12 - 1)
    completed = load_history(shared_path("data/macro_fred"))
    both = history.frame.join(completed.frame, on="month", suffix="_fed")
    for name in ("gdp_growth_yoy", "unemployment_rate", "inflation_rate", "policy_rate", "yield_10y"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_fed"].to_numpy())
    # Baa of long maturities stands in for the BBB spread, deflated prices made nominal for house prices
    for name, least in (("credit_spread_ig", 0.85), ("property_price_index", 0.85)):
        assert np.corrcoef(both[name], both[f"{name}_fed"])[0, 1] > least


def test_both_sources_tell_the_same_story():
    fred = load_history(shared_path("data/macro_fred")).frame
    fed = load_history(shared_path("data/macro_fed_scenarios")).frame
    both = fred.join(fed, on="month", suffix="_fed")
    for name, limit in (("gdp_growth_yoy", 0.006), ("yield_10y", 0.003), ("policy_rate", 0.004)):
        gap = (both[name] - both[f"{name}_fed"]).to_numpy()
        assert np.sqrt((gap**2).mean()) < limit
    single = load_history(
        shared_path("data/macro_fed_scenarios") / "2025-Table_1A_Historic_Domestic.csv"
    ).frame
    assert single.equals(fed)


def old_file(tmp_path, name="Actual", rows=60):
    lines = [OLD_HEADER]
    for i in range(rows):
        quarter, year = i % 4 + 1, 1999 + i // 4
        levels = f"{1000 * 1.02**i:.4f},{100 * 1.045 ** (i / 4):.6f}"
        lines.append(f'"{name}","Q{quarter} {year}",2.0,4.0,5.0,2.0,3.0,3.5,5.0,{levels},20')
    file = tmp_path / "old.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_headers_of_other_years(tmp_path):
    history = load_history(old_file(tmp_path))
    row = history.last_values()
    assert row["gdp_growth_yoy"] == pytest.approx(0.02)
    assert row["credit_spread_ig"] == pytest.approx(0.8 * 150)
    assert row["credit_spread_hy"] == pytest.approx(3.5 * 120)
    assert row["property_price_index"] == pytest.approx(100, abs=0.5)  # its trend; held for the last month
    assert row["equity_return"] == pytest.approx(1.02**4 - 1)


# Headers in the styles of several years, the last with further liberties; the figures are made up.
YEAR_STYLES = {
    "obs, national": (
        "Obs|Real GDP growth|Nominal GDP growth|Unemployment rate|CPI inflation rate|3-month Treasury yield"
        "|10-year Treasury yield|BBB corporate yield|Mortgage rate|Dow Jones Total Stock Market Index"
        "|National House Price Index|Commercial Real Estate Price Index|Market Volatility Index (VIX)",
        "Q{quarter} {year}",
    ),
    "levels": (
        "Date|Real GDP growth|Nominal GDP growth|Unemployment rate|CPI inflation rate|3-month Treasury rate"
        "|10-year Treasury yield|BBB corporate yield|Mortgage rate"
        "|Dow Jones Total Stock Market Index (Level)|House Price Index (Level)"
        "|Commercial Real Estate Price Index (Level)|Market Volatility Index (Level)",
        "{year} Q{quarter}",
    ),
    "rates spelled out": (
        "DATE|Real GDP growth rate (percent)|Nominal GDP growth rate|U.S. unemployment rate"
        "|CPI inflation|3-Month Treasury Rate|10-Year Treasury Yield|BBB Corporate Yield|Mortgage Rate"
        "|Dow Jones Total Stock Market Index (level)|House price index (level)"
        "|Commercial real estate price index (level)|Market Volatility Index (VIX)",
        "{year}Q{quarter}",
    ),
}


def year_file(folder, style, name, first, quarters, has_name=True):
    """A domestic table: growth and prices 2 % a year, unemployment 5 %, BBB 150 bps over the 10-year."""
    header, when = YEAR_STYLES[style]
    columns = header.split("|")
    lines = [",".join((["Scenario Name"] if has_name else []) + columns)]
    for i in range(quarters):
        at = first + i
        told = when.format(quarter=at % 4 + 1, year=at // 4)
        age = at - 4 * 1999
        levels = f"{1000 * 1.02**age:.4f},{100 * 1.045 ** (age / 4):.6f},100,20"
        lines.append((f"{name}," if has_name else "") + f"{told},2.0,4.0,5.0,2.0,3.0,3.5,5.0,4.5,{levels}")
    lines += ["," * (len(columns) - 1 + has_name), '"Note: made up, for tests."']
    place = folder / f"{name}.csv"
    place.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


@pytest.mark.parametrize("style", YEAR_STYLES)
@pytest.mark.parametrize("has_name", [True, False], ids=["named", "by file name"])
def test_supervisory_files_of_any_year(tmp_path, style, has_name):
    year_file(tmp_path, style, "2014-Table_1A_Historic_Domestic", 4 * 1999, 60, has_name)
    year_file(tmp_path, style, "2014-Table_3A_Supervisory_Severely_Adverse_Domestic", 4 * 2014, 13, has_name)
    history = load_history(tmp_path)
    assert history.frame["month"].max() == date(2013, 12, 1)
    last = history.last_values()
    assert last["gdp_growth_yoy"] == pytest.approx(0.02)
    assert last["inflation_rate"] == pytest.approx(0.02)
    assert last["unemployment_rate"] == pytest.approx(0.05)
    assert (last["policy_rate"], last["yield_10y"]) == (pytest.approx(0.03), pytest.approx(0.035))
    assert last["credit_spread_ig"] == pytest.approx(0.8 * 150)
    assert last["equity_return"] == pytest.approx(1.02**4 - 1)
    (projection,) = load_supervisory(tmp_path)
    assert projection.name == "fed_2014_severely_adverse"
    assert len(projection.path["gdp_growth_yoy"]) == 39


def test_changes_of_an_index_are_not_its_level(tmp_path):
    file = old_file(tmp_path)
    file.write_text(file.read_text().replace("House Price Index", "House Price Index YoY % change"))
    with pytest.raises(IngestError, match="house_prices"):
        read_fed_file(file)


def test_a_projection_is_no_history(tmp_path):
    with pytest.raises(IngestError, match="no historic table"):
        load_history(old_file(tmp_path, name="Supervisory Baseline"))


def test_damaged_fed_file_names_its_place(tmp_path):
    file = old_file(tmp_path)
    file.write_text(file.read_text().replace('"Q3 2005",2.0', '"Q3 2005",two'))
    with pytest.raises(IngestError, match="Real GDP growth"):
        load_history(file)
    file.write_text(OLD_HEADER.replace('"BBB corporate yield",', "") + "\n")
    with pytest.raises(IngestError, match="bbb_yield"):
        read_fed_file(file)


def user_frame(n_months=24):
    generator = MacroScenarioGenerator(n_months=n_months, start_date="2015-01-01")
    return generator.generate_scenario("baseline")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_user_file_round_trip(tmp_path, suffix):
    frame, file = user_frame(), tmp_path / f"mine{suffix}"
    frame.write_csv(file) if suffix == ".csv" else frame.write_parquet(file)
    history = load_history(file)
    assert history.frame.equals(frame)
    assert history.clipped == {}


def test_pandas_frame_is_as_good():
    frame = user_frame()
    pandas_frame = pd.DataFrame({name: frame[name].to_list() for name in frame.columns})
    pandas_frame["month"] = pd.to_datetime(pandas_frame["month"])
    assert history_from_frame(pandas_frame).frame.equals(frame)


def test_values_beyond_bounds_are_clipped_and_counted():
    frame = user_frame().with_columns(
        policy_rate=pl.when(pl.int_range(pl.len()) < 3).then(0.19).otherwise(pl.col("policy_rate"))
    )
    history = history_from_frame(frame)
    assert history.clipped == {"policy_rate": 3}
    assert history.frame["policy_rate"][:3].to_list() == [0.15] * 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.with_columns(pl.col("unemployment_rate") * 100), "other units"),
        (lambda f: f.drop("equity_return"), "no equity_return"),
        (lambda f: f.filter(pl.int_range(pl.len()) != 5), "do not follow"),
        (lambda f: pl.concat([f, f[-1:]]), "do not follow"),
        (lambda f: f.clear(), "do not follow"),
        (lambda f: f.with_columns(gdp_growth_yoy=pl.lit(None, dtype=pl.Float64)), "missing values"),
        (lambda f: f.with_columns(month=pl.lit("soon")), "not a month"),
    ],
)
def test_spoilt_user_tables_are_refused(spoil, message):
    with pytest.raises(DataError, match=message):
        history_from_frame(spoil(user_frame()))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_a_clear_error_or_a_valid_history(tmp_path, seed):
    """Truncation, flipped bytes, other separators and encodings: never anything but our own errors."""
    rng = np.random.default_rng(seed)
    original = old_file(tmp_path).read_bytes()
    damaged = bytearray(original)
    if seed % 4 == 0:
        damaged = damaged[: rng.integers(len(original))]
    elif seed % 4 == 1:
        for place in rng.integers(len(original), size=30):
            damaged[place] = rng.integers(256)
    elif seed % 4 == 2:
        damaged = bytearray(original.replace(b",", [b";", b"\t", b"\0", b"\r"][seed // 4 % 4]))
    else:
        damaged = bytearray(original.decode().encode(["utf-16", "utf-32", "cp500"][seed // 4 % 3]))
    (tmp_path / "old.csv").write_bytes(bytes(damaged))
    for place in (tmp_path / "old.csv", tmp_path):
        with contextlib.suppress(DataError):  # which includes IngestError
            history = load_history(place)
            assert history.table().height == history.frame.height


def test_unknown_places(tmp_path):
    with pytest.raises(IngestError, match="no macro history there"):
        load_history(tmp_path / "nowhere")
    with pytest.raises(IngestError, match="no supervisory scenario files"):
        load_history(tmp_path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(IngestError, match="unknown form"):
        load_history(tmp_path / "x.txt")


def test_months_outside_coverage():
    history = history_from_frame(user_frame())
    with pytest.raises(DataError, match="does not cover"):
        history.window("2016-06-01", 12)


def test_calibration_recovers_the_law_it_was_fed():
    """A long history of the decided law gives its figures back, within time-series standard errors."""
    generator = MacroScenarioGenerator(n_months=1200, start_date="1920-01-01", random_seed=8)
    assumptions = calibrate(history_from_frame(generator.generate_scenario("baseline")))
    truth = generator.assumptions
    inflation = np.sqrt((1 + truth.persistence) / (1 - truth.persistence) / 1200)
    assert (np.abs(assumptions.mean - truth.mean) < 4 * truth.sd * inflation).all()
    assert (
        np.abs(assumptions.persistence - truth.persistence)
        < 4 * np.sqrt((1 - truth.persistence**2) / 1200) + 0.01
    ).all()
    assert np.abs(assumptions.shock_correlation - truth.shock_correlation).max() < 4 / np.sqrt(1200) + 0.02


def test_calibrated_generator_starts_at_the_last_observation():
    history = load_history(shared_path("data/macro_fred"))
    generator = MacroScenarioGenerator(assumptions=calibrate(history), initial=history.last_values())
    last = np.array(list(history.last_values().values()))
    mean, sd = generator.mean_path("baseline"), generator.sd_path("baseline")
    assert (np.abs(mean[0] - last) < sd[0]).all()
    with pytest.raises(DataError, match="too short"):
        calibrate(history_from_frame(user_frame()))
