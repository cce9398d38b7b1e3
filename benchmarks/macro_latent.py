"""What each latent of a trained macro VAE does: figure and table of docs/methods/macro_vae.md.

    python benchmarks/macro_latent.py [--recipe base] [--seed 42]

Trains the recipe's macro VAE, walks every latent from -2 to +2 standard deviations, writes
docs/methods/figures/macro_vae_latent.svg and prints the table. Fidelity is measured by `make fidelity`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from pc_pipeline.engines.stages.learning import train_macro_vae
from pc_pipeline.evaluation.macro_latent import latent_paths, latent_use, latent_walk
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.recipes import Recipe, get_recipe
from pc_pipeline.reports.ink import MUTED, PALETTE, blank, inked, to_svg
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO, STANDARD_SCENARIOS
from pc_pipeline.training.macro_vae import read_paths

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "methods" / "figures" / "macro_vae_latent.svg"


def trained(recipe: Recipe) -> tuple[MacroVAE, pl.DataFrame]:
    """The recipe's macro VAE and its training paths."""
    sizes = recipe.macro_paths
    generator = MacroScenarioGenerator(sizes.n_months, random_seed=sizes.seed)
    table = pl.concat([macro_table(generator, name, sizes.n_paths) for name in STANDARD_SCENARIOS])
    return cast(MacroVAE, train_macro_vae(recipe.macro_vae, table, "cpu").models["macro_vae"][0]), table


@inked
def walk_figure(paths_ZKTM: np.ndarray, meanings: list[str]) -> Figure:
    """Panel per latent: the series it is named for at -2 (dashed), 0 (grey) and +2 standard deviations."""
    n_rows = -(-len(paths_ZKTM) // N_MACRO)
    figure = blank(11.0, 1.5 * n_rows + 0.3)
    grid = figure.subplots(n_rows, N_MACRO, sharex=True, squeeze=False)
    months = np.arange(1, paths_ZKTM.shape[2] + 1)
    for k, axes in enumerate(grid.flat):
        if k >= len(paths_ZKTM):
            axes.set_visible(False)
            continue
        kind, series = meanings[k].split(": ")
        low, middle, high = paths_ZKTM[k, :, :, MACRO_NAMES.index(series)]
        axes.plot(months, middle, color=MUTED, linewidth=0.8)
        axes.plot(months, high, color=PALETTE["blue"])
        axes.plot(months, low, color=PALETTE["red"], linestyle=(0, (6, 2)))
        axes.xaxis.set_major_locator(MultipleLocator(24))
        axes.tick_params(labelsize=6)
        axes.set_title(series if k < N_MACRO else "", fontsize=6)
        if k % N_MACRO == 0:
            axes.set_ylabel(kind)
    return figure


def walk_lines(walk: pl.DataFrame, use: pl.DataFrame) -> list[str]:
    """The table of the page: move of each series over its sd, for a walk from -2 to +2."""
    short = [name.split("_")[0] if "spread" not in name else name[-2:] for name in MACRO_NAMES]
    lines = ["| latent | KL | " + " | ".join(short) + " |", "|---|---|" + "---|" * N_MACRO]
    for row, kl in zip(walk.iter_rows(named=True), use["kl"], strict=True):
        moves = " | ".join(
            f"**{row[name]:+.1f}**" if name == row["strongest"] else f"{row[name]:+.1f}"
            for name in MACRO_NAMES
        )
        lines.append(f"| {row['meaning']} | {kl:.2f} | {moves} |")
    return lines


def main() -> None:
    """Train, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    model, table = trained(get_recipe(arguments.recipe, arguments.seed))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(to_svg(walk_figure(latent_paths(model), model.latent_meaning())), encoding="utf-8")
    paths, codes = read_paths(table, model)
    print("\n".join(walk_lines(latent_walk(model), latent_use(model, paths[::4], codes[::4]))))
    print(f"\nfigure: {FIGURE}")


if __name__ == "__main__":
    main()
