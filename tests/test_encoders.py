"""Encoders and norms against the paper's sizes and against plain functions of their weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim.encoders import ARCHITECTURES, Architecture, Conv, Encoder, Flatten, local_layers, places
from dim.norms import NORMS, ChannelNorm, norm

each_norm = pytest.mark.parametrize("kind", NORMS)

# name, parameters, shapes of map, conv, fc, y for colour images; counts of the first and the fourth are the official code's
SIZES = [
    ("basic32x32", 4_921_280, (128, 8, 8), (256, 4, 4), (1024,)),
    ("basic64x64", None, (256, 8, 8), (512, 4, 4), (1024,)),
    ("basic28x28", None, (128, 7, 7), (128, 7, 7), (1024,)),
    ("alex64x64", 58_416_160, (384, 15, 15), (192, 7, 7), (4096,)),
    ("small8x8", None, (64, 8, 8), (128, 4, 4), (512,)),
]


@pytest.mark.parametrize(("name", "parameters", "local", "conv", "fc"), SIZES)
def test_shapes_and_parameters(name, parameters, local, conv, fc):
    """On the meta device: shapes without numbers."""
    with torch.device("meta"):
        encoder = Encoder(name)
        side = ARCHITECTURES[name].size
        codes = encoder(torch.empty(2, 3, side, side))
    assert [tuple(t.shape) for t in codes] == [(2, *local), (2, *conv), (2, *fc), (2, 64)]
    if parameters:
        assert sum(weight.numel() for weight in encoder.parameters()) == parameters


def test_every_architecture_is_checked():
    assert {row[0] for row in SIZES} == set(ARCHITECTURES)


def test_every_layer_of_alex_has_the_papers_size():
    with torch.device("meta"):
        encoder, x, shapes = Encoder("alex64x64"), torch.empty(2, 3, 64, 64), {}
        for name, layer in encoder.layers.items():
            x = layer(x)
            shapes[name] = tuple(x.shape[1:])
    assert shapes == {
        "conv1": (96, 31, 31), "conv2": (192, 15, 15), "conv3": (384, 15, 15), "conv4": (384, 15, 15), "conv5": (192, 7, 7),
        "fc1": (4096,), "fc2": (4096,), "y": (64,),
    }  # fmt: skip


# ---- what it computes


@pytest.fixture(autouse=True)
def first_weights():
    torch.manual_seed(0)


@pytest.fixture
def tiny(monkeypatch):
    """An architecture with everything in it: pooling, no padding, two hidden vectors."""
    arch = Architecture(8, (Conv(3, 3, 1, 1, True), Conv(4, 2, 1, 0), Conv(6, 2, 1, 1)), (5, 7), local=2)
    monkeypatch.setitem(ARCHITECTURES, "tiny", arch)
    return arch


def shaken(module):
    """In float64, every parameter moved off its first value."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.double().parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=draws, dtype=torch.float64)
    return module


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x, kind, layer):
    """x [N, C, ...] normalised over the batch and its locations, or over the channels of each location."""
    if kind == "none":
        return x
    over = 1 if kind == "layer" else [d for d in range(x.ndim) if d != 1]
    gain, bias = (t.view(-1, *[1] * (x.ndim - 2)) for t in (layer.weight, layer.bias))
    return (x - x.mean(over, keepdim=True)) / (x.var(over, correction=0, keepdim=True) + 1e-5).sqrt() * gain + bias


@each_norm
def test_forward_equals_plain_functions_of_the_weights(tiny, kind):
    encoder, outputs = shaken(Encoder("tiny", channels=2, code_size=3, norm=kind)), {}
    x = start = pictures(4, 2, 8, 8)
    for i, conv in enumerate(tiny.convs, 1):
        layer = encoder.layers[f"conv{i}"]
        x = F.conv2d(x, layer[0].weight, layer[0].bias, conv.stride, conv.padding)
        x = normalised(x, kind, layer[1]).clamp_min(0)
        x = outputs[f"conv{i}"] = F.max_pool2d(x, 3, 2) if conv.pool else x
    for i in (1, 2):
        layer = encoder.layers[f"fc{i}"]
        x = normalised(x.reshape(4, -1) @ layer[1].weight.T + (0 if kind != "none" else layer[1].bias), kind, layer[2])
        x = outputs[f"fc{i}"] = x.clamp_min(0)
    y = x @ encoder.layers["y"].weight.T + encoder.layers["y"].bias
    codes = encoder(start)
    torch.testing.assert_close(tuple(codes), (outputs["conv2"], outputs["conv3"], outputs["fc2"], y))
    assert y.min() < 0  # linear, neither ReLU nor sigmoid


