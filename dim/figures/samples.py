"""Samples: the trained encoder of a run, and the images that its pictures are drawn from, the same for all runs of a data set.

Draws depend on the split seed alone, so pictures of several runs can be laid side by side.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dim import build
from dim.config import Config, UserError
from dim.data import Dataset, Images
from dim.evals.features import features
from dim.randomness import generator


class Drawn(NamedTuple):
    """Images that scores and codes are shown for: indices in `images` in a drawn order, and what part of the data they are."""

    images: Images
    order: Tensor
    kind: str


def place(folder: Path, name: str, other: str) -> Path:
    """Where a picture of a run lies; that of another data set does not take the place of the run's own."""
    return folder / "figures" / f"{'_'.join([name, *[other] * bool(other)])}.png"


def drawn_images(config: Config, data: Dataset, other: str = "") -> Drawn:
    """Validation images where there is a batch of them, else images that train the encoder.

    Their order is drawn, the same for all runs of one split seed: the validation part itself is sorted by class. other: the
    name of the data where it is not what the encoder was trained on; their kind says so.
    """
    images, kind, index = data.train, "validation", torch.arange(0)
    if data.classes:
        index = data.validation(config.data.split_seed)[1]
    if len(index) < config.train.batch_size:
        images, kind, index = data.pretraining, "training", torch.arange(len(data.pretraining))
    return Drawn(images, shuffled(config, index), f"{other} {kind}".strip())


class Parts(NamedTuple):
    """Indices of training images, and in a drawn order of others, which are asked about; kind: which these are."""

    train: Images
    train_order: Tensor
    test: Images
    test_order: Tensor
    kind: str


def parts(config: Config, data: Dataset, other: str = "") -> Parts:
    """The training and the test split; without a test split all but a tenth of the training images, and that tenth. other: as
    for `drawn_images`."""
    everything = torch.arange(len(data.train))
    if len(data.test):
        order = shuffled(config, torch.arange(len(data.test)))
        return Parts(data.train, everything, data.test, order, f"{other} test".strip())
    order = shuffled(config, everything)
    kept = len(order) // 10
    return Parts(data.train, order[kept:], data.train, order[:kept], f"{other} training".strip())


def shuffled(config: Config, index: Tensor) -> Tensor:
    """An index in a drawn order."""
    return index[torch.randperm(len(index), generator=generator(config.data.split_seed, "figures"))]


def trained_encoder(config: Config, data: Dataset, state: dict) -> nn.Module:
    """The encoder with its last weights, in eval mode, on a GPU where there is one."""
    encoder = build.encoder(config, data.shape)
    encoder.load_state_dict(state["encoder"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return encoder.to(device).to(memory_format=torch.channels_last).eval()


def codes(encoder: nn.Module, data: Dataset, images: Images, index: Tensor) -> Tensor:
    """The codes y of the images of an index, float32 [n, d], on the CPU. UserError where they are not finite."""
    y = features(encoder, data, images, index, layers=("y",))["y"].cpu()
    if not torch.isfinite(y).all():
        raise UserError(f"the codes y of some of {len(y):,} images are not finite: the run's checkpoint may be damaged")
    return y


NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
}


def class_names(config: Config, data: Dataset) -> tuple[str, ...]:
    """What the classes are called, by label: known names, the folders' names or numbers; () without labels."""
    if data.name in NAMES:
        return NAMES[data.name]
    names = [str(label) for label in range(data.classes)]
    example = dict(zip(data.train.labels.tolist(), data.train.names, strict=False)) if data.classes else {}
    for label, path in example.items():
        inner = Path(os.path.relpath(path, config.data.root)).parts  # train/CLASS/.. or CLASS/..
        names[label] = inner[1] if inner[0] == "train" and len(inner) > 2 else inner[0]
    return tuple(names)
