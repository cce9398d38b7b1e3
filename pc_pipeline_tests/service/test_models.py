"""With networks in the store: simulations, and sequences of a trained cascade."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pc_pipeline.core.store import Store
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator
from pc_pipeline.loans.pool import pool_snapshot, scheduled_pool
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.checkpoint import save_model
from pc_pipeline.models.loan_residual import LoanResidual, LoanResidualConfig
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.service.shelf import SIMULATION_FILES
from pc_pipeline_tests.service.harness import (
    Served,
    borrower_csv,
    generate,
    quick_settings,
    sequences,
    serving,
    upload,
    wait_for,
)

Answer = dict[str, Any]
PORTFOLIO = {"portfolio_id": "tape", "deal": "clo_four_tranche"}
ASKED = {"scenario": "adverse", "n_paths": 50, "n_months": 12, "seed": 4}


def stock_with_networks(folder: Path) -> pl.DataFrame:
    """Untrained networks, a pool and macro paths: what a simulation needs, without its quality."""
    store = Store(folder)
    tape = LoanTapeGenerator(n_loans=60, random_seed=1).generate_static_features()
    store.write_table("pool", pool_snapshot(tape))
    for scenario in ("baseline", "adverse"):
        generator = MacroScenarioGenerator(n_months=24, start_date="2024-01-01", random_seed=1)
        store.write_table("macro_scenarios", macro_table(generator, scenario, 4), scenario)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "macro_vae": MacroVAE(MacroVAEConfig(latent_dim=2, hidden_dim=8, n_layers=1, decoder_dim=8)),
            "transition_transformer": TransitionTransformer(
                TransitionConfig(d_model=8, n_heads=2, n_layers=1)
            ),
            "loan_trajectory": LoanTrajectoryModel(
                TrajectoryConfig(d_model=8, n_heads=2, n_layers=1, diffusion_steps=10)
            ),
            "loan_residual": LoanResidual(LoanResidualConfig(n_months=12, width=4)),
        }
    networks["loan_residual"].third_edges.copy_(torch.tensor([40.0, 60.0]))  # infinite until distilled
    for name, network in networks.items():
        save_model(store.model_folder("joint_model") / name, network, {})
    return tape


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service on a store with networks and a loan tape as portfolio 'tape'."""
    folder = tmp_path_factory.mktemp("stocked") / "data"
    tape = stock_with_networks(folder)
    file = io.BytesIO()
    tape.head(40).write_parquet(file)
    with serving(quick_settings(folder)) as running:
        upload(running.client, "tape", file.getvalue(), "tape.parquet").raise_for_status()
        yield running


def simulate(served: Served, **more: object) -> Answer:
    """Run one to its end."""
    asked = served.client.post("/api/simulations", json=ASKED | more)
    assert asked.status_code == 202, asked.text
    place = asked.headers["location"]
    wait_for(lambda: served.client.get(place).json()["status"] in ("done", "failed"), 60.0)
    return dict(served.client.get(place).json())


@pytest.fixture(scope="module")
def done(stocked: Served) -> Answer:
    """One simulation of the uploaded tape, over."""
    over = simulate(stocked, **PORTFOLIO)
    assert over["status"] == "done", over["problem"]
    return over


def test_a_simulation_of_a_portfolio(stocked: Served, done: Answer) -> None:
    result = done["result"]
    as_of = date.fromisoformat(stocked.client.get("/api/portfolios/tape").json()["as_of"])
    alive = scheduled_pool(pl.read_parquet(stocked.desk.shelf.table_path("tape", "loans")), as_of).height
    assert (result["loans"], result["n_paths"], result["n_months"]) == (alive, 50, 12)
    loss = result["pool_measures"]["expected_loss"]
    assert loss["lower"] <= loss["value"] <= loss["upper"]
    assert len(result["tranches"]) == 4
    assert set(done["files"]) == set(SIMULATION_FILES)
    for name, address in done["files"].items():
        file = stocked.client.get(address)
        assert file.status_code == 200, name
        assert file.content
    cash = pl.read_parquet(io.BytesIO(stocked.client.get(done["files"]["simulations.parquet"]).content))
    assert cash.height == 50 * 12
    assert stocked.client.get(f"/api/jobs/{done['job_id']}").status_code == 200


@pytest.mark.slow
def test_same_seed_same_figures(stocked: Served, done: Answer) -> None:
    assert simulate(stocked, **PORTFOLIO)["result"] == done["result"]


@pytest.mark.slow
def test_the_stores_pool_under_a_scenario_without_stored_paths(stocked: Served) -> None:
    assert stocked.client.get("/models").json()["can_simulate"]
    drawn = simulate(stocked, scenario="stagflation")
    assert drawn["status"] == "done", drawn["problem"]
    assert drawn["result"]["loans"] == 60


def test_files_of_a_simulation_are_its_own(stocked: Served, done: Answer) -> None:
    place = f"/api/simulations/{done['job_id']}/files/"
    for name in ("jobs.sqlite", "..%2f..%2fjobs.sqlite", "report.html%00", "other.csv"):
        assert stocked.client.get(place + name).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"scenario": "boom"}, 404),
        ({"deal": "../../etc/passwd"}, 404),
        ({"deal": "nowhere"}, 404),
        ({"n_paths": 20_001}, 422),
        ({"n_paths": 0}, 422),
        ({"n_months": 361}, 422),
        ({"portfolio_id": "nobody"}, 404),
        ({"portfolio_id": "people"}, 422),
    ],
)
def test_what_cannot_be_simulated_is_said(stocked: Served, body: dict[str, object], status: int) -> None:
    if stocked.client.get("/api/portfolios/people").status_code == 404:
        upload(stocked.client, "people", borrower_csv(3)).raise_for_status()
    assert stocked.client.post("/api/simulations", json=ASKED | body).status_code == status


def test_without_networks_the_answer_says_what_to_do(served: Served) -> None:
    answer = served.client.post("/api/simulations", json=ASKED)
    assert answer.status_code == 409
    assert "make run" in answer.json()["detail"]


def test_a_trained_cascade_takes_over_and_says_so(tmp_path: Path) -> None:
    statuses = [["on_time", "30_days", "on_time"], ["on_time", "on_time", "prepaid"]] * 600
    generator = LSTMCascadeGenerator(hidden_dim=8, num_layers=1, epochs=1, batch_size=256)
    generator.fit(statuses, [{"credit_score": 600 + i % 200} for i in range(len(statuses))])
    assert generator.engine == "LSTM"
    folder = tmp_path / "data"
    generator.save(Store(folder).model_folder("payment_cascade") / "payment_cascade")
    with serving(quick_settings(folder)) as served:
        row = served.client.get("/api/fintech/cascade-probabilities/on_time").json()
        assert row["cascade_model"] == "LSTM"
        assert row["transitions"] == pytest.approx(generator.transition_matrix()["on_time"])
        fallback = served.client.get("/api/fintech/cascade-probabilities/on_time?use_lstm=false").json()
        assert fallback["cascade_model"] == "fallback matrix"
        upload(served.client, "book", borrower_csv(30)).raise_for_status()
        made = generate(served.client, "book", num_months=4).json()
        assert (made["cascade_model"], made["note"]) == ("LSTM", None)
        assert len(sequences(served.client, "book").splitlines()) == 121
        assert served.client.get("/models").json()["cascade_model"] == "LSTM"
