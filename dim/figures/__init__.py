"""Pictures of a run, as PNG files that explain themselves: (folder, config, data, state) -> the files written."""

from dim.figures import curves

FIGURES = {"curves": curves.draw}
