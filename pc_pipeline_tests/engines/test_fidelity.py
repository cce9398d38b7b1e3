"""The fidelity page: sections kept until something changes, forecasts that mean what they say."""

from __future__ import annotations

import dataclasses
import sys
import types
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.periods import month_index
from pc_pipeline.engines.fidelity import run
from pc_pipeline.engines.fidelity.auto_record import COHORT, HALF_YEAR, NETWORK, HalfYear, record_rows
from pc_pipeline.engines.fidelity.backtests import continued_paths, together
from pc_pipeline.engines.fidelity.chain import Chain
from pc_pipeline.engines.fidelity.forecasts import monthly_forecasts, observed_severities
from pc_pipeline.engines.fidelity.portfolio import lived_pools
from pc_pipeline.engines.fidelity.run import Plan, Section, measure_section, page, section_digest
from pc_pipeline.engines.fidelity.table import Request, as_markdown, figure, figures
from pc_pipeline.engines.stages.scoring import ScoringSet
from pc_pipeline.evaluation.backtests import backtest
from pc_pipeline.loans.oracle import oracle_rows
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.recipes import tiny
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.training.watch import kept_training


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    data = tmp_path / "data"
    (data / "some_set").mkdir(parents=True)
    (data / "some_set" / "file.csv").write_text("a\n1\n")
    return Plan(recipes=(tiny(),), data=data, work=tmp_path / "work")


def install(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """A section 'mortgages' that counts its calls."""
    called: list[Request] = []

    def measure(request: Request) -> pl.DataFrame:
        kept = kept_training()
        assert kept is not None
        assert kept.keep_finished
        called.append(request)
        return figures([figure("mortgages", "calls", len(called), goal=">= 1", passed=True)])

    module = types.ModuleType("fake")
    module.measure, module.DATA = measure, ("some_set",)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pc_pipeline.engines.fidelity.mortgages", module)
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: object())
    return called


def test_a_section_is_kept_until_recipe_data_or_code_change(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "code_digest", lambda: "code")
    called = install(monkeypatch)
    assert not measure_section(plan, "mortgages").is_kept
    again = measure_section(plan, "mortgages")
    assert again.is_kept
    assert again.table["value"].to_list() == [1.0]
    assert len(called) == 1
    assert not called[0].scratch.exists()
    measure_section(dataclasses.replace(plan, is_fresh=True), "mortgages")
    measure_section(dataclasses.replace(plan, recipes=(tiny(7),)), "mortgages")
    (plan.data / "some_set" / "file.csv").write_text("a\n2\n")
    measure_section(plan, "mortgages")
    monkeypatch.setattr(run, "code_digest", lambda: "other")
    measure_section(plan, "mortgages")
    assert len(called) == 5


def test_data_that_a_section_does_not_name_do_not_matter(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "code_digest", lambda: "code")
    before = section_digest(plan, "macro", ())
    (plan.data / "some_set" / "file.csv").write_text("changed")
    assert section_digest(plan, "macro", ()) == before


