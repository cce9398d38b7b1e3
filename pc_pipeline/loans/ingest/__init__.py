"""Ingest: delivered tapes and histories become validated tables; what is refused is kept and counted.

Here: `read_tape`, `recognise`, `draft_mapping`. One module a format; `docs/methods/ingest.md` states each
rule. Not here: synthetic tapes (`loans.tape`), the store (`core.store`).
"""

from __future__ import annotations

from pc_pipeline.loans.ingest.draft import draft_mapping
from pc_pipeline.loans.ingest.read import ADAPTERS, read_tape, recognise
from pc_pipeline.loans.ingest.result import IngestResult

__all__ = ["ADAPTERS", "IngestResult", "draft_mapping", "read_tape", "recognise"]
