"""The linear probe against its definition, and the protocol around it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from dim import data, datasets
from dim.config import Data
from dim.encoders import Encoder
from dim.evals import linear
from dim.evals.features import features, raw_pixels, set_statistics


@pytest.fixture
def clouds():
    """Three overlapping clouds in six correlated dimensions: x [300, 6] float64, labels [300]."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 6, generator=draws, dtype=torch.float64) + 1.5 * torch.eye(6, dtype=torch.float64)[labels]
    return x @ torch.randn(6, 6, generator=draws, dtype=torch.float64) + 3, labels


def loss_by_loops(weight, bias, x, labels, penalty):
    total = 0.0
    for row, label in zip(x, labels, strict=True):
        logits = [float(sum(row[i] * weight[i, c] for i in range(len(row))) + bias[c]) for c in range(weight.shape[1])]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[label]
    return total / len(x) + float((weight**2).sum()) / (2 * penalty * len(x))


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_probe_minimises_its_definition(clouds, penalty):
    x, labels = clouds[0][:60], clouds[1][:60]
    probe = linear.fit(x, labels, penalty)
    best = loss_by_loops(probe.weight, probe.bias, x, labels, penalty)
    draws = torch.Generator().manual_seed(1)
    for _ in range(10):
        step = 0.03 * torch.randn(probe.weight.shape, generator=draws), 0.03 * torch.randn(3, generator=draws)
        assert loss_by_loops(probe.weight + step[0], probe.bias + step[1], x, labels, penalty) > best


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("images", [300, 5])  # more and fewer than features
def test_the_probe_is_scikit_learns_logistic_regression(clouds, monkeypatch, penalty, images):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-8)
    x, labels = clouds[0][:images], clouds[1][:images]
    probe = linear.fit(x, labels, penalty)
    oracle = LogisticRegression(C=penalty, tol=1e-9, max_iter=20_000).fit(x.numpy(), labels.numpy())
    chances = torch.softmax(x @ probe.weight + probe.bias, 1)
    assert chances.numpy() == pytest.approx(oracle.predict_proba(x.numpy()), abs=2e-5)
    assert probe.weight.T.numpy() == pytest.approx(oracle.coef_, abs=2e-3)


def test_covariance_and_start_change_the_speed_and_not_the_answer(clouds, monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-8)
    x, labels = clouds
    plain, near = linear.fit(x, labels, 1.0), linear.fit(x, labels, 0.3)
    other = linear.fit(x, labels, 1.0, linear.covariance_of(x[:50] * 3), near)
    assert torch.allclose(plain.weight, other.weight, atol=1e-5)
    assert torch.allclose(plain.bias, other.bias, atol=1e-5)
    monkeypatch.setattr(linear, "MOST_STEPS", 0)  # a start is where it starts
    assert torch.allclose(linear.fit(x, labels, 1.0, None, plain).weight, plain.weight, atol=1e-9)


def test_few_steps_are_enough_for_correlated_features(clouds, monkeypatch):
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(2000, 60, generator=draws) @ torch.randn(60, 60, generator=draws).matrix_power(3)
    x, _ = linear.standardised(x, x)
    labels = (x[:, :3] + torch.randn(2000, 3, generator=draws)).argmax(1)
    monkeypatch.setattr(linear, "MOST_STEPS", 40)
    assert linear.fit(x, labels, 0.1).converged


def test_the_reported_gradient_is_that_of_the_definition(clouds, monkeypatch):
    x, labels = clouds
    monkeypatch.setattr(linear, "TOLERANCE", 0.2)  # stop early, so that there is a gradient to see
    probe = linear.fit(x, labels, 10.0)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = F.cross_entropy(x @ weight + bias, labels) + weight.square().sum() / (2 * 10 * 300)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert probe.gradient == pytest.approx(max(g.abs().max().item() for g in gradients), rel=1e-6)
    assert probe.gradient > 1e-3


def test_a_probe_that_did_not_converge_says_so(clouds, monkeypatch):
    x, labels = clouds
    assert linear.fit(x, labels, 1.0).converged
    monkeypatch.setattr(linear, "MOST_STEPS", 1)
    assert not linear.fit(x, labels, 1e4).converged


