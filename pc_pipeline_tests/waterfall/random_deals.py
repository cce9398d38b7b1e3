"""Random deals and random collections for the property tests: every clause can occur."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pc_pipeline.core.rng import stream
from pc_pipeline.waterfall import Deal, parse_deal

POOL = 1_000_000.0


def collections(seed: int, n_paths: int, n_months: int, default_rate: float, recovery: float) -> np.ndarray:
    """(P, T, 5) collections of a pool of POOL that amortises, prepays, defaults and recovers."""
    draw = stream(seed, "collections")
    balance = np.full(n_paths, POOL)
    cash = np.zeros((n_paths, n_months, 5))
    for t in range(n_months):
        cash[:, t, 0] = balance * 0.08 / 12 * draw.uniform(0.2, 1.2, n_paths)
        cash[:, t, 1] = balance / (n_months - t) * draw.uniform(0.3, 1.0, n_paths)
        left = balance - cash[:, t, 1]
        cash[:, t, 2] = left * draw.uniform(0, 0.04, n_paths) * (draw.random(n_paths) < 0.8)
        left = left - cash[:, t, 2]
        cash[:, t, 3] = left * np.minimum(default_rate * draw.exponential(1.0, n_paths), 0.6)
        if t >= 2:
            cash[:, t, 4] = recovery * cash[:, t - 2, 3]
        balance = balance - cash[:, t, 1:4].sum(axis=1)
    return cash


def extras(seed: int, n_paths: int, n_months: int) -> dict[str, np.ndarray]:
    """Delinquent balances and other receipts."""
    draw = stream(seed, "extras")
    return {
        "delinquent": draw.uniform(0, 0.1 * POOL, (n_paths, n_months)),
        "other_interest": draw.uniform(0, 0.001 * POOL, (n_paths, n_months)),
    }


@st.composite
def deals(draw: Any) -> Deal:
    """A deal of one to four note classes and a residual, with or without every clause."""
    n = draw(st.integers(1, 4))
    flag, pick = st.booleans(), st.sampled_from
    cuts = sorted(draw(st.lists(st.floats(0.02, 0.98), min_size=n, max_size=n, unique=True)))
    sizes = np.diff([0.0, *cuts, 1.0])
    names = [f"C{i}" for i in range(n)]
    tranches: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        coupon: Any = draw(st.just(0.0) | st.floats(0.001, 0.15))  # a rate of 1e-100 cures no IC test
        if draw(flag):
            coupon = {"index": "SOFR", "spread": coupon / 3, "floor": 0.0, "cap": 0.12}
        tranches.append({"name": name, "size": float(sizes[i]), "coupon": coupon})
        tranches[-1] |= {"day_count": draw(pick(["30/360", "Act/360"])), "interest_on_shortfall": draw(flag)}
        if i > 0:
            tranches[-1]["pik"] = draw(flag)
        if isinstance(coupon, dict) and draw(flag):
            coupon |= {"available_funds_cap": True, "steps": [{"start": dt.date(2024, 6, 1), "rate": 0.02}]}
    if n > 1 and draw(st.integers(0, 3)) == 0:
        tranches[-1] |= {"kind": "accrual", "accrues_until_paid": [names[0]], "pik": False}
    if draw(st.integers(0, 3)) == 0:
        tranches.insert(0, {"name": "X", "kind": "io", "notional": [names[0]], "coupon": 0.005})
    tranches.append({"name": "E", "kind": "residual", "size": float(sizes[-1])})
    tests = [
        {"name": f"{kind}_{name}", "kind": kind, "of": name, "trigger": draw(st.floats(0.9, 1.6))}
        for name in names
        for kind in ("oc", "ic")
        if draw(flag)
    ]
    fees: list[dict[str, Any]] = [
        {
            "name": "senior_fee",
            "rate": draw(st.floats(0, 0.02)),
            "base": draw(pick(["pool", "notes", "original_pool"])),
        }
    ]
    fees.append({"name": "junior_fee", "amount": draw(st.floats(0, 20_000)), "cap_amount": 1_000.0})
    if draw(flag):
        fees.append({"name": "incentive", "hurdle_irr": 0.1, "share": 0.2, "hurdle_class": "E"})
    accounts: list[dict[str, Any]] = []
    if draw(flag):
        accounts.append(
            {
                "name": "reserve",
                "initial": {"share_of_original": 0.01},
                "target": {"share_of_pool": 0.02, "floor_amount": 500.0},
                "earnings_rate": 0.02,
                "releases_when_enough": draw(flag),
            }
        )
    if draw(flag):
        accounts.append(
            {"name": "facility", "kind": "facility", "initial": {"amount": 3_000.0}, "earnings_rate": 0.06}
        )
    if draw(flag):
        accounts.append(
            {"name": "prefund", "kind": "prefunding", "initial": {"amount": 50_000.0}, "until_month": 3}
        )
    triggers: list[dict[str, Any]] = [
        {
            "name": "losses",
            "kind": "cumulative_loss",
            "level": draw(st.floats(0.0, 0.2)),
            "cure": draw(pick(["never", "passing"])),
        },
        {"name": "late", "kind": "delinquency", "level": 0.06, "average_months": draw(pick([1, 3]))},
        {"name": "small", "kind": "pool_factor", "level": 0.4},
    ]
    terms: dict[str, Any] = {
        "rounding": draw(pick([0.0, 0.0, 0.01])),
        "name": "random",
        "tranches": tranches,
        "tests": tests,
        "fees": fees,
        "accounts": accounts,
        "triggers": triggers,
        "subordinated_fees": ["junior_fee"],
        "losses": draw(pick(["unpaid", "write_down"])),
        "collateral": {
            "recoveries": draw(pick(["interest", "principal"])),
            "delinquent_haircut": draw(pick([0.0, 0.5])),
            "default_credit": draw(pick([0.0, 0.3])),
            "oc_target": {"share_of_pool": 0.05, "floor_share_of_original": 0.01},
        },
    }
    triggers.append({"name": "under", "kind": "undercollateralized", "level": 1.02, "classes": names})
    triggers.append({"name": "unpaid", "kind": "interest_shortfall", "classes": names[:1], "cure": "never"})
    triggers.append({"name": "gone", "kind": "paid_off", "classes": names[:1]})
    if any(account["name"] == "reserve" for account in accounts):
        triggers.append({"name": "low", "kind": "account_below", "account": "reserve"})
    if draw(flag):
        rate = {"index": "SOFR", "spread": 0.0}
        terms["swaps"] = [{"name": "swap", "notional": names[:1], "pay": {"rate": 0.03}, "receive": rate}]
    if draw(flag):
        terms["reinvestment"] = {
            "months": draw(st.integers(0, 8)),
            "price": draw(pick([1.0, 0.9])),
            "recovery_lag_months": draw(pick([0.0, 3.0, 12.0])),
        }
    if draw(st.integers(0, 2)) == 0:
        terms["call"] = {"pool_factor": 0.2, "price": draw(pick([1.0, 0.8]))}
    if draw(flag):
        terms["waterfall"] = _steps(draw, terms, names)
    return parse_deal(terms)


def _steps(draw: Any, terms: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An auto-style combined list, or a separate one with principal support and shifting interest."""
    flag = st.booleans()
    reserves = [account["name"] for account in terms["accounts"] if account["name"] == "reserve"]
    lenders = [account["name"] for account in terms["accounts"] if account["name"] == "facility"]
    prefunding = [account["name"] for account in terms["accounts"] if account["name"] == "prefund"]
    earning = [t["name"] for t in terms["tranches"] if t.get("kind") != "residual"]
    accruing = [t["name"] for t in terms["tranches"] if t.get("kind") == "accrual"]
    combined = draw(flag)
    pot = "combined" if combined else "interest"
    lines: list[dict[str, Any]] = [{"release": name} for name in reserves]
    lines += [{"fee": "senior_fee"}]
    lines += [{"swap": swap["name"]} for swap in terms.get("swaps", [])]
    lines += [{"repay": name} for name in lenders]
    lines += [{"accrue": name} for name in accruing]
    support = [pot, *reserves, *lenders, *([] if combined else ["principal"])]
    if draw(flag):
        lines.append({"interest": earning, "from": support})
    else:
        for name in earning:
            lines.append({"interest": [name], "from": support if draw(flag) else [pot]})
    if terms["tests"] and draw(flag):
        sources = [pot] if combined else ["interest", "principal"]
        lines.append({"cure": [test["name"] for test in terms["tests"]], "from": sources})
    lines += [{"fund": name, "unless": ["late"]} for name in reserves]
    lines.append({"fee": "junior_fee"})
    if any(fee["name"] == "incentive" for fee in terms["fees"]):
        lines.append({"incentive": "incentive"})
    groups: Any = [names] if draw(flag) else names
    if combined:
        lines = [{"release": name} for name in prefunding] + lines
        lines.append({"principal": {"to": names, "amount": "parity"}})
        lines.append(
            {
                "principal": {
                    "to": groups,
                    "amount": draw(st.sampled_from(["to_target", "collections", "share"])),
                },
                "unless": ["losses"],
            }
        )
        lines.append({"principal": groups, "when": ["losses"]})
        own = {"share_of_pool": 0.3, "floor_share_of_original": 0.02}
        lines.append({"principal": {"to": names[:1], "amount": "to_target", "target": own}})
        plan = [{"from_month": 1, "level": 0.5 * POOL}, {"from_month": 6, "level": 0.2 * POOL}]
        lines.append({"principal": {"to": names, "amount": "planned", "plan": plan}})
        return {"combined": [*lines, {"residual": "E"}]}
    principal: list[dict[str, Any]] = [{"release": name} for name in prefunding]
    if draw(flag):
        lines.append({"move": "principal", "when": ["unpaid"]})
    if "reinvestment" in terms:
        principal.append({"reinvest": True, "unless": ["losses"]})
    principal.append(
        {
            "principal": {
                "to": names[:1],
                "amount": "shifting",
                "shift": [{"from_month": 1, "level": 1.0}, {"from_month": 5, "level": 0.3}],
            },
            "when": ["small"],
        }
    )
    principal.append({"principal": groups})
    return {"interest": [*lines, {"residual": "E"}], "principal": [*principal, {"residual": "E"}]}
