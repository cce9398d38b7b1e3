"""The page. Here: one self-contained HTML file from frames and notes. Not here: its content (`page`) and
its markup (`templates/`).

The file asks the network for nothing: style, figures and icon are inside, there is no script, and a
content security policy forbids the rest. Texts are escaped by the template engine. The same input
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from pc_pipeline.reports.files import replace_file
from pc_pipeline.reports.inputs import Frames, Notes, as_polars
from pc_pipeline.reports.page import build_page


def render_html(
    frames: Frames,
    notes: Notes,
    *,
    title: str = "Credit portfolio report",
    figures: Sequence[tuple[str, Figure]] = (),
    findings: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as text; see `write_html`."""
    environment = Environment(
        loader=PackageLoader("pc_pipeline.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = build_page(as_polars(frames), notes, title=title, figures=figures, findings=findings)
    return environment.get_template("report.html.j2").render(page=page)


def write_html(
    path: str | Path,
    frames: Frames,
    notes: Notes,
    *,
    title: str = "Credit portfolio report",
    figures: Sequence[tuple[str, Figure]] = (),
    findings: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page; byte-identical for the same input.

    Args:
        path: .html file, replaced in one step.
        frames: table name -> frame (polars or pandas), as listed in `inputs`; any may be missing or empty.
            Frames named model... stand in the section on models, unknown ones under further tables.
        notes: (label, text) pairs or a dict; labels 'run: ...', 'convention: ...', 'model: ...',
            'next: ...' choose the section.
        title: title of the page.
        figures: (caption, Figure) pairs for the section on models, e.g. from `plots`; they are cleared.
        findings: (label, sentences) of an analysis, instead of what the measures of a run say.

    Returns:
        The path.

    Raises:
        DataError: a value in `frames` is no data frame, or a loss distribution has no weight.
        SchemaError: a known table lacks columns.
    """
    text = render_html(frames, notes, title=title, figures=figures, findings=findings)
    return replace_file(path, text.encode())
