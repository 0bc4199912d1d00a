"""Columns: arrays of any kind as columns that a critic can read, fitted on its training rows."""

from typing import Any

import torch
from torch import Tensor

from dim.config import UserError

FEWEST = 30  # rows: thirds of ten
BLOCK = 64  # columns at a time, so that nothing else of the input's size is made
LIMIT = 10.0  # standard deviations
LEVELS, INDICATORS = 32, 256  # of a column with indicators, and in all of a table's


def table(values: Any, name: str) -> Tensor:
    """An array [n, D], [n] as one column, [n, ...] flattened -> tensor [n, D]; UserError where it is none of these."""
    try:
        found = torch.as_tensor(values).detach()
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is no array of numbers: {error}") from None
    if found.ndim == 0 or len(found) < FEWEST or found.numel() == 0 or found.is_complex():
        raise UserError(
            f"{name} has shape {list(found.shape)} of {found.dtype}: needed are real numbers [n, D] with n at least {FEWEST}"
        )
    found = found.reshape(len(found), -1)
    if bad := sum(int((~part.isfinite()).sum()) for part in found.split(4096)):
        raise UserError(f"{name} has {bad:,} of {found.numel():,} values that are not finite: leave those rows out")
    return found


def indicators(values: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """values [n, D] -> columns [n, W], and of which of the D each is; discrete columns become an indicator for each level.

    Discrete: 3 to LEVELS different values on the training rows, ten rows for each of them on average. A critic that sees a
    level as a number learns log ratios that jump slowly: of a table of 12 x 12 with 0.85 nats it read 3 % too little, and with
    half of the rows and steps 10 %, with indicators 1.5 % and 1.8 %. A table that would have more than INDICATORS, as
    images of few grey levels would, stays as it is.
    """
    plain = values, torch.arange(values.shape[1], device=values.device)
    if values.shape[1] > INDICATORS // 3:
        return plain
    levels = [column.unique() for column in values[train.to(values.device)].T]
    most = min(LEVELS, len(train) // 10)
    sizes = [len(found) if 3 <= len(found) <= most else 1 for found in levels]
    if max(sizes) == 1 or sum(size for size in sizes if size > 1) > INDICATORS:
        return plain
    columns = values.T[:, :, None]
    parts = [
        (column == found).to(torch.float64) if size > 1 else column.double()
        for column, found, size in zip(columns, levels, sizes, strict=True)
    ]
    return torch.cat(parts, 1), plain[1].repeat_interleave(torch.tensor(sizes, device=values.device))


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
        exponents = known.abs().amax(1, keepdim=True).frexp().exponent
        columns = columns.ldexp(-exponents)  # exact; the square of 1e300 is beyond float64
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
