"""Training the macro VAE: it recovers a known law, falls back where it must, and reads the table."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import DataError, ModelError
from pc_pipeline.core.periods import month_range
from pc_pipeline.core.rng import stream
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO
from pc_pipeline.training.macro_start import warm_start
from pc_pipeline.training.macro_vae import (
    MacroVAETrainer,
    history_windows,
    read_paths,
    split_by_path,
)

MONTHS = 18
SMALL = MacroVAEConfig(seq_length=MONTHS, hidden_dim=8, n_layers=1, decoder_dim=8, latent_dim=12)
LOWER = np.array([s.lower for s in MACRO_SERIES])
UPPER = np.array([s.upper for s in MACRO_SERIES])
PERSISTENCE = np.array([s.persistence for s in MACRO_SERIES])
MIX = np.tril(np.full((N_MACRO, N_MACRO), 0.25)) + 0.75 * np.eye(N_MACRO)
MIX /= np.linalg.norm(MIX, axis=1, keepdims=True)


def known_paths(n_paths: int, scenario: int, name: str = "train") -> np.ndarray:
    """(N, T, 9) stationary AR(1) normals with correlated shocks, bent into the bounds; scenario 1 dips."""
    rng = stream(0, "test", name, scenario)
    shocks = rng.standard_normal((n_paths, MONTHS, N_MACRO)) @ MIX.T
    u = np.empty_like(shocks)
    u[:, 0] = shocks[:, 0]
    for t in range(1, MONTHS):
        u[:, t] = PERSISTENCE * u[:, t - 1] + np.sqrt(1 - PERSISTENCE**2) * shocks[:, t]
    dip = scenario * np.sin(np.linspace(0, np.pi, MONTHS))
    return LOWER + (UPPER - LOWER) / (1 + np.exp(0.5 + dip[:, None] - 0.4 * u))


def known_table(n_paths: int) -> tuple[torch.Tensor, torch.Tensor]:
    paths = np.concatenate([known_paths(n_paths, code) for code in (0, 1)])
    return torch.tensor(paths, dtype=torch.float32), torch.arange(2).repeat_interleave(n_paths)


def fresh(seed: int = 0, config: MacroVAEConfig = SMALL) -> MacroVAE:
    torch.manual_seed(seed)
    return MacroVAE(config)


def test_the_start_recovers_the_dynamics_within_its_errors() -> None:
    model = fresh()
    paths, labels = known_table(1500)
    assert warm_start(model, paths, labels) == []
    phi = model.phi_MM.detach().numpy()
    error = np.sqrt((1 - PERSISTENCE**2) / (3000 * (MONTHS - 1)) * 9)  # 9: correlated regressors
    assert (np.abs(phi - np.diag(PERSISTENCE)) < 6 * error[:, None] + 0.01).all()
    assert model.is_trained_S.tolist() == [True, True, False, False]
    centre, sigma = model.centre_and_scale(torch.tensor([1]), MONTHS)
    opened = (centre * model.scale_M + model.shift_M)[0].detach().numpy()
    wanted = -0.5 - np.sin(np.linspace(0, np.pi, MONTHS))[:, None]
    assert np.abs(opened - wanted).max() < 5 * 0.4 / np.sqrt(1500)
    assert np.abs((sigma * model.scale_M).detach().numpy() / 0.4 - 1).max() < 6 / np.sqrt(2 * 1500)


def test_trained_paths_have_the_moments_of_the_data() -> None:
    """Means, sds, lag-1 autocorrelation and shock correlation of generated paths against fresh truth."""
    model = fresh()
    paths, labels = known_table(400)
    history = MacroVAETrainer(model).fit(paths, labels, epochs=2, batch_size=128)
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["notes"] == []
    for code in (0, 1):
        truth = known_paths(4000, code, "test")
        drawn = model.generate(code, MONTHS, 4000).double().numpy()
        spread = truth.std(0)
        assert np.abs((drawn.mean(0) - truth.mean(0)) / spread).max() < 5 / np.sqrt(400)
        assert np.abs(drawn.std(0) / spread - 1).max() < 5 / np.sqrt(2 * 400) + 0.02
        for sample in (truth, drawn):
            sample -= sample.mean(0)
        lag = [(x[:, 1:] * x[:, :-1]).sum((0, 1)) / (x[:, :-1] ** 2).sum((0, 1)) for x in (truth, drawn)]
        assert np.abs(lag[0] - lag[1]).max() < 0.03
        levels = [np.corrcoef(x.reshape(-1, N_MACRO).T) for x in (truth, drawn)]
        assert np.abs(levels[0] - levels[1]).max() < 0.08
    with pytest.raises(ModelError, match="no path of this scenario"):
        model.generate("stagflation", MONTHS, 1)


def test_the_encoder_closes_the_gap_and_the_latent_is_used() -> None:
    model = fresh()
    paths, labels = known_table(200)
    history = MacroVAETrainer(model, lr=1e-2).fit(paths, labels, epochs=10, batch_size=64)
    per_latent = history["kl"] * MONTHS * N_MACRO / SMALL.latent_dim
    assert per_latent > 0.5  # nats; the true posterior has -log sqrt(1 - rho^2) = 1.16
    assert history["gap"] < 0.1


def test_training_twice_gives_the_same_bits_and_resumes_to_them(tmp_path: Path) -> None:
    paths, labels = known_table(40)

    class Killed(Exception):
        pass

    def die(record: dict) -> None:
        if record["epoch"] == 2:
            raise Killed

    def train(**options: object) -> MacroVAE:
        model = fresh()
        MacroVAETrainer(model).fit(paths, labels, epochs=4, batch_size=16, **options)
        return model

    whole = train()
    file = tmp_path / "resume.safetensors"
    with pytest.raises(Killed):
        train(resume=file, on_epoch=die)
    for other in (train(), train(resume=file)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_one_path_per_scenario_falls_back_to_decided_dispersion_and_says_so() -> None:
    """The seed tutorial trains on three paths; what comes out must still spread like macro data."""
    model = fresh()
    paths = torch.tensor(np.concatenate([known_paths(1, code) for code in (0, 1, 0)]), dtype=torch.float32)
    history = MacroVAETrainer(model).fit(paths, torch.tensor([0, 1, 2]), epochs=2)
    assert "decided" in history["notes"][0]
    drawn = model.generate(0, MONTHS, 2000)
    spread = drawn[:, MONTHS // 2].std(0)
    decided = torch.tensor([s.sd for s in MACRO_SERIES])
    assert bool(((spread / decided > 0.6) & (spread / decided < 1.7)).all())


def test_a_constant_series_trains_to_a_finite_model() -> None:
    model = fresh()
    paths, labels = known_table(20)
    paths[:, :, 3] = 0.03
    MacroVAETrainer(model).fit(paths, labels, epochs=1)
    drawn = model.generate(0, MONTHS, 50)
    assert bool(torch.isfinite(drawn).all())
    assert float((drawn[:, :, 3] - 0.03).abs().max()) < 0.01


def _frame(n_paths: int = 3) -> pl.DataFrame:
    months = month_range(date(2024, 1, 1), MONTHS)
    parts = []
    for code, name in enumerate(("baseline", "severe")):
        for k, path in enumerate(known_paths(n_paths, code)):
            columns = {m: path[:, i] for i, m in enumerate(MACRO_NAMES)}
            parts.append(
                pl.DataFrame(
                    {"scenario": [name] * MONTHS, "macro_path_id": [k] * MONTHS, "month": months} | columns
                )
            )
    return pl.concat(parts)


def test_the_table_is_read_in_any_row_order_polars_or_pandas() -> None:
    frame = _frame()
    paths, labels = read_paths(frame.sample(fraction=1.0, shuffle=True, seed=1), fresh())
    assert labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert np.allclose(paths[:3].numpy(), known_paths(3, 0).astype("f4"))
    again, _ = read_paths(frame.to_pandas(), fresh())
    assert torch.equal(paths, again)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: f.drop("policy_rate"), DataError, "lack columns"),
        (lambda f: f.slice(1), DataError, "differ in length"),
        (lambda f: f.with_columns(policy_rate=pl.lit(None, pl.Float64)), DataError, "missing values"),
        (lambda f: f.with_columns(scenario="no_" + pl.col("scenario")), ModelError, "unknown scenario"),
        (lambda f: f.filter(pl.col("month") < date(2025, 1, 1)), ModelError, "another length"),
    ],
)
def test_tables_that_do_not_fit_say_why(spoil, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        MacroVAETrainer(fresh()).fit(spoil(_frame()), epochs=1)


def test_labels_that_do_not_fit_say_why() -> None:
    paths, labels = known_table(10)
    for wrong in (None, labels[:-1], labels + 3, labels - 1):
        with pytest.raises(ModelError):
            MacroVAETrainer(fresh()).fit(paths, wrong, epochs=1)


def test_the_split_takes_the_same_share_of_each_scenario() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3)
    train, held = split_by_path(labels, 0.25, seed=0)
    assert sorted(torch.cat([train, held]).tolist()) == list(range(63))
    assert torch.bincount(labels[held]).tolist() == [10, 5]


def test_windows_of_a_history() -> None:
    path = np.arange(30 * N_MACRO, dtype=float).reshape(30, N_MACRO)
    windows = history_windows(path, 24, stride=3)
    assert windows.shape == (3, 24, N_MACRO)
    assert np.allclose(windows[1].numpy(), path[3:27])
    with pytest.raises(DataError):
        history_windows(path, 31)
