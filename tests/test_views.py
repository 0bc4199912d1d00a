"""Views against the docstrings' definitions, pixel by pixel; draws as a function of seed, epoch and sample."""

import colorsys
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.config import Views
from dim.views import (
    VIEWS,
    Affine,
    CentreCrop,
    Chain,
    Crop,
    Flip,
    Grey,
    Jitter,
    Resize,
    ResizedCrop,
    between,
    chosen,
    draw_table,
    whole,
)

WILD = Affine(shift=1.7, rotation=70.0, scale=0.5, shear=0.6)
GARISH = Jitter(0.9, 0.8, 1.0, 0.5, 0.7)
SHAPES = [(3, 2, 5, 5), (3, 1, 4, 7), (2, 3, 6, 3)]
LAST = 1 - 2**-23  # the largest draw of a table


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws_of(n, columns=6, seed=0):
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def made(kind, size=4, fit=(), **keys):
    """The chain of a kind with these keys of `views` over the defaults."""
    return VIEWS[kind](replace(Views(), kind=kind, **keys), size, fit)


EVERY = {  # of images of 6 x 6 and larger
    "affine": WILD,
    "crop": Crop(4, padding=1),
    "resized crop": ResizedCrop(4, area=(0.05, 1.0)),
    "flip": Flip(),
    "jitter": GARISH,
    "grey": Grey(0.5),
    "resize": Resize(4),
    "centre crop": CentreCrop(3),
    "kind none": made("none"),
    "kind affine": made("affine"),
    "kind crop_flip": made("crop_flip"),
    "kind strong": made("strong"),
}
every_view = pytest.mark.parametrize("view", EVERY.values(), ids=EVERY.keys())


def read(image, x, y):
    """image [H, W] at column x, row y, between pixels: bilinear, zeros outside."""
    left, top, value = math.floor(x), math.floor(y), 0.0
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                value += row_weight * weight * image[row, column].item()
    return value


# ---- affine


def affine_loop(view, images, draws):
    """Each pixel at distance (u, v) from the centre is read at the centre + R S D (u, v) + shift."""
    out = torch.empty_like(images)
    n, channels, height, width = images.shape
    for i in range(n):
        dx, dy, turn, stretch_x, stretch_y, shear = draws[i].tolist()
        angle = math.radians(view.rotation * turn)
        for row in range(height):
            for column in range(width):
                u, v = column - (width - 1) / 2, row - (height - 1) / 2
                u, v = math.exp(view.scale * stretch_x) * u, math.exp(view.scale * stretch_y) * v  # D
                u, v = u + view.shear * shear * v, v  # S
                u, v = math.cos(angle) * u - math.sin(angle) * v, math.sin(angle) * u + math.cos(angle) * v  # R
                x, y = (width - 1) / 2 + u + view.shift * dx, (height - 1) / 2 + v + view.shift * dy
                for channel in range(channels):
                    out[i, channel, row, column] = read(images[i, channel], x, y)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("view", [WILD, Affine()], ids=["wild", "default"])
def test_affine_equals_a_loop_over_pixels(view, shape):
    images, draws = pictures(*shape), draws_of(shape[0], seed=sum(shape))
    result = view(images, draws)
    torch.testing.assert_close(result, affine_loop(view, images, draws), rtol=0, atol=1e-9)
    assert not torch.isclose(result, images).all(-1).all(-1).all(-1).any()  # every picture was changed


@pytest.mark.parametrize("number", range(6))
def test_each_draw_by_itself_equals_the_loop(number):
    images, draws = pictures(2, 1, 4, 5), torch.zeros(2, 6).double()
    draws[:, number] = torch.tensor([0.9, -0.6])
    torch.testing.assert_close(WILD(images, draws), affine_loop(WILD, images, draws), rtol=0, atol=1e-9)
    assert not torch.isclose(WILD(images, draws), images).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_draws_change_nothing(shape):
    images = pictures(*shape)
    torch.testing.assert_close(WILD(images, torch.zeros(shape[0], 6)), images, rtol=0, atol=1e-12)


