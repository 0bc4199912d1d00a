"""Exact quantities of information against loops, SciPy, scikit-learn and values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score

from dim import information as info
from dim.config import UserError

LOG2 = math.log(2)
CHANNEL = [[0.45, 0.05], [0.05, 0.45]]  # binary symmetric, error 0.1, fair input


def random_table(*shape, seed=0, zeros=0.3):
    """A distribution with some entries 0, never a whole row or column."""
    draws = np.random.default_rng(seed)
    table = draws.random(shape) * (draws.random(shape) > zeros)
    table.ravel()[:: max(shape) + 1] += 0.1
    return table / table.sum()


def product(joint):
    return np.outer(np.sum(joint, 1), np.sum(joint, 0))


# ---- the definitions, one number at a time


def entropy_loop(p):
    return -sum(x * math.log(x) for x in np.ravel(p) if x > 0)


def kl_loop(p, q):
    return sum(x * math.log(x / y) for x, y in zip(np.ravel(p), np.ravel(q), strict=True) if x > 0)


def conditional_loop(joint):
    """H(Y|X) as the entropy of Y in each row, weighted by the row."""
    return sum(sum(row) * entropy_loop(np.array(row) / sum(row)) for row in joint if sum(row) > 0)


SHAPES = [(2, 2), (3, 5), (7, 4), (1, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_every_quantity_of_a_joint_table_equals_its_definition(shape, seed):
    joint = random_table(*shape, seed=seed)
    assert info.entropy(joint) == pytest.approx(entropy_loop(joint), abs=1e-14)
    assert info.conditional_entropy(joint) == pytest.approx(conditional_loop(joint), abs=1e-14)
    assert info.conditional_entropy(joint.T) == pytest.approx(conditional_loop(joint.T), abs=1e-14)
    assert info.mutual_information(joint) == pytest.approx(kl_loop(joint, product(joint)), abs=1e-14)
    ratios = info.pointwise_mutual_information(joint)
    for x in range(shape[0]):
        for y in range(shape[1]):
            p, q = joint[x, y], joint[x].sum() * joint[:, y].sum()
            assert ratios[x, y].item() == (pytest.approx(math.log(p / q), abs=1e-13) if p else -math.inf)


@pytest.mark.parametrize("seed", range(3))
def test_divergences_equal_scipys(seed):
    p, q = random_table(9, seed=seed), random_table(9, seed=seed + 10, zeros=0)
    assert info.entropy(p) == pytest.approx(stats.entropy(p), abs=1e-14)
    assert info.kl_divergence(p, q) == pytest.approx(stats.entropy(p, q), abs=1e-14)
    assert info.cross_entropy(p, q) == pytest.approx(stats.entropy(p) + stats.entropy(p, q), abs=1e-14)
    assert info.js_divergence(p, q) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-14)
    assert info.js_divergence(p, q) == info.js_divergence(q, p)
    assert info.kl_divergence(p, q) == pytest.approx(kl_loop(p, q), abs=1e-14)


@pytest.mark.parametrize(("base", "unit"), [(math.e, "nats"), (2, "bits")])
def test_units(base, unit):
    p, q = random_table(5), random_table(5, seed=1, zeros=0)
    joint, labels, groups = random_table(3, 4), [0, 0, 1, 2], [0, 1, 1, 1]
    assert info.entropy(p, unit) == pytest.approx(stats.entropy(p, base=base), abs=1e-14)
    assert info.kl_divergence(p, q, unit) == pytest.approx(stats.entropy(p, q, base=base), abs=1e-14)
    assert info.js_divergence(p, q, unit) == pytest.approx(jensenshannon(p, q, base=base) ** 2, abs=1e-14)
    nats = math.log(base)
    assert info.cross_entropy(p, q, unit) * nats == pytest.approx(info.cross_entropy(p, q), abs=1e-14)
    assert info.conditional_entropy(joint, unit) * nats == pytest.approx(info.conditional_entropy(joint), abs=1e-14)
    assert info.mutual_information(joint, unit) * nats == pytest.approx(info.mutual_information(joint), abs=1e-14)
    assert info.information_gain(labels, groups, unit) * nats == pytest.approx(info.information_gain(labels, groups), abs=1e-14)
    ratios = info.pointwise_mutual_information(joint, unit) * nats
    torch.testing.assert_close(ratios, info.pointwise_mutual_information(joint))
    assert info.gaussian_mutual_information(0.5, 3, unit) * nats == pytest.approx(info.gaussian_mutual_information(0.5, 3))
    c = [[2.0, 1.0], [1.0, 2.0]]
    assert info.gaussian_total_correlation(c, unit) * nats == pytest.approx(info.gaussian_total_correlation(c))


# ---- known values


def test_a_binary_symmetric_channel():
    """By hand, error 0.1: I = log 2 - H(0.1), JS of the joint and the product of its marginals."""
    assert info.mutual_information(CHANNEL) == pytest.approx(LOG2 + 0.1 * math.log(0.1) + 0.9 * math.log(0.9), abs=1e-15)
    assert info.mutual_information(CHANNEL) == pytest.approx(0.368064, abs=5e-7)
    assert info.js_divergence(CHANNEL, product(CHANNEL)) == pytest.approx(0.101749, abs=5e-7)
    assert info.conditional_entropy(CHANNEL) == pytest.approx(0.325083, abs=5e-7)
    assert info.pointwise_mutual_information(CHANNEL).tolist() == [
        pytest.approx([math.log(1.8), math.log(0.2)]),
        pytest.approx([math.log(0.2), math.log(1.8)]),
    ]


def test_limits_of_entropy():
    assert info.entropy([0.0, 1.0, 0.0]) == 0
    assert info.entropy([1 / 8] * 8, "bits") == pytest.approx(3, abs=1e-15)
    assert info.conditional_entropy([[0.3, 0.0], [0.0, 0.7]]) == 0
    assert info.conditional_entropy([[0.25, 0.25], [0.25, 0.25]], "bits") == pytest.approx(1, abs=1e-15)
    assert info.conditional_entropy([[0.5, 0.5], [0.0, 0.0]], "bits") == pytest.approx(1, abs=1e-15)  # a row that never occurs


def test_disjoint_supports():
    p, q = [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]
    assert info.kl_divergence(p, q) == math.inf
    assert info.cross_entropy(p, q) == math.inf
    assert info.js_divergence(p, q) == pytest.approx(LOG2, abs=1e-15)
    assert info.wasserstein_distance([2.0], [-5.5]) == 7.5
    assert info.wasserstein_distance([0.0, 1.0], [10.0, 11.0]) == pytest.approx(10)


def test_a_place_that_neither_reaches_counts_nothing():
    p, q = [0.5, 0.5, 0.0], [0.25, 0.75, 0.0]
    assert info.kl_divergence(p, q) == pytest.approx(info.kl_divergence(p[:2], q[:2]), abs=1e-15)
    assert info.js_divergence(p, q) == pytest.approx(info.js_divergence(p[:2], q[:2]), abs=1e-15)
    assert info.cross_entropy(p, q) == pytest.approx(info.cross_entropy(p[:2], q[:2]), abs=1e-15)


def test_equal_distributions_have_no_divergence():
    p = random_table(6)
    assert info.kl_divergence(p, p) == info.js_divergence(p, p) == 0


def test_the_mean_of_the_smallest_numbers_is_not_0():
    smallest = 5e-324
    p, q = torch.tensor([1.0, smallest], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert info.js_divergence(p, q) == pytest.approx(0, abs=1e-300)
    assert info.cross_entropy(p, p) == pytest.approx(info.entropy(p), abs=1e-15)


def test_independence_and_determinism():
    independent = np.outer([0.2, 0.3, 0.5], [0.6, 0.4])
    assert info.mutual_information(independent) == pytest.approx(0, abs=1e-15)
    assert info.pointwise_mutual_information(independent).abs().max() < 1e-14
    told = np.diag([0.2, 0.3, 0.5])
    assert info.mutual_information(told) == pytest.approx(entropy_loop([0.2, 0.3, 0.5]), abs=1e-15)


def test_pairs_that_never_occur():
    """-inf, also where a marginal is 0; the average over what occurs is not touched."""
    table = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    ratios = info.pointwise_mutual_information(table)
    assert ratios.isnan().sum() == 0
    assert ratios.tolist() == [[LOG2, -math.inf, -math.inf], [-math.inf, LOG2, -math.inf], [-math.inf] * 3]
    assert info.mutual_information(table) == pytest.approx(LOG2)


def test_mutual_information_survives_probabilities_whose_product_is_no_number():
    tiny = 1e-200
    assert info.mutual_information([[1.0, 0.0], [0.0, tiny]]) == pytest.approx(0, abs=1e-190)


@pytest.mark.parametrize("seed", range(3))
def test_information_gain_is_scikit_learns_mutual_information(seed):
    draws = np.random.default_rng(seed)
    labels, groups = draws.integers(0, 4, 200), draws.integers(0, 3, 200) * 7 - 3
    expected = mutual_info_score(labels, groups)
    assert info.information_gain(labels, groups) == pytest.approx(expected, abs=1e-13)
    counts = np.zeros((4, 3))
    for label, group in zip(labels, (groups + 3) // 7, strict=True):
        counts[label, group] += 1
    assert info.mutual_information(info.normalised(counts)) == pytest.approx(expected, abs=1e-13)


def test_information_gain_by_hand():
    """9 yes and 5 no; wind: weak 6 + 2, strong 3 + 3 (Quinlan's weather)."""
    play = ["yes"] * 9 + ["no"] * 5
    wind = ["weak"] * 6 + ["strong"] * 3 + ["weak"] * 2 + ["strong"] * 3
    assert info.information_gain(play, wind, "bits") == pytest.approx(0.04813, abs=5e-6)
    assert info.information_gain(play, play, "bits") == pytest.approx(0.94029, abs=5e-6)
    assert info.information_gain(play, ["all"] * 14) == 0


# ---- samples


@pytest.mark.parametrize(("n", "m"), [(50, 50), (1, 9), (8, 30), (31, 7)])
def test_wasserstein_distance_is_scipys(n, m):
    draws = np.random.default_rng(n)
    x, y = draws.normal(size=n), draws.normal(1, 3, size=m)
    assert info.wasserstein_distance(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-13)
    assert info.wasserstein_distance(x, y) == pytest.approx(info.wasserstein_distance(y, x), abs=1e-13)
    assert info.wasserstein_distance(x, x[::-1].copy()) == 0


def test_wasserstein_distance_of_as_many_samples_is_that_of_the_sorted():
    x, y = torch.randn(100, generator=torch.Generator().manual_seed(0)), torch.linspace(-2, 5, 100)
    expected = (x.double().sort().values - y.double()).abs().mean().item()
    assert info.wasserstein_distance(x, y) == pytest.approx(expected, abs=1e-13)


def test_wasserstein_distance_by_hand():
    """Mass 1/2 at 0 and 1 to mass 1/3 at 0, 1 and 2: a third of it moves by 1 on average, (1/6 + 1/3) in all."""
    assert info.wasserstein_distance([0, 1], [0, 1, 2]) == pytest.approx(1 / 6 + 1 / 3, abs=1e-15)


# ---- Gaussians


def test_gaussian_mutual_information():
    assert info.gaussian_mutual_information(0) == 0
    assert info.gaussian_mutual_information(0.9) == pytest.approx(0.830366, abs=5e-7)
    assert info.gaussian_mutual_information(-0.6, 20) == pytest.approx(-10 * math.log(0.64))
    assert info.gaussian_mutual_information(1) == info.gaussian_mutual_information(-1) == math.inf
    assert info.gaussian_mutual_information(1e-9) == pytest.approx(5e-19, rel=1e-9, abs=0)


def test_gaussian_total_correlation():
    """Closed form of equal correlations r, and of two variables; scales count nothing."""
    d, r = 6, 0.4
    correlations = np.full((d, d), r) + (1 - r) * np.eye(d)
    expected = -((d - 1) * math.log(1 - r) + math.log(1 + (d - 1) * r)) / 2
    assert info.gaussian_total_correlation(correlations) == pytest.approx(expected, abs=1e-13)
    scale = np.arange(1, d + 1) * 10.0
    assert info.gaussian_total_correlation(correlations * np.outer(scale, scale)) == pytest.approx(expected, abs=1e-12)
    pair = [[4.0, 0.9 * 6], [0.9 * 6, 9.0]]
    assert info.gaussian_total_correlation(pair) == pytest.approx(info.gaussian_mutual_information(0.9), abs=1e-13)
    assert info.gaussian_total_correlation(np.eye(3)) == 0
    assert info.gaussian_total_correlation([[1.0, 1.0], [1.0, 1.0]]) == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_a_singular_covariance_is_found_behind_its_rounding(seed):
    """Five variables made of four: the smallest eigenvalue is 0 but for rounding, of either sign."""
    mix = np.random.default_rng(seed).normal(size=(5, 4))
    assert info.gaussian_total_correlation(mix @ mix.T) == math.inf


def test_gaussian_quantities_are_those_of_fine_tables():
    """A Gaussian of correlation 0.7 on a grid of 0.05 within +- 6: the table's information is the closed form."""
    t = np.arange(-6, 6, 0.05)
    x, y = np.meshgrid(t, t, indexing="ij")
    joint = info.normalised(np.exp(-(x**2 - 1.4 * x * y + y**2) / (2 * (1 - 0.49))))
    assert info.mutual_information(joint) == pytest.approx(info.gaussian_mutual_information(0.7), abs=1e-6)


# ---- what may be given


def test_lists_arrays_and_tensors_give_the_same():
    p = [0.125, 0.375, 0.5]
    values = {info.entropy(kind) for kind in (p, np.array(p), np.float32(p), torch.tensor(p), torch.tensor(p).bfloat16())}
    assert values == {info.entropy(p)}
    assert info.entropy(torch.tensor(p, requires_grad=True)) == info.entropy(p)
    assert isinstance(info.entropy(p), float)
    float32 = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).softmax(1) / 40
    assert info.mutual_information(float32) > 0  # sums of float32 are near enough


