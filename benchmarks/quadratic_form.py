"""LayerNorm's statistics as a quadratic form, tried: python benchmarks/quadratic_form.py [--batches 256 512] [--units 2048]

Run from the repository root, on an idle machine. The dot critic scores a place by <a, LN(W z)>, z = [hidden units; map; 1] of
width D = U + Dm + 1 and W [U, D] its wide layer, shortcut and bias side by side; gain g and offset o belong to LN. With
W^T (a g) made for each of N anchors instead of W z for each of N L places,

    <a, LN(W z)> = (<W^T (a g), z> - <a, g> mean) / sd + <a, o>,     mean = <W^T 1 / U, z>,  sd^2 = z^T G z / U - mean^2 + eps

where G = W^T W. The product z G costs what W z does, but its backward pass needs one large product (z^T z) where that of W z
needs two: 2 N L D^2 + 3 U D^2 multiply-adds a step for the wide layer, not 3 N L D U. Both ways are checked to give the same
scores and gradients, then timed in turn, forward and backward of the table of all scores.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from step_parts import Times, describe, machine, markdown, settle  # beside this file; makes dim importable
from torch import Tensor
from tqdm import tqdm

LOCATIONS, MAP, EPS = 64, 128, 1e-5


class Quadratic(torch.autograd.Function):
    """z [R, D], G [D, D] symmetric -> z^T G z [R]; z G is kept for the backward pass."""

    @staticmethod
    def forward(ctx, z: Tensor, gram: Tensor) -> Tensor:
        product = z @ gram
        ctx.save_for_backward(z, product)
        return torch.linalg.vecdot(product, z)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, product = ctx.saved_tensors
        return 2 * grad[:, None] * product, (z * grad[:, None]).T @ z


def usual(a: Tensor, z: Tensor, w: Tensor, g: Tensor, o: Tensor) -> Tensor:
    """a [N, U], z [R, D] -> scores [N, R]: every place through the wide layer and LayerNorm."""
    return a @ F.layer_norm(z @ w.T, (len(w),), g, o, EPS).T


def quadratic(a: Tensor, z: Tensor, w: Tensor, g: Tensor, o: Tensor) -> Tensor:
    """The same by the anchors' side."""
    scaled = a * g
    mean = z @ (w.mean(0))
    variance = Quadratic.apply(z, w.T @ w) / len(w) - mean.square()
    return ((scaled @ w) @ z.T - scaled.sum(1, keepdim=True) * mean) * (variance + EPS).rsqrt() + (a @ o)[:, None]


WAYS: dict[str, Callable[..., Tensor]] = {"usual": usual, "quadratic": quadratic}


def inputs(batch: int, units: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """a, z, w, g, o like those of a critic at its start."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=dtype)

    rows, width = batch * LOCATIONS, units + MAP + 1
    z = torch.cat([normal(rows, units).relu(), normal(rows, MAP).relu(), torch.ones(rows, 1, dtype=dtype)], 1)
    given = [normal(batch, units), z, normal(units, width) * units**-0.5, 1 + 0.1 * normal(units), 0.1 * normal(units)]
    return [x.requires_grad_() for x in given]


def gradients(way: str, given: list[Tensor], incoming: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(WAYS[way](*given), given, incoming)


def check(dtype: torch.dtype) -> float:
    """Largest relative difference of scores and gradients between the two ways."""
    given = inputs(4, 256, dtype)
    scores = [WAYS[way](*given) for way in WAYS]
    incoming = torch.randn_like(scores[0])
    pairs = [scores, *zip(*(gradients(way, given, incoming) for way in WAYS), strict=True)]
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)


def measure(batch: int, units: int, repeats: int) -> dict:
    """Milliseconds of both ways in turn."""
    given = inputs(batch, units)
    incoming = torch.randn(batch, batch * LOCATIONS) / batch
    turns = []
    for turn in tqdm(range(repeats + 1), desc=f"batch {batch}", disable=None, leave=False):
        times = Times(torch.device("cpu"))
        for way in list(WAYS)[:: 1 if turn % 2 else -1]:
            with times(way, "both"):
                gradients(way, given, incoming)
        turns.append({way: 1e3 * times.seconds[way, "both"] for way in WAYS})
    return {"batch": batch, "units": units, "ms": turns[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    settle(args.threads)
    apart = {str(dtype).removeprefix("torch."): check(dtype) for dtype in (torch.float32, torch.float64)}
    if apart["float64"] > 1e-9:
        raise RuntimeError(f"the two ways differ: {apart}")
    on = machine("cpu")
    found = [measure(batch, args.units, args.repeats) for batch in args.batches]
    print("## LayerNorm's statistics as a quadratic form\n")
    print(f"units {args.units}, {args.repeats} turns; {', '.join(describe(on))}\n")
    rows = []
    for one in found:
        ratios = [turn["usual"] / turn["quadratic"] for turn in one["ms"]]
        one["ratios"] = ratios
        times = [f"{statistics.median(turn[way] for turn in one['ms']):,.0f}" for way in WAYS]
        rows.append([str(one["batch"]), *times, f"x{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"])
    print(markdown(["batch", "usual, ms", "quadratic form, ms", "usual / quadratic"], rows))
    print(f"\n- Largest relative difference: {', '.join(f'{value:.0e} in {key}' for key, value in apart.items())}")
    if args.json:
        options = {key: value for key, value in vars(args).items() if key != "json"}
        text = json.dumps({"machine": on, "options": options, "difference": apart, "cases": found}, indent=1)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
