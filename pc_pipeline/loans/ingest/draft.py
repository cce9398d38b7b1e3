"""A first mapping for a file nobody has seen: names by likeness, units by range, codes by likeness.

Here: `draft_mapping`, which says beside every line why it guessed it. Not here: applying a mapping
(`mapping`). A draft is read by a person before it is used. Likeness is that of difflib over words, helped
by a short list of what desks call things; a library for fuzzy matching would add nothing at this size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import yaml

from pc_pipeline.loans.ingest.adapter import table_types
from pc_pipeline.loans.ingest.canonical import LOAN_REQUIRED, PANEL_REQUIRED
from pc_pipeline.loans.ingest.files import Part, read_part, survey, where
from pc_pipeline.loans.ingest.mapping import parse_date
from pc_pipeline.schemas.tables import TABLES

ENOUGH: Final = 0.66  # likeness below which a column is left unmapped
SAMPLE_ROWS: Final = 20_000
MAX_CODES: Final = 25
DATE_FORMATS: Final = (
    "%Y-%m-%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%Y%m%d",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d-%b-%Y",
    "%m/%Y",
    "%m-%Y",
    "%Y-%m",
    "%Y%m",
)
_WORDS: Final = {
    "acct": "loan",
    "account": "loan",
    "contract": "loan",
    "no": "id",
    "nr": "id",
    "num": "id",
    "number": "id",
    "identifier": "id",
    "orig": "origination",
    "original": "origination",
    "opened": "origination",
    "funding": "origination",
    "mat": "maturity",
    "bal": "balance",
    "upb": "balance",
    "amt": "balance",
    "amount": "balance",
    "principal": "balance",
    "coupon": "interest rate",
    "apr": "interest rate",
    "rate": "interest rate",
    "fico": "external score",
    "credit": "external",
    "state": "region",
    "margin": "spread",
    "index": "benchmark",
    "product": "asset class",
    "segment": "asset class",
    "amort": "amortization",
    "repayment": "amortization",
    "dpd": "days past due",
    "status": "loan state",
    "period": "reporting month",
    "asof": "reporting month",
    "report": "reporting",
    "current": "outstanding",
    "curr": "outstanding",
    "pmt": "payment",
    "installment": "scheduled payment",
    "instalment": "scheduled payment",
    "dti": "dti dscr",
    "dscr": "dti dscr",
    "writeoff": "charge off",
    "chargeoff": "charge off",
    "lender": "originator",
    "country": "geography country",
    "province": "region",
    "sector": "industry sector",
}
_ALIASES: Final = {
    "interest_rate": ("note rate", "gross coupon"),
    "term_months": ("term", "tenor", "original term", "loan term"),
    "ltv_origination": ("ltv", "oltv", "loan to value"),
    "loan_id": ("id",),
    "original_balance": ("origination balance", "loan balance", "balance"),
    "geography_region": ("region",),
    "external_score_origination": ("external score", "score"),
    "dti_dscr_origination": ("dti dscr",),
    "spread_bps": ("spread",),
    "actual_payment": ("payment", "paid", "payment received"),
    "outstanding_balance": ("balance", "ending balance", "end balance"),
    "reporting_month": ("month", "date", "reporting date", "reporting month date"),
    "origination_date": ("origination", "start date"),
    "maturity_date": ("maturity", "end date"),
    "asset_class": ("asset class type", "class"),
    "collateral_value_origination": ("collateral value", "property value", "appraisal value"),
}
_PERCENTS: Final = ("interest_rate", "ltv_origination", "dti_dscr_origination", "ltv_current")


def draft_mapping(path: str | Path) -> str:
    """YAML text of a mapping for the delivery at `path`, with the reason for each guess as a comment.

    Raises:
        IngestError: the delivery cannot be read.
    """
    lines = ["# Drafted from names and values: read every line before you use it.", "format: 1", "tables:"]
    for part in survey(path):
        if part.kind != "xml":
            lines += _draft_part(part)
    return "\n".join(lines) + "\n"


def _draft_part(part: Part) -> list[str]:
    frame = read_part(part).head(SAMPLE_ROWS)
    table = _which_table(part.columns, frame)
    found = _match(part.columns, table)
    required = PANEL_REQUIRED if table == "loan_panel" else LOAN_REQUIRED
    lines = [f"  - table: {table}", f"    file: {yaml_text(where(part))}", "    columns:"]
    for name in table_types(table):
        if name in found:
            source, score = found[name]
            how, why = _guess(name, frame[source], table_types(table)[name])
            entry = {"from": source} | how
            text = yaml.safe_dump(entry, default_flow_style=True, width=10_000, allow_unicode=True).strip()
            lines.append(f"      {name}: {text}  # name {score:.2f}{why}")
        elif name in required:
            lines.append(f"      # {name}: not found, but required")
    used = {source for source, _ in found.values()}
    unused = [name for name in part.columns if name and name not in used]
    if unused:
        lines.append(f"      # not used: {', '.join(unused[:60])}")
    if not found:
        lines.append("      {}")
    return lines


def yaml_text(value: str) -> str:
    """One scalar, quoted where YAML needs it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).partition("\n")[0]


def _which_table(names: Sequence[str], frame: pl.DataFrame) -> str:
    """A panel repeats its ids and names a month; else it is a tape."""
    as_panel = _match(names, "loan_panel")
    if {"loan_id", "reporting_month"} <= set(as_panel):
        ids = frame[as_panel["loan_id"][0]]
        if ids.n_unique() < ids.len():
            return "loan_panel"
    return "loan_tape"


