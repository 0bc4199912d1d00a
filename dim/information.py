"""Information: exact quantities of finite distributions, of samples and of Gaussians; what estimates are tested against.

Tables are lists, numpy arrays or tensors of probabilities, of any shape, computed in float64 and checked: finite, not negative,
sum 1 within TOLERANCE (`normalised` makes one of counts). A joint table has X in its rows and Y in its columns. Results are
plain numbers, in nats unless `unit` is "bits"; the Wasserstein distance is in the unit of the samples. 0 log 0 is 0.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim.config import UserError

TOLERANCE = 1e-6  # what sums of float32 softmaxes keep
UNITS = {"nats": 1.0, "bits": math.log(2)}


def entropy(p: Any, unit: str = "nats") -> float:
    """H(p) = -sum p log p, from 0 (one value is certain) to the log of the number of entries (all equal)."""
    return max(0.0, torch.special.entr(distribution(p)).sum().item()) / size_of(unit)


def conditional_entropy(joint: Any, unit: str = "nats") -> float:
    """H(Y|X) = -sum p(x, y) log p(y|x) of a joint table [X, Y], from 0 (X tells Y) to H(Y) (X tells nothing of it).

    For H(X|Y) give the transpose.
    """
    joint = joint_table(joint)
    return expected(joint, joint.sum(1, keepdim=True).log() - joint.log()) / size_of(unit)


def cross_entropy(p: Any, q: Any, unit: str = "nats") -> float:
    """-sum p log q = H(p) + KL(p, q); inf where q is 0 at a place that p reaches."""
    p, q = distributions(p, q)
    return expected(p, -q.log()) / size_of(unit)


def kl_divergence(p: Any, q: Any, unit: str = "nats") -> float:
    """KL(p, q) = sum p log(p / q), at least 0; inf where q is 0 at a place that p reaches, so for disjoint supports."""
    p, q = distributions(p, q)
    return max(0.0, expected(p, p.log() - q.log())) / size_of(unit)


def js_divergence(p: Any, q: Any, unit: str = "nats") -> float:
    """Jensen-Shannon divergence (KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2: from 0 to log 2, reached by disjoint supports.

    SciPy's `jensenshannon` is its square root; `dim.estimators.jsd` with its best critic is twice that of joint and product.
    """
    p, q = distributions(p, q)
    middle = (p + q).log() - math.log(2)  # half of the smallest number would be 0
    return max(0.0, expected(p, p.log() - middle) + expected(q, q.log() - middle)) / 2 / size_of(unit)


def pointwise_mutual_information(joint: Any, unit: str = "nats") -> Tensor:
    """log p(x, y) / (p(x) p(y)) of each pair of a joint table [X, Y] -> float64 [X, Y].

    -inf for a pair that never occurs, also where x or y itself never does: the ratio is then 0 / 0, and what the pair is
    known for is its probability 0. Never nan.
    """
    joint = joint_table(joint)
    ratio = joint.log() - joint.sum(1, keepdim=True).log() - joint.sum(0, keepdim=True).log()
    return torch.where(joint > 0, ratio, -torch.inf) / size_of(unit)


def mutual_information(joint: Any, unit: str = "nats") -> float:
    """I(X; Y) = sum p(x, y) log p(x, y) / (p(x) p(y)) of a joint table [X, Y], from 0 to the smaller of H(X) and H(Y)."""
    joint = joint_table(joint)
    return max(0.0, expected(joint, pointwise_mutual_information(joint))) / size_of(unit)


def information_gain(labels: Any, groups: Any, unit: str = "nats") -> float:
    """What a split tells of labels: entropy of all labels minus that of each group's, weighted by the groups' sizes.

    labels [n], groups [n]: the label and the group of each sample, numbers or words. From 0 to the entropy of the labels; it
    is the mutual information of the two counted in a table, as in decision trees (Quinlan 1986).
    """
    labels, groups = array(labels), array(groups)
    if labels.ndim != 1 or labels.shape != groups.shape or not len(labels):
        raise UserError(f"need labels [n] and groups [n], n at least 1; got {list(labels.shape)} and {list(groups.shape)}")
    (_, label), (_, group) = (np.unique(values, return_inverse=True) for values in (labels, groups))
    counts = np.zeros((group.max() + 1, label.max() + 1))
    np.add.at(counts, (group, label), 1)
    children = sum(row.sum() / len(labels) * entropy(normalised(row)) for row in counts)
    return max(0.0, entropy(normalised(counts.sum(0))) - children) / size_of(unit)


def wasserstein_distance(x: Any, y: Any) -> float:
    """Wasserstein-1 distance of two samples x [n], y [m] of numbers: the area between their distribution functions.

    Each sample has weight 1/n or 1/m; at least 0, in the unit of the samples. Equal to the mean distance of the sorted
    samples where n = m, and to |x - y| for single numbers.
    """
    x, y = (torch.as_tensor(array(sample), dtype=torch.float64) for sample in (x, y))
    if x.ndim != 1 or y.ndim != 1 or not len(x) or not len(y) or not torch.cat([x, y]).isfinite().all():
        raise UserError(f"need two samples of at least 1 finite number each; got shapes {list(x.shape)} and {list(y.shape)}")
    x, y = x.sort().values, y.sort().values
    ends = torch.cat([x, y]).sort().values
    below_x, below_y = (torch.searchsorted(sample, ends[:-1], right=True).double() / len(sample) for sample in (x, y))
    return ((below_x - below_y).abs() * ends.diff()).sum().item()


def gaussian_mutual_information(correlation: float, dimensions: int = 1, unit: str = "nats") -> float:
    """-d/2 log(1 - rho^2): I(X; Y) of d independent pairs of Gaussians, each correlated by rho in [-1, 1]; inf at its ends."""
    if not abs(correlation) <= 1:
        raise UserError(f"correlation is {correlation}: it must be in [-1, 1]")
    if dimensions < 1:
        raise UserError(f"dimensions is {dimensions}: it must be at least 1")
    if abs(correlation) == 1:
        return math.inf
    return -dimensions / 2 * math.log1p(-(correlation**2)) / size_of(unit)


def gaussian_total_correlation(covariance: Any, unit: str = "nats") -> float:
    """-1/2 log det R, R the correlations of a covariance [d, d]: divergence of a Gaussian from the product of its marginals.

    At least 0; inf where the covariance is singular; for d = 2 the mutual information of the two.
    """
    c = torch.as_tensor(array(covariance), dtype=torch.float64)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not c.numel() or not c.isfinite().all():
        raise UserError(f"need a finite covariance [d, d], d at least 1; got {list(c.shape)}")
    if (c - c.T).abs().max() > 1e-8 * c.abs().max():
        raise UserError(f"need a symmetric covariance; this one differs from its transpose by {(c - c.T).abs().max():g}")
    if not (c.diagonal() > 0).all():
        raise UserError(f"need variances above 0; the smallest is {c.diagonal().min().item():g}")
    sd = c.diagonal().sqrt()
    eigenvalues = torch.linalg.eigvalsh(c / torch.outer(sd, sd))
    rounding = len(c) * torch.finfo(c.dtype).eps
    if eigenvalues[0] < -10 * rounding:
        raise UserError(f"no covariance: its correlations have the negative eigenvalue {eigenvalues[0].item():g}")
    return math.inf if eigenvalues[0] <= rounding else max(0.0, -eigenvalues.log().sum().item() / 2) / size_of(unit)


def normalised(counts: Any) -> Tensor:
    """Counts or weights of any shape as a distribution: divided by their sum, float64."""
    table = torch.as_tensor(array(counts), dtype=torch.float64)
    if not table.isfinite().all() or (table < 0).any() or not table.sum() > 0:
        raise UserError("counts must be finite, not negative and not all 0")
    return table / table.sum()


def distribution(p: Any) -> Tensor:
    """Probabilities of any shape as a checked float64 tensor; UserError with what is wrong."""
    table = torch.as_tensor(array(p), dtype=torch.float64)
    if not table.isfinite().all():
        raise UserError("probabilities must be finite")
    if (table < 0).any():
        raise UserError(f"probabilities must not be negative; the smallest is {table.min().item():g}")
    if not abs(table.sum().item() - 1) <= TOLERANCE:
        raise UserError(f"probabilities must sum to 1; these sum to {table.sum().item():.9g}: normalised(counts) divides by it")
    return table


def distributions(p: Any, q: Any) -> tuple[Tensor, Tensor]:
    """Two distributions over the same places."""
    p, q = distribution(p), distribution(q)
    if p.shape != q.shape:
        raise UserError(f"need two distributions of one shape; got {list(p.shape)} and {list(q.shape)}")
    return p, q


def joint_table(joint: Any) -> Tensor:
    """A distribution over pairs, [X, Y]."""
    table = distribution(joint)
    if table.ndim != 2:
        raise UserError(f"need a joint table [X, Y]; got {list(table.shape)}")
    return table


def expected(p: Tensor, values: Tensor) -> float:
    """sum p * values over the places that p reaches: what happens nowhere counts nothing, were it inf or nan."""
    return (p * values)[p > 0].sum().item()


def array(values: Any) -> np.ndarray:
    """Lists, arrays and tensors of any device alike."""
    if isinstance(values, Tensor):
        return (values.detach().double() if values.is_floating_point() else values).cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values)


def size_of(unit: str) -> float:
    """A unit of information in nats."""
    if unit not in UNITS:
        raise UserError(f"unit is {unit!r}: choose nats or bits")
    return UNITS[unit]
