"""Sections: each row of an evaluator is made of the features that its name says, with the settings that were asked for."""

import pytest
import torch
from conftest import made_data
from torch import nn

from dim.evals import mlp, protocol, sections
from dim.evals.linear import LINEAR
from dim.evals.sections import Features


@pytest.fixture
def made() -> Features:
    """Layers a [n, 3] and b [n, 2] of 300 training and 60 test images."""
    draws = torch.Generator().manual_seed(0)
    a, b = (3 + 2 * torch.randn(360, width, generator=draws) for width in (3, 2))
    return Features({"a": (a[:300], a[300:]), "b": (b[:300], b[300:])}, nn.Identity())


def cells(section: sections.Section, made: Features) -> dict[str, dict]:
    """The numbers of each row of the trained encoder."""
    return {row.name: row.act(made) for row in section.rows if row.kind == "trained"}


def test_standardised_features_are_those_of_the_layer_asked_for(made):
    for layer in ("a", "b", "b", "a"):
        found, expected = made.standardised(layer), protocol.standardised(*made.of(layer))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert made.standardised("a")[0] is made.standardised("a")[0]  # kept


def test_every_row_of_a_probe_is_standardised_but_raw_pixels_unscaled(made, monkeypatch):
    given = {}
    monkeypatch.setattr(protocol, "probe", lambda kind, name, *pair, **more: given.update({name: pair}) or {})
    monkeypatch.setitem(protocol.COLUMNS, "made", protocol.Columns(resampled=False, unscaled=True))
    made.parts["x"], made.parts["y"] = made.parts["a"], made.parts["b"]
    for row in sections.probe("linear", LINEAR, made_data(), ["y"], (), 0).rows:
        row.act(made)
    assert list(given) == ["raw pixels, unscaled", "raw pixels", "random y", "trained y"]
    for name, pair in given.items():
        plain = made.of("y" if name.endswith("y") else "x")
        expected = plain if name == "raw pixels, unscaled" else protocol.standardised(*plain)
        assert all(torch.equal(one, other) for one, other in zip(pair, expected, strict=True))


def estimate(key: str, nats: float) -> dict:
    """What an estimate returns, in short."""
    terms = {"positive_term": nats + 1, "negative_term": 1.0, "standard_error": 0.1, "certifiable_nats": 4.0}
    return {key: nats, "converged": nats > 1, **terms}


def test_mutual_information_is_that_of_the_training_features_with_each_seed(made, monkeypatch):
    given = []

    def noted(x, z, seed):
        given.append((x, z, seed))
        return estimate("mi_nats", 1.0 + seed)

    monkeypatch.setattr(sections, "mine", noted)
    found = cells(sections.mutual_information(made_data(), [("a", "b")]), made)["trained a:b"]
    assert [seed for *_, seed in given] == [0, 1, 2]
    for x, z, _ in given:
        assert torch.equal(x, made.of("a")[0])
        assert torch.equal(z, made.of("b")[0])
    assert (found["mi_nats"], found["sd"], found["converged"]) == pytest.approx((2, 1, 2 / 3))
    assert (found["positive_term"], found["negative_term"]) == pytest.approx((3, 1))


def test_total_correlation_is_that_of_the_training_features_as_they_are_and_squashed(made, monkeypatch):
    given = []

    def noted(y, seed, squash=False, ranks=True):
        given.append((y, seed, squash, ranks))
        return estimate("total_correlation_nats", seed + 10.0 * squash)

    monkeypatch.setattr(sections, "ndm", noted)
    found = cells(sections.total_correlation(made_data(), ["b"]), made)
    assert [others for _, *others in given] == [[seed, squash, False] for squash in (False, True) for seed in range(3)]
    assert all(torch.equal(y, made.of("b")[0]) for y, *_ in given)
    assert {name: cell["total_correlation_nats"] for name, cell in found.items()} == {
        "trained b": pytest.approx(1),
        "trained b, squashed": pytest.approx(11),
    }


def test_fine_tuning_is_asked_for_as_said_and_spreads_over_its_seeds(made, monkeypatch):
    asked = []

    def noted(encoder, data, labels_per_class, view=None, **settings):
        asked.append((encoder, labels_per_class, view, settings))
        return {"accuracy": 0.5 + 0.1 * settings["seed"]}

    def view(images, draws):
        return images

    monkeypatch.setattr(sections.finetune, "finetune", noted)
    losses = {"pseudo": 0.5}
    found = cells(sections.fine_tuned(made_data(), ["conv", "y"], [10, 2], losses, view), made)
    assert [(count, settings) for _, count, _, settings in asked] == [
        (count, {"layer": layer, "losses": losses, "seed": seed})
        for layer in ("conv", "y")
        for count in (10, 2)
        for seed in range(3)
    ]
    assert all(encoder is made.encoder and given is view for encoder, _, given, _ in asked)
    assert list(found) == ["trained conv", "trained y"]
    for row in found.values():
        assert list(row) == ["10", "2"]
        for cell in row.values():
            assert (cell["accuracy"], cell["sd"]) == (pytest.approx(0.6), pytest.approx(0.1))


def test_the_papers_mlp_sees_features_as_they_are(made, monkeypatch):
    given, data = [], made_data()
    monkeypatch.setattr(mlp, "paper", lambda *tensors: given.append(tensors) or {"accuracy": 0.5})
    assert cells(sections.paper(data, ["a", "b"]), made) == {f"trained {layer}": {"all": {"accuracy": 0.5}} for layer in "ab"}
    for layer, (x, labels, x_test, test_labels) in zip("ab", given, strict=True):
        assert all(torch.equal(one, other) for one, other in zip((x, x_test), made.of(layer), strict=True))
        assert torch.equal(labels, data.train.labels)
        assert torch.equal(test_labels, data.test.labels)
