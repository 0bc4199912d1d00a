"""Comparison: several runs beside each other as bars, one panel for each probe."""

from pathlib import Path

from dim.figures import drawing
from dim.figures.drawing import Bar, Bars, Level


def draw(path: Path, found: dict, chance: float | None) -> Path:
    """A PNG file of what `report.comparison` found: accuracies in per cent of all labels, with their spread over seeds."""
    drawing.needed()
    level = None if chance is None else Level("chance", 100 * chance)
    panels = []
    for title, rows in found.items():
        groups = [(name, [bar(layer, cell) for layer, cell in cells.items()]) for name, cells in rows.items()]
        panels.append(Bars(title, "test accuracy, %", groups, 100.0, level))
    words = (
        "Accuracy of probes, given all labels where a panel does not say how many. The lines are standard deviations over "
        "training seeds, where a bar is the mean of several runs that differ in nothing else."
    )
    return drawing.save(path, "Runs compared", panels, [words])


def bar(layer: str, cell: dict) -> Bar:
    """A mean over seeds, in per cent."""
    return Bar(layer, 100 * cell["mean"], None if cell["sd"] is None else 100 * cell["sd"])