def test_known_moves():
    """One pixel to the left with a column of zeros; a quarter turn; a factor of two about the centre."""
    images = pictures(1, 1, 3, 3)
    one = torch.eye(6).double()
    expected = torch.cat([images[..., 1:], torch.zeros(1, 1, 3, 1).double()], -1)
    torch.testing.assert_close(Affine(shift=1.0)(images, one[:1]), expected)
    # what stands right of the centre is read below it
    torch.testing.assert_close(Affine(rotation=90.0)(images, one[2:3]), images.rot90(1, (2, 3)))
    zoomed = Affine(scale=math.log(2))(images, one[3:4] + one[4:5])
    centre = torch.zeros(1, 1, 3, 3).double()
    centre[..., 1, 1] = images[..., 1, 1]  # two pixels away from it there is nothing
    torch.testing.assert_close(zoomed, centre)


# ---- crops and sizes


def crop_loop(view, images, draws):
    """The window whose row and column are drawn among those of the image with its border; black outside the image."""
    n, channels, height, width = images.shape
    out = torch.zeros(n, channels, view.size, view.size).double()
    for i in range(n):
        corner = []
        for draw, side in zip(draws[i].tolist(), (height, width), strict=True):
            windows = side + 2 * view.padding - view.size + 1
            corner.append(min(math.floor((draw + 1) / 2 * windows), windows - 1))
        for channel, row, column in product(range(channels), range(view.size), range(view.size)):
            y, x = corner[0] + row - view.padding, corner[1] + column - view.padding
            if 0 <= y < height and 0 <= x < width:
                out[i, channel, row, column] = images[i, channel, y, x]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("view", [Crop(3), Crop(3, 2), Crop(1, 1)], ids=["inside", "border", "pixel"])
def test_crop_equals_a_loop_over_pixels(view, shape):
    images = pictures(12, *shape[1:])
    draws = torch.cat([draws_of(8, 2), torch.tensor([[-1, -1], [LAST, -1], [-1, LAST], [1, 1]]).double()])
    assert torch.equal(view(images, draws), crop_loop(view, images, draws))


def test_every_window_comes_up_equally_often_the_last_one_too():
    """Windows of 2 x 2 in 5 x 6: 4 x 5 corners, each named by its pixel; draws on a grid with 3 for each row and column."""
    images = torch.arange(30.0).view(1, 1, 5, 6)
    rows, columns = ((torch.arange(3 * n) + 0.5) / (3 * n) * 2 - 1 for n in (4, 5))
    draws = torch.cartesian_prod(rows, columns)
    corners = Crop(2)(images.expand(len(draws), -1, -1, -1), draws)[:, 0, 0, 0]
    expected = torch.tensor([6 * row + column for row in range(4) for column in range(5) for _ in range(9)])
    assert torch.equal(corners.sort().values, expected.float())


def test_a_crop_of_the_whole_image_is_the_image():
    images = pictures(4, 3, 5, 5)
    assert torch.equal(Crop(5)(images, draws_of(4, 2)), images)


def resized_crop_loop(view, images, draws):
    """Output pixel (row, column) is read in the drawn box at its place; beyond the image its nearest pixel is read."""
    n, channels, height, width = images.shape
    out = torch.empty(n, channels, view.size, view.size).double()
    for i in range(n):
        area, ratio, y, x = ((draw + 1) / 2 for draw in draws[i].tolist())
        area = (view.area[0] + area * (view.area[1] - view.area[0])) * height * width
        ratio = view.ratio[0] * (view.ratio[1] / view.ratio[0]) ** ratio
        box_width, box_height = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
        top, left = y * (height - box_height), x * (width - box_width)
        for channel, row, column in product(range(channels), range(view.size), range(view.size)):
            y, x = top + (row + 0.5) / view.size * box_height - 0.5, left + (column + 0.5) / view.size * box_width - 0.5
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            out[i, channel, row, column] = read(images[i, channel], x, y)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "view",
    [ResizedCrop(4), ResizedCrop(5, (0.01, 0.3), (0.2, 3.0)), ResizedCrop(3, (0.9, 1.0), (0.1, 10.0))],
    ids=["default", "small", "cut to the image"],
)
def test_resized_crop_equals_a_loop_over_pixels(view, shape):
    images = pictures(10, *shape[1:])
    ends = torch.tensor([[-1, -1, -1, -1], [LAST, LAST, LAST, LAST], [1, -1, 1, -1], [1, 1, 1, 1]]).double()
    draws = torch.cat([draws_of(6, 4), ends])
    torch.testing.assert_close(view(images, draws), resized_crop_loop(view, images, draws), rtol=0, atol=1e-9)


