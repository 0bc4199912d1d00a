"""Reconstruction: test images over what a decoder makes of their codes."""

from pathlib import Path

from torch import Tensor, nn

from dim import report
from dim.config import Config
from dim.data import Dataset
from dim.evals import reconstruction
from dim.evals.reconstruction import Reconstruction
from dim.figures import captions, drawing, samples
from dim.figures.drawing import Strip, Tile

SHOWN, ROW = 30, 10


def draw(
    folder: Path,
    config: Config,
    data: Dataset,
    state: dict,
    other: str = "",
    decoded: Reconstruction | None = None,
    force: bool = False,
) -> list[Path]:
    """folder/figures/reconstruction.png: a decoder is trained on y of all training images, minutes for 50,000.

    decoded: of the test images in their order, where the same decoder was just trained to measure it. A picture that is there
    of the same weights, images and steps stays, unless forced.
    """
    drawing.needed()
    encoder, path = samples.trained_encoder(config, data, state), samples.place(folder, "reconstruction", other)
    source = f"{report.digest(encoder.state_dict())} {data.fingerprint} {config.data.split_seed} {reconstruction.STEPS}"
    if drawing.source_of(path) == source and not force:
        return [path]
    parts = samples.parts(config, data, other)
    images = reconstruction.stored(data, parts.test, parts.test_order)
    if decoded is not None and len(data.test):
        found = decoded._replace(pictures=decoded.pictures[parts.test_order])
    else:
        found = trained(encoder, data, parts, images)
    shown = images[:SHOWN]
    notes = [captions.about(folder.resolve().name, config, data, state, other)]
    notes += captions.of_reconstruction(parts, len(shown), found.facts)
    return [picture(path, shown, {"y": found}, notes, source)]


def trained(encoder: nn.Module, data: Dataset, parts: samples.Parts, images: Tensor) -> Reconstruction:
    """A decoder trained on y of the training images and judged on the others, images uint8 [n, C, S, S]."""
    device = next(encoder.parameters()).device
    x, x_test = (
        samples.codes(encoder, data, images, index).to(device)
        for images, index in ((parts.train, parts.train_order), (parts.test, parts.test_order))
    )
    return reconstruction.reconstruction(x, reconstruction.stored(data, parts.train, parts.train_order), x_test, images)


def picture(path: Path, images: Tensor, found: dict[str, Reconstruction], caption: list[str], source: str = "") -> Path:
    """A PNG file: images uint8 [n, C, S, S], and under each what decoders made of its features. source: as for `drawing.save`.

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
        path,
        f"Images over their reconstructions from {' and '.join(found)}",
        [drawing.Pictures(["below each reconstruction: its MS-SSIM, 1 for equal images"], strips)],
        caption,
        source,
    )
