"""What the store offers to compute with: models by their cards, scenarios, deals. Nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pc_pipeline.schemas.units import SCENARIO_ALIASES, STANDARD_SCENARIOS
from pc_pipeline.service.payloads import ModelCard
from pc_pipeline.service.settings import ServiceSettings

JOINT_FOLDER: Final = "joint_model"
NEEDED: Final = ("macro_vae", "transition_transformer", "loan_trajectory", "loan_residual")


def model_cards(settings: ServiceSettings) -> list[ModelCard]:
    """Every stored model."""
    folder = settings.data_dir / "models"
    cards = sorted(folder.glob("*/card.json")) + sorted(folder.glob("*/*/card.json"))
    return [card for card in (_card(path, folder) for path in cards) if card is not None]


def _card(path: Path, folder: Path) -> ModelCard | None:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # being replaced, or not a card
    fingerprint = card.get("data_fingerprint")
    return ModelCard(
        name="/".join(path.parent.relative_to(folder).parts),
        network=card.get("class"),
        parameters=card.get("n_parameters"),
        weights=card.get("weights"),
        data_fingerprint=str(fingerprint) if fingerprint else None,
    )


def can_simulate(settings: ServiceSettings) -> bool:
    """Whether the networks that a simulation needs are in the store."""
    folder = settings.data_dir / "models" / JOINT_FOLDER
    return all((folder / name / "card.json").is_file() for name in NEEDED)


def scenario_names(settings: ServiceSettings) -> list[str]:
    """Standard scenarios, their aliases, and custom ones kept in the store."""
    kept = sorted(path.stem for path in (settings.data_dir / "scenarios").glob("*.yaml"))
    return [*STANDARD_SCENARIOS, *SCENARIO_ALIASES, *kept]


def deal_names(settings: ServiceSettings) -> list[str]:
    """Deals that may be named: file names without their ending."""
    return sorted(path.stem for path in settings.deals_dir.glob("*.yaml"))
