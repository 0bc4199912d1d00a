"""Nearest images against loops over all pairs, and the picture of them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import saved_pages, untrained

from dim.config import UserError
from dim.evals import neighbours as module
from dim.evals.neighbours import METRICS, agreement, nearest
from dim.evals.reconstruction import stored
from dim.figures import drawing, samples
from dim.figures import neighbours as figure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- nearest


def l1(a, b):
    return sum(abs(p - q) for p, q in zip(a, b, strict=True))


def minus_cosine(a, b):
    return -sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize(("metric", "loop"), [("L1 distance", l1), ("cosine", minus_cosine)])
def test_nearest_equals_a_loop_over_all_pairs(metric, loop):
    x, queries = normal(40, 6), normal(7, 6, seed=1) * 3
    found = nearest(x, queries, 5, metric)
    for query, places in zip(queries.tolist(), found.tolist(), strict=True):
        assert places == sorted(range(40), key=lambda i: loop(query, x[i].tolist()))[:5]


def test_the_metrics_differ_where_they_should():
    x = torch.tensor([[10.0, 0.5], [0.0, 1.0], [1.5, 1.5]])
    query = torch.tensor([[1.0, 0.0]])
    assert nearest(x, query, 3, "cosine").tolist() == [[0, 2, 1]]
    assert nearest(x, query, 3, "L1 distance")[0, 0] in (1, 2)
    assert nearest(x, query, 3, "L1 distance")[0, 2] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_change_nothing(metric, monkeypatch):
    x, queries = normal(40, 6), normal(7, 6, seed=1)
    whole = nearest(x, queries, 5, metric)
    monkeypatch.setattr(module, "PAIRS", 3 * 40)
    monkeypatch.setattr(module.knn, "CHUNK", 3)
    assert torch.equal(nearest(x, queries, 5, metric), whole)
    monkeypatch.setattr(module, "PAIRS", 1)  # less than one query's
    assert torch.equal(nearest(x, queries, 5, metric), whole)


def test_distances_are_held_for_few_queries_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 100)
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **k: sizes.append(cdist(*a, **k).numel()) or cdist(*a, **k))
    nearest(normal(40, 6), normal(7, 6, seed=1), 5, "L1 distance")
    assert sizes == [80, 80, 80, 40]


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input_is_one_line(metric):
    x = normal(4, 3)
    assert sorted(nearest(x, x[:1], 4, metric)[0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"^5 nearest images are asked for among 4$"):
        nearest(x, x, 5, metric)
    for broken in (math.nan, math.inf):
        bad = x.clone()
        bad[2, 1] = broken
        for pair in ((bad, x), (x, bad)):
            with pytest.raises(UserError, match="need finite features"):
                nearest(*pair, 1, metric)


def test_agreement_counts_equal_labels_beside_chance():
    labels, own = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 2, 3])
    places = torch.tensor([[0, 3], [4, 5], [1, 2]])
    share, chance = agreement(labels, own, places)
    assert share == pytest.approx((1 + 2 + 0) / 6)
    assert chance == pytest.approx((3 / 6 + 2 / 6 + 0) / 3)  # no candidate has label 3


# ---- the picture


@pytest.fixture
def pages(monkeypatch):
    return saved_pages(monkeypatch, drawing)


def test_every_picture_and_label_is_what_it_says(tmp_path, pages):
    config, data, state = untrained()
    assert figure.draw(tmp_path, config, data, state) == [tmp_path / "figures" / "neighbours.png"]
    _, _, (panel,), caption = pages[0]
    images, candidates = stored(data, data.test), stored(data, data.train)
    encoder = samples.trained_encoder(config, data, state)
    y, x = (samples.codes(encoder, data, part, torch.arange(len(part))).double() for part in (data.test, data.train))
    assert len(panel.strips) == 10
    shares = []
    for label, strip in enumerate(panel.strips):
        (query,), by_l1, by_cosine = strip.groups
        (place,) = [i for i in range(len(images)) if np.array_equal(images[i], query.picture)]
        assert data.test.labels[place] == label
        assert (query.label, query.colour) == (str(label), "")
        orders = [(x - y[place]).abs().sum(1), 1 - torch.nn.functional.cosine_similarity(x, y[place][None])]
        for tiles, distance in zip((by_l1, by_cosine), orders, strict=True):
            for tile, i in zip(tiles, distance.argsort()[:5].tolist(), strict=True):
                assert np.array_equal(tile.picture, candidates[i])
                right = data.train.labels[i] == label
                assert tile.label == str(data.train.labels[i].item())
                assert tile.colour == (drawing.BLUE if right else drawing.VERMILLION)
    for metric in METRICS:
        near = nearest(x, y, 5, metric)
        shares.append((data.train.labels[near] == data.test.labels[:, None]).double().mean().item())
    chance = (data.train.labels[:, None] == data.test.labels).double().mean().item()
    assert f"each of 30 such images {100 * shares[0]:.1f}% (L1 distance) and {100 * shares[1]:.1f}% (cosine)" in caption[2]
    assert f"of images drawn blindly {100 * chance:.1f}%" in caption[2]
    assert caption[1].startswith(
        "Queries: 10 of 30 test images, drawn, one of each class. Right of each: those 5 of 80 training"
    )


def test_without_labels_and_test_split_a_tenth_asks_the_rest(tmp_path, pages):
    config, data, state = untrained(labelled=False)
    figure.draw(tmp_path, config, data, state)
    _, _, (panel,), caption = pages[0]
    assert len(panel.strips) == 8
    queries = {strip.groups[0][0].picture.tobytes() for strip in panel.strips}
    for strip in panel.strips:
        assert {tile.label + tile.colour for group in strip.groups for tile in group} == {""}
        assert not queries & {tile.picture.tobytes() for group in strip.groups[1:] for tile in group}
    assert len(caption) == 2
    assert "8 drawn training images (there is no test split: the encoder was trained on them too). Right of each" in caption[1]
    assert "those 5 of 72 training images" in caption[1]


def test_the_page_is_a_png_with_margins(tmp_path):
    config, data, state = untrained()
    (path,) = figure.draw(tmp_path, config, data, state)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1280
        assert 1000 < image.height < 2400
        pixels, words = np.asarray(image.convert("L")), image.text["Description"]
    assert (pixels[:, -20:] > 250).all()
    assert (pixels[:, :20] > 250).all()
    assert (pixels[-8:] > 250).all()
    assert words.startswith(f"Run {tmp_path.name}: 7 steps of 128 images, seed 0. digits, 80 training images 1 x 8 x 8")


def test_one_image_of_each_of_at_most_ten_classes_is_shown():
    labels = torch.tensor([1, 1, 0, 3, 0, 9])
    assert figure.rows_shown(labels, 10).tolist() == [2, 0, 3, 5]
    many = torch.arange(30)
    assert figure.rows_shown(many, 30).tolist() == list(range(10))
    assert figure.rows_shown(torch.full((3,), -1), 0).tolist() == [0, 1, 2]


def test_too_few_images_are_one_line(tmp_path):
    for labelled, train, words in ((True, 4, "has 4 and 30"), (False, 5, "has 5 and 0")):
        with pytest.raises(UserError, match=f"^neighbours need 5 training images and 1 to ask about: digits {words}$"):
            figure.draw(tmp_path, *untrained(labelled, train))


def test_a_damaged_encoder_is_one_line(tmp_path):
    config, data, state = untrained()
    state["encoder"]["layers.y.bias"][3] = math.nan
    with pytest.raises(UserError, match=r"^the codes y of some of 80 images are not finite"):
        figure.draw(tmp_path, config, data, state)
