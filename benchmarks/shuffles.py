"""NDM's two shuffles, a cyclic shift of each column and a permutation of each.

python benchmarks/shuffles.py [TASK ...] [--table]

Tasks of known total correlation from known_answers.py, three seeds. A critic is trained with each shuffle, from the same first
weights in the same order of rows, and each is read with both, so that a difference in training and one in reading stand apart.
One JSON a task and seed under results/shuffles/; what is there is not done again. Ratios of CPU time are of one thread, the two
measured in turn.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from known_answers import NDM, ROOT  # beside this file
from records import commit, processor

from dim.checkpoint import save_json
from dim.evals.columns import indicators, standardised, table
from dim.evals.ndm import Rows, permuted, shifted
from dim.evals.ratio import SHUFFLES, STEPS, best_scale, read, score, thirds, train
from dim.randomness import generator

RESULTS = ROOT / "results" / "shuffles"
TASKS = ("uniforms", "equicorrelated", "t", "parity", "rotated", "duplicated_bits")
SEEDS = (1, 2, 3)
BOTH = {"shifted": shifted, "permuted": permuted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; without, all")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing")
    chosen = parser.parse_intermixed_args()
    if unknown := set(chosen.names) - set(TASKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in () if chosen.table else SEEDS:
        for name in chosen.names or TASKS:
            if not place(name, seed).exists():
                save_json(place(name, seed), measured(name, seed))
    print(shown())
    return 0


def place(name: str, seed: int) -> Path:
    return RESULTS / f"{name}_seed{seed}.json"


def measured(name: str, seed: int) -> dict:
    """A task with one seed: {"read": {trained with: {read with: nats and standard error}}, "seconds", ..}."""
    task, begun = NDM[name], commit()
    values = table(task.draw(task.rows, generator(seed, f"known answer ndm_{name}")), "y")
    split = thirds(len(values), seed)
    columns, of = indicators(values, split[0])
    data = (standardised(columns, split[0], True)[0],)
    readings, seconds = {}, {}
    for trained_with, shuffle in BOTH.items():
        torch.manual_seed(generator(seed, "critic").initial_seed())
        start = time.process_time()
        critic = train(Rows(of, shuffle), data, split[0], split[1], "jsd", STEPS, seed).critic
        seconds[trained_with] = time.process_time() - start
        readings[trained_with] = {}
        for read_with, other in BOTH.items():
            critic.shuffle = other
            scale = best_scale(*score(critic, data, split[1], SHUFFLES, generator(seed, "choose")))
            found = read(*score(critic, data, split[2], SHUFFLES, generator(seed, "report")), scale)
            readings[trained_with][read_with] = {"nats": found.value, "standard_error": found.error}
    return {
        "task": name,
        "what": task.what,
        "truth_nats": task.truth,
        "seed": seed,
        "read": readings,
        "training_cpu_seconds": seconds,
        "places_ms": {rows: drawing(rows, values.shape[1]) for rows in (512, len(split[2]))},
        "commit": begun,
        "hardware": f"one thread of {processor()}, shared with other work; torch {torch.__version__}",
    }


def drawing(rows: int, columns: int, turns: int = 9) -> dict[str, float]:
    """Milliseconds of CPU that drawing the places of one shuffle takes, the median of turns."""
    taken: dict[str, list[float]] = {name: [] for name in BOTH}
    for turn in range(turns):
        for name, shuffle in BOTH.items():
            draws, start = generator(turn, name), time.process_time()
            shuffle(rows, columns, draws)
            taken[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(each) for name, each in taken.items()}


def shown() -> str:
    """What is there as Markdown: mean and standard deviation over seeds, paired differences."""
    lines = [
        "| task | truth | trained and read with shifts | with permutations | one critic: shifts less permutations |",
        "|---|---|---|---|---|",
    ]
    for name in TASKS:
        found = [json.loads(place(name, seed).read_text()) for seed in SEEDS if place(name, seed).exists()]
        if not found:
            continue
        own = {kind: [each["read"][kind][kind]["nats"] for each in found] for kind in BOTH}
        apart = [
            each["read"][kind]["shifted"]["nats"] - each["read"][kind]["permuted"]["nats"] for each in found for kind in BOTH
        ]
        cells = [spread(own["shifted"]), spread(own["permuted"]), spread(apart)]
        lines.append(f"| {found[0]['what']} | {found[0]['truth_nats']:.3f} | {' | '.join(cells)} |")
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if every:
        times = [each["training_cpu_seconds"]["permuted"] / each["training_cpu_seconds"]["shifted"] for each in every]
        drawn = [each["places_ms"]["512"]["permuted"] / each["places_ms"]["512"]["shifted"] for each in every]
        lines += ["", f"Training with permutations takes {ratio(times)} of the CPU time with shifts; drawing the places of a"]
        lines += [f"batch of 512 {ratio(drawn)} (median, least and most of {len(every)} points)."]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    sd = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.3f}{sd}"


def ratio(values: list[float]) -> str:
    return f"x {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
