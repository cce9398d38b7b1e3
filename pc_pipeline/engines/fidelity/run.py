"""All fidelity figures by one command: sections in order, each kept until what it hangs on changes.

Here: which sections there are, their cache, the dated page. Not here: a measurement (a module per section
beside this one, with one function `measure(request) -> frame`), the command (`benchmarks/fidelity.py`).

A section's answer is kept under a digest of its recipes, the data sets it names in `DATA`, and the package's
code without comments and docstrings. While it runs, every training inside it leaves a resume file in its
scratch folder, and finished ones are not repeated: a killed run goes on where it was.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import ConfigError, PcError
from pc_pipeline.core.store import file_sha256, replace_file
from pc_pipeline.engines.fidelity.table import Request, SizedRecipe, as_markdown, figure, figures
from pc_pipeline.training.watch import keep_training

SECTIONS: Final = {
    "synthetic": "Synthetic truth",
    "auto": "Real auto loans",
    "mortgages": "Mortgages through 2008",
    "macro": "Macro VAE",
    "histories": "Generated histories",
    "portfolio": "Expected loss, scenario order, joint fine-tuning",
    "backtests": "VaR backtests",
}
_OTHER_ROOMS: Final = ("reports", "service", "orchestration")  # nothing of theirs enters a figure
_HOME: Final = "pc_pipeline.engines.fidelity"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One measured section.

    Attributes:
        name: key of `SECTIONS`. table: its figures. seconds: it took to measure. is_kept: from the cache.
    """

    name: str
    table: pl.DataFrame
    seconds: float
    is_kept: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure, and where things lie.

    Attributes:
        recipes: one per seed. data: folder of real data sets. work: cache and scratch.
        only: section names; empty for all. is_fresh: measure again what is kept. device: of training.
    """

    recipes: tuple[SizedRecipe, ...]
    data: Path
    work: Path
    only: tuple[str, ...] = ()
    is_fresh: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.only) - set(SECTIONS))
        if unknown or not self.recipes:
            raise ConfigError("no such section", expected=", ".join(SECTIONS), got=unknown or "no recipe")


def measure_all(plan: Plan, on_section: Callable[[Section], None] | None = None) -> list[Section]:
    """Measure (or read) the sections of a plan, in the order of `SECTIONS`."""
    found = []
    for name in SECTIONS:
        if not plan.only or name in plan.only:
            section = measure_section(plan, name)
            found.append(section)
            if on_section is not None:
                on_section(section)
    return found


def measure_section(plan: Plan, name: str) -> Section:
    """One section, from the cache where nothing it hangs on has changed."""
    if importlib.util.find_spec(f"{_HOME}.{name}") is None:
        row = figure(name, "not measured", float("nan"), passed=False, note="this section has no module yet")
        return Section(name=name, table=figures([row]), seconds=0.0, is_kept=False)
    module = importlib.import_module(f"{_HOME}.{name}")
    digest = section_digest(plan, name, getattr(module, "DATA", ()))
    kept, scratch = plan.work / f"{name}-{digest}", plan.work / "scratch" / f"{name}-{digest}"
    if not plan.is_fresh and (found := _read(kept)) is not None:
        return Section(name=name, table=found[0], seconds=found[1], is_kept=True)
    started = time.monotonic()
    request = Request(
        recipes=plan.recipes,
        data=plan.data,
        scratch=scratch,
        shared=plan.work / "scratch" / "networks",
        device=plan.device,
    )
    scratch.mkdir(parents=True, exist_ok=True)
    with keep_training(scratch, keep_finished=True):
        table = module.measure(request)
    seconds = time.monotonic() - started
    _write(kept, table, seconds)
    shutil.rmtree(scratch, ignore_errors=True)
    return Section(name=name, table=table, seconds=seconds, is_kept=False)


def section_digest(plan: Plan, name: str, data_sets: Sequence[str]) -> str:
    """Of recipes, the files of the named data sets, and code."""
    digest = hashlib.sha256(f"{name} {plan.device} {code_digest()}".encode())
    for recipe in plan.recipes:
        digest.update(json.dumps(_plain(recipe), sort_keys=True, default=str).encode())
    for folder in data_sets:
        for path in sorted((plan.data / folder).rglob("*")):
            if path.is_file():
                digest.update(f"{folder}/{path.name}:{file_sha256(path)}".encode())
    return digest.hexdigest()[:16]


@cache
def code_digest() -> str:
    """Of the package's statements: comments and docstrings may change, what computes may not."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in _OTHER_ROOMS and len(place.parts) > 1:
            digest.update(f"{place}:{_statements(path)}".encode())
    return digest.hexdigest()[:16]


def _statements(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _plain(recipe: SizedRecipe) -> Any:
    return dataclasses.asdict(recipe) if dataclasses.is_dataclass(recipe) else str(recipe)  # type: ignore[arg-type]


def _read(path: Path) -> tuple[pl.DataFrame, float] | None:
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return figures(said["rows"]), float(said["seconds"])
    except (OSError, ValueError, KeyError, PcError):
        return None  # nothing kept, or written by another version: measured again


def _write(path: Path, table: pl.DataFrame, seconds: float) -> None:
    with replace_file(path.with_suffix(".json")) as temporary:
        text = json.dumps({"seconds": seconds, "rows": table.to_dicts()}, indent=1)
        temporary.write_text(text, encoding="utf-8")


# ---- the page -----------------------------------------------------------------------------------


def page(sections: Iterable[Section], plan: Plan, machine: str) -> str:
    """The dated page: a summary line per section, then every figure."""
    chosen = list(sections)
    seeds = ", ".join(str(recipe.seed) for recipe in plan.recipes)
    lines = [
        "# Fidelity",
        "",
        machine,
        "",
        f"Recipe `{plan.recipes[0].name}`, seeds {seeds}. Intervals are 95 % unless the note says otherwise. "
        "A figure without a goal is reported only.",
        "",
        "| section | figures | pass | miss | measured in |",
        "|---|---|---|---|---|",
    ]
    for section in chosen:
        judged = section.table.filter(pl.col("passed").is_not_null())
        passed = int(judged["passed"].sum())
        lines.append(
            f"| {SECTIONS[section.name]} | {section.table.height} | {passed} | {judged.height - passed} | "
            f"{section.seconds:.0f} s{' (kept)' if section.is_kept else ''} |"
        )
    for section in chosen:
        lines += ["", f"## {SECTIONS[section.name]}", "", as_markdown(section.table)]
    return "\n".join(lines) + "\n"