def test_choose_takes_the_best_of_what_it_tried_on_validation_images(clouds):
    x, labels = clouds
    how = linear.choose(x[:200], labels[:200], x[200:], labels[200:])
    tried = linear.GRID[: len(how["tried"])]
    scores = {c: (linear.fit(x[:200], labels[:200], c).predict(x[200:]) == labels[200:]).double().mean().item() for c in tried}
    assert how["validation_accuracy"] == pytest.approx(max(scores.values()), abs=0.011)
    assert scores[how["C"]] == pytest.approx(how["validation_accuracy"], abs=0.011)
    assert 3 <= len(tried) < len(linear.GRID)


def test_standardised_uses_the_training_features_only(clouds):
    x = torch.cat([clouds[0], torch.full((300, 1), 7.0)], 1).float()  # a dead feature
    train, test = linear.standardised(x[:200], x[200:] + 100)
    assert train.mean(0).tolist() == pytest.approx([0] * 7, abs=1e-5)
    assert train.std(0, correction=0).tolist() == pytest.approx([1] * 6 + [0], abs=1e-5)
    assert test[:, :6].min() > 10
    assert train.dtype == test.dtype == torch.float32


def test_label_draws_are_balanced_distinct_and_the_same_each_time():
    labels = torch.arange(100) % 5
    draws = linear.label_draws(labels, 3, 10)
    for index in draws:
        assert len(set(index.tolist())) == 15
        assert labels[index].bincount().tolist() == [3] * 5
    assert len({tuple(index.tolist()) for index in draws}) == 10
    assert all(torch.equal(a, b) for a, b in zip(draws, linear.label_draws(labels, 3, 10), strict=True))


def made_data(name: str = "made") -> data.Dataset:
    """Images whose brightness tells the label: 300 for training, 60 for testing."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(360) % 3
    noise = torch.randint(0, 60, (360, 1, 8, 8), generator=draws)
    images = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    split = data.Split(images, labels)
    return data.Dataset(
        name,
        data.Split(split.images[:300], split.labels[:300]),
        data.Split(split.images[300:], split.labels[300:]),
        3,
        signed=False,
    )


def test_few_images_do_not_end_the_search_at_the_weak_end_of_the_grid():
    """With a strong penalty all C predict the same: equal accuracies are no reason to stop."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    x = torch.randn(40, 60, generator=draws) * 0.5 + 3 * torch.eye(60)[labels]
    chosen = linear.choose(x[:30], labels[:30], x[30:], labels[30:])
    assert chosen["C"] > 1e-3
    assert len(chosen["tried"]) > 6


def test_features_leave_the_encoder_in_its_mode():
    made = made_data()
    encoder = Encoder("small8x8", 1)
    for mode in (True, False):
        encoder.train(mode)
        features(encoder, made, made.test)
        assert all(module.training == mode for module in encoder.modules())
    assert list(features(encoder, made, made.test, layers=("y",))) == ["y"]


def test_evaluate_chooses_without_the_test_split():
    made = made_data()
    x, x_test = raw_pixels(made, made.train), raw_pixels(made, made.test)
    good = linear.evaluate(iter([("raw", x, x_test)]), made, 0)["rows"]["raw"]["all"]
    wrong = data.Dataset("made", made.train, data.Split(made.test.images, (made.test.labels + 1) % 3), 3, signed=False)
    bad = linear.evaluate(iter([("raw", x, x_test)]), wrong, 0)["rows"]["raw"]["all"]
    assert good["accuracy"] > 0.95
    assert bad["accuracy"] < 0.05
    assert (good["C"], good["tried"]) == (bad["C"], bad["tried"])


def test_evaluate_refits_on_the_whole_training_split(monkeypatch):
    made, sizes = made_data(), []
    fit = linear.fit

    def spy(x, labels, *others):
        sizes.append(len(x))
        return fit(x, labels, *others)

    monkeypatch.setattr(linear, "fit", spy)
    x, x_test = raw_pixels(made, made.train), raw_pixels(made, made.test)
    linear.evaluate(iter([("raw", x, x_test)]), made, 0)
    assert set(sizes[:-1]) == {270}
    assert sizes[-1] == 300


