"""Comparison: several runs beside each other as bars, one panel for each section of their reports."""

from pathlib import Path

from dim import report
from dim.figures import drawing
from dim.figures.drawing import Bar, Bars, Level


def draw(path: Path, found: dict) -> Path:
    """A PNG file of what `report.comparison` found: each mean with its spread over seeds, in the unit of its section."""
    drawing.needed()
    panels, most = [], report.most_seeds(found)
    for title, table in found["tables"].items():
        scale, digits = (100, 1) if table["percent"] else (1, 3)
        groups = [
            (name, [bar(layer, cell, scale, most[name]) for layer, cell in cells.items()])
            for name, cells in table["rows"].items()
        ]
        ends = [each.value + (each.spread or 0) for _, bars in groups for each in bars]
        room = 100.0 if table["percent"] else max(1.6 * max(ends), 0.1)  # room for the words behind the longest bar
        level = None if table["chance"] is None else Level("chance", 100 * table["chance"])
        panels.append(Bars(title, table["of"], groups, room, level, digits))
    runs = found["runs"]
    data = ", ".join(dict.fromkeys(run["data"] for run in runs.values()))
    number = sum(len(run["seeds"]) for run in runs.values())
    words = [f"{title}: {report.said(table)}." for title, table in found["tables"].items()]
    words += [f"{report.STAR}."] * any("*" in each.note for panel in panels for _, bars in panel.groups for each in bars)
    return drawing.save(
        path, f"{number} runs compared on {data}", panels, ["; ".join(report.listed(runs)) + ".", *words, report.OVER_SEEDS]
    )


def bar(layer: str, cell: dict, scale: float, most: int) -> Bar:
    """A mean over seeds, of `most` that there are; a star: not converged."""
    return Bar(layer, scale * cell["mean"], None if cell["sd"] is None else scale * cell["sd"], report.note(cell, most))
