"""The encoders' convolution by fewer products, against torch's plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim import winograd
from dim.encoders import ARCHITECTURES, Encoder
from dim.winograd import Convolution, Winograd

WANTED = [(True, True), (True, False), (False, True)]  # gradients of images, of weights
each_wanted = pytest.mark.parametrize("wanted", WANTED, ids=["both", "images", "weights"])


def plain(x, w):
    return F.conv2d(x, w, stride=2, padding=1)


def draw(*shape, seed=0, dtype=torch.float64, layout=torch.channels_last):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=dtype).contiguous(memory_format=layout)


def values_and_gradients(function, x, w, gradient, wanted=(True, True), **options):
    x, w = (t.detach().clone().requires_grad_(some) for t, some in zip((x, w), wanted, strict=True))
    y = function(x, w)
    asked = [t for t in (x, w) if t.requires_grad]
    return y.detach(), *torch.autograd.grad(y, asked, gradient, **options)


@each_wanted
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("tile", [1, 2, 3])  # of three images
@pytest.mark.parametrize("sides", [(4, 4), (4, 12), (16, 8)])
def test_values_and_gradients_are_those_of_the_plain_convolution(sides, tile, layout, wanted, monkeypatch):
    height, width = sides
    monkeypatch.setattr(winograd, "BLOCKS", tile * height * width // 16)
    x, w = draw(3, 5, height, width, layout=layout), draw(6, 5, 4, 4, seed=1, layout=layout)
    gradient = draw(3, 6, height // 2, width // 2, seed=2, layout=layout)
    assert len(winograd.tiles(x)) == {1: 3, 2: 2, 3: 1}[tile]
    found = values_and_gradients(Winograd.apply, x, w, gradient, wanted)
    expected = values_and_gradients(plain, x, w, gradient, wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_comes_out_lies_channels_last():
    y, of_x, of_w = values_and_gradients(Winograd.apply, draw(3, 5, 8, 8), draw(6, 5, 4, 4, seed=1), draw(3, 6, 4, 4, seed=2))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, of_x, of_w))


@each_wanted
def test_a_gradient_can_be_differentiated(wanted):
    x, w, gradient = draw(2, 2, 8, 4), draw(2, 2, 4, 4, seed=1), draw(2, 2, 4, 2, seed=2)
    found = values_and_gradients(Winograd.apply, x, w, gradient, wanted, create_graph=True)
    for one, other in zip(found, values_and_gradients(plain, x, w, gradient, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(
        Winograd.apply, [t.requires_grad_(some) for t, some in zip((x, w), wanted, strict=True)]
    )


def test_no_images_give_no_results_and_a_gradient_of_zero():
    w = draw(6, 5, 4, 4).requires_grad_()
    y = Winograd.apply(draw(0, 5, 8, 8), w)
    assert y.shape == (0, 6, 4, 4)
    y.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("channels", [128, 256])
def test_rounding_is_about_the_plain_convolutions(channels):
    """On maps behind a ReLU and weights as they are drawn at first, at most 2.5 times it; bf16's is thousands of times."""
    layer = Convolution(channels, 128, 4, 2, 1, bias=False)
    x, gradient = draw(64, channels, 8, 8).relu_(), draw(64, 128, 4, 4, seed=1)
    exact = values_and_gradients(plain, x, layer.weight.double(), gradient)
    found, torchs = (values_and_gradients(f, x.float(), layer.weight, gradient.float()) for f in (Winograd.apply, plain))
    for ours, theirs, right in zip(found, torchs, exact, strict=True):
        assert (ours - right).norm() < 2.5 * (theirs - right).norm()


# ---- the layer


@pytest.fixture
def fewer(monkeypatch):
    """Fewer products for every layer they pay for, from one image of 8 x 8 on; gives the number of times they were taken."""
    taken = []
    apply = Winograd.apply
    monkeypatch.setattr(Convolution, "fewer_products", True)
    monkeypatch.setattr(winograd, "BLOCKS", 4)
    monkeypatch.setattr(Winograd, "apply", lambda x, w: taken.append(w.shape[1]) or apply(x, w))
    return taken


