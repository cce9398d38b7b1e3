"""The value head: its schedule forgets, its transform returns what it got, its draws follow the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from pc_pipeline.models.diffusion import DiffusionHead, NoiseSchedule, ValueTransform, observed_values


def test_the_terminal_signal_is_near_zero_and_variance_is_kept() -> None:
    schedule = NoiseSchedule(100)
    assert float(schedule.signal[-1]) < 0.01
    assert float(schedule.signal[0]) > 0.99
    assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones(100), atol=1e-5)
    assert bool((schedule.signal.diff() <= 0).all())


def test_scores_are_normal_and_come_back_as_the_values_atoms_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    ratio = torch.where(
        torch.rand(4000, generator=generator) < 0.6, 1.0, torch.rand(4000, generator=generator)
    )
    values = torch.stack([ratio, torch.rand(4000, generator=generator)], dim=-1)
    state = torch.zeros(4000, dtype=torch.long)
    transform = ValueTransform()
    transform.fit(values, torch.ones(4000, 2, dtype=torch.bool), state)
    scores = transform.to_scores(values, state, generator)
    assert abs(float(scores[:, 0].mean())) < 4 / np.sqrt(4000)
    assert abs(float(scores[:, 0].std()) - 1) < 0.05
    back = transform.to_values(scores, state)
    # Knots lie at 1/128 of the ranks: values between come back to within one gap of them.
    assert float((back - values).abs().max()) < 0.06
    atoms = ratio == 1.0
    assert float((back[atoms, 0] == 1.0).float().mean()) > 0.97


def test_few_step_draws_follow_the_conditional_law_and_stay_in_range() -> None:
    """Severity differs by context; after training, draws match each context's own distribution."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    n = 3000
    group = (torch.arange(n) % 2).float()
    severity = (0.4 + 0.2 * group + 0.1 * torch.randn(n, generator=generator)).clamp(0.2, 0.8)
    values = torch.stack([torch.zeros(n), severity], dim=-1)
    known = torch.tensor([False, True]).expand(n, -1)
    state = torch.full((n,), 4)
    head = DiffusionHead(1, steps=100)
    head.transform.fit(values, known, state)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 500)
        rows = torch.randint(n, (256,), generator=generator)
        loss = head.loss(group[rows, None], state[rows], values[rows], known[rows], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = head.sample(group[:, None], state, n_steps=20, generator=generator)[:, 1]
    assert float(drawn.min()) >= 0.2
    assert float(drawn.max()) <= 0.8 + 1e-6
    for which in (0.0, 1.0):
        mine, theirs = drawn[group == which].numpy(), severity[group == which].numpy()
        assert abs(mine.mean() - theirs.mean()) < 0.02
        assert ks_2samp(mine, theirs).statistic < 0.1


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_few_steps_draw_normal_scores_of_any_spread(spread: float) -> None:
    """Scores N(0, spread^2): v is known, and eight steps along it must give that spread.

    With z = a x + s e: v = a e - s x, so E[v | z] = a s (1 - spread^2) / (a^2 spread^2 + s^2) z. First-order
    steps would return 0.86 for 1.
    """

    class Known(DiffusionHead):
        def velocity(self, noisy_NV, step_N, context_ND, state_N):  # type: ignore[no-untyped-def]
            a, s = self.schedule.signal[step_N][:, None], self.schedule.noise[step_N][:, None]
            return a * s * (1 - spread**2) / (a**2 * spread**2 + s**2) * noisy_NV

    head = Known(1, steps=50)
    head.transform.knots[4, 1] = torch.linspace(0, 1, 129)  # value = probability of the score
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = head.sample(torch.zeros(n, 1), torch.full((n,), 4), generator=generator)[:, 1]
    found = float(torch.special.ndtri(draws.clamp(1e-4, 1 - 1e-4)).std())
    last_noise = float(head.schedule.noise[0])  # a draw ends at the schedule's first step, not before it
    assert abs(found - np.hypot(spread, (1 - spread) * last_noise)) < 0.03


def test_ratios_by_hand() -> None:
    values, known = observed_values(
        payments=torch.tensor([100.0, 0.0, 0.0, 100.0]),
        scheduled=torch.tensor([100.0, 100.0, 100.0, 0.0]),
        charge_off=torch.tensor([0.0, 0.0, 1000.0, 0.0]),
        recovery=torch.tensor([0.0, 0.0, 400.0, 0.0]),
        state=torch.tensor([0, 1, 4, 0]),
    )
    assert known.tolist() == [[True, False], [True, False], [False, True], [False, False]]
    assert torch.allclose(values[:3], torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.6]]))


def test_unknown_values_teach_nothing() -> None:
    head = DiffusionHead(2, steps=10)
    nothing = torch.zeros(5, 2, dtype=torch.bool)
    loss = head.loss(torch.zeros(5, 2), torch.zeros(5, dtype=torch.long), torch.zeros(5, 2), nothing)
    assert float(loss.detach()) == 0.0
