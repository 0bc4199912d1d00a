"""Negatives: which locations of which images stand against an anchor, and how many.

    negatives(pool, seed, step) -> rows [A, K] of the pool's P L locations; None: all of the images that are not left out

`pool` is a `dim.pool.Pool`. A negative never shows the anchor's image, and every anchor has the same K.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dim.pool import Pool, skipping
from dim.randomness import generator


@dataclass(frozen=True)
class All:
    """Every location of every other image: K = (P - E) L."""

    k: int = 0  # there is nothing to choose

    def count(self, others: int, locations: int) -> int:
        return others * locations

    def __call__(self, pool: Pool, seed: int, step: int) -> None:
        return None


@dataclass(frozen=True)
class Sampled:
    """K = k locations of other images for each anchor, uniform without replacement, new at each step.

    Anchors read one permutation of a step from starts of their own. Each anchor's k are a uniform sample, any two anchors
    share as many on average as independent draws would, and the cost is one permutation of (P - E) L numbers, not one for
    each anchor.
    """

    k: int

    def count(self, others: int, locations: int) -> int:
        return self.k

    def __call__(self, pool: Pool, seed: int, step: int) -> Tensor:
        images, locations = pool.b.shape[:2]
        others = (images - pool.out.shape[1]) * locations
        if self.k > others:
            raise ValueError(f"{self.k} negatives asked of {others}: {images} images in the pool, {locations} locations")
        device = pool.b.device
        draws = generator(seed, "negatives", step, device=device)
        order = torch.randperm(others, generator=draws, device=device)
        start = torch.randint(others, (images, 1), generator=draws, device=device)[pool.own]  # by place
        row = order[(start + torch.arange(self.k, device=device)) % others]  # places among the other images
        return skipping(row, pool.out * locations, locations)


@dataclass(frozen=True)
class Shifted:
    """The whole maps of the next k images of the pool, cyclically: K = k L; the cheapest choice for the concat critic."""

    k: int

    def count(self, others: int, locations: int) -> int:
        return self.k * locations

    def __call__(self, pool: Pool, seed: int, step: int) -> Tensor:
        images, locations = pool.b.shape[:2]
        others, device = images - pool.out.shape[1], pool.b.device
        if self.k > others:
            raise ValueError(f"{self.k} shifts asked of a pool of {images} images: at most {others}")
        place = (pool.own[:, None] + torch.arange(self.k, device=device)) % others  # among the others, from the next one on
        chosen = skipping(place, pool.out)
        return (chosen[:, :, None] * locations + torch.arange(locations, device=device)).flatten(1)


NEGATIVES: dict[str, Callable[[int], All | Sampled | Shifted]] = {"all": All, "sampled": Sampled, "shifted": Shifted}
