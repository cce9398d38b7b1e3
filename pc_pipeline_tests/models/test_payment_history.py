"""What payments say, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.models.payment_history import (
    N_PAYMENT_INPUTS,
    PAYMENT_FACTS,
    payment_facts,
    payment_inputs,
    payment_windows,
    shift_window,
)


def facts_of(*ratios: float) -> dict[str, float]:
    window = torch.full((1, 12), torch.nan)
    window[0, 12 - len(ratios) :] = torch.tensor(ratios)
    return dict(zip(PAYMENT_FACTS, payment_facts(window)[0].tolist(), strict=True))


def test_facts_by_hand() -> None:
    facts = facts_of(1.0, 0.0, 2.0, 0.25)
    assert facts["ratio_1"] == 0.25
    assert facts["met_3"] == pytest.approx((0 + 1 + 0.25) / 3)
    assert facts["largest_3"] == 2.0
    assert facts["arrears"] == pytest.approx(0.75)  # one owed, paid back by the double, then 0.75
    assert facts["ahead_12"] == pytest.approx(-0.75)
    assert facts["since_missed"] == 0.0
    assert (facts["missed_12"], facts["doubled_12"], facts["exact_12"]) == (2.0, 1.0, 1.0)


def test_inputs_are_weights_of_knots_and_an_empty_window_says_nothing() -> None:
    torch.manual_seed(0)
    windows = 3.0 * torch.rand(50, 12)
    inputs = payment_inputs(windows)
    assert inputs.shape == (50, N_PAYMENT_INPUTS)
    assert torch.allclose(inputs.sum(-1), torch.full((50,), len(PAYMENT_FACTS) + 1.0), atol=1e-4)
    assert bool((inputs >= -1e-6).all())
    assert not payment_inputs(torch.full((2, 12), torch.nan)).any()


def test_a_shifted_window_is_the_next_month_s() -> None:
    ratio = np.random.default_rng(0).random((3, 6)).astype(np.float32)
    windows = torch.from_numpy(payment_windows(ratio).copy())
    later = shift_window(windows[:, 4], torch.from_numpy(ratio[:, 4]))
    assert torch.equal(torch.nan_to_num(later, nan=-1.0), torch.nan_to_num(windows[:, 5], nan=-1.0))
