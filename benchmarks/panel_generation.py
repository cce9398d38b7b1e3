"""Panel generation: speed against a plain Python loop, memory of 1 M loans x 60 months, bytes on disk.

    python benchmarks/panel_generation.py [--full] [--out benchmarks/results]

1. Ratio: the package and the loop of `pc_pipeline_tests/loans/reference.py` make the same table (checked
   first); rows/s interleaved A B A B, seven rounds, median of the ratios.
2. Stream: each size runs in a process of its own, which generates chunk by chunk into table loan_panel of a
   store; peak resident memory is the kernel's figure for that process. --full adds 1 M loans and 60 M rows.
3. Size: the same rows as plain zstd Parquet (pyarrow's and polars' defaults) and as the store keeps them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import polars as pl
import pyarrow.parquet as pq

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.store import Store
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.panel_generator import generate_book
from pc_pipeline.loans.panel_store import PANEL_FORMAT
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline_tests.loans.reference import loop_panel

ROUNDS = 7
SIZES = {"1 M rows": 37_000, "10 M rows": 370_000}
FULL_SIZES = {"1 M loans": 1_000_000, "60 M rows": 2_200_000}


def baseline() -> pl.DataFrame:
    """Eight baseline paths of 60 months."""
    return macro_table(MacroScenarioGenerator(n_months=60, start_date="2024-01-01"), "baseline", 8)


def ratios() -> list[tuple[float, float]]:
    """(package, loop) rows per second of each round."""
    macro = baseline()
    generator, paths = LoanTapeGenerator(n_loans=40_000, random_seed=1), macro_paths(macro)
    tape, last = generator.generate_static_features(), generator.start_month + 59

    def ours(loans: pl.DataFrame) -> pl.DataFrame:
        return generate_book(loans, paths, law=generator.law, seed=1, last_month=last).panel

    few = tape.head(300)
    ratio_columns = ["ltv_current", "rate_incentive"]
    if not ours(few).drop(ratio_columns).equals(loop_panel(few, macro, 1).drop(ratio_columns)):
        raise SystemExit("the two generators disagree: no speed is worth quoting")
    ours(tape)
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rows = ours(tape).height
        middle = time.perf_counter()
        slow_rows = loop_panel(few, macro, 1).height
        found.append((rows / (middle - start), slow_rows / (time.perf_counter() - middle)))
    return found


def stream(n_loans: int, folder: Path) -> dict[str, float]:
    """Generate and store one portfolio in this process."""
    start = time.perf_counter()
    generator = LoanTapeGenerator(n_loans=n_loans, random_seed=1)
    books = generator.stream_scenario(baseline())
    chunks = (book.panel for book in books)
    path = Store(folder).write_table("loan_panel", chunks, "baseline", form=PANEL_FORMAT)
    seconds = time.perf_counter() - start
    rows = pq.ParquetFile(path).metadata.num_rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "seconds": seconds, "peak_mib": peak, "bytes_per_row": path.stat().st_size / rows}


def stream_apart(n_loans: int) -> dict[str, float]:
    """`stream` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--stream", str(n_loans), folder]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def sizes() -> dict[str, float]:
    """Bytes per row of the same panel in three files, after a round trip."""
    panel = LoanTapeGenerator(n_loans=20_000, random_seed=1).generate_scenario(baseline()).panel
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(panel.to_arrow(), folder / "pyarrow.parquet", compression="zstd")
        panel.write_parquet(folder / "polars.parquet", compression="zstd")
        files = {name: folder / f"{name}.parquet" for name in ("pyarrow", "polars")}
        store = Store(folder)
        files["store"] = store.write_table("loan_panel", panel, "baseline", form=PANEL_FORMAT)
        if not store.read_table("loan_panel").equals(panel):
            raise SystemExit("the store does not give back what was written")
        return {name: path.stat().st_size / panel.height for name, path in files.items()}


def report(full: bool) -> str:
    """The dated note."""
    rounds = ratios()
    lines = ["# Panel generation", "", machine_line(), "", "## Speed", ""]
    ours, loop = (statistics.median(side) for side in zip(*rounds, strict=True))
    quotients = sorted(a / b for a, b in rounds)
    lines += [
        f"Package {ours / 1e6:.1f} M rows/s, plain loop {loop / 1e3:.0f} k rows/s; all 22 columns.",
        f"Ratio, median of {ROUNDS} interleaved rounds: {statistics.median(quotients):.0f} "
        f"(lowest {quotients[0]:.0f}, highest {quotients[-1]:.0f}).",
    ]
    lines += ["", "## Streaming to one file", ""]
    lines += [
        "| size | loans | rows | seconds | M rows/s | peak MiB | bytes/row |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, n_loans in (SIZES | FULL_SIZES if full else SIZES).items():
        got = stream_apart(n_loans)
        lines.append(
            f"| {label} | {n_loans:,} | {got['rows']:,} | {got['seconds']:.1f} | "
            f"{got['rows'] / got['seconds'] / 1e6:.2f} | {got['peak_mib']:.0f} | {got['bytes_per_row']:.2f} |"
        )
    found = sizes()
    lines += ["", "## Bytes per row", "", "| file | bytes/row | the store's is |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.2f} | {found['store'] / value:.0%} |" for name, value in sorted(found.items())
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="1 M loans and 60 M rows too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--stream", nargs=2, metavar=("LOANS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        print(json.dumps(stream(int(options.stream[0]), Path(options.stream[1]))))
        return
    write_result(options.out, "panel_generation", report(options.full))


if __name__ == "__main__":
    main()
