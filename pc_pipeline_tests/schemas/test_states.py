"""The two alphabets and the rule of the final month."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.schemas.states import (
    LOAN_STATE_NAMES,
    PAYMENT_STATUSES,
    STATUS_TO_STATE,
    TERMINAL_STATUSES,
    LoanState,
    contract_moves,
    mature_rows,
    observable_moves,
)


def test_every_status_maps_to_a_state_and_terminal_to_terminal() -> None:
    assert len(PAYMENT_STATUSES) == len(STATUS_TO_STATE) == 8
    for status, state in zip(PAYMENT_STATUSES, STATUS_TO_STATE, strict=True):
        assert (status in TERMINAL_STATUSES) == (state >= 4)
    assert [LOAN_STATE_NAMES[s] for s in STATUS_TO_STATE] == [
        "performing", "performing", "30dpd", "60dpd", "90dpd", "default", "matured", "prepaid",
    ]  # fmt: skip


def test_contract_moves_one_bucket_worse_any_cure_default_only_from_90() -> None:
    allowed = contract_moves()
    assert not allowed[0, 2]
    assert allowed[3, 0]
    assert allowed[:4, LoanState.default].tolist() == [False, False, False, True]
    assert (observable_moves() | ~allowed).all()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_maturity_moves_mass_and_loses_none(seed: int, final: bool) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(7), size=7)
    rows[4:] = np.eye(7)[4:]
    after = mature_rows(rows, final)
    np.testing.assert_allclose(after.sum(-1), 1.0, atol=1e-12)
    if final:
        assert (after[:4, [LoanState.performing, LoanState.prepaid]] == 0).all()
    else:
        assert (after[:4, LoanState.matured] == 0).all()
    np.testing.assert_array_equal(after[4:], np.eye(7)[4:])
    np.testing.assert_allclose(after[:4, 1:5], rows[:4, 1:5])
