"""The one error tree. Every message says what was expected, what came, and where.

PcError
├── ConfigError      a recipe, option or argument makes no sense
├── DataError        a table or file breaks its contract
│   ├── IngestError  a delivered file cannot be read as what it claims to be
│   └── SchemaError  a frame breaks its table schema
├── DealError        a deal's terms contradict each other or the calendar
├── ModelError       weights, card or inputs do not fit the network
├── SimulationError  a Monte Carlo run cannot start or cannot go on
└── StoreError       something is missing from, or torn in, the store
"""

from __future__ import annotations


class PcError(Exception):
    """Base of all errors a user can cause or meet.

    Args:
        message: one sentence in the user's words.
        expected, got, where: printed on their own lines when given.
    """

    def __init__(
        self, message: str, *, expected: object = None, got: object = None, where: object = None
    ) -> None:
        self.message, self.expected, self.got, self.where = message, expected, got, where
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        for label in ("expected", "got", "where"):
            value = getattr(self, label)
            if value is not None:
                lines.append(f"  {label + ':':<10}{value}")
        return "\n".join(lines)


class ConfigError(PcError):
    """A recipe, option or argument makes no sense."""


class DataError(PcError):
    """A table or file breaks its contract."""


class IngestError(DataError):
    """A delivered file cannot be read as what it claims to be."""


class SchemaError(DataError):
    """A frame breaks its table schema."""


class DealError(PcError):
    """A deal's terms contradict each other or the calendar."""


class ModelError(PcError):
    """Weights, card or inputs do not fit the network."""


class SimulationError(PcError):
    """A Monte Carlo run cannot start or cannot go on."""


class StoreError(PcError):
    """Something is missing from, or torn in, the store."""
