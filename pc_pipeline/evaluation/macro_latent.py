"""Is the latent of a `MacroVAE` used, and what does each direction do?

Here: `latent_use` (nats per latent) and `latent_walk` (what two standard deviations of one latent move). Not
here: the network (`models.macro_vae`), figures (`reports.model_plots`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.schemas.units import MACRO_NAMES

ACTIVE: Final = 0.1  # nats: Burda, Grosse and Salakhutdinov (2016) call a unit active by a like threshold
STEP: Final = 2.0  # standard deviations walked to either side


@torch.no_grad()
def latent_use(model: MacroVAE, paths: torch.Tensor, scenario: torch.Tensor) -> pl.DataFrame:
    """How much the encoder says with each latent.

    Args:
        paths: (B, T, 9), original units; scenario: (B,) codes.

    Returns:
        latent, meaning, kl (mean KL of q(z_k | x) from N(0, 1), nats), correlation (of its posterior mean
        with the slow shock it stands for), is_active (kl above `ACTIVE`).
    """
    mu, log_var = model.encode(paths, scenario)
    kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).mean(0)
    slow = model.slow_part(model.innovations(paths, scenario)[0])
    both = torch.stack([mu - mu.mean(0), slow - slow.mean(0)])
    spread = both.square().mean(1).sqrt().clamp(min=1e-9)
    correlation = (both[0] * both[1]).mean(0) / (spread[0] * spread[1])
    return pl.DataFrame(
        {
            "latent": list(range(model.config.latent_dim)),
            "meaning": model.latent_meaning(),
            "kl": kl.double().numpy(),
            "correlation": correlation.double().numpy(),
            "is_active": (kl > ACTIVE).numpy(),
        }
    )


@torch.no_grad()
def latent_paths(model: MacroVAE, scenario: int | str = 0, step: float = STEP) -> np.ndarray:
    """(Z, 3, T, 9) paths of latent k at -step, 0 and +step, the others and all further noise at 0."""
    config = model.config
    unit = torch.eye(config.latent_dim)
    z = torch.cat([-step * unit, 0 * unit, step * unit]).to(model.shift_M.device)
    noise = z.new_zeros(len(z), config.seq_length, len(MACRO_NAMES))
    codes = torch.full((len(z),), model.scenario_code(scenario), device=z.device)
    paths = model.decode(z, codes, noise).double().cpu().numpy()
    return np.stack(np.split(paths, 3), axis=1)


@torch.no_grad()
def latent_walk(
    model: MacroVAE, scenario: int | str = 0, *, n_paths: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """What a walk of one latent from -2 to +2 moves, in cross-path standard deviations of each series.

    Returns:
        One row per latent: latent, meaning, strongest (series moved most), strongest_month (from 1), then per
        series its largest move over months, signed.
    """
    spread = model.generate(scenario, model.config.seq_length, n_paths, seed=seed).std(0).double()
    low, _, high = latent_paths(model, scenario).swapaxes(0, 1)
    move_ZTM = (high - low) / spread.cpu().numpy()
    rows = []
    for k, meaning in enumerate(model.latent_meaning()):
        size = np.abs(move_ZTM[k])
        month, series = np.unravel_index(int(size.argmax()), size.shape)
        largest = move_ZTM[k][size.argmax(0), np.arange(len(MACRO_NAMES))]
        rows.append(
            {
                "latent": k,
                "meaning": meaning,
                "strongest": MACRO_NAMES[int(series)],
                "strongest_month": int(month) + 1,
                **{name: float(largest[i]) for i, name in enumerate(MACRO_NAMES)},
            }
        )
    return pl.DataFrame(rows)
