"""Shared by all tests: a small run from the command line, in a process of its own where the process matters."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # in processes of its own too: threads of several tests at once would wait for each other
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dim import datasets  # noqa: E402
from dim.config import Data  # noqa: E402
from dim.data import Dataset, Split  # noqa: E402
from dim.encoders import ARCHITECTURES, Encoder  # noqa: E402
from dim.evals.features import features, set_statistics  # noqa: E402
from dim.evals.protocol import standardised  # noqa: E402
from dim.reading import settings_of  # noqa: E402
from dim.winograd import Convolution  # noqa: E402

TINY = {  # three steps on the digits
    "--train.epochs": "1",
    "--train.batch_size": "419",
    "--views.number": "1",
    "--objective.local.units": "8",
    "--objective.local.negatives": "shifted",
    "--objective.local.k": "2",
    "--run.log_every": "1",
    "--run.probe_every": "0",
    "--precision": "float32",  # whatever this machine has
}


def tiny(folder: Path, *words: str) -> list[str]:
    """The command line of a tiny run in a folder, with these words over it."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    short = {key: value for key, value in TINY.items() if key != "--train.epochs" or "--train.steps" not in given}
    pairs = {"--config": str(ROOT / "configs" / "digits.yaml"), "--run.dir": str(folder)} | short | given
    return [word for pair in pairs.items() for word in pair] + list(words[len(words) // 2 * 2 :])


def first_point(path: Path) -> list[str]:
    """The words that fix the axes of a grid at their first values; none for a file of one run."""
    return [f"--{key}={values[0]}" for key, values in settings_of(path)[1].items()]


def same(a, b) -> bool:
    """Whether two states hold the same, to the bit; the length of the log apart, which its times make."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "log_length")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: the same bits on any machine, and no quarrel between parallel tests."""
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)  # a script's main sets these for its process
    Convolution.fewer_products = False


@pytest.fixture
def command(tmp_path):
    """Run a script of the project in a folder of its own; returns the finished process with its text."""

    def run(*words: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        script = [sys.executable, str(ROOT / words[0]), *map(str, words[1:])]
        env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(script, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets, named by DIM_DATA, for slow tests."""
    if "DIM_DATA" not in os.environ:
        pytest.skip("set DIM_DATA to the folder that holds cifar-10-batches-py")
    return Path(os.environ["DIM_DATA"])


@pytest.fixture
def cifar_features(real_data) -> dict[str, tuple[torch.Tensor, ...]]:
    """fc and y of CIFAR-10 by an untrained encoder, as probes see them: x, labels [10,000] of training, then of test images."""
    return features_of_cifar(real_data)


@cache
def features_of_cifar(root: Path) -> dict[str, tuple[torch.Tensor, ...]]:
    found = datasets.cifar10(Data(name="cifar10", root=str(root)))
    found = replace(found, train=Split(found.train.images[:10_000], found.train.labels[:10_000]))
    encoder = set_statistics(Encoder("basic32x32", 3), found, found.train)
    train, test = (features(encoder, found, images, layers=("fc", "y")) for images in (found.train, found.test))
    pairs = {layer: standardised(train[layer], test[layer]) for layer in train}
    return {layer: (x, found.train.labels, x_test, found.test.labels) for layer, (x, x_test) in pairs.items()}


@pytest.fixture
def slim_alex(monkeypatch):
    """The paper's largest encoder with an eighth of its channels: the same sizes of maps, and a small checkpoint."""
    full = ARCHITECTURES["alex64x64"]
    convs = tuple(conv._replace(channels=conv.channels // 8) for conv in full.convs)
    monkeypatch.setitem(ARCHITECTURES, "alex64x64", replace(full, convs=convs, hidden=(64, 64)))


def clouds_of(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds in six correlated dimensions: x [n, 6] float64, labels [n]."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 6, generator=draws, dtype=torch.float64) + 1.5 * torch.eye(6, dtype=torch.float64)[labels]
    return x @ torch.randn(6, 6, generator=draws, dtype=torch.float64) + 3, labels


def made_data(name: str = "made") -> Dataset:
    """Images whose brightness tells the label: 300 for training, 60 for testing."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(360) % 3
    noise = torch.randint(0, 60, (360, 1, 8, 8), generator=draws)
    images = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    return Dataset(name, Split(images[:300], labels[:300]), Split(images[300:], labels[300:]), 3, signed=False)
