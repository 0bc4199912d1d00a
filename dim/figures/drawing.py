"""Drawing: panels as numbers and words -> one page as a PNG file; the only file that knows matplotlib.

A page is a title, panels one above the other with their labels beside the lines, and a caption that says what is seen.
"""

import itertools
import math
import textwrap
from collections import Counter
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
MORE = ("#CC79A7", "#E69F00", "#56B4E9", "#222222")
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # apart without colour
TEN = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777")  # Tol
SHAPES = "o^sDv"  # of points, apart without colour
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
DPI = 160
BAR = 0.17  # inches: height of a bar
TILE, NEAR, FAR, UNDER, SIDE = 96, 10, 24, 24, 100  # pixels: a picture's side; gaps; a label under it; the names of rows


class Curve(NamedTuple):
    """A named line through points. spread: half the height of a bar at each; grey: what the others are held against; look:
    which colour, style and mark it has, None: its place among the panel's curves."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    spread: Sequence[float] | None = None
    grey: bool = False
    look: int | None = None


class Level(NamedTuple):
    """A named horizontal line: a chance, a ceiling, a goal."""

    label: str
    y: float


class Lines(NamedTuple):
    """A panel of curves and levels over x.

    log, log_x: a logarithmic axis; floor: the lowest y shown, and in words what lies below it.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    levels: Sequence[Level] = ()
    log: bool = False
    floor: Level | None = None
    log_x: bool = False


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


class Tile(NamedTuple):
    """A picture uint8 [C, S, S], what stands under it, and the colour of that and of a frame, "" for no frame."""

    picture: np.ndarray
    label: str = ""
    colour: str = ""


class Strip(NamedTuple):
    """A row of pictures in groups, and its name on the left; `close` to the row above where both belong together."""

    groups: Sequence[Sequence[Tile]]
    name: str = ""
    close: bool = False


class Pictures(NamedTuple):
    """A panel of pictures, and a head for each group of its columns; 11 pictures fit in a row, or 10 and a name."""

    heads: Sequence[str]
    strips: Sequence[Strip]


class Scatter(NamedTuple):
    """A panel of points [n, 2] whose axes mean nothing, coloured by class: labels [n], names of classes, () for none."""

    title: str
    points: np.ndarray
    labels: np.ndarray
    names: Sequence[str] = ()


class Bar(NamedTuple):
    """A named value with its spread, None: not known; note: behind its number."""

    label: str
    value: float
    spread: float | None = None
    note: str = ""


class Bars(NamedTuple):
    """A panel of horizontal bars in named groups, from 0 to `most`, and a level to compare them with; digits of a value."""

    title: str
    x: str
    groups: Sequence[tuple[str, Sequence[Bar]]]
    most: float
    level: Level | None = None
    digits: int = 1


Panel = Lines | Densities | Pictures | Scatter | Bars


def needed() -> None:
    """UserError where matplotlib is missing: said before anything is computed."""
    require("matplotlib", "a figure")


