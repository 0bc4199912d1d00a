"""A step's time by part: python benchmarks/step_parts.py [--units 256] [--critic dot|concat] [--batches 64 256] [--json FILE]

Run from the repository root, on an idle machine. DIM(L) with InfoNCE as in configs/cifar10.yaml (concat: one shift), random
pictures of CIFAR's shape already in memory, and the step of train.py from the encoder to the end of the update; making the
batch, the schedule and the log are left out. The graph is cut where one part hands over to the next, so that each part's
forward and backward pass is timed by itself, all in the order of one step:

    encoder     pictures -> maps and codes
    heads       maps and codes -> embeddings (critic.embed)
    scores      embeddings -> scores of own pairs and of negatives
    estimator   scores -> loss
    optimizer   zero_grad, gradient norm, guard, Adam (all of it under forward)

Beside it, in turn, the whole step without cuts: both must give the same loss and gradients, and the parts must add up to the
whole. Times are medians.

GFLOP: matrix products and convolutions, forward and backward, as torch counts them; two for a multiply-add. MB: the sizes of
the tensors that each operator reads and writes, views left out. That is what the operators touch, not what reaches memory:
caches hide some of it, and what an operator does inside is not seen. Peak memory: of a fresh process that makes whole steps.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs where nothing is installed

from dim import build
from dim.encoders import places
from dim.guard import Guard
from dim.machine import tune_process, tune_products
from dim.objective import Losses, Objective, Term
from dim.reading import read

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("encoder", "heads", "scores", "estimator", "optimizer")
TOLERANCE = 1e-4  # relative, between the cut and the whole step
WARM_UP = 3  # steps


@dataclass
class Training:
    """What a step needs, as train.py makes it."""

    device: torch.device
    encoder: torch.nn.Module
    objective: Objective
    term: Term  # the objective's one term
    optimizer: torch.optim.Optimizer
    guard: Guard
    pictures: Tensor  # [N, 3, 32, 32], channels last
    index: Tensor  # [N], the pictures' data-set numbers


# ----------------------------------------------------------------------------------------------------- the step, whole and cut


def training(
    batch: int, critic: str, units: int, device: str, estimator: str = "infonce", scale: float | str = "1/sqrt(units)"
) -> Training:
    """The recipe of configs/cifar10.yaml with one view and these settings, before its first step."""
    values = {
        "objective.local.estimator": estimator,
        "objective.local.scale": scale,
        "train.batch_size": batch,
        "views.number": 1,
        "objective.local.critic": critic,
        "objective.local.units": units,
        "device": device,
    }
    if critic == "concat":  # it has no scale, and all negatives would be a hidden layer of gigabytes
        values |= {"objective.local.scale": 1, "objective.local.negatives": "shifted", "objective.local.k": 1}
    config, _ = read([f"--{key}={value}" for key, value in values.items()], ROOT / "configs" / "cifar10.yaml")
    where = torch.device(device)
    encoder = build.encoder(config, (3, 32, 32))
    objective, _ = build.objective(config, encoder, (3, 32, 32))
    encoder, objective = encoder.to(where).to(memory_format=torch.channels_last), objective.to(where)
    assert objective.local is not None  # the recipe has this term alone
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, config.train.lr, config.train.betas, fused=True)
    pictures = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = pictures.to(where).contiguous(memory_format=torch.channels_last)
    index = torch.arange(batch, device=where)
    return Training(where, encoder, objective, objective.local, optimizer, Guard(where), pictures, index)


def whole_gradients(t: Training, step: int) -> Losses:
    """Loss and gradients as train.py makes them."""
    losses = t.objective(t.encoder(t.pictures), t.index, 0, step)
    t.optimizer.zero_grad()
    losses.encoder.backward()
    return losses


def update(t: Training, step: int, losses: Losses) -> None:
    """Gradient norm, guard and Adam as in train.py."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters(t) if p.grad is not None])
    t.guard.watch(step, {**losses.parts, "loss": losses.encoder, "gradient_norm": norm})
    t.guard.withhold(t.optimizer)
    t.optimizer.step()
    if t.device.type == "cpu" and (verdict := t.guard.verdict()):
        raise RuntimeError(verdict)


def whole_step(t: Training, step: int) -> None:
    update(t, step, whole_gradients(t, step))


Measure = Callable[[str, str], AbstractContextManager]  # (part, direction) -> a context around that piece of a step


def unmeasured(part: str, direction: str) -> AbstractContextManager:
    return contextlib.nullcontext()


