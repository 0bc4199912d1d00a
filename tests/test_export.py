"""Exported encoders, features and ONNX: the same numbers elsewhere; damage is noticed."""

import json
import os
import random
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny
from test_checkpoint import damaged
from torch import nn

import dim
import evaluate
import train
from dim import build, checkpoint, export
from dim.backbones import Backbone
from dim.config import Config, UserError, built, flat
from dim.data import Dataset, Split
from dim.encoders import Encoder
from dim.evals.features import features, set_statistics
from dim.reading import saved


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run that kept an average of its weights."""
    folder = tmp_path_factory.mktemp("export") / "run"
    assert train.main(tiny(folder, "--train.average", "0.5")) == 0
    return folder


def own(run, weights="encoder"):
    """The run's encoder and data set, without an export."""
    config = saved(run)
    data = build.dataset(config)
    encoder = build.encoder(config, data.shape)
    state = checkpoint.load(run)
    if weights == "average":
        inner = {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
        encoder.load_state_dict(inner)
    else:
        encoder.load_state_dict(state["encoder"])
    return encoder.eval(), data


def exported(run, tmp_path, *words):
    path = tmp_path / "encoder.safetensors"
    assert evaluate.main([str(run), "--export", str(path), *words]) == 0
    return path


def test_an_exported_encoder_gives_the_same_features_in_a_process_of_its_own(run, tmp_path):
    path, (encoder, data) = exported(run, tmp_path), own(run)
    np.save(tmp_path / "images.npy", data.test.images[:50].numpy())
    code = (
        "import sys, numpy as np, torch, dim\n"
        "for name in ('wandb', 'matplotlib', 'sklearn', 'torchvision'): sys.modules[name] = None\n"
        f"encoder = dim.load_encoder({str(path)!r})\n"
        "images = torch.from_numpy(np.load('images.npy'))\n"
        "np.savez('out.npz', **{k: v.numpy() for k, v in encoder(images)._asdict().items()})\n"
        "assert 'train' not in sys.modules and 'evaluate' not in sys.modules and not encoder.training\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=env, check=True, timeout=120)
    with torch.no_grad():
        expected = encoder(data.floats(data.test.images[:50]))
    with np.load(tmp_path / "out.npz") as out:
        for name, tensor in expected._asdict().items():
            np.testing.assert_allclose(out[name], tensor.numpy(), rtol=0, atol=1e-6)


def test_the_average_can_be_exported_and_is_not_the_last(run, tmp_path):
    (average, data), (last, _) = own(run, "average"), own(run)
    encoder = dim.load_encoder(exported(run, tmp_path, "--weights", "average"))
    images = data.test.images[:20]
    assert torch.allclose(encoder(images).y, average(data.floats(images)).y, atol=1e-6)
    assert not torch.allclose(encoder(images).y, last(data.floats(images)).y, atol=1e-3)


def test_images_as_bytes_and_as_numbers_in_0_to_1_are_the_same(run, tmp_path):
    encoder, (_, data) = dim.load_encoder(exported(run, tmp_path)), own(run)
    images = data.test.images[:5]
    assert torch.equal(encoder(images).y, encoder(images / 16).y)  # the digits have values 0 .. 16
    with pytest.raises(ValueError, match=r"images are \[5, 1, 4, 8\]: this encoder takes \[N, 1, 8, 8\]"):
        encoder(images[:, :, :4])
    with pytest.raises(ValueError, match=r"torch.int64: they must be uint8"):
        encoder(images.long())


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-1, 1, "-1 to 1"), (0, 255, ".* to 255"), (-0.6, 1, "-0.6 to 1"), (0, 2.1, ".* to 2.1"), (float("nan"), 1, "nan to nan")],
)
def test_floats_that_are_not_in_0_to_1_are_refused(low, high, said):
    """Images in [-1, 1], which the encoder itself is given, and images that were not divided."""
    images = torch.rand(2, 1, 8, 8)
    images[1, 0, 3, 4:6] = torch.tensor([low, high])
    with pytest.raises(ValueError, match=f"images are floats from {said}: give uint8, or bring them into"):
        export.Exported(Encoder("small8x8", 1), (1, 8, 8))(images)


def test_floats_that_a_resize_made_are_taken():
    encoder = export.Exported(Encoder("small8x8", 1), (1, 8, 8))
    steps = torch.zeros(3, 1, 16, 16)
    steps[:, :, ::3, 5:9] = 1
    images = torch.nn.functional.interpolate(steps, size=(8, 8), mode="bicubic")
    assert images.min() < 0
    for some in (images, torch.full((1, 1, 8, 8), -1e-7), torch.full((1, 1, 8, 8), 1 + 1e-6), images[:0]):
        assert encoder(some).y.isfinite().all()


def test_an_export_needs_no_data(run, tmp_path):
    moved = ["--data.name", "cifar10", "--data.root", str(tmp_path / "nowhere")]
    dim.load_encoder(exported(run, tmp_path, *moved))


def test_an_encoder_with_another_normalisation_is_exported_too(tmp_path):
    assert train.main(tiny(tmp_path / "r", "--norm", "layer")) == 0
    path, (encoder, data) = exported(tmp_path / "r", tmp_path), own(tmp_path / "r")
    images = data.test.images[:3]
    assert torch.allclose(dim.load_encoder(path)(images).y, encoder(data.floats(images)).y, atol=1e-6)


def test_a_backbone_is_exported_too(tmp_path):
    words = ["--encoder.name", "resnet18", "--encoder.stem", "cifar", "--objective.local.k", "1", "--train.batch_size", "628"]
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    path, (encoder, data) = exported(tmp_path / "r", tmp_path), own(tmp_path / "r")
    images = data.test.images[:3]
    assert torch.allclose(dim.load_encoder(path)(images).y, encoder(data.floats(images)).y, atol=1e-6)


