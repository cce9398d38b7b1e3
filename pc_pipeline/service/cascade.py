"""Which engine generates payment sequences now, and its one-month probabilities; no network is loaded for it.

Here: the card of the trained cascade is read, or the statistical matrix is taken. Not here: generation
(`task_sequences`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pc_pipeline.core.store import Store
from pc_pipeline.loans.payment_status import FALLBACK_ENGINE, FALLBACK_MATRIX, LSTM_ENGINE
from pc_pipeline.schemas.states import PAYMENT_STATUSES

CASCADE_FOLDER: Final = "payment_cascade"
Rows = dict[str, dict[str, float]]


def cascade_folder(data_dir: Path) -> Path | None:
    """Folder of the trained cascade in the store, None if there is none."""
    folder = Store(data_dir).model_folder(CASCADE_FOLDER)
    for place in (folder, folder / CASCADE_FOLDER):
        if (place / "card.json").is_file():
            return place
    return None


def current_rows(data_dir: Path, use_lstm: bool = True) -> tuple[str, Rows]:
    """(engine, status -> next status -> probability above zero)."""
    folder = cascade_folder(data_dir) if use_lstm else None
    if folder is not None:
        changed = (folder / "card.json").stat()
        rows = _learned(folder / "card.json", changed.st_mtime_ns, changed.st_size)
        if rows is not None:
            return LSTM_ENGINE, rows
    return FALLBACK_ENGINE, {origin: dict(row) for origin, row in FALLBACK_MATRIX.items()}


@lru_cache(maxsize=4)
def _learned(path: Path, changed_ns: int, n_bytes: int) -> Rows | None:
    """The matrix in a card; None where the card's model falls back on the statistical one."""
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = card["transition_matrix"]
        if card["engine"] != LSTM_ENGINE:
            return None
        return {
            origin: {target: float(p) for target, p in given[origin].items() if p > 0}
            for origin in PAYMENT_STATUSES
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return None
