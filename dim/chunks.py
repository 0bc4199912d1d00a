"""Large batches in little memory: pictures are embedded a chunk at a time, without the graph, and once more when their gradient
is due.

Every pair of the whole batch is scored and the gradient is that of the whole batch (gradient caching: Gao et al. 2021,
arXiv 2101.06983), for one more forward pass of the encoder. The cut is at what the objective's `embed` returns. With batch
statistics a chunk is the group that is normalised ("ghost" statistics); without them, and without dropout, nothing differs but
rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dim.objective import Embedded, Pair


def embedded_in_chunks(
    embed: Callable[[Tensor], Embedded], state: nn.ModuleList, pictures: Tensor, chunk: int, views: int = 1
) -> Embedded:
    """embed(pictures) of a batch, `chunk` images in all their views at a time; 0 or the batch: all at once.

    pictures [views * N, ...], the first N of view one, as everything in the result; chunk divides N. state: the modules whose
    buffers embed may change, such as running statistics: the first pass changes them, once for each chunk in order, and the
    second finds them as the first did and leaves no trace. Dropout draws the same in both.
    """
    images = len(pictures) // views
    if chunk in (0, images):
        return embed(pictures)
    places = torch.arange(len(pictures), device=pictures.device).view(views, images).split(chunk, dim=1)
    order = torch.cat([place.flatten() for place in places]).argsort()
    buffers = list(state.buffers())

    def contexts():
        return nullcontext(), as_before(buffers, [buffer.clone() for buffer in buffers])

    parts = [
        checkpoint(embed, pictures[place.flatten()], use_reentrant=False, context_fn=contexts, preserve_rng_state=True)
        for place in places
    ]

    def whole(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).index_select(0, order)

    def pair(pairs: Sequence[Pair | None]) -> Pair | None:
        return None if pairs[0] is None else Pair(*map(whole, zip(*pairs, strict=True)))

    y, local, glob = zip(*parts, strict=True)
    return Embedded(whole(y), pair(local), pair(glob))


@contextmanager
def as_before(buffers: list[Tensor], before: list[Tensor]) -> Iterator[None]:
    """Inside, buffers hold `before`; afterwards what they held, whatever was done to them."""
    after = [buffer.clone() for buffer in buffers]
    set_to(buffers, before)
    try:
        yield
    finally:
        set_to(buffers, after)


@torch.no_grad()
def set_to(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
