"""Counts become tensors as stated, and training finds a macro effect that was put there."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_range, parse_month
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.transitions import (
    TransitionTrainer,
    log_loss,
    negative_log_likelihood,
    path_groups,
    split,
    stated_macro_effect,
    transition_data,
)

MONTHS = 12
START = parse_month("2024-01")
ONE_THREAD = TrainConfig(n_threads=1)
SIZE = TransitionConfig(d_model=8, n_heads=2, n_layers=1, dropout=0.0)


def macro(n_paths: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frames = []
    for path in range(n_paths):
        z = rng.standard_normal((MONTHS, 9)).cumsum(0) * 0.4
        columns = {
            series.name: np.clip(series.mean + series.sd * z[:, m], series.lower, series.upper)
            for m, series in enumerate(MACRO_SERIES)
        }
        frames.append(
            pl.DataFrame({"month": month_range(START, MONTHS), **columns}).with_columns(
                scenario=pl.lit("baseline"), macro_path_id=pl.lit(path, dtype=pl.Int64)
            )
        )
    return pl.concat(frames)


def cohorts() -> pl.DataFrame:
    return pl.DataFrame(
        {"asset_class": ["consumer"], "vintage_month": [parse_month("2023-06")], "mean_score": [55.0]}
    )


def moves(table: pl.DataFrame, effect: float, n: int = 2000, seed: int = 0) -> pl.DataFrame:
    """Counts whose log-odds of a miss move by `effect` per sd of unemployment (5 points +- 1)."""
    rng = np.random.default_rng(seed)
    z = (table["unemployment_rate"].to_numpy() - 0.05) / 0.01
    p = 1 / (1 + np.exp(3.0 - effect * z))
    missed = rng.binomial(n, p)
    keys = table.select("scenario", "macro_path_id", pl.col("month").alias("reporting_month"))
    parts = [
        keys.with_columns(to_state=pl.lit(state, dtype=pl.Int64), n_moves=pl.Series(count.astype(np.int64)))
        for state, count in ((0, n - missed), (1, missed))
    ]
    return (
        pl.concat(parts)
        .filter(pl.col("n_moves") > 0)
        .with_columns(
            asset_class=pl.lit("consumer"),
            vintage_month=pl.lit(parse_month("2023-06")),
            is_final=pl.lit(False),
            from_state=pl.lit(0, dtype=pl.Int64),
        )
    )


def test_the_final_month_books_paid_up_as_matured_and_age_runs_from_the_vintage() -> None:
    table = (
        moves(macro(1), 0.0)
        .head(3)
        .with_columns(
            is_final=pl.Series([True, True, False]),
            to_state=pl.Series([0, 6, 6]),
            n_moves=pl.Series([2, 3, 4]),
        )
    )
    data = transition_data(cohorts(), table, macro(1))
    assert float(data.final[0, :, 0, 6].sum()) == 5.0
    assert float(data.plain[0, :, 0, 5].sum()) == 4.0
    assert data.age0.tolist() == [6.0]  # December 2023 is six months after June
    assert data.calendar is not None
    assert data.calendar[0].tolist() == [0, 2]  # January, whose last day in 2024 is a Wednesday


def test_likelihood_by_hand() -> None:
    table = (
        moves(macro(1), 0.0)
        .head(2)
        .with_columns(
            is_final=pl.Series([False, True]), to_state=pl.Series([1, 6]), n_moves=pl.Series([2, 3])
        )
    )
    model = TransitionTransformer(SIZE).eval()
    data = transition_data(cohorts(), table, macro(1))
    row = model.predict(cohorts_matrix(), macro(1))[0, 0, 0, 0]
    expected = -2 * row[1].log() - 3 * (row[0] + row[5]).log()
    assert float(negative_log_likelihood(model, data).detach()) == pytest.approx(float(expected), rel=1e-4)


def cohorts_matrix() -> np.ndarray:
    features = np.full((1, 12), np.nan, dtype=np.float32)
    features[0, :4] = [0, 1, 0, 0]
    features[0, 9] = 55.0
    return features


def test_training_finds_the_macro_effect_on_paths_it_never_saw() -> None:
    torch.manual_seed(0)
    table = macro(20)
    model = TransitionTransformer(SIZE)
    history = TransitionTrainer(model, lr=1e-2, config=TrainConfig(patience=40, n_threads=1)).fit(
        cohorts(), moves(table, 0.5), table, epochs=40, batch_size=8
    )
    assert history["val_log_loss"] < history["level_log_loss"] - 0.003
    assert not history["is_macro_anchored"]
    fresh = macro(10, seed=9)
    found = model.predict(cohorts_matrix(), _paths(fresh))[:, 0, :, 0, 1].logit().flatten().numpy()
    truth = -3.0 + 0.5 * (fresh["unemployment_rate"].to_numpy() - 0.05) / 0.01
    slope = np.polyfit(truth, found, 1)[0]
    assert 0.75 < slope < 1.25


def _paths(table: pl.DataFrame) -> np.ndarray:
    values = table.select([series.name for series in MACRO_SERIES]).to_numpy()
    return values.reshape(-1, MONTHS, 9)


def test_few_paths_anchor_the_macro_term_at_the_stated_sensitivities() -> None:
    model = TransitionTransformer(SIZE)
    history = TransitionTrainer(model, lr=1e-2, config=ONE_THREAD).fit(
        cohorts(), moves(macro(1), 0.5), macro(1), epochs=2
    )
    assert history["is_macro_anchored"]
    assert torch.equal(model.macro_effect, stated_macro_effect())
    effect = stated_macro_effect().view(4, 4, 7, 9)
    assert bool((effect[:, 0, 1, 1] > 0).all())  # unemployment raises misses
    assert bool((effect[:, 0, 1, 0] < 0).all())  # growth lowers them
    assert bool((effect[:, 1, 0, 1] < 0).all())  # unemployment lowers cures


def test_the_seed_tutorials_arrays_train_too() -> None:
    counts = np.zeros((MONTHS, 7, 7))
    counts[:, 0, 0], counts[:, 0, 1], counts[:, 1, 0] = 90, 5, 4
    frame = pl.DataFrame(
        {
            "asset_class": ["consumer", "corporate"],
            "vintage_month": [parse_month("2023-06")] * 2,
            "loan_id": [3, 1],
        }
    )
    model = TransitionTransformer(SIZE)
    single = macro(1).drop("scenario", "macro_path_id")
    history = TransitionTrainer(model, lr=1e-3, config=ONE_THREAD).fit(
        frame.to_pandas(), counts, single.to_pandas(), epochs=2
    )
    assert history["n_moves"] == counts.sum()


def test_held_out_paths_are_whole() -> None:
    table = macro(10)
    training, validation = split(transition_data(cohorts(), moves(table, 0.0), table))
    assert not set(training.path_of.tolist()) & set(validation.path_of.tolist())
    assert len(validation) == 2


def test_groups_hold_every_row_once_and_one_path_each() -> None:
    path_of = torch.tensor([4, 0, 0, 4, 2, 0, 0, 0])
    groups = path_groups(path_of, 2)
    assert sorted(torch.cat(groups).tolist()) == list(range(8))
    assert all(len(path_of[group].unique()) == 1 and len(group) <= 2 for group in groups)


def test_a_killed_run_resumes_bit_for_bit(tmp_path) -> None:
    table = macro(10)
    data = (cohorts(), moves(table, 0.3), table)

    def train(epochs_seen: int | None, resume) -> TransitionTransformer:
        torch.manual_seed(0)
        model = TransitionTransformer(SIZE)

        def stop(record) -> None:
            if record["epoch"] == epochs_seen:
                raise KeyboardInterrupt

        try:
            TransitionTrainer(model, lr=1e-2, config=ONE_THREAD).fit(
                *data, epochs=4, resume=resume, on_epoch=stop
            )
        except KeyboardInterrupt:
            return train(None, resume)
        return model

    whole, parts = train(None, None), train(2, tmp_path / "run.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    table = moves(macro(1), 0.0)
    jump = table.with_columns(to_state=pl.lit(3, dtype=pl.Int64))
    with pytest.raises(DataError, match="network excludes"):
        TransitionTrainer(TransitionTransformer(SIZE)).fit(cohorts(), jump, macro(1), epochs=1)
    late = table.with_columns(reporting_month=pl.lit(parse_month("2030-01")))
    with pytest.raises(DataError, match="outside"):
        transition_data(cohorts(), late, macro(1))
    with pytest.raises(DataError, match="not described"):
        transition_data(cohorts().with_columns(asset_class=pl.lit("corporate")), table, macro(1))
    with pytest.raises(DataError, match="no moves"):
        transition_data(cohorts(), table.head(0), macro(1))


def test_log_loss_is_per_move() -> None:
    table = macro(1)
    model = TransitionTransformer(SIZE).eval()
    data = transition_data(cohorts(), moves(table, 0.0), table)
    double = transition_data(cohorts(), moves(table, 0.0).with_columns(pl.col("n_moves") * 2), table)
    assert log_loss(model, data) == pytest.approx(log_loss(model, double))
