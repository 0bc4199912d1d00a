"""The readers: what is read from torchvision's layouts, checked and refused; archives and downloads."""

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from conftest import ROOT
from sklearn.datasets import load_digits

import evaluate
import train
from dim import build, datasets
from dim.config import Data, UserError
from dim.evals import linear
from dim.reading import read
from dim.views import CentreCrop, Chain, Crop, Flip, Resize


def of(name: str, root: Path, **keys) -> datasets.Dataset:
    return datasets.DATASETS[name](Data(name, str(root), **keys))


def test_digits_keep_file_order_and_values():
    found, bundled = datasets.digits(Data()), load_digits()
    assert (len(found.train), len(found.test)) == (1257, 540)
    assert np.array_equal(found.floats(found.test.images).numpy()[:, 0], bundled.images[1257:].astype(np.float32) / 16)
    assert np.array_equal(found.train.labels, bundled.target[:1257])


def test_cifar10_reads_channels_rows_columns_in_minus_one_to_one(tmp_path, monkeypatch):
    images = small_sets.cifar10(monkeypatch, tmp_path)
    found = of("cifar10", tmp_path)
    assert torch.equal(found.train.images[4:8], torch.from_numpy(images["data_batch_2"]))
    assert torch.equal(found.test.images, torch.from_numpy(images["test_batch"]))
    assert found.train.labels.tolist() == [1, 2, 3, 4] * 5
    assert found.floats(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [[-1.0, 1.0]]


def test_cifar100_has_its_fine_labels(tmp_path, monkeypatch):
    images = small_sets.cifar100(monkeypatch, tmp_path)
    found = of("cifar100", tmp_path)
    assert found.classes == 100
    assert found.train.labels.tolist() == list(range(99, -1, -1))
    assert found.test.labels.tolist() == list(range(99, 79, -1))
    assert torch.equal(found.test.images, torch.from_numpy(images["test"]))


def test_mnist_reads_its_index_files(tmp_path, monkeypatch):
    images = small_sets.mnist(monkeypatch, tmp_path)
    found = of("mnist", tmp_path)
    assert torch.equal(found.train.images, torch.from_numpy(images["train"])[:, None])
    assert torch.equal(found.test.images, torch.from_numpy(images["t10k"])[:, None])
    assert found.train.labels.tolist() == [i % 10 for i in range(30)]


# ---- STL-10


def test_stl10_exchanges_columns_and_rows_and_counts_labels_from_0(tmp_path, monkeypatch):
    images = small_sets.stl10(monkeypatch, tmp_path)
    stored = (tmp_path / "stl10_binary" / "train_X.bin").read_bytes()
    found = of("stl10", tmp_path)
    for n, c, row, column in [(0, 0, 0, 1), (3, 2, 95, 0), (59, 1, 17, 60)]:
        value = stored[((n * 3 + c) * 96 + column) * 96 + row]
        assert found.train.images[n, c, row, column] == value == images["train"][n, c, row, column]
    assert torch.equal(found.test.images, torch.from_numpy(images["test"]))
    assert found.train.labels.tolist() == [i % 10 for i in range(60)]
    assert found.test.labels.tolist() == [i % 10 for i in range(20)]


def test_stl10_pretrains_on_unlabelled_and_train_without_a_label(tmp_path, monkeypatch):
    images = small_sets.stl10(monkeypatch, tmp_path)
    found = of("stl10", tmp_path)
    assert torch.equal(found.pretraining.images, torch.from_numpy(np.concatenate([images["unlabeled"], images["train"]])))
    assert found.pretraining.labels.tolist() == [-1] * 72
    assert found.pretraining is not found.train
    assert (found.train.labels >= 0).all()


def test_stl10_has_its_folds(tmp_path, monkeypatch):
    small_sets.stl10(monkeypatch, tmp_path)
    folds = of("stl10", tmp_path).folds
    assert len(folds) == 10
    assert folds[3].tolist() == [(21 + i) % 60 for i in range(20)]


def test_no_unlabelled_image_of_stl10_reaches_a_probe(tmp_path, monkeypatch, capsys, slim_alex):
    """A run by the paper's configuration, probed while it trains and by evaluate.py: what a fit is given, and how often."""
    small_sets.stl10(monkeypatch, tmp_path / "data")
    given, fit, features = [], linear.fit, linear.features
    seen: list[int] = []

    def spy(x, labels, *others):
        given.append(labels)
        return fit(x, labels, *others)

    def looked_at(encoder, data, images, *others, **keys):
        seen.append(len(images))
        assert (images.labels >= 0).all()
        return features(encoder, data, images, *others, **keys)

    monkeypatch.setattr(linear, "fit", spy)
    monkeypatch.setattr(linear, "features", looked_at)
    monkeypatch.setattr(evaluate, "features", looked_at)
    words = ["--config", str(ROOT / "configs" / "paper" / "stl10_local_infonce.yaml"), "--data.root", str(tmp_path / "data")]
    words += ["--run.dir", str(tmp_path / "r"), "--train.epochs", "1", "--train.batch_size", "36", "--run.probe_every", "1"]
    assert train.main([*words, "--objective.local.units", "8"]) == 0
    assert "72 training images 3 x 96 x 96" in capsys.readouterr().out
    assert seen == [60]
    monkeypatch.setattr(linear, "GRID", (0.01, 0.1, 1.0))
    assert evaluate.main([str(tmp_path / "r"), "--probes", "linear"]) == 0
    assert all(((labels >= 0) & (labels < 10)).all() for labels in given)
    assert {len(labels) for labels in given} == {50, 60, 20}  # the fitting part, all, a fold
    out = capsys.readouterr().out
    assert "10 official folds of 20" in " ".join(out.split())
    assert ["all", "labels", "folds"] in [line.split() for line in out.splitlines()]


def test_stl10_is_cropped_at_random_in_training_and_by_the_stated_fit_in_testing(tmp_path, monkeypatch):
    small_sets.stl10(monkeypatch, tmp_path)
    config, _ = read(["--config", str(ROOT / "configs" / "paper" / "stl10_global.yaml")], ROOT)
    for fit, view in {"crop": CentreCrop(64), "resize": Resize(64)}.items():
        given = replace(config.data, root=str(tmp_path), fit=fit)
        data = build.dataset(replace(config, data=given, train=replace(config.train, batch_size=8)))
        assert data.shape == (3, 64, 64)
        assert data.fitting == (view,)
        images = data.units(data.train.images[:3])
        torch.testing.assert_close(data.floats(data.train.images[:3]), view(images, torch.zeros(3, 0)) * 2 - 1)
        chain = build.views(config, data)
        assert chain == Chain((Crop(64, 0), Flip(0.5)))
        corners = chain(images, torch.tensor([[-1.0, -1, 1], [1, 1, 1], [-1, 1, -1]]))  # row, column, no flip or flip
        assert torch.equal(corners[0], images[0, :, :64, :64])
        assert torch.equal(corners[1], images[1, :, 32:, 32:])
        assert torch.equal(corners[2], images[2, :, :64, 32:].flip(2))


def test_stl10_without_a_stated_fit_is_refused(tmp_path, monkeypatch):
    small_sets.stl10(monkeypatch, tmp_path)
    config, _ = read(["--config", str(ROOT / "configs" / "paper" / "stl10_global.yaml"), "--data.fit", "none"], ROOT)
    with pytest.raises(UserError, match=r"takes images of 64 x 64, stl10 has 96 x 96: .*--data.fit resize or crop"):
        build.dataset(replace(config, data=replace(config.data, root=str(tmp_path))))


# ---- what is on disk


def test_a_missing_set_says_where_it_looked_and_the_ways_out(tmp_path):
    for name in ("cifar10", "cifar100", "mnist", "stl10"):
        with pytest.raises(UserError, match=rf"{name} is not in .*--data.root.*--data.download true.*digits") as caught:
            of(name, tmp_path)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c[:100] + b"x" + c[101:], lambda c: b""])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("stl10", "stl10_binary/train_X.bin"),
    ],
)
def test_a_damaged_file_is_refused_before_it_is_looked_into(name, file, damage, tmp_path, monkeypatch):
    getattr(small_sets, name)(monkeypatch, tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(datasets.ArraysOnly, "load", lambda _: pytest.fail("unpickled"))
    with pytest.raises(UserError, match=rf"{path.name} is not the original file"):
        of(name, tmp_path)


class Hostile:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("payload", [Hostile(), {"data": Hostile()}, [print], UserError])
def test_the_unpickler_builds_arrays_and_nothing_else(payload, tmp_path, monkeypatch, capsys):
    content = pickle.dumps(payload, protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="refused to build"):
        datasets.ArraysOnly(io.BytesIO(content)).load()
    small_sets.put(monkeypatch, tmp_path, "cifar-10-batches-py/test_batch", content)
    with pytest.raises(UserError, match="test_batch is no batch of CIFAR's: refused to build"):
        datasets.cifar_batch(tmp_path, "cifar-10-batches-py/test_batch", "labels")
    assert capsys.readouterr().out == ""


# ---- downloads and archives


def archive(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A .tar.gz of files, then of other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def listing(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in root.rglob("*")}


TAR = "cifar-100-python.tar.gz"


@pytest.fixture
def served(monkeypatch):
    """What the network would bring: content to be set, URLs that were asked for; the last one is accepted as the original."""
    import torchvision.datasets.utils

    class Server:
        content = b""
        asked: list = []  # noqa: RUF012

        def give(self, content: bytes, accepted: bool = True) -> None:
            self.content, self.asked = content, []
            if accepted:
                monkeypatch.setitem(datasets.MD5, TAR, hashlib.md5(content).hexdigest())

    server = Server()

    def download_url(url, root, filename):
        server.asked.append(url)
        Path(root).mkdir(exist_ok=True)
        Path(root, filename).write_bytes(server.content)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    return server


def packed(tmp_path, monkeypatch) -> dict[str, bytes]:
    """The files of a small CIFAR-100, which are no longer there."""
    small_sets.cifar100(monkeypatch, tmp_path / "made")
    return {name: content for name, content in listing(tmp_path / "made").items() if content}


def test_a_download_is_unpacked_once_and_read(tmp_path, monkeypatch, served):
    served.give(archive(packed(tmp_path, monkeypatch)))
    for _ in range(2):
        assert len(of("cifar100", tmp_path / "root", download=True).train) == 100
    assert served.asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"]
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["cifar-100-python", TAR]
    with pytest.raises(UserError, match="is not in"):
        of("cifar100", tmp_path / "other")  # not asked for: not fetched


def test_an_archive_at_hand_is_not_fetched_again(tmp_path, monkeypatch, served):
    served.give(archive(packed(tmp_path, monkeypatch)))
    (tmp_path / TAR).write_bytes(served.content)
    assert len(of("cifar100", tmp_path, download=True).test) == 20
    assert served.asked == []


OUT = "outside"
HOSTILE = {
    "parent": member(f"../{OUT}"),
    "deep parent": member(f"cifar-100-python/../../{OUT}"),
    "link above": member("cifar-100-python/x", tarfile.SYMTYPE, f"../../{OUT}"),
    "absolute link": member("cifar-100-python/x", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link above": member("cifar-100-python/x", tarfile.LNKTYPE, f"../{OUT}"),
    "character device": member("cifar-100-python/x", tarfile.CHRTYPE),
    "block device": member("cifar-100-python/x", tarfile.BLKTYPE),
    "pipe": member("cifar-100-python/x", tarfile.FIFOTYPE),
    "another folder with the same beginning": member(f"../root-{OUT}/x"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("accepted", [True, False])
def test_a_hostile_archive_writes_nothing(name, accepted, tmp_path, monkeypatch, served):
    files = packed(tmp_path, monkeypatch)
    served.give(archive(files, HOSTILE[name]), accepted)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="cannot be unpacked" if accepted else "is not the original file") as caught:
        of("cifar100", tmp_path / "root", download=True)
    assert "\n" not in str(caught.value)
    assert set(listing(tmp_path)) - set(before) == {"root", f"root/{TAR}"}


def test_an_absolute_name_ends_inside_or_nowhere(tmp_path, monkeypatch, served):
    served.give(archive(packed(tmp_path, monkeypatch) | {str(tmp_path / OUT): b"x"}))
    of("cifar100", tmp_path / "root", download=True)
    assert not (tmp_path / OUT).exists()
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["cifar-100-python", TAR]


def test_a_member_beside_the_folder_overwrites_nothing(tmp_path, monkeypatch, served):
    served.give(archive(packed(tmp_path, monkeypatch) | {"mine.txt": b"theirs"}))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mine.txt").write_text("mine")
    of("cifar100", tmp_path / "root", download=True)
    assert (tmp_path / "root" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", archive({"cifar-100-python/a": bytes(9999)})[:-20], archive({"x": b""})],
    ids=["empty", "text", "cut", "another folder"],  # an archive holds its time, which would be part of the test's name
)
def test_an_archive_that_cannot_be_unpacked_leaves_nothing_half_done(content, tmp_path, monkeypatch, served):
    served.give(content)
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz cannot be unpacked: .+"):
        of("cifar100", tmp_path, download=True)
    assert [p.name for p in tmp_path.iterdir()] == [TAR]


@pytest.mark.parametrize("name", ["cifar10", "mnist", "stl10"])
@pytest.mark.parametrize(
    "error", [OSError("no route\nto host"), RuntimeError("File not found or corrupted."), EOFError(), ValueError("bad URL")]
)
def test_a_failing_download_is_one_line(name, error, tmp_path, monkeypatch):
    import torchvision.datasets
    import torchvision.datasets.utils

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(UserError, match=rf"{name} could not be downloaded: .+ by hand") as caught:
        of(name, tmp_path, download=True)
    assert "\n" not in str(caught.value)


# ---- the real files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "first"),
    [
        ("cifar10", (50_000, 3, 32, 32), 10, [6, 9, 9, 4, 1]),  # frog, truck, truck, deer, automobile
        ("cifar100", (50_000, 3, 32, 32), 100, [19, 29, 0, 11, 1]),  # cattle, dinosaur, apple, boy, aquarium fish
        ("mnist", (60_000, 1, 28, 28), 10, [5, 0, 4, 1, 9]),
    ],
)
def test_the_real_sets_are_read(name, shape, classes, first, real_data):
    found = of(name, real_data)
    assert found.train.images.shape == shape
    assert found.test.images.shape == (10_000, *shape[1:])
    assert found.train.labels[:5].tolist() == first
    for split in (found.train, found.test):
        counts = split.labels.bincount(minlength=classes)
        assert len(counts) == classes
        if name != "mnist":
            assert (counts == len(split) // classes).all()
