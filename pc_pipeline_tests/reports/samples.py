"""Report frames as a run would hand them over, from a toy pool whose numbers hang together.

Losses are lognormal around a scenario's level; tranches lose from the bottom up, so tranche losses
follow from the pool's path by path. Nothing here is random beyond named streams.
"""

from __future__ import annotations

import functools

import numpy as np
import polars as pl

from pc_pipeline.core.rng import stream
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_SERIES, STANDARD_SCENARIOS

POOL = 500_000_000.0
N_PATHS = 2_000
N_MONTHS = 60
LEVELS = {"baseline": 0.021, "adverse": 0.042, "severely_adverse": 0.088, "stagflation": 0.055}
TRANCHES = (("Senior", 0.70, 0.05), ("Mezzanine", 0.15, 0.08), ("Junior", 0.10, 0.12), ("Equity", 0.05, None))
NOTES = (
    ("run: Pool", "Four-class synthetic portfolio, 10,000 loans"),
    ("run: As of", "2024-01-01"),
    ("run: Seed", "20240101"),
    ("run: Paths", "2,000 per scenario, 60 months"),
    ("run: Currency", "USD"),
    (
        "convention: Losses",
        "share of the original pool balance; VaR is the quantile, CVaR the mean at or above it",
    ),
    ("convention: Horizon", "horizon_sale: living balances are sold at par in the last month"),
    ("convention: Speeds", "default and prepayment off the same opening balance"),
    ("model: macro_vae", "macro-vae-0.1.0, trained on 2,000 paths, two-sample AUC 0.53"),
    ("model: transition_transformer", "transition-0.1.0, log-loss 0.0912 against 0.0967 for class Markov"),
    ("next: Your own pool", "make run TAPE=path/to/tape.csv"),
    ("next: The lineage in a browser", "make ui"),
)


def losses(scenario: str) -> np.ndarray:
    """(P,) pool losses, share of the original balance; the same shocks in every scenario."""
    shocks = stream(7, "losses").standard_normal(N_PATHS)
    level = LEVELS[scenario]
    return np.minimum(level * np.exp(0.45 * shocks - 0.101), 0.95)


