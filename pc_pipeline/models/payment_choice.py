"""What a borrower pays by habit: a learned choice among amounts that the last year has already shown.

Here: `PaymentChoice`: the candidates, their probabilities, their likelihood, draws. Not here: amounts never
paid before (`diffusion`), the window of past payments (`payment_history`), when a loan is late
(`loan_trajectory`).

Four payments in five repeat an earlier one to the cent; a network that draws each month afresh cannot say so.
So a month's payment is a mixture in two parts (Mullahy 1986; a pointer as in Vinyals et al. 2015):

    p(x) = sum over candidates c = x of softmax_c(w(context) . f_c) + p(fresh) p_diffusion(x)

Candidates: the twelve ratios of the window, twice the usual one (a month caught up), nothing, and 'fresh'.
The usual ratio is the most frequent one of the window that met the instalment, the newest of equals. What the
month's state never had (less than half an instalment while performing, say) is left out.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from pc_pipeline.models.layers import zero_init
from pc_pipeline.models.payment_history import (
    MAX_RATIO,
    MISSED_BELOW,
    N_PAYMENT_INPUTS,
    WINDOW,
    hats,
    payment_inputs,
)
from pc_pipeline.schemas.states import N_LIVING, N_STATES

TWICE, NOTHING, FRESH = WINDOW, WINDOW + 1, WINDOW + 2
N_CANDIDATES: Final = WINDOW + 3
SAME_WITHIN: Final = 5e-4  # instalments; rounding to cents moves less, another amount more
_RELATIVE_KNOTS: Final = (0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 2.5)
_N_FACTS: Final = N_CANDIDATES + 3 + len(_RELATIVE_KNOTS)
_STATE_WIDTH: Final = 16
N_CONTEXT: Final = N_PAYMENT_INPUTS + 6  # of `payment_context`


def usual_payment(window: Tensor) -> Tensor:
    """(...,12) window -> (...,) most frequent ratio that met the instalment, the newest of equals; or NaN."""
    return _usual(window, _repeats(window))


def payment_context(window: Tensor) -> Tensor:
    """(...,12) window -> (...,N_CONTEXT) facts on knots, and what they say of habit.

    Of habit: months known; the usual ratio, the share of known months at it, whether the last one was,
    whether all were; how many ratios differ.
    """
    repeats = _repeats(window)
    usual = _usual(window, repeats)[..., None]
    known = (~torch.isnan(window)).to(window.dtype).sum(-1, keepdim=True)
    at = _is_same(window, usual).to(window.dtype)
    share = at.sum(-1, keepdim=True) / known.clamp(min=1.0)
    distinct = torch.where(repeats > 0, 1.0 / repeats.clamp(min=1.0), repeats).sum(-1, keepdim=True)
    habit = [known / WINDOW, torch.nan_to_num(usual), share, at[..., -1:], (share == 1.0).to(share.dtype)]
    return torch.cat([payment_inputs(window), *habit, distinct / WINDOW], dim=-1)


class PaymentChoice(nn.Module):
    """p(candidate | state, loan, past payments).

    Args:
        context_width: of the conditioning vector, `payment_context` included. width: hidden width.
    """

    reach: Tensor

    def __init__(self, context_width: int, width: int = 64) -> None:
        super().__init__()
        # Least and largest ratio of a living state; wide open before training.
        self.register_buffer("reach", torch.tensor([0.0, MAX_RATIO]).repeat(N_LIVING, 1))
        self.state = nn.Embedding(N_STATES, _STATE_WIDTH)
        self.level = nn.Parameter(torch.zeros(N_STATES, _N_FACTS))
        self.weights = nn.Sequential(
            nn.Linear(context_width + _STATE_WIDTH, width),
            nn.SiLU(),
            zero_init(nn.Linear(width, _N_FACTS)),
        )

    @torch.no_grad()
    def fit_reach(self, ratio_N: Tensor, state_N: Tensor) -> None:
        """Take the range of each living state's ratios; a state never seen stays open."""
        for state in range(N_LIVING):
            mine = ratio_N[state_N == state]
            if len(mine):
                self.reach[state] = torch.stack([mine.min(), mine.max()]).to(self.reach)

    def log_probabilities(
        self, context_ND: Tensor, state_N: Tensor, window_NW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,C) of the candidates and their ratios (N,C), NaN of 'fresh' and of none."""
        ratios, facts = _candidates(window_NW)
        weights = self.weights(torch.cat([self.state(state_N), context_ND], dim=-1)) + self.level[state_N]
        # An amount counts once, however many months show it.
        scores = (facts @ weights[..., None])[..., 0] - facts[..., N_CANDIDATES]
        return scores.masked_fill(~self._possible(ratios, state_N), -torch.inf).log_softmax(-1), ratios

    def loss(
        self, context_ND: Tensor, state_N: Tensor, window_NW: Tensor, ratio_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N,) -log p of the candidates that give the ratio, and (N,) whether none does: a fresh amount."""
        log_p, ratios = self.log_probabilities(context_ND, state_N, window_NW)
        gives, is_fresh = self._gives(ratios, state_N, ratio_N)
        return -log_p.masked_fill(~gives, -torch.inf).logsumexp(-1), is_fresh

    def is_fresh(self, state_N: Tensor, window_NW: Tensor, ratio_N: Tensor) -> Tensor:
        """(N,) whether no candidate gives the ratio."""
        return self._gives(_ratios(_kept(window_NW)), state_N, ratio_N)[1]

    def _possible(self, ratios_NC: Tensor, state_N: Tensor) -> Tensor:
        low, high = self.reach[state_N.clamp(max=N_LIVING - 1)].unbind(-1)
        inside = (ratios_NC >= low[:, None] - SAME_WITHIN) & (ratios_NC <= high[:, None] + SAME_WITHIN)
        inside[:, FRESH] = True
        return inside

    def _gives(self, ratios_NC: Tensor, state_N: Tensor, ratio_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N,C) candidates that give the ratio, 'fresh' where none does, and (N,) that."""
        gives = _is_same(ratios_NC, ratio_N[:, None]) & self._possible(ratios_NC, state_N)
        is_fresh = ~gives.any(-1)
        gives[:, FRESH] = is_fresh
        return gives, is_fresh

    def draw(
        self, context_ND: Tensor, state_N: Tensor, window_NW: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """(N,) ratios drawn among the candidates, NaN where the choice is a fresh amount."""
        log_p, ratios = self.log_probabilities(context_ND, state_N, window_NW)
        uniform = torch.rand(log_p.shape, generator=generator, device=log_p.device)
        chosen = (log_p - torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))).argmax(-1, keepdim=True)
        return ratios.gather(1, chosen)[:, 0]


def _is_same(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs() < SAME_WITHIN


def _repeats(window: Tensor) -> Tensor:
    """(...,12) how many months of the window show each month's ratio; 0 where unknown."""
    return _is_same(window[..., None], window[..., None, :]).to(window.dtype).sum(-1)