def test_a_box_as_large_as_the_image_is_the_image():
    images = pictures(3, 2, 5, 5)
    result = ResizedCrop(5, (1.0, 1.0), (1.0, 1.0))(images, draws_of(3, 4))
    torch.testing.assert_close(result, images, rtol=0, atol=1e-12)


def test_boxes_are_uniform_in_area_log_ratio_and_place():
    """On ramps the box can be read off its four pixels; means and variances to five standard errors."""
    n, side = 4000, 64
    ramp = ((torch.arange(side) + 0.5) / side).double()
    images = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).expand(n, -1, -1, -1)
    view = ResizedCrop(2, area=(0.2, 0.5))  # never wider or higher than the image
    result = view(images, draw_table(0, 0, n, 1, view.draws)[:, 0])
    width, height = 2 * (result[:, 0, 0, 1] - result[:, 0, 0, 0]), 2 * (result[:, 1, 1, 0] - result[:, 1, 0, 0])
    left, top = result[:, 0, 0, 0] - width / 4, result[:, 1, 0, 0] - height / 4
    uniform = {
        "area": (width * height - 0.2) / 0.3,
        "ratio": ((width / height).log() / math.log(4 / 3) + 1) / 2,
        "left": left / (1 - width),
        "top": top / (1 - height),
    }
    for name, share in uniform.items():
        assert -1e-6 < share.min() < 0.01 < 0.99 < share.max() < 1 + 1e-6, name
        assert abs(share.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n), name
        assert abs(share.var() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n), name
    assert (torch.corrcoef(torch.stack(list(uniform.values()))) - torch.eye(4)).abs().max() < 5 / math.sqrt(n)


def test_resize_to_half_weighs_by_a_triangle():
    """Half the size: a pixel half a pixel from the new centre weighs 3/4, the next 1/4; what lies outside does not count."""
    weights = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]).double() / 7
    images = pictures(2, 3, 4, 4)
    torch.testing.assert_close(Resize(2)(images, torch.zeros(2, 0)), weights @ images @ weights.T)
    torch.testing.assert_close(Resize(4)(images, torch.zeros(2, 0)), images)
    assert Resize(3)(pictures(2, 3, 4, 7), torch.zeros(2, 0)).shape == (2, 3, 3, 3)


def test_centre_crop_of_even_and_odd_differences():
    """Where no middle exists the window lies half a pixel towards the first row and column."""
    images = torch.arange(30.0).view(1, 1, 5, 6)
    nothing = torch.zeros(1, 0)
    assert CentreCrop(3)(images, nothing)[0, 0].tolist() == [[7, 8, 9], [13, 14, 15], [19, 20, 21]]
    assert CentreCrop(2)(images, nothing)[0, 0].tolist() == [[8, 9], [14, 15]]
    assert torch.equal(CentreCrop(5)(images, nothing), images[..., :5])


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a crop of 6 x 6 does not fit images of 5 x 7"):
        CentreCrop(6)(pictures(1, 1, 5, 7), torch.zeros(1, 0))
    with pytest.raises(ValueError, match="a crop of 8 x 8 does not fit images of 7 x 9 with their border"):
        Crop(8, padding=1)(pictures(1, 1, 5, 7), torch.zeros(1, 2))
    for height, width in ((9, 7), (7, 9)):  # the windows would reach into the next row, or image
        with pytest.raises(ValueError, match=f"a crop of 8 x 8 does not fit images of {height} x {width}"):
            Crop(8)(pictures(2, 1, height, width), torch.zeros(2, 2))


