"""The yardsticks themselves: blind to equal samples, sharp on unequal ones."""

from __future__ import annotations

import numpy as np
import pytest

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.evaluation.macro_fidelity import (
    auc_with_error,
    fidelity_summary,
    fidelity_table,
    two_sample_auc,
)


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


def test_the_table_shows_a_known_difference() -> None:
    real, drawn = paths("a", 4000), paths("b", 4000)
    drawn = 1.2 * drawn + 0.5
    table = fidelity_table(real, drawn, "baseline")
    assert table["horizon"].unique().to_list() == [12]
    assert table["sd_ratio"].to_numpy() == pytest.approx(np.full(9, 1.2), abs=6 * 1.2 / np.sqrt(4000))
    assert table["mean_gap_sd"].to_numpy() == pytest.approx(np.full(9, 0.5), abs=6 * 1.6 / np.sqrt(4000))
    assert table["autocorrelation_gap"].abs().max() < 0.02
    assert fidelity_summary(table)["worst_sd_gap"] == pytest.approx(0.2, abs=0.12)


def test_auc_of_a_worked_example() -> None:
    """Scores 1 2 3 4 with labels 0 1 0 1: three of four pairs in order."""
    auc, _ = auc_with_error(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert auc == 0.75


def test_samples_that_do_not_fit_are_refused() -> None:
    for other in (paths("a", months=12), paths("a", n=10), paths("a")[..., :8]):
        with pytest.raises(ModelError):
            fidelity_table(paths("a"), other)
    with pytest.raises(ModelError, match="unknown classifier"):
        two_sample_auc(paths("a"), paths("b"), "oracle")
