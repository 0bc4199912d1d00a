"""Data: splits of uint8 images and labels. Small sets live on the device; large folders are read as they are needed."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dim.config import UserError
from dim.randomness import generator
from dim.views import CentreCrop, Resize

FITS = {"resize": Resize, "crop": CentreCrop}


class Images(Protocol):
    """Square images of one size with labels, read in batches: what every split is."""

    @property
    def labels(self) -> Tensor:
        """int64 [n], -1: no label."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their files, () where they have none of their own."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    def __len__(self) -> int: ...

    def batches(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """The images of these indices in this order, uint8 [size, C, H, W]; the last batch may be smaller."""

    def to(self, device: torch.device | str) -> "Images":
        """The same where batches should arrive."""

    def content(self) -> Iterator[bytes]:
        """What a fingerprint is made of."""


@dataclass(frozen=True)
class Split:
    """Images in memory: uint8 [n, C, H, W], and their labels int64 [n]. The channels of a pixel lie beside each other, as the
    views move whole pixels and the convolutions read them."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, index: Tensor, size: int) -> Iterator[Tensor]:
        pixels = self.images.permute(0, 2, 3, 1)  # as they lie in memory
        for chunk in index.to(self.images.device).split(size):  # whole images at a time; indexing goes number by number
            yield pixels.index_select(0, chunk).permute(0, 3, 1, 2)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels, self.names)

    def content(self) -> Iterator[bytes]:
        for tensor in (self.images, self.labels):
            yield from (chunk.cpu().contiguous().numpy().tobytes() for chunk in tensor.split(10_000))


@dataclass(frozen=True)
class Dataset:
    """What an encoder is trained on, and what it is measured on.

    unlabelled: what trains the encoder where that is more than `train`; its labels are -1 and reach no probe.
    folds: official parts of `train`, each a probe's training set.
    An encoder sees values 0 .. levels in [-1, 1] where signed, as in the paper's code, else in [0, 1]; and size x size
    pixels, larger images resized or centre-cropped to it where no view makes a window of its own.
    """

    name: str
    train: Images
    test: Images
    classes: int  # 0: no labels
    levels: int = 255
    signed: bool = True
    size: int = 0  # 0: as stored
    fit: str = "none"
    unlabelled: Images | None = None
    folds: tuple[Tensor, ...] = ()

    @property
    def pretraining(self) -> Images:
        """The images that train the encoder, without a look at labels."""
        return self.train if self.unlabelled is None else self.unlabelled

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what an encoder sees."""
        channels, height, width = self.pretraining.shape
        return channels, self.size or height, self.size or width

    @property
    def fitting(self) -> tuple:
        """The view that brings stored images to the encoder's size, () where they have it."""
        return (FITS[self.fit](self.size),) if self.size not in (0, self.pretraining.shape[-1]) else ()

    @property
    def facts(self) -> dict:
        """What one must know of it to use an encoder trained on it, or to go on training it."""
        known = {"name": self.name, "shape": list(self.shape), "levels": self.levels, "signed": self.signed}
        content = digest(self.pretraining.content())
        return known | {"images": len(self.pretraining), "files": keys(self.pretraining), "content": content}

    def units(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 images as numbers in [0, 1], which views work on, in the same memory format."""
        return images.to(dtype).div_(self.levels)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as an encoder sees them, in the memory of those given."""
        return images.mul_(2).sub_(1) if self.signed else images

    def floats(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 images as an encoder sees them when it is measured: at its size, without a draw."""
        images = self.units(images, dtype)
        for view in self.fitting:
            images = view(images, images.new_zeros(len(images), 0))
        return self.normalised(images)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels, or of names and sizes of files too many to hold: results name data by content."""
        return digest(
            part for split in (self.train, self.test, self.unlabelled) if split is not None for part in split.content()
        )

    def with_labels(self) -> "Dataset":
        """Itself; UserError where there is nothing to probe."""
        if not self.classes:
            raise UserError(
                f"{self.name} has no labels to probe: give one folder a class with --data.labels folders; or train with "
                "--run.probe_every 0, then probe another data set with evaluate.py RUN --data.name NAME --data.root DIR, or "
                "take the features with --features FILE.npz"
            )
        if not (len(self.train) and len(self.test)):
            raise UserError(
                f"{self.name} has {len(self.train)} training images and {len(self.test)} test images: a probe needs both"
            )
        return self

    def validation(self, split_seed: int, fraction: float = 0.1) -> tuple[Tensor, Tensor]:
        """Indices of the training split as (fitting part, validation part), the latter a stratified tenth.

        Labels of the validation part choose regularisation, recipes and the like; the test split is read once.
        """
        labels = self.train.labels.cpu()
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[stratified(labels, self.classes, fraction, generator(split_seed, "validation"))] = True
        if not chosen.any():
            raise UserError(f"{self.name} has {len(labels)} labelled images: no class has 2, one of them for validation")
        return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def stratified(labels: Tensor, classes: int, fraction: float, draws: torch.Generator) -> Tensor:
    """Indices of a share of each class, drawn; of a class with two images or more at least one."""
    shuffled = torch.randperm(len(labels), generator=draws)
    members = [shuffled[labels[shuffled] == label] for label in range(classes)]
    return torch.cat([member[: max(len(member) > 1, round(len(member) * fraction))] for member in members])


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of bytes that follow each other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def keys(images: Images) -> Tensor:
    """A number for each file, of its name, its folder's name and its size: int64 [n], sorted; empty for images that are no
    files. The same file has it under any root."""
    names = ["/".join(name.replace("\\", "/").rsplit("/", 2)[-2:]) + f" {os.path.getsize(name)}" for name in images.names]
    digests = [hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64).sort().values
