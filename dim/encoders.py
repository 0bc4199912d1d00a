"""Encoders: image -> local feature map, hidden layers, global vector.

The paper's nets by name, with its layers, sizes and parameter counts (appendix; rdevon/DIM `configs/convnets.py`), and a
small one for 8 x 8 images. Every hidden layer is convolution or linear, normalisation, ReLU, pooling; y is linear.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dim.norms import norm
from dim.winograd import Convolution


class Encoding(NamedTuple):
    """What an encoder gives for N images."""

    map: Tensor  # the local map [N, C, M, M], or a vector [N, C] where a vector layer was chosen
    conv: Tensor  # the last convolution's output [N, C', M', M']
    fc: Tensor  # the last hidden vector [N, D]
    y: Tensor  # the global vector, the code [N, d]


class Conv(NamedTuple):
    """One convolution: output channels, kernel, stride, padding, and whether 3 x 3 max pooling with stride 2 follows."""

    channels: int
    kernel: int
    stride: int
    padding: int
    pool: bool = False


@dataclass(frozen=True)
class Architecture:
    """Image size, convolutions, hidden vector widths, and the number of the convolution whose output is the local map."""

    size: int
    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    local: int


ARCHITECTURES = {
    "basic32x32": Architecture(32, (Conv(64, 4, 2, 1), Conv(128, 4, 2, 1), Conv(256, 4, 2, 1)), (1024,), local=2),
    "basic64x64": Architecture(
        64, (Conv(64, 4, 2, 1), Conv(128, 4, 2, 1), Conv(256, 4, 2, 1), Conv(512, 4, 2, 1)), (1024,), local=3
    ),
    "basic28x28": Architecture(28, (Conv(64, 5, 2, 2), Conv(128, 5, 2, 2)), (1024,), local=2),
    "alex64x64": Architecture(
        64,
        (Conv(96, 3, 1, 1, True), Conv(192, 3, 1, 1, True), Conv(384, 3, 1, 1), Conv(384, 3, 1, 1), Conv(192, 3, 1, 1, True)),
        (4096, 4096),
        local=3,
    ),
    "small8x8": Architecture(8, (Conv(32, 3, 1, 1), Conv(64, 3, 1, 1), Conv(128, 4, 2, 1)), (512,), local=2),
}


class Encoder(nn.Module):
    """A convolutional encoder by name: x [N, channels, S, S] -> Encoding.

    local names the layer whose output is the local map: conv1 .. convN, fc1 .. fcN, or "paper" for the paper's choice.
    norm: "batch" as in the paper, "sync" (batch over several processes), "layer" (over channels, each location by itself) or
    "none" (with biases instead). ReLU works in place: a hook on what stands before it sees its result.
    """

    def __init__(self, name: str, channels: int = 3, code_size: int = 64, local: str = "paper", norm: str = "batch"):
        super().__init__()
        arch = ARCHITECTURES[name]
        layers, size, width = nn.ModuleDict(), arch.size, channels
        for i, conv in enumerate(arch.convs, 1):
            layers[f"conv{i}"] = conv_block(width, conv, norm)
            width, size = conv.channels, (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
            size = (size - 3) // 2 + 1 if conv.pool else size
        width *= size * size
        for i, hidden in enumerate(arch.hidden, 1):
            layers[f"fc{i}"] = linear_block(width, hidden, norm)
            width = hidden
        layers["y"] = nn.Linear(width, code_size)
        self.layers = layers
        self.local = f"conv{arch.local}" if local == "paper" else local
        self.last_conv, self.last_hidden = f"conv{len(arch.convs)}", f"fc{len(arch.hidden)}"
        if self.local not in layers or self.local == "y":
            raise ValueError(f"{name} has no layer {local!r} for the local map; it has {', '.join(local_layers(name))}")

    def forward(self, x: Tensor) -> Encoding:
        outputs = {}
        for name, layer in self.layers.items():
            x = outputs[name] = layer(x)
        return Encoding(outputs[self.local], outputs[self.last_conv], outputs[self.last_hidden], outputs["y"])


def conv_block(width: int, conv: Conv, kind: str) -> nn.Sequential:
    """Convolution, normalisation, ReLU, pooling; the convolution has a bias only where nothing normalises after it."""
    layers = [
        Convolution(width, conv.channels, conv.kernel, conv.stride, conv.padding, bias=kind == "none"),
        norm(kind, conv.channels, dims=2),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *[nn.MaxPool2d(3, 2)] * conv.pool)


def linear_block(width: int, hidden: int, kind: str) -> nn.Sequential:
    """Linear, normalisation, ReLU; a map is flattened in channel, row, column order first."""
    linear = nn.Linear(width, hidden, bias=kind == "none")
    return nn.Sequential(Flatten(), linear, norm(kind, hidden, dims=0), nn.ReLU(inplace=True))


class Flatten(nn.Module):
    """x [N, C, H, W] -> [N, C H W], in this order; [N, D] stays."""

    def forward(self, x: Tensor) -> Tensor:
        return Flattened.apply(x) if x.ndim > 2 else x


class Flattened(torch.autograd.Function):
    """x.flatten(1), with a gradient that lies in memory as x does, channels last: at the ReLU before it torch took ten times as
    long to go through two tensors that lie differently as to copy one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.last = x.shape, x.is_contiguous(memory_format=torch.channels_last)
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.view(ctx.shape)
        return gradient.contiguous(memory_format=torch.channels_last) if ctx.last else gradient


def places(x: Tensor) -> Tensor:
    """A map as places: [N, C, H, W] -> [N, C, H W]; a vector [N, C] is one place [N, C, 1]."""
    return x.flatten(2) if x.ndim == 4 else x[:, :, None]


def local_layers(name: str) -> list[str]:
    """The layers of a named encoder that can serve as the local map."""
    arch = ARCHITECTURES[name]
    return [f"conv{i + 1}" for i in range(len(arch.convs))] + [f"fc{i + 1}" for i in range(len(arch.hidden))]
