"""Estimators against their definitions written as loops, closed forms, and distributions of known mutual information."""

import math
from itertools import product
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.estimators import ESTIMATORS, dv, dv_per_anchor, infonce, joined, jsd, logmeanexp, logsumexp, nce, nwj, smile
from dim.information import js_divergence, kl_divergence, mutual_information

LOG2 = math.log(2)
SHAPES = [(1, 1, 1), (1, 3, 2), (5, 1, 1), (4, 3, 6)]  # A anchors, L positives and K negatives of each

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def random_scores(anchors, positives, negatives, seed=0, spread=2.0, dtype=torch.float64):
    """pos [A, L] and neg [A, K], normal."""
    draws = torch.Generator().manual_seed(seed)
    pos, neg = (torch.randn(anchors, n, generator=draws, dtype=torch.float64) * spread for n in (positives, negatives))
    return pos.to(dtype), neg.to(dtype)


# ---- the definitions, one number at a time: pos and neg are lists of lists


def jsd_loop(pos, neg):
    positives = [-math.log(1 + math.exp(-t)) for row in pos for t in row]
    negatives = [math.log(1 + math.exp(t)) for row in neg for t in row]
    return 2 * LOG2 + fmean(positives) - fmean(negatives)


def dv_loop(pos, neg):
    return fmean(t for row in pos for t in row) - math.log(fmean(math.exp(t) for row in neg for t in row))


def dv_per_anchor_loop(pos, neg):
    return fmean(t - math.log(fmean(map(math.exp, others))) for row, others in zip(pos, neg, strict=True) for t in row)


def infonce_loop(pos, neg):
    values = []
    for row, others in zip(pos, neg, strict=True):
        for t in row:  # one class is right, K are wrong; the anchor's other positives are not asked
            values.append(math.log(math.exp(t) / (math.exp(t) + sum(map(math.exp, others)))) + math.log(len(others) + 1))
    return fmean(values)


def flat(scores):
    return [t for row in scores for t in row]


def nwj_loop(pos, neg):
    return 1 + fmean(flat(pos)) - fmean(map(math.exp, flat(neg)))


def nce_loop(pos, neg):
    """K + 1 pairs, one of them the own one: log-likelihood of telling each, with the prior odds 1 : K."""
    k = len(neg[0])
    own = [math.log(math.exp(t) / (math.exp(t) + k)) for t in flat(pos)]
    other = [math.log(k / (math.exp(t) + k)) for t in flat(neg)]
    return fmean(own) + k * fmean(other) - math.log(1 / (1 + k)) - k * math.log(k / (1 + k))


def conjugate_loop(g, conjugate):
    """E g(T+) - E f*(g(T-)), as every bound of f-GAN is."""
    return lambda pos, neg: fmean(map(g, flat(pos))) - fmean(conjugate(g(t)) for t in flat(neg))