def save(path: Path, title: str, panels: Sequence[Panel], caption: Sequence[str], source: str = "") -> Path:
    """Draw a page into a PNG file, its words inside as metadata too. UserError where it cannot be written. source: what it was
    made of, for `source_of`."""
    from matplotlib import rc_context

    words = {"Title": title, "Description": "\n".join(caption)} | ({"Source": source} if source else {})
    try:
        path.parent.mkdir(exist_ok=True)
        with rc_context(LOOK), replacing(path) as file:
            page(title, panels, caption).savefig(file, format="png", dpi=DPI, metadata=words)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def source_of(path: Path) -> str:
    """What a picture was made of, as `save` wrote it; "" where there is none that says it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Source", "")
    except OSError:
        return ""


def page(title: str, panels: Sequence[Panel], caption: Sequence[str]) -> "Figure":
    """A title, panels and a caption, a paragraph for each text: no window, no global state."""
    from matplotlib.figure import Figure

    paragraphs = [textwrap.wrap(text, 120, break_on_hyphens=False) for text in caption if text]
    words = LINE * sum(len(lines) + 0.5 for lines in paragraphs)
    heights, gap, top = [tall(panel, len(panels)) for panel in panels], 0.75, 0.8
    bottom = words + (0.65 if isinstance(panels[-1], Lines | Densities | Bars) else 0.25)
    height = math.ceil((top + sum(heights) + gap * (len(panels) - 1) + bottom) * DPI) / DPI  # whole pixels: sharp pictures
    figure = Figure(figsize=(WIDTH, height))
    figure.text(EDGE / WIDTH, 1 - 0.2 / height, title, size=12, weight="bold", va="top")
    for lines in paragraphs:
        figure.text(EDGE / WIDTH, words / height, "\n".join(lines), size=SMALL, va="top", linespacing=1.3)
        words -= LINE * (len(lines) + 0.5)
    low = height - top + gap
    for i, (content, inches) in enumerate(zip(panels, heights, strict=True)):
        low -= gap + inches
        left, right = (LEFT, RIGHT) if isinstance(content, Lines | Densities) else (EDGE, EDGE)
        axes = figure.add_axes((left / WIDTH, low / height, 1 - (left + right) / WIDTH, inches / height))
        if isinstance(content, Pictures):
            draw_pictures(axes, content)
            continue
        if isinstance(content, Bars):
            draw_bars(axes, content)
            continue
        axes.set_title(content.title, size=9.5, loc="left", pad=6)
        if isinstance(content, Scatter):
            draw_scatter(axes, content)
            continue
        following = panels[i + 1] if i + 1 < len(panels) else None
        axes.set_xlabel(content.x if getattr(following, "x", "") != content.x else "")
        axes.tick_params(length=3)
        if isinstance(content, Lines):
            draw_lines(axes, content)
        else:
            draw_densities(axes, content)
    return figure


def tall(panel: Panel, panels: int) -> float:
    """The height of a panel on a page with so many, in inches."""
    if isinstance(panel, Pictures):
        return tops(panel)[-1] / DPI
    if isinstance(panel, Scatter):
        return WIDTH - EDGE - RIGHT
    if isinstance(panel, Bars):
        return BAR * sum(len(bars) + 1.5 for _, bars in panel.groups)
    return 2.4 if panels < 3 else 1.4


def look_of(line: int) -> tuple[str, Any, str]:
    """Colour, style and shape of points of a line by its number: 7, 3 and 5 of them, so 105 lines differ."""
    colours = (*COLOURS, *MORE)
    return colours[line % len(colours)], STYLES[line % len(STYLES)], SHAPES[line % len(SHAPES)]


def draw_lines(axes: "Axes", panel: Lines) -> None:
    """Curves and levels, each with its label at its right end."""
    axes.set_ylabel(panel.y)
    ends = []
    for i, curve in enumerate(panel.curves):
        if curve.grey:
            axes.plot(curve.x, curve.y, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=1)
            ends.append((curve.y[-1], curve.label, GREY))
            continue
        colour, style, shape = look_of(i if curve.look is None else curve.look)
        mark = shape if len(curve.x) < 25 else ""
        look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": mark, "ms": 4}
        if curve.spread is None:
            axes.plot(curve.x, curve.y, **look, clip_on=panel.floor is not None)
        else:
            axes.errorbar(curve.x, curve.y, curve.spread, **look, capsize=2, elinewidth=1)
        ends.append((curve.y[-1], curve.label, colour))
    for level in panel.levels:
        axes.axhline(level.y, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=1)
        ends.append((level.y, level.label, GREY))
    if panel.log_x:
        axes.set_xscale("log")
        places = sorted({x for curve in panel.curves for x in curve.x})
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(0, max(max(curve.x) for curve in panel.curves))
    values = [level.y for level in panel.levels]
    for curve in panel.curves:
        for y, half in zip(curve.y, curve.spread or [0.0] * len(curve.y), strict=True):
            values += [y - half, y + half]
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


def tops(panel: Pictures) -> list[int]:
    """Where each row of pictures begins, in pixels from the first, and where the last ends."""
    found, place = [], 0
    for i, strip in enumerate(panel.strips):
        place += (NEAR if strip.close else FAR) if i else 0
        found.append(place)
        place += TILE + (UNDER if any(tile.label for group in strip.groups for tile in group) else 0)
    return [*found, place]


def draw_pictures(axes: "Axes", panel: Pictures) -> None:
    """Pictures at whole pixels of the page, each of their own pixels a square where that fits, heads above them."""
    width, height = round(DPI * (WIDTH - 2 * EDGE)), tops(panel)[-1]
    begin = SIDE if any(strip.name for strip in panel.strips) else 0
    for strip, y in zip(panel.strips, tops(panel), strict=False):
        x = begin
        axes.text(0, y + TILE / 2, strip.name, size=SMALL, va="center", linespacing=1.3)
        for group, head in zip(strip.groups, panel.heads, strict=True):
            if y == 0:
                axes.text(x, -NEAR, head, size=9.5, va="bottom")
            for tile in group:
                draw_tile(axes, tile, x, y)
                x += TILE + NEAR
            x += FAR - NEAR
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    axes.set_axis_off()


def draw_tile(axes: "Axes", tile: Tile, x: int, y: int) -> None:
    """A picture with its corner at a place in pixels; a side that goes into TILE almost whole is enlarged by whole numbers."""
    from matplotlib.patches import Rectangle

    side = tile.picture.shape[-1]
    whole = TILE // side * side
    box = whole if whole > 0.7 * TILE else TILE
    left, top = x + (TILE - box) // 2, y + (TILE - box) // 2
    pixels = np.broadcast_to(tile.picture, (3, side, side)).transpose(1, 2, 0)
    how = "antialiased" if box % side else "nearest"
    axes.imshow(pixels, extent=(left, left + box, top + box, top), interpolation=how)
    if tile.colour:
        axes.add_patch(Rectangle((left - 2, top - 2), box + 4, box + 4, fill=False, edgecolor=tile.colour, clip_on=False))
    label = tile.label if len(tile.label) < 12 else tile.label[:9] + ".."  # what fits between its neighbours
    axes.text(x + TILE / 2, y + TILE + UNDER / 2 + 2, label, size=7, color=tile.colour or INK, ha="center", va="center")


def draw_bars(axes: "Axes", panel: Bars) -> None:
    """The name of each group over its bars, one colour for each label, the value and its spread at the right end."""
    often = Counter(bar.label for _, bars in panel.groups for bar in bars)
    colours = dict(zip((label for label, _ in often.most_common()), (*COLOURS, *[GREY] * len(often)), strict=False))
    place = 0.0
    for name, bars in panel.groups:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0, place + 0.5, name, size=SMALL, va="center", weight="bold", bbox=box)
        for bar in bars:
            place += 1
            axes.barh(
                place + 0.5, bar.value, 0.8, color=colours[bar.label], xerr=bar.spread, error_kw={"ecolor": INK, "capsize": 2}
            )
            spread = "" if bar.spread is None else f" +- {bar.spread:.{panel.digits}f}"
            end, words = max(0.0, bar.value + (bar.spread or 0)), f"{bar.label} {bar.value:.{panel.digits}f}{spread}{bar.note}"
            axes.text(end + 0.01 * panel.most, place + 0.5, words, size=SMALL, va="center")
        place += 1.5
    if panel.level is not None:
        axes.axvline(panel.level.y, color=GREY, linewidth=0.9, linestyle=DASHED, zorder=0)
    axes.set_title(panel.title, size=9.5, loc="left", pad=6)
    axes.set_xlabel(panel.x + (f"; dashed: {panel.level.label}" if panel.level is not None else ""))
    axes.set_xlim(0, panel.most)
    axes.set_ylim(place, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def draw_scatter(axes: "Axes", panel: Scatter) -> None:
    """Points in a square, apart by colour and shape where there are at most ten classes, with their names beside them."""
    from matplotlib.lines import Line2D

    axes.set_box_aspect(1)
    axes.set_anchor("W")
    axes.set_axis_off()
    few = 0 < len(panel.names) <= len(TEN)
    shapes = panel.labels % len(SHAPES) if few else np.zeros(len(panel.labels), int)
    for kind, shape in enumerate(SHAPES):
        if not (some := shapes == kind).any():
            continue
        points, labels = panel.points[some], panel.labels[some]
        if few:
            colours: dict[str, Any] = {"c": np.array(TEN)[labels]}
        else:
            colours = {"c": labels, "cmap": "viridis", "vmin": 0, "vmax": len(panel.names) - 1} if panel.names else {"c": BLUE}
        axes.scatter(points[:, 0], points[:, 1], s=11, marker=shape, linewidths=0, alpha=0.85, **colours)
    if few:
        marks = [
            Line2D([], [], color=TEN[i], marker=SHAPES[i % len(SHAPES)], linestyle="", ms=5, label=name)
            for i, name in enumerate(panel.names)
        ]
        axes.legend(handles=marks, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=SMALL)
    elif panel.names:
        words = f"{len(panel.names)} classes,\ncoloured by number,\nfirst dark, last light;\nneighbouring numbers\nlook alike"
        axes.text(1.02, 1, words, transform=axes.transAxes, size=SMALL, va="top", linespacing=1.3)


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
