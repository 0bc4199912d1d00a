"""Cost against N, K, M and units: python benchmarks/growth.py [--repeats 5] [--json FILE]

Run from the repository root, on an idle machine. The scores of the negatives of a local term and InfoNCE on them, forward and
backward, from embedded vectors on: N anchors, N maps of M x M places, K negatives for each anchor, units U. One of them grows
at a time.

    all        every place of every other image: a matmul of N x U by U x N M^2, so N^2 M^2 U
    sampled    K gathered rows for each anchor where K is a small share of the places: N K U
    concat     a hidden layer for each of K pairs, one shift (K = M^2): N M^2 U^2

What is measured is the exponent: the slope of log time against log of what grows, by least squares; the formula's stands
beside it. A fixed cost bends it down at small sizes, caches bend it up at large ones.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_parts import Times, describe, machine, markdown, settle  # beside this file; makes dim importable
from tqdm import tqdm

from dim.critics import Concat, Critic, Dot
from dim.estimators import ESTIMATORS
from dim.negatives import NEGATIVES
from dim.pool import batch_pool

BASE = {
    "all": {"N": 128, "M": 8, "U": 512},
    "sampled": {"N": 256, "M": 8, "U": 128, "K": 32},
    "concat": {"N": 64, "M": 8, "U": 256},
}
GROWS = {  # kind, what grows, its values -> the formula's exponent
    ("all", "N", (64, 128, 256, 512)): 2,
    ("all", "M", (4, 8, 16)): 2,
    ("all", "U", (256, 512, 1024, 2048)): 1,
    ("sampled", "N", (128, 256, 512, 1024)): 1,
    ("sampled", "K", (16, 32, 64, 128)): 1,
    ("sampled", "U", (64, 128, 256, 512)): 1,
    ("concat", "N", (32, 64, 128, 256)): 1,
    ("concat", "M", (4, 8, 16)): 2,
    ("concat", "U", (256, 512, 1024)): 2,
}


def work(kind: str, sizes: dict[str, int], device: str) -> Callable[[], Any]:
    """What is timed: negatives' scores, estimate and gradients of this kind at these sizes; own scores are zeros."""
    n, places, units = sizes["N"], sizes["M"] ** 2, sizes["U"]
    a = torch.randn(n, units, device=device, requires_grad=True)
    b = torch.randn(n, places, units, device=device, requires_grad=True)
    pool = batch_pool(b, torch.arange(n, device=device))
    critic: Critic = Concat(1, 1, units) if kind == "concat" else Dot(1, 1, units, scale=units**-0.5)  # heads are not used
    chosen = {"all": ("all", 0), "sampled": ("sampled", sizes.get("K", 0)), "concat": ("shifted", 1)}[kind]
    rows = NEGATIVES[chosen[0]](chosen[1])(pool, 0, 0)
    critic.to(device)
    pos = torch.zeros(n, places, device=device)

    def step() -> None:
        torch.autograd.grad(ESTIMATORS["infonce"](pos, critic.pairs(a, b, pool.out, rows)), (a, b))

    return step


def milliseconds(kind: str, sizes: dict[str, int], repeats: int, device: str) -> float:
    """Median of some runs after one to warm up."""
    step, taken = work(kind, sizes, device), []
    for _ in range(repeats + 1):
        times = Times(torch.device(device))
        with times(kind, "both"):
            step()
        taken.append(1e3 * times.seconds[kind, "both"])
    return statistics.median(taken[1:])


def exponent(values: tuple[int, ...], times: list[float]) -> float:
    """Slope of log time against log of what grows."""
    return statistics.linear_regression([math.log(v) for v in values], [math.log(t) for t in times]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    settle(args.threads)
    on = machine(args.device)
    found = []
    for (kind, grows, values), expected in tqdm(GROWS.items(), disable=None, leave=False):
        times = [milliseconds(kind, BASE[kind] | {grows: value}, args.repeats, args.device) for value in values]
        one = {"kind": kind, "grows": grows, "values": values, "ms": times, "formula": expected}
        found.append(one | {"exponent": exponent(values, times), "others": {k: v for k, v in BASE[kind].items() if k != grows}})
    print("## Cost against N, K, M and units\n")
    print(f"InfoNCE, float32, {args.repeats} repeats; {', '.join(describe(on))}\n")
    rows = [
        [
            f"{one['kind']}: {one['grows']} = {', '.join(map(str, one['values']))}",
            ", ".join(f"{key} {value}" for key, value in one["others"].items()),
            ", ".join(f"{ms:.1f}" for ms in one["ms"]),
            f"{one['formula']}",
            f"{one['exponent']:.2f}",
        ]
        for one in found
    ]
    print(markdown(["what grows", "the others", "ms", "formula's exponent", "measured"], rows))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key != "json"}
        args.json.write_text(json.dumps({"machine": on, "options": options, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
