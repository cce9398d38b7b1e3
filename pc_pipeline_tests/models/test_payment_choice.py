"""Payments by habit: candidates by hand, a likelihood that sums to one, draws that repeat as borrowers do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.models.payment_choice import (
    FRESH,
    N_CANDIDATES,
    N_CONTEXT,
    NOTHING,
    TWICE,
    PaymentChoice,
    payment_context,
    usual_payment,
)
from pc_pipeline.models.payment_head import PaymentHead


def window_of(*ratios: float) -> torch.Tensor:
    window = torch.full((1, 12), torch.nan)
    if ratios:
        window[0, 12 - len(ratios) :] = torch.tensor(ratios)
    return window


@pytest.mark.parametrize(
    ("ratios", "usual"),
    [((1.0, 1.0, 1.2), 1.0), ((1.0, 1.2), 1.2), ((0.0, 0.0, 1.2), 1.2), ((0.0, 0.3), np.nan), ((), np.nan)],
)
def test_the_usual_payment_by_hand(ratios: tuple[float, ...], usual: float) -> None:
    assert float(usual_payment(window_of(*ratios))) == pytest.approx(usual, nan_ok=True)


def test_every_amount_counts_once_before_training_however_often_it_was_paid() -> None:
    choice, window, state = PaymentChoice(N_CONTEXT), window_of(1.0, 1.0, 1.0, 1.5), torch.zeros(1).long()
    log_p, ratios = choice.log_probabilities(payment_context(window), state, window)
    # 1.0 thrice, 1.5, twice the usual, nothing, fresh: five amounts.
    assert log_p.exp()[0, -7:].tolist() == pytest.approx([1 / 15] * 3 + [1 / 5] * 4)
    assert ratios[0, TWICE] == 2.0
    assert log_p.shape == (1, N_CANDIDATES)
    loss, is_fresh = choice.loss(payment_context(window), state, window, torch.tensor([1.0]))
    assert float(loss.detach()) == pytest.approx(np.log(5))
    assert not bool(is_fresh)
    assert bool(choice.loss(payment_context(window), state, window, torch.tensor([1.7]))[1])


def test_a_state_never_pays_what_it_never_paid() -> None:
    choice = PaymentChoice(N_CONTEXT)
    choice.fit_reach(torch.tensor([0.5, 2.5, 0.0, 0.4]), torch.tensor([0, 0, 1, 1]))
    window = window_of(1.0, 0.3, 0.0).expand(2, -1)
    log_p, ratios = choice.log_probabilities(payment_context(window), torch.tensor([0, 1]), window)
    possible = [ratios[row][log_p[row] > -50].nan_to_num(nan=-1.0).unique().tolist() for row in (0, 1)]
    assert possible[0] == [-1.0, 1.0, 2.0]  # -1 stands for a fresh amount
    assert possible[1] == pytest.approx([-1.0, 0.0, 0.3])
    nothing_known = window_of()
    first, _ = choice.log_probabilities(payment_context(nothing_known), torch.tensor([0]), nothing_known)
    assert first.exp()[0, FRESH] == 1.0
    assert torch.isneginf(first[0, NOTHING])


def test_after_training_borrowers_repeat_double_and_miss_as_often_as_in_the_data() -> None:
    """Of ten, eight repeat an amount of their own, one doubles it, one pays something new; late: nothing."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    n = 4000
    own = 1.0 + 0.1 * torch.rand(n, generator=generator)
    window = own[:, None].repeat(1, 12)
    window[:, 3] = 0.0
    state = (torch.rand(n, generator=generator) < 0.2).long()
    kind = torch.rand(n, generator=generator)
    fresh = 0.6 + 0.3 * torch.rand(n, generator=generator)
    ratio = torch.where(kind < 0.8, own, torch.where(kind < 0.9, 2.0 * own, fresh))
    ratio = torch.where(state == 1, torch.where(kind < 0.7, 0.0, 0.5 * (fresh - 0.4)), ratio)
    values = torch.stack([ratio, torch.zeros(n)], dim=-1)
    known = torch.tensor([True, False]).expand(n, -1)
    head = PaymentHead(1, steps=50)
    head.fit_values(values, known, state, window)
    context = torch.zeros(n, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(120):
        rows = torch.randint(n, (256,), generator=generator)
        loss = head.loss(context[rows], state[rows], values[rows], known[rows], generator, window[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = head.sample(context, state, generator=generator, window_NW=window)[:, 0]
    performing, late = state == 0, state == 1
    assert bool((drawn[performing] >= 0.6).all())
    assert bool((drawn[late] < 0.5).all())
    for event, share, among in (
        (drawn == own, 0.8, performing),
        (drawn == 2.0 * own, 0.1, performing),
        (drawn == 0.0, 0.7, late),
    ):
        error = np.sqrt(share * (1 - share) / int(among.sum()))
        # The data's own error, the draws', and what 120 steps leave.
        assert abs(float(event[among].float().mean()) - share) < 4 * np.sqrt(2) * error + 0.01
    others = performing & (drawn != own) & (drawn != 2.0 * own)
    assert abs(float(drawn[others].mean()) - 0.75) < 0.03


def test_unknown_payments_teach_nothing_and_severity_needs_no_window() -> None:
    head = PaymentHead(2, steps=10)
    nothing = torch.zeros(5, 2, dtype=torch.bool)
    with torch.no_grad():
        assert float(head.loss(torch.zeros(5, 2), torch.zeros(5).long(), torch.zeros(5, 2), nothing)) == 0.0
        drawn = head.sample(torch.zeros(50, 2), torch.full((50,), 4))
    assert bool(((drawn[:, 1] >= 0.2) & (drawn[:, 1] <= 0.8)).all())
