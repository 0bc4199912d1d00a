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
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# softplus turns linear at its threshold; the default, 20, is off by 2e-9 in float64, 40 by less than its rounding
softplus = partial(F.softplus, threshold=40)


def jsd(pos: Tensor, neg: Tensor) -> Tensor:
    """Twice the Jensen-Shannon divergence of joint and product, from below: 2 log 2 - E sp(-T+) - E sp(T-).

    pos [A, L], neg [A, K] -> scalar, at most 2 log 2 = 1.386. Not nats of mutual information: it ranks critics, and its
    expectation does not depend on K. Best critic log r, r = p(x, y) / p(x) p(y). Paper, equation (4); f-GAN's "JS"
    (Nowozin et al. 2016, table 1), whose "GAN" is this minus 2 log 2.
    """
    pos, neg = checked(pos, neg)
    return 2 * math.log(2) - softplus(-pos).mean() - softplus(neg).mean()


def logmeanexp(scores: Tensor) -> Tensor:
    """log of the mean of exp over all entries: scores of any shape -> scalar."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel())


def dv(pos: Tensor, neg: Tensor, logmeanexp: Callable[[Tensor], Tensor] = logmeanexp) -> Tensor:
    """Donsker-Varadhan: mutual information in nats, E T+ - log E e^T-, one log over all A K negatives of the batch.

    pos [A, L], neg [A, K] -> scalar without a ceiling. A lower bound in expectation only for infinitely many negatives: on a
    finite sample the log is biased down, so the value up. Best critic log r + any constant. Paper, equation (2); Donsker &
    Varadhan 1983. `logmeanexp` replaces the second term, for a mean kept across ranks or steps.
    """
    pos, neg = checked(pos, neg)
    return pos.mean() - logmeanexp(neg)


def dv_per_anchor(pos: Tensor, neg: Tensor) -> Tensor:
    """Donsker-Varadhan with one log for each anchor: E[T+ - log mean_k e^Tk], nats.

    pos [A, L], neg [A, K] -> scalar without a ceiling. Best critic log r + c(anchor). At K = 1 it is E T+ - E T-, which grows
    without end in training; from K = 256 on it behaves. Zero for scores that are equal within each anchor.
    """
    pos, neg = checked(pos, neg)
    return (pos - neg.logsumexp(1, keepdim=True)).mean() + math.log(neg.shape[1])


def infonce(pos: Tensor, neg: Tensor) -> Tensor:
    """InfoNCE lower bound of mutual information in nats, at most log(K + 1): E[T+ - log(e^T+ + sum_k e^Tk)] + log(K + 1).

    pos [A, L], neg [A, K] -> scalar. Each positive competes with the K negatives of its anchor, never with the anchor's other
    positives. The sum over negatives is taken once for each anchor and shared by its L positives, so nothing of size
    A L K is made. Best critic log r + c(anchor). Paper, equation (5); van den Oord et al. 2018, arXiv 1807.03748.
    """
    pos, neg = checked(pos, neg)
    others = neg.logsumexp(1, keepdim=True)  # [A, 1]
    return (pos - torch.logaddexp(pos, others)).mean() + math.log(neg.shape[1] + 1)


def raised(scores: Tensor) -> Tensor:
    """Half-precision scores as float32; float32 and float64 as they are."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def checked(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """pos [A, L] and neg [A, K], raised; ValueError with both shapes where they do not fit or one is empty."""
    if pos.ndim != 2 or neg.ndim != 2 or len(pos) != len(neg) or 0 in (*pos.shape, *neg.shape):
        raise ValueError(f"need pos [A, L] and neg [A, K], none empty; got {list(pos.shape)} and {list(neg.shape)}")
    return raised(pos), raised(neg)


def ceiling(estimator: str, k: int) -> float | None:
    """The value that an estimator cannot pass with k negatives for each anchor, in its own unit; None: there is none."""
    return {"jsd": 2 * math.log(2), "infonce": math.log(k + 1)}.get(estimator)


ESTIMATORS = {"jsd": jsd, "dv": dv, "dv_per_anchor": dv_per_anchor, "infonce": infonce}
UNITS = {"jsd": "jsd", "dv": "nats", "dv_per_anchor": "nats", "infonce": "nats"}  # jsd: nats of divergence, not of information
