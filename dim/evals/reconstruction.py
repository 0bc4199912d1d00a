"""Reconstruction: how much of an image its frozen features keep, as a decoder trained on them can tell (paper, section 4.1).

A decoder is trained with L2, the mean squared error of its pixels, and test images are compared with what it makes of their
features by MS-SSIM (Wang, Simoncelli & Bovik, Multi-scale structural similarity, 2003): 1 for equal images.

    MS-SSIM = l_M^w_M prod_j cs_j^w_j       j = 1 .. M scales, each half the size of the one before
    l  = (2 mu_x mu_y + c1) / (mu_x^2 + mu_y^2 + c1)                 luminance, at the coarsest scale only
    cs = (2 sigma_xy + c2) / (sigma_x^2 + sigma_y^2 + c2)            contrast and structure

with means and covariances under a Gaussian window of 11 x 11, sigma 1.5, c1 = 0.01^2 and c2 = 0.03^2 for pixels in [0, 1],
averaged over places and channels. The five scales of 2003 ask for images of more than 160 pixels: `scales` says what smaller
ones get. So values are to be compared at one image size only. The paper's own 0.29 to 0.72 are not comparable with any: its
code's `ms_ssim` has a single scale, and its constants are those of pixels in [0, 1] while its pixels are in [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dim.config import UserError, require
from dim.data import Dataset, Images
from dim.evals.protocol import standardised
from dim.randomness import generator
from dim.schedule import cosine

STEPS, BATCH = 2_000, 128  # about 2 minutes of one CPU core at 32 x 32
RATE = 4e-3  # of 1, 2, 4 and 8e-3 the best MS-SSIM of validation images of CIFAR-10 after 600 steps: 0.372, 0.387, 0.392, 0.390
CHUNK = 500  # images judged at a time
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first (Wang et al. 2003, section 3.2)


class Scales(NamedTuple):
    """What MS-SSIM is made of for one size of images: the window's side and width in pixels, a weight for each scale."""

    window: int
    sigma: float
    weights: tuple[float, ...]


