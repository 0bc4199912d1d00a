"""The losses on unlabelled images against loops, exact mutual information, limits and signs."""

import math

import pytest
import torch
import torch.nn.functional as F

from dim import information as info
from dim.evals.unlabelled import consistency, information_maximisation, pseudo_labels, sharpened

LOSSES = {
    "information": information_maximisation,
    "pseudo": lambda logits: pseudo_labels(logits, 0.3),
    "consistency": lambda logits: consistency(logits.flip(0), logits, threshold=0.3),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random_logits(n=12, classes=5, seed=0, spread=2.0):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def softmax_loop(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def entropy_loop(p):
    return -sum(x * math.log(x) for x in p)


def one_hot_logits(labels, classes, size):
    return (2 * F.one_hot(torch.tensor(labels), classes) - 1) * size


# ---- the definitions as loops


@pytest.mark.parametrize("diversity", [0.0, 0.1, 1.0, 2.5])
def test_information_maximisation_equals_its_definition(diversity):
    logits = random_logits()
    p = [softmax_loop(row) for row in logits.tolist()]
    mean = [sum(column) / len(p) for column in zip(*p, strict=True)]
    expected = sum(map(entropy_loop, p)) / len(p) - diversity * entropy_loop(mean)
    assert information_maximisation(logits, diversity).item() == pytest.approx(expected, abs=1e-13)


def test_the_default_diversity_is_a_tenth():
    logits = random_logits()
    torch.testing.assert_close(information_maximisation(logits), information_maximisation(logits, 0.1))


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.8])
def test_pseudo_labels_equal_their_definition(threshold):
    logits, losses = random_logits(), []
    for row in logits.tolist():
        p = softmax_loop(row)
        if max(p) > threshold:
            losses.append(-math.log(max(p)))
    assert 0 < len(losses) < 12 or threshold == 0
    assert pseudo_labels(logits, threshold).item() == pytest.approx(sum(losses) / len(losses), abs=1e-13)


@pytest.mark.parametrize(("temperature", "target_temperature"), [(0.4, 1.0), (1.0, 0.4), (2.0, 0.7)])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_consistency_equals_its_definition(threshold, temperature, target_temperature):
    logits, augmented, losses = random_logits(), random_logits(seed=1), []
    for row, other in zip(logits.tolist(), augmented.tolist(), strict=True):
        p = softmax_loop([z / target_temperature for z in row])
        q = softmax_loop([z / temperature for z in other])
        if max(softmax_loop(row)) > threshold:
            losses.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert 0 < len(losses) < 12 or threshold == 0
    found = consistency(logits, augmented, temperature, threshold, target_temperature)
    assert found.item() == pytest.approx(sum(losses) / len(losses), abs=1e-13)


def test_consistency_tempers_the_prediction_on_the_augmentation_by_default():
    logits, augmented = random_logits(), random_logits(seed=1)
    torch.testing.assert_close(consistency(logits, augmented), consistency(logits, augmented, 0.4, 0.8, 1.0))
    assert consistency(logits, 0.4 * logits).item() == pytest.approx(0, abs=1e-13)
    assert consistency(logits, logits) > 0.01
    assert consistency(logits, logits, temperature=1.0).item() == pytest.approx(0, abs=1e-13)


def test_sharpened_tempers_the_prediction_on_the_image_as_uda_does():
    logits, augmented = random_logits(), random_logits(seed=1)
    torch.testing.assert_close(sharpened(logits, augmented), consistency(logits, augmented, 1.0, 0.8, 0.4), rtol=0, atol=0)
    assert sharpened(4 * logits, 10 * logits).item() == pytest.approx(0, abs=1e-13)
    assert sharpened(4 * logits, 4 * logits) > 0.001


# ---- what they mean


@pytest.mark.parametrize("seed", range(3))
def test_at_diversity_1_it_is_minus_the_mutual_information_of_image_and_prediction(seed):
    """The joint table p(image i, class) = p_i(class) / n, through an independent implementation."""
    logits = random_logits(seed=seed)
    joint = logits.softmax(1) / len(logits)
    assert information_maximisation(logits, 1.0).item() == pytest.approx(-info.mutual_information(joint), abs=1e-13)
    conditional, marginal = info.conditional_entropy(joint), info.entropy(joint.sum(0))
    assert information_maximisation(logits).item() == pytest.approx(conditional - 0.1 * marginal, abs=1e-13)