@pytest.mark.parametrize("view", [Crop(4), Crop(3), Crop(4, 1), Flip(0.0), Flip(1.0), Flip()])
@pytest.mark.parametrize("n", [0, 3])
def test_moved_pictures_share_no_memory_with_the_images(view, n):
    """They are brought to [-1, 1] in place."""
    images = pictures(n, 1, 4, 4)
    before = images.clone()
    found = view(images, draws_of(n, view.draws))
    assert len(found) == n
    found.fill_(7)
    assert torch.equal(images, before)


# ---- flip and colour


def luma_of(pixel):
    """0.2989 red + 0.587 green + 0.114 blue (ITU-R BT.601); a grey pixel is its own."""
    return pixel[0] if len(pixel) == 1 else 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def cut(value):
    return min(max(value, 0.0), 1.0)


def jitter_loop(view, images, draws):
    """Brightness, contrast about the mean luma, saturation about the pixel's luma, hue in HSV: pixel by pixel."""
    out = images.clone()
    n, channels, height, width = images.shape
    for i in range(n):
        whether, brightness, contrast, saturation, hue = draws[i].tolist()
        if (whether + 1) / 2 >= view.probability:
            continue
        brightness, contrast = 1 + view.brightness * brightness, 1 + view.contrast * contrast
        saturation, hue = 1 + view.saturation * saturation, view.hue * hue
        places = list(product(range(height), range(width)))
        pixels = [[cut(brightness * value) for value in images[i, :, row, column].tolist()] for row, column in places]
        mean = sum(map(luma_of, pixels)) / len(pixels)
        pixels = [[cut(contrast * value + (1 - contrast) * mean) for value in pixel] for pixel in pixels]
        if channels == 3:
            pixels = [[cut(saturation * v + (1 - saturation) * luma_of(pixel)) for v in pixel] for pixel in pixels]
            turned = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
            pixels = [colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in turned]
        for (row, column), pixel in zip(places, pixels, strict=True):
            out[i, :, row, column] = torch.tensor(pixel, dtype=torch.float64)
    return out


