"""Normalisation of channels, for encoders and critics alike: batch | sync | layer | none."""

import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("batch", "sync", "layer", "none")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each vector [N, C] or of each location of a map [N, C, H, W], with gain and bias.

    Every location is normalised by itself. GroupNorm and InstanceNorm share statistics over height and width, which marks
    all locations of an image and lets a critic match them without any content.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


def norm(kind: str, channels: int, dims: int) -> nn.Module:
    """The normalisation `kind` for vectors [N, C] (dims 0) or maps [N, C, H, W] (dims 2).

    batch: as in every preset of the paper, statistics over the batch, with several processes over each one's share of it;
    sync: over the shares of all, on GPUs; layer: the control without batch statistics; none.
    """
    if kind not in NORMS:
        raise ValueError(f"unknown norm {kind!r}: it must be one of {', '.join(NORMS)}")
    if kind == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm1d(channels)
    if kind == "sync":
        return nn.SyncBatchNorm(channels)
    return ChannelNorm(channels) if kind == "layer" else nn.Identity()
