"""The arithmetic the rules are written in: one interface, arrays or tensors, hard or soft gates.

Here: `NumpyOps` (hard), `TorchOps` (hard or soft; torch is imported only when one is made). The third
implementation, which records the operations, is in `compiled`. Not here: any rule.

Everything continuous (min, max, ratios, cure amounts) is the same in all; only `gate` knows a temperature.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

GATE_TOLERANCE = 1e-9  # a ratio this close to its trigger is at it, and passes
TINY = 1e-300


class Ops(Protocol):
    """What a rule may do with a number, besides + - * and unary minus."""

    def minimum(self, a: Any, b: Any) -> Any:
        """The smaller."""

    def maximum(self, a: Any, b: Any) -> Any:
        """The larger."""

    def gate(self, x: Any, threshold: Any) -> Any:
        """1 where x >= threshold, else 0; soft: sigmoid((x - threshold) / temperature)."""

    def positive(self, x: Any) -> Any:
        """1 where x > 0, else 0; never soft."""

    def ratio(self, a: Any, b: Any, otherwise: float) -> Any:
        """a / b where b > 0, else `otherwise`."""

    def round_to(self, x: Any, unit: float) -> Any:
        """x to the nearest multiple of `unit`; soft gates leave x alone."""

    def power(self, base: Any, exponent: Any) -> Any:
        """base ** exponent for a positive base."""


class NumpyOps:
    """Hard gates over float64 arrays."""

    def minimum(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def gate(self, x: Any, threshold: Any) -> Any:
        return (np.asarray(x - threshold) >= -GATE_TOLERANCE).astype(np.float64)

    def positive(self, x: Any) -> Any:
        return (np.asarray(x) > 0.0).astype(np.float64)

    def ratio(self, a: Any, b: Any, otherwise: float) -> Any:
        is_positive = np.asarray(b) > TINY
        return np.where(is_positive, a / np.where(is_positive, b, 1.0), otherwise)

    def round_to(self, x: Any, unit: float) -> Any:
        return np.floor(x / unit + 0.5 + GATE_TOLERANCE) * unit if unit > 0 else x

    def power(self, base: Any, exponent: Any) -> Any:
        return np.power(base, exponent)


class TorchOps:
    """Gates over tensors, with gradients.

    Args:
        temperature: of the sigmoid, in units of the ratio gated; None for hard gates.
        dtype, device: of the constants.
    """

    def __init__(self, temperature: float | None, dtype: Any, device: Any) -> None:
        import torch

        self._torch, self.temperature, self.dtype, self.device = torch, temperature, dtype, device

    def _tensor(self, x: Any) -> Any:
        if isinstance(x, self._torch.Tensor):
            return x
        return self._torch.as_tensor(x, dtype=self.dtype, device=self.device)

    def minimum(self, a: Any, b: Any) -> Any:
        return self._torch.minimum(self._tensor(a), self._tensor(b))

    def maximum(self, a: Any, b: Any) -> Any:
        return self._torch.maximum(self._tensor(a), self._tensor(b))

    def gate(self, x: Any, threshold: Any) -> Any:
        distance = self._tensor(x - threshold)
        if self.temperature is None:
            return (distance >= -GATE_TOLERANCE).to(self.dtype)
        return self._torch.sigmoid(distance / self.temperature)

    def positive(self, x: Any) -> Any:
        return (self._tensor(x) > 0.0).to(self.dtype)

    def ratio(self, a: Any, b: Any, otherwise: float) -> Any:
        a, b = self._tensor(a), self._tensor(b)
        is_positive = b > TINY
        safe = self._torch.where(is_positive, b, self._torch.ones_like(b))
        return self._torch.where(is_positive, a / safe, self._torch.full_like(a / safe, otherwise))

    def round_to(self, x: Any, unit: float) -> Any:
        if unit <= 0 or self.temperature is not None:
            return x
        return self._torch.floor(x / unit + 0.5 + GATE_TOLERANCE) * unit

    def power(self, base: Any, exponent: Any) -> Any:
        return self._tensor(base) ** exponent
