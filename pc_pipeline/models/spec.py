"""What a network eats: named tensors with lettered shapes, so that one test can drive every network.

Here: `TensorSpec`, `example_inputs`. Not here: the networks, which answer `describe_inputs()` with a
dict of `TensorSpec` in the order of their `forward` arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import derive_seed


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input.

    Attributes:
        shape: letters of the shape legend (B, T, ...) or fixed sizes.
        kind: 'real' (standard normal), 'index' (integers 0..n-1), or 'rows' (probabilities over the
            last dimension).
        n: number of categories of an index.
        shift, scale: real values are shift + scale * normal; one number or one per last dimension.
    """

    shape: tuple[str | int, ...]
    kind: str = "real"
    n: int = 0
    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
        """A tensor that keeps this description; `sizes` gives the letters' values."""
        shape = [sizes[part] if isinstance(part, str) else part for part in self.shape]
        if self.kind == "index":
            return torch.randint(self.n, shape, generator=generator)
        if self.kind == "rows":
            return torch.softmax(torch.randn(shape, generator=generator), dim=-1)
        if self.kind != "real":
            raise ModelError("unknown kind of input", expected="real, index, rows", got=self.kind)
        normal = torch.randn(shape, generator=generator)
        return torch.as_tensor(self.shift) + torch.as_tensor(self.scale) * normal


def example_inputs(specs: Mapping[str, TensorSpec], seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
    """One tensor per described input, e.g. `example_inputs(model.describe_inputs(), B=3, T=12)`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "example_inputs"))
    return {name: spec.example(sizes, generator) for name, spec in specs.items()}
