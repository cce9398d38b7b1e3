"""What all assets share: owners, tags, plots as metadata."""

from typing import Any

import dagster as dg
from matplotlib.figure import Figure

from pc_pipeline.reports.ink import to_png_uri

OWNERS = ["team:structured-credit"]
HEAVY_TAGS: dict[str, Any] = {
    "compute": "gpu-preferred",
    "dagster-k8s/config": {
        "container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "2"}}}
    },
}


def plot_metadata(figure: Figure, title: str) -> dg.MarkdownMetadataValue:
    """A picture, one click away in the UI."""
    return dg.MetadataValue.md(f"![{title}]({to_png_uri(figure, dpi=80)})")


def as_markdown(rows: list[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """A small table as markdown metadata."""
    if not rows:
        return dg.MetadataValue.md("*nothing*")
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
