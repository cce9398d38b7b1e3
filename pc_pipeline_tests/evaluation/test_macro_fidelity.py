"""The yardsticks themselves: blind to equal samples, sharp on unequal ones."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.evaluation.macro_fidelity import (
    classifier_rows,
    macro_fidelity_table,
    summarise_macro_fidelity,
)
from pc_pipeline.evaluation.two_sample import auc_with_error, two_sample_auc
from pc_pipeline.schemas.units import MACRO_NAMES


def paths(name: str, n: int = 600, months: int = 24, persistence: float = 0.8) -> np.ndarray:
    """(n, T, 9) AR(1) paths with unit variance, independent series."""
    noise = stream(0, "fidelity", name).standard_normal((n, months, 9))
    for t in range(1, months):
        noise[:, t] = persistence * noise[:, t - 1] + np.sqrt(1 - persistence**2) * noise[:, t]
    return noise


@pytest.mark.parametrize(("kind", "epochs"), [("moments", 0), ("sequence", 3)])
def test_equal_laws_are_not_told_apart(kind: str, epochs: int) -> None:
    auc, error = two_sample_auc(paths("a"), paths("b"), kind, epochs=epochs)
    assert abs(auc - 0.5) < 4 * error


def test_other_persistence_and_other_correlation_are_found() -> None:
    auc, error = two_sample_auc(paths("a"), paths("b", persistence=0.5))
    assert auc > 0.5 + 5 * error
    mixed = paths("b")
    mixed[..., 1] = 0.6 * mixed[..., 0] + 0.8 * mixed[..., 1]
    auc, error = two_sample_auc(paths("a"), mixed)
    assert auc > 0.5 + 5 * error


def test_the_sequence_network_finds_another_persistence() -> None:
    auc, error = two_sample_auc(paths("a"), paths("b", persistence=0.3), "sequence", epochs=8)
    assert auc > 0.5 + 5 * error


def cell(table: pl.DataFrame, measure: str) -> np.ndarray:
    return table.filter(pl.col("measure") == measure)["value"].to_numpy()


def test_the_table_shows_a_known_difference() -> None:
    real, drawn = paths("a", 4000), paths("b", 4000)
    drawn = 1.2 * drawn + 0.5
    table = macro_fidelity_table({"baseline": real}, {"baseline": drawn})
    assert table["horizon"].drop_nulls().unique().to_list() == [12]
    assert cell(table, "sd_ratio") == pytest.approx(np.full(9, 1.2), abs=6 * 1.2 / np.sqrt(4000))
    assert cell(table, "mean_gap_sd") == pytest.approx(np.full(9, 0.5), abs=6 * 1.6 / np.sqrt(4000))
    assert np.abs(cell(table, "autocorrelation_gap")).max() < 0.02
    summary = {row["measure"]: row for row in summarise_macro_fidelity(table).to_dicts()}
    assert not summary["sd_ratio"]["passed"]
    assert summary["sd_ratio"]["met"] == 0
    assert summary["autocorrelation_gap"]["passed"]
    assert summary["sd_ratio"]["low"] < 1.2 < summary["sd_ratio"]["high"] + 0.05


def test_the_moments_are_those_numpy_computes() -> None:
    real, drawn = paths("a", 400), 0.9 * paths("b", 400, persistence=0.7)
    table = macro_fidelity_table({"s": real}, {"s": drawn})
    assert cell(table, "sd_ratio") == pytest.approx(drawn[:, 11].std(0) / real[:, 11].std(0))
    levels = [np.corrcoef(sample[:, 11].T) for sample in (real, drawn)]
    assert cell(table, "correlation_gap") == pytest.approx(np.abs(levels[0] - levels[1]).max(0))
    lag = []
    for sample in (real, drawn):
        gap = (sample - sample.mean(0))[:, :12]
        before, after = gap[:, :-1].reshape(-1, 9), gap[:, 1:].reshape(-1, 9)
        lag.append((before * after).sum(0) / np.sqrt((before**2).sum(0) * (after**2).sum(0)))
    assert cell(table, "autocorrelation_gap") == pytest.approx(lag[1] - lag[0])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """30 pairs of equal samples x 9 series: 95 % intervals of four measures hold the equal-law value."""
    truth = {"sd_ratio": 1.0, "mean_gap_sd": 0.0, "autocorrelation_gap": 0.0, "band_coverage": 0.9}
    tables = [
        macro_fidelity_table({"s": paths(f"r{k}", 300, 12)}, {"s": paths(f"d{k}", 300, 12)})
        for k in range(30)
    ]
    rows = pl.concat(tables).filter(pl.col("measure").is_in(list(truth)))
    wanted = pl.col("measure").replace_strict(truth)
    share = rows.select(((pl.col("low") <= wanted) & (wanted <= pl.col("high"))).mean()).item()
    assert abs(share - 0.95) < 4 * np.sqrt(0.05 * 0.95 / rows.height)


def test_known_means_take_the_place_of_the_samples() -> None:
    real = {"s": paths("a", 200)}
    batches = np.zeros((20, 24, 9)) + stream(0, "batches").normal(0, 1e-4, (20, 1, 1))
    table = macro_fidelity_table(
        real, real, real_means={"s": np.zeros((24, 9))}, drawn_means={"s": batches}
    ).filter(pl.col("measure") == "mean_path_gap_range")
    assert table["series"].to_list() == list(MACRO_NAMES)
    assert table["passed"].all()


def test_classifier_rows_carry_goal_and_verdict() -> None:
    rows = classifier_rows({"s": paths("a")}, {"s": paths("b", persistence=0.3)}, kinds=("moments",))
    assert rows.select("measure", "passed").row(0) == ("auc_moments", False)


def test_auc_of_a_worked_example() -> None:
    """Scores 1 2 3 4 with labels 0 1 0 1: three of four pairs in order."""
    auc, _ = auc_with_error(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert auc == 0.75


def test_samples_that_do_not_fit_are_refused() -> None:
    for other in (paths("a", months=12), paths("a", n=10), paths("a")[..., :8]):
        with pytest.raises(ModelError):
            macro_fidelity_table({"s": paths("a")}, {"s": other})
    with pytest.raises(ModelError, match="unknown classifier"):
        two_sample_auc(paths("a"), paths("b"), "oracle")
