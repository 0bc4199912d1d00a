"""Pictures of a run, as PNG files that explain themselves: (folder, config, data, state) -> the files written."""

from dim.figures import curves, embedding, neighbours, reconstruction

FIGURES = {
    "curves": curves.draw,
    "neighbours": neighbours.draw,
    "embedding": embedding.draw,
    "reconstruction": reconstruction.draw,
}