def _match(names: Sequence[str], table: str) -> dict[str, tuple[str, float]]:
    """Our column -> (the user's column, likeness); each used once, the most alike first."""
    pairs = [
        (likeness(source, ours), ours, source) for source in names if source for ours in table_types(table)
    ]
    found: dict[str, tuple[str, float]] = {}
    taken: set[str] = set()
    for score, ours, source in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if score >= ENOUGH and ours not in found and source not in taken:
            found[ours] = (source, score)
            taken.add(source)
    return found


def likeness(source: str, ours: str) -> float:
    """0..1 between a user's column name and one of ours."""
    if source == ours:
        return 1.0
    words = _normal(source)
    targets = [_normal(ours), *(_normal(alias) for alias in _ALIASES.get(ours, ()))]
    return max(_similar(words, target) for target in targets) * 0.99


def _normal(name: str) -> str:
    """Lower-case words with a desk's abbreviations spelt out."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.findall(r"[a-z]+|[0-9]+", spaced.lower())
    return " ".join(dict.fromkeys(" ".join(_WORDS.get(word, word) for word in words).split()))


def _similar(left: str, right: str) -> float:
    """Mean of likeness by letters and by shared words."""
    a, b = set(left.split()), set(right.split())
    shared = len(a & b) / max(len(a | b), 1)
    return 0.5 * SequenceMatcher(None, left, right).ratio() + 0.5 * shared


def _guess(name: str, values: pl.Series, kind: Any) -> tuple[dict[str, Any], str]:
    """Unit, date format or codes of one column, and why."""
    if kind == pl.Date:
        return _guess_date(values)
    allowed = _choices(name)
    if allowed or name == "loan_state":
        return _guess_codes(name, values, allowed)
    if kind in (pl.Float64, pl.Int64):
        return _guess_unit(name, values)
    return {}, ""


def _guess_date(values: pl.Series) -> tuple[dict[str, Any], str]:
    if values.dtype != pl.String:
        return {}, f"; {values.dtype}"
    text = values.drop_nulls().str.strip_chars()
    parsed = {form: text.to_frame("t").select(parse_date(pl.col("t"), form))["t"] for form in DATE_FORMATS}
    fits = {form: 1.0 - dates.null_count() / max(len(dates), 1) for form, dates in parsed.items()}
    # of formats that fit alike, the one with the fewest days of the month: tapes report on fixed days
    best = max(DATE_FORMATS, key=lambda form: (fits[form], -parsed[form].dt.day().n_unique()))
    if fits[best] == 0:
        return {}, "; no date format fits"
    others = [form for form in DATE_FORMATS if form != best and fits[form] == fits[best]]
    doubt = f", as well as {others[0]}" if others else ""
    if best == "%Y-%m-%d":
        return {}, "; ISO dates"
    return {"format": best}, f"; fits {fits[best]:.0%}{doubt}"


def _guess_unit(name: str, values: pl.Series) -> tuple[dict[str, Any], str]:
    numbers = values.cast(pl.String).str.strip_chars().str.strip_suffix("%").str.replace_all(",", "")
    numbers = numbers.cast(pl.Float64, strict=False).drop_nulls().drop_nans()
    if numbers.is_empty():
        return {}, "; no numbers"
    sample = numbers.to_numpy()
    low, middle, high = float(sample.min()), float(np.median(sample)), float(sample.max())
    why = f"; range {low:g}..{high:g}"
    if name in _PERCENTS and middle > (100 if name == "interest_rate" else 1_000):
        return {"unit": "bps"}, why
    if name in _PERCENTS and middle > (1.0 if name == "interest_rate" else 3.0):
        return {"unit": "percent"}, why
    if name == "spread_bps" and middle < 20:
        return {"unit": "decimal" if middle < 0.3 else "percent"}, why
    if name == "term_months" and high <= 50 and "year" in values.name.lower():
        return {"unit": "years"}, why
    return {}, why


def _choices(name: str) -> list[str]:
    for table in ("loan_tape", "loan_panel"):
        column = TABLES[table].to_schema().columns.get(name)
        for check in column.checks if column is not None else []:
            if check.name == "isin":
                return list(check.statistics["allowed_values"])
    return []


def _guess_codes(name: str, values: pl.Series, allowed: Sequence[str]) -> tuple[dict[str, Any], str]:
    seen = values.cast(pl.String).str.strip_chars().drop_nulls().unique().sort().to_list()
    if name == "loan_state":
        highest = float(
            np.nanmax(values.cast(pl.Float64, strict=False).fill_null(0.0).to_numpy(), initial=0.0)
        )
        if highest > 6:
            return {"unit": "days"}, f"; values to {highest:g}, read as days past due"
        return {}, f"; values {', '.join(seen[:8])}"
    odd = [code for code in seen if code not in allowed]
    if not odd:
        return {}, ""
    if len(odd) > MAX_CODES:
        return {}, f"; {len(odd)} codes, none of ours: map them to {', '.join(allowed)}"
    codes = {
        code: max(allowed, key=lambda ours: SequenceMatcher(None, code.lower(), ours).ratio()) for code in odd
    }
    return {"codes": codes}, "; codes by likeness: check them"
