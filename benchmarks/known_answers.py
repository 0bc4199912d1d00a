"""MINE and NDM where the truth is known: python benchmarks/known_answers.py [TASK ...] [--table | --again SEED]

Run from the repository root, one thread. Each task is sampled anew for each of five seeds; a JSON a task and seed under
results/known_answers/, what is there is not done again. --table prints the Markdown of what is there and runs nothing; --again
measures a seed once more and prints, task by task, what today's code makes of it beside the record, which it leaves alone.

The list below was fixed before its first run; four tasks were left out when the first results came and are in again. Network,
rate, steps and the rule of convergence were chosen on other tasks and other draws, with three exceptions: a first run of seed 0
showed the table of 8 x 8 too low, and discrete columns got indicators for it, tried on another table, so the record is of seeds
that had not been seen; while it ran, estimates were capped at the log of the reporting rows, and the flag's margin below it was
widened, which seeds 1 to 3 showed too narrow.

A flag is right where it says converged and the estimate is within a tenth of the truth + 0.05 nats, or where it does not say so
and the estimate is further off.
"""

import argparse
import ast
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from records import processor  # beside this file
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs where nothing is installed

from dim.evals.mine import mine
from dim.evals.ndm import ndm, permuted
from dim.randomness import generator

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "known_answers"
SEEDS = range(1, 6)
LARGE, SMALL = 60_000, 15_000  # rows in all; a third trains the critic

Draws = torch.Generator


# ---- what is drawn: x [n, Dx], z [n, Dz] for MINE, y [n, D] for NDM


def normal(n: int, width: int, draws: Draws) -> Tensor:
    return torch.randn(n, width, generator=draws, dtype=torch.float64)


def uniform(n: int, width: int, draws: Draws) -> Tensor:
    return torch.rand(n, width, generator=draws, dtype=torch.float64)


def bits(n: int, width: int, draws: Draws) -> Tensor:
    return torch.randint(2, (n, width), generator=draws)


