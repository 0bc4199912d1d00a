"""Pictures of a run, as PNG files that explain themselves: (folder, config, data, state, other) -> the files.

other: the name of the data where it is not what the encoder was trained on; it stands in the files' names and captions.
"""

from dim.figures import curves, embedding, neighbours, reconstruction

FIGURES = {
    "curves": curves.draw,
    "neighbours": neighbours.draw,
    "embedding": embedding.draw,
    "reconstruction": reconstruction.draw,
}