def coloured(n, channels=3):
    """Random images; in the colours also every corner of the cube, greys and ties between channels."""
    images = pictures(n, channels, 4, 5)
    if channels == 3:
        images[::2, :, 0] = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]]).double().T
        images[::2, :, 1] = torch.tensor([[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [0.3, 0.3, 0.1], [0.7, 0.2, 0.7]]).double().T
    return images


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("view", [GARISH, Jitter(), Jitter(2.0, 3.0, 4.0, 0.5, 1.0)], ids=["garish", "default", "beyond"])
def test_jitter_equals_a_loop_over_pixels(view, channels):
    ends = torch.tensor([[-1, -1, -1, -1, -1], [-1, LAST, LAST, LAST, LAST], [LAST, 1, 1, 1, 1]]).double()
    images, draws = coloured(16, channels), torch.cat([draws_of(13, 5), ends])
    torch.testing.assert_close(view(images, draws), jitter_loop(view, images, draws), rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", range(4))
def test_each_change_of_colour_equals_torchvisions(number):
    """One of the four alone in float64, to 1e-9: the same sums in another order; torchvision's hue goes through float32."""
    names = ("brightness", "contrast", "saturation", "hue")
    limits = dict(zip(names, (0.9, 0.8, 1.0, 0.5), strict=True))
    view = Jitter(**{name: limits[name] * (name == names[number]) for name in names}, probability=1.0)
    images, draws = coloured(12), draws_of(12, 5)
    result = view(images, draws)
    for i, image in enumerate(images):
        change = limits[names[number]] * draws[i, 1 + number].item()
        expected = getattr(tv, f"adjust_{names[number]}")(image, change if names[number] == "hue" else 1 + change)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=2e-6 if names[number] == "hue" else 1e-9)
    assert not torch.isclose(result, images, atol=1e-3).flatten(1).all(1).any()


def test_jitter_in_float32_equals_torchvisions_four_in_a_row():
    """To 1e-5 only: hue divides by the chroma, which magnifies the rounding of nearly grey pixels."""
    view, images, draws = Jitter(probability=1.0), coloured(20).float(), draws_of(20, 5).float()
    result = view(images, draws)
    for i, image in enumerate(images):
        brightness, contrast, saturation, hue = draws[i, 1:].tolist()
        image = tv.adjust_brightness(image, 1 + view.brightness * brightness)
        image = tv.adjust_contrast(image, 1 + view.contrast * contrast)
        image = tv.adjust_saturation(image, 1 + view.saturation * saturation)
        torch.testing.assert_close(result[i], tv.adjust_hue(image, view.hue * hue), rtol=0, atol=1e-5)


def test_hues_go_from_red_to_green():
    """A third of the circle forwards: red -> green -> blue -> red; half of it: the complement."""
    red, green, blue = torch.eye(3).double().view(3, 1, 3, 1, 1)
    for hue, steps in [(1 / 3, ((red, green), (green, blue), (blue, red))), (0.5, ((red, 1 - red), (green, 1 - green)))]:
        view, draws = Jitter(0, 0, 0, hue, 1.0), torch.tensor([[-1, 0, 0, 0, 1]]).double()
        for before, after in steps:
            torch.testing.assert_close(view(before, draws), after, rtol=0, atol=1e-12)


def test_flip_and_grey_equal_a_loop_over_pixels():
    images, draws = coloured(20), draws_of(20, 1)
    flipped, grey = Flip(0.3)(images, draws), Grey(0.4)(images, draws)
    for i, row, column in product(range(20), range(4), range(5)):
        share = (draws[i, 0].item() + 1) / 2
        assert torch.equal(flipped[i, :, row, column], images[i, :, row, 4 - column if share < 0.3 else column])
        pixel = images[i, :, row, column]
        expected = torch.full_like(pixel, luma_of(pixel.tolist())) if share < 0.4 else pixel
        torch.testing.assert_close(grey[i, :, row, column], expected, rtol=0, atol=1e-12)


def test_grey_is_torchvisions():
    images = coloured(3)
    expected = torch.stack([tv.rgb_to_grayscale(image, 3) for image in images])
    torch.testing.assert_close(Grey(1.0)(images, draws_of(3, 1)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("view", [Flip, Grey, lambda p: Jitter(0.9, 0.8, 1.0, 0.5, p)], ids=["flip", "grey", "jitter"])
def test_probability_0_is_never_and_1_is_always(view):
    draws = torch.cat([torch.tensor([[-1.0], [LAST]]).expand(2, 5), draws_of(200, 5).float()])
    draws[:, 1:] = 0.5  # the jitter's amounts
    images = coloured(1).expand(len(draws), -1, -1, -1)
    never, always = (view(p)(images, draws[:, : view(p).draws]) for p in (0.0, 1.0))
    torch.testing.assert_close(never, images, rtol=0, atol=1e-12)
    assert not torch.isclose(always, images, atol=1e-3).flatten(1).all(1).any()
    assert torch.equal(always, always[:1].expand_as(always))


# ---- chains and the kinds of a configuration


def test_a_chain_hands_each_view_its_own_columns():
    seen = []

    def told(n):
        class View:
            draws = n

            def __call__(self, images, draws):
                seen.append(draws)
                return images + 1

        return View()

    chain, draws = Chain((told(2), told(0), told(3))), draws_of(4, 5)
    images = pictures(4, 1, 2, 2)
    assert chain.draws == 5
    torch.testing.assert_close(chain(images, draws), images + 3)
    assert [columns.shape[1] for columns in seen] == [2, 0, 3]
    assert torch.equal(torch.cat(seen, 1), draws)
    with pytest.raises(RuntimeError, match="split"):
        chain(images, draws_of(4, 6))


def test_a_chain_goes_from_first_to_last():
    images, draws = pictures(6, 3, 6, 6), draws_of(6, 3)
    crop, flip = Crop(4), Flip(1.0)
    first = Chain((crop, flip))(images, draws)
    assert torch.equal(first, crop(images, draws[:, :2]).flip(3))
    assert torch.equal(Chain((flip, crop))(images, draws), crop(images.flip(3), draws[:, 1:]))
    assert not torch.equal(first, Chain((flip, crop))(images, draws[:, [2, 0, 1]]))


def test_the_kinds_are_made_of_the_configuration():
    assert made("none", 32) == Chain(())
    assert made("affine", 32) == Chain((Affine(),))
    assert made("affine", shift=1, rotation=2, scale=3, shear=4) == Chain((Affine(1, 2, 3, 4),))
    assert made("crop_flip", 32) == Chain((Crop(32, 4), Flip(0.5)))
    assert made("crop_flip", 64, padding=0, flip=0.1) == Chain((Crop(64, 0), Flip(0.1)))
    colour = Jitter(0.4, 0.4, 0.4, 0.1, 0.8), Grey(0.2)
    assert made("strong", 32) == Chain((ResizedCrop(32, (0.2, 1.0), (3 / 4, 4 / 3)), Flip(0.5), *colour))
    assert made("strong", 32, area=(1.0, 1.0)) == Chain((Flip(0.5), *colour))
    other = made("strong", 8, area=(0.1, 1.0), ratio=(1, 2), flip=0.3, brightness=0.5, contrast=0.6, saturation=0.7, hue=0.2,
                 jitter=0.9, grey=0.8)  # fmt: skip
    assert other == Chain((ResizedCrop(8, (0.1, 1.0), (1, 2)), Flip(0.3), Jitter(0.5, 0.6, 0.7, 0.2, 0.9), Grey(0.8)))
    assert {kind: made(kind).draws for kind in VIEWS} == {"none": 0, "affine": 6, "crop_flip": 3, "strong": 11}


def test_larger_images_are_fitted_where_no_view_makes_a_window_of_its_own():
    fit = (Resize(4),)
    assert made("none", fit=fit) == Chain(fit)
    assert made("affine", fit=fit) == Chain((*fit, Affine()))
    assert made("crop_flip", fit=fit) == made("crop_flip")
    assert made("strong", fit=fit) == made("strong")
    whole_image = made("strong", fit=fit, area=(1.0, 1.0))
    assert whole_image.views[0] == fit[0]
    assert whole_image.draws == 7
    assert whole_image(pictures(2, 3, 9, 9), draws_of(2, 7)).shape == (2, 3, 4, 4)


def test_none_is_the_image():
    images = pictures(2, 3, 4, 4)
    assert made("none")(images, draw_table(0, 0, 2, 1, 0)[:, 0]) is images


def test_grey_images_pass_strong_and_keep_crop_flip_brightness_and_contrast():
    images, draws = pictures(8, 1, 6, 6), draws_of(8, 11)
    crop, flip, jitter, _ = made("strong", 5).views
    result = made("strong", 5)(images, draws)
    assert result.shape == (8, 1, 5, 5)
    expected = jitter_loop(jitter, flip(crop(images, draws[:, :4]), draws[:, 4:5]), draws[:, 5:10])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


# ---- what every view keeps


@every_view
def test_a_picture_does_not_depend_on_its_batch(view):
    images, draws = pictures(5, 3, 6, 7), draws_of(5, view.draws)
    together, order = view(images, draws), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(view(images[order], draws[order]), together[order], rtol=0, atol=1e-12)
    for i in range(5):
        torch.testing.assert_close(view(images[i : i + 1], draws[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-12)


@every_view
def test_nor_on_the_order_of_its_numbers_in_memory(view):
    images, draws = pictures(4, 3, 6, 7), draws_of(4, view.draws)
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(view(last, draws), view(images, draws), rtol=0, atol=1e-12)


@every_view
def test_nothing_is_changed_in_place(view):
    images, draws = pictures(40, 3, 6, 7), draws_of(40, view.draws)
    images_before, draws_before = images.clone(), draws.clone()
    view(images, draws)
    assert torch.equal(images, images_before)
    assert torch.equal(draws, draws_before)


@every_view
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_stays_and_values_within_0_and_1(view, dtype):
    images = coloured(100).to(dtype).repeat(1, 1, 2, 2)
    draws = draw_table(0, 0, 100, 1, view.draws)[:, 0]
    draws[0], draws[1], draws[2] = -1, LAST, 1
    result = view(images, draws)
    assert result.dtype == dtype
    assert result.shape[:2] == images.shape[:2]
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6  # the weights of a mean of pixels, rounded


@given(
    limits=st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(0, 0.5)),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair))),
    sides=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=100, deadline=None)
def test_strong_stays_within_0_and_1_whatever_its_limits(limits, area, ratio, sides, channels):
    brightness, contrast, saturation, hue = limits
    size, height, width = sides
    colours = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    view = made("strong", size, area=area, ratio=ratio, **colours)
    if area == (1, 1):
        size = (height, width)  # no crop
    result = view(pictures(9, channels, height, width).float().round(decimals=1), draw_table(0, 0, 9, 1, view.draws)[:, 0])
    assert result.shape == ((9, channels, *size) if isinstance(size, tuple) else (9, channels, size, size))
    assert (result >= 0).all()
    assert (result <= 1 + 1e-6).all()


@pytest.mark.parametrize("kind", ["affine", "crop_flip", "strong"])
def test_each_picture_of_a_batch_gets_its_own_change(kind):
    """One image 300 times: no two pictures alike, but for the few windows of a crop; of two views the same holds."""
    view = made(kind, 16)
    images = pictures(1, 3, 16, 16).expand(300, -1, -1, -1)
    table = draw_table(0, 0, 300, 2, view.draws)
    first, second = (view(images, table[:, v]).flatten(1) for v in range(2))
    alike = 1 / 162 if kind == "crop_flip" else 0  # 9 x 9 windows and a flip
    for distances in (torch.cdist(first, second), torch.cdist(first, first).fill_diagonal_(1)):
        assert (distances < 1e-6).double().mean() < max(2 * alike, 1e-9)


# ---- draws


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9, 33])
def test_whole_numbers_come_up_equally_often(n):
    """On every 64th number that a draw can be, those before the ends of the range and the ends themselves."""
    steps = torch.arange(0, 2**24, 64)
    counts = whole(steps / 2**23 - 1, n).bincount(minlength=n)
    assert len(counts) == n
    assert counts.max() - counts.min() <= 1
    ends = whole(torch.tensor([-1, LAST, 1]), n)
    assert ends.tolist() == [0, n - 1, n - 1]