def test_the_digits_protocol_has_its_columns_and_draws(tmp_path):
    digits = datasets.digits(Data())
    rows = [
        (linear.UNSCALED, raw_pixels(digits, digits.train), raw_pixels(digits, digits.test)),
        ("raw pixels", raw_pixels(digits, digits.train), raw_pixels(digits, digits.test)),
    ]
    found = linear.evaluate(iter(rows), digits, 0)
    assert found["labels"] == ["all", "10", "5", "1"]
    # scikit-learn's logistic regression with C = 1, measured apart: 91.9 unscaled, 92.0 standardised
    assert found["rows"][linear.UNSCALED]["all"]["accuracy"] == pytest.approx(0.919, abs=0.003)
    assert found["rows"]["raw pixels"]["all"]["accuracy"] == pytest.approx(0.920, abs=0.003)
    for row in found["rows"].values():
        assert [row[c]["sd"] is None for c in found["labels"]] == [True, False, False, False]
        assert all(cell["converged"] for cell in row.values())
        assert [row[c]["C"] for c in found["labels"]] == [1.0] * 4


def test_official_folds_stand_beside_all_labels():
    made = made_data()
    folds = tuple(torch.arange(300)[k::5] for k in range(3))
    made = replace(made, folds=folds)
    x, x_test = raw_pixels(made, made.train), raw_pixels(made, made.test)
    found = linear.evaluate(iter([("raw", x, x_test)]), made, 0)
    assert found["labels"] == ["all", "folds"]
    cells = found["rows"]["raw"]
    assert cells["folds"]["C"] == cells["all"]["C"]
    assert cells["all"]["sd"] is None
    train, test = linear.standardised(x.clone(), x_test.clone())
    probes = [linear.fit(train[fold], made.train.labels[fold], cells["all"]["C"]) for fold in folds]
    scores = [linear.accuracy(probe, test, made.test.labels) for probe in probes]
    assert cells["folds"]["accuracy"] == pytest.approx(sum(scores) / 3, abs=1e-6)
    assert cells["folds"]["sd"] == pytest.approx(torch.tensor(scores).std().item(), abs=1e-6)
    assert "over the 3 official folds of 60 labels, C and standardisation as for all 300" in found["protocol"]
    plain = linear.evaluate(iter([("raw", x, x_test)]), replace(made, folds=()), 0)
    assert plain["labels"] == ["all"]
    assert plain["rows"]["raw"]["all"] == cells["all"]
    assert "folds" not in plain["protocol"]


def test_a_probe_of_folds_sees_their_images_only(monkeypatch):
    made, sizes = made_data(), []
    fit = linear.fit
    monkeypatch.setattr(linear, "fit", lambda x, *others: (sizes.append(len(x)), fit(x, *others))[1])
    made = replace(made, folds=(torch.arange(0, 40), torch.arange(100, 150)))
    x, x_test = raw_pixels(made, made.train), raw_pixels(made, made.test)
    linear.evaluate(iter([("raw", x, x_test)]), made, 0)
    assert {*sizes} == {270, 300, 40, 50}


def test_the_quick_probe_never_sees_the_test_split():
    made = made_data()
    blind = data.Dataset("made", made.train, data.Split(made.test.images[:0], made.test.labels[:0]), 3, signed=False)
    encoder = set_statistics(Encoder("small8x8", 1), made, made.train)
    found = linear.quick_probe(encoder, blind, 0)
    assert set(found) == {"probe/fc_accuracy", "probe/y_accuracy"}
    assert found["probe/fc_accuracy"] > 0.9


def test_statistics_become_plain_averages_and_features_do_not_depend_on_the_batch():
    made = made_data()
    encoder = Encoder("small8x8", 1)
    set_statistics(encoder, made, made.train, batch=100)
    first = encoder.layers["conv1"]
    with torch.no_grad():
        out = first[0](made.floats(made.train.images))
    assert torch.allclose(first[1].running_mean, out.mean((0, 2, 3)), atol=1e-5)
    assert first[1].momentum == 0.1
    whole = features(encoder, made, made.test, batch=60)
    parts = features(encoder, made, made.test, batch=7)
    for layer in whole:
        assert torch.allclose(whole[layer], parts[layer], atol=1e-5)
    assert [tuple(whole[layer].shape) for layer in ("conv", "fc", "y")] == [(60, 2048), (60, 512), (60, 64)]
