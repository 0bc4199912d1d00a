"""The encoders' convolution, 4 x 4 with stride 2, by 9 products for 16 (Winograd 1980; Lavin and Gray, CVPR 2016).

Rows of the padded image are taken in pairs P_0, P_1, .., each one vector, so that a kernel's four rows are two, g and h, and
y_i = g P_i + h P_(i+1). Two rows of the result share a product, three for four:

    y_0 = g (P_0 - P_1) + (g + h) P_1
    y_1 =                 (g + h) P_1 + h (P_2 - P_1)

The same along columns: F(2 x 2, 2 x 2). Only sums and differences come in, so rounding stays that of float32: on random maps
0.6 to 1.6 times the plain convolution's. In bf16 it would be three to four times, so that is torch's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 256  # of a product: enough for its rate, and few enough for the parts of these images to stay in a cache


class Convolution(nn.Conv2d):
    """nn.Conv2d, by fewer products where `suits` says that this is faster."""

    def forward(self, x: Tensor) -> Tensor:
        if not suits(self, x):
            return super().forward(x)
        y = Winograd.apply(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


def suits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether fewer products are faster for this layer and x: 64 channels or more, in float32 on a CPU with AVX-512. A GPU's
    library has such forms of its own; on other CPUs it was not measured."""
    return (
        (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and layer.in_channels >= 64
        and x.ndim == 4
        and x.shape[2] % 4 == x.shape[3] % 4 == 0
        and x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


class Winograd(torch.autograd.Function):
    """x [N, C, H, W], H and W multiples of 4, w [O, C, 4, 4] -> F.conv2d(x, w, stride=2, padding=1) [N, O, H / 2, W / 2],
    channels last. A gradient of its gradient is the plain convolution's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        n, _, height, width = x.shape
        y, kernel = x.new_empty(n, height // 2, width // 2, len(w)), of_kernel(w).transpose(1, 2)
        for some in tiles(x):
            parts = torch.bmm(of_images(x[some]), kernel).view(3, 3, -1, height // 4, width // 4, len(w))
            y[some] = paired(paired(parts, 4), 2).flatten(3, 4).flatten(1, 2)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        of_x, of_w = ctx.needs_input_grad
        if torch.is_grad_enabled():  # it will be differentiated once more
            plain = torch.ops.aten.convolution_backward
            return plain(gradient, x, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [of_x, of_w, False])[:2]
        kernel = of_kernel(w)
        to_x = torch.empty_like(x, memory_format=torch.channels_last) if of_x else None
        to_w = torch.zeros_like(kernel) if of_w else None
        for some in tiles(x):
            blocks = gradient[some].permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
            parts = tripled(tripled(blocks, 2), 4).flatten(2, 4).flatten(0, 1)
            if to_w is not None:
                torch.baddbmm(to_w, parts.transpose(1, 2), of_images(x[some]), out=to_w)
            if to_x is not None:
                to_x[some] = to_images(torch.bmm(parts, kernel), x[some].shape)
        return to_x, None if to_w is None else to_kernel(to_w)


def tiles(x: Tensor) -> list[slice]:
    """Images of x [N, C, H, W] whose blocks of four results are ROWS or fewer."""
    some = max(1, ROWS * 16 // max(1, x.shape[2] * x.shape[3]))
    return [slice(i, i + some) for i in range(0, len(x), some)]


def of_images(x: Tensor) -> Tensor:
    """x [N, C, H, W] -> its parts [9, N T S, 4 C] for T = H / 4 times S = W / 4 blocks of four results."""
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
    return tripled(tripled(pairs, 1), 3).flatten(3).flatten(0, 1)


def to_kernel(parts: Tensor) -> Tensor:
    """`of_kernel` transposed: [9, O, 4 C] -> [O, C, 4, 4], channels last."""
    pairs = paired(paired(parts.view(3, 3, parts.shape[1], 2, -1), 3), 1)
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


def tripled(x: Tensor, dim: int) -> Tensor:
    """g, h along dim -> [3, ...]: g, g + h, h."""
    g, h = x.unbind(dim)
    return torch.stack([g, g + h, h])


def paired(x: Tensor, dim: int) -> Tensor:
    """`tripled` transposed: x [3, ...] -> x_0 + x_1 and x_1 + x_2 along a new dim."""
    return torch.stack([x[0] + x[1], x[1] + x[2]], dim)