def test_between_is_linear_and_chosen_has_its_share():
    grid = torch.arange(0, 2**24, 64) / 2**23 - 1
    assert torch.equal(between(torch.tensor([-1.0, 0.0, 1.0]), 2, 6), torch.tensor([2.0, 4.0, 6.0]))
    torch.testing.assert_close(between(grid, 0.5, 3).diff(), torch.full((len(grid) - 1,), 2.5 / 2**18), rtol=0, atol=1e-6)
    for probability in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert chosen(grid, probability).float().mean().item() == pytest.approx(probability, abs=1e-5)
    assert not chosen(torch.tensor(-1.0), 0.0)
    assert chosen(torch.tensor(LAST), 1.0)


def test_the_kinds_change_as_often_as_the_configuration_says():
    """Shares of flips, jitters and greys, and the 81 windows of a crop, in 8,100 draws of a table to five standard errors."""
    n = 8100
    images = torch.zeros(1, 3, 4, 4)
    images[:, 0, :, 0] = 1  # a red left edge
    images = images.expand(n, -1, -1, -1)

    def of(**keys):
        keys = dict(area=(1, 1), flip=0, jitter=0, grey=0, brightness=0, contrast=0, saturation=0, hue=0.5) | keys
        view = made("strong", **keys)
        return view(images, draw_table(0, 0, n, 1, view.draws)[:, 0])

    shares = {
        "flip": (of(flip=0.3)[:, 0, 0, 3] > 0.5, 0.3),
        "jitter": (of(jitter=0.8)[:, 1:, 0, 0].sum(1) > 0, 0.8),  # no longer red
        "grey": (of(grey=0.2)[:, 1, 0, 0] > 0.1, 0.2),
    }
    for name, (found, share) in shares.items():
        assert abs(found.float().mean() - share) < 5 * math.sqrt(share * (1 - share) / n), name
    # the places of the windows: the image's only white pixel says which
    view = made("crop_flip", 9, padding=4, flip=0)
    spot = torch.zeros(1, 1, 9, 9)
    spot[..., 4, 4] = 1
    places = view(spot.expand(n, -1, -1, -1), draw_table(0, 0, n, 1, view.draws)[:, 0]).flatten(1)
    assert torch.equal(places.sum(1), torch.ones(n))
    chi2 = (places.sum(0) - n / 81).square().sum() / (n / 81)
    assert abs(chi2 - 80) < 5 * math.sqrt(2 * 80)


