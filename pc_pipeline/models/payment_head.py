"""The value head of a model that reads payments: habit first, diffusion for what habit does not say.

Here: `PaymentHead`, the choice of `payment_choice` before the diffusion of `diffusion`. Not here: either.

The diffusion learns only the amounts that no candidate gives. A month without any past payment has quantiles
of its own: what a borrower begins with is what most later months repeat.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pc_pipeline.models.diffusion import DiffusionHead
from pc_pipeline.models.payment_choice import N_CONTEXT, PaymentChoice, payment_context
from pc_pipeline.models.payment_history import WINDOW
from pc_pipeline.schemas.states import N_LIVING, N_STATES

_AT_ONCE: Final = 65_536


class PaymentHead(DiffusionHead):
    """p(payment ratio, severity | state, loan, history, past payments).

    Args:
        context_width, steps, width: as in `DiffusionHead`.
    """

    def __init__(self, context_width: int, steps: int = 100, width: int = 64) -> None:
        super().__init__(context_width + N_CONTEXT, steps, width, n_groups=N_STATES + N_LIVING)
        self.choice = PaymentChoice(context_width + N_CONTEXT)

    def fit_values(
        self, values_NV: Tensor, known_NV: Tensor, state_N: Tensor, window_NW: Tensor | None = None
    ) -> None:
        """Take ranges and quantiles: of fresh amounts, of first ones, of severities."""
        window = _window(window_NW, values_NV)
        living = known_NV[:, 0]
        self.choice.fit_reach(values_NV[living, 0], state_N[living])
        known = known_NV.clone()
        for rows in living.nonzero()[:, 0].split(_AT_ONCE):
            known[rows, 0] = self.choice.is_fresh(state_N[rows], window[rows], values_NV[rows, 0])
        self.transform.fit(values_NV, known, _group(state_N, window))

    def loss(
        self,
        context_ND: Tensor,
        state_N: Tensor,
        values_NV: Tensor,
        known_NV: Tensor,
        generator: torch.Generator | None = None,
        window_NW: Tensor | None = None,
    ) -> Tensor:
        """Mean -log p of the candidates, and the error of v over fresh amounts and severities."""
        window = _window(window_NW, context_ND)
        context = torch.cat([context_ND, payment_context(window)], dim=-1)
        living = known_NV[:, 0]
        if not bool(living.any()):
            return super().loss(context, state_N, values_NV, known_NV, generator)
        surprise, fresh = self.choice.loss(
            context[living], state_N[living], window[living], values_NV[living, 0]
        )
        known = known_NV.clone()
        known[living, 0] = fresh
        at = known.any(-1)
        error = super().loss(context[at], _group(state_N, window)[at], values_NV[at], known[at], generator)
        return surprise.mean() + error

    def sample(
        self,
        context_ND: Tensor,
        state_N: Tensor,
        n_steps: int = 12,
        generator: torch.Generator | None = None,
        window_NW: Tensor | None = None,
    ) -> Tensor:
        """Draw (N,V) values; only fresh amounts and severities are diffused."""
        window = _window(window_NW, context_ND)
        context = torch.cat([context_ND, payment_context(window)], dim=-1)
        ratio = self.choice.draw(context, state_N, window, generator)
        values = torch.stack([ratio, torch.zeros_like(ratio)], dim=-1)
        open_ = torch.isnan(ratio) | (state_N >= N_LIVING)
        at = open_.nonzero()[:, 0]
        values[at] = super().sample(context[at], _group(state_N, window)[at], n_steps, generator)
        return values


def _window(window_NW: Tensor | None, like: Tensor) -> Tensor:
    return like.new_full((len(like), WINDOW), torch.nan) if window_NW is None else window_NW


def _group(state_N: Tensor, window_NW: Tensor) -> Tensor:
    """(N,) state, or for a living loan without past payments its state after all others."""
    opens = torch.isnan(window_NW).all(-1) & (state_N < N_LIVING)
    return torch.where(opens, state_N + N_STATES, state_N)
