"""matplotlib's figures as SVG inside a page: readable on light and on dark, small, reproducible."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import MissingExtraError
from fcn_deploy.pages.page import EXTRA
from fcn_deploy.quiet import quiet

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, FAINT = "#010203", "#040506"
"""Stand-ins for the page's colours of text and of thin lines, which follow its theme."""

SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ef4444", "#0ea5a4")
"""Colours that stand out on white and on near-black alike."""

WIDTH = 4.5
"""Of a chart, in inches: on a phone, where it is scaled down, its letters are still 9 pixels."""


@dataclass(frozen=True)
class Chart:
    """A picture of numbers.

    Attributes:
        svg: The ``<svg>`` element.
        says: The same in words, for those who do not see it.
    """

    svg: str
    says: str


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Draw in the page's style; both making a figure and :func:`to_svg` belong inside.

    Args:
        name: Different for each chart of a page, so that their identifiers are.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingExtraError("matplotlib", EXTRA) from error
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = dict.fromkeys(inks, INK) | {
        "grid.color": FAINT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9.5,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        # Names of classes may hold dollars, which are no formulas.
        "text.parse_math": False,
        # Text stays text: small, in the page's own font, and there for whoever searches it.
        "svg.fonttype": "none",
        "svg.hashsalt": name,
    }
    # Letters that matplotlib's font lacks only make it guess their width; browsers have them.
    with quiet, rc_context(style):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> str:
    """The ``<svg>`` element of a figure, as wide as its place."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib names its groups alike in every figure; nothing refers to them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return text.replace(INK, "currentColor").replace(FAINT, "var(--line)")


def see_through(color: str) -> Colormap:
    """From nothing, through which the page shows, to a colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    return LinearSegmentedColormap.from_list(
        "see-through", [(*to_rgb(color), 0.0), (*to_rgb(color), 1.0)]
    )
