"""Critics: (y, m) -> scores of pairs of a global vector and a place of a feature map. Real numbers, not probabilities.

A anchors (global vectors y), P images in the pool, L locations of a map, K negatives for each anchor, U units.

    embed(y [A, Dy], m [P, Dm, L])   -> a [A, U], b [P, L, U]    each vector once: the costly part
    score(a, b)                      -> scores of the pairs given, broadcast over leading dimensions
    pairs(a, b, out, rows)           -> neg [A, K]               gather and score, or where all are asked the table
    scores(a, b, own, out, rows)     -> pos [A, L], neg [A, K]   where there is a table, both are read from it

Scores are at least float32 whatever autocast says; float64 stays.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dim.estimators import raised
from dim.norms import norm
from dim.pool import skipping


class Critic(nn.Module, ABC):
    """What every critic does with its `embed` and `score`."""

    @abstractmethod
    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """y [A, Dy], m [P, Dm, L] -> a [A, U], b [P, L, U]."""

    @abstractmethod
    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., U], b [..., U] -> scores [...], broadcast over the leading dimensions."""

    def table(self, a: Tensor, b: Tensor) -> Tensor:
        """a [A, U], b [P, L, U] -> scores of every anchor with every location [A, P, L]."""
        return self.score(a[:, None, None], b)

    def pairs(self, a: Tensor, b: Tensor, out: Tensor, rows: Tensor | None = None) -> Tensor:
        """a [A, U], b [P, L, U] -> scores of the negatives [A, K].

        rows [A, K] index the pool's P L locations; None asks for all (P - E) L of the other images, in the pool's order,
        where out [A, E] are the places in the pool that are left out for each anchor, ascending.
        """
        if rows is None:
            return left(self.table(a, b), out)
        return self.score(a[:, None], gathered(b.flatten(0, 1), rows))

    def scores(self, a: Tensor, b: Tensor, own: Tensor, out: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of each anchor with its own map, whose place in the pool is own [A], and of its negatives as `pairs` gives
        them: pos [A, L], neg [A, K]."""
        return self.score(a[:, None], b.index_select(0, own)), self.pairs(a, b, out, rows)


class InnerProduct(Critic):
    """Critics whose score is factor * <a, b>: all pairs are one matmul."""

    # Rows of the pool gathered for each anchor cost this many times more than their scores in the table of one matmul
    # (`benchmarks/gather_or_table.py`: 60 to 140 on a CPU); from a share of 1 / GATHER of the pool on, the table is made.
    GATHER = 96

    def factor(self) -> float | Tensor:
        """What the inner products are multiplied by."""
        return 1.0

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., U], b [..., U] -> factor * <a, b> [...]."""
        with torch.autocast(a.device.type, enabled=False):
            return torch.linalg.vecdot(raised(a) * self.factor(), raised(b))  # einsum's backward took 5 times as long

    def table(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            anchors, rows = raised(a) * self.factor(), b.flatten(0, 1)
            table = Table.apply(anchors, rows) if b.dtype == torch.bfloat16 else anchors @ raised(rows).T
            return table.view(len(a), *b.shape[:2])

    def from_table(self, k: int, places: int) -> bool:
        """Whether k negatives of so many places are read from the table of all."""
        return k * self.GATHER >= places

    def pairs(self, a: Tensor, b: Tensor, out: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is not None and self.from_table(rows.shape[1], b.shape[0] * b.shape[1]):
            return self.table(a, b).flatten(1).gather(1, rows)
        return super().pairs(a, b, out, rows)

    def scores(self, a: Tensor, b: Tensor, own: Tensor, out: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if rows is not None and not self.from_table(rows.shape[1], b.shape[0] * b.shape[1]):
            return super().scores(a, b, own, out, rows)
        table = self.table(a, b)
        return picked(table, own[:, None]), left(table, out) if rows is None else table.flatten(1).gather(1, rows)


class Table(torch.autograd.Function):
    """a [A, U] in float32, b [R, U] in bf16 -> a b^T [A, R] in float32.

    Of rows in bf16, as a CPU's autocast leaves them; a GPU's makes LayerNorm in float32, and Dot's rows with it.
    Gradients are products of bf16 with sums in float32, as autocast makes those of every layer; by themselves they would be
    float32, rounded to bf16 afterwards, from a copy of b in float32 that is kept until then. The incoming gradient of an
    anchor mostly sums to 0 over its pairs, and rounded it does not: what this adds along the mean of b is taken off again.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b.to(a.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        rounded = gradient.to(b.dtype)
        lost = gradient.sum(1) - rounded.sum(1, dtype=gradient.dtype)
        mean = (b.new_full((1, len(b)), 1 / len(b)) @ b).to(a.dtype)  # b.mean(0) took five times as long
        return (rounded @ b).to(a.dtype).addcmul_(lost[:, None], mean), rounded.T @ a.to(b.dtype)


class Dot(InnerProduct):
    """Encode-and-dot-product (paper, section 3.1 and appendix; rdevon/DIM `mi_networks.py`).

    One residual head for the anchors, one for the locations; the score is the inner product of their outputs times `scale`.
    The paper has units 2048 and scale 1, which starts with scores of standard deviation near sqrt(units) = 45.
    """

    def __init__(self, anchor_width: int, map_width: int, units: int, scale: float = 1.0, norm: str = "batch"):
        super().__init__()
        self.anchor_head = ResidualHead(anchor_width, units, norm)
        self.map_head = ResidualHead(map_width, units, norm)
        self.scale = scale

    def factor(self) -> float:
        return self.scale

    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.anchor_head(y), by_rows(self.map_head, m)


class Cosine(InnerProduct):
    """The cosine of the outputs of Dot's heads over a temperature, so scores lie within +-1 / temperature.

    learned: the temperature is a parameter from there on, by its log, and counts as at least 0.01 (as in CLIP, Radford et al.
    2021); its gradient is 0 below.
    """

    def __init__(
        self,
        anchor_width: int,
        map_width: int,
        units: int,
        temperature: float = 0.1,
        learned: bool = False,
        norm: str = "batch",
    ):
        super().__init__()
        self.anchor_head = ResidualHead(anchor_width, units, norm)
        self.map_head = ResidualHead(map_width, units, norm)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned)

    def factor(self) -> Tensor:
        return self.log_scale.clamp(max=math.log(100)).exp()

    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(raised(self.anchor_head(y)), dim=-1), F.normalize(raised(by_rows(self.map_head, m)), dim=-1)


class Bilinear(InnerProduct):
    """y^T W m, as in CPC (van den Oord et al. 2018): W y is an anchor's embedding, a location its own; U = Dm."""

    def __init__(self, anchor_width: int, map_width: int):
        super().__init__()
        self.weight = nn.Linear(anchor_width, map_width, bias=False)

    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight(y), m.transpose(1, 2)


class ResidualHead(nn.Module):
    """Linear-norm-ReLU-linear beside a linear shortcut, then LayerNorm: x [R, D] -> [R, U]; 1x1 convolutions, on rows.

    The shortcut starts near the identity: uniform in +-0.01, ones on the diagonal where U >= D.
    """

    def __init__(self, width: int, units: int, kind: str = "batch"):
        super().__init__()
        self.hidden = nn.Linear(width, units, bias=kind == "none")
        self.norm = norm(kind, units, dims=0)
        self.out = nn.Linear(units, units)
        self.shortcut = nn.Linear(width, units, bias=False)
        self.layer_norm = nn.LayerNorm(units)
        nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
        if units >= width:
            with torch.no_grad():
                self.shortcut.weight.fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(of_rows(self.hidden, x)).relu_()
        return self.layer_norm(of_rows(self.out, hidden).add_(of_rows(self.shortcut, x)))


class Rows(torch.autograd.Function):
    """x [R, D], w [U, D], bias [U] or None -> x w^T + bias [R, U]: F.linear, with gradients as a CPU makes them fastest.

    oneDNN multiplies fastest where the numbers of a sum lie beside each other in both factors, so w is transposed first, a
    small copy beside many rows; the product with ones is a sum over rows, for which torch takes two to five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.biased = bias is not None
        return x @ w.T if bias is None else affine(x, w, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        back = gradient @ w.T.contiguous().T if ctx.needs_input_grad[0] else None
        of_w = None
        if ctx.needs_input_grad[1]:
            of_w = (x.T @ gradient).T if w.shape[1] < w.shape[0] else gradient.T @ x
        of_bias = (gradient.new_ones(1, len(gradient)) @ gradient)[0] if ctx.biased else None
        return back, of_w, of_bias


def affine(x: Tensor, w: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """x [R, D], w [U, D], bias [U] -> x w^T + bias [R, U]."""
    if x.dtype == torch.bfloat16:  # which would be rounded twice
        return torch.addmm(bias, x, w.T, out=out)
    return torch.mm(x, w.T, out=out).add_(bias)  # addmm first fills the result with the bias


def of_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x [R, D]) -> [R, U]; of many rows on a CPU by `Rows`, past hooks of the layer."""
    if x.device.type != "cpu" or len(x) < 2 * layer.out_features:
        return layer(x)
    dtype = computed_in(x)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return Rows.apply(x.to(dtype), layer.weight.to(dtype), bias)


def computed_in(*given: Tensor) -> torch.dtype:
    """The type in which a linear layer computes with these: autocast's where it is on, which leaves float64 as it is."""
    dtype = reduce(torch.promote_types, [x.dtype for x in given])
    device = given[0].device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and dtype != torch.float64 else dtype


class Concat(Critic):
    """Concat-and-convolve (paper, appendix): [y; m] -> 512 -> 512 -> 1 with ReLU, no normalisation, the same at each location.

    The first layer is a sum, W[y; m] = Wy y + Wm m, so it is the embedding and no y is tiled over locations. On the
    flattened last map (L = 1) this is the paper's global critic. `pairs` and `scores` can be differentiated once and run past
    hooks of the last two layers; `score` has neither limit.
    """

    def __init__(self, anchor_width: int, map_width: int, units: int = 512):
        super().__init__()
        whole = nn.Linear(anchor_width + map_width, units)  # initialised as the one layer it is
        self.anchor_part = nn.Linear(anchor_width, units)
        self.map_part = nn.Linear(map_width, units, bias=False)
        with torch.no_grad():
            self.anchor_part.weight.copy_(whole.weight[:, :anchor_width])
            self.anchor_part.bias.copy_(whole.bias)
            self.map_part.weight.copy_(whole.weight[:, anchor_width:])
        self.hidden = nn.Linear(units, units)
        self.out = nn.Linear(units, 1)

    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.anchor_part(y), by_rows(self.map_part, m)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., U], b [..., U] -> [...]."""
        return self.last(self.hidden((a + b).relu_()).relu_())

    def last(self, hidden: Tensor) -> Tensor:
        """The last layer, [..., U] -> [...], in float32, since a score of 8 bits is too coarse for a bound."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(raised(hidden), raised(self.out.weight), raised(self.out.bias)).squeeze(-1)

    def pairs(self, a: Tensor, b: Tensor, out: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            others = torch.arange(len(b) - out.shape[1], device=out.device)
            rows = rows_of(skipping(others, out), b.shape[1])
        dtype, layers = computed_in(a, b), (self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias)
        with torch.autocast(a.device.type, enabled=False):
            return Tiled.apply(a.to(dtype), b.flatten(0, 1).to(dtype), rows, *layers, torch.is_grad_enabled())

    def scores(self, a: Tensor, b: Tensor, own: Tensor, out: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if rows is None:
            return super().scores(a, b, own, out, rows)
        mine = rows_of(own[:, None], b.shape[1])
        pos, neg = self.pairs(a, b, out, torch.cat([mine, rows], 1)).split([mine.shape[1], rows.shape[1]], 1)
        return pos, neg


class Tiled(torch.autograd.Function):
    """`Concat.score` of pairs by rows: a [A, U], b [R, U] of one type, rows [A, K], hidden weight W [U, U] and bias w [U], last
    weight v [1, U] and bias c [1] -> v relu(W relu(a_i + b_j) + w) + c of each anchor i with its places j = rows[i], [A, K].

    Kept for the backward pass is the second hidden layer alone; the first, a sum, is made once more. All else is made for a
    tile of pairs at a time, so that a step holds one hidden layer of its pairs, not several; without keep not even one.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, last: Tensor, c: Tensor, keep: bool
    ) -> Tensor:
        w, bias, last, c = weight.to(a.dtype), bias.to(a.dtype), raised(last), raised(c)
        kept, scores = a.new_empty(rows.numel() if keep else 0, len(w)), last.new_empty(rows.numel(), 1)
        for anchors, places, pairs in tiles(rows, a):
            out = kept[pairs] if keep else None
            second = affine(met(a[anchors], b, rows[anchors, places]), w, bias, out).relu_()
            torch.addmm(c, raised(second), last.T, out=scores[pairs])
        ctx.save_for_backward(a, b, rows, w, bias, last, kept)
        return scores.view(rows.shape)

    @staticmethod
    @once_differentiable  # slopes of a critic are those of `score`
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return *Tiled.gradients(ctx.saved_tensors, gradient), None

    @staticmethod
    def gradients(saved: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of all that `forward` was given but keep."""
        a, b, rows, w, bias, last, kept = saved
        exact = w.dtype == gradient.dtype
        of_a, of_b, of_w = (torch.zeros_like(raised(x)) for x in (a, b, w))
        of_last, of_bias, of_score = torch.zeros_like(last), torch.zeros_like(last[0]), gradient.reshape(-1, 1)
        # v is taken out of every pair's gradient, to the weights on both sides of it; transposed as in `Rows`
        scaled, rounded = (w * last.T).to(w.dtype).T.contiguous().T, of_score.to(w.dtype)
        for anchors, places, pairs in tiles(rows, a):
            some, second = rows[anchors, places], kept[pairs]
            first = met(a[anchors], b, some)
            of_second = torch.ops.aten.threshold_backward(rounded[pairs].expand_as(second), second, 0)
            of_bias += of_second.sum(0, dtype=of_bias.dtype)
            of_w += of_second.T @ first
            if not exact:  # gradients of an anchor's scores may sum to 0, but rounded they do not
                of_last += of_score[pairs].T @ raised(second)
            of_first = of_second @ scaled
            torch.ops.aten.threshold_backward.grad_input(of_first, first, 0, grad_input=of_first)
            of_a[anchors] += of_first.unflatten(0, some.shape).sum(1)
            of_b.index_add_(0, some.flatten(), raised(of_first))
        if exact:  # a pair's second layer is W x + w where its ReLU has a slope and 0 elsewhere: no pass over the pairs
            of_last += (of_w * w).sum(1) + of_bias * bias
        return of_a, of_b, None, of_w * last.T, of_bias * last[0], of_last, gradient.sum()[None]


TILE = 2**22  # bytes of pairs, so that a tile stays in a CPU's cache; half a MiB to 16 took the same time within 2 %


def tiles(rows: Tensor, a: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Anchors and places of each tile of rows [A, K], and its pairs among all: on a CPU TILE bytes of vectors like those of
    a [A, U], elsewhere all at once."""
    (anchors, places), whole = rows.shape, rows.shape[1]
    if a.device.type == "cpu":
        pairs = max(1, TILE // (a.shape[1] * a.element_size()))
        anchors, places = pairs // max(1, places), min(places, pairs)
    for i in range(0, len(rows), max(1, anchors)):
        for j in range(0, whole, max(1, places)):
            some = slice(i, i + max(1, anchors)), slice(j, j + places)
            yield *some, slice(i * whole + j, i * whole + j + rows[some].numel())


def met(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    """a [A, U], b [R, U], rows [A, K] -> relu(a_i + b_j) of each anchor with its places [A K, U]."""
    return gathered(b, rows).add_(a[:, None]).relu_().flatten(0, 1)


def rows_of(images: Tensor, places: int) -> Tensor:
    """Images of a pool [A, I], each with so many places -> the rows of all these places [A, I L]."""
    return (images[:, :, None] * places + torch.arange(places, device=images.device)).flatten(1)


class Projected(Critic):
    """A critic that sees y through a network of its own, linear-norm-ReLU-linear, as SimCLR's (Chen et al. 2020); y itself
    is what probes see."""

    def __init__(self, anchor_width: int, width: int, critic: Critic, kind: str = "batch"):
        super().__init__()
        hidden = nn.Linear(anchor_width, width, bias=kind == "none")
        self.projector = nn.Sequential(hidden, norm(kind, width, dims=0), nn.ReLU(), nn.Linear(width, width))
        self.critic = critic

    def embed(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.critic.embed(self.projector(y), m)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return self.critic.score(a, b)

    def table(self, a: Tensor, b: Tensor) -> Tensor:
        return self.critic.table(a, b)

    def pairs(self, a: Tensor, b: Tensor, out: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.critic.pairs(a, b, out, rows)

    def scores(self, a: Tensor, b: Tensor, own: Tensor, out: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.critic.scores(a, b, own, out, rows)


def by_rows(layer: nn.Module, m: Tensor) -> Tensor:
    """Apply a layer of vectors to every location: m [P, D, L] -> [P, L, U]. No copy where m lies channels last."""
    rows = m.transpose(1, 2).flatten(0, 1)
    made = of_rows(layer, rows) if isinstance(layer, nn.Linear) else layer(rows)
    return made.unflatten(0, (m.shape[0], m.shape[2]))


def gathered(b: Tensor, rows: Tensor) -> Tensor:
    """b [R, U], rows [A, K] -> [A, K, U]; index_select, whose backward adds whole rows (indexing adds number by number)."""
    return b.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def left(table: Tensor, out: Tensor) -> Tensor:
    """table [A, P, L], out [A, E] -> [A, (P - E) L]: those images left out for each anchor, the others in order."""
    return picked(table, skipping(torch.arange(table.shape[1] - out.shape[1], device=out.device), out))


def picked(table: Tensor, images: Tensor) -> Tensor:
    """table [A, P, L], images [A, I], places in the pool for each anchor -> [A, I L]: their scores, in that order."""
    flat = images + table.shape[1] * torch.arange(len(table), device=images.device)[:, None]
    return table.flatten(0, 1).index_select(0, flat.flatten()).view(len(table), -1)


CRITICS = {"dot": Dot, "cosine": Cosine, "bilinear": Bilinear, "concat": Concat}
