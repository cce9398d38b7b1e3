"""Ink: how figures look and how they leave. Here: palette, rc settings, SVG text and PNG data URIs.
Not here: what is drawn (`plots`).

Figures are built without pyplot, so nothing stays open behind the caller's back; both ways out clear
the figure. SVG ids come from a fixed hash salt and no date is written: the same figure gives the same
bytes. In inline SVG the palette becomes CSS variables, so that the page can turn to dark mode.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any, Final, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

P = ParamSpec("P")

INK: Final = "#1f2a37"
MUTED: Final = "#5b6675"
GRID: Final = "#dfe3e8"
# Okabe and Ito (2008), distinguishable with every common colour blindness; yellow is too light for lines.
PALETTE: Final = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "red": "#d55e00",
    "pink": "#cc79a7",
    "sky": "#56b4e9",
}
SERIES_COLOURS: Final = tuple(PALETTE.values())
SERIES_DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)))
CSS_NAMES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{colour: f"--{name}" for name, colour in PALETTE.items()},
}

STYLE: Final[Any] = {  # Any: matplotlib types its keys as one long Literal
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0.0,
    "xtick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "pc-pipeline",
}
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inked(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under the house style, whatever the caller's matplotlib settings are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def blank(width_in: float, height_in: float) -> Figure:
    """An empty figure of that size in inches, laid out by constraints."""
    return Figure(figsize=(width_in, height_in), layout="constrained")


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script the bundled font lacks is drawn by the reader's own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format=form, **options)
    figure.clear()
    return out.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as a standalone SVG document; the figure is cleared."""
    text = _saved(figure, "svg", metadata=_NO_METADATA).decode()
    return _rounded(re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S))


def to_inline_svg(figure: Figure, key: str, label: str) -> str:
    """The figure as an <svg> element for a page; the figure is cleared.

    Args:
        key: letters, digits and hyphens; unique in the page, it prefixes every id.
        label: what the figure shows, for screen readers (escaped here).
    """
    text = _saved(figure, "svg", metadata=_NO_METADATA, transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = _own_ids(_rounded(text), key)
    text = _in_tags(text, _with_variables)
    view_box = re.search(r'viewBox="([^"]*)"', text)
    box = view_box.group(1) if view_box else "0 0 100 100"
    body = text[text.index(">") + 1 :]
    body = re.sub(r">\s+<", "><", body.strip())
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label, quote=True)}">{body}'


def _in_tags(text: str, change: Callable[[str], str]) -> str:
    """`change` applied to every tag; the text between tags, which is the user's, is left alone."""
    return re.sub(r"<[^!>][^>]*>", lambda tag: change(tag.group()), text)


def _rounded(text: str) -> str:
    """Coordinates to 0.01 pt."""
    return _in_tags(text, lambda tag: re.sub(r"(\d\.\d\d)\d+(?![\w#])", r"\1", tag))


def _with_variables(tag: str) -> str:
    for colour, name in CSS_NAMES.items():
        tag = tag.replace(colour, f"var({name})")
    return tag


def _own_ids(text: str, key: str) -> str:
    """Drop ids that nothing refers to; prefix the others, so that two figures never share one."""
    tags = "".join(re.findall(r"<[^!>][^>]*>", text))
    used = set(re.findall(r"url\(#([^)]+)\)", tags)) | set(re.findall(r'xlink:href="#([^"]+)"', tags))

    def rename(match: re.Match[str]) -> str:
        return f' id="{key}-{match.group(1)}"' if match.group(1) in used else ""

    def own(tag: str) -> str:
        tag = re.sub(r' id="([^"]*)"', rename, tag)
        tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", tag)
        return re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', tag)

    return _in_tags(text, own)


def to_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as PNG bytes on white; the figure is cleared."""
    return _saved(figure, "png", dpi=dpi, metadata={"Software": None})


def to_png_uri(figure: Figure, dpi: int = 144) -> str:
    """The figure as a data: URI, as Markdown metadata and <img> take it; the figure is cleared."""
    return "data:image/png;base64," + base64.b64encode(to_png(figure, dpi)).decode()
