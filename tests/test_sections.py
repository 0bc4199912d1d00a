"""Sections: each row of an evaluator is made of the features that its name says, with the settings that were asked for."""

import statistics
from functools import partial

import pytest
import small_sets
import torch
from conftest import made_data
from torch import nn

from dim import datasets
from dim.build import PROBES
from dim.config import Data, UserError
from dim.encoders import Encoder
from dim.evals import mlp, protocol, sections
from dim.evals.sections import Features


@pytest.fixture
def made() -> Features:
    """Layers a [n, 3] and b [n, 2] of 300 training and 60 test images."""
    draws = torch.Generator().manual_seed(0)
    a, b = (3 + 2 * torch.randn(360, width, generator=draws) for width in (3, 2))
    return Features({"a": (a[:300], a[300:]), "b": (b[:300], b[300:])}, nn.Identity())


def cells(section: sections.Section, made: Features) -> dict[str, dict]:
    """The numbers of each row of the trained encoder."""
    return {row.name: row.act(made, {}) for row in section.rows if row.kind == "trained"}


def test_standardised_features_are_those_of_the_layer_asked_for(made):
    for layer in ("a", "b", "b", "a"):
        found, expected = made.standardised(layer), protocol.standardised(*made.of(layer))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert made.standardised("a")[0] is made.standardised("a")[0]  # kept


def test_a_probe_sees_standardised_features_but_for_the_row_that_says_unscaled(made, monkeypatch):
    given = {}
    monkeypatch.setattr(protocol, "probe", lambda kind, name, *pair, **_: given.update({name: pair}))
    made.parts["x"] = made.of("b")
    for row in sections.probe("linear", PROBES["linear"], made_data("digits"), ["a"], [], 0).rows:
        row.act(made, {})
    for name, layer in (("raw pixels, unscaled", ""), ("raw pixels", "x"), ("random a", "a"), ("trained a", "a")):
        expected = protocol.standardised(*made.of(layer)) if layer else made.of("x")
        assert all(torch.equal(one, other) for one, other in zip(given.pop(name), expected, strict=True))
    assert not given


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


def test_stl10_is_fine_tuned_on_all_labels_and_on_each_official_fold_or_on_any_number_a_class(tmp_path, monkeypatch):
    """The paper's column SS. No label chooses anything, so a class's every label can be asked for: 6 in these files."""
    small_sets.stl10(monkeypatch, tmp_path)
    stl10 = datasets.stl10(Data("stl10", str(tmp_path), fit="resize"), 8)
    given, results, before = [], [], partial(sections.finetune.finetune, steps=1)

    def noted(encoder, data, labels, view, seed, **settings):
        given.append((labels, seed))
        results.append(before(encoder, data, labels, view, seed=seed, **settings))
        return results[-1]

    monkeypatch.setattr(sections.finetune, "finetune", noted)
    section = sections.fine_tuned(stl10, ["y"], [], {}, None)
    cells_ = cells(section, Features({}, Encoder("small8x8", 3)))["trained y"]
    assert list(section.columns) == list(cells_) == ["all", "folds"]
    assert given[:3] == [(None, 0), (None, 1), (None, 2)]
    assert [seed for _, seed in given[3:]] == list(range(10))
    assert all(torch.equal(index, fold) for (index, _), fold in zip(given[3:], stl10.folds, strict=True))
    assert [run["labels"] for run in results] == [60] * 3 + [20] * 10
    scores = [run["accuracy"] for run in results[3:]]
    assert cells_["folds"]["accuracy"] == pytest.approx(statistics.fmean(scores))
    assert cells_["folds"]["sd"] == pytest.approx(statistics.stdev(scores))
    assert "labels of the 60 training images" in section.heading["protocol"]
    assert "over 3 seeds" in section.heading["protocol"]
    assert section.columns == {
        "all": "",
        "folds": "folds: over the 10 official folds of 20 labels, each with a seed of its own",
    }
    few = sections.fine_tuned(stl10, ["y"], [6, 1], {}, None).columns
    assert few == dict.fromkeys(["6", "1"], "columns with few labels: each seed with a draw of labels")
    with pytest.raises(UserError, match="labels_per_class is 7: stl10 has from 1 to 6 in each class"):
        sections.fine_tuned(stl10, ["y"], [7], {}, None)
    with pytest.raises(UserError, match="from 1 to 5 in each beside the validation part"):
        protocol.columns_for(stl10, [6])  # a probe's knob is chosen on labels of its own


def test_protocols_say_what_a_reader_must_know():
    data = made_data()
    of_decoder = sections.decoded(data, ["y"]).heading["protocol"]
    assert "one decoder a row, of 2,000 steps, its weights and order of images of seed 0: no spread" in of_decoder
    measures = (sections.mutual_information(data, [("x", "y")]), sections.total_correlation(data, ["y"]))
    for said in (of_decoder, *(section.heading["protocol"] for section in measures)):
        assert "the same net with its first weights (random; " in said
        assert "where asked for, trained with labels (supervised)" in said
    of_svm = sections.probe("svm", PROBES["svm"], data, ["y"], [], 0).heading["protocol"]
    assert "a linear SVM, squared hinge (the paper's has the hinge), one class against the rest, on frozen features" in of_svm


def test_the_papers_mlp_sees_features_as_they_are(made, monkeypatch):
    given, data = [], made_data()
    monkeypatch.setattr(mlp, "paper", lambda *tensors: given.append(tensors) or {"accuracy": 0.5})
    assert cells(sections.paper(data, ["a", "b"]), made) == {f"trained {layer}": {"all": {"accuracy": 0.5}} for layer in "ab"}
    for layer, (x, labels, x_test, test_labels) in zip("ab", given, strict=True):
        assert all(torch.equal(one, other) for one, other in zip((x, x_test), made.of(layer), strict=True))
        assert torch.equal(labels, data.train.labels)
        assert torch.equal(test_labels, data.test.labels)
