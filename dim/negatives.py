"""Pool and negatives: which locations of which images stand against an anchor, and how many.

    pool(b, image)                              -> b [P, L, U], image [P], own [A]
    negatives(own, image, locations, seed, step) -> rows [A, K] of the pool's P L locations; None: all of the other images

`image` holds the data-set number of each entry of the pool, no number twice; `own` the place of each anchor's image. A
negative never shows the anchor's image, and every anchor has the same K.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dim.randomness import generator


def batch_pool(b: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The batch itself: b [P, L, U], image [P] -> the same and own = 0 .. P - 1."""
    return b, image, torch.arange(len(b), device=b.device)


@dataclass(frozen=True)
class All:
    """Every location of every other image: K = (P - 1) L."""

    k: int = 0  # there is nothing to choose

    def count(self, images: int, locations: int) -> int:
        return (images - 1) * locations

    def __call__(self, own: Tensor, image: Tensor, locations: int, seed: int, step: int) -> None:
        return None


@dataclass(frozen=True)
class Sampled:
    """K = k locations of other images for each anchor, uniform without replacement, new at each step.

    Anchors read one permutation of a step from starts of their own. Each anchor's k are a uniform sample, any two anchors
    share as many on average as independent draws would, and the cost is one permutation of (P - 1) L numbers, not one for
    each anchor.
    """

    k: int

    def count(self, images: int, locations: int) -> int:
        return self.k

    def __call__(self, own: Tensor, image: Tensor, locations: int, seed: int, step: int) -> Tensor:
        others = (len(image) - 1) * locations
        if self.k > others:
            raise ValueError(f"{self.k} negatives asked of {others}: {len(image)} images in the pool, {locations} locations")
        draws = generator(seed, "negatives", step, device=own.device)
        order = torch.randperm(others, generator=draws, device=own.device)
        start = torch.randint(others, (len(image), 1), generator=draws, device=own.device)[own]  # by place
        row = order[(start + torch.arange(self.k, device=own.device)) % others]  # places among the other images
        return row + locations * (row >= own[:, None] * locations)  # step over the own image


@dataclass(frozen=True)
class Shifted:
    """The whole maps of the next k images of the pool, cyclically: K = k L; the cheapest choice for the concat critic."""

    k: int

    def count(self, images: int, locations: int) -> int:
        return self.k * locations

    def __call__(self, own: Tensor, image: Tensor, locations: int, seed: int, step: int) -> Tensor:
        if self.k > len(image) - 1:
            raise ValueError(f"{self.k} shifts asked of a pool of {len(image)} images: at most {len(image) - 1}")
        others = (own[:, None] + torch.arange(1, self.k + 1, device=own.device)) % len(image)  # [A, k]
        return (others[:, :, None] * locations + torch.arange(locations, device=own.device)).flatten(1)


NEGATIVES: dict[str, Callable[[int], All | Sampled | Shifted]] = {"all": All, "sampled": Sampled, "shifted": Shifted}
