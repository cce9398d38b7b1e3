"""`Study`: one pool, one set of models, one deal. What every analysis of this shelf starts from.

Here: the deal beside the pool's models, read from a store. Not here: the pieces and the ways to run them
(`engines.pool_models`), the analyses themselves (`sensitivities`, `reverse_stress`, `attribution`,
`pool_changes`, `uncertainty`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.core.store import Store
from pc_pipeline.engines.pool_models import BATCH_PATHS, Lines, PoolModels
from pc_pipeline.engines.stages.learning import JOINT_FOLDER
from pc_pipeline.engines.stages.results import find_deal
from pc_pipeline.models.checkpoint import load_model
from pc_pipeline.simulation.distil import CompiledLoans
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