LOOPS = {
    "jsd": jsd_loop,
    "dv": dv_loop,
    "dv_per_anchor": dv_per_anchor_loop,
    "infonce": infonce_loop,
    "nwj": nwj_loop,
    "nce": nce_loop,
    "rkl": conjugate_loop(lambda t: -math.exp(-t), lambda u: -1 - math.log(-u)),
    "chi2": conjugate_loop(lambda t: t, lambda u: u**2 / 4 + u),
    "hellinger": conjugate_loop(lambda t: 1 - math.exp(-t), lambda u: u / (1 - u)),
    "tv": conjugate_loop(lambda t: math.tanh(t) / 2, lambda u: u),
    "wasserstein": lambda pos, neg: fmean(flat(pos)) - fmean(flat(neg)),
}
CONJUGATES = {  # of those that have a name of their own too
    "jsd": conjugate_loop(lambda t: LOG2 - math.log(1 + math.exp(-t)), lambda u: -math.log(2 - math.exp(u))),
    "nwj": conjugate_loop(lambda t: 1 + t, lambda u: math.exp(u - 1)),
    "nce": conjugate_loop(  # of six negatives
        lambda t: math.log(7) - math.log(1 + 6 * math.exp(-t)), lambda u: -6 * math.log((7 - math.exp(u)) / 6)
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_equals_the_definition(name, shape):
    pos, neg = random_scores(*shape, seed=sum(shape))
    assert ESTIMATORS[name](pos, neg).item() == pytest.approx(LOOPS[name](pos.tolist(), neg.tolist()), abs=1e-12)


@each_estimator
def test_gradient_equals_finite_differences(estimator):
    scores = [t.requires_grad_() for t in random_scores(3, 2, 4, spread=1.0)]
    assert torch.autograd.gradcheck(estimator, scores)


@pytest.mark.parametrize("name", CONJUGATES)
def test_it_is_the_bound_of_its_convex_conjugate(name):
    pos, neg = random_scores(4, 3, 6)
    assert ESTIMATORS[name](pos, neg).item() == pytest.approx(CONJUGATES[name](pos.tolist(), neg.tolist()), abs=1e-12)


def test_nce_with_one_negative_is_jsd():
    pos, neg = random_scores(4, 3, 1)
    torch.testing.assert_close(nce(pos, neg), jsd(pos, neg), rtol=0, atol=1e-14)


# ---- known values


@pytest.mark.parametrize("shape", SHAPES)
@each_estimator
def test_zero_at_zero_scores(estimator, shape):
    anchors, positives, negatives = shape
    value = estimator(torch.zeros(anchors, positives).double(), torch.zeros(anchors, negatives).double())
    assert value.ndim == 0
    assert abs(value.item()) < 2e-15


CONSTANT = {  # at scores of c everywhere
    "jsd": lambda c: 2 * LOG2 - math.log(1 + math.exp(-c)) - math.log(1 + math.exp(c)),
    "nwj": lambda c: 1 + c - math.exp(c),
    "nce": lambda c: math.log(8) + 7 * math.log(8 / 7) - math.log(1 + 7 * math.exp(-c)) - 7 * math.log(1 + math.exp(c) / 7),
    "rkl": lambda c: 1 - c - math.exp(-c),
    "chi2": lambda c: -(c**2) / 4,
    "hellinger": lambda c: 2 - math.exp(-c) - math.exp(c),
}


@pytest.mark.parametrize("c", [-2.0, 0.5, 3.0])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_constant_scores(name, c):
    """0 where only differences of scores count, and only there."""
    value = ESTIMATORS[name](torch.full((5, 3), c).double(), torch.full((5, 7), c).double()).item()
    assert value == pytest.approx(CONSTANT.get(name, lambda c: 0.0)(c), abs=1e-12)
    assert (abs(value) > 1e-12) == (name in CONSTANT)


PERFECT = {  # at scores of +-1e4, and whether it is the ceiling
    "jsd": (2 * LOG2, True),
    "infonce": (math.log(8), True),
    "nce": (math.log(8) + 7 * math.log(8 / 7), True),
    "hellinger": (2, True),
    "tv": (1, True),
    "dv": (2e4, False),
    "dv_per_anchor": (2e4, False),
    "wasserstein": (2e4, False),
    "nwj": (1 + 1e4, False),
    "rkl": (1 + 1e4, False),
    "chi2": (1e4 - (1e8 / 4 - 1e4), False),  # to be far off in either direction is wrong
}
REVERSED = {
    "jsd": 2 * LOG2 - 2e4,
    "infonce": math.log(8 / 7) - 2e4,
    "nce": math.log(8) + 7 * math.log(8 / 7) - (1e4 + math.log(7)) - 7 * (1e4 - math.log(7)),
    "hellinger": -math.inf,
    "tv": -1,
    "dv": -2e4,
    "dv_per_anchor": -2e4,
    "wasserstein": -2e4,
    "nwj": -math.inf,
    "rkl": -math.inf,
    "chi2": -1e4 - (1e8 / 4 + 1e4),
}
TURNS = {"chi2": ("neg",)}  # sides whose best score is finite, as T- at -2, so that the gradient beyond it points back


@pytest.mark.parametrize("name", ESTIMATORS)
def test_perfect_scores_reach_the_ceiling_or_have_none(name):
    pos, neg = torch.full((5, 3), 1e4).double(), torch.full((5, 7), -1e4).double()
    value, top = PERFECT[name]
    assert ESTIMATORS[name](pos, neg).item() == pytest.approx(value, rel=1e-12)
    assert ESTIMATORS[name].ceiling(7) == (pytest.approx(value) if top else None)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_reversed_scores_are_as_bad_as_they_should_be(name):
    pos, neg = torch.full((5, 3), -1e4).double(), torch.full((5, 7), 1e4).double()
    assert ESTIMATORS[name](pos, neg).item() == pytest.approx(REVERSED[name], abs=1e-9)


def test_jsd_keeps_float64_where_softplus_turns_linear():
    """log(1 + e^z) at z = 21 differs from z by 7.6e-10; the default threshold of torch's softplus, 20, drops it."""
    z = 21.0
    value = jsd(torch.full((1, 1), -z).double(), torch.full((1, 1), z).double()).item()
    assert value == pytest.approx(2 * LOG2 - 2 * (z + math.log1p(math.exp(-z))), abs=1e-13)


def test_jsd_is_balanced_binary_cross_entropy():
    """Gradient of -jsd = gradient of the cross-entropy of positive against negative, each kind with half the weight, twice."""
    pos, neg = (t.requires_grad_() for t in random_scores(4, 3, 6))
    entropy = F.binary_cross_entropy_with_logits(pos, torch.ones_like(pos))
    entropy = entropy + F.binary_cross_entropy_with_logits(neg, torch.zeros_like(neg))
    loss = -jsd(pos, neg)
    torch.testing.assert_close(loss, entropy - 2 * LOG2)
    torch.testing.assert_close(torch.autograd.grad(loss, [pos, neg]), torch.autograd.grad(entropy, [pos, neg]))


def test_infonce_gradient_is_that_of_the_naive_table():
    """The (A L) x (1 + K) table of logits, right class first: what is never made must not be missed."""
    (pos, neg), (anchors, positives, negatives) = random_scores(4, 3, 6), (4, 3, 6)
    pos, neg = pos.requires_grad_(), neg.requires_grad_()
    table = torch.cat([pos.reshape(-1, 1), neg.repeat_interleave(positives, 0)], 1)
    assert table.shape == (anchors * positives, 1 + negatives)
    naive = -F.cross_entropy(table, torch.zeros(len(table), dtype=torch.long)) + math.log(negatives + 1)
    value = infonce(pos, neg)
    torch.testing.assert_close(value, naive)
    torch.testing.assert_close(torch.autograd.grad(value, [pos, neg]), torch.autograd.grad(naive, [pos, neg]))


# ---- invariances


@pytest.mark.parametrize("constant", [-30.0, 0.7, 500.0])
def test_a_constant_on_all_scores_changes_neither_dv_nor_infonce(constant):
    pos, neg = random_scores(4, 3, 6)
    for estimator in (dv, dv_per_anchor, infonce):
        torch.testing.assert_close(estimator(pos + constant, neg + constant), estimator(pos, neg), rtol=0, atol=1e-11)
    assert abs(jsd(pos + constant, neg + constant) - jsd(pos, neg)) > 0.01


def test_a_constant_for_each_anchor_changes_neither_infonce_nor_dv_per_anchor():
    pos, neg = random_scores(4, 3, 6)
    constant = torch.tensor([[-40.0], [0.0], [3.0], [25.0]]).double()
    for estimator in (dv_per_anchor, infonce):
        torch.testing.assert_close(estimator(pos + constant, neg + constant), estimator(pos, neg), rtol=0, atol=1e-11)
    assert abs(dv(pos + constant, neg + constant) - dv(pos, neg)) > 1  # one log for the whole batch


def test_equal_scores_within_each_anchor_give_zero():
    level = torch.tensor([[-2.0], [0.5], [30.0]]).double()
    for estimator in (dv_per_anchor, infonce):
        assert abs(estimator(level.expand(3, 2), level.expand(3, 5)).item()) < 1e-13


@st.composite
def any_scores(draw):
    anchors, positives, negatives = (draw(st.integers(1, 4)) for _ in range(3))
    numbers = st.floats(-1e4, 1e4)
    pos, neg = (
        torch.tensor(draw(st.lists(numbers, min_size=anchors * n, max_size=anchors * n)), dtype=torch.float64)
        for n in (positives, negatives)
    )
    return pos.view(anchors, positives), neg.view(anchors, negatives)


@settings(deadline=None, derandomize=True, database=None)
@given(any_scores())
def test_inequalities_between_them(scores):
    """For any scores: infonce <= log(K + 1), jsd <= 2 log 2, dv <= dv_per_anchor (Jensen),
    infonce <= K / (K + 1) dv_per_anchor (concavity of the log)."""
    pos, neg = scores
    k, slack = neg.shape[1], 1e-9
    assert infonce(pos, neg) <= math.log(k + 1) + slack
    assert jsd(pos, neg) <= 2 * LOG2 + slack
    assert dv(pos, neg) <= dv_per_anchor(pos, neg) + slack
    assert infonce(pos, neg) <= k / (k + 1) * dv_per_anchor(pos, neg) + slack


# ---- numbers of every size and type


OVERFLOW = {
    "nwj": (0, 1),
    "rkl": (-1, 0),
    "hellinger": (-1, 1),
}  # by name the signs of pos and neg at which its exp is infinite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signs", list(product((-1, 1, None), repeat=2)))
@pytest.mark.parametrize("name", ESTIMATORS)
def test_extreme_scores_stay_finite_or_are_minus_infinity(name, signs, dtype):
    """All +-1e4 of one sign, or (None) both signs in every row."""
    mixed = torch.tensor([1e4, -1e4, 1e4])
    pos, neg = ((mixed if s is None else torch.full((3,), s * 1e4)).to(dtype).repeat(4, 1).requires_grad_() for s in signs)
    value = ESTIMATORS[name](pos, neg)
    gradients = torch.autograd.grad(value, [pos, neg])
    assert not any(t.isnan().any() for t in (value, *gradients))
    too_large = any(bad and sign in (bad, None) for sign, bad in zip(signs, OVERFLOW.get(name, (0, 0)), strict=True))
    assert value.item() == -math.inf if too_large else math.isfinite(value.item())
    # neither side is forgotten, and no gradient pushes the wrong way
    assert (gradients[0] >= 0).all() or "pos" in TURNS.get(name, ())
    assert (gradients[1] <= 0).all() or "neg" in TURNS.get(name, ())


def test_jsd_gradient_saturates_at_one_over_the_number_of_pairs():
    pos, neg = torch.full((4, 3), -1e4, requires_grad=True), torch.full((4, 5), 1e4, requires_grad=True)
    left, right = torch.autograd.grad(jsd(pos, neg), [pos, neg])
    torch.testing.assert_close(left, torch.full((4, 3), 1 / 12))
    torch.testing.assert_close(right, torch.full((4, 5), -1 / 20))


@each_estimator
def test_float64_in_float64_out(estimator):
    pos, neg = random_scores(4, 3, 6)
    assert estimator(pos, neg).dtype == torch.float64
    single = estimator(pos.float(), neg.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), estimator(pos, neg), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", [1, 50, 1000, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logsumexp_is_torchs_to_the_last_bits_however_wide_the_scores(spread, dtype):
    scores = (random_scores(5, 1, 2000, spread=spread)[1].to(dtype)).requires_grad_()
    found, expected = logsumexp(scores, 1), scores.logsumexp(1)
    assert torch.allclose(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    ours, theirs = (torch.autograd.grad(value.sum(), scores)[0] for value in (found, expected))
    least = 1e-19 if dtype == torch.float32 else 1e-280  # a share that a sum beside 1 does not feel
    assert torch.allclose(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=least)


def test_logsumexp_takes_no_number_whose_exp_underflows(monkeypatch):
    """The slow ones: what reaches torch's logsumexp is at most 47 below the largest in float32."""
    seen, torchs = [], torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda x, *given: seen.append(x) or torchs(x, *given))
    infonce(*random_scores(4, 3, 500, spread=100, dtype=torch.float32))
    assert all((x.amax(1) - x.amin(1) < 48).all() for x in seen)
    assert len(seen) == 1


def test_logsumexp_of_infinite_scores_is_torchs():
    rows = torch.tensor([[math.inf, 0, 1], [-math.inf, 0, 1], [-math.inf] * 3, [math.nan, 0, 1]])
    assert torch.equal(logsumexp(rows, 1).nan_to_num(nan=-7.0), rows.logsumexp(1).nan_to_num(nan=-7.0))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@each_estimator
def test_half_precision_is_raised_to_float32(estimator, half):
    """Scores near +-60: e^60 is beyond float16, and sums of bfloat16 keep two digits."""
    pos, neg = random_scores(8, 16, 64, spread=20, dtype=half)
    value = estimator(pos, neg)
    assert value.dtype == torch.float32
    assert torch.equal(value, estimator(pos.float(), neg.float()))


# ---- the replaceable reduction of dv


def test_logmeanexp_of_any_shape():
    scores = random_scores(3, 4, 2)[0]
    expected = math.log(fmean(math.exp(t) for t in scores.flatten().tolist()))
    for shape in [(12,), (3, 4), (3, 2, 2)]:
        assert logmeanexp(scores.view(shape)).item() == pytest.approx(expected, abs=1e-14)


def test_dv_uses_the_reduction_it_is_given():
    pos, neg = random_scores(4, 3, 6)
    seen = []

    def reduction(scores):
        seen.append(scores)
        return torch.tensor(0.25).double()

    torch.testing.assert_close(dv(pos, neg, logmeanexp=reduction), pos.mean() - 0.25)
    assert len(seen) == 1
    assert torch.equal(seen[0], neg)  # the raw negatives, all of them


# ---- refusals


@pytest.mark.parametrize(
    ("pos", "neg"),
    [
        ((3,), (3, 2)),
        ((3, 1), (3,)),
        ((3, 1), (2, 4)),
        ((3, 0), (3, 4)),
        ((3, 1), (3, 0)),
        ((0, 1), (0, 2)),
        ((3, 1, 1), (3, 2)),
    ],
)
@each_estimator
def test_shapes_that_do_not_fit_are_refused(estimator, pos, neg):
    with pytest.raises(ValueError, match=r"pos \[A, L\] and neg \[A, K\]") as caught:
        estimator(torch.zeros(pos), torch.zeros(neg))
    assert f"got {list(pos)} and {list(neg)}" in str(caught.value)


# ---- truth from theory: at the best critic, log r


def binary_channel(k, error=0.1):
    """log r of every equally likely outcome of a symmetric channel of fair bits: pos [10 x 2^k, 1], neg [10 x 2^k, k].

    r = 2 (1 - error) where the bits agree, 2 error where they do not; of ten positives nine agree, of two negatives one.
    """
    agree, differ = math.log(2 * (1 - error)), math.log(2 * error)
    rows = [(t, *others) for t in [agree] * 9 + [differ] for others in product([agree, differ], repeat=k)]
    scores = torch.tensor(rows, dtype=torch.float64)
    return scores[:, :1], scores[:, 1:]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_expectations_on_a_binary_channel(k):
    """Mutual information 0.368064 nats, Jensen-Shannon divergence 0.101749; no sampling, so no margin."""
    pos, neg = binary_channel(k)
    assert dv(pos, neg).item() == pytest.approx(0.368064, abs=1e-6)
    assert jsd(pos, neg).item() == pytest.approx(2 * 0.101749, abs=2e-6)
    expected = {"dv_per_anchor": 0.0, "infonce": 0.0}
    for agreeing in range(k + 1):  # b of the k negatives agree: binomial
        likely = math.comb(k, agreeing) / 2**k
        total = agreeing * 1.8 + (k - agreeing) * 0.2
        for share, r in ((0.9, 1.8), (0.1, 0.2)):
            expected["dv_per_anchor"] += likely * share * math.log(r / (total / k))
            expected["infonce"] += likely * share * math.log(r / ((r + total) / (k + 1)))
    for name, value in expected.items():
        assert ESTIMATORS[name](pos, neg).item() == pytest.approx(value, abs=1e-13)


def counted(seed=0):
    """A joint table of two variables of 3 and 4 values with whole counts out of 40, none 0."""
    draws = torch.Generator().manual_seed(seed)
    counts = 1 + torch.multinomial(torch.ones(12), 28, replacement=True, generator=draws).bincount(minlength=12)
    return counts.view(3, 4)


def best_scores(counts, critic):
    """critic(r) of every pair as often as it occurs, and of every product pair: pos [n, 1], neg [n, n], float64 with gradient.

    The rows of neg hold each pair of an x and a y of the n, so means over them are expectations; no sampling.
    """
    n = int(counts.sum())
    x, y = counts.nonzero().repeat_interleave(counts.flatten(), 0).T  # none of the counts is 0
    r = counts * n / (counts.sum(1, keepdim=True) * counts.sum(0)).double()
    table = critic(r).clone().requires_grad_()
    return table, table[x, y][:, None], table[x[:, None], y[None, :]]


LOG, HALF, LINEAR, SIGN = torch.log, lambda r: r.log() / 2, lambda r: 2 * (r - 1), lambda r: 40 * (r - 1).sign()
EXACT = {  # name: best critic, the divergence of p = joint and q = product, both flat; k: negatives of an anchor
    "jsd": (LOG, lambda p, q, k: 2 * js_divergence(p, q)),
    "dv": (lambda r: r.log() - 3, lambda p, q, k: kl_divergence(p, q)),
    "nwj": (LOG, lambda p, q, k: kl_divergence(p, q)),
    "nce": (LOG, lambda p, q, k: kl_divergence(p, (p + k * q) / (1 + k)) + k * kl_divergence(q, (p + k * q) / (1 + k))),
    "rkl": (LOG, lambda p, q, k: kl_divergence(q, p)),
    "chi2": (LINEAR, lambda p, q, k: ((p - q) ** 2 / q).sum().item()),
    "hellinger": (HALF, lambda p, q, k: ((p.sqrt() - q.sqrt()) ** 2).sum().item()),
    "tv": (SIGN, lambda p, q, k: (p - q).abs().sum().item() / 2),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", EXACT)
def test_the_best_critic_gives_the_exact_divergence_of_a_table(name, seed):
    """The value, that it is the largest there is, and that nothing pulls: the gradient to the critic's table is 0."""
    counts = counted(seed)
    critic, divergence = EXACT[name]
    table, pos, neg = best_scores(counts, critic)
    p = counts.double() / counts.sum()
    q = p.sum(1, keepdim=True) * p.sum(0)
    value = ESTIMATORS[name](pos, neg)
    assert value.item() == pytest.approx(divergence(p.flatten(), q.flatten(), neg.shape[1]), abs=1e-10)
    (gradient,) = torch.autograd.grad(value, table)
    assert gradient.abs().max() < 1e-10
    draws = torch.Generator().manual_seed(seed)
    for size in (0.01, 0.3):
        shift = size * torch.randn(counts.shape, generator=draws, dtype=torch.float64)
        _, *worse = best_scores(counts, lambda r, shift=shift: critic(r) + shift)
        if name == "tv":  # the sign is all that matters until it changes
            worse = [t * 0.01 for t in worse]
        assert ESTIMATORS[name](*worse) < value
    assert kl_divergence(p, q) == pytest.approx(mutual_information(p), abs=1e-12)


def test_wasserstein_of_two_equal_bits():
    """Joint 1/2 at (0, 0) and (1, 1), product 1/4 at each corner: a quarter goes one step from either, so the distance is 1/2.

    The potential 1 where the bits are equal, 0 elsewhere, is 1-Lipschitz over the edges of the square and reaches it.
    """
    pos, neg = torch.ones(2, 1).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()  # all corners once
    assert ESTIMATORS["wasserstein"](pos, neg).item() == 0.5


def test_smile_is_dv_with_cut_negatives():
    pos, neg = random_scores(4, 3, 6, spread=8)
    assert neg.abs().max() > 5
    cut = [[max(-5.0, min(5.0, t)) for t in row] for row in neg.tolist()]
    assert smile(pos, neg).item() == pytest.approx(dv_loop(pos.tolist(), cut), abs=1e-12)
    torch.testing.assert_close(smile(pos, neg, tau=math.inf), dv(pos, neg))
    assert smile(pos, neg, tau=1.0).item() == pytest.approx(
        dv_loop(pos.tolist(), [[max(-1.0, min(1.0, t)) for t in row] for row in neg.tolist()]), abs=1e-12
    )


def test_only_critics_of_the_log_ratio_are_read_out():
    """Those whose best critic above is log r itself."""
    named = {name for name, (critic, _) in EXACT.items() if critic is LOG}
    assert {name for name, estimator in ESTIMATORS.items() if estimator.log_ratio} == named


def test_nwj_varies_as_its_closed_form_says():
    """At the best critic of Gaussians: d rho^2 / n + (e^(2 I) - 1) / M with n positives and M negatives."""
    rho, dims, draws = 0.5, 2, 400
    information = -dims / 2 * math.log(1 - rho**2)
    pos, neg = gaussian_scores(draws * 64, 16, rho, dims)
    values = torch.stack([nwj(p, n) for p, n in zip(pos.split(64), neg.split(64), strict=True)])
    variance = dims * rho**2 / 64 + (math.exp(2 * information) - 1) / (64 * 16)
    assert values.mean().item() == pytest.approx(information, abs=five_errors(values))
    assert values.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / draws))


def log_ratio(x, y, rho):
    """log p(x, y) / p(x) p(y) of standard normal pairs with correlation rho, summed over the last dimension."""
    square = (rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (2 * (1 - rho**2))
    return (-square - math.log(1 - rho**2) / 2).sum(-1)


def gaussian_scores(anchors, k, rho, dims=1, seed=0):
    """log r of correlated pairs and of k independent partners for each anchor: pos [A, 1], neg [A, k], float64."""
    draws = torch.Generator().manual_seed(seed)
    x, noise, others = (torch.randn(anchors, n, dims, generator=draws, dtype=torch.float64) for n in (1, 1, k))
    return log_ratio(x, rho * x + math.sqrt(1 - rho**2) * noise, rho), log_ratio(x, others, rho)


def five_errors(values):
    """Five standard errors of a mean: passed by chance once in two million."""
    return 5 * values.std().item() / math.sqrt(values.numel())


def test_dv_on_correlated_gaussians():
    rho, dims = 0.7, 2
    pos, neg = gaussian_scores(20_000, 16, rho, dims)
    information = -dims / 2 * math.log(1 - rho**2)  # 0.673 nats
    margin = five_errors(pos) + five_errors(neg.exp())  # the mean of r is 1, so the log's error is the mean's
    assert margin < 0.05
    assert dv(pos, neg).item() == pytest.approx(information, abs=margin)


def test_jsd_on_correlated_gaussians():
    """The divergence by a sum over a fine grid, 0.215 nats at rho 0.9; the value is twice that."""
    rho = 0.9
    axis = torch.linspace(-7, 7, 351, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    product_density = torch.exp(-(x**2 + y**2) / 2) / (2 * math.pi)
    r = log_ratio(x[..., None], y[..., None], rho).exp()
    cell = (axis[1] - axis[0]) ** 2
    mixture = (1 + r) / 2
    divergence = ((r * (r / mixture).log() - mixture.log()) * product_density).sum().item() / 2 * cell.item()
    assert divergence == pytest.approx(0.215, abs=5e-4)

    pos, neg = gaussian_scores(20_000, 16, rho)
    margin = five_errors(F.softplus(-pos)) + five_errors(F.softplus(neg))
    assert margin < 0.05
    assert jsd(pos, neg).item() == pytest.approx(2 * divergence, abs=margin)


def test_dv_per_anchor_with_one_negative_on_correlated_gaussians():
    """With K = 1 it is I + KL(product, joint) = d rho^2 / (1 - rho^2), far above I."""
    rho, dims = 0.6, 3
    pos, neg = gaussian_scores(20_000, 1, rho, dims)
    margin = five_errors(pos - neg)
    assert margin < 0.12
    assert dv_per_anchor(pos, neg).item() == pytest.approx(dims * rho**2 / (1 - rho**2), abs=margin)


def test_infonce_rises_with_negatives_to_the_information():
    rho, dims = 0.7, 2
    pos, neg = gaussian_scores(2_000, 1024, rho, dims)
    information, sampled = -dims / 2 * math.log(1 - rho**2), pos.mean().item()
    few, some, many = (infonce(pos, neg[:, :k]).item() for k in (1, 16, 1024))
    assert 0.1 < few < some - 0.05 < many - 0.07
    assert few < LOG2
    assert many == pytest.approx(sampled, abs=0.01)  # K finite costs about Var(r) / 2 K = 0.0014
    assert sampled == pytest.approx(information, abs=five_errors(pos))


def test_units_say_what_is_mutual_information():
    assert {name for name, e in ESTIMATORS.items() if e.unit == "nats"} == {"dv", "dv_per_anchor", "infonce", "nwj"}
    assert all(e.unit == name for name, e in ESTIMATORS.items() if e.unit != "nats")


@each_estimator
def test_values_of_parts_of_the_anchors_join_to_that_of_all(estimator):
    pos, neg = random_scores(4, 3, 6)
    values = torch.stack([estimator(p, n) for p, n in zip(pos.split(2), neg.split(2), strict=True)])
    own = torch.stack([part.mean() for part in pos.split(2)])
    assert joined(values, own, estimator.pooled).item() == pytest.approx(estimator(pos, neg).item(), rel=1e-12)