def pool_report(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    rows = []
    for scenario in scenarios:
        sample = np.sort(losses(scenario))
        half = 1.96 * sample.std() / np.sqrt(N_PATHS)
        rows.append((scenario, "expected_loss", sample.mean(), sample.mean() - half, sample.mean() + half))
        for name, share in (("95", 0.95), ("99", 0.99), ("999", 0.999)):
            var = sample[int(np.ceil(share * N_PATHS)) - 1]
            tail = sample[sample >= var]
            spread = 0.08 * (1 + 30 * (share - 0.95))
            rows.append((scenario, f"var_{name}", var, var * (1 - spread), var * (1 + spread)))
            cvar = tail.mean()
            rows.append((scenario, f"cvar_{name}", cvar, cvar * (1 - spread), cvar * (1 + spread)))
    frame = pl.DataFrame(rows, schema=["scenario", "measure", "value", "lower", "upper"], orient="row")
    return validate("pool_report", frame)


def tranche_report(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    rows = []
    for scenario in scenarios:
        sample = losses(scenario)
        attachment = 1.0
        for name, share, coupon in TRANCHES:
            attachment -= share
            lost = np.clip((sample - attachment) / share, 0.0, 1.0)
            mean, half = lost.mean(), 1.96 * lost.std() / np.sqrt(N_PATHS)
            hit = (lost > 0).mean()
            hit_half = 1.96 * np.sqrt(max(hit * (1 - hit), 1e-9) / N_PATHS) + 1.92 / N_PATHS
            wiped = mean > 0.95
            irr = None if wiped else (0.16 if coupon is None else coupon) - mean * 0.28
            rows.append(
                {
                    "scenario": scenario,
                    "tranche": name,
                    "original_balance": share * POOL,
                    "share": share,
                    "coupon": coupon,
                    "expected_loss": mean,
                    "expected_loss_lower": max(mean - half, 0.0),
                    "expected_loss_upper": min(mean + half, 1.0),
                    "loss_probability": hit,
                    "loss_probability_lower": max(hit - hit_half, 0.0),
                    "loss_probability_upper": min(hit + hit_half, 1.0),
                    "irr": irr,
                    "irr_p05": None if irr is None else irr - 0.4 * mean - 0.004,
                    "irr_p95": None if irr is None else irr + 0.003,
                    "wal_years": {"Senior": 2.31, "Mezzanine": 4.02, "Junior": 4.61}.get(name),
                    "oc_failure_probability": None
                    if coupon is None
                    else float((sample > attachment * 0.8).mean()),
                    "ic_failure_probability": None
                    if coupon is None
                    else float((sample > attachment * 1.6).mean()),
                }
            )
    schema = dict.fromkeys(rows[0], pl.Float64) | {"scenario": pl.String, "tranche": pl.String}
    return validate("tranche_report", pl.DataFrame(rows, schema=schema))


def loss_distribution(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    parts = [
        pl.DataFrame(
            {
                "scenario": [scenario] * N_PATHS,
                "path_id": np.arange(N_PATHS),
                "loss": losses(scenario),
                "weight": np.ones(N_PATHS),
            }
        )
        for scenario in scenarios
    ]
    return pl.concat(parts)


def cash_flow_report(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    months = np.arange(N_MONTHS)
    survival = np.exp(-0.035 * months) * (1 - months / (N_MONTHS + 12))
    parts = []
    for scenario in scenarios:
        stress = LEVELS[scenario] / LEVELS["baseline"]
        hump = np.exp(-(((months - 18) / 12.0) ** 2))
        defaulted = POOL * survival * 0.0012 * (1 + (stress - 1) * hump)
        means = {
            "interest": POOL * survival * 0.0065,
            "scheduled_principal": POOL * survival * 0.016,
            "prepaid_principal": POOL * survival * 0.012 / stress**0.5,
            "defaulted_balance": defaulted,
            "recovery": 0.45 * np.convolve(defaulted, np.ones(9) / 9)[:N_MONTHS],
        }
        for channel in CASH_CHANNELS:
            mean = means[channel]
            wide = 0.45 if channel in ("defaulted_balance", "recovery") else 0.08 + 0.05 * hump
            parts.append(
                pl.DataFrame(
                    {
                        "scenario": [scenario] * N_MONTHS,
                        "month_index": months,
                        "channel": [channel] * N_MONTHS,
                        "mean": mean,
                        "p05": mean * (1 - wide),
                        "p50": mean * 0.99,
                        "p95": mean * (1 + 1.4 * wide),
                    }
                )
            )
    return validate("cash_flow_report", pl.concat(parts))


def tranche_balance_report(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    months = np.arange(N_MONTHS)
    parts = []
    for scenario in scenarios:
        paid = POOL * 0.9 * np.clip((months - 12) / 44.0, 0.0, 1.0)
        for name, share, _ in TRANCHES:
            above = sum(s for n, s, _ in TRANCHES[: [t[0] for t in TRANCHES].index(name)]) * POOL
            mean = np.clip(share * POOL - np.clip(paid - above, 0.0, None), 0.0, None)
            parts.append(
                pl.DataFrame(
                    {
                        "scenario": [scenario] * N_MONTHS,
                        "tranche": [name] * N_MONTHS,
                        "month_index": months,
                        "mean": mean,
                        "p05": np.clip(mean - 0.05 * share * POOL * (months > 12), 0.0, None),
                        "p95": np.minimum(mean + 0.06 * share * POOL * (months > 12), share * POOL),
                    }
                )
            )
    return validate("tranche_balance_report", pl.concat(parts))


def macro_fan_report(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> pl.DataFrame:
    months = np.arange(N_MONTHS)
    push = {
        "gdp_growth_yoy": -0.03,
        "unemployment_rate": 0.04,
        "property_price_index": -18.0,
        "equity_return": -0.2,
    }
    push |= {"credit_spread_ig": 120.0, "credit_spread_hy": 500.0, "inflation_rate": -0.005}
    push |= {"policy_rate": -0.015, "yield_10y": -0.008}
    parts = []
    for number, scenario in enumerate(scenarios):
        shape = np.clip((months - 6) / 12.0, 0.0, 1.0) * np.clip((54 - months) / 24.0, 0.0, 1.0)
        for series in MACRO_SERIES:
            mid = series.mean + number * 0.5 * push[series.name] * shape
            wide = series.sd * np.sqrt(1 - series.persistence ** (2 * (months + 1)))
            columns = {
                f"p{level:02d}": np.clip(mid + z * wide, series.lower, series.upper)
                for level, z in ((5, -1.64), (25, -0.67), (50, 0.0), (75, 0.67), (95, 1.64))
            }
            names = {
                "scenario": [scenario] * N_MONTHS,
                "series": [series.name] * N_MONTHS,
                "month_index": months,
            }
            parts.append(pl.DataFrame({**names, **columns}))
    return validate("macro_fan_report", pl.concat(parts))


def quarantine() -> pl.DataFrame:
    reasons = (
        ("loan_panel", "outstanding_balance", "balance >= 0", 7),
        ("loan_panel", "reporting_month", "one row per loan and month", 4),
        ("loan_tape", "maturity_date", "maturity after origination", 1),
    )
    rows = [
        ("tape.csv", 100 + 17 * n, table, column, reason, f'{{"loan_id": "L{n:05d}"}}')
        for table, column, reason, count in reasons
        for n in range(count)
    ]
    frame = pl.DataFrame(
        rows, schema=["source_file", "row_number", "table", "column", "reason", "row_json"], orient="row"
    )
    return validate("quarantine", frame)


def data_quality() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "table": ["loan_tape", "loan_panel"],
            "rows_accepted": [9_999, 412_733],
            "rows_quarantined": [1, 11],
        }
    )


def model_scores() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "model": ["loan_trajectory", "transition_transformer", "class_markov", "global_markov", "oracle"],
            "role": ["champion", "champion", "challenger", "challenger", "truth"],
            "log_loss_nats": [0.0903, 0.0912, 0.0937, 0.1755, 0.0886],
            "regret_nats": [0.0017, 0.0026, 0.0051, 0.0869, 0.0],
            "default_auc": [0.871, 0.858, 0.811, 0.702, 0.889],
        }
    )


@functools.cache
def _all(scenarios: tuple[str, ...]) -> dict[str, pl.DataFrame]:
    return {
        "pool_report": pool_report(scenarios),
        "tranche_report": tranche_report(scenarios),
        "cash_flow_report": cash_flow_report(scenarios),
        "tranche_balance_report": tranche_balance_report(scenarios),
        "macro_fan_report": macro_fan_report(scenarios),
        "loss_distribution": loss_distribution(scenarios),
        "data_quality": data_quality(),
        "quarantine": quarantine(),
        "model_scores": model_scores(),
    }


def report_frames(scenarios: tuple[str, ...] = STANDARD_SCENARIOS) -> dict[str, pl.DataFrame]:
    """All frames of a report; a new dict each time, frames are immutable."""
    return dict(_all(scenarios))