def gaussians(n: int, pairs: int, rho: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Independent pairs of correlation rho."""
    x = normal(n, pairs, draws)
    return x, rho * x + math.sqrt(1 - rho**2) * normal(n, pairs, draws)


def student(n: int, width: int, freedom: int, rho: float, draws: Draws) -> Tensor:
    """Multivariate t: equicorrelated Gaussians over one root of chi-squared / freedom."""
    chi = normal(n, freedom, draws).square().sum(1, keepdim=True)
    return equicorrelated(n, width, rho, draws) * (freedom / chi).sqrt()


def equicorrelated(n: int, width: int, rho: float, draws: Draws) -> Tensor:
    return math.sqrt(rho) * normal(n, 1, draws) + math.sqrt(1 - rho) * normal(n, width, draws)


def one_of_many(n: int, width: int, rho: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """x of `width` independent normal columns of which only the sum tells of z."""
    x, (shared, z) = normal(n, width, draws), gaussians(n, 1, rho, draws)
    return x - x.mean(1, keepdim=True) + shared / math.sqrt(width), z


def drawn_from(joint: Tensor, n: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Pairs of places from a table of probabilities."""
    places = torch.multinomial(joint.flatten(), n, replacement=True, generator=draws)
    return places // joint.shape[1], places % joint.shape[1]


TABLE = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
TABLE /= TABLE.sum()
CHANNEL = torch.tensor([[0.45, 0.05], [0.05, 0.45]], dtype=torch.float64)


def with_noise(n: int, half_width: float, draws: Draws) -> tuple[Tensor, Tensor]:
    x = uniform(n, 1, draws)
    return x, x + half_width * (2 * uniform(n, 1, draws) - 1)


def wrapped(n: int, times: int, width: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """x uniform, z = times x + width u, modulo 1: the same information for any whole `times`."""
    x = uniform(n, 1, draws)
    return x, (times * x + width * uniform(n, 1, draws)) % 1


def parity(columns: Tensor) -> Tensor:
    return columns.sum(1, keepdim=True) % 2


def rotated(n: int, draws: Draws) -> Tensor:
    """Two uniforms turned by 45 degrees: uncorrelated, not independent."""
    a, b = uniform(n, 1, draws), uniform(n, 1, draws)
    return torch.cat([a + b, a - b], 1)


# ---- the truth


def pairs_nats(pairs: int, rho: float) -> float:
    return -pairs / 2 * math.log(1 - rho**2)


def table_nats(joint: Tensor) -> float:
    apart = joint.sum(1, keepdim=True) * joint.sum(0)
    return (joint * (joint / apart).log()).sum().item()


def equicorrelated_nats(width: int, rho: float) -> float:
    return -((width - 1) * math.log(1 - rho) + math.log(1 + (width - 1) * rho)) / 2


def student_entropy(width: int, freedom: float) -> float:
    """Of the standard multivariate t, nats."""
    half, top = freedom / 2, (freedom + width) / 2
    digamma = torch.digamma(torch.tensor([top, half], dtype=torch.float64))
    size = math.lgamma(half) - math.lgamma(top) + width / 2 * math.log(freedom * math.pi)
    return size + top * (digamma[0] - digamma[1]).item()


def student_nats(width: int, freedom: float, rho: float) -> float:
    """Total correlation; of two columns the mutual information."""
    return width * student_entropy(1, freedom) - student_entropy(width, freedom) + equicorrelated_nats(width, rho)


# ---- the list


@dataclass(frozen=True)
class Task:
    """One distribution with its truth in nats. hopeless: nobody could come near it from so many rows."""

    what: str
    truth: float
    rows: int
    draw: Callable[[int, Draws], Any]
    options: dict = field(default_factory=dict)
    hopeless: bool = False


def halves(columns: Tensor) -> tuple[Tensor, Tensor]:
    return columns[:, :1], columns[:, 1:]


MINE = {
    "gaussian_1": Task("1 Gaussian pair, rho 0.9", pairs_nats(1, 0.9), LARGE, lambda n, g: gaussians(n, 1, 0.9, g)),
    "gaussian_2": Task("2 Gaussian pairs, rho 0.9", pairs_nats(2, 0.9), LARGE, lambda n, g: gaussians(n, 2, 0.9, g)),
    "gaussian_20": Task("20 Gaussian pairs, rho 0.45", pairs_nats(20, 0.45), LARGE, lambda n, g: gaussians(n, 20, 0.45, g)),
    "cubes": Task(
        "cubes of 1 pair, rho 0.9", pairs_nats(1, 0.9), LARGE, lambda n, g: tuple(v**3 for v in gaussians(n, 1, 0.9, g))
    ),
    "cubes_standardised": Task(
        "the same, only standardised",
        pairs_nats(1, 0.9),
        LARGE,
        lambda n, g: tuple(v**3 for v in gaussians(n, 1, 0.9, g)),
        {"ranks": False},
    ),
    "exponentials": Task(
        "exponentials of 2 pairs, rho 0.8",
        pairs_nats(2, 0.8),
        LARGE,
        lambda n, g: tuple(v.exp() for v in gaussians(n, 2, 0.8, g)),
    ),
    "cauchy": Task(
        "bivariate t, 1 degree of freedom, rho 0.8",
        student_nats(2, 1, 0.8),
        LARGE,
        lambda n, g: halves(student(n, 2, 1, 0.8, g)),
    ),
    "one_of_500": Task("sum of 500 columns, rho 0.7", pairs_nats(1, 0.7), LARGE, lambda n, g: one_of_many(n, 500, 0.7, g)),
    "independent": Task("independent, 1 and 1 columns", 0.0, LARGE, lambda n, g: (normal(n, 1, g), normal(n, 1, g))),
    "independent_wide": Task("independent, 100 and 20 columns", 0.0, SMALL, lambda n, g: (normal(n, 100, g), normal(n, 20, g))),
    "table": Task("table of 8 x 8", table_nats(TABLE), LARGE, lambda n, g: drawn_from(TABLE, n, g)),
    "channel": Task("bit with one error in ten", table_nats(CHANNEL), SMALL, lambda n, g: drawn_from(CHANNEL, n, g)),
    "parity_of_3": Task("three bits and their parity", math.log(2), SMALL, lambda n, g: ((b := bits(n, 3, g)), parity(b))),
    "noise": Task("uniform, + uniform within 0.1", 0.1 - math.log(0.2), LARGE, lambda n, g: with_noise(n, 0.1, g)),
    "wrapped": Task("3 x + u / 4 modulo 1", math.log(4), LARGE, lambda n, g: wrapped(n, 3, 0.25, g)),
    "gaussian_20_few": Task(
        "20 Gaussian pairs, 10 nats", 10.0, 6_000, lambda n, g: gaussians(n, 20, math.sqrt(1 - math.exp(-1)), g), hopeless=True
    ),
    "gaussian_1_few": Task(
        "1 Gaussian pair, 9 nats", 9.0, 3_000, lambda n, g: gaussians(n, 1, math.sqrt(1 - math.exp(-18)), g), hopeless=True
    ),
    "gaussian_50_few": Task(
        "50 Gaussian pairs, 4 nats", 4.0, 1_500, lambda n, g: gaussians(n, 50, math.sqrt(1 - math.exp(-0.16)), g), hopeless=True
    ),
    "one_of_200_few": Task(
        "sum of 200 columns, rho 0.9", pairs_nats(1, 0.9), 1_500, lambda n, g: one_of_many(n, 200, 0.9, g), hopeless=True
    ),
    "copy_few": Task("z = x, 3 columns", math.inf, 3_000, lambda n, g: (x := normal(n, 3, g), x), hopeless=True),
    "wrapped_40_few": Task("40 x + u / 10 modulo 1", math.log(10), 3_000, lambda n, g: wrapped(n, 40, 0.1, g), hopeless=True),
}

NDM = {
    "uniforms": Task("16 independent uniforms", 0.0, SMALL, lambda n, g: uniform(n, 16, g)),
    "equicorrelated": Task(
        "10 Gaussians, rho 0.5", equicorrelated_nats(10, 0.5), LARGE, lambda n, g: equicorrelated(n, 10, 0.5, g)
    ),
    "equicorrelated_permuted": Task(
        "the same by full permutations",
        equicorrelated_nats(10, 0.5),
        LARGE,
        lambda n, g: equicorrelated(n, 10, 0.5, g),
        {"shuffle": permuted},
    ),
    "equicorrelated_squashed": Task(
        "the same after the sigmoid, only standardised",
        equicorrelated_nats(10, 0.5),
        LARGE,
        lambda n, g: equicorrelated(n, 10, 0.5, g),
        {"squash": True, "ranks": False},
    ),
    "t": Task("5 columns of a t, 2 degrees of freedom", student_nats(5, 2, 0.0), LARGE, lambda n, g: student(n, 5, 2, 0.0, g)),
    "parity": Task("two bits and their parity", math.log(2), SMALL, lambda n, g: torch.cat([b := bits(n, 2, g), parity(b)], 1)),
    "rotated": Task("2 rotated uniforms", 1 - math.log(2), LARGE, lambda n, g: rotated(n, g)),
    "dead": Task(
        "2 rotated uniforms, 3 dead columns",
        1 - math.log(2),
        SMALL,
        lambda n, g: torch.cat([rotated(n, g), torch.full((n, 3), 7.0)], 1),
    ),
    "duplicated_bits": Task(
        "a bit twice, 2 uniforms, 3 dead columns",
        math.log(2),
        SMALL,
        lambda n, g: torch.cat([b := bits(n, 1, g), b, uniform(n, 2, g), torch.full((n, 3), 7.0)], 1),
    ),
    "duplicated_few": Task("a Gaussian twice", math.inf, 3_000, lambda n, g: normal(n, 1, g).repeat(1, 2), hopeless=True),
    "equicorrelated_few": Task(
        "40 Gaussians, rho 0.8", equicorrelated_nats(40, 0.8), 3_000, lambda n, g: equicorrelated(n, 40, 0.8, g), hopeless=True
    ),
}
TASKS = {f"{kind}_{name}": (kind, task) for kind, tasks in (("mine", MINE), ("ndm", NDM)) for name, task in tasks.items()}


# ---- running it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help="without, all of them")
    parser.add_argument("--table", action="store_true", help="print the tables and do nothing")
    parser.add_argument(
        "--again", type=int, choices=SEEDS, metavar="SEED", help="compare this seed's records with today's code"
    )
    chosen = parser.parse_intermixed_args()  # names stand before or after the options
    if unknown := set(chosen.names) - set(TASKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    torch.set_num_threads(1)
    if chosen.again is not None:
        return again(chosen.names or list(TASKS), chosen.again)
    todo = [] if chosen.table else [(seed, name) for seed in SEEDS for name in chosen.names or TASKS]
    for seed, name in tqdm(todo, desc="known answers", disable=None):
        if not place(name, seed).exists():
            record(name, seed)
    print(tables())
    return 0


def place(name: str, seed: int) -> Path:
    return RESULTS / f"{name}_seed{seed}.json"


def record(name: str, seed: int) -> None:
    """Estimate a task and write its JSON."""
    task = TASKS[name][1]
    start = time.process_time()
    found = estimated(name, seed)
    found["cpu_seconds"] = round(time.process_time() - start, 2)
    about = {
        "task": name,
        "what": task.what,
        "truth_nats": task.truth if math.isfinite(task.truth) else None,
        "rows_in_all": task.rows,
        "code_sha256": code(),
        "hardware": f"one thread of {processor()}, shared with other work; torch {torch.__version__}",
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    unfinished = place(name, seed).with_suffix(".part")
    unfinished.write_text(json.dumps(about | found, indent=1) + "\n")
    unfinished.replace(place(name, seed))


def estimated(name: str, seed: int) -> dict:
    """Draw a task and estimate it."""
    kind, task = TASKS[name]
    drawn = task.draw(task.rows, generator(seed, f"known answer {name}"))
    return mine(*drawn, seed=seed, **task.options) if kind == "mine" else ndm(drawn, seed=seed, **task.options)


def again(names: list[str], seed: int) -> int:
    """Measure a seed once more beside its records; exit code 1 where a value or a flag is another."""
    changed = 0
    for name in names:
        before, now = json.loads(place(name, seed).read_text()), estimated(name, seed)
        same = value(now) == value(before) and now["converged"] == before["converged"]
        changed += not same
        words = "the same to the bit" if same else f"now {value(now):.4f}, {'not ' * (not now['converged'])}converged"
        print(f"{name}, seed {seed}, code {before['code_sha256']}: {value(before):.4f}, {words}", flush=True)
    print(f"{len(names) - changed} of {len(names)} tasks are the same to the bit with the code {code()}")
    return int(bool(changed))


def code() -> str:
    """Of the four files that make an estimate, docstrings and comments apart, so that a table of several versions says so."""
    digest = hashlib.sha256()
    for name in ("columns", "ratio", "mine", "ndm"):
        tree = ast.parse((ROOT / "dim" / "evals" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


# ---- the tables


def value(run: dict) -> float:
    return run["mi_nats"] if "mi_nats" in run else run["total_correlation_nats"]


def near(estimate: float, truth: float) -> bool:
    """Within a tenth + 0.05 nats; nothing is near an infinite truth."""
    return math.isfinite(truth) and abs(estimate - truth) <= 0.1 * truth + 0.05


def verdict(converged: bool, estimate: float, truth: float) -> str:
    if converged == near(estimate, truth):
        return "right"
    return "wrongly believed" if converged else "wrongly doubted"


def tables() -> str:
    """What is there, as Markdown."""
    lines, found, codes = [], {}, set()
    for name in TASKS:
        runs = [json.loads(place(name, seed).read_text()) for seed in SEEDS if place(name, seed).exists()]
        if runs:
            found[name] = runs
            codes |= {run["code_sha256"] for run in runs}
    for kind in ("mine", "ndm"):
        lines += [
            f"\n### {kind.upper()}\n",
            "| task | rows | truth | estimate | sd | off | E T+ | log E e^T- | half | converged | flag | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [row(name, runs) for name, runs in found.items() if TASKS[name][0] == kind]
    lines += ["", *summary(found), f"- Versions of the code: {', '.join(sorted(codes))}"]
    return "\n".join(lines).strip()


def row(name: str, runs: list[dict]) -> str:
    task = TASKS[name][1]
    values = [value(run) for run in runs]
    mean = statistics.fmean(values)
    off = (
        ""
        if math.isinf(task.truth)
        else f"{mean - task.truth:+.3f}" + (f" ({mean / task.truth - 1:+.1%})" if task.truth else "")
    )
    cells = [
        task.what + (", hopeless" if task.hopeless else ""),
        f"{task.rows:,}",
        f"{task.truth:.3f}",
        f"{mean:.3f}",
        f"{statistics.stdev(values):.3f}" if len(values) > 1 else "",
        off,
        *(f"{statistics.fmean(run[key] for run in runs):.2f}" for key in ("positive_term", "negative_term", "half_nats")),
        f"{sum(run['converged'] for run in runs)} of {len(runs)}",
        verdict(majority(runs), mean, task.truth),
        f"{statistics.median(run['cpu_seconds'] for run in runs):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def majority(runs: list[dict]) -> bool:
    return 2 * sum(run["converged"] for run in runs) > len(runs)


def summary(found: dict[str, list[dict]]) -> list[str]:
    """The targets: over-reports, independent data, the flag."""
    means = {name: statistics.fmean(value(run) for run in runs) for name, runs in found.items()}
    truths = {name: TASKS[name][1].truth for name in found}
    over = [name for name in found if means[name] > truths[name] * 1.03 + 0.05]
    independent = {name: means[name] for name in found if truths[name] == 0}
    by_task = [verdict(majority(runs), means[name], truths[name]) for name, runs in found.items()]
    by_run = [verdict(run["converged"], value(run), truths[name]) for name, runs in found.items() for run in runs]
    hopeless = [name for name in found if TASKS[name][1].hopeless]
    return [
        f"- Mean over seeds above truth + 0.05 nats + 3 %: {', '.join(over) or 'none'}",
        f"- Independent data: {', '.join(f'{name} {mean:+.4f}' for name, mean in independent.items())}",
        f"- Flag by task (majority of seeds): {counted(by_task)}; {len(hopeless)} tasks are hopeless by design",
        f"- Flag by run: {counted(by_run)}",
    ]


def counted(verdicts: list[str]) -> str:
    total = max(1, len(verdicts))
    kinds = ("right", "wrongly believed", "wrongly doubted")
    return ", ".join(f"{kind} {verdicts.count(kind)} of {total} ({verdicts.count(kind) / total:.0%})" for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
