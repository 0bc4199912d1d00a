"""Views: images -> augmented images, as batched tensor functions with a draw for each sample.

The draws of an epoch are one table, f(seed, epoch), indexed by sample and view, so a picture does not depend on batch size,
order or workers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.randomness import generator


@dataclass(frozen=True)
class Identity:
    """The image as it is."""

    draws = 0  # numbers drawn for each picture

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class Affine:
    """Shift, rotation, scale and shear, drawn uniformly within +- each limit; bilinear, zeros outside.

    Limits: shift in pixels, rotation in degrees, scale as log of the factor of each axis, shear as a factor.
    """

    shift: float = 0.75
    rotation: float = 10.0
    scale: float = 0.1
    shear: float = 0.1

    draws = 6

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images [N, C, H, W] float, draws [N, 6] in [-1, 1] -> [N, C, H, W].

        With (u, v) the distance of an output pixel from the image's centre, in pixels, its value is read at the centre +
        R S D (u, v) + shift: D stretches the axes, S shears u by v, R rotates.
        """
        height, width = images.shape[2:]
        draws = draws.to(images.dtype)
        dx, dy = draws[:, 0] * self.shift, draws[:, 1] * self.shift
        angle = draws[:, 2] * math.radians(self.rotation)
        sx, sy = (draws[:, 3] * self.scale).exp(), (draws[:, 4] * self.scale).exp()
        shear = draws[:, 5] * self.shear
        cos, sin = angle.cos(), angle.sin()
        # R S D in pixels; grid_sample's coordinates span -1 .. 1 over each side, hence the ratios of the sides
        rows = [
            torch.stack([cos * sx, (cos * shear - sin) * sy * height / width, 2 * dx / width], 1),
            torch.stack([sin * sx * width / height, (sin * shear + cos) * sy, 2 * dy / height], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def draw_table(seed: int, epoch: int, samples: int, views: int, draws: int) -> Tensor:
    """The numbers behind every picture of an epoch: uniform in [-1, 1], [samples, views, draws]."""
    tables = [torch.rand(samples, draws, generator=generator(seed, "views", epoch, view)) for view in range(views)]
    return torch.stack(tables, 1) * 2 - 1


VIEWS = {"none": Identity, "affine": Affine}