def test_draw_table_is_a_function_of_seed_and_epoch():
    table = draw_table(3, 7, 10, 2, 6)
    assert table.shape == (10, 2, 6)
    torch.manual_seed(99)
    assert torch.equal(table, draw_table(3, 7, 10, 2, 6))
    for seed, epoch in [(4, 7), (3, 8), (7, 3)]:
        assert not torch.isclose(table, draw_table(seed, epoch, 10, 2, 6)).any()


def test_draws_are_uniform_and_their_own():
    """Within +-1, mean 0 and variance 1/3 to five standard errors; no two pictures, views or numbers share a draw."""
    table = draw_table(0, 0, 3000, 2, 6)
    assert -1 <= table.min() < -0.99 < 0.99 < table.max() <= 1
    assert table.mean((0, 1)).abs().max() < 5 * math.sqrt(1 / 3 / 6000)
    assert (table.square().mean((0, 1)) - 1 / 3).abs().max() < 5 * math.sqrt((1 / 5 - 1 / 9) / 6000)
    correlation = torch.corrcoef(table.flatten(1).T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(3000)
    assert (table[1:] != table[:-1]).flatten(1).all(1).float().mean() > 0.99


def test_the_same_picture_whatever_the_order_of_the_epoch():
    """Batches of another order and size, each indexing the epoch's table by sample."""
    images, table = pictures(6, 1, 4, 4), draw_table(0, 0, 6, 1, 6)[:, 0]
    together = WILD(images, table)
    for order, size in [([5, 1, 0, 3, 2, 4], 2), ([0, 2, 4, 1, 3, 5], 3)]:
        for batch in torch.tensor(order).split(size):
            torch.testing.assert_close(WILD(images[batch], table[batch]), together[batch], rtol=0, atol=1e-12)


def test_a_view_does_not_depend_on_how_many_there_are():
    assert torch.equal(draw_table(0, 3, 20, 1, 6)[:, 0], draw_table(0, 3, 20, 2, 6)[:, 0])
    two = draw_table(0, 3, 20, 2, 6)
    assert not torch.equal(two[:, 0], two[:, 1])


@pytest.mark.parametrize(
    "chain",
    [
        Chain((Crop(8, 2), Flip())),
        Chain((Crop(5),)),
        Chain((Flip(), Crop(4, 1), Flip(0.3))),
        Chain((Flip(), Grey(0.5))),
        Chain(()),
    ],
    ids=["crop_flip", "window", "flip first", "with grey", "none"],
)
def test_bytes_are_moved_as_floats_are(chain):
    stored = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    draws = torch.rand(20, chain.draws, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def units(images):
        return images.to(torch.float32).div_(255)

    assert torch.equal(chain.of_bytes(stored, draws, units), chain(units(stored), draws))
