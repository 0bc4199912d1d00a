"""Reconstruction: MS-SSIM against its definition window by window, and a decoder that learns what its features hold."""

import math
import sys
from itertools import chain, product

import numpy as np
import pytest
import torch
from small_sets import pictures as write_pictures
from untrained import saved_pages, untrained

from dim import datasets
from dim.config import Data, UserError
from dim.evals import reconstruction as module
from dim.evals import sections
from dim.evals.features import features
from dim.evals.reconstruction import Decoder, ms_ssim, reconstruction, scales, stored, trained
from dim.evals.sections import Features
from dim.figures import drawing, samples
from dim.figures import reconstruction as figure


def draws(seed):
    return torch.Generator().manual_seed(seed)


def smooth(size, channels, seed):
    """An image [channels, size, size] in [0, 1], float64, with structure at all scales."""
    noise = torch.rand(1, channels, size, size, generator=draws(seed), dtype=torch.float64)
    coarse = torch.nn.functional.interpolate(noise[..., ::4, ::4], size=(size, size), mode="bilinear")
    return (0.3 * noise + 0.7 * coarse)[0]


# ---- the definition, one window at a time: x and y are [S, S] of one channel


def gaussian(window, sigma):
    row = [math.exp(-((i - window // 2) ** 2) / (2 * sigma**2)) for i in range(window)]
    return np.outer(row, row) / sum(row) ** 2


def window_terms(a, b, weight):
    """(luminance, contrast and structure) under one window."""
    mu_a, mu_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * (a - mu_a) ** 2).sum(), (weight * (b - mu_b) ** 2).sum()
    cov = (weight * (a - mu_a) * (b - mu_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1), (2 * cov + c2) / (var_a + var_b + c2)


def ms_ssim_by_windows(x, y, window, sigma, weights):
    """x and y [C, S, S]: whole windows only at the finer scales, the border reflected at the coarsest."""
    weight, value = gaussian(window, sigma), 1.0
    for scale, exponent in enumerate(weights):
        last, found = scale == len(weights) - 1, []
        for a, b in zip(x, y, strict=True):
            if last:
                a, b = (np.pad(image, window // 2, mode="reflect") for image in (a, b))
            for i, j in product(range(len(a) - window + 1), repeat=2):
                light, structure = window_terms(a[i : i + window, j : j + window], b[i : i + window, j : j + window], weight)
                found.append(light * structure if last else structure)
        value *= max(0, np.mean(found)) ** exponent
        half = len(x[0]) // 2
        x, y = (
            [[[c[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(half)] for i in range(half)] for c in z]
            for z in (x, y)
        )
        x, y = np.array(x), np.array(y)
    return value


def other(kind, x, seed):
    """An image to compare x with."""
    noise = torch.randn(x.shape, generator=draws(seed), dtype=torch.float64)
    return {
        "noise": (x + 0.1 * noise).clamp(0, 1),
        "much noise": (x + 0.4 * noise).clamp(0, 1),
        "faint": 0.4 + 0.2 * x,
        "dark": 0.5 * x,
        "negative": 1 - x,
        "another": smooth(x.shape[-1], len(x), seed + 100),
        "flat": torch.full_like(x, 0.5),
    }[kind]


PAIRS = [
    (8, 1, "noise"),
    (8, 1, "another"),
    (10, 3, "dark"),
    (11, 1, "faint"),
    (21, 1, "flat"),
    (23, 1, "noise"),
    (28, 1, "negative"),
    (32, 3, "much noise"),
    (33, 1, "another"),
    (44, 1, "noise"),
]


@pytest.mark.parametrize(("size", "channels", "kind"), PAIRS)
def test_ms_ssim_equals_its_definition(size, channels, kind):
    x = smooth(size, channels, size)
    y = other(kind, x, size)
    truth = ms_ssim_by_windows(x.numpy(), y.numpy(), *scales(size))
    assert ms_ssim(x[None], y[None]).item() == pytest.approx(truth, abs=1e-6)
    assert truth < 0.99


@pytest.mark.parametrize("size", [8, 9, 28, 32, 64, 96, 176])
def test_equal_images_have_1(size):
    x = torch.stack([smooth(size, 1, 1), torch.full((1, size, size), 0.3, dtype=torch.float64)])
    assert ms_ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert ms_ssim(x.float(), x.float()).tolist() == pytest.approx([1, 1], abs=3e-4)


def test_each_pair_is_measured_by_itself(monkeypatch):
    x, y = (torch.stack([smooth(16, 1, seed) for seed in seeds]) for seeds in ((1, 2, 3), (4, 5, 6)))
    alone = [ms_ssim(x[i : i + 1], y[i : i + 1]).item() for i in range(3)]
    assert ms_ssim(x, y).tolist() == pytest.approx(alone)
    monkeypatch.setattr(module, "CHUNK", 2)
    assert ms_ssim(x, y).tolist() == pytest.approx(alone)
    assert ms_ssim(y, x).tolist() == pytest.approx(alone)


def test_the_scales_of_each_size():
    assert {size: len(scales(size).weights) for size in (8, 11, 21, 22, 28, 32, 43, 44, 64, 96, 98, 99, 175, 176, 224)} == {
        **dict.fromkeys((8, 11, 21), 1),
        **dict.fromkeys((22, 28, 32, 43), 2),
        **dict.fromkeys((44, 64, 96, 98), 3),
        **dict.fromkeys((99, 175), 4),
        **dict.fromkeys((176, 224), 5),
    }
    assert [scales(size).window for size in (8, 9, 10, 11, 32)] == [7, 9, 9, 11, 11]
    assert scales(32).sigma == 1.5
    assert scales(32).weights == pytest.approx((0.0448 / 0.3304, 0.2856 / 0.3304))
    for size in (8, 28, 64, 96, 176):
        assert sum(scales(size).weights) == pytest.approx(1)


@pytest.mark.parametrize("size", [32, 43, 64, 96])
def test_torchmetrics_refuses_one_scale_more(size):
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    x, m = torch.rand(1, 1, size, size), len(scales(size).weights)
    assert measure(x, x, betas=module.WEIGHTS[:m], data_range=1.0).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="must be larger"):
        measure(x, x, betas=module.WEIGHTS[: m + 1], data_range=1.0)


# ---- the decoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 33, 64, 96])
def test_a_decoder_makes_images_of_every_size(size, channels):
    made = Decoder(5, (channels, size, size))(torch.randn(2, 5, generator=draws(0)))
    assert made.shape == (2, channels, size, size)
    assert ((made > 0) & (made < 1)).all()


def test_each_layer_has_half_the_channels_of_the_one_before():
    for size, widths in ((8, [3]), (28, [64, 3]), (32, [64, 32, 3]), (64, [64, 32, 16, 3]), (96, [64, 32, 16, 3])):
        layers = Decoder(5, (3, size, size)).layers
        assert [layer.out_channels for layer in layers if isinstance(layer, torch.nn.ConvTranspose2d)] == widths


def spots(n, seed):
    """Images [n, 1, 8, 8], uint8, made of four numbers [n, 4] that are features too."""
    features = torch.rand(n, 4, generator=draws(seed))
    return features, (features.view(n, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) * 255).round().byte()


@pytest.fixture(scope="module")
def found():
    (x, images), (x_test, test_images) = spots(300, 0), spots(40, 1)
    return reconstruction(x, images, x_test, test_images, steps=200), images, test_images


def test_features_that_hold_the_image_give_it_back(found):
    facts = found[0].facts
    assert facts["mse"] < 0.05 * facts["mean_image_mse"]
    assert facts["train_mse"] < 0.05 * facts["mean_image_mse"]
    assert facts["ms_ssim"] > 0.7 > 0.3 > facts["mean_image_ms_ssim"]


def test_features_that_hold_nothing_give_the_mean_image():
    (_, images), (_, test_images) = spots(300, 0), spots(40, 1)
    facts = reconstruction(torch.ones(300, 4), images, torch.ones(40, 4), test_images, steps=60).facts
    assert 0.99 < facts["mse"] / facts["mean_image_mse"] < 1.06


def test_the_numbers_are_those_of_the_pictures(found):
    (facts, pictures), images, test_images = found
    made, goal = pictures.double() / 255, test_images.double() / 255
    assert pictures.dtype == torch.uint8
    assert facts["mse"] == pytest.approx((made - goal).square().mean().item(), abs=1e-4)
    assert facts["ms_ssim"] == pytest.approx(ms_ssim(made, goal).mean().item(), abs=0.01)
    mean = (images.double() / 255).mean(0)
    assert facts["mean_image_mse"] == pytest.approx((mean - goal).square().mean().item(), abs=1e-6)
    assert facts["mean_image_ms_ssim"] == pytest.approx(ms_ssim(mean.expand_as(goal), goal).mean().item(), abs=3e-4)
    assert (facts["scales"], facts["window"], facts["weights"], facts["steps"]) == (1, 7, [1.0], 200)


def run(x_scale=1.0, seed=0, tests=40, floats=False, steps=5):
    (x, images), (x_test, test_images) = spots(300, 0), spots(tests, 1)
    if floats:
        images, test_images = images / 255, test_images / 255
    return reconstruction(x * x_scale + x_scale - 1, images, x_test * x_scale + x_scale - 1, test_images, steps, seed)


def test_a_reconstruction_is_a_function_of_the_seed():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    again, other_seed = run(), run(seed=1)
    assert again.facts == first.facts
    assert torch.equal(again.pictures, first.pictures)
    assert other_seed.facts["mse"] != first.facts["mse"]
    x, images = spots(20, 0)
    weights = [trained(x, images, 0, seed).layers[0].weight for seed in (0, 0, 1)]  # before the first step
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_neither_test_images_nor_the_scale_of_features_change_the_decoder():
    first, fewer = run(), run(tests=10)
    assert (fewer.pictures.int() - first.pictures[:10].int()).abs().max() <= 1  # each by itself, in eval mode
    assert run(x_scale=1000.0).facts["mse"] == pytest.approx(first.facts["mse"], rel=1e-3)
    assert run(floats=True).facts["mse"] == pytest.approx(first.facts["mse"], rel=1e-6)


def test_every_image_is_seen_once_an_epoch(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    seen = []
    monkeypatch.setattr(module, "units", lambda chosen: seen.append(chosen[:, 0, 0, 0].tolist()) or chosen.float())
    images = torch.arange(10).byte()[:, None, None, None].expand(10, 1, 8, 8)
    trained(torch.randn(10, 2, generator=draws(0)), images, 6, 0)
    epochs = [[*chain(*seen[:3])], [*chain(*seen[3:])]]
    assert [len({*epoch}) for epoch in epochs] == [9, 9]  # the last incomplete batch is dropped
    assert epochs[0] != epochs[1]


def test_the_rate_falls_along_a_cosine(monkeypatch):
    rates = []

    class Spy(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    run(steps=4)
    assert rates == pytest.approx([module.RATE * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])


def test_bad_input_is_one_line(monkeypatch):
    (x, images), (x_test, test_images) = spots(20, 0), spots(5, 1)
    for bad in (math.nan, math.inf):
        broken = x_test.clone()
        broken[2, 1] = broken[2, 3] = broken[4, 0] = bad
        with pytest.raises(UserError, match="features of 2 of 5 test images are not finite"):
            reconstruction(x, images, broken, test_images)
    with pytest.raises(UserError, match="at least 2 training images with features: there are 20 images and 19 features"):
        reconstruction(x[1:], images, x_test, test_images)
    with pytest.raises(UserError, match="at least 2 test images with features: there are 0 images and 0 features"):
        reconstruction(x, images, x_test[:0], test_images[:0])
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(UserError, match="MS-SSIM needs the package torchmetrics: pip install torchmetrics"):
        reconstruction(x, images, x_test, test_images)


# ---- stored images and the picture


def test_stored_images_are_at_the_encoders_size_with_255_for_white(tmp_path):
    digits = datasets.digits(Data())
    images = stored(digits, digits.test)
    assert images.dtype == torch.uint8
    assert torch.equal(images, (digits.test.images.double() * 255 / 16).round().byte())
    chosen = torch.tensor([5, 3])
    assert torch.equal(stored(digits, digits.test, chosen), images[chosen])
    write_pictures(tmp_path, {"": 3}, side=24)
    folder = datasets.DATASETS["folder"](Data(name="folder", root=str(tmp_path), side=24, fit="crop"), 16)
    assert torch.equal(stored(folder, folder.train), folder.train.images[:, :, 4:20, 4:20])


def test_the_picture_shows_images_over_reconstructions(tmp_path, monkeypatch):
    config, data, state = untrained(train=60, test=60)
    monkeypatch.setattr(reconstruction, "__defaults__", (3, 0))
    pages = saved_pages(monkeypatch, drawing)
    (path,) = figure.draw(tmp_path, config, data, state)
    assert path == tmp_path / "figures" / "reconstruction.png"
    assert path.stat().st_size > 10_000
    _, title, (panel,), caption, _ = pages[0]
    assert title.endswith("reconstructions from y")
    assert [strip.name for strip in panel.strips] == ["input", "from y"] * 3
    assert [strip.close for strip in panel.strips] == [False, True] * 3
    everything = {image.tobytes() for image in stored(data, data.test).numpy()}
    for above, below in zip(panel.strips[::2], panel.strips[1::2], strict=True):
        for own, made in zip(above.groups[0], below.groups[0], strict=True):
            assert own.picture.tobytes() in everything
            pair = [torch.from_numpy(tile.picture)[None] / 255 for tile in (own, made)]
            assert made.label == f"{ms_ssim(*pair).item():.2f}"
    assert "frozen y of 60 training images, 3 steps. Shown: 30 of 60 test images, drawn. All 60 such images" in caption[1]
    assert "1 scale, so plain SSIM, a Gaussian window of 7 x 7, sigma 0.955" in caption[2]


def test_a_decoder_that_was_just_measured_or_drawn_is_not_trained_again(tmp_path, monkeypatch):
    config, data, state = untrained(train=60, test=30)
    monkeypatch.setattr(reconstruction, "__defaults__", (3, 0))
    made, pages = [], saved_pages(monkeypatch, drawing)
    monkeypatch.setattr(module, "trained", lambda *given: made.append(given) or trained(*given))
    encoder = samples.trained_encoder(config, data, state)
    train, test = ({"y": features(encoder, data, part)["y"]} for part in (data.train, data.test))
    seen = Features({"y": (train["y"], test["y"])}, encoder)
    (row,) = (row for row in sections.decoded(data, ["y"]).rows if row.kind == "trained")
    facts = row.act(seen, {})
    assert len(made) == 1
    (path,) = figure.draw(tmp_path, config, data, state, decoded=seen.decoded["y"])
    assert len(made) == 1
    before = path.stat().st_mtime_ns
    assert figure.draw(tmp_path, config, data, state) == [path]  # there already
    assert (len(made), path.stat().st_mtime_ns) == (1, before)
    figure.draw(tmp_path, config, data, state, force=True)
    assert len(made) == 2
    (_, _, (one,), caption, _), (_, _, (two,), again, _) = pages
    assert caption == again  # the numbers are those of the measure
    assert f"MS-SSIM {facts['ms_ssim']:.3g}" in caption[1]
    for own, other in zip(one.strips, two.strips, strict=True):
        for a, b in zip(own.groups[0], other.groups[0], strict=True):
            assert np.abs(a.picture.astype(int) - b.picture).max() <= 1
    state["encoder"]["layers.y.bias"] += 1
    figure.draw(tmp_path, config, data, state)  # other weights
    assert len(made) == 3


def test_several_layers_stand_under_each_other(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=draws(0)).byte()
    pages = []
    monkeypatch.setattr(drawing, "save", lambda *page: pages.append(page) or page[0])
    results = {name: module.Reconstruction({}, images) for name in ("conv", "fc", "y")}
    figure.picture(tmp_path / "several.png", images, results, ["words"])
    path, title, (panel,), caption, _ = pages[0]
    assert path == tmp_path / "several.png"
    assert title == "Images over their reconstructions from conv and fc and y"
    assert [strip.name for strip in panel.strips] == ["input", "from conv", "from fc", "from y"] * 2
    for begin, strips in ((0, panel.strips[:4]), (10, panel.strips[4:])):
        for strip in strips:
            for tile, image in zip(strip.groups[0], images[begin : begin + 10].numpy(), strict=True):
                assert np.array_equal(tile.picture, image)
                assert tile.label == ("" if strip.name == "input" else "1.00")
    assert caption == ["words"]
