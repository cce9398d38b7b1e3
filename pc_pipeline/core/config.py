"""Settings that belong to a machine and a run, not to a model: where data lies, which device computes.

The environment is read in one function, when asked, never at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pc_pipeline.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One run's settings.

    Attributes:
        data_dir: the store's folder.
        recipe: 'tiny', 'base', 'full' or 'paper'.
        seed: master seed.
        deal: path of a deal YAML; '' takes the default deal of the pool.
        macro: path of real macro history for a real tape; '' looks beside the tape.
        device: 'auto', 'cpu' or 'cuda'.
        deals_dir: folder with the deals that ship.
    """

    data_dir: Path = Path("data")
    recipe: str = "base"
    seed: int = 42
    deal: str = ""
    macro: str = ""
    device: str = "auto"
    deals_dir: Path = Path("data/deals")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], root: Path) -> Settings:
        """Settings from PC_DATA, PC_RECIPE, PC_SEED, PC_DEAL, PC_MACRO and PC_DEVICE; paths below `root`.

        Raises:
            ConfigError: the seed is no whole number.
        """
        seed = environment.get("PC_SEED") or "42"
        if not seed.isdigit():
            raise ConfigError("seed is no whole number", expected="digits", got=seed, where="PC_SEED")
        return cls(
            data_dir=(root / (environment.get("PC_DATA") or "data")).resolve(),
            recipe=environment.get("PC_RECIPE") or "base",
            seed=int(seed),
            deal=environment.get("PC_DEAL") or "",
            macro=environment.get("PC_MACRO") or "",
            device=environment.get("PC_DEVICE") or "auto",
            deals_dir=(root / "data" / "deals").resolve(),
        )