def _usual(window: Tensor, repeats: Tensor) -> Tensor:
    newest = torch.arange(WINDOW, device=window.device, dtype=window.dtype) / WINDOW
    rank = torch.where(window >= MISSED_BELOW, repeats + newest, torch.zeros_like(window))
    best, at = rank.max(-1, keepdim=True)
    found = window.gather(-1, at)
    return torch.where(best >= 1.0, found, torch.full_like(found, torch.nan))[..., 0]


def _kept(window_NW: Tensor) -> Tensor:
    """Ratios whose size is kept: a window cuts them at `MAX_RATIO`."""
    return window_NW.masked_fill(window_NW >= MAX_RATIO, torch.nan)


def _ratios(window_NW: Tensor) -> Tensor:
    """(N,C) what each candidate pays."""
    usual = usual_payment(window_NW)[:, None]
    return torch.cat(
        [window_NW, 2.0 * usual, torch.zeros_like(usual), torch.full_like(usual, torch.nan)], dim=1
    )


def _candidates(window_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Ratios (N,C) and facts (N,C,F): which candidate, how often, usual, newest, size against the usual."""
    window = _kept(window_NW)
    ratios = _ratios(window)
    usual = ratios[:, TWICE, None] / 2.0
    own = torch.eye(N_CANDIDATES, dtype=window.dtype, device=window.device)
    count = torch.log(_repeats(window).clamp(min=1.0))[..., None]
    is_usual = _is_same(window, usual)[..., None].to(window.dtype)
    is_last = _is_same(window, window[:, -1:])[..., None].to(window.dtype)
    relative = hats(torch.nan_to_num(window / usual, nan=1.0), _RELATIVE_KNOTS)
    of_window = torch.cat([count, is_usual, is_last, relative], dim=-1)
    rest = of_window.new_zeros(len(window), N_CANDIDATES - WINDOW, of_window.shape[-1])
    return ratios, torch.cat([own.expand(len(window), -1, -1), torch.cat([of_window, rest], dim=1)], dim=-1)
