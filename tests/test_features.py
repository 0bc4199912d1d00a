"""Features: statistics of an encoder before training."""

import torch
from conftest import made_data
from torch import nn

from dim.data import Dataset, Split
from dim.encoders import Encoder
from dim.evals.features import set_statistics


def bright_at_the_end(images: int) -> Dataset:
    """Images of noise, the last two of them bright."""
    made = torch.randint(0, 100, (images, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made[-2:] = 255
    labels = torch.arange(images) % 2
    return Dataset("bright", Split(made, labels), Split(made[:4], labels[:4]), 2, signed=False)


def test_every_image_counts_the_same_however_they_fall_into_batches():
    data = bright_at_the_end(502)
    encoder = Encoder("small8x8", 1)
    whole, parts = (
        set_statistics(encoder, data, data.train, batch).state_dict()["layers.conv1.1.running_mean"].clone()
        for batch in (502, 250)
    )
    assert torch.allclose(whole, parts, atol=1e-5)
    first = set_statistics(encoder, data, Split(data.train.images[:500], data.train.labels[:500]))
    assert not torch.allclose(first.state_dict()["layers.conv1.1.running_mean"], whole, atol=1e-4)  # the bright ones are seen


def test_one_image_more_than_a_batch_is_no_batch_of_its_own():
    data = bright_at_the_end(501)
    encoder = set_statistics(Encoder("small8x8", 1), data, data.train)
    assert all(t.isfinite().all() for t in encoder.state_dict().values())


def test_nothing_but_statistics_changes():
    made, encoder = made_data(), Encoder("small8x8", 1)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    norms[0].momentum = 0.03
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    momenta = [module.momentum for module in norms]
    set_statistics(encoder, made, made.train)
    changed = {name for name, t in encoder.state_dict().items() if not torch.equal(t, before[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert [module.momentum for module in norms] == momenta
    assert not encoder.training
