"""Nearest images: which candidates have the most similar features, by two measures of similarity."""

import torch
from torch import Tensor

from dim.config import UserError
from dim.evals import knn

PAIRS = 25_000_000  # distances held at a time: 100 MB


def by_l1(x: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """L1 distances [q, k] of each query to its k nearest rows of x, and their places, nearest first."""
    found = [torch.cdist(chunk, x, p=1).topk(k, 1, largest=False) for chunk in queries.split(max(1, PAIRS // len(x)))]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


METRICS = {"L1 distance": by_l1, "cosine": knn.nearest}


def nearest(x: Tensor, queries: Tensor, k: int, metric: str) -> Tensor:
    """Places [q, k] in x [n, D] of the k candidates most like each query [q, D], nearest first; of equal ones any.

    metric: a name among METRICS; with cosine a row of zeros is like nothing, similarity 0. UserError where there are fewer
    candidates than neighbours, or features that are not finite.
    """
    if k > len(x):
        raise UserError(f"{k} nearest images are asked for among {len(x)}")
    if not (torch.isfinite(x).all() and torch.isfinite(queries).all()):
        raise UserError("nearest images need finite features, and some are not: the run may be damaged")
    return METRICS[metric](x, queries, k)[1]


def agreement(labels: Tensor, query_labels: Tensor, places: Tensor) -> tuple[float, float]:
    """The share of neighbours with their query's label, in [0, 1], and that of candidates drawn blindly.

    labels [n] of the candidates, query_labels [q], places [q, k] from `nearest`.
    """
    share = (labels[places] == query_labels[:, None]).double().mean().item()
    frequency = torch.bincount(labels, minlength=int(query_labels.max()) + 1).double() / len(labels)
    return share, frequency[query_labels].mean().item()
