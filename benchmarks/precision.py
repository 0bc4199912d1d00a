"""What bf16 costs in accuracy: the recommended recipe on CIFAR-10, five epochs in bf16 and in float32, three seeds.

python benchmarks/precision.py --data DIR [--runs runs] [--seeds 0 1 2]    one thread, a JSON a run; it continues
python benchmarks/precision.py --table                                     means and paired differences of the runs so far

Fixed before the runs: a linear probe of fc and y on all labels, C chosen on the validation tenth, the test images read once.
Runs of a seed share first weights, order and pictures. A run's folder is removed once its JSON is there.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from records import RECOMMENDED, RESULTS, ROOT, TRAINED, noted, processor, train  # beside this file

sys.path.insert(0, str(ROOT))  # so that it runs where nothing is installed

import evaluate
from dim.checkpoint import save_json
from dim.figures.negatives import interval, with_interval
from dim.reading import read
from dim.report import protocol

PLACE = RESULTS / "precision"
PRECISIONS, LAYERS = ("float32", "bf16"), ("fc", "y")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="--data.root of the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs are kept meanwhile")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for precision in PRECISIONS:
            if not chosen.table and not (PLACE / f"{precision}_seed{seed}.json").exists():
                save_run(precision, seed, Path(chosen.data).resolve(), chosen.runs / "precision" / f"{precision}_seed{seed}")
    print(table())
    return 0


def save_run(precision: str, seed: int, data: Path, folder: Path) -> None:
    """Train and evaluate a run, write its JSON."""
    words = [*RECOMMENDED.split(), "--train.epochs", "5", "--precision", precision, "--seed", str(seed)]
    where = ["--data.root", str(data)]
    train(folder, [*words, *where])
    config, _ = read([*words, *where], ROOT / "configs" / "cifar10.yaml")
    asked = [str(folder), "--once", "--layers", *LAYERS]
    report = evaluate.evaluate(folder, evaluate.options(asked)[0], config, {})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "command": " ".join(["python train.py", *words, "--data.root DIR"]),
        "protocol": protocol(report["linear"]),
        "rows": {name: row["all"] for name, row in report["linear"]["rows"].items()},
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "last": rows[-1],
        "commit": ", ".join(noted(folder / TRAINED)),
        "hardware": f"one thread of {processor()}, shared with other work",
    }
    PLACE.mkdir(exist_ok=True)
    save_json(PLACE / f"{precision}_seed{seed}.json", found)
    shutil.rmtree(folder)


def table() -> str:
    """Mean +- 95 % interval of each precision, test accuracy in %, and bf16 minus float32 over the seeds that have both."""
    lines = [f"| | {' | '.join(LAYERS)} | images/s |", "|---|---|---|---|"]
    found = {
        precision: {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob(f"{precision}_seed*.json"))}
        for precision in PRECISIONS
    }
    accuracy = {
        precision: {
            name.partition("_")[2]: {layer: 100 * one["rows"][f"trained {layer}"]["accuracy"] for layer in LAYERS}
            for name, one in runs.items()
        }
        for precision, runs in found.items()
    }
    for precision, runs in accuracy.items():
        if runs:
            cells = [with_interval(interval([one[layer] for one in runs.values()])) for layer in LAYERS]
            speed = statistics.median(one["images_per_second"] for one in found[precision].values())
            lines.append(f"| {precision}, {len(runs)} seed{'s' * (len(runs) > 1)} | {' | '.join(cells)} | {speed:.0f} |")
    both = sorted(accuracy["float32"].keys() & accuracy["bf16"].keys())
    if both:
        pairs = [[accuracy["bf16"][seed][layer] - accuracy["float32"][seed][layer] for seed in both] for layer in LAYERS]
        cells = [with_interval(interval(differences), "+") for differences in pairs]
        lines.append(f"| bf16 minus float32, {len(both)} pair{'s' * (len(both) > 1)} | {' | '.join(cells)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
