"""Fidelity of the macro VAE: its paths against fresh ones of the generator it learned from.

Here: `measure` (rows of the fidelity page) and `macro_report` (one seed, with every cell). Not here: the
figures themselves (`evaluation.macro_fidelity`, `macro_conditional`, `macro_latent`), training
(`engines.stages`).

The test generator has another seed than the training one; mean paths are held against exact ones, and the
model's are taken over antithetic pairs, so that the test's own noise stays small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.fidelity.table import Request, SizedRecipe, figure, figures
from pc_pipeline.engines.stages.learning import train_macro_vae
from pc_pipeline.evaluation.macro_conditional import conditional_table, is_met
from pc_pipeline.evaluation.macro_fidelity import (
    GROUPS,
    classifier_rows,
    macro_fidelity_table,
    summarise_macro_fidelity,
)
from pc_pipeline.evaluation.macro_latent import latent_use
from pc_pipeline.models.macro_conditioning import TOLERANCE
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.scenarios.exact_law import exact_law
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import STANDARD_SCENARIOS

SECTION: Final = "macro VAE"
TEST_PATHS: Final = 20_000  # per scenario, for moments and bands
CLASSIFIER_PATHS: Final = {"moments": 8_000, "sequence": 4_000}  # per sample and scenario
_PAIRS: Final = 400  # antithetic pairs a batch
_WORDS: Final = {
    "sd_ratio": ("cross-path sd over the data's", "0.9..1.1"),
    "mean_gap_sd": ("mean, gap in sd", "within 0.2"),
    "autocorrelation_gap": ("lag-1 autocorrelation, gap", "within 0.02"),
    "correlation_gap": ("correlations, largest gap", "<= 0.05"),
    "band_coverage": ("coverage of the 90 % band", "0.87..0.93"),
    "mean_path_gap_range": ("scenario mean path, gap over range", "<= 0.005"),
    "auc_moments": ("two-sample AUC, moments", "<= 0.55"),
    "auc_sequence": ("two-sample AUC, sequence network", "<= 0.55"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroReport:
    """What one seed gave.

    Attributes:
        cells: every cell (`macro_fidelity.ROWS`). conditional, latent: tables of those modules.
        history: of the training.
    """

    cells: pl.DataFrame
    conditional: pl.DataFrame
    latent: pl.DataFrame
    history: dict[str, Any]
    model: MacroVAE


def measure(request: Request) -> pl.DataFrame:
    """The section: the worst cell of each measure per seed; conditions and latent of the first seed."""
    rows: list[dict[str, Any]] = []
    for position, recipe in enumerate(request.recipes):
        report = macro_report(recipe, request.device)
        seed = f"seed {recipe.seed}"
        for cell in summarise_macro_fidelity(report.cells).to_dicts():
            words, goal = _WORDS[cell["measure"]]
            rows.append(
                figure(
                    SECTION,
                    f"{words} ({seed})",
                    cell["value"],
                    low=cell["low"],
                    high=cell["high"],
                    goal=goal,
                    passed=cell["passed"],
                    note=f"worst of {cell['cells']} cells, {cell['met']} meet the goal; {cell['where']}",
                )
            )
        rows.append(_training_row(recipe, report, seed))
        if position == 0:
            rows += _conditional_rows(report.conditional) + _latent_rows(report.latent)
    return figures(rows)


def macro_report(recipe: SizedRecipe, device: str = "cpu") -> MacroReport:
    """Train a recipe's macro VAE on paths of the standard scenarios and measure it."""
    sizes = recipe.macro_paths
    trainer = MacroScenarioGenerator(sizes.n_months, random_seed=sizes.seed)
    table = pl.concat([macro_table(trainer, name, sizes.n_paths) for name in STANDARD_SCENARIOS])
    trained = train_macro_vae(recipe.macro_vae, table, device)
    model = cast(MacroVAE, trained.models["macro_vae"][0])
    fresh = MacroScenarioGenerator(sizes.n_months, random_seed=derive_seed(sizes.seed, "fidelity") % 2**31)
    cells = measure_model(model, fresh, seed=recipe.seed)
    laws = {name: exact_law(fresh, name) for name in STANDARD_SCENARIOS}
    paths = np.concatenate([fresh.generate_paths(name, 500) for name in STANDARD_SCENARIOS])
    codes = torch.arange(len(STANDARD_SCENARIOS)).repeat_interleave(500)
    return MacroReport(
        cells=cells,
        conditional=conditional_table(model, laws, seed=recipe.seed),
        latent=latent_use(model, torch.tensor(paths, dtype=torch.float32), codes),
        history=trained.history,
        model=model,
    )


