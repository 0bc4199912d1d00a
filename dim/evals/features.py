"""Features: what a frozen encoder makes of images, for probes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dim import distributed
from dim.data import Dataset, Images

LAYERS = ("conv", "fc", "y")


@torch.no_grad()
def features(
    encoder: nn.Module,
    data: Dataset,
    images: Images,
    index: Tensor | None = None,
    layers: Sequence[str] = LAYERS,
    batch: int = 500,
) -> dict[str, Tensor]:
    """n images, or those of an index -> {"conv": [n, C' H' W'], "fc": [n, D], "y": [n, d]}, float32, where the encoder is.

    The encoder is in eval mode meanwhile. Several processes share the batches; each has the features of all.
    """
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    was_training = encoder.training
    encoder.eval()
    index = torch.arange(len(images)) if index is None else index
    mine = distributed.dealt(len(index), batch)
    for chunk in images.batches(index[mine], batch):
        codes = encoder(pictures(encoder, data, chunk))
        for layer in layers:
            parts[layer].append(getattr(codes, layer).flatten(1).float())
    encoder.train(was_training)
    return {layer: distributed.assembled(torch.cat(chunks), mine, len(index)) for layer, chunks in parts.items()}


@torch.no_grad()
def set_statistics(encoder: nn.Module, data: Dataset, images: Images, batch: int = 500) -> nn.Module:
    """Set BatchNorm's running statistics to averages over these images; without it a random encoder is unfairly bad.

    images: of the training split, at least 2; a batch's mean and variance count by its images. Nothing else of the encoder
    changes, but it is in eval mode afterwards.
    """
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in norms]
    encoder.train()
    parts = -(-len(images) // batch)
    seen = 0
    for chunk in images.batches(torch.arange(len(images)), -(-len(images) // parts)):  # no batch of one image at the end
        seen += len(chunk)
        for module in norms:
            module.momentum = len(chunk) / seen
        encoder(pictures(encoder, data, chunk))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    return encoder.eval()


def pictures(encoder: nn.Module, data: Dataset, images: Tensor) -> Tensor:
    """uint8 images as the input of this encoder: on its device, in its precision."""
    weight = next(encoder.parameters())
    return data.floats(images.to(weight.device), weight.dtype).contiguous(memory_format=torch.channels_last)


def raw_pixels(data: Dataset, images: Images, device: torch.device | str = "cpu", batch: int = 500) -> Tensor:
    """n images -> their pixels as the encoder sees them [n, C H W], float32."""
    chunks = images.batches(torch.arange(len(images)), batch)
    return torch.cat([data.floats(chunk.to(device)).flatten(1) for chunk in chunks])
