"""The clean protocol of the probes: what fits, what chooses, and what is read once.

A probe's knob (C, the number of neighbours or of epochs) is chosen on a validation part of the training split; with that
knob it is fitted again on all of it, and the test split is read once. The spread is over resamples of the training split:
a probe's own draws, where it has any, are the smaller part of it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from dim.config import UserError
from dim.data import Dataset, stratified
from dim.randomness import generator

UNSCALED = "raw pixels, unscaled"  # the one row that is not standardised
RESAMPLES, SHARE = 5, 0.8  # resamples of the training split, and the share of each class in one


@dataclass(frozen=True)
class Kind:
    """A probe.

    search(x, labels, x_validation) -> (value of the knob, predicted labels) pairs, lazily, in the order in which they should
    be tried. predict(x, labels, x_test, value, subsets) -> for each subset of the training images, None being all of them,
    the predicted labels [n_test] and whether the fit converged. patience: how many values in a row below the best end the
    search. open_end: whether a best value among the last `patience` that there are says that more should be tried: a cell
    with it has not converged.
    """

    words: str
    knob: str
    search: Callable[[Tensor, Tensor, Tensor], Iterator[tuple[float, Tensor]]]
    predict: Callable[[Tensor, Tensor, Tensor, float, Sequence[Tensor | None]], Iterator[tuple[Tensor, bool]]]
    patience: int = 2
    open_end: bool = False


@dataclass(frozen=True)
class Columns:
    """What is measured on a data set, fixed before any run.

    few: numbers of labels for each class that get a column, the mean over `draws` draws of these labels, the same for every
    row; knobs: values that are not chosen but fixed, by the name of the knob; everything: whether there is a column of all
    labels; resampled: whether there is one of resamples; unscaled: whether raw pixels stand also without standardisation.
    """

    few: tuple[int, ...] = ()
    draws: int = 10
    knobs: dict[str, float] = field(default_factory=dict)
    everything: bool = True
    resampled: bool = True
    unscaled: bool = False


COLUMNS = {"digits": Columns(few=(10, 5, 1), knobs={"C": 1.0}, resampled=False, unscaled=True)}


def columns_for(data: Dataset, few: Sequence[int] = (), split_seed: int = 0, resampled: bool = True) -> Columns:
    """The columns of a data set; few labels asked for replace its own, and resamples can be left out. UserError where a class
    has fewer to fit on."""
    columns = COLUMNS.get(data.name, Columns())
    columns = replace(columns, resampled=columns.resampled and resampled)
    if not few:
        return columns
    fewest = int(data.train.labels[data.validation(split_seed)[0]].bincount(minlength=data.classes).min())
    if max(few) > fewest or min(few) < 1:
        wrong = min(few) if min(few) < 1 else max(few)
        raise UserError(
            f"{wrong} labels a class are asked for: {data.name} has from 1 to {fewest} in each beside the validation part"
        )
    return replace(columns, few=tuple(few))


def probe(
    kind: Kind,
    name: str,
    train: Tensor,
    test: Tensor,
    data: Dataset,
    split_seed: int,
    columns: Columns,
    known: Mapping[str, dict] = MappingProxyType({}),
) -> dict:
    """One kind of probe on one kind of features: {column: {"accuracy": in [0, 1], "sd": over what the column says or None,
    "converged": .., the knob: its value, "validation_accuracy": .., "tried": .., "seconds": ..}}.

    train [n, D], test [t, D]: features as the probe is to see them, `standardised` or not. The test features are looked at
    once for each column, after everything is chosen. known: columns that were measured before; only the others are measured,
    with the knob that was chosen then where it is theirs too.
    """
    labels, test_labels = labels_for(name, train, test, data)
    fitting, validation = data.validation(split_seed)
    found: dict[str, dict] = {}
    chosen = {key: known["all"][key] for key in (kind.knob, *CHOICE) if key in known["all"]} if "all" in known else {}
    for column, subsets in subsets_of(columns, data).items():
        if column in known:
            continue
        begun = time.perf_counter()
        if kind.knob in columns.knobs:
            chosen = {kind.knob: columns.knobs[kind.knob]}
        elif column.isdigit():  # few labels want another knob than all
            fitted = fitting[label_draws(data.train.labels[fitting], int(column), 1)[0]]
            chosen = choose(kind, train[fitted], labels[fitted], train[validation], labels[validation], patience=None)
        elif not chosen:
            chosen = choose(kind, train[fitting], labels[fitting], train[validation], labels[validation], kind.patience)
        results = list(kind.predict(train, labels, test, chosen[kind.knob], subsets))
        found[column] = {
            **mean_sd([(predicted == test_labels).double().mean().item() for predicted, _ in results]),
            "converged": all(converged for _, converged in results) and not (kind.open_end and at_end(chosen, kind)),
            **chosen,
            "seconds": time.perf_counter() - begun,
        }
    return found


def labels_for(name: str, train: Tensor, test: Tensor, data: Dataset) -> tuple[Tensor, Tensor]:
    """Labels of training and test images where their features are; UserError where these or the labels make no probe."""
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise UserError(f"the features {name} are not all finite numbers: the run's weights or its images are damaged")
    labels = data.train.labels.to(train.device)
    if len(labels.unique()) < 2:
        raise UserError(f"{data.name} has labels of {len(labels.unique())} class: a probe needs two")
    return labels, data.test.labels.to(train.device)


def mean_sd(accuracies: Sequence[float]) -> dict:
    """Their mean, and their standard deviation where there are several."""
    return {
        "accuracy": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }


def subsets_of(columns: Columns, data: Dataset) -> dict[str, list[Tensor | None]]:
    """The training images whose labels a probe is given, for each column: None for all, or several sets to average over."""
    labels = data.train.labels
    found: dict[str, list[Tensor | None]] = {"all": [None]} if columns.everything else {}
    if columns.resampled and not data.folds:
        found["resamples"] = [
            stratified(labels, data.classes, SHARE, generator(draw, "resample")).sort().values for draw in range(RESAMPLES)
        ]
    if data.folds:
        found["folds"] = list(data.folds)
    for count in columns.few:
        found[str(count)] = list(label_draws(labels, count, columns.draws))
    return found


def choose(
    kind: Kind, x: Tensor, labels: Tensor, x_validation: Tensor, validation_labels: Tensor, patience: int | None
) -> dict:
    """The knob with the best validation accuracy, the first of equals: until `patience` values in a row are below the best.

    Equal accuracies do not end the search: with few images the weak end of a grid predicts the same for several values. Nor
    does anything where there is no patience: with few labels the accuracy may fall at first, and the fits take no time.
    """
    tried: dict[float, float] = {}
    for value, predicted in kind.search(x, labels, x_validation):
        tried[value] = (predicted == validation_labels).double().mean().item()
        best = max(tried, key=tried.__getitem__)
        if patience and all(score < tried[best] for score in list(tried.values())[-patience:]):
            break
    choice = tried[best], {f"{value:.4g}": score for value, score in tried.items()}
    return {kind.knob: best, **dict(zip(CHOICE, choice, strict=True))}


CHOICE = ("validation_accuracy", "tried")  # what stands beside the chosen value of a knob


def at_end(chosen: dict, kind: Kind) -> bool:
    """Whether a chosen knob is among the last `patience` values that were tried: then nothing says that it is the best."""
    return f"{chosen[kind.knob]:.4g}" in list(chosen.get("tried", {}))[-kind.patience :]


def described(kind: Kind, data: Dataset, columns: Columns) -> tuple[str, dict[str, str]]:
    """The protocol in words, to stand beside its numbers: that of all columns, and what each of them has beside it."""
    fixed = columns.knobs.get(kind.knob)
    how = (
        f"{kind.knob} = {fixed:g}"
        if fixed
        else f"{kind.knob} chosen on the validation tenth of the training split, refitted on all"
    )
    words = (
        f"{data.name}, {len(data.test):,} test images, {kind.words} on frozen features, standardised by the "
        f"{len(data.train):,} training images, {how}"
    )
    chosen = "" if fixed else f", {kind.knob} chosen with one more draw on the whole validation tenth"
    few = f"columns with few labels: mean and standard deviation of {columns.draws} draws{chosen}"
    found = {column: few if column.isdigit() else "" for column in subsets_of(columns, data)}
    if "resamples" in found:
        found["resamples"] = (
            f"resamples: mean and standard deviation of {RESAMPLES} fits, each on {SHARE:.0%} of each class, "
            f"{kind.knob} as for all"
        )
    if "folds" in found:
        found["folds"] = (
            f"folds: mean and standard deviation over the {len(data.folds)} official folds of {len(data.folds[0]):,} labels, "
            f"{kind.knob} and standardisation as for all {len(data.train):,}"
        )
    return words, found


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the mean and standard deviation of the training features, whatever their unit; a feature that never varies, or
    by less than 1e-6 of its size, becomes 0."""
    low, high = train.amin(0), train.amax(0)
    dead = low == high  # a rounded mean would leave a constant its rounding error
    unit = torch.exp2(torch.maximum(-low, high).clamp_min(0).frexp().exponent.clamp(-100, 100)).to(train.dtype)
    train, test = train / unit, test / unit  # exact, by powers of two: squares stay in range
    mean = train.mean(0)
    train, test = train.sub_(mean), test.sub_(mean)
    sd = train.square().mean(0).sqrt()  # std(0) takes 4 times as long on a CPU
    scale = torch.where((sd > 1e-6) & ~dead, 1 / sd.clamp_min(1e-6), 0)
    return train.mul_(scale), test.mul_(scale)


def label_draws(labels: Tensor, per_class: int, draws: int) -> list[Tensor]:
    """Indices of `per_class` labels of each class, in `draws` draws that depend on nothing but their number."""
    found = []
    for draw in range(draws):
        shuffled = torch.randperm(len(labels), generator=generator(draw, "labels", per_class))
        members = [shuffled[labels[shuffled] == label][:per_class] for label in labels.unique()]
        found.append(torch.cat(members))
    return found