def cut_gradients(t: Training, step: int, measure: Measure) -> Losses:
    """The same loss and gradients, part by part; `measure` sees each part's forward and backward pass by itself."""
    critic = t.term.critic
    with measure("encoder", "forward"):
        codes = t.encoder(t.pictures)
        y, m = leaf(codes.y), leaf(codes.map)
    with measure("heads", "forward"):
        embedded = critic.embed(y, places(m))
        a, b = map(leaf, embedded)
    with measure("scores", "forward"):
        pool = t.term.pool(b, t.index)
        scores = critic.score(a[:, None], pool.b.index_select(0, pool.own))
        rows = t.term.negatives(pool, 0, step)
        scored = scores, critic.pairs(a, pool.b, pool.out, rows)
        pos, neg = map(leaf, scored)
    with measure("estimator", "forward"):
        value = t.term.estimator(pos, neg)
        loss = -t.objective.beta * value
    with measure("optimizer", "forward"):
        t.optimizer.zero_grad()
    with measure("estimator", "backward"):
        loss.backward()
    with measure("scores", "backward"):
        torch.autograd.backward(scored, (pos.grad, neg.grad))
    with measure("heads", "backward"):
        torch.autograd.backward(embedded, (a.grad, b.grad))
    with measure("encoder", "backward"):
        torch.autograd.backward((codes.y, codes.map), (y.grad, m.grad))
    return Losses(loss, None, {"local": value}, {})


def cut_step(t: Training, step: int, measure: Measure) -> None:
    losses = cut_gradients(t, step, measure)
    with measure("optimizer", "forward"):
        update(t, step, losses)


def leaf(x: Tensor) -> Tensor:
    """The same numbers with nothing behind them: a backward pass ends here and leaves its gradient."""
    return x.detach().requires_grad_()


def parameters(t: Training) -> list[Tensor]:
    return [p for group in t.optimizer.param_groups for p in group["params"]]


def check_cut(t: Training) -> dict[str, float]:
    """Largest differences between the cut and the whole step's loss and gradients; RuntimeError above TOLERANCE.

    Gradients relative to the largest gradient of all: some are zero in theory (the concat critic's last bias under InfoNCE).
    """

    def state(losses: Losses) -> tuple[Tensor, list[Tensor]]:
        return losses.encoder.detach(), [p.grad.clone() for p in parameters(t) if p.grad is not None]

    loss, gradients = state(whole_gradients(t, 0))
    cut_loss, cut = state(cut_gradients(t, 0, unmeasured))
    largest = max(g.abs().max().item() for g in gradients)
    apart = max((g - c).abs().max().item() for g, c in zip(gradients, cut, strict=True))
    found = {
        "loss": (loss - cut_loss).abs().item(),
        "loss_relative": ((loss - cut_loss) / loss).abs().item(),
        "gradient": apart,
        "gradient_relative": apart / largest,
    }
    if max(found["loss_relative"], found["gradient_relative"]) > TOLERANCE:
        raise RuntimeError(f"the cut step differs from the whole step by more than {TOLERANCE}: {found}")
    return found


# ---------------------------------------------------------------------------------------------------------------- measurements


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Times:
    """A `Measure`: the seconds of each part's forward and backward pass."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str, direction: str) -> Iterator[None]:
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[part, direction] += time.perf_counter() - start


class Touched(TorchDispatchMode):
    """Adds up the bytes of the tensors that operators read and write; what only views or allocates costs nothing."""

    FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")
    READS_NOTHING = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_", "fill_")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "aten" or func.is_view or name in self.FREE:
            return out
        arguments = zip(func._schema.arguments, args, strict=False)
        changed = [value for argument, value in arguments if argument.is_write]
        self.bytes += 0 if name in self.READS_NOTHING else size((args, kwargs))
        self.bytes += size((changed, out))
        return out


def size(tree: Any) -> int:
    """Bytes of the tensors in nested containers, each tensor once, and once what an expanded one repeats."""
    tensors = {id(x): x for x in tree_leaves(tree) if isinstance(x, Tensor)}.values()
    shapes = [[n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or not n] for x in tensors]
    return sum(x.element_size() * math.prod(shape) for x, shape in zip(tensors, shapes, strict=True))


def count_work(t: Training) -> tuple[dict[str, float], dict[str, float]]:
    """Floating-point operations and touched bytes of each part in one step, not the first: Adam makes its state there."""
    whole_step(t, 0)
    flop: dict[str, float] = defaultdict(float)
    touched: dict[str, float] = defaultdict(float)
    with Touched() as bytes_mode, FlopCounterMode(display=False) as flop_mode:

        @contextlib.contextmanager
        def measure(part: str, direction: str) -> Iterator[None]:
            flop_before, bytes_before = flop_mode.get_total_flops(), bytes_mode.bytes
            yield
            flop[part] += flop_mode.get_total_flops() - flop_before
            touched[part] += bytes_mode.bytes - bytes_before

        cut_step(t, 1, measure)
    return flop, touched


def measure_batch(batch: int, args: argparse.Namespace) -> dict:
    """All numbers of one batch size but its peak memory: milliseconds, GFLOP and MB."""
    t = training(batch, args.critic, args.units, args.device)
    difference = check_cut(t)
    flop, touched = count_work(t)
    seconds = []
    for step in tqdm(range(-WARM_UP, args.repeats), desc=f"batch {batch}", unit="pair", disable=None, leave=False):
        times = Times(t.device)
        for kind in ("whole", "cut") if step % 2 else ("cut", "whole"):  # neither always follows the other
            if kind == "cut":
                cut_step(t, step, times)
            else:
                with times("whole", "step"):
                    whole_step(t, step)
        seconds.append(times.seconds)

    def milliseconds(part: str, direction: str) -> float:
        return 1e3 * statistics.median(s[part, direction] for s in seconds[WARM_UP:])

    rows = []
    for part in PARTS:
        forward, backward = milliseconds(part, "forward"), milliseconds(part, "backward")
        rows.append(row(part, forward, backward, flop[part] / 1e9, touched[part] / 1e6))
    keys = ("forward_ms", "backward_ms", "gflop", "mb")
    total = row("sum", *(sum(r[key] for r in rows) for key in keys))
    for r in [*rows, total]:
        r["share"] = r["ms"] / total["ms"]
    whole_ms = milliseconds("whole", "step")
    result = {"batch": batch, "parts": rows, "sum": total, "whole_ms": whole_ms, "sum_over_whole": total["ms"] / whole_ms}
    return result | {"images_per_second": 1e3 * batch / whole_ms, "difference": difference}


def row(part: str, forward: float, backward: float, gflop: float, mb: float) -> dict:
    ms = forward + backward
    speed = {"gflop_per_second": 1e3 * gflop / ms, "gb_per_second": mb / ms}
    return {"part": part, "forward_ms": forward, "backward_ms": backward, "ms": ms, "gflop": gflop, "mb": mb} | speed


def peak_memory(batch: int, args: argparse.Namespace) -> dict[str, float]:
    """MB that this process holds at most in three whole steps, and held at most before them."""
    settle(args.threads)
    t = training(batch, args.critic, args.units, args.device)
    before = high_water(t.device)
    for step in range(3):
        whole_step(t, step)
    return {"peak_mb": high_water(t.device), "before_first_step_mb": before}


def high_water(device: torch.device) -> float:
    """MB: on a GPU the most that torch held in it, else the most of the process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def settle(threads: int) -> None:
    """The process-wide settings of train.py, and the number of threads."""
    tune_process()
    tune_products()
    torch.set_num_threads(threads)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"cpu": cpu, "gpu": gpu, "torch": str(torch.__version__), "threads": torch.get_num_threads()}


