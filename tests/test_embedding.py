"""The embedding: clouds stay clouds, and the picture says what it shows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from untrained import saved_pages, untrained

from dim.config import UserError
from dim.data import Split
from dim.figures import drawing, samples
from dim.figures import embedding as figure
from dim.figures.drawing import Scatter


@pytest.fixture
def pages(monkeypatch):
    return saved_pages(monkeypatch, drawing)


def clouds(n=90, d=5, apart=20.0):
    """Three clouds of n / 3 codes each [n, d], and which each belongs to."""
    labels = torch.arange(n) % 3
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return noise + apart * torch.eye(d)[labels], labels


def test_clouds_stay_clouds():
    y, labels = clouds()
    points, trust = figure.embedded(y)
    assert points.shape == (90, 2)
    distance = torch.cdist(torch.from_numpy(points), torch.from_numpy(points)).fill_diagonal_(math.inf)
    assert torch.equal(labels[distance.argmin(1)], labels)
    assert trust > 0.9


def test_trustworthiness_equals_its_definition():
    y = torch.randn(60, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, trust = figure.embedded(y)
    n, k, cost = 60, 10, 0
    for i in range(n):
        near = sorted(set(range(n)) - {i}, key=lambda j: math.dist(y[i].tolist(), y[j].tolist()))
        rank = {j: place for place, j in enumerate(near, 1)}
        shown = sorted(rank, key=lambda j: math.dist(points[i], points[j]))[:k]
        cost += sum(max(0, rank[j] - k) for j in shown)
    assert trust == pytest.approx(1 - cost * 2 / (n * k * (2 * n - 3 * k - 1)), abs=1e-9)
    assert 0.5 < trust < 0.9  # noise in many dimensions has no picture


def test_the_same_codes_give_the_same_picture():
    y, _ = clouds(30)
    before = np.random.get_state()
    first = figure.embedded(y)[0]
    assert np.array_equal(figure.embedded(y)[0], first)
    after = np.random.get_state()
    assert (after[1] == before[1]).all()
    assert after[2] == before[2]


def test_the_perplexity_fits_few_points():
    assert figure.perplexity(2_000) == 30
    assert figure.perplexity(31) == 10


def test_bad_codes_are_one_line():
    y, _ = clouds()
    with pytest.raises(
        UserError, match=r"^an embedding needs 21 images and codes of 2 numbers: there are 20 images and codes of 5$"
    ):
        figure.embedded(y[:20])
    with pytest.raises(UserError, match=r"there are 90 images and codes of 1$"):
        figure.embedded(y[:, :1])
    with pytest.raises(UserError, match=r"^the codes y of 90 images are all equal: they collapsed"):
        figure.embedded(torch.full((90, 5), 0.1))
    y[3, 1] = math.nan
    with pytest.raises(UserError, match="not finite"):
        figure.embedded(y)


def test_the_picture_shows_the_points_with_their_labels(tmp_path, pages):
    config, data, state = untrained()
    (path,) = figure.draw(tmp_path, config, data, state)
    _, _, (panel,), caption = pages[0]
    assert panel.points.shape == (30, 2)
    assert sorted(panel.labels.tolist()) == sorted(data.test.labels.tolist())
    assert panel.names == tuple("0123456789")
    assert caption[1].startswith("All 30 test images, not augmented")
    assert "perplexity 9.67" in caption[1]
    assert "Labels colour the points and place none." in caption[1]
    assert "Distances between clusters, their sizes and the axes mean nothing" in caption[2]
    with Image.open(path) as image:
        assert image.width == 1280
        pixels = np.asarray(image.convert("L"))
    assert (pixels[:, -20:] > 250).all()
    assert (pixels[:, :20] > 250).all()


def test_other_images_than_the_encoder_was_trained_on_are_said_and_leave_the_runs_own_picture(tmp_path, pages):
    config, data, state = untrained()
    shown = replace(data, name="mnist", train=Split(data.train.images[:40], data.train.labels[:40]))
    (own,) = figure.draw(tmp_path, config, data, state)
    (path,) = figure.draw(tmp_path, config, shown, state, "mnist")
    assert (own.name, path.name) == ("embedding.png", "embedding_mnist.png")
    (*_, of_own), (_, _, (panel,), of_other) = pages
    assert "seed 0. digits, 80 training images 1 x 8 x 8; " in of_own[0]
    assert "Shown here" not in of_own[0]
    assert "seed 0. digits, 80 training images 1 x 8 x 8; " in of_other[0]
    assert of_other[0].endswith(" Shown here: mnist, another data set, 40 training and 30 test images.")
    assert of_other[1].startswith("All 30 mnist test images, not augmented")
    assert panel.title == "30 mnist test images"


def test_each_point_is_the_code_of_an_image_with_its_label(tmp_path, pages, monkeypatch):
    config, data, state = untrained()
    monkeypatch.setattr(figure, "MOST", 20)
    monkeypatch.setattr(figure, "embedded", lambda y: (y[:, :2].double().numpy(), 1.0))
    figure.draw(tmp_path, config, data, state)
    (panel,), caption = pages[0][2:]
    encoder = samples.trained_encoder(config, data, state)
    y = samples.codes(encoder, data, data.test, torch.arange(30))[:, :2].double().numpy()
    assert len(panel.points) == 20
    for point, label in zip(panel.points, panel.labels, strict=True):
        assert label == data.test.labels[np.abs(y - point).sum(1).argmin()]
    assert caption[1].startswith("20 of 30 test images, drawn, not augmented")


def test_without_labels_there_is_one_colour(tmp_path, pages):
    config, data, state = untrained(labelled=False, train=300)
    figure.draw(tmp_path, config, data, state)
    _, _, (panel,), caption = pages[0]
    assert panel.names == ()
    assert "Labels" not in caption[1]
    assert caption[1].startswith("30 drawn training images")
    (axes,) = drawing.page("title", [panel], []).axes
    (group,) = axes.collections
    assert len(group.get_offsets()) == 30
    assert [to_hex(colour).upper() for colour in group.get_facecolors()] == [drawing.BLUE]


@pytest.mark.parametrize(("classes", "beside"), [(3, "dog"), (10, "truck"), (12, "12 classes")])
def test_few_classes_have_colours_and_names_and_many_a_scale(classes, beside):
    labels = np.arange(60) % classes
    names = ["cat", "frog", "dog", "horse", "ship", "car", "deer", "bird", "plane", "truck", "x", "y"][:classes]
    figure_ = drawing.page("title", [Scatter("panel", np.random.default_rng(0).normal(size=(60, 2)), labels, names)], [])
    (axes,) = figure_.axes
    words = [text.get_text() for text in axes.texts]
    words += [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    assert any(beside in text for text in words)
    shown = sum(len(group.get_offsets()) for group in axes.collections)
    assert shown == 60
    if classes <= 10:
        drawn = {}
        for group in axes.collections:
            for point, colour in zip(group.get_offsets(), group.get_facecolors(), strict=True):
                drawn[tuple(point)] = colour[:3]
        assert len({tuple(colour) for colour in drawn.values()}) == classes
        assert len(axes.get_legend().legend_handles) == classes


def test_each_class_has_its_colour_in_points_and_legend():
    labels = np.array([5, 0, 1, 5, 0, 2])  # 0 and 5 share a shape
    points = np.arange(12.0).reshape(6, 2)
    (axes,) = drawing.page("title", [Scatter("panel", points, labels, "abcdef")], []).axes
    legend = {h.get_label(): (h.get_color(), h.get_marker()) for h in axes.get_legend().legend_handles}
    assert len({mark for _, mark in legend.values()}) == 5
    assert len({*legend.values()}) == 6
    found = {}
    for group in axes.collections:
        for point, colour in zip(group.get_offsets(), group.get_facecolors(), strict=True):
            found[tuple(point.tolist())] = tuple(colour[:3])
    for point, label in zip(points, labels, strict=True):
        assert found[tuple(point.tolist())] == pytest.approx(to_rgb(legend["abcdef"[label]][0]))
