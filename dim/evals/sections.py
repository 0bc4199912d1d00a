"""Sections of a report: for each evaluator what stands above its numbers, its rows, and what fills each of them.

A row needs features of one kind: raw pixels (layer x), or those of the encoder before training, of the same net trained with
labels, or of the trained one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from dim.config import UserError
from dim.data import Dataset
from dim.evals import finetune, mlp, protocol, reconstruction
from dim.evals.mine import mine
from dim.evals.ndm import ndm
from dim.evals.protocol import Kind
from dim.evals.ratio import spread
from dim.evals.reconstruction import Reconstruction

KINDS = ("raw", "random", "supervised", "trained")
ENCODERS = ("random", "trained")  # of which sections have rows where nothing else is asked for
SEEDS = 3  # of measures and of fine-tuning


class Features:
    """Features of a data set's training and test images by layer, x being pixels, and the encoder that made them
    (for pixels any). decoded: what decoders made of the test images, by layer, once they were trained."""

    def __init__(self, parts: dict[str, tuple[Tensor, Tensor]], encoder: nn.Module):
        self.parts, self.encoder, self.last = parts, encoder, ("", (Tensor(), Tensor()))
        self.decoded: dict[str, Reconstruction] = {}

    def of(self, layer: str) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.parts[layer]

    def standardised(self, layer: str) -> tuple[Tensor, Tensor]:
        """As probes see them; those of the last layer are kept."""
        if self.last[0] != layer:
            self.last = layer, protocol.standardised(*self.parts[layer])
        return self.last[1]


class Row(NamedTuple):
    """A row by name; layers: the features that its numbers are made of; act(features, known) -> its numbers, in a table of
    accuracies those of the columns that are not known."""

    name: str
    kind: str
    layers: tuple[str, ...]
    act: Callable[[Features, Mapping[str, dict]], dict]


class Section(NamedTuple):
    """An evaluator by the name of its section; columns: of a table of accuracies, what each one means beside the protocol."""

    title: str
    heading: dict
    rows: list[Row]
    columns: Mapping[str, str] = MappingProxyType({})


def places(layers: Sequence[str], encoders: Sequence[str] = ENCODERS) -> list[tuple[str, str, str]]:
    """(name, kind, layer) of what is probed: raw pixels, then each layer of each encoder."""
    return [("raw pixels", "raw", "x"), *((f"{kind} {layer}", kind, layer) for kind in encoders for layer in layers)]


def probe(
    title: str,
    kind: Kind,
    data: Dataset,
    layers: Sequence[str],
    few: Sequence[int],
    split_seed: int,
    encoders: Sequence[str] = ENCODERS,
    resampled: bool = True,
) -> Section:
    """A probe under the clean protocol; few: numbers of labels a class that get a column; resampled: whether one of resamples
    stands beside them."""
    columns = protocol.columns_for(data, few, split_seed, resampled)
    words, meant = protocol.described(kind, data, columns)
    run = partial(protocol.probe, kind, data=data, split_seed=split_seed, columns=columns)

    def act(name: str, layer: str, features: Features, known: Mapping[str, dict]) -> dict:
        pair = features.of(layer) if name == protocol.UNSCALED else features.standardised(layer)
        return run(name, *pair, known=known)

    unscaled = [(protocol.UNSCALED, "raw", "x")] * columns.unscaled
    listed = [*unscaled, *places(layers, encoders)]
    rows = [Row(name, which, (layer,), partial(act, name, layer)) for name, which, layer in listed]
    return Section(title, accuracy(data, words), rows, meant)


def paper(data: Dataset, layers: Sequence[str], encoders: Sequence[str] = ENCODERS) -> Section:
    """The paper's MLP, which is compared with the paper only."""

    def act(layer: str, features: Features, known: Mapping[str, dict]) -> dict:
        x, x_test = features.of(layer)
        labels, test_labels = protocol.labels_for(layer, x, x_test, data)
        return {"all": mlp.paper(x, labels, x_test, test_labels)}

    rows = [Row(name, which, (layer,), partial(act, layer)) for name, which, layer in places(layers, encoders)]
    return Section("mlp, the paper's protocol", accuracy(data, f"{data.name}, {mlp.PAPER_WORDS}"), rows, {"all": ""})


def fine_tuned(data: Dataset, layers: Sequence[str], few: Sequence[int], losses: dict[str, float], view) -> Section:
    """The whole encoder, fine-tuned on numbers of labels a class; where none is asked for on all labels and on each official
    fold. losses on unlabelled images by weight. UserError where a class has fewer labels."""
    for count in few:
        finetune.chosen_labels(data, count, 0)  # no label chooses anything here, so a class's every label can be asked for
    columns: dict[str, Sequence[int | Tensor | None]] = {str(count): [count] * SEEDS for count in few} or {
        "all": [None] * SEEDS
    }
    if data.folds and not few:
        columns["folds"] = data.folds
    how = finetune.FineTuning(losses=losses)

    def act(layer: str, features: Features, known: Mapping[str, dict]) -> dict:
        cells = {}
        for column, labels in columns.items():
            if column in known:
                continue
            begun = time.perf_counter()
            runs = [
                finetune.finetune(features.encoder, data, which, view, layer=layer, losses=losses, seed=seed)
                for seed, which in enumerate(labels)
            ]
            mean = protocol.mean_sd([run["accuracy"] for run in runs])
            cells[column] = {**mean, "converged": True, "seconds": time.perf_counter() - begun}
        return cells

    more = f" and on unlabelled images {losses}" if losses else ""
    words = (
        f"{data.name}, {len(data.test):,} test images, encoder and a linear head fine-tuned with cross-entropy on labels of "
        f"the {len(data.train):,} training images{more}, {how.steps:,} steps of {how.batch} images, "
        f"{'augmented' if view else 'not augmented'}, Adam, rates {how.encoder_lr:g} and {how.lr:g} (head); mean and standard "
        f"deviation over {SEEDS} seeds; nothing is chosen"
    )
    meant = {column: "columns with few labels: each seed with a draw of labels" if few else "" for column in columns}
    if "folds" in columns:
        meant["folds"] = (
            f"folds: over the {len(data.folds)} official folds of {len(data.folds[0]):,} labels, each with a seed of its own"
        )
    rows = [Row(name, which, (layer,), partial(act, layer)) for name, which, layer in places(layers) if which != "raw"]
    title = "finetune" + "".join(f", {name} {weight:g}" for name, weight in losses.items())
    return Section(title, accuracy(data, words) | {"augmentation": repr(view)}, rows, meant)


