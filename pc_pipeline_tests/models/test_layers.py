"""Attention sees the past only, its cache changes nothing, and scaling keeps order."""

from __future__ import annotations

import pytest
import torch

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.layers import (
    CausalBlock,
    KeyValueCache,
    NormalScores,
    Scaler,
    check_heads,
    log_or_minus_infinity,
    require_months,
    require_shape,
)


def test_a_later_month_never_reaches_an_earlier_one() -> None:
    torch.manual_seed(0)
    block = CausalBlock(16, 2, 40).eval()
    x = torch.randn(3, 20, 16)
    y = x.clone()
    y[:, 12:] += 1.0
    with torch.no_grad():
        first, second = block(x), block(y)
    assert torch.equal(first[:, :12], second[:, :12])
    assert not torch.allclose(first[:, 12:], second[:, 12:])


def test_reading_month_by_month_with_a_cache_equals_reading_at_once() -> None:
    torch.manual_seed(1)
    block = CausalBlock(16, 2, 40).eval()
    x = torch.randn(3, 9, 16)
    cache = KeyValueCache(3, 2, 9, 8, x)
    with torch.no_grad():
        stepwise = torch.cat([block(x[:, month : month + 1], cache) for month in range(9)], dim=1)
        assert torch.allclose(stepwise, block(x), atol=1e-6)


def test_scaler_learns_mean_and_sd_and_reads_missing_as_the_mean() -> None:
    scaler = Scaler(torch.zeros(2), torch.ones(2))
    scaler.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]]))
    assert scaler.mean.tolist() == [2.0, 5.0]
    assert scaler.sd.tolist() == [1.0, 1.0]  # the second is constant
    assert scaler(torch.tensor([[4.0, torch.nan]])).tolist() == [[2.0, 0.0]]


def test_normal_scores_keep_order_share_ties_and_stop_at_the_ends() -> None:
    scale = NormalScores(torch.zeros(1), torch.ones(1))
    x = torch.cat([torch.zeros(500), torch.linspace(1, 2, 500) ** 3])[:, None]
    scale.fit(x)
    scores = scale(x)[:, 0]
    assert torch.unique(scores[:500]).numel() == 1
    # Zeros hold the ranks 0 to 1/2, whose middle in normal scores lies well below the median.
    assert -1.6 < float(scores[0]) < -0.6
    assert bool((scores[501:] >= scores[500:-1]).all())
    assert float(scale(torch.tensor([[1e9]]))) == pytest.approx(float(scores.max()), abs=1e-5)
    assert float(scale(torch.tensor([[torch.nan]]))) == 0.0


def test_log_of_zero_is_minus_infinity_with_a_finite_gradient() -> None:
    p = torch.tensor([0.0, 0.25], requires_grad=True)
    logarithm = log_or_minus_infinity(p)
    assert torch.isneginf(logarithm[0])
    logarithm[1].backward()
    assert p.grad is not None
    assert p.grad.tolist() == [0.0, 4.0]


def test_sizes_that_do_not_fit_say_so() -> None:
    with pytest.raises(ConfigError, match="heads"):
        check_heads(30, 4)
    with pytest.raises(ModelError, match="does not fit"):
        require_shape("x", torch.zeros(2, 3), (None, 4))
    with pytest.raises(ModelError, match="sequence length"):
        require_months(13, 12)
