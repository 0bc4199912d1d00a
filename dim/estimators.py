"""Estimators: scores of matching and mismatching pairs -> one number to maximise.

Functions of `pos [A, L], neg [A, K] -> scalar`: A anchors, each with its L own (positive) scores and K scores of other
images' pairs (negatives). Every value is larger when the pairs are easier to tell apart and 0 at zero scores; the objective
negates once. All sums of exponentials stay in log space; half-precision scores are raised to float32, float64 stays.

Beside ours, so that logs can be compared (Hjelm et al., ICLR 2019, arXiv 1808.06670; code: rdevon/DIM at bac4765):

    here       the paper's equation         the official code's loss
    jsd        (4), plus 2 log 2            minus this (its "JSD"); its "GAN" is 2 log 2 - this
    dv         (2)                          minus this with log N(N-1) for log(A K); raises a shape error as published
    infonce    (5), plus log(K + 1)         log(K + 1) - this, its own image's other locations standing as scores of -10

so zero scores give a loss of -0 for "JSD" there and log(K + 1) for "nce" (8.302 at batch 64 and 64 locations).

Bounds on an f-divergence D_f(joint | product) = E_product f(r) follow in one step (f-GAN: Nowozin, Cseke & Tomioka 2016): f is
the supremum of its tangents, so D_f >= E g(T+) - E f*(g(T-)), f* its convex conjugate and g a map of any score into f*'s
domain, with equality where g(T) = f'(r). Each docstring names its f and g.

exp overflows where a score passes 88 in float32 and 709 in float64: nwj, rkl and hellinger are then -inf, never NaN, and
training stops with the number of the step. chi2 squares and overflows far later; the others cannot.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# softplus turns linear at its threshold; the default, 20, is off by 2e-9 in float64, 40 by less than its rounding
softplus = partial(F.softplus, threshold=40)


def jsd(pos: Tensor, neg: Tensor) -> Tensor:
    """Twice the Jensen-Shannon divergence of joint and product, from below: 2 log 2 - E sp(-T+) - E sp(T-).

    pos [A, L], neg [A, K] -> scalar, at most 2 log 2 = 1.386. Not nats of mutual information: it ranks critics, and its
    expectation does not depend on K. Best critic log r, r = p(x, y) / p(x) p(y). Constant scores c: 2 log 2 - sp(-c) - sp(c).
    f(u) = u log u - (1 + u) log((1 + u) / 2), f*(t) = -log(2 - e^t), g(T) = log 2 - sp(-T). Paper, equation (4); f-GAN's "JS"
    (Nowozin et al. 2016, table 1), whose "GAN" is this minus 2 log 2.
    """
    pos, neg = checked(pos, neg)
    return 2 * math.log(2) - softplus(-pos).mean() - softplus(neg).mean()


class LogSumExp(torch.autograd.Function):
    """`logsumexp`; kept for the backward pass are the scores alone, no second table of those that are lifted."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, over: int) -> Tensor:
        largest = scores.amax(over, keepdim=True)
        least = math.log(torch.finfo(scores.dtype).tiny) + 40  # e^-47 of the largest in float32, e^-668 in float64
        below = (largest + least).nextafter(largest.new_tensor(-math.inf))  # the largest itself stays above, though it be 1e30
        value = scores.clamp(min=below).logsumexp(over)
        ctx.save_for_backward(scores, below, value)
        ctx.over = over
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scores, below, value = ctx.saved_tensors
        share = scores.clamp(min=below).sub_(value.unsqueeze(ctx.over)).exp_()
        return share.mul_(gradient.unsqueeze(ctx.over)), None


def logsumexp(scores: Tensor, over: int) -> Tensor:
    """log of the sum of exp over a dimension, to rounding, though numbers far below the largest are lifted first.

    They count for nothing there either. Where exp underflows, as it would for most negatives of a critic with wide scores, it
    takes ten times as long (MKL's on an AMD EPYC: 41 against 4 ms for 256 x 16,320 scores). Differentiable once.
    """
    return LogSumExp.apply(scores, over)


def logmeanexp(scores: Tensor) -> Tensor:
    """log of the mean of exp over all entries: scores of any shape -> scalar."""
    return logsumexp(scores.flatten(), 0) - math.log(scores.numel())


def dv(pos: Tensor, neg: Tensor, logmeanexp: Callable[[Tensor], Tensor] = logmeanexp) -> Tensor:
    """Donsker-Varadhan: mutual information in nats, E T+ - log E e^T-, one log over all A K negatives of the batch.

    pos [A, L], neg [A, K] -> scalar without a ceiling. A lower bound in expectation only for infinitely many negatives: on a
    finite sample the log is biased down, so the value up. Best critic log r + any constant. Constant scores: 0. Paper,
    equation (2); Donsker & Varadhan 1983. `logmeanexp` replaces the second term, for a mean kept across ranks or steps.
    """
    pos, neg = checked(pos, neg)
    return pos.mean() - logmeanexp(neg)


