"""The linear probe: multinomial logistic regression on frozen features.

    minimise over W, b   mean cross-entropy of softmax(W x + b) + |W|^2 / (2 C n)

n images, C as in scikit-learn. A fit counts as converged when no component of the gradient of this function exceeds
TOLERANCE.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.data import Dataset
from dim.evals.features import features
from dim.randomness import generator

TOLERANCE = 1e-4
MOST_STEPS = 500
GRID = tuple(10.0 ** (half / 2) for half in range(-10, 5))  # C from 1e-5 to 100, half decades


@dataclass(frozen=True)
class Protocol:
    """What is measured on a data set, fixed before any run.

    labels: columns, each a number of labels for a class, or None for all; draws: label draws behind a column that is not
    all, the same for every row; penalty: C, or None to choose it on the validation part of the training split and refit on
    all of it; unscaled: whether raw pixels stand also without standardisation.
    """

    labels: tuple[int | None, ...] = (None,)
    draws: int = 10
    penalty: float | None = None
    unscaled: bool = False


PROTOCOLS = {"digits": Protocol(labels=(None, 10, 5, 1), penalty=1.0, unscaled=True)}


def evaluate(rows: Iterator[tuple[str, Tensor, Tensor]], data: Dataset, split_seed: int) -> dict:
    """Probe each row's features by the data set's protocol.

    rows: (name, training features [n, D], test features [t, D]). Returns {"protocol": what the numbers mean,
    "chance": 1 / classes, "labels": the columns, "rows": {name: {column: {"accuracy": in [0, 1], "sd": over label draws,
    over official folds or None, "C": .., "converged": ..}}}}.
    The test features are looked at once for each row and column, after everything is chosen.
    """
    protocol = PROTOCOLS.get(data.name, Protocol())
    fitting, validation = data.validation(split_seed)
    columns = columns_of(protocol, data)
    found: dict[str, dict] = {}
    for name, train, test in rows:
        if name != UNSCALED:
            train, test = standardised(train, test)
        labels, test_labels = data.train.labels.to(train.device), data.test.labels.to(train.device)
        found[name] = {}
        chosen: dict = {"C": protocol.penalty}
        if protocol.penalty is None:
            chosen = choose(train[fitting], labels[fitting], train[validation], labels[validation])
        for column, subsets in columns.items():
            probes = [fit(train[subset], labels[subset], chosen["C"]) for subset in subsets]
            scores = torch.tensor([accuracy(probe, test, test_labels) for probe in probes], dtype=torch.float64)
            found[name][column] = {
                "accuracy": scores.mean().item(),
                "sd": scores.std().item() if len(scores) > 1 else None,
                "converged": all(probe.converged for probe in probes),
                **chosen,
            }
    return {
        "protocol": described(protocol, data),
        "chance": 1 / data.classes,
        "labels": list(columns),
        "rows": found,
    }


UNSCALED = "raw pixels, unscaled"


def columns_of(protocol: Protocol, data: Dataset) -> dict[str, list[Tensor]]:
    """The training images whose labels a probe is given, for each column: one set, or several to average over."""
    found = {}
    for count in protocol.labels:
        if count is None:
            found["all"] = [torch.arange(len(data.train))]
        else:
            found[str(count)] = label_draws(data.train.labels, count, protocol.draws)
    return found | ({"folds": list(data.folds)} if data.folds else {})


def described(protocol: Protocol, data: Dataset) -> str:
    """The protocol in words, to stand beside its numbers."""
    how = (
        f"C = {protocol.penalty:g}"
        if protocol.penalty
        else "C chosen on the validation tenth of the training split, refitted on all"
    )
    draws = (
        f"; columns with few labels: mean and standard deviation of {protocol.draws} draws" if len(protocol.labels) > 1 else ""
    )
    if data.folds:
        draws += (
            f"; folds: mean and standard deviation over the {len(data.folds)} official folds of {len(data.folds[0]):,} labels, "
            f"C and standardisation as for all {len(data.train):,}"
        )
    return (
        f"{data.name}, {len(data.test):,} test images, logistic regression on frozen features, standardised by the "
        f"{len(data.train):,} training images, {how}{draws}"
    )


def quick_probe(encoder: nn.Module, data: Dataset, split_seed: int, most: int = 10_000) -> dict[str, float]:
    """Validation accuracy of fc and y during training, never of the test split: {"probe/fc_accuracy": in [0, 1], ..}.

    digits: 3 folds of the training part, C = 1. Otherwise C = 0.01, fitted on at most `most` images of the fitting part
    and scored on the validation part. A monitor: evaluate.py chooses C and fits on everything.
    """
    labels = data.train.labels
    if data.name in PROTOCOLS:
        parts = torch.arange(len(labels)).tensor_split(3)
        splits = [(torch.cat(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(3)]
        penalty = PROTOCOLS[data.name].penalty or 1.0
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


def fit(x: Tensor, labels: Tensor, penalty: float, covariance: Tensor | None = None, start: Probe | None = None) -> Probe:
    """Fit the probe to x [n, D], labels [n] with C = penalty.

    covariance [D, D] of x or of images like them and a start near the answer save time and change nothing else.

    L-BFGS in coordinates in which the curvature at equal class probabilities, (1 - 1/c)/c * covariance + 1/(C n), is the
    identity: about 10 steps where plain L-BFGS takes hundreds, since features are strongly correlated. With fewer images
    than features, W lies in the span of the images, and the fit is done there.
    """
    from scipy.optimize import minimize

    if len(x) < x.shape[1]:
        basis = torch.linalg.qr(x.T).Q  # [D, n]
        inside = fit((x @ basis).double(), labels, penalty)  # small, so exactness costs nothing
        return Probe(basis @ inside.weight.to(x.dtype), inside.bias.to(x.dtype), inside.classes, inside.gradient)
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


def choose(x: Tensor, labels: Tensor, x_validation: Tensor, validation_labels: Tensor) -> dict:
    """C with the best validation accuracy, the first of equals: up the grid until two in a row are below the best.

    Equal accuracies do not end the search: with few images the weak end of the grid predicts the same for several C.
    """
    covariance = covariance_of(x) if len(x) >= x.shape[1] else None
    tried: dict[float, float] = {}
    probe = None
    for penalty in GRID:
        probe = fit(x, labels, penalty, covariance, probe)
        tried[penalty] = accuracy(probe, x_validation, validation_labels)
        best = max(tried, key=tried.__getitem__)
        if all(score < tried[best] for score in list(tried.values())[-2:]):
            break
    return {"C": best, "validation_accuracy": tried[best], "tried": {f"{c:.2g}": score for c, score in tried.items()}}


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the mean and standard deviation of the training features; a feature that never varies becomes 0."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    sd = train.square().mean(0).sqrt()  # std(0) takes 4 times as long on a CPU
    scale = torch.where(sd > 1e-6, 1 / sd.clamp_min(1e-6), 0)
    return train.mul_(scale), test.mul_(scale)


def label_draws(labels: Tensor, per_class: int, draws: int) -> list[Tensor]:
    """Indices of `per_class` labels of each class, in `draws` draws that depend on nothing but their number."""
    found = []
    for draw in range(draws):
        shuffled = torch.randperm(len(labels), generator=generator(draw, "labels", per_class))
        members = [shuffled[labels[shuffled] == label][:per_class] for label in labels.unique()]
        found.append(torch.cat(members))
    return found
