"""A linear support vector machine on frozen features: squared hinge, one class against the rest, as LinearSVC has it.

    minimise over W, b   mean over images of sum over classes of max(0, 1 - t (W x + b))^2   + |W|^2 / (2 C n),   t = +-1

The paper's table 4 says "SVM" with hinge loss, five for each model, its code unreleased; the square makes the loss smooth,
so that it is minimised to the end. Here the bias is not penalised; liblinear penalises it like a weight of a feature 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.evals.linear import TOLERANCE, Probe, covariance_of, curvature_root, in_span, kind

MOST_STEPS = 100  # Newton steps
MOST_INNER = 50  # steps of conjugate gradients in one of them


def fit(x: Tensor, labels: Tensor, penalty: float, covariance: Tensor | None = None, start: Probe | None = None) -> Probe:
    """Fit the machine to x [n, D], labels [n] with C = penalty; covariance and start as in `linear.fit`.

    Newton's method for all classes at once, each with its own step: the curvature is 2 x x' over the images inside the
    margin, its equations are solved by conjugate gradients in coordinates where the features are uncorrelated, and the
    step's length is the minimum along it. L-BFGS, which needs ten steps for the logistic loss, had not converged after 500
    on 1,257 digits at C = 1, since the curvature jumps where an image enters the margin.
    """
    if len(x) < x.shape[1]:
        return in_span(x, labels, penalty, fit)
    n, width = x.shape
    classes, target = labels.unique(return_inverse=True)
    c, decay, mean = len(classes), 1 / (penalty * n), x.mean(0)
    root = curvature_root(covariance if covariance is not None else covariance_of(x), 1.0, decay)
    sign = (2 * F.one_hot(target, c).to(x.dtype) - 1).T.contiguous()
    weight = x.new_zeros(width, c) if start is None else start.weight.clone()
    bias = x.new_zeros(c) if start is None else start.bias.clone()

    def scores(weight: Tensor, bias: Tensor) -> Tensor:
        """weight [D, c], bias [c] -> [c, n]: a row for each class, since x @ weight took 1.6 times as long."""
        return (weight.T.contiguous() @ x.T).add_(bias[:, None])

    def back(error: Tensor, weight: Tensor) -> Tensor:
        """Gradients of the scores [c, n] -> those of weight and bias [D + 1, c]."""
        return torch.cat([(error @ x).T + decay * weight, error.sum(1)[None]])

    def conditioned(slope: Tensor) -> Tensor:
        """The inverse of the curvature with every image inside the margin."""
        inner = torch.linalg.solve_triangular(root, slope[:-1] - mean[:, None] * slope[-1], upper=False)
        inner = torch.linalg.solve_triangular(root.T, inner, upper=True)
        return torch.cat([inner, (slope[-1] - mean @ inner)[None]])

    for step in range(MOST_STEPS + 1):
        margin = 1 - sign * scores(weight, bias)
        slope = back(sign * margin.clamp_min(0) * (-2 / n), weight)
        steepest = slope.abs().amax(0)
        left = (steepest > TOLERANCE / 2).nonzero()[:, 0]
        gradient = steepest.max().item()
        if not len(left) or step == MOST_STEPS:
            break
        inside = (margin[left] > 0).to(x.dtype) * (2 / n)
        direction = conjugate(
            lambda v, inside=inside: back(inside * scores(v[:-1], v[-1]), v[:-1]), conditioned, -slope[:, left]
        )
        moved = sign[left] * scores(direction[:-1], direction[-1])
        length = minimum(margin[left], moved, weight[:, left], direction[:-1], decay)
        weight[:, left] += length * direction[:-1]
        bias[left] += length * direction[-1]
    return Probe(weight, bias, classes, gradient)


def conjugate(product, conditioned, goal: Tensor) -> Tensor:
    """Conjugate gradients for product(v) = goal [m, c], each column a system of its own, to a tenth of its norm."""
    v, rest = torch.zeros_like(goal), goal.clone()
    z = conditioned(rest)
    p, before = z.clone(), (rest * z).sum(0)
    enough = 0.01 * before
    for _ in range(MOST_INNER):
        if (before <= enough).all():
            break
        h = product(p)
        length = before / (p * h).sum(0).clamp_min(torch.finfo(goal.dtype).tiny)
        v, rest = v + length * p, rest - length * h
        z = conditioned(rest)
        now = (rest * z).sum(0)
        p, before = z + now / before.clamp_min(torch.finfo(goal.dtype).tiny) * p, now
    return v


def minimum(margin: Tensor, moved: Tensor, weight: Tensor, direction: Tensor, decay: float) -> Tensor:
    """The length [c] along each direction at which the loss, convex and piecewise quadratic, is least: Newton's method.

    margin and moved [c, n], weight and direction [D, c].
    """
    straight, square = (weight * direction).sum(0), direction.square().sum(0)
    length = torch.ones_like(straight)
    for _ in range(10):
        left = margin - length[:, None] * moved
        slope = -2 * (left.clamp_min(0) * moved).mean(1) + decay * (straight + length * square)
        curvature = 2 * ((left > 0) * moved.square()).mean(1) + decay * square
        length = (length - slope / curvature.clamp_min(torch.finfo(moved.dtype).tiny)).clamp_min(0)
    return length


SVM = kind("a linear SVM, squared hinge (the paper's has the hinge), one class against the rest,", fit)
