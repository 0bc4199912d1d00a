"""Damaged, hostile and missing data: each ends with exit code 2 and one line, before anything is written."""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_sets
from conftest import tiny
from PIL import Image
from test_datasets import HOSTILE, archive

import evaluate
import train
from dim import datasets

C10, C100, MNIST, STL = "cifar-10-batches-py", "cifar-100-python", "MNIST/raw", "stl10_binary"
MADE = {"cifar10": small_sets.cifar10, "cifar100": small_sets.cifar100, "mnist": small_sets.mnist, "stl10": small_sets.stl10}


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def folders(monkeypatch, root: Path) -> None:
    """30 and 30 pictures of two classes with a split."""
    small_sets.pictures(root / "train", {"cat": 15, "dog": 15})
    small_sets.pictures(root / "val", {"cat": 15, "dog": 15}, seed=1)


def put(name: str, content: bytes):
    """A file with another content, whose MD5 sum is accepted."""
    return lambda patch, root: small_sets.put(patch, root, name, content)


def changed(name: str, change):
    """A file whose content is changed, without its MD5 sum."""

    def damage(patch, root):
        (root / name).write_bytes(change((root / name).read_bytes()))

    return damage


def gone(name: str):
    def damage(patch, root):
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return damage


def directory_for(name: str):
    def damage(patch, root):
        gone(name)(patch, root)
        (root / name).mkdir()

    return damage


def file_for(name: str):
    def damage(patch, root):
        gone(name)(patch, root)
        (root / name).write_bytes(b"x")

    return damage


def link(name: str, target: str):
    def damage(patch, root):
        (root / name).symlink_to(target)

    return damage


def many(*damages):
    return lambda patch, root: [damage(patch, root) for damage in damages]


def batch(n: int = 4, labels=None, side: int = 32) -> bytes:
    return small_sets.batch(small_sets.noise(n, 3, side, side), labels if labels is not None else [0] * n)


def fold_lines(*lines: str):
    return changed(f"{STL}/fold_indices.txt", lambda _: "\n".join(lines).encode())


def packed(content: bytes, accepted: bool = True):
    """The archive of CIFAR-100 lies there, its files do not."""

    def damage(patch, root):
        gone(C100)(patch, root)
        name = "cifar-100-python.tar.gz"
        small_sets.put(patch, root, name, content) if accepted else (root / name).write_bytes(content)

    return damage


def text(name: str):
    return lambda patch, root: (root / name).write_text("text")


def bomb(patch, root):
    image = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(image, "png")
    (root / "train" / "cat" / "bomb.png").write_bytes(image.getvalue())


def pipe(patch, root):
    os.mkfifo(root / "train" / "cat" / "pipe.jpg")


def cut(patch, root):
    path = root / "train" / "cat" / "000.png"
    path.write_bytes(path.read_bytes()[:-60])


def no_pixels(patch, root):
    path = root / "train" / "cat" / "000.png"
    path.write_bytes(path.read_bytes().replace((12).to_bytes(4, "big") * 2, bytes(8)))


