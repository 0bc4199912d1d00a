"""Views against the docstring's definition, pixel by pixel; draws as a function of seed, epoch and sample."""

import math

import pytest
import torch

from dim.views import VIEWS, Affine, Identity, draw_table

WILD = Affine(shift=1.7, rotation=70.0, scale=0.5, shear=0.6)
SHAPES = [(3, 2, 5, 5), (3, 1, 4, 7), (2, 3, 6, 3)]


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def draws_of(n, seed=0):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def read(image, x, y):
    """image [H, W] at column x, row y, between pixels: bilinear, zeros outside."""
    left, top, value = math.floor(x), math.floor(y), 0.0
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                value += row_weight * weight * image[row, column].item()
    return value


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


def test_a_picture_does_not_depend_on_its_batch():
    images, draws = pictures(5, 2, 4, 6), draws_of(5)
    whole, order = WILD(images, draws), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(WILD(images[order], draws[order]), whole[order], rtol=0, atol=1e-12)
    for i in range(5):
        torch.testing.assert_close(WILD(images[i : i + 1], draws[i : i + 1]), whole[i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_shape_stay(dtype):
    images = pictures(2, 3, 4, 5).to(dtype)
    result = Affine()(images, draw_table(0, 0, 2, 1, 6)[:, 0])
    assert result.dtype == dtype
    assert result.shape == images.shape


def test_identity():
    images = pictures(2, 3, 4, 4)
    assert Identity()(images, draw_table(0, 0, 2, 1, Identity.draws)[:, 0]) is images


def test_the_names_in_a_configuration():
    assert {"none": Identity, "affine": Affine} == VIEWS
    assert Affine.draws == 6


# ---- draws


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
    whole = WILD(images, table)
    for order, size in [([5, 1, 0, 3, 2, 4], 2), ([0, 2, 4, 1, 3, 5], 3)]:
        for batch in torch.tensor(order).split(size):
            torch.testing.assert_close(WILD(images[batch], table[batch]), whole[batch], rtol=0, atol=1e-12)


def test_a_view_does_not_depend_on_how_many_there_are():
    assert torch.equal(draw_table(0, 3, 20, 1, 6)[:, 0], draw_table(0, 3, 20, 2, 6)[:, 0])
    two = draw_table(0, 3, 20, 2, 6)
    assert not torch.equal(two[:, 0], two[:, 1])