@each_norm
def test_biases_only_where_nothing_takes_them_away(tiny, kind):
    encoder = Encoder("tiny", norm=kind)
    linear = [m for layer in list(encoder.layers.values())[:-1] for m in layer if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(linear) == 5
    assert all((m.bias is not None) == (kind == "none") for m in linear)
    assert encoder.layers["y"].bias is not None


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(channels):
    encoder = Encoder("small8x8", channels)
    assert encoder.layers["conv1"][0].weight.shape == (32, channels, 3, 3)
    assert encoder(torch.randn(2, channels, 8, 8)).y.shape == (2, 64)
    with pytest.raises(RuntimeError, match="channels"):
        encoder(torch.randn(2, 4 - channels, 8, 8))


def test_code_size():
    assert Encoder("small8x8", 1, code_size=10)(torch.randn(2, 1, 8, 8)).y.shape == (2, 10)


# ---- the local map


@pytest.mark.parametrize("local", ["conv1", "conv2", "conv3", "fc1", "fc2"])
def test_local_names_the_layer_of_the_map(tiny, local):
    encoder = shaken(Encoder("tiny", local=local))
    x = expected = pictures(4, 3, 8, 8)
    for name, layer in encoder.layers.items():
        expected = layer(expected)
        if name == local:
            break
    assert torch.equal(encoder(x).map, expected)


def test_the_papers_choice_is_the_default(tiny):
    assert Encoder("tiny").local == Encoder("tiny", local="paper").local == "conv2"
    assert local_layers("tiny") == ["conv1", "conv2", "conv3", "fc1", "fc2"]


@pytest.mark.parametrize("local", ["conv4", "fc3", "y", "conv0", ""])
def test_a_layer_that_is_not_there_is_refused(tiny, local):
    with pytest.raises(ValueError, match=f"tiny has no layer '{local}' .*; it has conv1, conv2, conv3, fc1, fc2$"):
        Encoder("tiny", local=local)


def test_places_lists_locations_row_by_row():
    x = pictures(2, 3, 4, 5)
    listed = places(x)
    assert listed.shape == (2, 3, 20)
    for row in range(4):
        for column in range(5):
            assert torch.equal(listed[:, :, row * 5 + column], x[:, :, row, column])
    assert torch.equal(places(x[:, :, 0, 0]), x[:, :, 0, 0, None])


# ---- norms


@each_norm
def test_only_batch_norm_lets_other_images_in(tiny, kind):
    encoder = shaken(Encoder("tiny", norm=kind))
    x = pictures(4, 3, 8, 8)
    other = torch.cat([x[:1], 2 * x[1:] + 1])
    for one, two in zip(encoder(x), encoder(other), strict=True):
        moved = (one[0] - two[0]).abs().max().item()
        assert moved > 1e-3 if kind in ("batch", "sync") else moved < 1e-12


@each_norm
def test_only_batch_norm_marks_all_locations_of_an_image(kind):
    """One location of the input changed: after a 1x1 convolution and its norm no other location may show it."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), norm(kind, 4, dims=2)).double()
    x = pictures(2, 3, 3, 3)
    changed = x.clone()
    changed[0, :, 0, 0] += 5
    difference = (layer(x) - layer(changed)).abs().amax(1)
    assert difference[0, 0, 0] > 0.1
    difference[0, 0, 0] = 0
    assert difference.max() > 1e-3 if kind in ("batch", "sync") else difference.max() < 1e-12


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 5)])
def test_channel_norm_equals_a_loop_over_locations(shape):
    layer = shaken(ChannelNorm(4))
    x = pictures(*shape)
    expected = torch.empty_like(x)
    for n in range(3):
        for spot in [()] if len(shape) == 2 else [(row, column) for row in range(2) for column in range(5)]:
            at = (n, slice(None), *spot)
            values = x[at].tolist()
            mean = sum(values) / 4
            sd = (sum((v - mean) ** 2 for v in values) / 4 + 1e-5) ** 0.5
            rows = zip(values, layer.weight.tolist(), layer.bias.tolist(), strict=True)
            expected[at] = torch.tensor([(v - mean) / sd * gain + bias for v, gain, bias in rows], dtype=torch.float64)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dims", [0, 2])
@each_norm
def test_norm_by_name(kind, dims):
    layer = norm(kind, 4, dims)
    batch = nn.BatchNorm2d if dims else nn.BatchNorm1d
    assert type(layer) is {"batch": batch, "sync": nn.SyncBatchNorm, "layer": ChannelNorm, "none": nn.Identity}[kind]
    assert layer(torch.randn(3, 4, *[2] * dims)).shape == (3, 4, *[2] * dims)


def test_one_process_alone_has_the_bits_of_batch_norm_with_sync(tiny):
    x, ends = pictures(4, 3, 8, 8), []
    for kind in ("batch", "sync"):
        torch.manual_seed(0)
        encoder = Encoder("tiny", norm=kind).double()
        y = encoder(x).y
        y.square().sum().backward()
        state = encoder.state_dict()
        ends.append([y, encoder.eval()(x).map, *state.values(), *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="unknown norm 'batchnorm': it must be one of batch, sync, layer, none"):
        Encoder("small8x8", 1, norm="batchnorm")


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_of_a_flattened_map_lies_as_the_map_does(memory_format):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(2, 48, dtype=torch.float64)
    flat = Flatten()(x)
    assert torch.equal(flat, x.flatten(1))
    (gradient,) = torch.autograd.grad((flat * weight).sum(), x)
    assert torch.equal(gradient, weight.view(x.shape))
    assert gradient.is_contiguous(memory_format=memory_format)
    assert Flatten()(weight) is weight
