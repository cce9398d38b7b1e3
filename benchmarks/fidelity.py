"""Every fidelity figure, with its interval and its goal, on one dated page.

    python -m benchmarks.fidelity [--recipe base] [--seeds 1] [--only auto,macro] [--fresh] [--data FOLDER]

Trains what it needs. A section is kept (in data/fidelity) until its recipes, data or code change; a run that
was killed goes on where it was. `make fidelity ONLY=auto RECIPE=base SEEDS=3` is the same.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.engines.fidelity.run import SECTIONS, Plan, Section, measure_all, page
from pc_pipeline.models.device import resolve_device
from pc_pipeline.recipes import get_recipe


def read_plan() -> Plan:
    """The command line as a plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds: 42, 43, ...")
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}; commas between")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of real data sets")
    parser.add_argument("--work", type=Path, default=Path("data/fidelity"), help="cache and scratch")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return Plan(
        recipes=tuple(get_recipe(options.recipe, 42 + k) for k in range(options.seeds)),
        data=options.data,
        work=options.work,
        only=tuple(name for name in options.only.split(",") if name),
        is_fresh=options.fresh,
        device=resolve_device("auto"),
    )


def main() -> None:
    """Measure, print, write."""
    logging.basicConfig(level=logging.INFO, format="    %(message)s")
    plan, machine, started = read_plan(), machine_line(), time.monotonic()

    def tell(section: Section) -> None:
        missed = section.table.filter(~section.table["passed"].fill_null(True))["figure"].to_list()
        state = "kept" if section.is_kept else f"{section.seconds:.0f} s"
        print(
            f"{SECTIONS[section.name]}: {section.table.height} figures, {len(missed)} missed ({state})",
            flush=True,
        )

    sections = measure_all(plan, tell)
    name = "-".join(["fidelity", plan.recipes[0].name, *plan.only])
    text = page(sections, plan, f"{machine} {time.monotonic() - started:.0f} s in all.")
    print(f"\nwritten to {write_result(Path(__file__).parent / 'results', name, text)}")


if __name__ == "__main__":
    main()
