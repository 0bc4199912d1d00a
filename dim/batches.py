"""Batches: the pictures of each step, a function of the seed and the step alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dim import distributed, randomness
from dim.config import Config
from dim.data import Dataset
from dim.views import Chain, draw_table

Walk = Callable[[int, int], Iterator[tuple[int, Tensor, Tensor]]]


def walk(config: Config, data: Dataset, view: Chain, device: torch.device) -> Walk:
    """walk(first, last) -> step, data-set numbers [N] of its images, and pictures [views * N, C, S, S] of them, the first N of
    view one, for each of these steps; in an order and in views of each epoch's own. Negative steps are epochs before the first.
    N is this process's share of train.batch_size; the shares of all ranks, in order, are the batch of one process.
    """
    images, size, views = data.pretraining.to(device), config.train.batch_size, config.views.number
    own = distributed.share(size, "train.batch_size")
    epoch_steps, dtype = len(images) // size, torch.float64 if config.precision == "float64" else torch.float32

    def units(stored: Tensor) -> Tensor:
        return data.units(stored, dtype)

    def steps(first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        for step in range(first, last):
            epoch, place = divmod(step, epoch_steps)
            if place == 0 or step == first:
                order = randomness.order(config.seed, epoch, len(images)).to(device)
                draws = draw_table(config.seed, epoch, len(images), views, view.draws).to(device)
                shares = order[: epoch_steps * size].view(epoch_steps, -1, own)[:, distributed.rank()]  # [steps, N]
                batches = images.batches(shares[place:].flatten(), own)
            index = shares[place]
            stored = next(batches).to(device)
            made = [view.of_bytes(stored, draws[index, v], units) for v in range(views)]
            pictures = data.normalised(torch.cat(made) if views > 1 else made[0])
            yield step, index, pictures.contiguous(memory_format=torch.channels_last)

    return steps
