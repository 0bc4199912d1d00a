"""Columns: arrays of any kind as columns that a critic can read, fitted on its training rows."""

from typing import Any

import torch
from torch import Tensor

from dim.config import UserError

FEWEST = 30  # rows: thirds of ten
BLOCK = 64  # columns at a time, so that nothing else of the input's size is made
LIMIT = 10.0  # standard deviations


def table(values: Any, name: str) -> Tensor:
    """An array [n, D], [n] as one column, [n, ...] flattened -> tensor [n, D]; UserError where it is none of these."""
    found = torch.as_tensor(values).detach()
    if found.ndim == 0 or len(found) < FEWEST or found.numel() == 0 or found.is_complex():
        raise UserError(
            f"{name} has shape {list(found.shape)} of {found.dtype}: needed are real numbers [n, D] with n at least {FEWEST}"
        )
    found = found.reshape(len(found), -1)
    if bad := sum(int((~part.isfinite()).sum()) for part in found.split(4096)):
        raise UserError(f"{name} has {bad:,} of {found.numel():,} values that are not finite: leave those rows out")
    return found


def standardised(values: Tensor, train: Tensor, ranks: bool) -> tuple[Tensor, int]:
    """values [n, D] -> float32 [n, D] of mean 0 and standard deviation 1 on the training rows, and the number of dead columns.

    ranks: each column first through its own distribution function on the training rows to a normal quantile; the mutual
    information stays, heavy tails go. A column that is constant on the training rows is dead: 0 in all rows. What lies beyond
    LIMIT standard deviations is cut, which can only lower the information.
    """
    out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    train, dead = train.to(values.device), 0
    for first in range(0, values.shape[1], BLOCK):
        columns = values[:, first : first + BLOCK].T.double().contiguous()  # [64, n]
        known = columns[:, train]
        constant = known.amin(1) == known.amax(1)  # exact, where a standard deviation is rounded
        if ranks:
            columns = normal_quantiles(columns, known)
            known = columns[:, train]
        columns -= known.mean(1, keepdim=True)
        columns /= known.std(1, keepdim=True, correction=0)
        columns[constant] = 0
        out[:, first : first + BLOCK] = columns.clamp_(-LIMIT, LIMIT).T
        dead += int(constant.sum())
    return out, dead


def normal_quantiles(columns: Tensor, known: Tensor) -> Tensor:
    """columns [D, n] -> normal quantiles of their places among known [D, m].

    Ties stand in the middle of their places; what lies outside the known values stands half a place from the end.
    """
    ordered, m = known.sort(1).values, known.shape[1]
    places = torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)
    return torch.special.ndtri((places / (2 * m)).clamp(0.5 / m, 1 - 0.5 / m))
