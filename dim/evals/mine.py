"""MINE: mutual information of paired rows, by a critic between own and shifted pairs (Belghazi et al. 2018)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dim.config import UserError
from dim.evals.columns import indicators, standardised, table
from dim.evals.ratio import CHUNK, STEPS, UNITS, Head, estimate, thirds


class Pairs(nn.Module):
    """The critic T(x, z). Its first layer is W[x; z] = Wx x + Wz z, each row once, so nothing is tiled or concatenated."""

    def __init__(self, x_width: int, z_width: int, units: int = UNITS):
        super().__init__()
        self.left, self.right = nn.Linear(x_width, units), nn.Linear(z_width, units, bias=False)
        self.head = Head(units)

    def forward(self, data: Sequence[Tensor], rows: Tensor, shuffles: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """data x [n, Dx] and z [n, Dz], rows [B] -> scores of their own pairs [B, 1], of x with shifted z [B, shuffles].

        Shifts are distinct and never 0, so no own pair is among the shifted ones.
        """
        a, b = (
            torch.cat([layer(values[part]) for part in rows.split(CHUNK)])
            for layer, values in zip((self.left, self.right), data, strict=True)
        )
        shifts = 1 + torch.randperm(len(rows) - 1, generator=draws)[:shuffles]
        neg = [self.head(a + b.roll(shift, 0)) for shift in shifts.tolist()]
        return self.head(a + b)[:, None], torch.stack(neg, 1)


def mine(x: Any, z: Any, seed: int = 0, estimator: str = "jsd", ranks: bool = True, steps: int = STEPS) -> dict:
    """I(x; z) in nats, a held-out estimate from pairs of rows x [n, Dx], z [n, Dz] (numpy or torch).

    seed: of thirds, weights, order and shifts. estimator: what trains the critic, "jsd", or "dv" with MINE's moving average,
    which varies more; the read-out is DV in both cases. ranks: each column through its own distribution function first, which
    keeps the information and tames heavy tails; else standardised only. steps: of the critic; another half as many go into
    the test of convergence.

    Returns {"mi_nats": "positive_term" - "negative_term", but at most "certifiable_nats": log of the reporting rows, about what
    any method can certify from them, "standard_error" of the read-out, "converged", "doubts": why not, "half_nats": with half
    of the data and steps, "training_nats" and "choosing_nats": the same critic on the other thirds, and counts}.
    The spread over seeds is the caller's: `ratio.spread([mine(x, z, seed) for seed in range(5)], "mi_nats")`.
    """
    tables = table(x, "x"), table(z, "z")
    if len(tables[0]) != len(tables[1]):
        raise UserError(f"x has {len(tables[0]):,} rows and z {len(tables[1]):,}: they must be pairs")
    split = thirds(len(tables[0]), seed)
    (x, dead_x), (z, dead_z) = (standardised(indicators(values, split[0])[0], split[0], ranks) for values in tables)
    found = estimate((x, z), lambda: Pairs(x.shape[1], z.shape[1]), split, estimator, steps, seed)
    return {"mi_nats": found.pop("nats"), **found, "dead_columns": [dead_x, dead_z]}
