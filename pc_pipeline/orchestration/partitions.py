"""Scenario partitions: one dynamic definition, seeded with the four standard scenarios.

A custom scenario is a YAML file that becomes a further partition. `observed` is the partition of real
history; it exists once a real tape has landed.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from pc_pipeline.schemas.units import STANDARD_SCENARIOS

SCENARIOS = dg.DynamicPartitionsDefinition(name="scenario")


def add_scenarios(instance: dg.DagsterInstance, names: Iterable[str] = STANDARD_SCENARIOS) -> list[str]:
    """Make partitions of the names that are not there yet; returns the new ones."""
    known = set(instance.get_dynamic_partitions("scenario"))
    new = [name for name in names if name not in known]
    if new:
        instance.add_dynamic_partitions("scenario", new)
    return new
