"""The linear probe: multinomial logistic regression on frozen features.

    minimise over W, b   mean cross-entropy of softmax(W x + b) + |W|^2 / (2 C n)

n images, C as in scikit-learn, whose L-BFGS solves it. A fit counts as converged when no component of the gradient of
this function exceeds TOLERANCE, which is computed here and not taken from the solver.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dim.data import Dataset
from dim.encoders import Encoder
from dim.evals.features import features
from dim.randomness import generator

TOLERANCE = 2e-4
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


def evaluate(rows: Iterator[tuple[str, np.ndarray, np.ndarray]], data: Dataset, split_seed: int) -> dict:
    """Probe each row's features by the data set's protocol.

    rows: (name, training features [n, D], test features [t, D]). Returns {"protocol": what the numbers mean, "labels": the
    columns, "rows": {name: {column: {"accuracy": in [0, 1], "sd": over label draws or None, "penalty": C, "converged": ..}}}}.
    The test features are looked at once for each row and column, after everything is chosen.
    """
    protocol = PROTOCOLS.get(data.name, Protocol())
    fitting, validation = (index.numpy() for index in data.validation(split_seed))
    train_labels, test_labels = data.train.labels.numpy(), data.test.labels.numpy()
    found: dict[str, dict] = {}
    for name, train, test in rows:
        if name != UNSCALED:
            train, test = standardised(train, test)
        found[name] = {}
        for labels in protocol.labels:
            column = "all" if labels is None else str(labels)
            penalty = protocol.penalty
            chosen: dict = {}
            if penalty is None:
                penalty, chosen = choose(train[fitting], train_labels[fitting], train[validation], train_labels[validation])
            subsets = [np.arange(len(train))] if labels is None else label_draws(train_labels, labels, protocol.draws)
            probes = [fit(train[subset], train_labels[subset], penalty) for subset in subsets]
            scores = [float((probe.predict(test) == test_labels).mean()) for probe in probes]
            found[name][column] = {
                "accuracy": float(np.mean(scores)),
                "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                "penalty": penalty,
                "converged": all(probe.converged for probe in probes),
                **chosen,
            }
    return {"protocol": described(protocol, data), "labels": list(next(iter(found.values()))), "rows": found}


UNSCALED = "raw pixels, unscaled"


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
    return (
        f"{data.name}, {len(data.test):,} test images, logistic regression on frozen features, standardised by the "
        f"{len(data.train):,} training images, {how}{draws}"
    )


def quick_probe(encoder: Encoder, data: Dataset, split_seed: int, most: int = 10_000) -> dict[str, float]:
    """Validation accuracy of fc and y during training, never of the test split: {"probe/fc_accuracy": in [0, 1], ..}.

    digits: 3 folds of the training part, C = 1. Otherwise C = 0.01, fitted on at most `most` images of the fitting part
    and scored on the validation part. A monitor: evaluate.py chooses C and fits on everything.
    """
    labels = data.train.labels.numpy()
    if data.name in PROTOCOLS:
        parts = np.array_split(np.arange(len(labels)), 3)
        splits = [(np.concatenate(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(3)]
        penalty = PROTOCOLS[data.name].penalty or 1.0
    else:
        fitting, validation = (index.numpy() for index in data.validation(split_seed))
        splits, penalty = [(fitting[:most], validation)], 0.01
    used = np.unique(np.concatenate([np.concatenate(split) for split in splits]))
    place = np.zeros(len(labels), dtype=int)
    place[used] = np.arange(len(used))
    found = features(encoder, data, data.train.images[used])
    scores: dict[str, list[float]] = {"fc": [], "y": []}
    for layer, values in scores.items():
        for train, test in splits:
            x, x_test = standardised(found[layer][place[train]], found[layer][place[test]])
            values.append(float((fit(x, labels[train], penalty).predict(x_test) == labels[test]).mean()))
    return {f"probe/{layer}_accuracy": float(np.mean(values)) for layer, values in scores.items()}


@dataclass(frozen=True)
class Probe:
    """A fitted probe: logits x W^T + b; gradient is the largest component of the objective's gradient, in size."""

    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    gradient: float

    @property
    def converged(self) -> bool:
        return self.gradient <= TOLERANCE

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes[(x @ self.weight.T + self.bias).argmax(1)]


def fit(x: np.ndarray, labels: np.ndarray, penalty: float, start: Probe | None = None) -> Probe:
    """Fit the probe to x [n, D], labels [n] with C = penalty, from `start` where one is given."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=2000, tol=TOLERANCE / 2, warm_start=start is not None)
    if start is not None:
        model.coef_, model.intercept_, model.classes_ = start.weight.copy(), start.bias.copy(), start.classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # judged below
        model.fit(x, labels)
    weight, bias = model.coef_, model.intercept_
    logits = x @ weight.T + bias
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    error = (chance - (labels[:, None] == model.classes_)) / len(x)
    slope = error.T @ x + weight / (penalty * len(x))
    return Probe(weight, bias, model.classes_, float(max(np.abs(slope).max(), np.abs(error.sum(0)).max())))


def choose(x, labels, x_validation, validation_labels) -> tuple[float, dict]:
    """C with the best validation accuracy: up the grid, each fit from the last, until two in a row do not improve."""
    best, best_score, worse, probe, tried = GRID[0], -1.0, 0, None, {}
    for penalty in GRID:
        probe = fit(x, labels, penalty, probe)
        tried[f"{penalty:.2g}"] = score = float((probe.predict(x_validation) == validation_labels).mean())
        if score > best_score:
            best, best_score, worse = penalty, score, 0
        else:
            worse += 1
        if worse == 2:
            break
    return best, {"validation_accuracy": best_score, "tried": tried}


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and standard deviation of the training features; a feature that never varies becomes 0."""
    mean, sd = train.mean(0), train.std(0)
    scale = np.where(sd > 1e-6, 1 / np.maximum(sd, 1e-6), 0).astype(train.dtype)
    return (train - mean) * scale, (test - mean) * scale


def label_draws(labels: np.ndarray, per_class: int, draws: int) -> list[np.ndarray]:
    """Indices of `per_class` labels of each class, in `draws` draws that depend on nothing but their number."""
    import torch

    found = []
    for draw in range(draws):
        shuffled = torch.randperm(len(labels), generator=generator(draw, "labels", per_class)).numpy()
        members = [shuffled[labels[shuffled] == label][:per_class] for label in np.unique(labels)]
        found.append(np.concatenate(members))
    return found
