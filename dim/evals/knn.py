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
    for subset in subsets:
        some, own = (x, labels) if subset is None else (x[subset], labels[subset])
        if k > len(some):
            raise UserError(f"{k:g} nearest neighbours are asked for among {len(some)} images")
        similarity, place = nearest(some, x_test, int(k))
        yield vote(similarity, own[place]), True


def nearest(x: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities [q, k] in [-1, 1] of each query to its k nearest rows of x, and their places, nearest first.

    A row of zeros is similar to nothing: 0.
    """
    x = F.normalize(x, dim=1).T
    found = [(F.normalize(chunk, dim=1) @ x).topk(k, 1) for chunk in queries.split(CHUNK)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def vote(similarity: Tensor, labels: Tensor) -> Tensor:
    """similarity [q, k], labels [q, k] of the neighbours -> the label with the largest sum of weights [q]."""
    classes, place = labels.unique(return_inverse=True)
    weight = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()  # relative to the nearest, so that none overflows
    votes = similarity.new_zeros(len(similarity), len(classes)).scatter_add_(1, place, weight)
    return classes[votes.argmax(1)]


KNN = Kind("a vote of the k nearest by cosine, weights e^(similarity / 0.07),", "k", search, predict, patience=3)
