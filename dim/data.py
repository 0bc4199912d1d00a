"""Data: a data set by name -> splits of uint8 images and labels, small enough to live on the device."""

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dim.config import UserError
from dim.randomness import generator


@dataclass(frozen=True)
class Split:
    """images uint8 [n, C, H, W], labels int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, of images with values 0 .. levels.

    An encoder sees them in [-1, 1] where signed, as in the paper's code, else in [0, 1].

    fingerprint: SHA-256 of the training and test images and labels, so that results name their data by content.
    """

    name: str
    train: Split
    test: Split
    classes: int
    levels: int = 255
    signed: bool = True

    def units(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 images as numbers in [0, 1], which views work on, in the same memory format."""
        return images.to(dtype).div_(self.levels)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as an encoder sees them."""
        return images * 2 - 1 if self.signed else images

    def floats(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 images as an encoder sees them without any view."""
        return self.normalised(self.units(images, dtype))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def validation(self, split_seed: int, fraction: float = 0.1) -> tuple[Tensor, Tensor]:
        """Indices of the training split as (fitting part, validation part), the latter a stratified tenth.

        Labels of the validation part choose regularisation, recipes and the like; the test split is read once.
        """
        shuffled = torch.randperm(len(self.train), generator=generator(split_seed, "validation"))
        labels = self.train.labels.cpu()[shuffled]
        chosen = torch.zeros(len(self.train), dtype=torch.bool)
        for label in range(self.classes):
            members = shuffled[labels == label]
            chosen[members[: round(len(members) * fraction)]] = True
        return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def digits(root: Path, download: bool) -> Dataset:
    """scikit-learn's digits: 1,797 real grey images of 8 x 8, values 0 .. 16, inside the package.

    Rows in file order, the first 1,257 for training, the last 540 for testing: other writers, so harder than a shuffled
    split, and without its randomness.
    """
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = torch.from_numpy(bundled.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    train, test = Split(images[:1257], labels[:1257]), Split(images[1257:], labels[1257:])
    return Dataset("digits", train, test, classes=10, levels=16, signed=False)


CIFAR10_MD5 = {  # as torchvision lists them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def cifar10(root: Path, download: bool) -> Dataset:
    """CIFAR-10 from torchvision's files, in [-1, 1] as in the paper's code: 50,000 and 10,000 images of 32 x 32."""
    folder = root / "cifar-10-batches-py"
    if download and not folder.is_dir():
        from torchvision.datasets import CIFAR10

        CIFAR10(str(root), download=True)
    if not folder.is_dir():
        raise UserError(
            f"cifar10 is not in {folder}: give its parent as --data.root, let torchvision fetch it with "
            "--data.download true, or train on --data.name digits, which needs no files"
        )
    batches = {name: cifar_batch(folder / name, md5) for name, md5 in CIFAR10_MD5.items()}
    train = [batch for name, batch in batches.items() if name != "test_batch"]
    joined = Split(torch.cat([b.images for b in train]), torch.cat([b.labels for b in train]))
    return Dataset("cifar10", joined, batches["test_batch"], classes=10)


def cifar_batch(path: Path, md5: str) -> Split:
    """One of CIFAR's pickled batches, unpickled only when its checksum is right, by an unpickler that builds arrays only."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is not the original file (its MD5 differs): delete it and fetch the data set again")
    batch = ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    images = torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32))
    return Split(images, torch.tensor(batch["labels"], dtype=torch.int64))


class ArraysOnly(pickle.Unpickler):
    """An unpickler that can build numpy arrays beside plain containers, and nothing else."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.array(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to build {module}.{name}")
        return self.ALLOWED[module, name]


DATASETS = {"digits": digits, "cifar10": cifar10}
