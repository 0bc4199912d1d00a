"""The linear probe against its definition; features; the quick probe."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import clouds_of, made_data
from sklearn.linear_model import LogisticRegression

from dim import data
from dim.encoders import Encoder
from dim.evals import linear, svm
from dim.evals.features import features, set_statistics
from dim.evals.protocol import Columns, probe, standardised


@pytest.fixture
def clouds():
    """Three overlapping clouds in six correlated dimensions: x [300, 6] float64, labels [300]."""
    return clouds_of(300)


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


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "penalty"), [("y", 1.0), ("fc", 1e-3), ("fc", 0.1)])
def test_on_cifar_it_is_as_accurate_as_scikit_learn(cifar_features, layer, penalty):
    x, labels, x_test, test_labels = cifar_features[layer]
    probe = linear.fit(x, labels, penalty)
    assert probe.converged
    oracle = LogisticRegression(C=penalty, tol=1e-4, max_iter=10_000).fit(x.numpy(), labels.numpy())
    assert oracle.n_iter_.max() < 10_000
    ours, theirs = linear.accuracy(probe, x_test, test_labels), oracle.score(x_test.numpy(), test_labels.numpy())
    print(f"{layer}, C {penalty:g}: {100 * ours:.2f} and {100 * theirs:.2f} %")
    assert ours == pytest.approx(theirs, abs=0.003)


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
    x, _ = standardised(x, x)
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


def test_the_reported_gradient_is_that_of_the_bias_too(clouds, monkeypatch):
    x, labels = 1e-3 * clouds[0], (torch.arange(300) % 10 == 0).long()  # unequal classes, of which the features say nothing
    monkeypatch.setattr(linear, "MOST_STEPS", 1)
    probe = linear.fit(x, labels, 1.0)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = F.cross_entropy(x @ weight + bias, labels) + weight.square().sum() / (2 * 300)
    of_weight, of_bias = (gradient.abs().max().item() for gradient in torch.autograd.grad(loss, (weight, bias)))
    assert of_bias > 10 * of_weight
    assert probe.gradient == pytest.approx(of_bias, rel=1e-6)


def test_a_probe_that_did_not_converge_says_so(clouds, monkeypatch):
    x, labels = clouds
    assert linear.fit(x, labels, 1.0).converged
    monkeypatch.setattr(linear, "MOST_STEPS", 1)
    assert not linear.fit(x, labels, 1e4).converged


def test_features_leave_the_encoder_in_its_mode():
    made = made_data()
    encoder = Encoder("small8x8", 1)
    for mode in (True, False):
        encoder.train(mode)
        features(encoder, made, made.test)
        assert all(module.training == mode for module in encoder.modules())
    assert list(features(encoder, made, made.test, layers=("y",))) == ["y"]


def test_the_quick_probe_never_sees_the_test_split():
    made = made_data()
    blind = data.Dataset("made", made.train, data.Split(made.test.images[:0], made.test.labels[:0]), 3, signed=False)
    encoder = set_statistics(Encoder("small8x8", 1), made, made.train)
    found = linear.quick_probe(encoder, blind, 0)
    assert set(found) == {"probe/fc_accuracy", "probe/y_accuracy"}
    assert found["probe/fc_accuracy"] > 0.9


@pytest.mark.parametrize(("name", "penalty"), [("digits", 1.0), ("made", 0.01)])
def test_the_quick_probe_by_hand(name, penalty):
    """Of many labels that are wrong only a fit to them knows; scored images are brighter, so their statistics differ."""
    made, draws = made_data(name), torch.Generator().manual_seed(1)
    wrong = torch.rand(300, generator=draws) < 0.4
    labels = torch.where(wrong, torch.randint(3, (300,), generator=draws), made.train.labels)
    made = replace(made, train=data.Split(made.train.images, labels))
    places = torch.arange(300)
    if name == "digits":
        splits = [(places[100:], places[:100]), (places[places // 100 != 1], places[100:200]), (places[:200], places[200:])]
    else:
        splits = [made.validation(2)]
    images = made.train.images.clone()
    images[splits[-1][1]] += 70
    made = replace(made, train=data.Split(images, labels))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = set_statistics(Encoder("small8x8", 1), made, made.train)
    found, expected = features(encoder, made, made.train), {}
    for layer in ("fc", "y"):
        scores = []
        for fitting, scored in splits:
            x, x_scored = (found[layer][part].double() for part in (fitting, scored))
            mean, sd = x.mean(0), x.std(0, correction=0)
            used = sd > 1e-6
            probe = linear.fit(((x - mean) / sd)[:, used], labels[fitting], penalty)
            scores.append(linear.accuracy(probe, ((x_scored - mean) / sd)[:, used], labels[scored]))
        expected[f"probe/{layer}_accuracy"] = pytest.approx(sum(scores) / len(scores), abs=0.02)
    assert linear.quick_probe(encoder, made, 2) == expected


def test_the_search_goes_from_a_strong_penalty_to_a_weak_one():
    x, labels = clouds_of(60)
    found: list[tuple[float, float]] = []

    def fit(*others):
        probe = linear.fit(*others)
        found.append((others[2], probe.weight.norm().item()))
        return probe

    tried = [value for value, _ in linear.search(x, labels, x, fit)]
    assert tried == [value for value, _ in found] == list(linear.GRID)
    sizes = [size for _, size in found]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("fit", [linear.fit, svm.fit], ids=["linear", "svm"])
def test_a_search_over_fewer_images_than_features_is_a_fit_for_each_penalty(fit, monkeypatch):
    x, x_validation = torch.randn(130, 50, generator=torch.Generator().manual_seed(0)).split([30, 100])
    labels, bases = (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), []
    before = linear.axes
    monkeypatch.setattr(linear, "axes", lambda x: bases.append(1) or before(x))
    found = list(linear.search(x, labels, x_validation, fit))
    assert len(bases) == 1
    assert [penalty for penalty, _ in found] == list(linear.GRID)
    for penalty, predicted in found[:-4]:  # weak ones leave a separable problem open within the tolerance
        assert (fit(x, labels, penalty).predict(x_validation) == predicted).float().mean() >= 0.99


def test_of_equal_accuracies_the_strongest_penalty_is_taken():
    made = made_data()
    x = torch.eye(3)[made.train.labels]
    cell = probe(linear.LINEAR, "labels", x, torch.eye(3)[made.test.labels], made, 0, Columns(resampled=False))["all"]
    assert set(cell["tried"].values()) == {1.0}
    assert cell["C"] == min(linear.GRID)


def test_statistics_become_plain_averages_and_features_do_not_depend_on_the_batch():
    made = made_data()
    encoder = Encoder("small8x8", 1)
    set_statistics(encoder, made, made.train, batch=100)
    first = encoder.layers["conv1"]
    with torch.no_grad():
        out = first[0](made.floats(made.train.images))
    assert torch.allclose(first[1].running_mean, out.mean((0, 2, 3)), atol=1e-5)
    assert first[1].momentum == 0.1
    encoder.train()
    before = first[1].running_mean.clone()
    whole = features(encoder, made, made.test, batch=60)
    parts = features(encoder, made, made.test, batch=7)
    assert encoder.training
    assert torch.equal(first[1].running_mean, before)
    for layer in whole:
        assert torch.allclose(whole[layer], parts[layer], atol=1e-5)
    assert [tuple(whole[layer].shape) for layer in ("conv", "fc", "y")] == [(60, 2048), (60, 512), (60, 64)]