def measure_model(
    model: MacroVAE,
    fresh: MacroScenarioGenerator,
    *,
    n_paths: int = TEST_PATHS,
    classifiers: tuple[str, ...] = ("moments", "sequence"),
    seed: int = 0,
) -> pl.DataFrame:
    """Every cell (`macro_fidelity.ROWS`) of a model against a generator, for the standard scenarios."""
    parts = []
    for name in STANDARD_SCENARIOS:
        real = {name: fresh.generate_paths(name, n_paths)}
        drawn = {name: model.generate(name, fresh.n_months, n_paths, seed=seed).double().cpu().numpy()}
        parts.append(
            macro_fidelity_table(
                real,
                drawn,
                real_means={name: fresh.mean_path(name)},
                drawn_means={name: antithetic_means(model, name, fresh.n_months, seed)},
            )
        )
        for kind in classifiers:
            few = [{name: sample[name][: CLASSIFIER_PATHS[kind]]} for sample in (real, drawn)]
            parts.append(classifier_rows(*few, kinds=(kind,), seed=seed))
    return pl.concat(parts)


@torch.no_grad()
def antithetic_means(model: MacroVAE, scenario: str, n_months: int, seed: int) -> np.ndarray:
    """(K, T, 9) mean paths of independent batches of pairs (noise and its mirror image)."""
    code, batches = model.scenario_code(scenario), []
    for batch in range(GROUPS):
        z, noise = model.draw_noise(
            n_months, _PAIRS, seed=derive_seed(seed, "pairs"), first_sample=batch * _PAIRS
        )
        codes = torch.full((2 * _PAIRS,), code)
        paths = model.decode(torch.cat([z, -z]), codes, torch.cat([noise, -noise]))
        batches.append(paths.double().mean(0).numpy())
    return np.stack(batches)


def _training_row(recipe: SizedRecipe, report: MacroReport, seed: str) -> dict[str, Any]:
    history, months = report.history, recipe.macro_paths.n_months
    n_values = months * 9
    return figure(
        SECTION,
        f"log-likelihood the gradients gained on held-out paths, nats a path ({seed})",
        history.get("decoder_gain", float("nan")),
        note=f"standard error {history.get('decoder_gain_error', float('nan')):.3f}; decoder kept: "
        f"{history.get('decoder', 'anchored')}; encoder gap {history['gap'] * n_values:.2f} nats; "
        f"{recipe.macro_paths.n_paths} paths a scenario, {history['epochs']} epochs",
    )


def _conditional_rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for row in table.to_dicts():
        rows += [
            figure(
                SECTION,
                f"conditions met: {row['case']}",
                row["worst_miss"],
                goal=f"<= {TOLERANCE:g} of the range",
                passed=is_met(row),
            ),
            figure(
                SECTION,
                f"conditional means: {row['case']}",
                row["mean_gap_sd"],
                low=row["mean_gap_sd"] - 1.96 * row["mean_gap_error"],
                high=row["mean_gap_sd"] + 1.96 * row["mean_gap_error"],
                goal="within 0.2 sd of exact Gaussian conditioning",
                passed=row["mean_gap_sd"] <= 0.2,
                note=f"worst at {row['mean_gap_where']}; the condition moves means by {row['moved']:.1f} sd",
            ),
            figure(
                SECTION,
                f"conditional sds: {row['case']}",
                row["sd_gap"],
                low=row["sd_gap"] - 1.96 * row["sd_gap_error"],
                high=row["sd_gap"] + 1.96 * row["sd_gap_error"],
                goal="within 10 % of exact Gaussian conditioning",
                passed=row["sd_gap"] <= 0.1,
                note="largest relative gap over months and series",
            ),
        ]
    return rows


def _latent_rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    total, weakest = float(table["kl"].sum()), table.sort("kl").row(0, named=True)
    return [
        figure(
            SECTION,
            "latents in use",
            float(table["is_active"].mean()),  # type: ignore[arg-type]
            goal="all above 0.1 nats",
            passed=bool(table["is_active"].all()),
            note=f"KL {total:.1f} nats over {table.height}; least {weakest['kl']:.2f}: {weakest['meaning']}",
        ),
        figure(
            SECTION,
            "posterior mean against the slow shock it stands for, lowest correlation",
            float(table["correlation"].min()),  # type: ignore[arg-type]
            goal=">= 0.9",
            passed=bool((table["correlation"] >= 0.9).all()),
        ),
    ]
