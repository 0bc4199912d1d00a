"""What pictures are drawn from: the encoder, the images and the names of their classes."""

import pickle

import pytest
import torch
from small_sets import pictures as write_pictures

from dim import build, datasets
from dim.config import Config, Data
from dim.data import Dataset, Split
from dim.figures import samples


def digits():
    return datasets.digits(Data())


def test_the_encoder_has_its_last_weights():
    config, data = Config(), digits()
    last = build.encoder(config, data.shape)
    with torch.no_grad():
        last.layers["y"].bias += 1
    encoder = samples.trained_encoder(config, data, {"encoder": last.state_dict()})
    assert not encoder.training
    assert torch.equal(encoder.layers["y"].bias.cpu(), last.layers["y"].bias)
    index = torch.tensor([7, 3])
    with torch.no_grad():
        truth = last.eval()(data.floats(data.test.images[index])).y
    assert torch.allclose(samples.codes(encoder, data, data.test, index), truth, atol=1e-5)


def test_questions_are_put_to_the_test_split_in_one_drawn_order():
    config, data = Config(), digits()
    parts = samples.parts(config, data)
    assert (parts.train, parts.test, parts.kind) == (data.train, data.test, "test")
    assert torch.equal(parts.train_order, torch.arange(1257))
    assert parts.test_order.tolist() != list(range(540))
    assert sorted(parts.test_order.tolist()) == list(range(540))
    assert torch.equal(samples.parts(config, data).test_order, parts.test_order)


def test_without_a_test_split_a_tenth_is_set_apart():
    data = digits()
    none = Split(data.test.images[:0], data.test.labels[:0])
    parts = samples.parts(Config(), Dataset("folder", data.train, none, classes=0))
    assert parts.kind == "training"
    assert parts.test is parts.train
    assert len(parts.test_order) == 125
    assert sorted([*parts.train_order.tolist(), *parts.test_order.tolist()]) == list(range(1257))


def test_classes_have_their_names(tmp_path):
    assert samples.class_names(Config(), digits()) == tuple("0123456789")
    split = Split(torch.zeros(2, 3, 32, 32).byte(), torch.tensor([3, 5]))
    assert samples.class_names(Config(), Dataset("cifar10", split, split, classes=10))[3] == "cat"
    assert samples.class_names(Config(), Dataset("stl10", split, split, classes=10))[5] == "dog"
    assert samples.class_names(Config(), Dataset("folder", split, split, classes=0)) == ()
    names = ("ant", "bee", "train car")
    for root, parts in ((tmp_path / "plain", ("",)), (tmp_path / "official", ("train", "val"))):
        for part in parts:
            write_pictures(root / part, {name: 2 for name in names})
            write_pictures(root / part / "bee" / "train", {"deep": 1})
        given = Data(name="folder", root=str(root), labels="folders", side=12)
        config = Config(data=given)
        assert samples.class_names(config, datasets.DATASETS["folder"](given)) == names


@pytest.mark.slow
def test_the_names_are_those_of_the_files(real_data):
    with open(real_data / "cifar-10-batches-py" / "batches.meta", "rb") as file:
        assert tuple(pickle.load(file)["label_names"]) == samples.NAMES["cifar10"]