@pytest.mark.parametrize("diversity", [0.1, 1.0])
def test_limits_of_information_maximisation(diversity):
    classes, log5 = 5, math.log(5)
    value = lambda logits: information_maximisation(logits.double(), diversity).item()  # noqa: E731
    assert value(torch.zeros(10, classes)) == pytest.approx((1 - diversity) * log5)  # unsure of everything
    assert value(one_hot_logits([3] * 10, classes, 100)) == pytest.approx(0, abs=1e-12)  # sure, the same for all
    assert value(one_hot_logits([0, 1, 2, 3, 4] * 2, classes, 100)) == pytest.approx(-diversity * log5)  # the best


def test_the_sign_of_both_of_its_terms():
    """A descent step makes predictions surer and, where they lean to one class, more diverse."""
    logits = random_logits(40, spread=0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(information_maximisation(logits, 0.0), logits)
    p = (logits - gradient).softmax(1)
    assert info.conditional_entropy(p / 40) < info.conditional_entropy(logits.softmax(1) / 40)
    leaning = (logits + torch.tensor([3.0, 0, 0, 0, 0])).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(information_maximisation(leaning, 1.0), leaning)
    mean, before = (leaning - 5 * gradient).softmax(1).mean(0), leaning.softmax(1).mean(0)
    assert info.entropy(mean) > info.entropy(before)


def test_collapse_costs_nothing_below_diversity_1_and_unequal_classes_cost_at_1():
    """Why the default leans on a good start, and why diversity can hurt on an unbalanced set."""
    right, equal = one_hot_logits([0] * 9 + [1], 2, 50).double(), one_hot_logits([0] * 5 + [1] * 5, 2, 50).double()
    assert information_maximisation(right, 1.0) > information_maximisation(equal, 1.0)
    assert information_maximisation(right, 0.0).item() == pytest.approx(information_maximisation(equal, 0.0).item(), abs=1e-12)


def test_no_confident_prediction_means_zero_and_no_gradient():
    logits = random_logits(spread=0.1).requires_grad_()
    for loss in (pseudo_labels(logits), consistency(logits.detach(), logits)):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.eq(0).all()


def test_pseudo_labels_teach_only_what_is_confident():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64, requires_grad=True)
    loss = pseudo_labels(logits, 0.9)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = logits[0].softmax(0) - torch.tensor([1.0, 0, 0])  # that of cross-entropy, the label a constant
    torch.testing.assert_close(gradient[0], expected.detach())
    assert gradient[1].eq(0).all()


def test_consistency_teaches_the_augmentation_only():
    logits, augmented = random_logits().requires_grad_(), random_logits(seed=1).requires_grad_()
    loss = consistency(logits, augmented, threshold=0.5)
    found, none = torch.autograd.grad(loss, [augmented, logits], allow_unused=True)
    assert none is None
    confident = logits.softmax(1).amax(1) > 0.5
    expected = ((augmented / 0.4).softmax(1) - logits.softmax(1)) / 0.4 * confident[:, None] / confident.sum()
    torch.testing.assert_close(found, expected.detach())


# ---- numbers


@each_loss
def test_gradients_equal_finite_differences(loss):
    logits = random_logits(4, 3).requires_grad_()
    if loss is LOSSES["information"]:
        assert torch.autograd.gradcheck(loss, logits)
    else:  # the target is a constant, finite differences would move it
        target = random_logits(4, 3, seed=3)
        assert torch.autograd.gradcheck(lambda x: consistency(target, x, threshold=0.3), logits)


@pytest.mark.parametrize("size", [1e4, 1e30])
@each_loss
def test_finite_for_enormous_logits(loss, size):
    logits = (one_hot_logits([0, 1, 2, 0], 3, 1.0).float() * size).requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_values_at_logits_of_1e4():
    logits = one_hot_logits([0, 1, 2, 0], 3, 1e4).float()
    mean = [0.5, 0.25, 0.25]
    assert information_maximisation(logits, 1.0).item() == pytest.approx(-entropy_loop(mean), rel=1e-6)
    assert pseudo_labels(logits).item() == 0
    assert consistency(logits, logits).item() == 0
    assert consistency(logits, logits.flip(0)).item() == pytest.approx(2e4 / 0.4 / 2, rel=1e-6)  # two of four disagree


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_under_autocast_too(loss, dtype):
    logits = random_logits().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float()), rtol=1e-6, atol=1e-7)
    assert loss(random_logits()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 4)])
def test_shapes_are_checked(shape):
    for loss in (*LOSSES.values(), lambda x: consistency(x, x)):
        with pytest.raises(ValueError, match=r"need logits \[n, classes\]"):
            loss(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"same images; got \[4, 3\] and \[2, 3\]"):
        consistency(torch.zeros(4, 3), torch.zeros(2, 3))
