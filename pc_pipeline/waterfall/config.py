"""The seeds' `WaterfallConfig`: a deal in six numbers, turned into a `Deal`.

Here: the configuration and its reading as terms. Not here: richer deals (`deal`, `data/deals`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.waterfall.deal import Deal, parse_deal

DEFAULT_TRANCHES: tuple[dict[str, Any], ...] = (
    {"name": "Senior", "size": 0.70, "coupon": 0.05},
    {"name": "Mezz", "size": 0.15, "coupon": 0.08},
    {"name": "Junior", "size": 0.10, "coupon": 0.12},
    {"name": "Equity", "size": 0.05, "coupon": None},
)
_TRANCHE_KEYS = {"name", "size", "coupon", "oc_trigger", "ic_trigger"}


def _default_tranches() -> list[dict[str, Any]]:
    return [dict(tranche) for tranche in DEFAULT_TRANCHES]


@dataclass(frozen=True, slots=True)
class WaterfallConfig:
    """A cash CLO in a few numbers.

    Attributes:
        tranches: senior first, each with name, size (share) and coupon (decimal per year; None is the
            residual); optionally its own oc_trigger and ic_trigger (None: no such test).
        oc_trigger: of the senior class. A junior class without its own keeps the same share of its
            initial cushion, 1 + (oc_trigger - 1) x (OC_k - 1) / (OC_senior - 1): one trigger for all would
            fail the junior classes on the closing date.
        ic_trigger: of every class with a coupon.
        reinvestment_period: months.
        management_fee: per year on the opening pool, senior.
        soft_temperature: of differentiable gates.
    """

    tranches: list[dict[str, Any]] = field(default_factory=_default_tranches)
    oc_trigger: float = 1.20
    ic_trigger: float = 1.05
    reinvestment_period: int = 24
    management_fee: float = 0.005
    soft_temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.tranches:
            raise ConfigError("a waterfall needs tranches", got=self.tranches)
        for place, tranche in enumerate(self.tranches):
            unknown = set(tranche) - _TRANCHE_KEYS
            if unknown or not {"name", "size"} <= set(tranche):
                raise ConfigError(
                    "a tranche has name, size and coupon",
                    expected=", ".join(sorted(_TRANCHE_KEYS)),
                    got=tranche,
                    where=f"tranches[{place}]",
                )

    def oc_triggers(self) -> list[float | None]:
        """OC trigger of each class, senior first; None for the residual."""
        ratios, attached = [], 0.0
        for tranche in self.tranches:
            attached += float(tranche["size"])
            ratios.append(1.0 / attached if attached > 0 else 1.0)
        levels: list[float | None] = []
        for tranche, ratio in zip(self.tranches, ratios, strict=True):
            if tranche.get("coupon") is None:
                levels.append(None)
            elif "oc_trigger" in tranche:
                levels.append(tranche["oc_trigger"])
            elif ratios[0] <= 1.0 or ratio <= 1.0:
                levels.append(self.oc_trigger if not levels else 1.0)
            else:
                levels.append(1.0 + (self.oc_trigger - 1.0) * (ratio - 1.0) / (ratios[0] - 1.0))
        return levels

    def to_deal(self, name: str = "waterfall config") -> Deal:
        """The deal these numbers describe, with the standard waterfall.

        Raises:
            DealError: the numbers contradict each other.
        """
        tranches: list[dict[str, Any]] = []
        tests: list[dict[str, Any]] = []
        for tranche, oc in zip(self.tranches, self.oc_triggers(), strict=True):
            coupon, title, size = tranche.get("coupon"), str(tranche["name"]), float(tranche["size"])
            if coupon is None:
                tranches.append({"name": title, "kind": "residual", "size": size})
                continue
            tranches.append({"name": title, "size": size, "coupon": float(coupon)})
            if oc is not None:
                tests.append({"name": f"oc_{title}", "kind": "oc", "of": title, "trigger": float(oc)})
            ic = tranche.get("ic_trigger", self.ic_trigger)
            if ic is not None:
                tests.append({"name": f"ic_{title}", "kind": "ic", "of": title, "trigger": float(ic)})
        terms: dict[str, Any] = {
            "name": name,
            "tranches": tranches,
            "tests": tests,
            "fees": [{"name": "management", "rate": float(self.management_fee), "base": "pool"}],
            "soft_temperature": float(self.soft_temperature),
        }
        if self.reinvestment_period > 0:
            terms["reinvestment"] = {"months": int(self.reinvestment_period)}
        return parse_deal(terms, where=name)
