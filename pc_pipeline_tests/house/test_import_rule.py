"""The import rule is a test: what `lint-imports` refuses, this refuses."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]


def test_imports_go_downward_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even lazily, nor for the types alone: `static_order` names the circle it finds."""
    graph = grimp.build_graph("pc_pipeline", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imports).static_order())) == len(graph.modules)


def test_importing_the_package_loads_no_torch_and_no_dagster() -> None:
    code = "import sys, pc_pipeline; print([m for m in ('torch', 'dagster', 'polars') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    import pc_pipeline

    missing = [name for name in pc_pipeline._EXPORTS if getattr(pc_pipeline, name, None) is None]
    assert missing == []
    assert set(pc_pipeline._EXPORTS) <= set(dir(pc_pipeline))
