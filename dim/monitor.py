"""The monitor: what a batch's scores say beside the value that is trained, looked at when a line of the log is due."""

import math

import torch
from torch import Tensor

from dim import distributed
from dim.estimators import ESTIMATORS, dv, infonce, jsd, nwj, smile
from dim.objective import Scores

SATURATED = 0.95  # of log(K + 1): from there on InfoNCE tells more information from less no longer


def log_row(scores: dict[str, list[Scores]], terms: list) -> dict[str, float | None]:
    """The readings of each term for a line of the log, {} where no scores were kept: {"local/read/infonce_nats": 2.1, ..}.

    None: beyond the numbers of the scores' precision, as nwj is in float32 where a negative scores 89. Of several processes
    the mean of their readings. terms: `dim.build.TermFacts`.
    """
    row: dict[str, float | None] = {}
    for t in terms:
        if kept := scores.get(t.name):
            found = readings(kept, t.log_ratio)
            values = distributed.mean(torch.stack([value.double() for value in found.values()]))
            finite = [value if math.isfinite(value) else None for value in values.tolist()]  # one read of the device
            row |= {f"{t.name}/{key}": value for key, value in zip(found, finite, strict=True)}
    return row


@torch.no_grad()
def readings(scores: list[Scores], log_ratio: bool) -> dict[str, Tensor]:
    """Scores of a step (of both views where there are two) -> {"read/infonce_nats": scalar on the device, ..}, their means.

    read/..: bounds of other estimators on the same scores, read/.._ceiling beside each that has one (`smile`: a reading, no
    bound); nwj and smile only where the critic was trained for log r (log_ratio). positive/ and negative/ mean and sd of the
    scores; read/infonce_saturated: 1 where InfoNCE is within 5 % of log(K + 1); negatives_above: share of its negatives that
    score above a positive, a tie as a half, 0.5 for a critic that knows nothing.
    """
    each = [of_one(pos, neg, log_ratio) for pos, neg in scores]
    return {key: torch.stack([one[key] for one in each]).mean() for key in each[0]}


def of_one(pos: Tensor, neg: Tensor, log_ratio: bool) -> dict[str, Tensor]:
    """The same for pos [A, L], neg [A, K]."""
    k = neg.shape[1]
    found = {"read/infonce_nats": infonce(pos, neg), "read/dv_nats": dv(pos, neg), "read/jsd_jsd": jsd(pos, neg)}
    if log_ratio:
        found |= {"read/nwj_nats": nwj(pos, neg), "read/smile_nats": smile(pos, neg)}
    top = math.log(k + 1)
    found |= {"read/infonce_ceiling": pos.new_tensor(top), "read/jsd_ceiling": pos.new_tensor(ESTIMATORS["jsd"].ceiling(k))}
    found["read/infonce_saturated"] = (found["read/infonce_nats"] >= SATURATED * top).float()
    for name, part in (("positive", pos), ("negative", neg)):
        found |= {f"{name}/mean": part.mean(), f"{name}/sd": part.std(correction=0)}
    found["negatives_above"] = above(pos, neg)
    return found


def above(pos: Tensor, neg: Tensor) -> Tensor:
    """Share of an anchor's negatives that are above its positive, a tie as a half: pos [A, L], neg [A, K] -> scalar in [0, 1].

    By sorting each anchor's negatives and looking its positives up, A (K + L) numbers and no A x L x K table.
    """
    neg, pos = neg.sort(1).values, pos.contiguous()
    below = torch.searchsorted(neg, pos) + torch.searchsorted(neg, pos, right=True)  # twice, with ties as halves
    return 1 - below.double().mean() / (2 * neg.shape[1])
