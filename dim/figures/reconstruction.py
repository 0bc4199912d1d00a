"""Reconstruction: test images over what a decoder makes of their codes."""

from pathlib import Path

from torch import Tensor

from dim.config import Config
from dim.data import Dataset
from dim.evals import reconstruction
from dim.evals.reconstruction import Reconstruction
from dim.figures import captions, drawing, samples
from dim.figures.drawing import Strip, Tile

SHOWN, ROW = 30, 10


def draw(folder: Path, config: Config, data: Dataset, state: dict) -> list[Path]:
    """folder/figures/reconstruction.png: a decoder is trained on y of all training images, minutes for 50,000."""
    drawing.needed()
    parts = samples.parts(config, data)
    encoder = samples.trained_encoder(config, data, state)
    device = next(encoder.parameters()).device
    x, x_test = (
        samples.codes(encoder, data, images, index).to(device)
        for images, index in ((parts.train, parts.train_order), (parts.test, parts.test_order))
    )
    images = reconstruction.stored(data, parts.test, parts.test_order)
    found = reconstruction.reconstruction(x, reconstruction.stored(data, parts.train, parts.train_order), x_test, images)
    shown = images[:SHOWN]
    notes = [captions.about(folder.resolve().name, config, data, state)]
    notes += captions.of_reconstruction(parts, len(shown), found.facts)
    return [picture(folder, shown, {"y": found}, notes)]


def picture(folder: Path, images: Tensor, found: dict[str, Reconstruction], caption: list[str]) -> Path:
    """folder/figures/reconstruction.png: images uint8 [n, C, S, S], and under each what decoders made of its features.

    found: reconstructions by the name of the features they are made from, of these images or of more, of which these are the
    first.
    """
    strips = []
    for begin in range(0, len(images), ROW):
        own = images[begin : begin + ROW]
        strips.append(Strip([[Tile(image) for image in own.numpy()]], "input"))
        for name, result in found.items():
            made = result.pictures[begin : begin + len(own)]
            likeness = reconstruction.ms_ssim(reconstruction.units(made), reconstruction.units(own)).tolist()
            tiles = [Tile(image, f"{value:.2f}") for image, value in zip(made.numpy(), likeness, strict=True)]
            strips.append(Strip([tiles], f"from {name}", close=True))
    return drawing.save(
        folder / "figures" / "reconstruction.png",
        f"Images over their reconstructions from {' and '.join(found)}",
        [drawing.Pictures(["below each reconstruction: its MS-SSIM, 1 for equal images"], strips)],
        caption,
    )
