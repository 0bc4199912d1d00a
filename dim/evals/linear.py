"""The linear probe on frozen features: multinomial logistic regression.

    minimise over W, b   mean cross-entropy of softmax(W x + b) + |W|^2 / (2 C n)

n images, C as in scikit-learn. A fit counts as converged when no component of the gradient of this function exceeds
TOLERANCE.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.data import Dataset
from dim.evals.features import features
from dim.evals.protocol import COLUMNS, Kind, standardised
from dim.randomness import generator

TOLERANCE = 1e-4
MOST_STEPS = 500
GRID = tuple(10.0 ** (half / 2) for half in range(-10, 5))  # C from 1e-5 to 100, half decades


def quick_probe(encoder: nn.Module, data: Dataset, split_seed: int, most: int = 10_000) -> dict[str, float]:
    """Validation accuracy of fc and y during training, never of the test split: {"probe/fc_accuracy": in [0, 1], ..}.

    digits: 3 folds of the training part, C = 1. Otherwise C = 0.01, fitted on at most `most` images of the fitting part
    and scored on the validation part. A monitor: evaluate.py chooses C and fits on everything.
    """
    labels = data.train.labels
    if data.name in COLUMNS:
        parts = torch.arange(len(labels)).tensor_split(3)
        splits = [(torch.cat(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(3)]
        penalty = COLUMNS[data.name].knobs["C"]
    else:
        fitting, validation = data.validation(split_seed)
        shuffled = torch.randperm(len(fitting), generator=generator(split_seed, "quick probe"))  # files come class by class
        splits, penalty = [(fitting[shuffled[:most]], validation)], 0.01
    used = torch.cat([torch.cat(split) for split in splits]).unique()
    place = torch.empty(len(labels), dtype=torch.long)
    place[used] = torch.arange(len(used))
    found = features(encoder, data, data.train, used, layers=("fc", "y"))
    scores: dict[str, float] = {}
    for layer in ("fc", "y"):
        total = 0.0
        for train, test in splits:
            x, x_test = standardised(found[layer][place[train]], found[layer][place[test]])
            total += accuracy(fit(x, labels[train].to(x.device), penalty), x_test, labels[test].to(x.device))
        scores[f"probe/{layer}_accuracy"] = total / len(splits)
    return scores


@dataclass(frozen=True)
class Probe:
    """A fitted probe, logits x W + b: weight [D, classes], bias [classes], the label of each class.

    gradient is the largest component, in size, of the gradient of the function minimised.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    gradient: float

    @property
    def converged(self) -> bool:
        return self.gradient <= TOLERANCE

    def predict(self, x: Tensor) -> Tensor:
        """x [n, D] -> labels [n]."""
        return self.classes[(x @ self.weight + self.bias).argmax(1)]


def accuracy(probe: Probe, x: Tensor, labels: Tensor) -> float:
    """The share of x [n, D] whose label the probe predicts, in [0, 1]."""
    return (probe.predict(x) == labels).float().mean().item()


Fit = Callable[..., "Probe"]  # (x, labels, penalty, covariance or None, a probe to start from or None)


