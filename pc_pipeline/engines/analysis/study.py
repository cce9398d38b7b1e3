"""`Study`: one pool, one set of models, one deal. What every analysis of this shelf starts from.

Here: the deal beside the pool's models, from memory or read from a store. Not here: the pieces and the ways
to run them (`engines.pool_models`), the analyses themselves (`sensitivities`, `reverse_stress`,
`attribution`, `pool_changes`, `uncertainty`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import as_pool
from pc_pipeline.engines.pool_models import BATCH_PATHS, Lines, PoolModels
from pc_pipeline.engines.stages.learning import JOINT_FOLDER
from pc_pipeline.engines.stages.results import find_deal
from pc_pipeline.models.checkpoint import load_model
from pc_pipeline.simulation.distil import CompiledLoans, DistilConfig, distil_loans
from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline.waterfall.deal import Deal

__all__ = ["BATCH_PATHS", "Lines", "Study"]
NETWORKS = ("macro_vae", "transition_transformer", "loan_residual", "loan_trajectory")


@dataclass(frozen=True, kw_only=True)
class Study(PoolModels):
    """A pool with its models and deal; what they are made of is said in `PoolModels`.

    Attributes:
        deal: terms. versions: model name -> weights digest.
    """

    deal: Deal
    versions: Mapping[str, str] = field(default_factory=dict)

    # ---- where from -------------------------------------------------------------------------

    @classmethod
    def from_models(
        cls,
        loans: Any,
        macro_vae: Any,
        transition_model: Any,
        trajectory_model: Any = None,
        deal: WaterfallConfig | Deal | None = None,
        *,
        compiled: CompiledLoans | None = None,
        n_months: int = 60,
        seed: int = 42,
        start: date | None = None,
        distil: DistilConfig | None = None,
    ) -> Study:
        """A study of models in memory, with the arguments of `PortfolioAggregator.monte_carlo_simulate`.

        Args:
            loans: tape (every loan new) or pool, polars or pandas.
            trajectory_model: distilled along baseline paths unless `compiled` is given; None: loans move as
                their cohort.
            deal: terms; None: the seeds' `WaterfallConfig`.

        Raises:
            SimulationError: the pool cannot be simulated.
        """
        pool = as_pool(loans)
        bare = cls(
            pool=pool,
            macro_vae=macro_vae,
            transition_model=transition_model,
            compiled=compiled,
            deal=as_deal(deal or WaterfallConfig()),
            n_months=n_months,
            seed=seed,
            start=start,
            reference_month=int(getattr(trajectory_model, "reference_month", 0)) or None,
        )
        bare.arrays  # noqa: B018  a pool that cannot be simulated fails here
        if compiled is not None or trajectory_model is None:
            return bare
        lessons = distil or DistilConfig(seed=seed)
        taught = distil_loans(
            trajectory_model,
            transition_model,
            pool,
            bare.macro("baseline", lessons.n_paths),
            lessons,
            start=start,
            reference_month=bare.reference_month,
        )
        return replace(bare, compiled=taught)

    @classmethod
    def from_store(
        cls,
        store: Store,
        *,
        deal: str = "",
        deals_dir: str | Path = "data/deals",
        n_months: int = 60,
        seed: int = 42,
    ) -> Study:
        """The store's pool with its joint models.

        Raises:
            SimulationError: no pool or no trained models there.
        """
        folder = store.model_folder(JOINT_FOLDER)
        if not store.has_table("pool") or not (folder / "macro_vae").exists():
            raise SimulationError(
                "nothing to analyse: the store has no pool or no trained models",
                expected="a finished run, e.g. make tiny DATA=... or make run",
                got=str(store.root),
            )
        found = {name: load_model(folder / name) for name in NETWORKS}
        for model, _ in found.values():
            model.requires_grad_(False).eval()
        pool = store.read_table("pool")
        first = store.scan_table("macro_scenarios").select(pl.col("month").min()).collect().item()
        longest = int(str(pool["remaining_term_months"].max()))
        return cls(
            pool=pool,
            macro_vae=found["macro_vae"][0],
            transition_model=found["transition_transformer"][0],
            compiled=CompiledLoans(model=found["loan_residual"][0]),
            deal=find_deal(deal, str(deals_dir), pool),
            n_months=min(n_months, longest),
            seed=seed,
            start=first,
            reference_month=int(found["loan_trajectory"][0].reference_month),
            versions={name: str(card["weights"])[:12] for name, (_, card) in found.items()},
        )


def as_deal(config: WaterfallConfig | Deal) -> Deal:
    """Terms of either form."""
    return config if isinstance(config, Deal) else config.to_deal()