def dv_per_anchor(pos: Tensor, neg: Tensor) -> Tensor:
    """Donsker-Varadhan with one log for each anchor: E[T+ - log mean_k e^Tk], nats.

    pos [A, L], neg [A, K] -> scalar without a ceiling. Best critic log r + c(anchor). At K = 1 it is E T+ - E T-, which grows
    without end in training; from K = 256 on it behaves. Constant scores, be it within each anchor: 0.
    """
    pos, neg = checked(pos, neg)
    return (pos - logsumexp(neg, 1)[:, None]).mean() + math.log(neg.shape[1])


def infonce(pos: Tensor, neg: Tensor) -> Tensor:
    """InfoNCE lower bound of mutual information in nats, at most log(K + 1): E[T+ - log(e^T+ + sum_k e^Tk)] + log(K + 1).

    pos [A, L], neg [A, K] -> scalar. Each positive competes with the K negatives of its anchor, never with the anchor's
    other positives. The sum over negatives is taken once for each anchor and shared by its L positives, so nothing of size
    A L K is made. Best critic log r + c(anchor). Constant scores, be it within each anchor: 0. Paper, equation (5); van den
    Oord et al. 2018, arXiv 1807.03748.
    """
    pos, neg = checked(pos, neg)
    others = logsumexp(neg, 1)[:, None]
    return (pos - torch.logaddexp(pos, others)).mean() + math.log(neg.shape[1] + 1)


def nwj(pos: Tensor, neg: Tensor) -> Tensor:
    """Mutual information in nats by Nguyen, Wainwright & Jordan 2010, as a log ratio: 1 + E T+ - E e^T-.

    pos [A, L], neg [A, K] -> scalar without a ceiling; in the mean a lower bound, and I at the best critic, where the variance
    of its negatives' part is the chi-squared divergence over their number: e^(2 I) - 1 for Gaussians, at least e^I - 1. Best
    critic log r. Constant scores c: 1 + c - e^c. f-GAN's KL: f(u) = u log u, f*(t) = e^(t - 1), g(T) = 1 + T. MINE-f with 1
    added to its T.
    """
    pos, neg = checked(pos, neg)
    return 1 + pos.mean() - neg.exp().mean()


def nce(pos: Tensor, neg: Tensor) -> Tensor:
    """Noise-contrastive estimation: E log s(T+ - log K) + K E log s(log K - T-) + its value at T = 0, s the logistic function.

    pos [A, L], neg [A, K] -> scalar, at most log(1 + K) + K log((1 + K) / K): for each of K + 1 pairs whether it is the own
    one, with prior odds of 1 to K. jsd at K = 1. Best critic log r, whatever K. Constant scores c: as the formula has it, 0 at
    c = 0 and less elsewhere. f(u) = u log((1 + K) u / (u + K)) + K log((1 + K) / (u + K)), f*(t) = -K log((1 + K - e^t) / K),
    g(T) = log(1 + K) + log s(T - log K). Gutmann & Hyvarinen 2010.
    """
    pos, neg = checked(pos, neg)
    k = neg.shape[1]
    shift = math.log(k)
    return ceiling_of_nce(k) - softplus(shift - pos).mean() - k * softplus(neg - shift).mean()


def ceiling_of_nce(k: int) -> float:
    return math.log1p(k) + k * math.log1p(1 / k)


def rkl(pos: Tensor, neg: Tensor) -> Tensor:
    """Reverse KL divergence in nats, of the product from the joint: 1 - E e^-T+ - E T-.

    pos [A, L], neg [A, K] -> scalar without a ceiling. Best critic log r. Constant scores c: 1 - c - e^-c. f(u) = -log u,
    f*(t) = -1 - log(-t), g(T) = -e^-T.
    """
    pos, neg = checked(pos, neg)
    return 1 - (-pos).exp().mean() - neg.mean()


def chi2(pos: Tensor, neg: Tensor) -> Tensor:
    """Pearson's chi-squared divergence, E r - 1 over the joint: E T+ - E[T-^2 / 4 + T-].

    pos [A, L], neg [A, K] -> scalar without a ceiling. Best critic 2 (r - 1). Constant scores c: -c^2 / 4. f(u) = (u - 1)^2
    for every u, f*(t) = t^2 / 4 + t (of u >= 0 alone it is -1 below -2, which is tighter), g(T) = T. The official code's "X2"
    is another function and no bound: it grows with |T| of either sign on both sides.
    """
    pos, neg = checked(pos, neg)
    return pos.mean() - (neg.square() / 4 + neg).mean()


