"""Data: what is read, checked and refused; the validation part."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dim import data
from dim.config import UserError


def test_digits_keep_file_order_and_values(tmp_path):
    found, bundled = data.digits(tmp_path, False), load_digits()
    assert (len(found.train), len(found.test)) == (1257, 540)
    assert np.array_equal(found.floats(found.test.images).numpy()[:, 0], bundled.images[1257:].astype(np.float32) / 16)
    assert np.array_equal(found.train.labels, bundled.target[:1257])


def write_batch(path, images: np.ndarray, labels: list[int]) -> str:
    """A batch as CIFAR's files hold it; returns its MD5 sum."""
    content = pickle.dumps({"data": images.reshape(len(images), -1), "labels": labels}, protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # the name of 2009
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar_like(tmp_path, monkeypatch):
    """Six small files in CIFAR-10's layout with checksums of their own: 4 images each."""
    draws = np.random.default_rng(0)
    images = {name: draws.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8) for name in data.CIFAR10_MD5}
    folder = tmp_path / "cifar-10-batches-py"
    sums = {name: write_batch(folder / name, images[name], [1, 2, 3, 4]) for name in images}
    monkeypatch.setattr(data, "CIFAR10_MD5", sums)
    return tmp_path, images


def test_cifar10_reads_channels_rows_columns_in_minus_one_to_one(cifar_like):
    root, images = cifar_like
    found = data.cifar10(root, False)
    assert torch.equal(found.train.images[4:8], torch.from_numpy(images["data_batch_2"]))
    assert torch.equal(found.test.images, torch.from_numpy(images["test_batch"]))
    assert found.train.labels.tolist() == [1, 2, 3, 4] * 5
    extremes = found.floats(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert extremes.tolist() == [[-1.0, 1.0]]


def test_missing_cifar10_says_where_it_looked_and_the_ways_out(tmp_path):
    with pytest.raises(UserError, match=r"cifar10 is not in .*--data.root.*--data.download true.*digits") as caught:
        data.cifar10(tmp_path, False)
    assert str(tmp_path) in str(caught.value)


def test_download_asks_torchvision(tmp_path, monkeypatch):
    import torchvision.datasets

    asked = []
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, download: asked.append((root, download)))
    with pytest.raises(UserError, match="is not in"):
        data.cifar10(tmp_path, True)  # the stand-in brings no files
    assert asked == [(str(tmp_path), True)]


@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c[:100] + b"x" + c[101:], lambda c: b""])
def test_a_damaged_batch_is_refused_before_it_is_unpickled(cifar_like, damage):
    root, _ = cifar_like
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"data_batch_3 is not the original file"):
        data.cifar10(root, False)


def test_a_missing_batch_is_named(cifar_like):
    root, _ = cifar_like
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match=r"test_batch cannot be read: No such file"):
        data.cifar10(root, False)


class Hostile:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("payload", [Hostile(), {"data": Hostile()}, [print], UserError])
def test_the_unpickler_builds_arrays_and_nothing_else(payload, tmp_path, capsys):
    content = pickle.dumps(payload, protocol=2)
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match="refused to build"):
        data.cifar_batch(path, hashlib.md5(content).hexdigest())
    assert capsys.readouterr().out == ""


def test_the_validation_part_is_a_stratified_tenth_and_depends_on_its_seed_alone():
    labels = torch.arange(10).repeat_interleave(torch.arange(100, 200, 10))
    split = data.Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    made = data.Dataset("made", split, split, 10, 1.0, 0.0)
    fitting, validation = made.validation(0)
    assert sorted([*fitting.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert labels[validation].bincount().tolist() == [round(n / 10) for n in range(100, 200, 10)]
    torch.manual_seed(5)
    assert torch.equal(made.validation(0)[1], validation)
    assert not torch.equal(made.validation(1)[1], validation)


def test_the_fingerprint_changes_with_one_pixel_or_label():
    split = data.Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    first = data.Dataset("made", split, split, 4, 1.0, 0.0).fingerprint
    pixel = split.images.clone()
    pixel[2, 0, 1, 1] = 1
    for other in (data.Split(pixel, split.labels), data.Split(split.images, split.labels.flip(0))):
        assert data.Dataset("made", other, split, 4, 1.0, 0.0).fingerprint != first


@pytest.mark.slow
def test_the_real_cifar10_is_read(real_cifar10):
    found = data.cifar10(real_cifar10, False)
    assert found.train.images.shape == (50_000, 3, 32, 32)
    assert found.train.labels.bincount().tolist() == [5000] * 10
    assert found.test.labels.bincount().tolist() == [1000] * 10
    assert found.train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
