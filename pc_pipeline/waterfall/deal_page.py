"""A page about a deal, made from its terms: classes, clauses, order of payments, what is reproduced.

Here: `deal_page` and the command that writes the pages of a folder. Not here: results of a run (`desk`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic.fields import FieldInfo

from pc_pipeline.waterfall.deal import Deal, load_deal
from pc_pipeline.waterfall.terms import (
    Account,
    Call,
    Clause,
    Collateral,
    Coupon,
    CouponStep,
    CoverageTest,
    Fee,
    Level,
    Payments,
    PrincipalStep,
    Reinvestment,
    Step,
    Swap,
    Target,
    Tranche,
    Trigger,
    WaterfallSteps,
)

_CLAUSES: tuple[type[Clause], ...] = (
    Payments,
    Collateral,
    Tranche,
    Coupon,
    CouponStep,
    Account,
    Target,
    Fee,
    CoverageTest,
    Trigger,
    Level,
    Swap,
    Reinvestment,
    Call,
    WaterfallSteps,
    Step,
    PrincipalStep,
)


def deal_page(deal: Deal) -> str:
    """Markdown: one section per kind of clause that the deal has."""
    lines = [f"# {deal.name}", "", deal.description.strip(), ""]
    lines += [f"Source: {deal.source}." if deal.source else "", ""]
    rounding = f"to {deal.rounding:g}" if deal.rounding else "none"
    every = {1: "monthly", 3: "quarterly", 6: "twice a year", 12: "yearly"}[deal.payments.every_months]
    lines += [
        f"Closing {deal.closing_date.isoformat()}; payments {every} on day {deal.payments.day}, "
        f"business days: {deal.payments.business_days.replace('_', ' ')}. "
        f"Losses: {deal.losses.replace('_', ' ')}. Rounding: {rounding}.",
        "",
    ]
    if deal.reproduced:
        lines += ["## Reproduced", "", *(f"- {item}" for item in deal.reproduced), ""]
    lines += [
        "## Classes",
        "",
        "| class | kind | size | coupon | day count | final date |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_class_row(tranche) for tranche in deal.tranches] + [""]
    for title in ("collateral", "reinvestment", "call"):
        clause = getattr(deal, title)
        told = _told(clause) if clause is not None else []
        if told:
            lines += [f"## {title.capitalize()}", "", *(f"- {item}" for item in told), ""]
    for title in ("fees", "accounts", "tests", "triggers", "swaps"):
        clauses = getattr(deal, title)
        if clauses:
            lines += [f"## {title.capitalize()}", ""]
            lines += [
                f"- **{clause.name}**: {', '.join(_told(clause, leave=('name',)))}" for clause in clauses
            ] + [""]
    for pot in ("combined", "interest", "principal"):
        steps = getattr(deal.steps, pot)
        if steps:
            lines += [f"## Order of payments: {pot}", ""]
            lines += [f"{number}. {_step_line(step)}" for number, step in enumerate(steps, start=1)] + [""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _class_row(tranche: Tranche) -> str:
    size = f"{tranche.size:.4g}" if tranche.size is not None else f"{tranche.amount or 0:,.2f}"
    if tranche.kind == "io":
        size = "on " + ", ".join(tranche.notional)
    coupon = "what is left" if tranche.coupon is None else _coupon(tranche.coupon)
    final = tranche.maturity.isoformat() if tranche.maturity else ""
    kind = tranche.kind + (", PIK" if tranche.pik else "")
    return f"| {tranche.name} | {kind} | {size} | {coupon} | {tranche.day_count} | {final} |"


def _coupon(coupon: Coupon) -> str:
    base = f"{coupon.rate:.6g}" if coupon.rate is not None else f"{coupon.index} + {coupon.spread:.6g}"
    limits = [
        f"{word} {value:g}"
        for word, value in (("floor", coupon.floor), ("cap", coupon.cap))
        if value is not None
    ]
    steps = [f"{step.rate:g} from {step.start.isoformat()}" for step in coupon.steps]
    return ", ".join(
        [base, *limits, *steps, *(["available-funds cap"] if coupon.available_funds_cap else [])]
    )


def _told(clause: Clause, leave: Iterable[str] = ()) -> list[str]:
    """Fields that differ from their defaults, in words."""
    said = clause.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return [f"{key.replace('_', ' ')} {_value(value)}" for key, value in said.items() if key not in leave]


def _value(value: object) -> str:
    if isinstance(value, dict):
        return (
            "(" + ", ".join(f"{key.replace('_', ' ')} {_value(inner)}" for key, inner in value.items()) + ")"
        )
    if isinstance(value, list):
        return "; ".join(_value(item) for item in value)
    return f"{value:,.10g}" if isinstance(value, float) else str(value)


def _step_line(step: Step) -> str:
    parts = [step.label]
    if step.principal is not None:
        parts += _told(step.principal, leave=("to", "amount"))
    if step.sources:
        parts.append("from " + ", then ".join(step.sources))
    if step.when:
        parts.append("when " + " and ".join(step.when))
    if step.unless:
        parts.append("unless " + " or ".join(step.unless))
    return ", ".join(parts)


def format_page() -> str:
    """Markdown reference of every clause of a deal file, from the models that read it."""
    lines = [
        "# The deal file",
        "",
        "One YAML file per deal, checked by `pc deal check FILE`. Every clause below refuses fields it does",
        "not know. Money is in the deal's currency, rates are decimals per year, shares are decimals.",
        "Generated from `pc_pipeline/waterfall/terms.py`; the rules are in",
        "[methods/waterfall.md](methods/waterfall.md), examples in `data/deals/`.",
        "",
    ]
    models: list[type[Clause]] = [Deal, *_CLAUSES]
    for model in models:
        lines += [f"## {model.__name__}", "", "```text", inspect.cleandoc(model.__doc__ or ""), "```", ""]
        lines += ["| field | type | default |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _default(field)
            lines.append(f"| {field.alias or name} | {_type_name(field.annotation)} | {default} |")
        lines.append("")
    return "\n".join([*lines, *_FILES]).rstrip() + "\n"


_FILES = (
    "## The collections file",
    "",
    "`pc deal run DEAL.yaml --collections FILE.csv --json`: a row per month, the first one paid",
    "on the first payment date. Money in the deal's currency, never negative. Columns, in any order:",
    "",
    "| column | also called | meaning |",
    "|---|---|---|",
    "| month | date, reporting_month | 2024-01 or a date; months must follow one another (optional) |",
    "| interest | | interest collected, after servicer advances where there are any |",
    "| scheduled_principal | principal, scheduled | scheduled principal collected |",
    "| prepaid_principal | prepaid, prepayments | prepaid in full or in part |",
    "| defaulted_balance | defaults, charge_offs | balance charged off in the month |",
    "| recovery | recoveries | cash from charged-off loans |",
    "| pool_balance | ending_pool_balance | pool after the month, instead of defaulted_balance |",
    "| other_interest, other_principal | | cash of another origin into either pot |",
    "| delinquent | delinquent_balance | balance late at month end, for haircuts and triggers |",
    "| ysoc | | yield-supplement overcollateralisation after the payment |",
    "| *name of an index* | index | the index of the period, decimal per year; else `--index-rate` |",
    "",
    "Missing cash columns are zero; a column of another name is refused. `--json` prints every payment date.",
    "",
    "## The pool file",
    "",
    "`pc price DEAL.yaml --pool FILE.csv --cpr 10 --cdr 2 --severity 40 --lag 12 --json`: a row per",
    "loan or rep line.",
    "",
    "| column | also called | meaning |",
    "|---|---|---|",
    "| balance | current_balance, outstanding_balance | today |",
    "| rate | interest_rate, coupon, wac | decimal per year |",
    "| remaining_term | remaining_months, wam | months; or original_term and age |",
    "| original_term | term_months | months (default: remaining_term + age) |",
    "| age | seasoning, wala | months since origination (default: original_term - remaining_term) |",
    "| amortization_term | | months over which it amortises from here, where longer: a balloon |",
    "",
    "Speeds are percent: a number, or a vector by month such as `2x12,5x12,8` (2 for a year, 5 for a",
    "year, then 8); the last value holds on.",
)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Clause):
        return "all defaults"
    return "none" if value in (None, [], "") else str(value)


def _type_name(annotation: object) -> str:
    text = (
        str(annotation)
        if "[" in str(annotation) or "|" in str(annotation)
        else getattr(annotation, "__name__", "")
    )
    for old in ("typing.", "pc_pipeline.waterfall.terms.", "datetime.", " | None"):
        text = text.replace(old, "")
    return text.replace("|", "or")


def write_pages(deals: Path, pages: Path) -> list[Path]:
    """Write a page per deal of a folder, and the reference of the format beside; returns the files."""
    pages.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(deals.glob("*.yaml")):
        page = pages / f"{path.stem}.md"
        page.write_text(deal_page(load_deal(path)), encoding="utf-8")
        written.append(page)
    reference = pages.parent / "deal-format.md"
    reference.write_text(format_page(), encoding="utf-8")
    return [*written, reference]


if __name__ == "__main__":
    for file in write_pages(Path(sys.argv[1]), Path(sys.argv[2])):
        print(file)
