"""One drawing as inline SVG: made by matplotlib, coloured by the page around it.

Colours that matplotlib writes are stand-ins: `for_page` turns them into `currentColor` and CSS variables, so one
drawing serves light and dark pages. Text stays text (it takes the page's font), ids are salted by the drawing's name
(two inline drawings share one id space), and everything that would name another resource is taken out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAGE_COLOURS = {
    "#000001": "currentColor",
    "#000002": "var(--rule)",
    "#000003": "var(--train)",
    "#000004": "var(--validation)",
}
INK, RULE, TRAIN, VALIDATION = PAGE_COLOURS


def drawing(draw: Callable[[Axes], None], name: str, inches: tuple[float, float], *, grid: bool = True) -> str:
    """One pair of axes, drawn on by `draw`, as SVG for the page. matplotlib's own settings are left as found."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(color=RULE, labelcolor=INK, length=0, pad=5, which="both")
        if grid:
            axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        draw(axes)
        text = io.StringIO()
        with warnings.catch_warnings():  # text stays text: the reader's fonts draw it, not matplotlib's
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return for_page(text.getvalue(), name)


def for_page(svg: str, name: str) -> str:
    """matplotlib's file as an inline element: sized by CSS, coloured by the page, naming nothing outside it."""
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", rest, flags=re.DOTALL)
    rest = re.sub(r"<g id=\"[^\"]*\"(?: /|/)?>", lambda group: "<g/>" if group[0].endswith("/>") else "<g>", rest)
    box = re.search(r'viewBox="([^"]*)"', head)
    svg = f'<svg viewBox="{box[1] if box else "0 0 576 230"}" role="img" aria-label="{name}">{rest}'
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.strip()
