"""The standard order of payments, built from a deal's clauses; and the seeds' `WaterfallConfig`.

Here: senior fees; each class in turn, its interest, then its coverage tests cured by principal;
reserve; subordinated fees; residual. Principal: reinvest while allowed and all tests pass, otherwise in
turn. Not here: what a step does (`rules`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pc_pipeline.waterfall.terms import (
    Account,
    CoverageTest,
    Fee,
    PrincipalStep,
    Reinvestment,
    Step,
    Tranche,
    WaterfallSteps,
)


def standard_steps(
    tranches: Sequence[Tranche],
    fees: Sequence[Fee],
    tests: Sequence[CoverageTest],
    accounts: Sequence[Account],
    reinvestment: Reinvestment | None,
    subordinated_fees: Sequence[str] = (),
) -> WaterfallSteps:
    """The steps of docs/methods/waterfall.md section 2 for these clauses.

    Args:
        subordinated_fees: names of the fees paid after the classes; the others are senior.

    Returns:
        Separate interest and principal waterfalls.
    """
    notes = [t for t in tranches if t.kind in ("note", "accrual")]
    residual = [t.name for t in tranches if t.kind == "residual"]
    reserves = [a.name for a in accounts if a.kind == "reserve"]
    prefunding = [a.name for a in accounts if a.kind == "prefunding"]
    incentive = [f.name for f in fees if f.share is not None]
    steps = [Step(release=name) for name in reserves]
    steps += [Step(fee=f.name) for f in fees if f.share is None and f.name not in subordinated_fees]
    for tranche in tranches:
        if tranche.kind == "residual":
            continue
        if tranche.kind == "accrual":
            steps.append(Step(accrue=tranche.name))
        steps.append(Step.model_validate({"interest": [tranche.name], "from": ["interest", *reserves]}))
        own = [test.name for test in tests if test.of == tranche.name]
        if own:
            steps.append(Step(cure=own))
    steps += [Step(fund=name) for name in reserves]
    steps += [Step(fee=name) for name in subordinated_fees]
    tail = [Step(incentive=name) for name in incentive]
    tail += [Step(residual=name) for name in residual[:1]]
    principal = [Step(release=name) for name in prefunding]
    if reinvestment is not None:
        principal.append(Step(reinvest=True))
    principal.append(Step(principal=PrincipalStep(to=[t.name for t in notes])))
    return WaterfallSteps(interest=steps + tail, principal=principal + tail)
