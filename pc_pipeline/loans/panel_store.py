"""How a panel is packed on disk: money in cents, ratios in their digits, one sum left out.

Here: `PANEL_FORMAT`, given to the store by whoever writes a panel. Half the bytes of plain zstd Parquet, the
same values (docs/methods/loans.md, section 6). Not here: packing itself (`core.compact`).
"""

from __future__ import annotations

from typing import Final

from pc_pipeline.core.compact import CompactFormat

_MONEY: Final = (
    "original_balance",
    "scheduled_payment",
    "actual_payment",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "outstanding_balance",
    "recovery_amount",
    "loss_amount",
)
_RATIOS: Final = {"ltv_current": 4, "rate_incentive": 6}
PANEL_FORMAT: Final = CompactFormat(
    digits={**dict.fromkeys(_MONEY, 2), **_RATIOS},
    differences={"principal_paid": ("actual_payment", "interest_paid")},
    split=frozenset(
        {"scheduled_payment", "actual_payment", "interest_paid", "principal_paid", "outstanding_balance"}
        | _RATIOS.keys()
    ),
    plain=frozenset({"loan_id"}),
    level=6,
)
PACKED_TABLES: Final = {"loan_panel": PANEL_FORMAT, "landing_panel": PANEL_FORMAT}
