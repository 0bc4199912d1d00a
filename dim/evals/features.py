"""Features: what a frozen encoder makes of images, for probes."""

import torch
from torch import Tensor

from dim.data import Dataset
from dim.encoders import Encoder

LAYERS = ("conv", "fc", "y")


@torch.no_grad()
def features(encoder: Encoder, data: Dataset, images: Tensor, batch: int = 500) -> dict[str, Tensor]:
    """uint8 images [n, C, H, W] -> {"conv": [n, C' H' W'], "fc": [n, D], "y": [n, d]}, float32, where the encoder is.

    The encoder is in eval mode meanwhile.
    """
    parts: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    was_training = encoder.training
    encoder.eval()
    for chunk in images.split(batch):
        codes = encoder(pictures(encoder, data, chunk))
        for layer in LAYERS:
            parts[layer].append(getattr(codes, layer).flatten(1).float())
    encoder.train(was_training)
    return {layer: torch.cat(chunks) for layer, chunks in parts.items()}


@torch.no_grad()
def set_statistics(encoder: Encoder, data: Dataset, images: Tensor, batch: int = 500) -> Encoder:
    """Set BatchNorm's running statistics to the plain averages over these images; without it a random encoder is unfairly bad.

    images: uint8, training images. Nothing else of the encoder changes.
    """
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative average
    encoder.train()
    for chunk in images.split(batch):
        encoder(pictures(encoder, data, chunk))
    for module in norms:
        module.momentum = 0.1
    return encoder.eval()


def pictures(encoder: Encoder, data: Dataset, images: Tensor) -> Tensor:
    """uint8 images as the input of this encoder: on its device, in its precision."""
    weight = next(encoder.parameters())
    return data.floats(images.to(weight.device), weight.dtype).contiguous(memory_format=torch.channels_last)


def raw_pixels(data: Dataset, images: Tensor) -> Tensor:
    """uint8 images -> their pixels as the encoder sees them [n, C H W], float32."""
    return data.floats(images).flatten(1)
