"""Views: images -> augmented images, as batched tensor functions with a draw for each sample.

The draws of an epoch are one table, f(seed, epoch), indexed by sample and view, so a picture does not depend on batch size,
order or workers. Every view is called with images [N, C, H, W], floats in [0, 1], and draws [N, view.draws] in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.randomness import generator


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


@dataclass(frozen=True)
class Crop:
    """A window of size x size, drawn uniformly among the whole pixels of the image with a black border of `padding`."""

    size: int
    padding: int = 0

    draws = 2
    moves = True

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images [N, C, H, W] of any type -> [N, C, size, size], channels last; draws: row, column of the window."""
        images = F.pad(images.permute(0, 2, 3, 1), [0, 0, *[self.padding] * 4]).contiguous()
        n, height, width, channels = images.shape
        if min(height, width) < self.size:  # the strides below would read the next image
            raise ValueError(f"a crop of {self.size} x {self.size} does not fit images of {height} x {width} with their border")
        top, left = (whole(draws[:, i], side - self.size + 1) for i, side in enumerate((height, width)))
        # a window's row is a run of memory: all places where one may begin, overlapping, of which a window takes `size`;
        # a gather of its pixels one by one took 15 times as long
        runs = images.as_strided((max(0, n * height * width - self.size + 1), self.size * channels), (channels, 1))
        row = (torch.arange(n, device=images.device) * height + top)[:, None] + torch.arange(self.size, device=images.device)
        windows = runs.index_select(0, (row * width + left[:, None]).flatten())
        return windows.view(n, self.size, self.size, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ResizedCrop:
    """A box of a drawn share of the image's area and a drawn ratio of sides, resized to size x size; bilinear.

    area: range of the share, drawn uniformly; ratio: range of width / height, drawn uniformly in its log. A side longer than
    the image is cut to it. The box lies anywhere inside, at fractions of pixels; there is no second draw, as in torchvision,
    for a box that does not fit, and no antialiasing, as boxes are seldom much larger than the result.
    """

    size: int
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    draws = 4

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images [N, C, H, W] -> [N, C, size, size]; draws: area, log of the ratio, row, column of the box."""
        draws = draws.to(images.dtype)
        height, width = images.shape[2:]
        area = between(draws[:, 0], *self.area) * height * width
        ratio = between(draws[:, 1], math.log(self.ratio[0]), math.log(self.ratio[1])).exp()
        w, h = ((area * ratio).sqrt() / width).clamp(max=1), ((area / ratio).sqrt() / height).clamp(max=1)  # shares of a side
        x, y = draws[:, 3] * (1 - w), draws[:, 2] * (1 - h)  # the box's centre, -1 .. 1 over each side
        zero = torch.zeros_like(w)
        rows = torch.stack([torch.stack([w, zero, x], 1), torch.stack([zero, h, y], 1)], 1)
        grid = F.affine_grid(rows, [*images.shape[:2], self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged, with a probability."""

    probability: float = 0.5

    draws = 1
    moves = True

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images [N, C, H, W] of any type -> the same shape, channels last."""
        pixels = images.permute(0, 2, 3, 1)
        both = torch.cat([pixels, pixels.flip(2)])  # of it whole images; a choice number by number took three times as long
        taken = torch.arange(len(images), device=images.device) + len(images) * chosen(draws[:, 0], self.probability)
        return both.index_select(0, taken).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue changed, in this order, with a probability for all four together.

    The first three by a factor uniform in 1 +- their limit, the hue by a share of the colour circle within +- its limit; the
    result of each is cut to [0, 1]. As torchvision's functions of the same names, which draw the order of the four too.
    Grey images (one channel) keep brightness and contrast only.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    draws = 5

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images [N, 3 or 1, H, W] in [0, 1] -> the same shape; draws: whether, then one for each of the four."""
        draws = (draws * chosen(draws[:, :1], self.probability)).to(images.dtype)[:, 1:, None, None, None]
        limits = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (1 + limit * draws[:, i] for i, limit in enumerate(limits))
        images = (images * brightness).clamp(0, 1)
        images = mixed(images, luma(images).mean((1, 2, 3), keepdim=True), contrast)
        if images.shape[1] == 1:
            return images
        return turned(mixed(images, luma(images), saturation), self.hue * draws[:, 3])


@dataclass(frozen=True)
class Grey:
    """Every channel replaced by the luma, with a probability."""

    probability: float = 0.2

    draws = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where(chosen(draws[:, 0], self.probability)[:, None, None, None], luma(images), images)


@dataclass(frozen=True)
class Resize:
    """The whole image at size x size; bilinear, antialiased. Nothing is drawn."""

    size: int

    draws = 0

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        size = (self.size, self.size)
        return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class CentreCrop:
    """The middle size x size of the image. Nothing is drawn."""

    size: int

    draws = 0

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < self.size:  # a slice would silently return less
            raise ValueError(f"a crop of {self.size} x {self.size} does not fit images of {height} x {width}")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return images[:, :, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class Chain:
    """Views one after the other, each with its own columns of the draws."""

    views: tuple

    @property
    def draws(self) -> int:
        return sum(view.draws for view in self.views)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        for view, columns in zip(self.views, draws.split([view.draws for view in self.views], 1), strict=True):
            images = view(images, columns)
        return images

    def of_bytes(self, stored: Tensor, draws: Tensor, units: Callable[[Tensor], Tensor]) -> Tensor:
        """What self(units(stored), draws) is, to the bit; where all views only move pixels, bytes are moved, not floats."""
        if self.views and all(hasattr(view, "moves") for view in self.views):
            return units(self(stored, draws))
        return self(units(stored.contiguous()), draws)  # colours are changed a channel at a time


def between(draws: Tensor, low: float, high: float) -> Tensor:
    """Draws uniform in [-1, 1] as numbers uniform in [low, high]."""
    return low + (draws + 1) / 2 * (high - low)


def chosen(draws: Tensor, probability: float) -> Tensor:
    """Draws uniform in [-1, 1] -> whether, true with the probability."""
    return draws < 2 * probability - 1


def whole(draws: Tensor, n: int) -> Tensor:
    """Draws uniform in [-1, 1] as whole numbers 0 .. n - 1, each equally often."""
    return (between(draws, 0, n)).long().clamp(max=n - 1)


def luma(images: Tensor) -> Tensor:
    """Brightness to the eye [N, 1, H, W] of images [N, 3, H, W] (ITU-R BT.601) or of grey ones, which it is already."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def mixed(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, cut to [0, 1]; beyond 1 it moves away from the other."""
    return torch.lerp(other, images, factor).clamp(0, 1)


def turned(images: Tensor, share: Tensor) -> Tensor:
    """Colours [N, 3, H, W] turned round the circle of hues by a share of it [N, 1, 1, 1]; value and saturation stay.

    With value V = max and chroma C = max - min, the channel at angle a of the circle is V - C * clamp(min(k, 4 - k), 0, 1),
    k = (a + 6 hue) mod 6, a = 5, 3, 1 for red, green, blue.
    """
    top, bottom = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = top - bottom
    red, green, blue = images.split(1, 1)
    sixth = torch.where(top == red, green - blue, torch.where(top == green, blue - red, red - green))
    sixth = sixth / chroma.clamp_min(1e-12)
    sixth = sixth + torch.where(top == red, 0.0, torch.where(top == green, 2.0, 4.0)).to(images.dtype)
    angle = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    k = (angle + sixth + 6 * share) % 6
    return top - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def draw_table(seed: int, epoch: int, samples: int, views: int, draws: int) -> Tensor:
    """The numbers behind every picture of an epoch: uniform in [-1, 1], [samples, views, draws]."""
    tables = [torch.rand(samples, draws, generator=generator(seed, "views", epoch, view)) for view in range(views)]
    return torch.stack(tables, 1) * 2 - 1


def none(c: Any, size: int, fit: tuple) -> Chain:
    """The image as it is."""
    return Chain(fit)


def affine(c: Any, size: int, fit: tuple) -> Chain:
    """Small moves of the whole image."""
    return Chain((*fit, Affine(c.shift, c.rotation, c.scale, c.shear)))


def crop_flip(c: Any, size: int, fit: tuple) -> Chain:
    """A window of the image, then a flip; with padding 0 the paper's for STL-10."""
    return Chain((Crop(size, c.padding), Flip(c.flip)))


def strong(c: Any, size: int, fit: tuple) -> Chain:
    """As in SimCLR without blur: resized crop, flip, colour jitter, grey; without the crop where area is [1, 1]."""
    crop = fit if c.area == (1, 1) else (ResizedCrop(size, c.area, c.ratio),)
    return Chain((*crop, Flip(c.flip), Jitter(c.brightness, c.contrast, c.saturation, c.hue, c.jitter), Grey(c.grey)))


# (config.views, the encoder's size, the view that brings a stored image to that size if any) -> Chain
VIEWS = {"none": none, "affine": affine, "crop_flip": crop_flip, "strong": strong}