ZERO, HALF = (lambda c: b""), (lambda c: c[: len(c) // 2])
RIGHT = [" ".join(map(str, range(20)))] * 10
FOLDERS = ("--data.labels", "folders")
GOOD = archive({f"{C100}/train": b"x", f"{C100}/test": b"x"})
LONG = "x" * 5000

# name: (data set, damage, what the line says, more words)
CASES: dict[str, tuple] = {
    "cifar10: no folder": ("cifar10", gone(C10), "is not in"),
    "cifar10: a file for the folder": ("cifar10", file_for(C10), "is not in"),
    "cifar10: a missing batch": ("cifar10", gone(f"{C10}/data_batch_4"), "data_batch_4 cannot be read: No such file"),
    "cifar10: a folder for a batch": ("cifar10", directory_for(f"{C10}/test_batch"), "test_batch cannot be read: Is a dir"),
    "cifar10: half a batch": ("cifar10", changed(f"{C10}/data_batch_2", HALF), "data_batch_2 is not the original file"),
    "cifar10: an empty batch": ("cifar10", changed(f"{C10}/data_batch_2", ZERO), "is not the original file"),
    "cifar10: one byte changed": ("cifar10", changed(f"{C10}/data_batch_5", lambda c: c[:99] + b"!" + c[100:]), "not the orig"),
    "cifar10: two batches exchanged": (
        "cifar10",
        lambda _, root: shutil.copy(root / C10 / "data_batch_1", root / C10 / "data_batch_2"),
        "data_batch_2 is not the original file",
    ),
    "cifar10: a hostile pickle": ("cifar10", put(f"{C10}/test_batch", pickle.dumps(Hostile())), "refused to build pathlib"),
    "cifar10: a hostile pickle in a batch": (
        "cifar10",
        put(f"{C10}/data_batch_1", pickle.dumps({"data": Hostile(), "labels": []}, 2)),
        "refused to build",
    ),
    "cifar10: no pickle": ("cifar10", put(f"{C10}/test_batch", b"text"), "is no batch of CIFAR's"),
    "cifar10: an empty file": ("cifar10", put(f"{C10}/test_batch", b""), "is no batch of CIFAR's"),
    "cifar10: a pickled list": ("cifar10", put(f"{C10}/test_batch", pickle.dumps([1, 2])), "is no batch of CIFAR's"),
    "cifar10: other keys": ("cifar10", put(f"{C10}/test_batch", pickle.dumps({"x": 1})), "is no batch of CIFAR's"),
    "cifar10: a label 10": ("cifar10", put(f"{C10}/test_batch", batch(labels=[0, 1, 2, 10])), "one of 10 labels"),
    "cifar10: a label -1": ("cifar10", put(f"{C10}/test_batch", batch(labels=[0, 1, 2, -1])), "one of 10 labels"),
    "cifar10: labels that are words": ("cifar10", put(f"{C10}/test_batch", batch(labels=["a"] * 4)), "no batch of CIFAR's"),
    "cifar10: a label too few": ("cifar10", put(f"{C10}/test_batch", batch(labels=[0, 1, 2])), "each of its 4 images"),
    "cifar10: images of another size": ("cifar10", put(f"{C10}/test_batch", batch(side=30)), "is no batch of CIFAR's"),
    "cifar10: fewer than a batch": ("cifar10", lambda *_: None, "train.batch_size is 21, but cifar10 has 20 images"),
    "cifar10: no images": (
        "cifar10",
        many(*[put(f"{C10}/{name}", batch(0)) for name in [f"data_batch_{i}" for i in range(1, 6)]]),
        "cifar10 has 0 images",
    ),
    "cifar100: coarse labels only": (
        "cifar100",
        put(f"{C100}/test", small_sets.batch(small_sets.noise(2, 3, 32, 32), [0, 1], "coarse_labels")),
        "is no batch of CIFAR's: 'fine_labels'",
    ),
    "cifar100: half a file": ("cifar100", changed(f"{C100}/train", HALF), "is not the original file"),
    "mnist: no folder": ("mnist", gone(MNIST), "mnist is not in"),
    "mnist: missing labels": ("mnist", gone(f"{MNIST}/t10k-labels-idx1-ubyte"), "cannot be read: No such file"),
    "mnist: still packed": (
        "mnist",
        changed(f"{MNIST}/train-images-idx3-ubyte", lambda c: b"\x1f\x8b" + c),
        "not the original",
    ),
    "mnist: cut": (
        "mnist",
        put(f"{MNIST}/train-images-idx3-ubyte", small_sets.idx(small_sets.noise(30, 28, 28))[:-1]),
        "does not hold what its first bytes say",
    ),
    "mnist: two bytes": ("mnist", put(f"{MNIST}/train-images-idx3-ubyte", b"\0\0"), "does not hold what its first bytes say"),
    "mnist: labels for images": (
        "mnist",
        put(f"{MNIST}/train-images-idx3-ubyte", small_sets.idx(small_sets.noise(30))),
        "does not hold what its first bytes say",
    ),
    "mnist: a label 10": (
        "mnist",
        put(f"{MNIST}/t10k-labels-idx1-ubyte", small_sets.idx(np.full(10, 10, np.uint8))),
        "one of 10 labels",
    ),
    "mnist: labels too few": (
        "mnist",
        put(f"{MNIST}/t10k-labels-idx1-ubyte", small_sets.idx(np.zeros(9, np.uint8))),
        "each of its 10 images",
    ),
    "stl10: no folder": ("stl10", gone(STL), "stl10 is not in"),
    "stl10: no unlabelled images": ("stl10", gone(f"{STL}/unlabeled_X.bin"), "unlabeled_X.bin cannot be read: No such file"),
    "stl10: half an image": ("stl10", put(f"{STL}/train_X.bin", bytes(27_648 * 60 - 5)), "does not hold whole images"),
    "stl10: a label 0": ("stl10", put(f"{STL}/train_y.bin", bytes([0] + [1] * 59)), "one of 10 labels"),
    "stl10: a label 11": ("stl10", put(f"{STL}/test_y.bin", bytes([11] + [1] * 19)), "one of 10 labels"),
    "stl10: a label too few": ("stl10", put(f"{STL}/test_y.bin", bytes([1] * 19)), "each of its 20 images"),
    "stl10: no folds": ("stl10", gone(f"{STL}/fold_indices.txt"), "cannot be read as lines of indices: No such file"),
    "stl10: empty folds": ("stl10", fold_lines(""), "has 0 lines: the official folds are 10"),
    "stl10: nine folds": ("stl10", fold_lines(*RIGHT[1:]), "has 9 lines"),
    "stl10: a fold of words": ("stl10", fold_lines("1 2 three", *RIGHT[1:]), "cannot be read as lines of indices: invalid"),
    "stl10: a fold beyond the images": ("stl10", fold_lines("1 60", *RIGHT[1:]), "line 1: a fold must name different images"),
    "stl10: a fold below 0": ("stl10", fold_lines(*RIGHT[1:], "1 -1"), "line 10: a fold must name different images"),
    "stl10: an image twice in a fold": ("stl10", fold_lines("1 1", *RIGHT[1:]), "line 1: a fold must name different images"),
    "stl10: a blank fold": ("stl10", fold_lines(" ", *RIGHT[1:]), "line 1: a fold must name different images"),
    "stl10: an index of 40 digits": ("stl10", fold_lines("9" * 40, *RIGHT[1:]), "cannot be read as lines of indices"),
    "stl10: folds that are no text": (
        "stl10",
        changed(f"{STL}/fold_indices.txt", lambda _: b"\xff\xfe\0"),
        "as lines of indices",
    ),
    "archive: another file": ("cifar100", packed(GOOD, False), "is not the original file", "--data.download", "true"),
    "archive: no tar": ("cifar100", packed(b"text"), "cannot be unpacked: ", "--data.download", "true"),
    "archive: empty": ("cifar100", packed(b""), "cannot be unpacked: ", "--data.download", "true"),
    "archive: cut": ("cifar100", packed(GOOD[:-30]), "cannot be unpacked: ", "--data.download", "true"),
    "archive: without the folder": ("cifar100", packed(archive({"x": b""})), "cannot be unpacked", "--data.download", "true"),
    "archive: a folder in its place": (
        "cifar100",
        many(gone(C100), lambda _, root: (root / "cifar-100-python.tar.gz").mkdir()),
        "cannot be read: Is a directory",
        *("--data.download", "true"),
    ),
    **{
        f"archive: {name}": ("cifar100", packed(archive({f"{C100}/train": b"x"}, info)), "unpacked", "--data.download", "true")
        for name, info in HOSTILE.items()
    },
    "folder: missing": ("folder", gone(""), "is no folder"),
    "folder: a file": ("folder", file_for(""), "is no folder"),
    "folder: no image": ("folder", many(gone("train"), gone("val")), "holds no image: none of its files ends in .jpg"),
    "folder: one image": (
        "folder",
        many(gone("train"), gone("val"), lambda _, root: Image.new("RGB", (9, 9)).save(root / "a.png")),
        "train.batch_size is 21, but folder has 1 images",
    ),
    "folder: text as .jpg": ("folder", text("a.jpg"), "1 of 61 images in"),
    "folder: an empty image": ("folder", changed("val/cat/003.png", ZERO), "val/cat/003.png (empty)"),
    "folder: half an image": ("folder", cut, "train/cat/000.png (image file is truncated"),
    "folder: an image of 0 x 0": ("folder", no_pixels, "train/cat/000.png ("),
    "folder: a bomb": ("folder", bomb, "bomb.png (10000 x 10000 pixels, more than 50 million)"),
    "folder: a pipe": ("folder", pipe, "pipe.jpg (not a file)"),
    "folder: a broken link": ("folder", link("a.png", "nowhere.png"), "a.png (No such file or directory)"),
    "folder: a link to itself": ("folder", link("a.png", "a.png"), "a.png (Too many levels of symbolic links)"),
    "folder: a link that leaves": ("folder", link("a.png", "../../outside.png"), "a.png is a link that leaves"),
    "folder: an absolute link that leaves": ("folder", link("train/cat/a.png", "/etc/hostname"), "is a link that leaves"),
    "folder: no class": ("folder", many(gone("train"), gone("val")), "has 0 folders, but data.labels", *FOLDERS),
    "folder: one class": ("folder", many(gone("train/cat"), gone("val/cat")), "has 1 folder, but data.labels", *FOLDERS),
    "folder: train alone": ("folder", gone("val"), "has train: a split needs train, and val or test", *FOLDERS),
    "folder: val alone": ("folder", gone("train"), "has val: a split needs train, and val or test", *FOLDERS),
    "folder: an empty class": (
        "folder",
        many(gone("train/cat"), lambda _, root: (root / "train" / "cat").mkdir()),
        "holds no image",
        *FOLDERS,
    ),
    "folder: another class in val": (
        "folder",
        lambda _, root: (root / "val" / "cat").rename(root / "val" / "cow"),
        "have different classes: cat, cow in one only",
        *FOLDERS,
    ),
    "folder: a class more in val": (
        "folder",
        lambda _, root: (root / "val" / "cow").mkdir(),
        "different classes: cow in one only",
        *FOLDERS,
    ),
    "folder: a class that is a link": ("folder", link("train/cow", "dog"), "train/cow is a link", *FOLDERS),
    "folder: a class that is a link above": ("folder", link("train/cow", ".."), "train/cow is a link", *FOLDERS),
    "folder: one image a class": (
        "folder",
        many(gone("train"), gone("val"), lambda _, root: small_sets.pictures(root, {"a": 1, "b": 1})),
        "a fifth of each class for testing is no image",
        *FOLDERS,
    ),
    "folder: smaller than the encoder": (
        "folder",
        lambda *_: None,
        "takes images of 8 x 8, folder has 4 x 4",
        "--data.side",
        "4",
    ),
    "folder: nothing but damage": (
        "folder",
        many(gone("train"), gone("val"), text("a.jpg")),
        "none is left",
        *("--data.skip_bad", "true"),
    ),
    "root: a very long name": ("folder", lambda *_: None, "data.root xxx", "--data.root", LONG),
    "root: a very long path": ("cifar10", lambda *_: None, "cifar10 is not in", "--data.root", "x/" * 3000),
    "root: a line break": ("mnist", lambda *_: None, "data.root is 'a\\nb'", "--data.root", "a\nb"),
    "root: NUL": ("folder", lambda *_: None, "", "--data.root", "a\0b"),
    "root: NUL for a reader": ("cifar10", lambda *_: None, "", "--data.root", "a\0b"),
    "root: of another set": ("stl10", lambda _, root: (root / STL).rename(root / C10), "stl10 is not in"),
}


def everything(root: Path) -> list[tuple]:
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in root.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("case", CASES)
def test_damaged_data_are_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    name, damage, says, *words = CASES[case]
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "place" / "root"
    MADE.get(name, folders)(monkeypatch, root)
    (tmp_path / "outside.png").write_bytes(b"x")
    damage(monkeypatch, root)
    before = everything(tmp_path)
    given = ["--data.name", name, "--data.root", str(root), "--train.batch_size", "21"]
    if name != "folder":
        given += ["--encoder.name", "small8x8", "--data.fit", "resize"]
    assert train.main(tiny(tmp_path / "run", *given, *words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) <= 401 + len("error: ")
    assert says in err
    assert everything(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny run on each of some data sets while they were sound."""
    place = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        for name in EVALUATED:
            MADE.get(name, folders)(patch, place / name)
            given = [
                "--data.name",
                name,
                "--data.root",
                str(place / name),
                "--train.batch_size",
                "20",
                "--encoder.name",
                "small8x8",
            ]
            given += ["--data.fit", "resize"] if name != "folder" else list(FOLDERS)
            assert train.main(tiny(place / "runs" / name, *given)) == 0
    return place / "runs"


EVALUATED = {
    "cifar10": ["no folder", "a missing batch", "one byte changed", "a hostile pickle", "a label 10", "no images"],
    "stl10": ["no unlabelled images", "half an image", "nine folds", "a fold beyond the images"],
    "folder": ["missing", "no class", "one class", "another class in val", "text as .jpg", "half an image", "a bomb", "a pipe"],
}


@pytest.mark.parametrize("case", [f"{name}: {what}" for name, cases in EVALUATED.items() for what in cases])
def test_damaged_data_at_evaluation_are_one_line_and_exit_code_2(case, runs, tmp_path, monkeypatch, capsys):
    name, damage, says, *words = CASES[case]
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "place" / "root"
    MADE.get(name, folders)(monkeypatch, root)
    damage(monkeypatch, root)
    before = everything(tmp_path) + everything(runs)
    if name == "folder" and not words:
        words = ["--data.labels", "none"]  # so that files outside the classes' folders are looked at
    if case.endswith("no images"):
        says = "cifar10 has 0 training images and 4 test images: a probe needs both"
    assert evaluate.main([str(runs / name), "--data.root", str(root), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert everything(tmp_path) + everything(runs) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("words", [(), FOLDERS])
def test_a_folder_that_may_not_be_read_is_one_line(words, tmp_path, monkeypatch, capsys):
    folders(monkeypatch, tmp_path / "root")
    (tmp_path / "root" / "train").chmod(0)
    try:
        given = ["--data.name", "folder", "--data.root", str(tmp_path / "root")]
        assert train.main(tiny(tmp_path / "run", *given, *words)) == 2
    finally:
        (tmp_path / "root" / "train").chmod(0o700)
    err = capsys.readouterr().err
    assert "cannot be read: Permission denied" in err
    assert err.count("\n") == 1


def test_a_reader_whose_folder_cannot_be_listed_is_one_line(tmp_path, monkeypatch, capsys):
    """As root nothing is unreadable: the system's answer is put in its place."""
    folders(monkeypatch, tmp_path / "root")

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    for words in ((), FOLDERS):
        given = ["--data.name", "folder", "--data.root", str(tmp_path / "root")]
        assert train.main(tiny(tmp_path / "run", *given, *words)) == 2
        assert "cannot be read: Permission denied" in capsys.readouterr().err


def test_there_are_enough_cases():
    assert len(CASES) >= 40
    assert {name for name, *_ in CASES.values()} == {*datasets.DATASETS} - {"digits"}
