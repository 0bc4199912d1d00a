"""The encoders' convolution by fewer products, against torch's plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim import winograd
from dim.encoders import ARCHITECTURES, Encoder
from dim.winograd import Convolution, Winograd, suits

fits = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="plain convolution on this CPU")
either_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def plain(x, w):
    return F.conv2d(x, w, stride=2, padding=1)


def draw(*shape, seed=0, dtype=torch.float64, layout=torch.channels_last):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=dtype).contiguous(memory_format=layout)


def values_and_gradients(function, x, w, gradient, wanted=(True, True)):
    x, w = (t.clone().requires_grad_(some) for t, some in zip((x, w), wanted, strict=True))
    y = function(x, w)
    return y.detach(), *torch.autograd.grad(y, [t for t, some in zip((x, w), wanted, strict=True) if some], gradient)


@either_layout
@pytest.mark.parametrize("rows", [1, 13, winograd.ROWS])  # an image at a time, two of three, all
@pytest.mark.parametrize("sides", [(4, 4), (4, 12), (16, 8)])
def test_values_and_gradients_are_those_of_the_plain_convolution(sides, rows, layout, monkeypatch):
    monkeypatch.setattr(winograd, "ROWS", rows)
    height, width = sides
    x, w = draw(3, 5, height, width, layout=layout), draw(6, 5, 4, 4, seed=1, layout=layout)
    gradient = draw(3, 6, height // 2, width // 2, seed=2, layout=layout)
    for wanted in ((True, True), (True, False), (False, True)):
        found = values_and_gradients(Winograd.apply, x, w, gradient, wanted)
        expected = values_and_gradients(plain, x, w, gradient, wanted)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_comes_out_lies_channels_last():
    y, of_x, of_w = values_and_gradients(Winograd.apply, draw(3, 5, 8, 8), draw(6, 5, 4, 4, seed=1), draw(3, 6, 4, 4, seed=2))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, of_x, of_w))


def test_a_gradient_can_be_differentiated():
    x, w = draw(2, 2, 8, 4).requires_grad_(), draw(2, 2, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(Winograd.apply, (x, w))


def test_no_images_give_no_results_and_a_gradient_of_zero():
    w = draw(6, 5, 4, 4).requires_grad_()
    y = Winograd.apply(draw(0, 5, 8, 8), w)
    assert y.shape == (0, 6, 4, 4)
    y.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("channels", [64, 256])
def test_rounding_is_float32s(channels):
    """On maps behind a ReLU and weights as they are drawn at first: root mean squares, relative, below 1e-6 (4e-7 to 7e-7)."""
    layer = Convolution(channels, 32, 4, 2, 1, bias=False)
    x, gradient = draw(8, channels, 8, 8).relu_(), draw(8, 32, 4, 4, seed=1)
    expected = values_and_gradients(plain, x, layer.weight.detach().double(), gradient)
    found = values_and_gradients(Winograd.apply, x.float(), layer.weight.detach(), gradient.float())
    for one, other in zip(found, expected, strict=True):
        assert (one - other).square().mean().sqrt() < 1e-6 * other.square().mean().sqrt()


# ---- which layers


def layer_and_images(channels=64, kernel=4, stride=2, padding=1, sides=(8, 8), dtype=torch.float32, **options):
    layer = Convolution(channels, 2, kernel, stride, padding, **options).to(dtype)
    return layer, torch.zeros(1, channels, *sides, dtype=dtype)


@fits
def test_suits_the_papers_convolutions_in_float32():
    assert suits(*layer_and_images())
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(*layer_and_images())


UNSUITED = {
    "few channels": {"channels": 32},
    "another kernel": {"kernel": 3},
    "another stride": {"stride": 1},
    "no padding": {"padding": 0},
    "a height of 10": {"sides": (10, 8)},
    "a width of 6": {"sides": (8, 6)},
    "float64": {"dtype": torch.float64},
    "bf16": {"dtype": torch.bfloat16},
    "groups": {"groups": 2},
    "dilation": {"dilation": 2},
    "reflection": {"padding_mode": "reflect"},
    "a string of padding": {"padding": "valid"},
}


@pytest.mark.parametrize("what", UNSUITED)
def test_what_does_not_suit_is_torchs(what, monkeypatch):
    layer, x = layer_and_images(**UNSUITED[what])
    assert not suits(layer, x)
    monkeypatch.setattr(Winograd, "apply", None)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))


def test_a_single_image_without_a_batch_is_torchs():
    layer, x = layer_and_images()
    assert torch.equal(layer(x[0]), nn.Conv2d.forward(layer, x[0]))


@fits
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_torchs_to_rounding(bias):
    layer, x = Convolution(64, 3, 4, 2, 1, bias=bias), draw(2, 64, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x), rtol=0, atol=1e-5)


@fits
@pytest.mark.parametrize(("name", "times"), [("basic32x32", 2), ("basic64x64", 3), ("basic28x28", 0), ("small8x8", 1)])
def test_the_papers_encoders_use_it(name, times, monkeypatch):
    seen = []
    monkeypatch.setattr(Winograd, "apply", lambda x, w: seen.append(w.shape[1]) or plain(x, w))
    side = ARCHITECTURES[name].size
    Encoder(name)(torch.zeros(2, 3, side, side))
    assert seen == [64, 128, 256][:times]  # channels