def scales(size: int) -> Scales:
    """As many of the five, M, as leave the coarsest image a whole window and as torchmetrics allows, 11 (M - 1)^2 <= size.

    So 28 and 32 pixels have 2 scales, 64 and 96 have 3, from 176 there are 5; the weights of those there are add up to 1. Below
    22 there is one, so plain SSIM, and below 11 the window shrinks to the largest odd side that fits, sigma with it: 7 and 0.95
    at 8 x 8.
    """
    window = min(11, size - (size + 1) % 2)
    weights = WEIGHTS[: max(m for m in range(1, 6) if m == 1 or 11 * max(2 ** (m - 1), (m - 1) ** 2) <= size)]
    return Scales(window, 1.5 * window / 11, tuple(w / sum(weights) for w in weights))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of pairs of images in [0, 1], x and y [n, C, S, S] -> [n], in [0, 1], 1 where they are equal.

    By torchmetrics, which reflects images at their border where it is the coarsest scale and leaves border places out at the
    others. Images that vary against each other have a negative cs: it counts as 0. Exact to about 1e-4 in float32, where flat
    places cancel; float64 takes 10 times as long.
    """
    require("torchmetrics", "MS-SSIM")
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    window, sigma, weights = scales(x.shape[-1])
    found = [
        measure(
            *pair, sigma=sigma, kernel_size=window, betas=weights, data_range=1.0, normalize="relu", reduction="none"
        ).reshape(-1)
        for pair in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    ]
    return torch.cat(found)


class Decoder(nn.Module):
    """Features [n, D] -> images [n, *shape] in (0, 1).

    A linear layer to a map of 128 channels and 4 to 7 places a side, then transposed convolutions, each twice as large with
    half the channels; BatchNorm and ReLU between them, a sigmoid at the end. The paper's starts from 512 channels and takes 20
    times as long. What a size that is not 4 to 7 times a power of two has too much is cut off.
    """

    def __init__(self, width: int, shape: tuple[int, int, int]):
        super().__init__()
        channels, self.size, _ = shape
        doublings = next(k for k in range(1, 99) if self.size <= 7 * 2**k)
        side, inner = -(-self.size // 2**doublings), [128 >> k for k in range(doublings)]
        layers = [nn.Linear(width, inner[0] * side**2), nn.Unflatten(1, (inner[0], side, side))]
        for now, after in zip(inner, [*inner[1:], channels], strict=True):
            layers += [nn.BatchNorm2d(now), nn.ReLU(), nn.ConvTranspose2d(now, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Sigmoid()).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[..., : self.size, : self.size]


class Reconstruction(NamedTuple):
    """Numbers of a reconstruction, and what the decoder made of the test images, uint8 [t, C, S, S], 255 for 1."""

    facts: dict
    pictures: Tensor


def reconstruction(
    train_features: Tensor, train_images: Tensor, test_features: Tensor, test_images: Tensor, steps: int = STEPS, seed: int = 0
) -> Reconstruction:
    """Train a decoder on frozen features and compare test images with what it makes of theirs.

    features [n, ...], standardised here by the training features; images [n, C, S, S], uint8 with 255 for 1, or floats in
    [0, 1]. Adam, a rate of RATE that falls to 0 along a cosine, a fixed number of steps of BATCH images: nothing is chosen, so
    the test images are read once.

    Facts: ms_ssim, the mean over the test images, in [0, 1], and mse, the mean squared error of a pixel in [0, 1];
    train_ms_ssim and train_mse of training images, as many as test images at most; mean_image_ms_ssim and mean_image_mse of
    the mean training image in the place of each reconstruction, which needs no features; scales, window, sigma and weights;
    steps. UserError where features are not finite, or images and features differ in number.
    """
    x, x_test = checked("training", train_features, train_images), checked("test", test_features, test_images)
    x, x_test = standardised(x, x_test)
    require("torchmetrics", "MS-SSIM")
    decoder = trained(x, train_images, steps, seed)
    mean = torch.stack([units(part).double().sum(0) for part in train_images.split(CHUNK)]).sum(0) / len(train_images)
    some = torch.randperm(len(x), generator=generator(seed, "reconstructed"))[: len(x_test)]
    found = {
        "": judged(decoder, x_test, test_images),
        "train_": judged(decoder, x[some.to(x.device)], train_images[some.to(train_images.device)]),
        "mean_image_": judged(lambda x: mean.to(x).expand(len(x), -1, -1, -1), x_test, test_images),
    }
    numbers = {kind + name: result.facts[name] for kind, result in found.items() for name in ("ms_ssim", "mse")}
    window, sigma, weights = scales(test_images.shape[-1])
    made_of = {"scales": len(weights), "window": window, "sigma": sigma, "weights": list(weights)}
    return Reconstruction({**numbers, **made_of, "steps": steps}, found[""].pictures)


def checked(kind: str, features: Tensor, images: Tensor) -> Tensor:
    """Features as [n, D] float32; UserError where a decoder cannot be trained or judged with them."""
    if len(features) != len(images) or len(images) < 2:
        raise UserError(
            f"a reconstruction needs at least 2 {kind} images with features: there are {len(images):,} images and "
            f"{len(features):,} features"
        )
    if bad := int((~torch.isfinite(features)).flatten(1).any(1).sum()):
        raise UserError(f"the features of {bad:,} of {len(features):,} {kind} images are not finite: the run may be damaged")
    return features.flatten(1).float()


def trained(x: Tensor, images: Tensor, steps: int, seed: int) -> Decoder:
    """A decoder of features x [n, D], its weights and the order of the images a function of the seed."""
    from tqdm import tqdm

    channels, height, width = images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "decoder").initial_seed())
        decoder = Decoder(x.shape[1], (channels, height, width))
    decoder = decoder.to(x.device)
    optimizer = torch.optim.Adam(decoder.parameters(), RATE, fused=True)
    batch = min(BATCH, len(x))
    for step in tqdm(range(steps), "decoder", disable=None, leave=False):
        epoch, place = divmod(step, len(x) // batch)
        if place == 0:
            order = torch.randperm(len(x), generator=generator(seed, "decoder order", epoch))
        rows = order[place * batch : (place + 1) * batch]
        goal = units(images[rows.to(images.device)].to(x.device))
        loss = (decoder(x[rows.to(x.device)]) - goal).square().mean()
        optimizer.param_groups[0]["lr"] = RATE * cosine(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder.eval()


@torch.no_grad()
def judged(decoder: Callable[[Tensor], Tensor], x: Tensor, images: Tensor) -> Reconstruction:
    """Mean MS-SSIM and mean squared error of images and what a decoder makes of features x [n, D]."""
    similarity, error, pictures = [], [], []
    for chunk, part in zip(x.split(CHUNK), images.split(CHUNK), strict=True):
        goal, made = units(part.to(x.device)), decoder(chunk)
        similarity.append(ms_ssim(made, goal).cpu())
        error.append((made - goal).square().flatten(1).mean(1).cpu())
        pictures.append((made * 255).round().byte().cpu())
    means = {"ms_ssim": torch.cat(similarity).double().mean().item(), "mse": torch.cat(error).double().mean().item()}
    return Reconstruction(means, torch.cat(pictures))


def units(images: Tensor) -> Tensor:
    """Images as floats in [0, 1], whatever they are stored as."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def stored(data: Dataset, images: Images, index: Tensor | None = None) -> Tensor:
    """Images, or those of an index, at the encoder's size: uint8 [n, C, S, S], 255 for the data set's brightest level."""
    parts = []
    for chunk in images.batches(torch.arange(len(images)) if index is None else index, CHUNK):
        pixels = data.units(chunk)
        for view in data.fitting:
            pixels = view(pixels, pixels.new_zeros(len(pixels), 0))
        parts.append((pixels * 255).round().byte().cpu())
    return torch.cat(parts)
