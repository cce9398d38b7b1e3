"""History classes: the clocks by hand, and both writings of them."""

from __future__ import annotations

import numpy as np
import torch

from pc_pipeline.simulation.distil import N_CLOCK, _advance, _clock_classes
from pc_pipeline.simulation.history import (
    HISTORY_NAMES,
    HISTORY_STATE,
    N_HISTORY,
    history_along,
    history_class,
)


def test_classes_by_hand():
    assert N_HISTORY == len(HISTORY_NAMES) == HISTORY_STATE.size == 15
    since = np.array([-1, 0, 1, 2, 3, 5, 6, 11, 12, 99])
    np.testing.assert_array_equal(
        history_class(np.zeros(10, int), since, np.ones(10)), [0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    )
    np.testing.assert_array_equal(
        history_class(np.array([1, 1, 2, 3]), 0, np.array([1, 2, 3, 9])), [6, 7, 11, 14]
    )


def test_a_history_by_hand():
    """Performs, misses twice, cures, performs, defaults."""
    states = np.array([[0, 1, 1, 0, 0, 4, 4]])
    np.testing.assert_array_equal(
        history_along(states, np.array([0]), np.array([-1])), [[0, 0, 6, 7, 1, 2, -1]]
    )


def test_the_propagated_clock_is_the_same_automaton():
    """Sure moves through `_advance` meet the class that `history_along` gives."""
    states = np.random.default_rng(0).choice(4, (40, 30), p=[0.7, 0.15, 0.1, 0.05])
    classes = history_along(states, np.zeros(40, int), np.full(40, -1))
    position = torch.zeros(40, N_CLOCK)
    position[:, 0] = 1.0
    for month in range(30):
        reached = _clock_classes()[position.argmax(dim=1)].numpy()
        np.testing.assert_array_equal(reached, classes[:, month])
        flow = torch.zeros(40, N_CLOCK, 6)
        flow[torch.arange(40), position.argmax(dim=1), torch.from_numpy(states[:, month])] = 1.0
        position = _advance(flow)
        assert position.sum(dim=1).eq(1).all()