def test_normalised_counts():
    assert info.normalised([[1, 2], [3, 4]]).tolist() == [[0.1, 0.2], [0.3, 0.4]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info.entropy([0.5, 0.4]), r"must sum to 1; these sum to 0.9: normalised"),
        (lambda: info.entropy([]), "sum to 0"),
        (lambda: info.entropy([1.5, -0.5]), "must not be negative; the smallest is -0.5"),
        (lambda: info.entropy([math.nan, 1.0]), "must be finite"),
        (lambda: info.entropy([0.5, 0.5], "bit"), "unit is 'bit': choose nats or bits"),
        (lambda: info.kl_divergence([0.5, 0.5], [1.0]), r"one shape; got \[2\] and \[1\]"),
        (lambda: info.js_divergence([0.5, 0.5], [0.2, 0.2]), "sum to 0.4"),
        (lambda: info.mutual_information([0.5, 0.5]), r"a joint table \[X, Y\]; got \[2\]"),
        (lambda: info.normalised([0, 0]), "not all 0"),
        (lambda: info.normalised([3, -1]), "not negative"),
        (lambda: info.information_gain([0, 1], [0]), r"got \[2\] and \[1\]"),
        (lambda: info.information_gain([], []), "n at least 1"),
        (lambda: info.wasserstein_distance([], [1.0]), "at least 1 finite number"),
        (lambda: info.wasserstein_distance([math.inf], [1.0]), "at least 1 finite number"),
        (lambda: info.wasserstein_distance([[1.0]], [1.0]), r"got shapes \[1, 1\] and \[1\]"),
        (lambda: info.gaussian_mutual_information(1.1), r"correlation is 1.1: it must be in \[-1, 1\]"),
        (lambda: info.gaussian_mutual_information(math.nan), "correlation is nan"),
        (lambda: info.gaussian_total_correlation([[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue -1"),
        (lambda: info.gaussian_total_correlation([[1.0, 0.2], [0.4, 1.0]]), "differs from its transpose by 0.2"),
        (lambda: info.gaussian_total_correlation([[0.0, 0.0], [0.0, 1.0]]), "variances above 0; the smallest is 0"),
        (lambda: info.gaussian_total_correlation([1.0]), r"covariance \[d, d\]"),
    ],
)
def test_mistakes_are_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
