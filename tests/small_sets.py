"""Small data sets in the file layouts of the real ones, with MD5 sums of their own."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from dim import datasets


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(monkeypatch, root: Path, name: str, content: bytes) -> None:
    """A file of a data set, accepted as the original one."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    monkeypatch.setitem(datasets.MD5, name, hashlib.md5(content).hexdigest())


def batch(images: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """Images as one of CIFAR's batches holds them."""
    rows = images.reshape(len(images), np.prod(images.shape[1:]))
    content = pickle.dumps({"data": rows, key: labels, "filenames": ["x.png"]}, protocol=3)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # the name of 2009


def cifar10(monkeypatch, root: Path, n: int = 4) -> dict[str, np.ndarray]:
    """n images a batch with labels 1, 2, ..; returns the images."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    images = {name: noise(n, 3, 32, 32, seed=i) for i, name in enumerate(names)}
    for name in names:
        put(monkeypatch, root, f"cifar-10-batches-py/{name}", batch(images[name], [(i + 1) % 10 for i in range(n)]))
    return images


def cifar100(monkeypatch, root: Path, classes: int = 100) -> dict[str, np.ndarray]:
    """100 training and 20 test images, whose fine labels are 99, 98, .., this many of them, and again."""
    images = {part: noise(n, 3, 32, 32, seed=n) for part, n in (("train", 100), ("test", 20))}
    for part, found in images.items():
        content = batch(found, [99 - i % classes for i in range(len(found))], "fine_labels")
        put(monkeypatch, root, f"cifar-100-python/{part}", content)
    return images


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as MNIST's files hold it."""
    return (0x800 + array.ndim).to_bytes(4, "big") + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(monkeypatch, root: Path) -> dict[str, np.ndarray]:
    """30 training and 10 test images with labels 0, 1, .."""
    images = {part: noise(n, 28, 28, seed=n) for part, n in (("train", 30), ("t10k", 10))}
    for part, found in images.items():
        put(monkeypatch, root, f"MNIST/raw/{part}-images-idx3-ubyte", idx(found))
        put(monkeypatch, root, f"MNIST/raw/{part}-labels-idx1-ubyte", idx(np.arange(len(found), dtype=np.uint8) % 10))
    return images


def stl10(monkeypatch, root: Path, train: int = 60, test: int = 20, more: int = 12) -> dict[str, np.ndarray]:
    """Labels in the file 1, 2, .., 10, 1, ..; fold k is every tenth image but for a class; columns before rows."""
    images = {part: noise(n, 3, 96, 96, seed=n) for part, n in (("train", train), ("test", test), ("unlabeled", more))}
    for part, found in images.items():
        put(monkeypatch, root, f"stl10_binary/{part}_X.bin", found.transpose(0, 1, 3, 2).tobytes())
        if part != "unlabeled":
            put(monkeypatch, root, f"stl10_binary/{part}_y.bin", bytes(i % 10 + 1 for i in range(len(found))))
    lines = [" ".join(str((k * 7 + i) % train) for i in range(20)) + " " for k in range(10)]
    (root / "stl10_binary" / "fold_indices.txt").write_text("\n".join(lines) + "\n")
    return images


def pictures(root: Path, classes: dict[str, int], side: int = 12, seed: int = 0) -> None:
    """A folder of PNG pictures for each class, n of each; "" is the root itself."""
    for c, (name, n) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(noise(n, side, side, 3, seed=100 * seed + c)):
            Image.fromarray(image).save(root / name / f"{i:03d}.png")