def hellinger(pos: Tensor, neg: Tensor) -> Tensor:
    """Squared Hellinger distance, the sum of (sqrt p - sqrt q)^2: 2 - E e^-T+ - E e^T-.

    pos [A, L], neg [A, K] -> scalar, at most 2. Best critic (log r) / 2. Constant scores c: 2 - e^-c - e^c. f(u) = (sqrt u
    - 1)^2, f*(t) = t / (1 - t), g(T) = 1 - e^-T.
    """
    pos, neg = checked(pos, neg)
    return 2 - (-pos).exp().mean() - neg.exp().mean()


def tv(pos: Tensor, neg: Tensor) -> Tensor:
    """Total variation, half the sum of |p - q|: (E tanh T+ - E tanh T-) / 2.

    pos [A, L], neg [A, K] -> scalar, at most 1. Best critic +-infinity by the sign of r - 1. Constant scores: 0. f(u) = |u
    - 1| / 2, f*(t) = t on [-1/2, 1/2], g(T) = tanh(T) / 2.
    """
    pos, neg = checked(pos, neg)
    return (pos.tanh().mean() - neg.tanh().mean()) / 2


def wasserstein(pos: Tensor, neg: Tensor) -> Tensor:
    """Wasserstein-1 distance of joint and product by its dual: E T+ - E T-, over critics of slope 1 at most.

    pos [A, L], neg [A, K] -> scalar, in units of what the slope is measured over; without a limit on the slope it grows
    without end, so training needs one (`dim.objective.Term`). Best critic: Kantorovich's potential. Constant scores: 0. No
    f-divergence.
    """
    pos, neg = checked(pos, neg)
    return pos.mean() - neg.mean()


def smile(pos: Tensor, neg: Tensor, tau: float = 5.0) -> Tensor:
    """A read-out in nats for critics that estimate log r, not trained by: E T+ - log of the mean of e^T- with T- cut to +-tau.

    pos [A, L], neg [A, K] -> scalar. Less variance than dv and no bound: it reads too much where r passes e^tau. Song &
    Ermon 2020, arXiv 1910.06222, in the form of its code. tau = infinity: dv.
    """
    pos, neg = checked(pos, neg)
    return pos.mean() - logmeanexp(neg.clamp(-tau, tau))


def joined(values: Tensor, own: Tensor, pooled: bool) -> Tensor:
    """Values of an estimator on equal parts of the anchors [parts, ..] -> its value on all of them [..].

    A mean over anchors is the mean of the parts' means. pooled: dv, whose one logarithm is over all negatives: a part's second
    term is its mean of own scores [parts, ..] minus its value.
    """
    if not pooled:
        return values.mean(0)
    return own.mean(0) - (own - values).logsumexp(0) + math.log(len(values))


def raised(scores: Tensor) -> Tensor:
    """Half-precision scores as float32; float32 and float64 as they are."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def checked(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """pos [A, L] and neg [A, K], raised; ValueError with both shapes where they do not fit or one is empty."""
    if pos.ndim != 2 or neg.ndim != 2 or len(pos) != len(neg) or 0 in (*pos.shape, *neg.shape):
        raise ValueError(f"need pos [A, L] and neg [A, K], none empty; got {list(pos.shape)} and {list(neg.shape)}")
    return raised(pos), raised(neg)


@dataclass(frozen=True)
class Estimator:
    """An estimator by name: called as its function, with what a reader of its values must know.

    ceiling(k): the value that it cannot pass with k negatives for each anchor, in its unit; None: there is none. log_ratio:
    whether its best critic is log r itself, so that nwj and smile may read the critic out. pooled: no mean over anchors.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    unit: str  # nats: of mutual information; else the divergence
    ceiling: Callable[[int], float | None] = lambda k: None
    log_ratio: bool = False
    pooled: bool = False

    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        return self.function(pos, neg)


ESTIMATORS = {
    "jsd": Estimator(jsd, "jsd", lambda k: 2 * math.log(2), log_ratio=True),
    "dv": Estimator(dv, "nats", pooled=True),
    "dv_per_anchor": Estimator(dv_per_anchor, "nats"),
    "infonce": Estimator(infonce, "nats", lambda k: math.log(k + 1)),
    "nwj": Estimator(nwj, "nats", log_ratio=True),
    "nce": Estimator(nce, "nce", ceiling_of_nce, log_ratio=True),
    "rkl": Estimator(rkl, "rkl", log_ratio=True),
    "chi2": Estimator(chi2, "chi2"),
    "hellinger": Estimator(hellinger, "hellinger", lambda k: 2.0),
    "tv": Estimator(tv, "tv", lambda k: 1.0),
    "wasserstein": Estimator(wasserstein, "wasserstein"),
}
