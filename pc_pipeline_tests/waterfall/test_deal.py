"""Errors name the clause and the line; shipped deals load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pc_pipeline.core.errors import ConfigError, DealError
from pc_pipeline.waterfall import WaterfallConfig, load_deal

GOOD = """name: small
tranches:
  - {name: A, size: 0.9, coupon: 0.05}
  - {name: E, kind: residual, size: 0.1}
"""


def message(text: str, folder: Path) -> str:
    path = folder / "deal.yaml"
    path.write_text(text)
    with pytest.raises(DealError) as caught:
        load_deal(path)
    return str(caught.value)


def test_a_small_deal_loads(tmp_path: Path) -> None:
    (tmp_path / "deal.yaml").write_text(GOOD)
    assert load_deal(tmp_path / "deal.yaml").tranche_names == ["A", "E"]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("size: 0.9", "size: 0.8", 2, "sizes add up to 0.9, not to 1"),
        ("coupon: 0.05", "coupon: 5.0", 3, "looks like percent"),
        ("coupon: 0.05", "cupon: 0.05", 3, "Extra inputs"),
        ("coupon: 0.05", "coupon: {index: SOFR, floor: 0.2, cap: 0.1}", 3, "above its cap"),
        ("size: 0.1}", "size: 0.1}\nfees: [{name: A, rate: 0.01}]", 5, "already taken"),
        ("size: 0.1}", "size: 0.1}\ntests: [{name: t, kind: oc, of: Z, trigger: 1.2}]", 5, "'Z' is no class"),
        ("size: 0.1}", "size: 0.1}\ntriggers: [{name: t, kind: test, tests: [oc]}]", 5, "'oc' is no test"),
        ("size: 0.1}", "size: 0.1}\nreinvestment: {months: -1}", 5, "greater than or equal to 0"),
        ("size: 0.1}", "size: 0.1}\nclosing_date: 2024-02-31", 5, "off the calendar"),
        ("name: small", "name: small\nname: twice", 2, "repeated"),
        ("size: 0.1}", "size: 0.1}\nrounding: 1.0e-9", 5, "unit of money"),
        (
            "size: 0.1}",
            "size: 0.1}\nwaterfall:\n  interest:\n    - {interest: [A, A]}\n    - {residual: E}\n"
            "  principal:\n    - {principal: [A]}\n    - {residual: E}",
            7,
            "each class or test once",
        ),
        (
            "size: 0.1}",
            "size: 0.1}\nwaterfall:\n  interest:\n    - {interest: A, from: [vault]}\n    - {residual: E}\n"
            "  principal:\n    - {principal: [A]}\n    - {residual: E}",
            7,
            "'vault' is no pot or account",
        ),
        (
            "size: 0.1}",
            "size: 0.1}\nwaterfall:\n  interest:\n    - {interest: A, when: [gone]}\n    - {residual: E}\n"
            "  principal:\n    - {principal: [A]}\n    - {residual: E}",
            7,
            "'gone' is no trigger or test",
        ),
    ],
)
def test_errors_name_clause_and_line(old: str, new: str, line: int, words: str, tmp_path: Path) -> None:
    text = message(GOOD.replace(old, new), tmp_path)
    assert re.search(words, text), text
    assert f"deal.yaml:{line}:" in text, text


def test_seniority_and_circles(tmp_path: Path) -> None:
    swapped = (
        GOOD.replace("  - {name: A, size: 0.9, coupon: 0.05}\n", "")
        + "  - {name: A, size: 0.9, coupon: 0.05}\n"
    )
    assert "residual classes come last" in message(swapped, tmp_path)
    circle = """name: c
tranches:
  - {name: A, kind: accrual, size: 0.5, coupon: 0.05, accrues_until_paid: [B]}
  - {name: B, kind: accrual, size: 0.5, coupon: 0.05, accrues_until_paid: [A]}
"""
    assert "circular" in message(circle, tmp_path)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("{fund: r, from: [r]}", "circular support: 'r' would be paid from itself"),
        ("{repay: f, from: [f]}", "circular support: 'f'"),
        ("{move: interest}", "circular support: 'interest'"),
    ],
)
def test_nothing_is_paid_from_itself(step: str, words: str, tmp_path: Path) -> None:
    text = (
        GOOD
        + f"""accounts:
  - {{name: r, initial: {{amount: 1.0}}}}
  - {{name: f, kind: facility, initial: {{amount: 1.0}}}}
waterfall:
  interest:
    - {{interest: A}}
    - {step}
    - {{residual: E}}
  principal:
    - {{principal: [A]}}
    - {{residual: E}}
"""
    )
    found = message(text, tmp_path)
    assert words in found
    assert "deal.yaml:11:" in found


def test_amounts_tie_to_the_pool(tmp_path: Path) -> None:
    text = """name: c
collateral: {pool_balance: 1000.0, overcollateralization: 50.0}
tranches:
  - {name: A, amount: 900.0, coupon: 0.05}
"""
    assert "add up to 950.00, pool less yield supplement is 1,000.00" in message(text, tmp_path)


def test_seed_config_defaults() -> None:
    deal = WaterfallConfig().to_deal()
    triggers = {test.name: test.trigger for test in deal.tests}
    assert triggers["oc_Senior"] == pytest.approx(1.20)
    assert triggers["oc_Junior"] == pytest.approx(1 + 0.2 * (1 / 0.95 - 1) / (1 / 0.7 - 1))
    assert set(triggers.values()) >= {1.05}
    assert deal.reinvestment is not None
    assert deal.reinvestment.months == 24
    with pytest.raises(DealError, match="percent"):
        WaterfallConfig(tranches=[{"name": "A", "size": 1.0, "coupon": 5.0}]).to_deal()
    with pytest.raises(ConfigError):
        WaterfallConfig(tranches=[{"name": "A", "sise": 1.0}])
