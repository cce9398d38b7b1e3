"""Which device computes, and computing twice to the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pc_pipeline.core.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(device: str) -> str:
    """'cpu' or 'cuda'; 'auto' takes CUDA where torch sees a device.

    Raises:
        ConfigError: unknown name, or CUDA asked for where there is none.
    """
    if device not in DEVICES:
        raise ConfigError("unknown compute device", expected=", ".join(DEVICES), got=device)
    has_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("no CUDA device here", expected="a CUDA device, or device 'auto'", got="none")
    return "cuda" if has_cuda else "cpu"


@contextlib.contextmanager
def same_bits_twice() -> Iterator[None]:
    """Gradients that several indices add into are otherwise summed in whatever order threads arrive."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
