"""A training step, two ways: python benchmarks/step.py [--batches 64 256] [--precisions float32 bf16] [--official DIR]

Run from the repository root, on an idle machine. DIM(L) with the paper's encoder, critics and widths on random pictures of
CIFAR's shape already in memory; a step is encoder, critic, estimator, backward pass and Adam.

    dim        the step of train.py: channels last, convolutions of float32 by fewer products, rows and one matmul, one
               log-sum-exp for all locations of an image, the concat critic's first layer once for each vector, fused Adam,
               scores in float32 under bf16
    plain      the arrangement of the authors' code (rdevon/DIM, bac4765) written anew: channels first, convolutions by torch,
               the table of scores [N, N, L, 1]; JSD of all pairs under a mask; InfoNCE by repeating the negatives for each
               location and one log-softmax; DV by one masked log-sum-exp (the authors' own raises at this commit). The concat
               critic tiles y over the locations and runs [y; m] and [y; m of the next image] through its layers.

Both share weights at the start; their losses and gradients must agree in float32 before anything is timed. --official DIR, a
checkout of rdevon/DIM, compares the plain losses with that code's own, in float64. Both are then stepped in turn in one
process with the same threads, allocator and denormal settings (those of train.py), in each precision that is asked for; in
float32 the plain way's products are made by the library that dim chooses too, or with --plain-products torch by torch's choice,
as the authors' code would run (they differ on AMD's processors, see `dim.machine.tune_products`). On a
CPU the clock is the process's CPU seconds, on a GPU wall time with synchronisation; a ratio is taken turn by turn. limit: the
matrix products' arithmetic of dim's step, by torch's own formulas, over the rate of a 1024 x 1024 x 1024 product right before
it, each product by the rate of its own precision: the score table of a bf16 step is made in float32. Peak memory: of a fresh
process of each way.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step_parts import (  # beside this file; makes dim importable
    Training,
    describe,
    high_water,
    in_fresh_process,
    machine,
    markdown,
    settle,
    synchronize,
    training,
    update,
    whole_gradients,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from dim.critics import Concat, Critic, Dot, ResidualHead
from dim.machine import ONEDNN, coarse_products
from dim.winograd import Convolution

TOLERANCE = 1e-3  # relative, of losses and gradients in float32: the sums run in another order over scores of 45 and more
WAYS = ("dim", "plain")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


# ------------------------------------------------------------------------------------------------- the plain arrangement


def conv(linear: nn.Linear) -> nn.Conv2d:
    """A linear layer as a 1x1 convolution with the same weights."""
    made = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    made.weight.data.copy_(linear.weight[:, :, None, None])
    if linear.bias is not None and made.bias is not None:
        made.bias.data.copy_(linear.bias)
    return made


class PlainHead(nn.Module):
    """x [N, D, H, W] -> [N, U, H, W]: a residual head as 1x1 convolutions."""

    def __init__(self, head: ResidualHead):
        super().__init__()
        units = head.out.out_features
        self.block = nn.Sequential(conv(head.hidden), nn.BatchNorm2d(units), nn.ReLU(), conv(head.out))
        self.shortcut, self.layer_norm = conv(head.shortcut), nn.LayerNorm(units)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(x) + self.shortcut(x)
        return self.layer_norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PlainDot(nn.Module):
    """y [N, Dy], map [N, Dm, H, W] -> table of scores [N, N, L, 1] of anchors, images, locations."""

    def __init__(self, critic: Dot):
        super().__init__()
        self.anchor, self.map = PlainHead(critic.anchor_head), PlainHead(critic.map_head)

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        a, b = self.anchor(y[:, :, None, None]).flatten(2), self.map(m).flatten(2)  # [N, U, 1], [N, U, L]
        n, units, places = b.shape
        table = a.permute(0, 2, 1).reshape(-1, units) @ b.permute(0, 2, 1).reshape(-1, units).T
        return table.reshape(n, 1, n, places).permute(0, 2, 3, 1)


class PlainConcat(nn.Module):
    """y [N, Dy], map [N, Dm, H, W] -> own scores and those with the next image's map, [N, 1, H, W] each."""

    def __init__(self, critic: Concat):
        super().__init__()
        both = nn.Linear(critic.anchor_part.in_features + critic.map_part.in_features, critic.hidden.in_features)
        both.weight.data.copy_(torch.cat([critic.anchor_part.weight, critic.map_part.weight], 1))
        both.bias.data.copy_(critic.anchor_part.bias)
        self.layers = nn.Sequential(conv(both), nn.ReLU(), conv(critic.hidden), nn.ReLU(), conv(critic.out))

    def forward(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        tiled = y[:, :, None, None].expand(-1, -1, *m.shape[2:])
        return self.layers(torch.cat([tiled, m], 1)), self.layers(torch.cat([tiled, m.roll(-1, 0)], 1))


def plain_encoder(encoder: nn.Module) -> nn.Module:
    """The same layers and weights, channels first, each convolution by torch."""
    made = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    for layer in made.modules():
        if isinstance(layer, Convolution):
            layer.fewer_products = False
    return made


def mask(n: int, like: Tensor) -> Tensor:
    """1 where an anchor meets its own image [N, N]."""
    return torch.eye(n, device=like.device, dtype=like.dtype)


def jsd_of_table(table: Tensor) -> Tensor:
    """Mean of softplus(T) over the other images' pairs + mean of softplus(-T) over own pairs - 2 log 2."""
    own = mask(len(table), table)
    pos = (-F.softplus(-table)).mean((2, 3)) * own
    neg = (F.softplus(-table) + table).mean((2, 3)) * (1 - own)
    return neg.sum() / (1 - own).sum() - pos.sum() / own.sum() - 2 * math.log(2)


def infonce_of_table(table: Tensor) -> Tensor:
    """Cross-entropy of each own pair among itself and all pairs of its anchor with other images' locations, which are repeated
    for each location; an anchor's own image counts as scores of -10. Less log(K + 1), as in dim."""
    n, _, places, _ = table.shape
    own = mask(n, table)[:, :, None, None]
    pos = torch.diagonal(table[..., 0], 0, 0, 1).permute(1, 0)[:, :, None, None]  # [N, L, 1, 1]
    neg = table * (1 - own) - 10 * own
    neg = neg.reshape(n, n * places, 1).unsqueeze(1).expand(-1, places, -1, -1)
    return -F.log_softmax(torch.cat([pos, neg], 2), 2)[:, :, 0].mean() - math.log((n - 1) * places + 1)


def dv_of_table(table: Tensor) -> Tensor:
    """log of the mean of exp T over the other images' pairs - mean of T over own pairs."""
    n, _, places, _ = table.shape
    own = mask(n, table)
    highest = table.max().detach()
    others = (torch.exp(table - highest).sum((2, 3)) * (1 - own)).sum()
    return others.log() + highest - math.log(n * (n - 1) * places) - (table.mean((2, 3)) * own).sum() / n


def jsd_of_shift(pos: Tensor, neg: Tensor) -> Tensor:
    return F.softplus(neg).mean() + F.softplus(-pos).mean() - 2 * math.log(2)


def infonce_of_shift(pos: Tensor, neg: Tensor) -> Tensor:
    """Each own pair among itself and the scores of its anchor with every location of the next image."""
    n, places = len(pos), pos[0].numel()
    rows = neg.reshape(n, 1, places).expand(-1, places, -1)
    return -F.log_softmax(torch.cat([pos.reshape(n, places, 1), rows], 2), 2)[:, :, 0].mean() - math.log(places + 1)


def dv_of_shift(pos: Tensor, neg: Tensor) -> Tensor:
    return torch.logsumexp(neg.flatten(), 0) - math.log(neg.numel()) - pos.mean()


TABLES = {"jsd": jsd_of_table, "infonce": infonce_of_table, "dv": dv_of_table}
SHIFTS = {"jsd": jsd_of_shift, "infonce": infonce_of_shift, "dv": dv_of_shift}


class Plain(nn.Module):
    """pictures -> loss, with the weights of dim's encoder and critic at this moment."""

    def __init__(self, t: Training, estimator: str):
        super().__init__()
        self.encoder = plain_encoder(t.encoder)
        critic = t.term.critic
        self.critic = PlainDot(critic) if isinstance(critic, Dot) else PlainConcat(concat(critic))
        self.estimator = estimator

    def forward(self, pictures: Tensor) -> Tensor:
        codes = self.encoder(pictures)
        scores = self.critic(codes.y, codes.map)
        return SHIFTS[self.estimator](*scores) if isinstance(scores, tuple) else TABLES[self.estimator](scores)


def concat(critic: Critic) -> Concat:
    assert isinstance(critic, Concat)
    return critic


# ----------------------------------------------------------------------------------------------------- checks before timing


def check(critic: str, estimator: str, units: int, batch: int = 16) -> dict[str, float]:
    """Relative differences of loss and encoder gradients between the two ways, float32; RuntimeError above TOLERANCE.

    Small scores (a scale of 1 / sqrt(units)), so that every pair carries weight; the plain table is scaled alike.
    """
    t = training(batch, critic, units, "cpu", estimator, scale=units**-0.5)
    plain = Plain(t, estimator)
    if isinstance(t.term.critic, Dot):
        scale = t.term.critic.scale
        plain.critic.register_forward_hook(lambda _, __, table: table * scale)
    loss = whole_gradients(t, 0).encoder.detach()
    other = plain(t.pictures.contiguous())
    other.backward()
    pairs = [(p.grad, q.grad) for p, q in zip(t.encoder.parameters(), plain.encoder.parameters(), strict=True)]
    largest = max(g.abs().max().item() for g, _ in pairs)
    found = {
        "loss": ((loss - other).abs() / loss.abs().clamp_min(1)).item(),  # near 0 at the start
        "gradient": max((g - h).abs().max().item() for g, h in pairs) / largest,
    }
    if max(found.values()) > TOLERANCE:
        raise RuntimeError(f"{critic}, {estimator}: the two ways differ: {found}")
    return found


def check_official(checkout: Path, n: int = 6, units: int = 5, places: int = 4) -> dict[str, float]:
    """Largest difference between the plain losses of a table and those of the authors' code, float64; RuntimeError above 1e-6
    (their code writes log 2 and masks alike, so nothing else may differ)."""
    sys.path.insert(0, str(checkout))
    from cortex_DIM.functions.dim_losses import fenchel_dual_loss, infonce_loss  # type: ignore[import-not-found]

    draws = torch.Generator().manual_seed(0)
    locations = torch.randn(n, units, places, generator=draws, dtype=torch.float64)
    anchors = torch.randn(n, units, 1, generator=draws, dtype=torch.float64)
    table = torch.einsum("aui,pul->apli", anchors, locations)
    found = {
        "jsd": (jsd_of_table(table) - fenchel_dual_loss(locations, anchors, measure="JSD")).abs().item(),
        "infonce": (infonce_of_table(table) + math.log((n - 1) * places + 1) - infonce_loss(locations, anchors)).abs().item(),
    }
    if max(found.values()) > 1e-6:
        raise RuntimeError(f"the plain losses are not those of {checkout}: {found}")
    return found


# --------------------------------------------------------------------------------------------------------------- measurements


def stepper(
    way: str, precision: str, critic: str, estimator: str, batch: int, args: argparse.Namespace
) -> Callable[[int], None]:
    """step -> one training step of this way."""
    t = training(batch, critic, args.units, args.device, estimator, scale=1.0)
    bf16 = torch.autocast(t.device.type, torch.bfloat16, enabled=precision == "bf16")
    coarse = partial(coarse_products, precision == "bf16")
    if way == "dim":

        def step(number: int) -> None:
            t.optimizer.zero_grad()
            with coarse():
                with bf16:
                    losses = t.objective(t.encoder(t.pictures), t.index, 0, number)
                losses.encoder.backward()
            update(t, number, losses)

        return step
    plain = Plain(t, estimator).to(t.device)
    pictures, betas = t.pictures.contiguous(), t.optimizer.defaults["betas"]
    optimizer = torch.optim.Adam(plain.parameters(), t.optimizer.defaults["lr"], betas)

    def plain_step(number: int) -> None:
        optimizer.zero_grad()
        with products(args.plain_products), coarse():
            with bf16:
                loss = plain(pictures)
            loss.backward()
        optimizer.step()

    return plain_step


@contextmanager
def products(chosen_by: str) -> Iterator[None]:
    """Within it, products of float32 matrices by the library that "dim" or "torch" chooses."""
    before = ONEDNN.fp32_precision
    try:
        if chosen_by == "torch":
            ONEDNN.fp32_precision = "none"
        yield
    finally:
        ONEDNN.fp32_precision = before


def clock(device: str) -> float:
    """Seconds: of the process on a CPU, of the wall on a GPU."""
    if device == "cpu":
        return time.process_time()
    synchronize(torch.device(device))
    return time.perf_counter()


def seconds(work: Callable[..., object], *given: object, device: str) -> float:
    begun = clock(device)
    work(*given)
    return clock(device) - begun


def matmul_rate(precision: str, args: argparse.Namespace, side: int = 1024) -> float:
    """FLOP a second of a matrix product of this precision, best of five."""
    a, b = (torch.randn(side, side, device=args.device).to(DTYPES[precision]) for _ in range(2))
    return 2 * side**3 / min(seconds(torch.mm, a, b, device=args.device) for _ in range(5))


class Arithmetic(TorchDispatchMode):
    """Inside, FLOP of matrix products and convolutions, by the precision of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = {precision: 0 for precision in DTYPES}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            dtype = next(t.dtype for t in tree_leaves(out) if isinstance(t, Tensor))
            self.flop[PRECISIONS[dtype]] += count(*args, **(kwargs or {}), out_val=out)
        return out


def flop(precision: str, critic: str, estimator: str, batch: int, args: argparse.Namespace) -> dict[str, int]:
    """Matrix products and convolutions of one step of dim's way, by their own precision."""
    step = stepper("dim", precision, critic, estimator, batch, args)
    with Arithmetic() as counted:
        step(0)
    return counted.flop


def share(work: dict[str, int], rates: dict[str, float], seconds: float) -> float:
    """Of the time that a step took, what its products would take at the rates of their own precisions."""
    return sum(work[precision] / rates[precision] for precision in work) / seconds


def measure(critic: str, estimator: str, batch: int, args: argparse.Namespace) -> dict:
    """Seconds of each way in each precision, turn by turn; ratios plain / dim and dim's shares of the limit."""
    work = {precision: flop(precision, critic, estimator, batch, args) for precision in args.precisions}
    ways = list(itertools.product(WAYS, args.precisions))
    steps = {f"{way} {precision}": stepper(way, precision, critic, estimator, batch, args) for way, precision in ways}
    turns: list[dict[str, float]] = []
    rates: list[dict[str, dict[str, float]]] = []
    name = f"{critic}, {estimator}, batch {batch}"
    for turn in tqdm(range(args.repeats + 1), desc=name, unit="turn", disable=None, leave=False):
        turns.append({})
        rates.append({})
        for way in list(steps) if turn % 2 else list(steps)[::-1]:  # neither always follows the other
            if way.startswith("dim"):  # right before its step: a machine's pace drifts within a turn
                rates[-1][way] = {precision: matmul_rate(precision, args) for precision in DTYPES}
            turns[-1][way] = seconds(steps[way], turn, device=args.device)
    turns, rates = turns[1:], rates[1:]  # the first warms up
    ratios = {pair: [turn[f"plain {pair[1]}"] / turn[f"dim {pair[0]}"] for turn in turns] for pair in pairs(args.precisions)}
    timed = list(zip(turns, rates, strict=True))
    shares = {p: [share(work[p], rate[f"dim {p}"], turn[f"dim {p}"]) for turn, rate in timed] for p in args.precisions}
    gflop = {p: {q: of / 1e9 for q, of in each.items()} for p, each in work.items()}
    found = {"critic": critic, "estimator": estimator, "batch": batch, "gflop": gflop, "turns": turns, "rates": rates}
    return found | {"ratios": {" over ".join(pair): of for pair, of in ratios.items()}, "shares_of_limit": shares}


def pairs(precisions: list[str]) -> list[tuple[str, str]]:
    """Of dim's precision and of the plain way's: the same, and bf16 over float32."""
    return [pair for pair in itertools.product(precisions, repeat=2) if pair != ("float32", "bf16")]


def peak(way: str, precision: str, critic: str, estimator: str, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """MB that this process holds at most in three steps, and before them."""
    settle(args.threads)
    step, before = stepper(way, precision, critic, estimator, batch, args), high_water(torch.device(args.device))
    for number in range(3):
        step(number)
    return {"peak": high_water(torch.device(args.device)), "before": before}


# ---------------------------------------------------------------------------------------------------------------------- output


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def rows(found: dict) -> list[list[str]]:
    """A line of the table for each pair of precisions."""
    lines = []
    for pair, ratios in found["ratios"].items():
        own = pair.partition(" over ")[0]
        ways = [f"{way} {precision}" for way, precision in zip(WAYS, pair.split(" over "), strict=True)]
        images = [f"{found['batch'] / statistics.median(turn[way] for turn in found['turns']):.1f}" for way in ways]
        memory = [f"{found['peak_mb'][way]['peak']:,.0f}" for way in ways]
        name = f"{found['critic']}, {found['estimator']}, {found['batch']}, {pair}"
        lines.append([name, *images, f"x{spread(ratios, '.2f')}", spread(found["shares_of_limit"][own], ".0%"), *memory])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--critics", nargs="+", choices=["dot", "concat"], default=["dot", "concat"])
    parser.add_argument("--estimators", nargs="+", choices=list(TABLES), default=["infonce", "jsd", "dv"])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--units", type=int, default=2048, help="of the dot critic; concat has its own 512")
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=["float32"], help="of both ways")
    parser.add_argument("--plain-products", choices=["dim", "torch"], default="dim", help="who chooses the plain way's library")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--official", type=Path, help="a checkout of rdevon/DIM to compare the plain losses with")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file, case by case")
    args = parser.parse_args()
    cases = list(itertools.product(args.critics, args.batches, args.estimators))
    each = [(*case, argparse.Namespace(**vars(args) | {"units": args.units if case[0] == "dot" else 512})) for case in cases]
    # peaks first: on Linux a process starts its high-water mark at that of the process that starts it
    peaks = [
        {f"{way} {p}": in_fresh_process(peak, way, p, critic, estimator, batch, own) for way in WAYS for p in args.precisions}
        for critic, batch, estimator, own in tqdm(each, desc="peaks of memory", disable=None, leave=False)
    ]
    settle(args.threads)
    checks = {f"{c}, {e}": check(c, e, 64) for c in args.critics for e in args.estimators}
    if args.official:
        checks["official"] = check_official(args.official)
    on = machine(args.device)
    print("## A training step, two ways\n")
    library = f"plain products by {args.plain_products}'s library"
    print(f"{' and '.join(args.precisions)}, units {args.units}, {args.repeats} turns, {library}; {', '.join(describe(on))}\n")
    found: list[dict] = []
    for (critic, batch, estimator, own), memory in zip(each, peaks, strict=True):
        found.append(measure(critic, estimator, batch, own) | {"peak_mb": memory})
        if args.json:
            options = {key: value for key, value in vars(args).items() if key not in ("json", "official")}
            text = json.dumps({"machine": on, "options": options, "checks": checks, "cases": found}, indent=1)
            args.json.write_text(text + "\n")
    unit = "images per CPU second" if args.device == "cpu" else "images/s"
    names = [
        "critic, estimator, batch, dim over plain",
        f"dim, {unit}",
        "plain",
        "plain / dim time",
        "share of limit",
        "dim, peak MB",
        "plain",
    ]
    print(markdown(names, [line for one in found for line in rows(one)]))
    worst = max(max(one.values()) for one in checks.values())
    print(f"\n- Losses and gradients before timing: largest relative difference {worst:.1e}")


if __name__ == "__main__":
    main()