def test_comments_and_docstrings_are_no_code(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text('"""One."""\n\ndef f():\n    """Doc."""\n    return 1\n')
    second.write_text('"""Two."""\n\ndef f():\n    return 1  # why\n')
    third.write_text('"""Two."""\n\ndef f():\n    return 2\n')
    assert run._statements(first) == run._statements(second) != run._statements(third)


def test_the_page_counts_and_shows_every_figure(plan: Plan) -> None:
    rows = [
        figure("macro", "good", 0.5, low=0.4, high=0.6, goal="<= 0.55", passed=True),
        figure("macro", "bad", 12345.0, goal="<= 1", passed=False, note="why"),
        figure("macro", "told", float("nan")),
    ]
    text = page([Section(name="macro", table=figures(rows), seconds=3.0, is_kept=False)], plan, "machine")
    assert "| Macro VAE | 3 | 1 | 1 | 3 s |" in text
    assert "| good | 0.5 | 0.4 .. 0.6 | <= 0.55 | pass |  |" in text
    assert "| bad | 12,345 |  | <= 1 | **miss** | why |" in text
    assert "| told | - |" in as_markdown(figures(rows))


def test_rows_that_break_the_contract_and_unknown_sections_are_refused(plan: Plan) -> None:
    with pytest.raises(DataError, match="twice"):
        figures([figure("a", "x", 1.0), figure("a", "x", 2.0)])
    with pytest.raises(DataError, match="columns"):
        figures([figure("a", "x", 1.0) | {"more": 1}])
    with pytest.raises(ConfigError, match="section"):
        dataclasses.replace(plan, only=("weather",))


def world(seed: int) -> tuple[LoanBook, pl.DataFrame]:
    macro = macro_table(MacroScenarioGenerator(36, random_seed=seed), "severely_adverse", 6)
    return LoanTapeGenerator(n_loans=600, n_months=36, random_seed=seed).generate_scenario(macro), macro


def test_the_true_law_passes_its_backtest_and_half_its_default_rates_fail() -> None:
    book, macro = world(5)
    judged = prepare_trajectories(book.panel, book.loans, macro)
    found = oracle_rows(book.panel, book.loans, macro)
    keys = ["scenario", "macro_path_id", "loan_id"]
    placed = found.keys.with_row_index("row").join(judged.keys.select(keys).with_row_index("h"), on=keys)
    chances = found.probabilities[placed.sort("h", "reporting_month")["row"].to_numpy()]
    severities = observed_severities(judged)
    (counts, draws), (losses, loss_draws) = monthly_forecasts(judged, chances, severities, 0)
    assert counts.shape == draws.shape[:2] == (6, 23)
    assert counts.sum() > 15
    assert backtest(counts, draws, (0.95,))["passed"].all()
    assert abs(losses.sum() / loss_draws.mean(-1).sum() - 1) < 4 / np.sqrt(counts.sum())
    (_, few), _ = monthly_forecasts(judged, chances * 0.3, severities, 0)
    assert not backtest(counts, few, (0.95,))["passed"].all()


def test_a_path_goes_on_from_where_it_stands() -> None:
    torch.manual_seed(0)
    vae = MacroVAE(
        MacroVAEConfig(seq_length=24, latent_dim=4, hidden_dim=8, n_layers=1, decoder_dim=8)
    ).eval()
    path = vae.generate("adverse", 24, 1, seed=3)[0].double().numpy()
    ahead = continued_paths(vae, path, "adverse", 12, 6, seed=1)
    assert ahead.shape == (400, 6, 9)
    assert ahead[:, 0, 0].std() > 0
    again = continued_paths(vae, path, "adverse", 12, 6, seed=1)
    assert np.array_equal(ahead, again)
    # Its innovations are the path: kept up to the origin, the months before it come back.
    with torch.no_grad():
        past, _ = vae.innovations(torch.from_numpy(path[None]).float(), torch.tensor([1]))
        back = vae.to_units(vae.roll(past, torch.tensor([1])))[0].double().numpy()
    assert np.allclose(back, path, atol=1e-3 * np.abs(path).max(0))


def test_later_vintages_are_neither_in_the_pool_nor_in_its_losses() -> None:
    """Two years of vintages, judged after one: half the loans have not come in, and lose nothing here."""
    macro = macro_table(
        MacroScenarioGenerator(40, start_date="2020-01-01", random_seed=2), "severely_adverse", 2
    )
    tape = LoanTapeGenerator(n_loans=400, n_months=40, n_vintages=24, start_date="2020-01-01", random_seed=2)
    book = tape.generate_scenario(macro)
    test = ScoringSet(panel=book.panel, loans=book.loans, macro=macro)
    blank = pl.DataFrame()
    chain = Chain(
        macro=macro,
        tape=book.loans,
        panel=book.panel,
        pool=blank,
        components={},
        models={},
        test=test,
        recipe=tiny(),
    )
    pools = lived_pools(chain, 12)
    assert len(pools) == 2
    everyone = float(book.panel["loss_amount"].sum())
    early = book.loans.filter(pl.col("vintage_month") <= pl.date(2020, 12, 1))["loan_id"]
    losses = book.panel.filter(
        pl.col("loan_id").is_in(early.to_list()) & (pl.col("reporting_month") > pl.date(2020, 12, 1))
    )
    unpaid = losses.filter(
        pl.col("reporting_month") == losses["reporting_month"].max(), pl.col("loan_state") == 3
    )
    assert sum(pool.pool.height for pool in pools) < 0.6 * book.loans.height
    realised = sum(pool.realised for pool in pools)
    assert float(losses["loss_amount"].sum()) <= realised < 0.8 * everyone
    assert realised <= float(losses["loss_amount"].sum()) + float(unpaid["outstanding_balance"].sum())


def test_a_record_of_half_years_takes_the_level_that_was_right_and_widens_the_law() -> None:
    """A network twice too high, a cohort that is right, months that stray together by a fifth."""
    random = np.random.default_rng(0)
    origins = [date(year, month, 1) for year in (2018, 2019) for month in (6, 12)]
    parts = [made_half_year(random, origin) for origin in origins]
    rows = {row["figure"]: row for row in record_rows(parts, seed=1)}
    ratio = rows["real auto, expected / realised 30dpd"]
    assert 0.8 < ratio["value"] < 1.25
    assert ratio["low"] < 1 < ratio["high"]
    note = rows["real auto, 2019-12, expected / realised 30dpd"]["note"]
    assert "level of the cohort" in note
    assert rows["real auto, monthly 30dpd, VaR: uniform transform, p-value"]["value"] > 0.01


def made_half_year(random: np.random.Generator, origin: date) -> HalfYear:
    """400 loans that miss with 10 % a month, times a shock of the month; nothing defaults but by 1 %."""
    n_loans, months = 400, HALF_YEAR
    shock = np.exp(0.2 * random.normal(size=months))
    draw = random.random((n_loans, months))
    states = np.where(draw < 0.1 * shock, 1, np.where(draw > 0.99, 4, 0)).astype(np.int8)
    first = month_index(origin) + 1
    judged = types.SimpleNamespace(
        mask=np.ones((n_loans, months), dtype=bool),
        start_month=np.full(n_loans, first),
        states=states,
        initial_balance=np.full(n_loans, 100.0),
        balances=np.full((n_loans, months), 100.0),
        losses=np.where(states == 4, 50.0, 0.0),
        features=np.tile(np.eye(24)[0], (n_loans, 1)),
        loan_row=np.arange(n_loans),
    )
    right = np.tile([0.89, 0.1, 0.0, 0.0, 0.01, 0.0, 0.0], (n_loans * months, 1))
    high = np.tile([0.79, 0.2, 0.0, 0.0, 0.01, 0.0, 0.0], (n_loans * months, 1))
    return HalfYear(
        origin=origin,
        judged=judged,  # type: ignore[arg-type]
        ahead=np.ones(n_loans * months, dtype=bool),
        chances={NETWORK: high, COHORT: right},
        happened=states.ravel().astype(np.int64),
        from_state=np.zeros(n_loans * months, dtype=np.int64),
        month=np.tile(first + np.arange(months), n_loans),
        severities=[np.array([0.5])] * 4,
    )


def test_all_tests_together_are_judged_by_holm() -> None:
    rows = [figure("backtests", f"{name}, p-value", p) for name, p in (("a", 0.02), ("b", 0.5), ("c", 0.9))]
    (row,) = together([*rows, figure("backtests", "a ratio", 0.001)])
    assert row["value"] == pytest.approx(0.06)
    assert row["passed"]
    assert "3 tests, 1 below 0.05" in row["note"]
    assert together([]) == []
