"""House rules that a reader would otherwise have to check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "pc_pipeline").rglob("*.py"))
LONGEST_FILE = 600


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_is_of_readable_length(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") <= LONGEST_FILE


def test_no_pickle_no_shell_no_unfinished_code() -> None:
    forbidden = re.compile(
        r"\bpickle\.(load|dump)|torch\.load\(|shell=True|raise NotImplementedError|\bTODO\b|\bFIXME\b"
    )
    hits = [
        f"{p.relative_to(ROOT)}: {m.group(0)}" for p in MODULES for m in forbidden.finditer(p.read_text())
    ]
    assert hits == []


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {
        (path.name, target)
        for path in documents
        for target in re.findall(r"\bmake ([a-z][a-z-]*)(?=[`\s])", path.read_text())
        if f"`make {target}" in path.read_text() or f"    make {target}" in path.read_text()
    }
    assert {target for _, target in named} >= {"run", "test"}
    assert [entry for entry in sorted(named) if entry[1] not in targets] == []


def test_nothing_a_run_makes_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = listed.stdout.splitlines()
    made = [f for f in tracked if f.startswith(("data/tables", "data/models", "data/reports", "history/"))]
    assert made == []
    assert [f for f in tracked if f.endswith((".duckdb", ".safetensors", ".pkl", ".pt"))] == []
