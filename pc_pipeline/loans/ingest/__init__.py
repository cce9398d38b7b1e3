"""Ingest: delivered tapes and histories become validated tables; what is refused is kept and counted.

Here: `read_tape`, `recognise`, `draft_mapping`, `deliver`, `history`. One module a format;
`docs/methods/ingest.md` states each rule. Not here: synthetic tapes (`loans.tape`), the store (`core.store`).
"""

from __future__ import annotations

from pc_pipeline.loans.ingest.covariates import add_covariates
from pc_pipeline.loans.ingest.deliveries import (
    Delivery,
    deliver,
    deliveries,
    history,
    pools,
    source_digest,
    verify,
)
from pc_pipeline.loans.ingest.draft import draft_mapping
from pc_pipeline.loans.ingest.merge import History
from pc_pipeline.loans.ingest.read import ADAPTERS, read_tape, recognise
from pc_pipeline.loans.ingest.result import IngestResult

__all__ = [
    "ADAPTERS",
    "Delivery",
    "History",
    "IngestResult",
    "add_covariates",
    "deliver",
    "deliveries",
    "draft_mapping",
    "history",
    "pools",
    "read_tape",
    "recognise",
    "source_digest",
    "verify",
]