def layer_and_images(channels=128, out=128, kernel=4, stride=2, padding=1, sides=(8, 8), **options):
    torch.manual_seed(0)
    return Convolution(channels, out, kernel, stride, padding, **options), draw(2, channels, *sides, dtype=torch.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_torchs_to_rounding(bias, fewer):
    layer, x = layer_and_images(bias=bias, sides=(8, 12))
    x.requires_grad_()
    gradient = draw(2, 128, 4, 6, seed=1, dtype=torch.float32)
    asked = x, *layer.parameters()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x), rtol=0, atol=1e-5)
    found, expected = (torch.autograd.grad(f(x), asked, gradient) for f in (layer, lambda x: nn.Conv2d.forward(layer, x)))
    assert fewer == [128, 128]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


UNSUITED = {
    "few channels": {"channels": 127},
    "few channels of results": {"out": 127},
    "another kernel": {"kernel": (4, 3)},
    "another stride": {"stride": (1, 2)},
    "less padding": {"padding": (1, 0)},
    "a height of 10": {"sides": (10, 8)},
    "a width of 10": {"sides": (8, 10)},
    "few blocks": {"sides": (4, 4)},
    "groups": {"groups": 2},
    "dilation": {"dilation": 2},
    "reflection": {"padding_mode": "reflect"},
    "padding by a word": {"padding": "valid"},
}


@pytest.mark.parametrize("what", UNSUITED)
def test_what_does_not_fit_or_pay_is_torchs(what, fewer):
    layer, x = layer_and_images(**UNSUITED[what])
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    assert not fewer


def test_other_types_layouts_and_ranks_are_torchs(fewer):
    layer, x = layer_and_images()
    with torch.no_grad():
        layer(x[0])
        layer(x.contiguous())
        layer.double()(x.double())
        layer.to("meta")(x.double().to("meta"))
        layer_and_images()[0].bfloat16()(x.bfloat16())
    assert not fewer
    layer, x = layer_and_images()
    layer(x.to("meta"))
    for given in (x.double(), x[:, :5]):
        with pytest.raises(RuntimeError):
            layer(given)
    layer.double()
    with pytest.raises(RuntimeError):
        layer(x)
    assert not fewer


def test_a_process_that_was_not_tuned_has_torchs(fewer, monkeypatch):
    monkeypatch.setattr(Convolution, "fewer_products", False)
    layer, x = layer_and_images()
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    assert not fewer


def test_a_step_of_bf16_has_torchs(fewer):
    layer, x = layer_and_images()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert not fewer


def test_a_gradient_within_autocast_is_of_float32(fewer):
    layer, x = layer_and_images()
    y = layer(x.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(nn.Conv2d.forward(layer, x).square().sum(), x)
    assert fewer
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_result_can_be_changed_in_place(fewer):
    layer, x = layer_and_images(bias=False)
    found = nn.Sequential(layer, nn.ReLU(inplace=True))(x)
    assert fewer
    torch.testing.assert_close(found, nn.Conv2d.forward(layer, x).relu(), rtol=0, atol=1e-5)


def test_frozen_weights_cost_no_products(fewer):
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = layer_and_images(bias=False)
    counts = []
    for wanted in WANTED:
        y = Winograd.apply(x.requires_grad_(wanted[0]), layer.weight.requires_grad_(wanted[1]))
        with FlopCounterMode(display=False) as counted:
            y.sum().backward()
        counts.append(counted.get_total_flops())
    one = 2 * 9 * 2 * 4 * 512 * 128  # parts, images, blocks, a block's numbers, results
    assert counts == [2 * one, one, one]


def test_an_exported_encoder_takes_any_number_of_images(fewer):
    encoder = Encoder("basic32x32").eval().to(memory_format=torch.channels_last)
    images = draw(64, 3, 32, 32, dtype=torch.float32)
    exported = torch.export.export(encoder, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    assert not fewer
    for some in (images[:3], images):
        with torch.no_grad():
            torch.testing.assert_close(exported(some)[3], encoder(some)[3], rtol=0, atol=1e-5)
    assert fewer


@pytest.mark.parametrize(("name", "channels"), [("basic32x32", [128]), ("basic64x64", [128, 256]), ("alex64x64", [])])
def test_the_papers_encoders_use_it(name, channels, fewer):
    side = ARCHITECTURES[name].size
    encoder = Encoder(name).to(memory_format=torch.channels_last)
    with torch.no_grad():
        encoder(draw(2, 3, side, side, dtype=torch.float32))
    assert fewer == channels