def test_damage_and_other_files_are_noticed(run, tmp_path):
    path = exported(run, tmp_path)
    content = path.read_bytes()
    draws, tensors = np.random.default_rng(0), 8 + int.from_bytes(content[:8], "little")
    for place in draws.integers(tensors, len(content), 30):  # one bit, which safetensors itself would load
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << int(draws.integers(8))]) + content[place + 1 :])
        with pytest.raises(UserError, match="its checksum differs"):
            dim.load_encoder(path)
    for wrong in (b"", content[:-1], content[:200], b"hello" * 100):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="damaged"):
            dim.load_encoder(path)
    with pytest.raises(UserError, match="no such file"):
        dim.load_encoder(tmp_path / "none.safetensors")


def test_a_hundred_damaged_exports_give_no_wrong_encoder(run, tmp_path):
    path = exported(run, tmp_path)
    content, whole, draws, refused = path.read_bytes(), dim.load_encoder(path).state_dict(), random.Random(0), []
    header = 8 + int.from_bytes(content[:8], "little")
    for kind, times in {"bit": 40, "header": 20, "zeros": 15, "cut": 15, "swapped": 5, "other": 5}.items():
        for _ in range(times):
            part = damaged(content[:header], "bit", draws) + content[header:] if kind == "header" else None
            path.write_bytes(part or damaged(content, kind, draws))
            try:
                found = dim.load_encoder(path).state_dict()
            except UserError as error:
                refused.append(str(error))
            else:  # what holds nothing may change: the header's padding
                assert found.keys() == whole.keys()
                assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert len(refused) >= 90
    assert not any("\n" in line for line in refused)


def test_a_header_that_asks_for_something_else_is_refused(run, tmp_path):
    from safetensors.torch import load_file, save_file

    path = exported(run, tmp_path)
    tensors = load_file(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["dim"])
    for change, said in (
        ({"format": 2}, "format 2"),
        ({"encoder": {"encoder.name": "os.system"}}, "encoder.name is 'os.system'"),
        ({"encoder": {"encoder.shape": 3}}, "unknown key"),
        ({"encoder": {**header["encoder"], "encoder.code_size": 65}}, "damaged"),
        ({"shape": "x"}, "damaged"),
        ({"shape": []}, "damaged"),
        ({"levels": float("inf")}, "damaged"),
    ):
        wrong = header | change
        sums = {"sha256": export.digest({key: value for key, value in wrong.items() if key != "sha256"}, tensors)}
        save_file(tensors, path, metadata={"dim": json.dumps(wrong | sums)})
        with pytest.raises(UserError, match=said):
            dim.load_encoder(path)
    for change, said in (({"signed": True}, "checksum"), ({"sha256": "0"}, "checksum")):
        save_file(tensors, path, metadata={"dim": json.dumps(header | change)})
        with pytest.raises(UserError, match=said):
            dim.load_encoder(path)


def test_features_of_a_data_set_and_of_a_folder(run, tmp_path):
    assert evaluate.main([str(run), "--features", str(tmp_path / "f.npz"), "--layers", "fc", "y"]) == 0
    encoder, data = own(run)
    with np.load(tmp_path / "f.npz") as found:
        assert sorted(found) == ["test_fc", "test_labels", "test_y", "train_fc", "train_labels", "train_y"]
        np.testing.assert_allclose(found["test_fc"], features(encoder, data, data.test)["fc"].numpy(), atol=1e-6)
        np.testing.assert_array_equal(found["train_labels"], data.train.labels.numpy())


def test_onnx_runtime_gives_the_same_numbers(run, tmp_path):
    import onnxruntime

    assert evaluate.main([str(run), "--export", str(tmp_path / "encoder.onnx")]) == 0
    encoder, data = own(run)
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    for images in (data.test.images[:1], data.test.images[:7]):  # any number of images
        found = session.run(None, {"images": data.units(images).numpy()})
        with torch.no_grad():
            expected = encoder(data.floats(images))
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4)


def own_net(shape) -> nn.Module:
    """A backbone of a few layers by name."""
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3, 2), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return Backbone(nn.Sequential(OrderedDict(layers)), local="a", glob="pool", example=torch.zeros(2, *shape), code_size=8)


def resnet(shape) -> nn.Module:
    return build.encoder(built(flat(Config()) | {"encoder.name": "resnet18", "encoder.stem": "cifar"}), shape)


@pytest.mark.parametrize("make", [own_net, pytest.param(resnet, marks=pytest.mark.slow)])
def test_onnx_runtime_gives_the_same_numbers_of_a_backbone(make, tmp_path):
    """Whose map, last map and vector are caught by hooks on layers."""
    import onnxruntime

    torch.manual_seed(0)
    data = small_data()
    encoder = set_statistics(make(data.shape), data, data.train)
    assert encoder.local in ("a", "layer2")
    export.save_onnx(tmp_path / "e.onnx", encoder, Config(), data.facts, 0)
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"))
    found = session.run(None, {"images": data.units(data.test.images).numpy()})
    with torch.no_grad():
        expected = encoder(data.floats(data.test.images))
    assert expected.map.shape != expected.conv.shape
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4)


def small_data():
    """Images of 16 x 16, 12 for training and 3 for testing."""
    images = torch.randint(0, 256, (15, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(15) % 2
    return Dataset("small", Split(images[:12], labels[:12]), Split(images[12:], labels[12:]), 2)


def test_without_the_package_onnx_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert evaluate.main([str(run), "--export", str(tmp_path / "e.onnx")]) == 2
    assert "an export to ONNX needs the package onnxscript: pip install onnxscript" in capsys.readouterr().err
