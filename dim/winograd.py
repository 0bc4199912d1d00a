"""The encoders' convolution, 4 x 4 with stride 2, by 9 products for 16 (Winograd 1980; Lavin and Gray, CVPR 2016).

Rows of the padded image are taken in pairs P_0, P_1, .., each one vector, so that a kernel's four rows are two, g and h, and
y_i = g P_i + h P_(i+1). Two rows of the result share a product, three for four:

    y_0 = g (P_0 - P_1) + (g + h) P_1
    y_1 =                 (g + h) P_1 + h (P_2 - P_1)

The same along columns: F(2 x 2, 2 x 2). Its coefficients are 0, 1 and -1: in float32 values and gradients round as the plain
convolution's do, up to about twice as much. In bf16 each part would be rounded once more: three to seven times as much.

N images of C channels, H x W, are pairs [N, H / 2 + 1, 2, W / 2 + 1, 2 C], of rows and of columns, and nine parts of T = H / 4
times S = W / 4 blocks, each of 2 x 2 results: [3, 3, N, T, S, 2, 2 C], of columns and of rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = 256  # at a time: enough rows for a product's rate, and parts of 5 MB with 128 channels, for the largest cache


class Convolution(nn.Conv2d):
    """nn.Conv2d, and where it `pays` by fewer products: 1.35 times as fast on one core of an EPYC, forward and backward."""

    fewer_products = False  # `dim.machine.tune_products` sets it for all, where it was measured and the products are fast

    def forward(self, x: Tensor) -> Tensor:
        if not (self.fewer_products and fits(self) and pays(self, x)):
            return super().forward(x)
        y = Winograd.apply(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


def fits(layer: nn.Conv2d) -> bool:
    """Whether it is the convolution that `Winograd` computes."""
    return (
        (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
    )


def pays(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether fewer products of this x are faster: for 128 channels and more (with 64 the sums take what products save), images
    channels last and enough of them, in float32 on a CPU. Not in a graph that is compiled or exported, which is for any number
    of images."""
    return (
        not torch.compiler.is_compiling()
        and layer.in_channels >= 128
        and layer.out_channels >= 128
        and x.ndim == 4
        and x.shape[1] == layer.in_channels
        and x.shape[2] % 4 == x.shape[3] % 4 == 0
        and len(x) * x.shape[2] * x.shape[3] >= 16 * BLOCKS
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


class Winograd(torch.autograd.Function):
    """x [N, C, H, W], H and W multiples of 4, w [O, C, 4, 4] -> F.conv2d(x, w, stride=2, padding=1) [N, O, H / 2, W / 2],
    channels last. A gradient that is to be differentiated is the plain convolution's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        n, _, height, width = x.shape
        shape, kernel = (n, len(w), height // 2, width // 2), of_kernel(w).transpose(1, 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for tile in tiles(x):
            parts = torch.bmm(of_images(x[tile]), kernel).view(3, 3, -1, height // 4, width // 4, len(w))
            blocks = added(added(parts, 4), 2)  # first of columns, then of rows
            y[tile] = blocks.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            if torch.is_grad_enabled():  # it will be differentiated once more
                return plain_gradients(x, w, gradient, ctx.needs_input_grad)
            return gradients(x, w, gradient, ctx.needs_input_grad)


def gradients(x: Tensor, w: Tensor, gradient: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Those of x and w that are wanted, None for the others."""
    kernel = of_kernel(w)
    of_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else None
    of_w = torch.zeros_like(kernel) if wanted[1] else None
    for tile in tiles(x):
        blocks = gradient[tile].permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        parts = three(three(blocks, 2), 4).flatten(2, 4).flatten(0, 1)  # first of rows, then of columns
        if of_w is not None:
            torch.baddbmm(of_w, parts.transpose(1, 2), of_images(x[tile]), out=of_w)
        if of_x is not None:
            of_x[tile] = to_images(torch.bmm(parts, kernel), x[tile].shape)
    return of_x, None if of_w is None else to_kernel(of_w)


def plain_gradients(x: Tensor, w: Tensor, gradient: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """The same by torch's convolution."""
    stride, padding, dilation, transposed, groups = [2, 2], [1, 1], [1, 1], False, 1
    options = None, stride, padding, dilation, transposed, [0, 0], groups, [*wanted, False]
    return torch.ops.aten.convolution_backward(gradient, x, w, *options)[:2]


def tiles(x: Tensor) -> list[slice]:
    """As many images of x [N, C, H, W] at a time as have BLOCKS blocks, at least one."""
    images = max(1, 16 * BLOCKS // (x.shape[2] * x.shape[3]))
    return [slice(i, i + images) for i in range(0, len(x), images)]


def of_images(x: Tensor) -> Tensor:
    """x [N, C, H, W] -> its parts [9, N T S, 4 C]."""
    n, c, height, width = x.shape
    pairs = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(n, height // 2 + 1, 2, width // 2 + 1, 2 * c)
    rows = x.new_empty(3, n, height // 4, 2, width // 2 + 1, 2 * c)
    parts = x.new_empty(3, 3, n, height // 4, width // 4, 2, 2 * c)
    differences(pairs, 1, rows)
    differences(rows, 4, parts.transpose(4, 5))
    return parts.view(9, -1, 4 * c)


def to_images(parts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`of_images` transposed: [9, N T S, 4 C] -> [N, C, H, W], this shape."""
    n, c, height, width = shape
    parts = parts.view(3, 3, n, height // 4, width // 4, 2, 2 * c)
    rows = parts.new_empty(3, n, height // 4, 2, width // 2 + 1, 2 * c)
    pairs = parts.new_empty(n, height // 2 + 1, 2, width // 2 + 1, 2 * c)
    add_differences(parts.transpose(4, 5), 4, rows)
    add_differences(rows, 1, pairs)
    return pairs.view(n, height + 2, width + 2, c)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def of_kernel(w: Tensor) -> Tensor:
    """w [O, C, 4, 4] -> its parts [9, O, 4 C]."""
    pairs = w.permute(0, 2, 3, 1).reshape(len(w), 2, 2, 2, -1)
    return three(three(pairs, 1), 3).flatten(3).flatten(0, 1)


def to_kernel(parts: Tensor) -> Tensor:
    """`of_kernel` transposed: [9, O, 4 C] -> [O, C, 4, 4], channels last."""
    pairs = added(added(parts.view(3, 3, parts.shape[1], 2, -1), 3), 1)
    return pairs.reshape(len(pairs), 4, 4, -1).permute(0, 3, 1, 2)


def differences(x: Tensor, dim: int, out: Tensor) -> None:
    """P_0 .. P_2T along dim -> out [3, ...]: P_2t - P_(2t+1), P_(2t+1) and P_(2t+2) - P_(2t+1) of each t."""
    first, middle, last = x.unfold(dim, 3, 2).unbind(-1)
    torch.sub(first, middle, out=out[0])
    out[1].copy_(middle)
    torch.sub(last, middle, out=out[2])


def add_differences(x: Tensor, dim: int, out: Tensor) -> None:
    """`differences` transposed: x [3, ...] -> out, P_0 .. P_2T along dim."""
    first, middle, last = out.unfold(dim, 3, 2).unbind(-1)
    out.select(dim, -1).zero_()  # P_2T, the one that is first for no t
    first.copy_(x[0])
    last.add_(x[2])
    torch.sub(x[1], x[0], out=middle).sub_(x[2])


def three(x: Tensor, dim: int) -> Tensor:
    """g, h along dim -> [3, ...]: g, g + h, h."""
    g, h = x.unbind(dim)
    return torch.stack([g, g + h, h])


def added(x: Tensor, dim: int) -> Tensor:
    """`three` transposed: x [3, ...] -> x_0 + x_1 and x_1 + x_2 along a new dim."""
    return torch.stack([x[0] + x[1], x[1] + x[2]], dim)
