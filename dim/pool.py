"""Pools: which embedded maps stand before the anchors, and which of them show an anchor's own image.

    pool(b, image) -> Pool        b [P, L, U] of this batch, image [A] the data-set number of each anchor

The first entries of b are the anchors' own, those of every rank in order; what stands behind them is no anchor's own entry.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dim import distributed
from dim.estimators import raised


class Pool(NamedTuple):
    """b [P, L, U]; own [A], the place of each anchor's own entry; out [A, E], the places that are none of its negatives,
    ascending, own among them: E is the same for all, so K is too."""

    b: Tensor
    own: Tensor
    out: Tensor


def batch_pool(b: Tensor, image: Tensor) -> Pool:
    """The whole batch, of all ranks; only the own image is no negative."""
    own = distributed.places(image)
    return Pool(distributed.gathered(b), own, own[:, None])


class Queue(nn.Module):
    """The batch, and behind it the rows of the last `size` images, embedded when they were seen, without gradient.

    size: images, a multiple of the batch and less than an epoch, so that an anchor's image is there once at most. That copy
    is left out; an anchor without one leaves out the oldest entry instead, so K = (batch + size - 2) L for all of them. The
    weights that embedded a row are size / batch steps old at most. A run's state holds the rows, size * L * units numbers.
    """

    rows: Tensor
    image: Tensor
    born: Tensor
    next: Tensor

    def __init__(self, size: int, locations: int, units: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, locations, units))
        self.register_buffer("image", torch.full((size,), -1))  # data-set numbers
        self.register_buffer("born", torch.zeros(size, dtype=torch.long))  # steps
        self.register_buffer("next", torch.zeros((), dtype=torch.long))  # where the next row goes

    def forward(self, b: Tensor, image: Tensor) -> Pool:
        """b [A, L, U], image [A] -> the pool of A + size entries."""
        copies = image[:, None] == self.image  # [A, size]
        copy = torch.where(copies.any(1), copies.int().argmax(1), self.next)  # the next to be overwritten is the oldest
        b, own = distributed.gathered(b), distributed.places(image)
        return Pool(torch.cat([b, self.rows.to(b.dtype)]), own, torch.stack([own, len(b) + copy], 1))

    @torch.no_grad()
    def push(self, b: Tensor, image: Tensor, step: int, unless: Tensor | None = None) -> None:
        """b [N, L, U], image [N] of this rank; those of all ranks take the place of the oldest, their number divides the size.
        unless: as in `Term.remember`."""
        b, image = distributed.gathered(b), distributed.gathered(image)
        places = self.next + torch.arange(len(image), device=b.device)
        new = {"rows": raised(b).to(self.rows.dtype), "image": image, "born": torch.full_like(image, step)}
        for name, values in new.items():
            kept = getattr(self, name)
            if unless is not None:
                values = torch.where(unless, kept.index_select(0, places), values)
            kept.index_copy_(0, places, values)
        moved = len(image) if unless is None else len(image) * ~unless
        self.next.add_(moved).remainder_(len(self.rows))

    def age(self, step: int) -> Tensor:
        """Mean age of the rows at a step, in steps, a scalar on the device."""
        return step - self.born.float().mean()


def skipping(place: Tensor, out: Tensor, width: int = 1) -> Tensor:
    """Places among what is left [A, K] -> places among all, each stepping over `width` from every one of out [A, E] on."""
    for first in out.unbind(1):  # ascending
        place = place + width * (place >= first[:, None])
    return place
