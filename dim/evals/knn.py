"""Nearest neighbours on frozen features: cosine similarity s, a vote of weight e^(s / 0.07) for each of the k nearest.

Wu et al., Unsupervised feature learning via non-parametric instance discrimination, CVPR 2018, section 3.4, with their
temperature; k is chosen on validation images where they take 200.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.config import UserError
from dim.evals.protocol import Kind

GRID = (1, 2, 5, 10, 20, 50, 100, 200)
SMALLEST = 0.85  # a resample has at least this share of the images that k is chosen on
TEMPERATURE = 0.07
CHUNK = 500  # queries at a time: 500 x 50,000 similarities are 100 MB


def search(x: Tensor, labels: Tensor, x_validation: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Predictions for each k of GRID that there are images for."""
    possible = [k for k in GRID if k <= SMALLEST * len(x)] or [k for k in GRID if k <= len(x)]
    if not possible:
        raise UserError(f"nearest neighbours among {len(x)} images: at least 1 is needed")
    similarity, place = nearest(x, x_validation, possible[-1])
    for k in possible:
        yield k, vote(similarity[:, :k], labels[place[:, :k]])


def predict(
    x: Tensor, labels: Tensor, x_test: Tensor, k: float, subsets: Sequence[Tensor | None]
) -> Iterator[tuple[Tensor, bool]]:
    """Predictions from the images of each subset; nothing is fitted, so all converge."""
    fewest = min(len(x) if subset is None else len(subset) for subset in subsets)
    if k > fewest:
        raise UserError(f"{k:g} nearest neighbours are asked for among {fewest} images")
    for similarity, place in nearest_of(x, x_test, int(k), subsets):
        yield vote(similarity, labels[place]), True


def nearest(x: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities [q, k] in [-1, 1] of each query to its k nearest rows of x, and their places, nearest first.

    A row of zeros is similar to nothing: 0.
    """
    return nearest_of(x, queries, k, [None])[0]


def nearest_of(x: Tensor, queries: Tensor, k: int, subsets: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """`nearest` among the rows of each subset, None: all; places are those in x.

    A similarity is computed once, however many subsets have its row: they are nearly all of the time where features are wide.
    """
    rows = [torch.arange(len(x), device=x.device) if subset is None else subset.to(x.device) for subset in subsets]
    used = torch.cat(rows).unique()
    columns = F.normalize(x if len(used) == len(x) else x[used], dim=1).T
    places = [torch.searchsorted(used, each) for each in rows]
    found: list[list] = [[] for _ in rows]
    for chunk in queries.split(CHUNK):
        similarity = F.normalize(chunk, dim=1) @ columns
        for parts, place in zip(found, places, strict=True):
            parts.append(similarity[:, place].topk(k, 1))
    return [
        (torch.cat([part.values for part in parts]), each[torch.cat([part.indices for part in parts])])
        for parts, each in zip(found, rows, strict=True)
    ]


def vote(similarity: Tensor, labels: Tensor) -> Tensor:
    """similarity [q, k], labels [q, k] of the neighbours -> the label with the largest sum of weights [q]."""
    classes, place = labels.unique(return_inverse=True)
    weight = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()  # relative to the nearest, so that none overflows
    votes = similarity.new_zeros(len(similarity), len(classes)).scatter_add_(1, place, weight)
    return classes[votes.argmax(1)]


KNN = Kind("a vote of the k nearest by cosine, weights e^(similarity / 0.07),", "k", search, predict, patience=3)
