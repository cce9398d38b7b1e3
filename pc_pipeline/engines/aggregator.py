"""`PortfolioAggregator`: from loans and networks to tranches.

Here: the composition. `monte_carlo_simulate` = macro paths -> `simulate` (loans to pool cash) -> `report`
(pool cash to tranches and measures); each half stands alone, so that simulated cash can be stored between
them. Not here: the kernel and estimators (`simulation`), the deal's rules (`waterfall`), layout (`reports`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.macro_sources import check_count, draw_macro
from pc_pipeline.engines.pool_models import PoolModels
from pc_pipeline.engines.results import SimulationResults, macro_fan
from pc_pipeline.engines.tail_source import TailSource
from pc_pipeline.engines.tranches import tranche_results
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import CASH_CHANNELS, N_CASH, canonical_scenario
from pc_pipeline.simulation.batches import check_disk, kept_paths
from pc_pipeline.simulation.distil import CompiledLoans, DistilConfig, distil_loans
from pc_pipeline.simulation.monte_carlo import (
    Progress,
    SimulatedCash,
    SimulationConfig,
    cash_from_table,
    check_memory,
    simulate_pool,
)
from pc_pipeline.simulation.own_luck import luck_along
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline.simulation.pool import DEFAULT_SEVERITY, pool_arrays
from pc_pipeline.simulation.rows import NetworkRows, loan_inputs
from pc_pipeline.simulation.tails import TailConfig
from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall

CONVENTIONS = {
    "horizon": "horizon_sale: at the horizon performing, 30dpd and 60dpd balances are sold at par, 90dpd is "
    "charged off with its recovery at once; recoveries still to come are collected in the last month",
    "loss": "charge-offs less recoveries, share of the pool balance at the cut-off",
    "cash": "paid-through ledger: a cure pays arrears, 90dpd pays nothing, a default charges off the balance",
    "reinvestment": "principal kept for reinvestment buys a pro rata slice of the living pool",
}


class PortfolioAggregator(nn.Module):
    """Portfolio cash, its distribution by the deal, and the Monte Carlo over both.

    Args:
        config: the seeds' `WaterfallConfig`, or a `Deal`.
    """

    def __init__(self, config: WaterfallConfig | Deal | None = None) -> None:
        super().__init__()
        self.config = WaterfallConfig() if config is None else config
        if not isinstance(self.config, WaterfallConfig | Deal):
            raise ConfigError("no deal", expected="WaterfallConfig or Deal", got=type(config).__name__)
        self.deal = self.config if isinstance(self.config, Deal) else self.config.to_deal()

    def forward(self, portfolio_cf: Tensor) -> dict[str, Tensor]:
        """`apply_waterfall`."""
        return self.apply_waterfall(portfolio_cf)

    # ---- loans to pool ----------------------------------------------------------------------

    def aggregate_cashflows(self, trajectories: Mapping[str, Tensor], loan_features: Any) -> Any:
        """Add up loan trajectories to pool cash.

        Args:
            trajectories: as `LoanTrajectoryModel.generate` returns them: states, payments, balances,
                losses, each (S, L, T) or (L, T); optionally principal and charge_offs.
            loan_features: frame of the L loans with `current_balance` or `original_balance`.

        Returns:
            Frame of the same kind, one row per path and month: path_id, month_index and the five
            cash channels. The recovery is booked in the month of default.

        Raises:
            SimulationError: shapes do not fit the loans.
        """
        frame = nw.from_native(loan_features, eager_only=True)
        column = "current_balance" if "current_balance" in frame.columns else "original_balance"
        cash = _pool_cash(trajectories, frame[column].to_numpy().astype(float))
        n_paths, n_months = cash.shape[:2]
        data: dict[str, np.ndarray] = {
            "path_id": np.repeat(np.arange(n_paths), n_months),
            "month_index": np.tile(np.arange(n_months), n_paths),
        }
        data |= {name: cash[:, :, c].ravel() for c, name in enumerate(CASH_CHANNELS)}
        return nw.from_dict(data, backend=frame.implementation).to_native()

    # ---- pool to tranches -------------------------------------------------------------------

    def apply_waterfall(
        self, portfolio_cf: Any, pool_balance: float | None = None, index_rate: Any = None
    ) -> dict[str, Any]:
        """Distribute pool cash by the deal.

        Args:
            portfolio_cf: (n_sims, n_months, 5) by channel. A tensor runs with soft gates and carries
                gradients; an array runs hard.
            pool_balance: original pool, currency; without it, the deal's own or all principal ever
                collected and charged off on the largest path.
            index_rate: index of floating coupons, decimal per year, (T,) or (P, T).

        Returns:
            tranche_cashflows, interest_paid, principal_paid, balance, interest_shortfall (P, T, N); oc_ratio
            and ic_ratio (P, T, tests) and passed, fees, residual, pool; tranche_losses (P, N).
        """
        result = self.run(portfolio_cf, pool_balance, index_rate)
        original = result.original_balance
        scale = torch.as_tensor(original) if isinstance(result.balance, Tensor) else np.asarray(original)
        safe = scale + (scale <= 0) * 1.0
        places = {kind: [k for k, t in enumerate(self.deal.tests) if t.kind == kind] for kind in ("oc", "ic")}
        return {
            "tranche_cashflows": result.cash,
            "interest_paid": result.interest_paid,
            "principal_paid": result.principal_paid,
            "balance": result.balance,
            "interest_shortfall": result.interest_shortfall,
            "oc_ratio": result.ratios[..., places["oc"]],
            "ic_ratio": result.ratios[..., places["ic"]],
            "passed": result.passed,
            "fees": result.fees,
            "residual": result.residual,
            "pool": result.pool,
            "tranche_losses": (result.balance[:, -1] + result.written_down[:, -1]) / safe,
        }

    def run(
        self, portfolio_cf: Any, pool_balance: float | None = None, index_rate: Any = None
    ) -> WaterfallResult:
        """`waterfall.run_waterfall` on this deal, with the pool balance found where none is given."""
        balance = pool_balance or self.deal.collateral.pool_balance or _principal_in_all(portfolio_cf)
        return run_waterfall(portfolio_cf, self.deal, pool_balance=balance, index_rate_PT=index_rate)

    # ---- the two halves ---------------------------------------------------------------------

    def simulate(
        self,
        pool: pl.DataFrame,
        macro: np.ndarray | MacroPaths,
        transition_model: Any,
        compiled: CompiledLoans | None = None,
        config: SimulationConfig | None = None,
        *,
        start: date | None = None,
        reference_month: int | None = None,
        severity_GQ: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        is_controlled: bool = False,
        run_folder: str | Path | None = None,
        progress: Progress | None = None,
    ) -> SimulatedCash:
        """Pool cash along given macro paths; the deal plays no part.

        Args:
            pool: `pool` table with tape columns.
            macro: paths (P, T, 9), bare or as a macro source gives them; T is the horizon.
            transition_model: `TransitionTransformer`.
            compiled: the loan model in compiled form (`simulation.distil`); None: loans move as their cohort.
            start: first simulated month, for the calendar; None is neutral.
            reference_month: where vintage_index is 0 (month index), as in training.
            severity_GQ: loss given default quantiles by asset class; those of `compiled` without it.
            is_controlled: follow loans' own luck, a control variate of every measure (a third more time).
            run_folder: as `folder` of `simulation.monte_carlo.simulate_pool`.
        """
        cohorts = cohort_table(pool)
        values = macro.values_PTM if isinstance(macro, MacroPaths) else macro
        n_months = np.shape(values)[1] if np.ndim(values) == 3 else 0
        if severity_GQ is None:
            severity_GQ = DEFAULT_SEVERITY if compiled is None else compiled.severity_GQ
        arrays = pool_arrays(pool, cohorts, n_months, severity_GQ=severity_GQ)
        rows = NetworkRows(
            model=transition_model,
            cohorts=cohorts,
            start=start,
            intercept_TKJ=None if compiled is None else compiled.intercept(n_months),
        )
        residual = None if compiled is None else compiled.weights(loan_inputs(pool, reference_month))
        return simulate_pool(
            arrays,
            cohorts,
            macro,
            rows,
            residual,
            config,
            weights_P=weights,
            luck=luck_along(arrays, residual, rows, np.asarray(values)) if is_controlled else None,
            folder=run_folder,
            progress=progress,
        )

    def report(
        self,
        simulations: pl.DataFrame | SimulatedCash,
        pool_balance: float | None = None,
        *,
        scenario: str | None = None,
        macro_fan_report: pl.DataFrame | None = None,
        seeds: Mapping[str, int] | None = None,
        model_versions: Mapping[str, str] | None = None,
        diagnostics: Mapping[str, float] | None = None,
    ) -> SimulationResults:
        """Tranches and measures of simulated pool cash.

        Args:
            simulations: table `simulations` of one scenario, or what `simulate` returned.
            pool_balance: at the cut-off; needed with a table unless cash adds up to it.
            scenario: name; read from the table.
        """
        if isinstance(simulations, SimulatedCash):
            cash, index, weights = simulations.cash_PTC, simulations.index_rate_PT, simulations.weights_P
            pool_balance = pool_balance or simulations.pool_balance
            drawn = {name: getattr(simulations, name) for name in ("strata_P", "scenario_P", "control")}
        else:
            names = simulations["scenario"].unique().to_list()
            if len(names) != 1:
                raise SimulationError("one scenario at a time", expected="one name", got=sorted(names))
            scenario = scenario or names[0]
            stored = cash_from_table(simulations)
            cash, index, weights = stored.cash_PTC, stored.index_rate_PT, stored.weights_P
            drawn = {"strata_P": stored.strata_P, "control": stored.control}
        balance = pool_balance or _principal_in_all(cash)
        totals = cash.sum(axis=1)
        return SimulationResults(
            portfolio_losses=(totals[:, 3] - totals[:, 4]) / balance,
            tranche_results=tranche_results(cash, self.deal, balance, index, weights),
            cashflows={name: cash[:, :, c] for c, name in enumerate(CASH_CHANNELS)},
            weights=weights,
            scenario=scenario or "simulation",
            pool_balance=balance,
            macro_fan=macro_fan_report,
            conventions=CONVENTIONS | {"waterfall": self.deal.name},
            seeds=dict(seeds or {}),
            model_versions=dict(model_versions or {}),
            diagnostics=dict(diagnostics or {}),
            **drawn,
        )

    # ---- the whole --------------------------------------------------------------------------

    def monte_carlo_simulate(
        self,
        loans_df: Any,
        macro_vae: Any = None,
        transition_model: Any = None,
        trajectory_model: Any = None,
        n_simulations: int = 10_000,
        scenario_mix: Mapping[str, float] | None = None,
        *,
        macro_source: Any = None,
        n_months: int = 60,
        seed: int = 0,
        start: date | None = None,
        compiled: CompiledLoans | None = None,
        distil: DistilConfig | None = None,
        config: SimulationConfig | None = None,
        reference_month: int | None = None,
        model_versions: Mapping[str, str] | None = None,
        sampling: str = "plain",
        tail: TailConfig | None = None,
        run_folder: str | Path | None = None,
        progress: Progress | None = None,
    ) -> SimulationResults:
        """Full Monte Carlo: macro paths, cohort rows, loans, cash, waterfall, measures.

        Args:
            loans_df: tape (every loan new) or pool, polars or pandas.
            macro_vae: `MacroVAE`, or anything that `macro_source` may be.
            transition_model: `TransitionTransformer`.
            trajectory_model: `LoanTrajectoryModel`, distilled unless `compiled` is given; None: loans move
                as their cohort.
            n_simulations: macro paths; each carries the whole pool.
            scenario_mix: name -> share; shares sum to 1. None: baseline alone. 'severe' is accepted.
            macro_source: where macro paths come from instead of the VAE: history, supervisory or custom
                scenarios, own paths or function, a `TailSource`; see `engines.macro_sources.as_source`.
            n_months: horizon.
            sampling: 'plain', all paths alike; 'tails', paths of the VAE drawn along the loss of this pool,
                with weights and strata, loans' own luck taken out of every measure. tail: how.
            run_folder: keep finished batches there; the same call after a kill goes on from them.
            seed: of everything drawn here.
            reference_month: as in `simulate`; the trained `trajectory_model` knows its own.

        Raises:
            ConfigError: the mix does not sum to 1. SimulationError: see `simulation.monte_carlo`.
        """
        pool = as_pool(loans_df)
        source = macro_vae if macro_source is None else macro_source
        if source is None or transition_model is None:
            raise ConfigError(
                "a run needs a macro source and a transition model",
                got=(type(source).__name__, type(transition_model).__name__),
            )
        if reference_month is None:
            reference_month = int(getattr(trajectory_model, "reference_month", 0)) or None
        mix = check_mix(scenario_mix)
        check_count(n_simulations, n_months)
        config = config or SimulationConfig(seed=seed)
        cohorts = cohort_table(pool)
        arrays = pool_arrays(pool, cohorts, n_months)  # what cannot be simulated fails here, before any work
        check_memory(arrays, cohorts.height, n_simulations, n_months, config)
        if run_folder is not None:
            check_disk(run_folder, n_simulations - kept_paths(run_folder, n_months), n_months)
        check_sampling(sampling, source)
        lessons = distil or DistilConfig(seed=seed)
        macro_seed, n_plain = derive_seed(seed, "macro"), n_simulations
        if sampling == "tails":
            n_plain = min(lessons.n_paths, n_simulations)
        macro = draw_macro(source, mix, n_plain, n_months, macro_seed)
        if compiled is None and trajectory_model is not None:
            compiled = distil_loans(
                trajectory_model,
                transition_model,
                pool,
                macro.values_PTM[_spread(n_plain, lessons.n_paths)],
                lessons,
                start=start,
                reference_month=reference_month,
            )
        if sampling == "tails":
            moved = PoolModels(
                pool=pool,
                macro_vae=source,
                transition_model=transition_model,
                compiled=compiled,
                n_months=n_months,
                seed=seed,
                start=start,
                reference_month=reference_month,
            )
            macro = TailSource(moved, tail or TailConfig()).draw_mix(mix, n_simulations, n_months, macro_seed)
        simulated = self.simulate(
            pool,
            macro,
            transition_model,
            compiled,
            config,
            start=start,
            reference_month=reference_month,
            is_controlled=macro.strata_P is not None,
            run_folder=run_folder,
            progress=progress,
        )
        name = " + ".join(
            f"{share:.0%} {scenario}" if len(mix) > 1 else scenario for scenario, share in mix.items()
        )
        return self.report(
            simulated,
            scenario=name,
            macro_fan_report=macro_fan(
                macro.values_PTM, name, None if macro.weights_P is None else simulated.weights_P
            ),
            seeds={"simulation": seed},
            model_versions=model_versions,
            diagnostics={} if compiled is None else compiled.distance,
        )


def check_sampling(sampling: str, source: Any) -> None:
    """Refuse a way of sampling that is unknown, or that the macro source does not allow.

    Raises:
        ConfigError: neither 'plain' nor 'tails', or tails of anything but a trained VAE.
    """
    if sampling not in ("plain", "tails"):
        raise ConfigError("no such sampling", expected="plain or tails", got=sampling)
    if sampling == "tails" and not (hasattr(source, "roll") and hasattr(source, "scenario_code")):
        raise ConfigError("tails are drawn along the noise of a VAE", expected="a MacroVAE", got=type(source))


def check_mix(scenario_mix: Mapping[str, float] | None) -> dict[str, float]:
    """Canonical names and shares.

    Raises:
        ConfigError: empty, negative, or not summing to 1.
    """
    mix: dict[str, float] = {}
    for name, share in (scenario_mix or {"baseline": 1.0}).items():
        mix[canonical_scenario(name)] = mix.get(canonical_scenario(name), 0.0) + float(share)
    if min(mix.values()) < 0 or abs(sum(mix.values()) - 1.0) > 1e-6:
        raise ConfigError("scenario shares make no mix", expected="shares >= 0 that sum to 1", got=mix)
    return {name: share for name, share in mix.items() if share > 0}


def _spread(n_paths: int, wanted: int) -> np.ndarray:
    """Evenly spaced path numbers, so that every scenario of a mix is seen."""
    return np.unique(np.linspace(0, n_paths - 1, min(wanted, n_paths)).astype(int))


def as_pool(loans_df: Any) -> pl.DataFrame:
    """The pool of a tape (every loan new) or of a pool, polars or pandas."""
    frame = to_polars(loans_df, ("loan_id",), "loans_df")
    return frame if "current_balance" in frame.columns else pool_snapshot(frame)


def _principal_in_all(portfolio_cf: Any) -> float:
    """Principal collected and charged off on the largest path: with `horizon_sale` the pool itself."""
    values = (
        portfolio_cf.detach().cpu().numpy() if isinstance(portfolio_cf, Tensor) else np.asarray(portfolio_cf)
    )
    if values.ndim != 3 or values.shape[2] != N_CASH:
        raise SimulationError(
            "pool cash is misshapen", expected=f"(paths, months, {N_CASH})", got=values.shape
        )
    return float(values[:, :, 1:4].sum(axis=(1, 2)).max())


def _pool_cash(trajectories: Mapping[str, Tensor], balance_L: np.ndarray) -> np.ndarray:
    """(S, T, 5) from loan states, payments, balances and losses."""
    arrays = {
        name: np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t) for name, t in trajectories.items()
    }
    missing = [name for name in ("states", "payments", "balances", "losses") if name not in arrays]
    if missing:
        raise SimulationError(
            "trajectories are incomplete", expected="states, payments, balances, losses", got=missing
        )
    arrays = {name: a[None] if a.ndim == 2 else a for name, a in arrays.items()}
    states, after = arrays["states"], arrays["balances"].astype(float)
    if states.shape[1] != balance_L.size:
        raise SimulationError("trajectories and loans differ", expected=balance_L.size, got=states.shape)
    before = np.concatenate(
        [np.broadcast_to(balance_L[None, :, None], (*states.shape[:2], 1)), after[:, :, :-1]], axis=2
    )
    repaid = np.maximum(before - after, 0.0)
    charged_off = arrays.get("charge_offs", np.where(states == LoanState.default, repaid, 0.0))
    principal = arrays.get("principal", repaid - charged_off)
    prepaid = np.where(states == LoanState.prepaid, principal, 0.0)
    return np.stack(
        [
            (arrays["payments"] - principal).sum(axis=1),
            (principal - prepaid).sum(axis=1),
            prepaid.sum(axis=1),
            charged_off.sum(axis=1),
            (charged_off - arrays["losses"]).sum(axis=1),
        ],
        axis=-1,
    )
