"""The linear SVM against its definition and scikit-learn's LinearSVC."""

import pytest
import torch
from conftest import clouds_of
from sklearn.svm import LinearSVC

from dim.evals import linear, svm
from dim.evals.protocol import standardised
from dim.evals.svm import SVM


def loss_by_loops(weight, bias, x, labels, penalty):
    total = 0.0
    for row, label in zip(x, labels, strict=True):
        for c in range(weight.shape[1]):
            score = float(sum(row[i] * weight[i, c] for i in range(len(row))) + bias[c])
            total += max(0.0, 1 - (1 if c == label else -1) * score) ** 2
    return total / len(x) + float((weight**2).sum()) / (2 * penalty * len(x))


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_svm_minimises_its_definition(penalty):
    x, labels = clouds_of(60)
    probe = svm.fit(x, labels, penalty)
    best = loss_by_loops(probe.weight, probe.bias, x, labels, penalty)
    draws = torch.Generator().manual_seed(1)
    for _ in range(10):
        step = 0.03 * torch.randn(probe.weight.shape, generator=draws), 0.03 * torch.randn(3, generator=draws)
        assert loss_by_loops(probe.weight + step[0], probe.bias + step[1], x, labels, penalty) > best


def test_the_reported_gradient_is_that_of_the_definition(monkeypatch):
    x, labels = clouds_of(300)
    monkeypatch.setattr(svm, "TOLERANCE", 0.2)  # stop early, so that there is a gradient to see
    probe = svm.fit(x, labels, 10.0)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    sign = 2 * torch.eye(3, dtype=x.dtype)[labels] - 1
    loss = (1 - sign * (x @ weight + bias)).clamp(0).square().sum(1).mean() + weight.square().sum() / (2 * 10 * 300)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert probe.gradient == pytest.approx(max(g.abs().max().item() for g in gradients), rel=1e-6)
    assert probe.gradient > 1e-3


def test_a_fit_that_did_not_converge_says_so(monkeypatch):
    x, labels = clouds_of(300)
    assert svm.fit(x, labels, 1.0).converged
    monkeypatch.setattr(svm, "MOST_STEPS", 1)
    assert not svm.fit(x, labels, 1e4).converged


def test_few_newton_steps_are_enough_where_gradient_methods_crawl(monkeypatch):
    """Strongly correlated features and classes that are nearly apart."""
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(2000, 60, generator=draws) @ torch.randn(60, 60, generator=draws).matrix_power(3)
    x, _ = standardised(x, x)
    labels = (x[:, :3] + 0.1 * torch.randn(2000, 3, generator=draws)).argmax(1)
    monkeypatch.setattr(svm, "MOST_STEPS", 25)
    assert svm.fit(x, labels, 1.0).converged


def test_covariance_and_start_change_the_speed_and_not_the_answer(monkeypatch):
    monkeypatch.setattr(svm, "TOLERANCE", 1e-9)
    x, labels = clouds_of(300)
    plain, near = svm.fit(x, labels, 1.0), svm.fit(x, labels, 0.3)
    other = svm.fit(x, labels, 1.0, linear.covariance_of(x[:50] * 3), near)
    assert torch.allclose(plain.weight, other.weight, atol=1e-6)
    monkeypatch.setattr(svm, "MOST_STEPS", 0)  # a start is where it starts
    assert torch.allclose(svm.fit(x, labels, 1.0, None, plain).weight, plain.weight, atol=1e-9)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("images", [300, 5])  # more and fewer than features
def test_the_svm_is_scikit_learns_linear_svc(monkeypatch, penalty, images):
    monkeypatch.setattr(svm, "TOLERANCE", 1e-9)
    x, labels = clouds_of(300)
    x, labels = x[:images], labels[:images]
    probe = svm.fit(x, labels, penalty)
    # a large intercept_scaling leaves the bias all but unpenalised, as here
    oracle = LinearSVC(C=penalty, tol=1e-10, max_iter=200_000, dual=False, intercept_scaling=1e3)
    oracle.fit(x.numpy(), labels.numpy())
    assert probe.weight.T.numpy() == pytest.approx(oracle.coef_, abs=2e-3)
    assert (x @ probe.weight + probe.bias).numpy() == pytest.approx(oracle.decision_function(x.numpy()), abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "penalty"), [("y", 0.1), ("fc", 1e-4), ("fc", 1e-2)])
def test_on_cifar_it_is_as_accurate_as_linear_svc(cifar_features, layer, penalty):
    x, labels, x_test, test_labels = cifar_features[layer]
    probe = svm.fit(x, labels, penalty)
    assert probe.converged
    oracle = LinearSVC(C=penalty, tol=1e-6, max_iter=10_000, dual=False, intercept_scaling=1e2).fit(x.numpy(), labels.numpy())
    assert oracle.n_iter_ < 10_000
    ours, theirs = linear.accuracy(probe, x_test, test_labels), oracle.score(x_test.numpy(), test_labels.numpy())
    print(f"{layer}, C {penalty:g}: {100 * ours:.2f} and {100 * theirs:.2f} %")
    assert ours == pytest.approx(theirs, abs=0.003)


def test_the_probe_predicts_from_subsets_as_from_a_fit_alone():
    x, labels = clouds_of(300)
    subset = torch.arange(100, 180)
    (whole, sure), (part, _) = SVM.predict(x, labels, x, 0.1, [None, subset])
    assert sure
    assert torch.equal(whole, svm.fit(x, labels, 0.1).predict(x))
    alone = svm.fit(x[subset], labels[subset], 0.1).predict(x)
    assert (part == alone).float().mean() > 0.99  # both to the tolerance
    assert (part != whole).any()