def fit(x: Tensor, labels: Tensor, penalty: float, covariance: Tensor | None = None, start: Probe | None = None) -> Probe:
    """Fit the probe to x [n, D], labels [n] with C = penalty.

    covariance [D, D] of x or of images like them and a start near the answer save time and change nothing else.

    L-BFGS in coordinates in which the curvature at equal class probabilities, (1 - 1/c)/c * covariance + 1/(C n), is the
    identity: about 10 steps where plain L-BFGS takes hundreds, since features are strongly correlated.
    """
    from scipy.optimize import minimize

    if len(x) < x.shape[1]:
        return in_span(x, labels, penalty, fit)
    n, width = x.shape
    classes, target = labels.unique(return_inverse=True)
    c, decay, mean = len(classes), 1 / (penalty * n), x.mean(0)
    curvature = (1 - 1 / c) / c
    root = curvature_root(covariance if covariance is not None else covariance_of(x), curvature, decay)
    truth = F.one_hot(target, c).to(x.dtype)
    seen: dict = {}

    def function(point):
        """The function and its gradient in the coordinates of `root`, for x about its mean."""
        rows = torch.as_tensor(point, dtype=x.dtype, device=x.device).view(width + 1, c)
        weight = torch.linalg.solve_triangular(root.T, rows[:-1], upper=True)
        bias = rows[-1] / curvature**0.5 - mean @ weight
        logits = x @ weight + bias
        total = logits.logsumexp(1, keepdim=True)
        loss = (
            total[:, 0] - logits.gather(1, target[:, None])[:, 0]
        ).double().mean() + decay / 2 * weight.double().square().sum()
        error = (logits - total).exp_().sub_(truth).div_(n)
        slope, slope_bias = (error.T.contiguous() @ x).T + decay * weight, error.sum(0)  # x.T @ error is slower
        gradient = max(slope.abs().max().item(), slope_bias.abs().max().item())
        seen.update(point=point.copy(), probe=Probe(weight, bias, classes, gradient))
        inner = torch.linalg.solve_triangular(root, slope - mean[:, None] * slope_bias, upper=False)
        both = torch.cat([inner, slope_bias[None] / curvature**0.5])
        return loss.item(), both.flatten().double().cpu().numpy()

    def enough(intermediate_result):
        if seen["probe"].gradient <= TOLERANCE / 2:
            raise StopIteration

    first = torch.zeros(width + 1, c, dtype=x.dtype, device=x.device)
    if start is not None:
        first[:-1] = root.T @ start.weight
        first[-1] = (start.bias + mean @ start.weight) * curvature**0.5
    options = {"maxiter": MOST_STEPS, "gtol": 0.0, "ftol": 0.0}
    end = minimize(
        function, first.flatten().double().cpu().numpy(), jac=True, method="L-BFGS-B", callback=enough, options=options
    )
    if not (end.x == seen["point"]).all():  # the last point looked at need not be the best
        function(end.x)
    return seen["probe"]


def in_span(x: Tensor, labels: Tensor, penalty: float, fit: Fit) -> Probe:
    """A fit to fewer images than features: W lies in the span of the images, whatever the loss, and is fitted there.

    The gradient it reports is that along the span's axes.
    """
    basis = axes(x)
    inside = fit((x @ basis).double(), labels, penalty)  # small, so exactness costs nothing
    return Probe(basis @ inside.weight.to(x.dtype), inside.bias.to(x.dtype), inside.classes, inside.gradient)


def axes(x: Tensor) -> Tensor:
    """x [n, D], n below D -> an orthonormal basis of what its rows span [D, n]."""
    return torch.linalg.qr(x.T).Q


def covariance_of(x: Tensor) -> Tensor:
    """x [n, D] -> covariance [D, D], from about 3 D evenly spaced rows: near enough to precondition a fit."""
    x = x[:: max(1, len(x) // (3 * x.shape[1]))]
    mean = x.mean(0)
    return (x.T @ x).div_(len(x)).sub_(torch.outer(mean, mean))


def curvature_root(covariance: Tensor, curvature: float, decay: float) -> Tensor:
    """Cholesky factor of curvature * covariance + decay, slightly damped: it only has to be near."""
    damping = 1e-4 * curvature * covariance.diagonal().mean() + decay
    matrix = (curvature * covariance).double()
    matrix.diagonal().add_(damping)
    return torch.linalg.cholesky(matrix).to(covariance.dtype)


def search(x: Tensor, labels: Tensor, x_validation: Tensor, fit: Fit = fit) -> Iterator[tuple[float, Tensor]]:
    """Predictions along GRID, each fit starting from the one before."""
    if len(x) < x.shape[1]:  # into their span once, not for every C
        basis = axes(x)
        x, x_validation = (x @ basis).double(), (x_validation @ basis).double()
    covariance, probe = covariance_of(x), None
    for penalty in GRID:
        probe = fit(x, labels, penalty, covariance, probe)
        yield penalty, probe.predict(x_validation)


def predict(
    x: Tensor,
    labels: Tensor,
    x_test: Tensor,
    penalty: float,
    subsets: Sequence[Tensor | None],
    fit: Fit = fit,
) -> Iterator[tuple[Tensor, bool]]:
    """Predictions of a fit on each subset, and whether it converged; the fits help each other to be quick."""
    covariance, probe = None, None
    for subset in subsets:
        some = x if subset is None else x[subset]
        own = labels if subset is None else labels[subset]
        if covariance is None and len(some) >= x.shape[1]:
            covariance = covariance_of(x)
        if probe is not None and not torch.equal(probe.classes, own.unique()):
            probe = None
        probe = fit(some, own, penalty, covariance, probe)
        yield probe.predict(x_test), probe.converged


def kind(words: str, fit: Fit) -> Kind:
    """A linear probe by the function that fits it."""
    return Kind(words, "C", partial(search, fit=fit), partial(predict, fit=fit))


LINEAR = kind("logistic regression", fit)
