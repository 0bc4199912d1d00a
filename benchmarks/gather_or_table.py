"""K sampled negatives of the dot critic, two ways: python benchmarks/gather_or_table.py [--repeats 7] [--json FILE]

Run from the repository root, on an idle machine with 6 GB free for the gathered rows of the largest K. `Dot.pairs` either
gathers the K rows of each anchor and scores them, or makes the scores of the whole pool by one matmul and reads K of them.
Both are timed forward and backward, in turn, for batches whose maps have 64 locations; times are medians, and
gather / table above 1 says that the table is faster.

Gathering costs at least in proportion to K, the table nearly the same for all K, so there is a share K / (P L) of the pool
from which the table wins: found between the measured K along straight lines of log time against log K. `Dot.GATHER` is
1 / share.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from step_parts import Times, describe, machine, markdown, settle  # beside this file; makes dim importable
from tqdm import tqdm

from dim.critics import Dot
from dim.negatives import Sampled
from dim.pool import batch_pool

LOCATIONS = 64
SETTINGS = ((64, 128), (64, 256), (64, 2048), (256, 128), (256, 256))  # batch, units
NEGATIVES = (16, 64, 256, 1024, 4096)
WAYS = {"gather": 0, "table": 10**9}  # values of Dot.GATHER that force one way


def possible(batch: int) -> list[int]:
    """The K to measure; the largest is all that a small batch has."""
    return [min(k, (batch - 1) * LOCATIONS) for k in NEGATIVES]


def measure(batch: int, units: int, k: int, repeats: int, device: str) -> dict:
    """Milliseconds of both ways, forward and backward, one warm-up each."""
    a = torch.randn(batch, units, device=device, requires_grad=True)
    b = torch.randn(batch, LOCATIONS, units, device=device, requires_grad=True)
    pool = batch_pool(b, torch.arange(batch, device=device))
    rows = Sampled(k)(pool, seed=0, step=0)
    critic = Dot(1, 1, units, scale=units**-0.5)  # its heads are not used
    incoming = torch.randn(batch, k, device=device)

    def seconds(way: str) -> float:
        critic.GATHER = WAYS[way]
        times = Times(a.device)
        with times(way, "both"):
            torch.autograd.grad(critic.pairs(a, b, pool.out, rows), (a, b), incoming)
        return times.seconds[way, "both"]

    pairs = [(seconds("gather"), seconds("table")) for _ in range(repeats + 1)][1:]
    gather, table = (1e3 * statistics.median(one) for one in zip(*pairs, strict=True))
    found = {"batch": batch, "units": units, "k": k, "share": k / (batch * LOCATIONS)}
    return found | {"gather_ms": gather, "table_ms": table, "ratio": gather / table}


def break_even(rows: Sequence[dict]) -> float | None:
    """The share at which both ways cost the same, rows by rising K; None where one way always wins."""
    for low, high in pairwise(rows):
        if low["ratio"] < 1 <= high["ratio"]:
            place = -math.log(low["ratio"]) / math.log(high["ratio"] / low["ratio"])
            return low["share"] * (high["share"] / low["share"]) ** place
    return None


def verdict(rows: Sequence[dict]) -> str:
    """What the rows of one batch and width say about Dot.GATHER."""
    share, least, most = break_even(rows), rows[0]["share"], rows[-1]["share"]
    about = f"- Batch {rows[0]['batch']}, units {rows[0]['units']}: "
    if share is not None:
        return f"{about}equal at a share of {share:.4f} = 1 / {1 / share:.0f}"
    if rows[0]["ratio"] >= 1:
        return f"{about}the table is faster from the smallest share on, {least:.4f} = 1 / {1 / least:.0f}"
    return f"{about}gathering is faster up to the largest share, {most:.4f} = 1 / {1 / most:.0f}"


def report(rows: Sequence[dict]) -> str:
    """All measurements in Markdown."""
    names = ["batch x units", "K", "K / (P L)", "gather ms", "table ms", "gather / table"]
    cells = []
    for r in rows:
        place = [f"{r['batch']} x {r['units']}", str(r["k"]), f"1 / {1 / r['share']:.1f}"]
        cells.append([*place, f"{r['gather_ms']:.2f}", f"{r['table_ms']:.2f}", f"{r['ratio']:.2f}"])
    return markdown(names, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each way")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    settle(args.threads)
    torch.manual_seed(0)
    on = machine(args.device)
    todo = [(batch, units, k) for batch, units in SETTINGS for k in possible(batch)]
    rows = []
    for batch, units, k in (bar := tqdm(todo, disable=None, leave=False)):
        bar.set_description(f"batch {batch}, units {units}, K {k}")
        rows.append(measure(batch, units, k, args.repeats, args.device))
    groups = [[r for r in rows if (r["batch"], r["units"]) == setting] for setting in SETTINGS]
    equal = [share for group in groups if (share := break_even(group)) is not None]
    print("## Gather K rows, or make the table and read K of it\n")
    print(f"Dot critic, {LOCATIONS} locations, {args.repeats} repeats; {', '.join(describe(on))}\n")
    print(report(rows), "", *map(verdict, groups), sep="\n")
    if equal:
        print(f"\nDot.GATHER is {Dot.GATHER}; the geometric mean of these: {1 / statistics.geometric_mean(equal):.0f}")
    if args.json:
        options = {"repeats": args.repeats, "device": args.device}
        shares = [{"batch": g[0]["batch"], "units": g[0]["units"], "break_even_share": break_even(g)} for g in groups]
        content = {"machine": on, "options": options, "break_even": shares, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
