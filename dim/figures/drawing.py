"""Drawing: panels as numbers and words -> one page as a PNG file; the only file that knows matplotlib.

A page is a title, panels one above the other with their labels beside the lines, and a caption that says what is seen.
"""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dim.checkpoint import replacing
from dim.config import UserError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe & Ito: apart for all kinds of colour vision
COLOURS = (BLUE, VERMILLION, GREEN)
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # apart without colour
DASHED = (0, (5, 3))
INK, GREY = "#222222", "#666666"
LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a run may have a dollar in its name
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
WIDTH, LEFT, RIGHT = 8.0, 0.8, 2.05  # inches: of the page, and of the margins for numbers and labels
EDGE, LINE = 0.15, 0.162  # inches: left of title and caption; from line to line of small text
SMALL = 8.5  # points


class Curve(NamedTuple):
    """A named line through points."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


class Level(NamedTuple):
    """A named horizontal line: a chance, a ceiling, a goal."""

    label: str
    y: float


class Lines(NamedTuple):
    """A panel of curves and levels over x.

    log: a logarithmic y axis; floor: the lowest y shown, and in words what lies below it.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    levels: Sequence[Level] = ()
    log: bool = False
    floor: Level | None = None


class Sample(NamedTuple):
    """Named numbers whose distribution is drawn."""

    label: str
    values: np.ndarray


class Densities(NamedTuple):
    """A panel of histograms of area 1 over common bins, a curve to compare them with, and a remark beside them."""

    title: str
    x: str
    samples: Sequence[Sample]
    edges: np.ndarray
    goal: Curve | None = None
    remark: str = ""


Panel = Lines | Densities


def needed() -> None:
    """UserError where matplotlib is missing: said before anything is computed."""
    require("matplotlib", "a figure")


def save(path: Path, title: str, panels: Sequence[Panel], caption: Sequence[str]) -> Path:
    """Draw a page into a PNG file, its words inside as metadata too. UserError where it cannot be written."""
    from matplotlib import rc_context

    words = {"Title": title, "Description": "\n".join(caption)}
    try:
        path.parent.mkdir(exist_ok=True)
        with rc_context(LOOK), replacing(path) as file:
            page(title, panels, caption).savefig(file, format="png", dpi=160, metadata=words)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def page(title: str, panels: Sequence[Panel], caption: Sequence[str]) -> "Figure":
    """A title, panels and a caption, a paragraph for each text: no window, no global state."""
    from matplotlib.figure import Figure

    paragraphs = [textwrap.wrap(text, 120) for text in caption if text]
    words = LINE * sum(len(lines) + 0.5 for lines in paragraphs)
    panel, gap, top, bottom = 2.4 if len(panels) < 3 else 1.4, 0.75, 0.8, 0.65 + words
    height = top + len(panels) * (panel + gap) - gap + bottom
    figure = Figure(figsize=(WIDTH, height))
    figure.text(EDGE / WIDTH, 1 - 0.2 / height, title, size=12, weight="bold", va="top")
    for lines in paragraphs:
        figure.text(EDGE / WIDTH, words / height, "\n".join(lines), size=SMALL, va="top", linespacing=1.3)
        words -= LINE * (len(lines) + 0.5)
    for i, content in enumerate(panels):
        low = height - top - panel - i * (panel + gap)
        axes = figure.add_axes((LEFT / WIDTH, low / height, 1 - (LEFT + RIGHT) / WIDTH, panel / height))
        axes.set_title(content.title, size=9.5, loc="left", pad=6)
        axes.set_xlabel(content.x if i + 1 == len(panels) or panels[i + 1].x != content.x else "")
        axes.tick_params(length=3)
        if isinstance(content, Lines):
            draw_lines(axes, content)
        else:
            draw_densities(axes, content)
    return figure


def draw_lines(axes: "Axes", panel: Lines) -> None:
    """Curves and levels, each with its label at its right end."""
    axes.set_ylabel(panel.y)
    ends = []
    for curve, colour, style in zip(panel.curves, COLOURS, STYLES, strict=False):
        mark = "o" if len(curve.x) < 25 else ""
        axes.plot(
            curve.x, curve.y, color=colour, linestyle=style, linewidth=1.6, marker=mark, ms=4, clip_on=panel.floor is not None
        )
        ends.append((curve.y[-1], curve.label, colour))
    for level in panel.levels:
        axes.axhline(level.y, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=1)
        ends.append((level.y, level.label, GREY))
    axes.set_xlim(0, max(max(curve.x) for curve in panel.curves))
    values = [y for curve in panel.curves for y in curve.y] + [level.y for level in panel.levels]
    if panel.log:
        logarithmic(axes, min(values), max(values))
    else:
        low, high = min(values) if panel.floor is None else panel.floor.y, max(values)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1
        axes.set_ylim(low - room, high + room)
    if panel.floor is not None:
        ends.append((panel.floor.y, panel.floor.label, GREY))
    to_share = axes.transData + axes.transAxes.inverted()
    line = line_share(axes)
    places = apart([to_share.transform((1, y))[1] for y, _, _ in ends], [1.1 * line] * len(ends))
    for place, (_, text, colour) in zip(places, ends, strict=True):
        axes.text(1.02, place, text, transform=axes.transAxes, color=colour, size=SMALL, va="center")


def logarithmic(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic y axis whose labels are plain numbers, 1, 2 and 5 times powers of ten, at least one of them shown."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.6, high * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_densities(axes: "Axes", panel: Densities) -> None:
    """The first histogram filled, others as outlines, the curve dashed over them; labels down the right side."""
    axes.set_ylabel("density")
    labels = []
    for i, (sample, colour) in enumerate(zip(panel.samples, COLOURS, strict=False)):
        density = np.histogram(sample.values, panel.edges, density=True)[0]
        if i == 0:
            axes.stairs(density, panel.edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(density, panel.edges, color=colour, linewidth=1.5)
        labels.append((sample.label, colour))
    if panel.goal is not None:
        axes.plot(panel.goal.x, panel.goal.y, color=INK, linewidth=1.4, linestyle=DASHED)
        labels.append((panel.goal.label, INK))
    axes.set_xlim(panel.edges[0], panel.edges[-1])
    axes.set_ylim(bottom=0)
    place, line = 1.0, line_share(axes)
    for text, colour in [*labels, (panel.remark, INK)]:
        axes.text(1.02, place, text, transform=axes.transAxes, color=colour, size=SMALL, va="top", linespacing=1.3)
        place -= line * (text.count("\n") + 1.7)


def line_share(axes: "Axes") -> float:
    """The height of a line of a label, as a share of the panel's."""
    return LINE / (axes.bbox.height / axes.bbox.width * (WIDTH - LEFT - RIGHT))


def apart(centres: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres of labels of these heights, moved so that none overlap and the squares of the moves have the least sum.

    Labels keep their order, so with what lies between them taken off this is isotonic regression: neighbours that come out
    of order share their mean.
    """
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    below = dict(zip(order, itertools.accumulate([0.0, *(heights[i] for i in order)]), strict=False))
    base = {i: below[i] + heights[i] / 2 for i in order}
    blocks: list[list[int]] = []

    def mean(block: list[int]) -> float:
        return sum(centres[i] - base[i] for i in block) / len(block)

    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and mean(blocks[-2]) > mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    found = {i: mean(block) + base[i] for block in blocks for i in block}
    return [found[i] for i in range(len(centres))]


def number(value: float) -> str:
    """A value as a label shows it, three digits: 1.30, 24.8, 100."""
    return f"{value:#.3g}".rstrip(".")