# ---------------------------------------------------------------------------------------------------------------------- output


def report(result: dict) -> str:
    """One batch size in Markdown."""
    names = ["part", "forward ms", "backward ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s"]
    rows = []
    for r in [*result["parts"], result["sum"]]:
        backward = "" if r["part"] == "optimizer" else f"{r['backward_ms']:.2f}"
        work = [f"{r['gflop']:.3f}", f"{r['mb']:.1f}", f"{r['gflop_per_second']:.1f}", f"{r['gb_per_second']:.1f}"]
        rows.append([r["part"], f"{r['forward_ms']:.2f}", backward, f"{r['share']:.1%}", *work])
    ratio, memory, apart = result["sum_over_whole"], result["memory"], result["difference"]
    doubt = "" if abs(ratio - 1) <= 0.1 else " (more than 10 % off: measure again on an idle machine, with more repeats)"
    return "\n".join(
        [
            f"### Batch {result['batch']}\n",
            markdown(names, rows),
            "",
            f"- Whole step: {result['whole_ms']:.2f} ms, {result['images_per_second']:,.0f} images/s; "
            f"sum of parts / whole step = {ratio:.3f}{doubt}",
            f"- Peak memory: {memory['peak_mb']:,.0f} MB, before the first step {memory['before_first_step_mb']:,.0f} MB",
            f"- Cut against whole step, largest difference: loss {apart['loss']:.1e}, gradient {apart['gradient']:.1e} "
            f"(relative {apart['loss_relative']:.1e}, {apart['gradient_relative']:.1e})\n",
        ]
    )


def markdown(names: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    cells = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in cells]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--units", type=int, default=256, help="width of the critic's embedding")
    parser.add_argument("--critic", choices=["dot", "concat"], default="dot")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    # peaks first: on Linux a process starts its high-water mark at that of the process that starts it
    memory = {batch: in_fresh_process(peak_memory, batch, args) for batch in args.batches}
    settle(args.threads)
    on = machine(args.device)
    print("## A step's time by part\n")
    print(f"InfoNCE, {args.critic} critic, units {args.units}, {args.repeats} repeats; {', '.join(describe(on))}\n")
    results = []
    for batch in args.batches:
        results.append(measure_batch(batch, args) | {"memory": memory[batch]})
        print(report(results[-1]), flush=True)
    if args.json:
        options = {key: value for key, value in vars(args).items() if key != "json"}
        args.json.write_text(json.dumps({"machine": on, "options": options, "batches": results}, indent=1) + "\n")


def describe(on: dict[str, Any]) -> list[str]:
    """The machine in words."""
    return [on["cpu"], *([on["gpu"]] if on["gpu"] else []), f"torch {on['torch']}", f"threads {on['threads']}"]


if __name__ == "__main__":
    main()