def mutual_information(data: Dataset, pairs: Sequence[tuple[str, str]], encoders: Sequence[str] = ENCODERS) -> Section:
    """MINE between layers, x being pixels."""

    def act(a: str, b: str, features: Features, known: Mapping[str, dict]) -> dict:
        begun = time.perf_counter()
        runs = [mine(features.of(a)[0], features.of(b)[0], seed) for seed in range(SEEDS)]
        return spread(runs, "mi_nats") | terms(runs) | {"seconds": time.perf_counter() - begun}

    words = (
        f"mutual information in nats between layers (x: pixels) of the {len(data.train):,} training images of {data.name}: "
        f"{HELD_OUT}; an encoder that tells n images apart has log n on them, and no n images certify more; {BESIDE}"
    )
    rows = [Row(f"{kind} {a}:{b}", kind, (a, b), partial(act, a, b)) for kind in encoders for a, b in pairs]
    return Section("mine", {"protocol": words}, rows)


def total_correlation(data: Dataset, layers: Sequence[str], encoders: Sequence[str] = ENCODERS) -> Section:
    """NDM of codes, as they are and through the prior's sigmoid."""

    def act(layer: str, squash: bool, features: Features, known: Mapping[str, dict]) -> dict:
        begun = time.perf_counter()
        runs = [ndm(features.of(layer)[0], seed, squash=squash, ranks=False) for seed in range(SEEDS)]
        return spread(runs, "total_correlation_nats") | terms(runs) | {"seconds": time.perf_counter() - begun}

    words = (
        f"total correlation in nats of the dimensions of a layer, over the {len(data.train):,} training images of {data.name}, "
        "as it is and through the prior's sigmoid, which cannot change it but can hide it from a critic: "
        f"{HELD_OUT}; 0: independent; {BESIDE}"
    )
    rows = [
        Row(f"{kind} {layer}{', squashed' * squash}", kind, (layer,), partial(act, layer, squash))
        for kind in encoders
        for layer in layers
        for squash in (False, True)
    ]
    return Section("ndm", {"protocol": words}, rows)


HELD_OUT = (
    "a critic trained with jsd on a third, its stop chosen on a third, read out as Donsker-Varadhan on a third that it never "
    f"saw; mean and standard deviation over {SEEDS} seeds, each with its own thirds"
)
BESIDE = (
    "beside the run's encoder (trained) the same net with its first weights (random; BatchNorm statistics set on training "
    "images) and, where asked for, trained with labels (supervised); raw pixels have no row of their own"
)


def terms(runs: Sequence[dict]) -> dict:
    """Means of the read-out's two terms, and what the images can certify."""
    keys = ("positive_term", "negative_term", "standard_error", "certifiable_nats")
    return {key: sum(run[key] for run in runs) / len(runs) for key in keys}


def decoded(data: Dataset, layers: Sequence[str], encoders: Sequence[str] = ENCODERS) -> Section:
    """MS-SSIM of images and what a decoder makes of a layer. UserError where there are no test images."""
    if len(data.test) < 2:
        raise UserError(
            f"{data.name} has {len(data.test)} test images, and a reconstruction is judged on at least 2 that no decoder saw: "
            "--figures reconstruction keeps a tenth of the training images for that and says its MS-SSIM"
        )

    def act(layer: str, features: Features, known: Mapping[str, dict]) -> dict:
        begun = time.perf_counter()
        train, test = features.of(layer)
        seen, unseen = (reconstruction.stored(data, part) for part in (data.train, data.test))
        found = features.decoded[layer] = reconstruction.reconstruction(train, seen, test, unseen)
        return found.facts | {"seconds": time.perf_counter() - begun}

    words = (
        f"a decoder trained with L2 on a frozen layer of the {len(data.train):,} training images of {data.name}, MS-SSIM and "
        f"mean squared error of the {len(data.test):,} test images; mean image: the mean training image in place of each "
        f"reconstruction; one decoder a row, of {reconstruction.STEPS:,} steps, its weights and order of images of seed 0: no "
        f"spread; {BESIDE}"
    )
    rows = [Row(f"{kind} {layer}", kind, (layer,), partial(act, layer)) for kind in encoders for layer in layers]
    return Section("reconstruction", {"protocol": words}, rows)


def accuracy(data: Dataset, words: str) -> dict:
    """The heading of a table of accuracies."""
    return {"protocol": words, "chance": 1 / data.classes}
