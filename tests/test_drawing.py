"""Pages of pictures: every pixel of a picture is a square of pixels of the page."""

import io

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from dim.figures import drawing
from dim.figures.drawing import DPI, EDGE, FAR, NEAR, SIDE, TILE, UNDER, Pictures, Strip, Tile

LEFT, TOP = round(EDGE * DPI), round(0.8 * DPI)  # pixels: where the first picture begins


def rendered(panel, caption=("words",)):
    """A page as pixels [height, width, 3]."""
    file = io.BytesIO()
    with rc_context(drawing.LOOK):
        drawing.page("title", [panel], list(caption)).savefig(file, format="png", dpi=DPI)
    return np.asarray(Image.open(file).convert("RGB"))


def noise(channels, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, size, size), dtype=np.uint8)


def enlarged(picture, factor):
    return np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, 28), (3, 96)])
def test_pixels_of_a_picture_are_squares_of_the_page(channels, size):
    pictures = [noise(channels, size, seed) for seed in range(3)]
    strips = [Strip([[Tile(pictures[0])], [Tile(pictures[1], "one"), Tile(pictures[2], "two", drawing.BLUE)]], "row")] * 2
    for caption in ((), ("words",), ("a long one " * 30, "more")):
        page = rendered(Pictures(["left", "right"], strips), caption)
        assert page.shape[1] == 1280
        factor = TILE // size
        box = factor * size
        middle = (TILE - box) // 2
        for row in range(2):
            y = TOP + row * (TILE + UNDER + FAR) + middle
            for place, picture in enumerate(pictures):
                x = LEFT + SIDE + place * (TILE + NEAR) + (FAR - NEAR if place else 0) + middle
                assert np.array_equal(page[y : y + box, x : x + box], enlarged(picture, factor)), (row, place)


def test_a_picture_that_does_not_fit_is_smoothed_to_the_same_size():
    for size in (33, 64, 224):
        flat = np.full((3, size, size), 60, np.uint8)
        page = rendered(Pictures(["head"], [Strip([[Tile(flat)]])]))
        dark = (page == 60).all(2)
        assert abs(dark.sum() - TILE**2) < 4 * TILE
        assert dark[TOP + TILE // 2, LEFT + TILE // 2]


def test_names_and_long_labels_stay_on_the_page():
    tiles = [Tile(noise(1, 8), "a name of many letters", drawing.VERMILLION)] * 10
    page = rendered(Pictures(["head"], [Strip([tiles], "from conv")] * 3))
    assert (page[:, :20] > 250).all()
    assert (page[:, -20:] > 250).all()
    (axes,) = drawing.page("title", [Pictures(["head"], [Strip([tiles])])], []).axes
    assert {text.get_text() for text in axes.texts} == {"", "head", "a name of.."}


def test_rows_that_belong_together_are_close():
    tile = Tile(noise(1, 8))
    strips = [Strip([[tile]]), Strip([[tile._replace(label="x")]], close=True), Strip([[tile]])]
    assert drawing.tops(Pictures([""], strips)) == [
        0,
        TILE + NEAR,
        2 * TILE + NEAR + UNDER + FAR,
        3 * TILE + NEAR + UNDER + FAR,
    ]
