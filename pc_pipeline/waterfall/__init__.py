"""Securitisation waterfalls: a deal as data, its payments over many paths, and what each class gets.

Here: terms (`terms`, `deal`, `config`), the rules (`month`, `steps`, `rules`), the engine (`engine`) and its
oracle (`reference`), figures (`metrics`). Not here: where collections come from.
"""

from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline.waterfall.deal import Deal, load_deal, parse_deal
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall
from pc_pipeline.waterfall.metrics import IrrResult, TrancheMetrics, irr, tranche_metrics

__all__ = [
    "Deal",
    "IrrResult",
    "TrancheMetrics",
    "WaterfallConfig",
    "WaterfallResult",
    "irr",
    "load_deal",
    "parse_deal",
    "run_waterfall",
    "tranche_metrics",
]
