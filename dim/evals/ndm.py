"""NDM: total correlation of codes, by a critic between rows and rows whose columns were shuffled apart (paper, section 4)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dim.evals.columns import indicators, standardised, table
from dim.evals.ratio import CHUNK, STEPS, UNITS, Head, estimate, thirds

Shuffle = Callable[[int, int, torch.Generator], Tensor]


def permuted(rows: int, columns: int, draws: torch.Generator) -> Tensor:
    """For each column a permutation of its own: places [rows, columns]. A sort for each column."""
    return torch.rand(rows, columns, generator=draws).argsort(0)


def shifted(rows: int, columns: int, draws: torch.Generator) -> Tensor:
    """For each column a cyclic shift of its own: places [rows, columns]; nothing is sorted.

    The shifts are distinct, so no two columns come from one row anywhere; independent shifts would keep two columns together
    in all rows with probability 1 / rows. As the rows are in random order, rows meet at random, as with permutations. With
    more columns than rows there are not enough shifts: permutations.
    """
    if columns > rows:
        return permuted(rows, columns, draws)
    shifts = torch.randperm(rows, generator=draws)[:columns]
    return (torch.arange(rows)[:, None] + shifts) % rows


class Rows(nn.Module):
    """The critic T(y). of: for each column of the data which dimension of y it tells of; they are shuffled together."""

    def __init__(self, of: Tensor, shuffle: Shuffle = shifted, units: int = UNITS):
        super().__init__()
        self.first, self.head, self.shuffle = nn.Linear(len(of), units), Head(units), shuffle
        self.of = of.cpu()

    def forward(self, data: Sequence[Tensor], rows: Tensor, shuffles: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """data y [n, W], rows [B] -> scores of these rows [B, 1], and of as many shuffled ones [B, shuffles]."""
        (y,) = data
        columns = torch.arange(y.shape[1], device=y.device)

        def scores(places: Tensor) -> Tensor:
            """places [B, 1] or [B, W] among the rows, for each column -> scores [B]."""
            parts = (rows[part.to(rows.device)] for part in places.split(CHUNK))
            return torch.cat([self.head(self.first(y[part, columns])) for part in parts])

        dimensions = int(self.of[-1]) + 1
        neg = [scores(self.shuffle(len(rows), dimensions, draws)[:, self.of]) for _ in range(shuffles)]
        return scores(torch.arange(len(rows))[:, None])[:, None], torch.stack(neg, 1)


def ndm(
    y: Any,
    seed: int = 0,
    squash: bool = False,
    estimator: str = "jsd",
    ranks: bool = True,
    steps: int = STEPS,
    shuffle: Shuffle = shifted,
) -> dict:
    """The total correlation of y [n, D] in nats, KL(p(y), product of its marginals); a held-out estimate; 0: independent.

    squash: the prior's sigmoid first. It cannot change the total correlation, nor with ranks the estimate; with ranks=False
    it shows how far the critic depends on scale. The other arguments and what is returned are those of `mine`, with
    "total_correlation_nats" for "mi_nats". shuffle: `shifted`, or `permuted`, which costs more.
    """
    values = table(y, "y")
    if squash:
        values = values.double().sigmoid()
    split = thirds(len(values), seed)
    columns, of = indicators(values, split[0])
    prepared, dead = standardised(columns, split[0], ranks)
    found = estimate((prepared,), lambda: Rows(of, shuffle), split, estimator, steps, seed)
    return {"total_correlation_nats": found.pop("nats"), **found, "dead_columns": dead, "squash": squash}
