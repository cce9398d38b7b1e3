"""Whether the stored models learned from the history that is landed now.

Here: the note that travels from the landing through the observed panel to the models' cards, and
`stale_models`, which compares its ends. Not here: landing (`delivery`), learning (`learning`).
"""

from __future__ import annotations

from pc_pipeline.core.store import Store
from pc_pipeline.engines.stages.landing import read_landing
from pc_pipeline.models.checkpoint import read_card
from pc_pipeline.schemas.units import OBSERVED

DELIVERED = "delivered"
LEARNED_FROM = "learned_from"
_MODEL = ("joint_model", "transition_transformer")


def panel_notes(store: Store) -> dict[str, str]:
    """What the observed panel keeps about itself: the digest of the deliveries that it comes from."""
    landing = read_landing(store)
    return {DELIVERED: landing.sha256} if landing is not None and landing.has_history else {}


def learned_from(store: Store) -> str:
    """Digest of the deliveries that the stored observed panel comes from; '' for a generated pool."""
    return store.table_notes("loan_panel", OBSERVED).get(DELIVERED, "")


def stale_models(store: Store) -> str:
    """What is to be said where models learned from another state of the history than the landed one, else ''.

    A generated pool, or a tape without history, has models of generated loans: never stale.
    """
    landing = read_landing(store)
    folder = store.model_folder(_MODEL[0]) / _MODEL[1]
    if landing is None or not landing.has_history or not folder.is_dir():
        return ""
    known = read_card(folder).get(LEARNED_FROM, "")
    if known == landing.sha256:
        return ""
    return (
        f"models learned from deliveries {known[:12] or 'unknown'}; landed now, as of {landing.as_of[:7]}: "
        f"{landing.sha256[:12]}. Later or restated months are in the pool, not in the models: "
        "pc backfill --retrain, or pc run --tape"
    )
