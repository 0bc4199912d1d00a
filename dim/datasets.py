"""Data sets by name, read from torchvision's file layouts: (config.data, encoder's size) -> Dataset.

What is on disk is checked by MD5 sum before it is looked into, and read by readers that build arrays and nothing else.
"""

import hashlib
import io
import math
import os
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dim.config import Data, UserError, require
from dim.data import Dataset, Split
from dim.folder import folder


def digits(c: Data, size: int = 0) -> Dataset:
    """scikit-learn's digits: 1,797 real grey images of 8 x 8, values 0 .. 16, inside the package.

    Rows in file order, the first 1,257 for training, the last 540 for testing: other writers, so harder than a shuffled
    split, and without its randomness.
    """
    require("sklearn", "data.name digits", "scikit-learn")
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = torch.from_numpy(bundled.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    train, test = Split(images[:1257], labels[:1257]), Split(images[1257:], labels[1257:])
    return Dataset("digits", train, test, classes=10, levels=16, signed=False, size=size, fit=c.fit)


CIFAR = "https://www.cs.toronto.edu/~kriz/"
STL10 = "http://ai.stanford.edu/~acoates/stl10/"
MD5 = {  # as torchvision lists them; MNIST's are those of its unpacked files
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb",
    "stl10_binary/unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


def cifar10(c: Data, size: int = 0) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 images of 32 x 32."""
    root = fetched(c, "cifar-10-batches-py", CIFAR, "cifar-10-python.tar.gz")
    batches = [cifar_batch(root, f"cifar-10-batches-py/data_batch_{i}", "labels") for i in range(1, 6)]
    train = Split(torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]))
    test = cifar_batch(root, "cifar-10-batches-py/test_batch", "labels")
    return Dataset("cifar10", train, test, classes=10, size=size, fit=c.fit)


def cifar100(c: Data, size: int = 0) -> Dataset:
    """CIFAR-100 with its 100 fine labels: 50,000 and 10,000 images of 32 x 32."""
    root = fetched(c, "cifar-100-python", CIFAR, "cifar-100-python.tar.gz")
    train, test = (cifar_batch(root, f"cifar-100-python/{part}", "fine_labels") for part in ("train", "test"))
    return Dataset("cifar100", train, test, classes=100, size=size, fit=c.fit)


def mnist(c: Data, size: int = 0) -> Dataset:
    """MNIST: 60,000 and 10,000 grey images of 28 x 28."""
    root = Path(c.root)
    if c.download and not os.path.isdir(root / "MNIST" / "raw"):
        require("torchvision", "data.download")
        from torchvision.datasets import MNIST

        guarded("mnist", lambda: MNIST(str(root), download=True))
    present(c, root / "MNIST" / "raw")
    splits = []
    for part in ("train", "t10k"):
        images = idx(root, f"MNIST/raw/{part}-images-idx3-ubyte", 3)[:, None]
        labels = idx(root, f"MNIST/raw/{part}-labels-idx1-ubyte", 1)
        splits.append(labelled(root / "MNIST" / "raw", torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), 10))
    return Dataset("mnist", splits[0], splits[1], classes=10, size=size, fit=c.fit)


def idx(root: Path, name: str, dims: int) -> np.ndarray:
    """MNIST's array of bytes, its magic number and sizes before it."""
    content = checked(root, name)
    header = np.frombuffer(content[: len(content) // 4 * 4][: 4 + 4 * dims], ">u4").tolist()
    if header[:1] != [0x800 + dims] or len(content) != 4 + 4 * dims + math.prod(header[1:]):
        raise UserError(f"{root / name} does not hold what its first bytes say")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(header[1:]).copy()


def stl10(c: Data, size: int = 0) -> Dataset:
    """STL-10: 100,000 unlabelled, 5,000 labelled and 8,000 test images of 96 x 96; ten official folds of 1,000 labels.

    The encoder is trained on unlabelled + train, as in the paper; a probe sees labelled images only.
    """
    root = fetched(c, "stl10_binary", STL10, "stl10_binary.tar.gz")
    train, test = stl10_split(root, "train"), stl10_split(root, "test")
    more = torch.from_numpy(stl10_images(root, "unlabeled"))
    unlabelled = Split(torch.cat([more, train.images]), torch.full((len(more) + len(train),), -1))
    folds = stl10_folds(root / "stl10_binary" / "fold_indices.txt", len(train))
    return Dataset("stl10", train, test, classes=10, size=size, fit=c.fit, unlabelled=unlabelled, folds=folds)


def stl10_split(root: Path, part: str) -> Split:
    """A labelled part; the file counts classes from 1."""
    images = torch.from_numpy(stl10_images(root, part))
    labels = np.frombuffer(checked(root, f"stl10_binary/{part}_y.bin"), np.uint8).astype(np.int64) - 1
    return labelled(root / "stl10_binary" / f"{part}_y.bin", images, torch.from_numpy(labels), 10)


def stl10_images(root: Path, part: str) -> np.ndarray:
    """uint8 [n, 3, 96, 96]; the file stores columns before rows."""
    content = np.frombuffer(checked(root, f"stl10_binary/{part}_X.bin"), np.uint8)
    if len(content) % (3 * 96 * 96):
        raise UserError(f"{root / 'stl10_binary' / f'{part}_X.bin'} does not hold whole images of 3 x 96 x 96")
    return np.ascontiguousarray(content.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2))


def stl10_folds(path: Path, images: int) -> tuple[torch.Tensor, ...]:
    """The official folds, a line each, as indices of the training part."""
    try:
        folds = tuple(torch.tensor([int(word) for word in line.split()]) for line in path.read_text().splitlines() if line)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or short(error)
        raise UserError(f"{path} cannot be read as lines of indices: {why}") from None
    if len(folds) != 10:
        raise UserError(f"{path} has {len(folds)} lines: the official folds are 10")
    for i, fold in enumerate(folds, 1):
        if not len(fold) or fold.min() < 0 or fold.max() >= images or len(fold.unique()) < len(fold):
            raise UserError(f"{path}, line {i}: a fold must name different images 0 .. {images - 1}")
    return folds


def fetched(c: Data, folder_name: str, url: str, archive: str) -> Path:
    """The root, with the data set's folder in it: as it is, or unpacked, after a download where that was asked for."""
    root = Path(c.root)
    if c.download and not os.path.isdir(root / folder_name):
        require("torchvision", "data.download")
        from torchvision.datasets.utils import download_url

        if not (root / archive).exists():
            guarded(c.name, lambda: download_url(url + archive, str(root), archive))
        if md5_of(root / archive) != MD5[archive]:
            raise UserError(f"{root / archive} is not the original file (its MD5 differs): delete it and fetch it again")
        unpack(root, archive, folder_name)
    present(c, root / folder_name)
    return root


def unpack(root: Path, archive: str, folder_name: str) -> None:
    """One folder of an archive, whole or not at all; nothing else of it, and nothing outside the root."""
    try:
        with tempfile.TemporaryDirectory(dir=root) as place:
            with tarfile.open(root / archive) as tar:
                tar.extractall(place, filter="data")
            os.rename(Path(place, folder_name), root / folder_name)
    except Exception as error:  # tarfile, its filters, gzip and the disk have errors of their own
        raise UserError(f"{root / archive} cannot be unpacked: {short(error)}") from None


def guarded(name: str, download) -> None:
    """Run a download; UserError where there is no network or no room."""
    try:
        download()
    except Exception as error:  # whatever urllib, http, ssl and gzip raise
        raise UserError(f"{name} could not be downloaded: {short(error)}; put its files under --data.root by hand") from None


def short(error: Exception) -> str:
    """A library's message on one line of at most 100 characters."""
    return " ".join(str(error).split())[:100] or type(error).__name__


def present(c: Data, path: Path) -> None:
    """UserError where the data set's folder is missing."""
    if not os.path.isdir(path):
        raise UserError(
            f"{c.name} is not in {path}: give the folder above {path.relative_to(c.root)} as --data.root, let it be fetched "
            "with --data.download true, or train on --data.name digits, which needs no files"
        )


def checked(root: Path, name: str) -> bytes:
    """The content of a file with the right MD5 sum."""
    try:
        content = (root / name).read_bytes()
    except OSError as error:
        raise UserError(f"{root / name} cannot be read: {error.strerror}") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
        raise UserError(f"{root / name} is not the original file (its MD5 differs): delete it and fetch the data set again")
    return content


def md5_of(path: Path) -> str:
    """The MD5 sum of a large file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def cifar_batch(root: Path, name: str, key: str) -> Split:
    """One of CIFAR's pickled batches, unpickled only when its checksum is right, by an unpickler that builds arrays only."""
    content = checked(root, name)
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        images = torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32).astype(np.uint8, casting="no"))
        labels = torch.tensor(batch[key], dtype=torch.int64)
    except Exception as error:  # a pickle can raise anything
        raise UserError(f"{root / name} is no batch of CIFAR's: {short(error)}") from None
    return labelled(root / name, images, labels, {"labels": 10, "fine_labels": 100}[key])


def labelled(path: Path, images: torch.Tensor, labels: torch.Tensor, classes: int) -> Split:
    """Images with their labels; UserError where a label is missing or none of the classes."""
    if labels.shape != (len(images),) or not ((labels >= 0) & (labels < classes)).all():
        raise UserError(f"{path}: there must be one of {classes} labels for each of its {len(images):,} images")
    return Split(images, labels)


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


DATASETS = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100, "mnist": mnist, "stl10": stl10, "folder": folder}
