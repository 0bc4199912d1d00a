"""The records of results/<series>.md: train and evaluate each run, one JSON a run; what is there is not done again.

python benchmarks/records.py SERIES --data DIR [--runs runs/records] [NAME ...]     one thread; the same command continues
python benchmarks/records.py SERIES --table                                         the table of its records so far
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
RECOMMENDED = "--config configs/cifar10.yaml"
PAPER = "--train.epochs 10 --run.probe_every 0 --config configs/paper/cifar10"

CIFAR10 = {  # name: (what it is, the words of its command)
    **{f"recommended_seed{seed}": ("recommended", f"{RECOMMENDED} --seed {seed}") for seed in (0, 1, 2)},
    "no_augmentation": ("recommended without augmentation", f"{RECOMMENDED} --views.number 1 --views.kind none"),
    "one_view": ("recommended with one view", f"{RECOMMENDED} --views.number 1"),
    "mild_crop": ("recommended with crops of 0.6 to 1", f"{RECOMMENDED} --views.area [0.6,1]"),
    "prior": (
        "recommended with the prior at its own rate",
        f"{RECOMMENDED} --objective.prior.weight 0.1 --objective.prior.penalty 1",
    ),
    "norm_layer": ("recommended without batch statistics", f"{RECOMMENDED} --norm layer"),
    "paper_jsd": ("paper, DIM(L) jsd", f"{PAPER}_local_jsd.yaml --objective.local.units 256"),
    "paper_dv": ("paper, DIM(L) dv", f"{PAPER}_local_dv.yaml --objective.local.units 256"),
    "paper_infonce": ("paper, DIM(L) infonce", f"{PAPER}_local_infonce.yaml --objective.local.units 256"),
    "paper_concat": ("paper, DIM(L) jsd, concat critic", f"{PAPER}_concat.yaml --objective.local.units 256"),
    "paper_global": ("paper, DIM(G) jsd", f"{PAPER}_global.yaml --objective.glob.units 256"),
    "paper_local_global": (
        "paper, DIM(L+G) jsd",
        f"{PAPER}_local_global.yaml --objective.local.units 256 --objective.glob.units 256",
    ),
    "recommended_40": ("recommended, 40 epochs", f"{RECOMMENDED} --train.epochs 40 --run.keep_every 10"),
    "cifar100": ("recommended, on CIFAR-100", f"{RECOMMENDED} --data.name cifar100"),
}
TINY = "--config configs/tiny_imagenet.yaml"
TINY_IMAGENET = {
    "resnet18": ("resnet18, map layer2", TINY),
    "basic64x64": ("basic64x64, the paper's map", f"{TINY} --encoder.name basic64x64 --encoder.local paper --data.side 0"),
}
SERIES = {"cifar10": CIFAR10, "tiny_imagenet": TINY_IMAGENET}
ONCE = {"tiny_imagenet"}  # without resamples: 11,600 images of 12,288 pixels cost minutes each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", choices=list(SERIES))
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs of the series; without, all")
    parser.add_argument("--data", default="data", help="--data.root of the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "records", help="where the runs are kept meanwhile")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing")
    chosen = parser.parse_intermixed_args()  # names stand before or after the options
    runs = SERIES[chosen.series]
    if unknown := set(chosen.names) - set(runs):
        parser.error(f"{chosen.series} has no {', '.join(sorted(unknown))}; it has {', '.join(runs)}")
    for name in chosen.names if chosen.names or chosen.table else runs:
        if not (RESULTS / chosen.series / f"{name}.json").exists():
            record(chosen.series, name, chosen.data, chosen.runs / chosen.series / name)
    print(table(chosen.series))
    return 0


def record(series: str, name: str, data: str, folder: Path) -> None:
    """Train or continue a run, evaluate it, write its JSON."""
    words = SERIES[series][name][1]
    where = ["--data.root", str(Path(data).resolve())]
    train(folder, [*words.split(), *where])
    note_commit(folder / EVALUATED)
    how = [*where, *["--once"] * (series in ONCE)]
    run(["evaluate.py", *map(str, [*alike(folder), *kept(folder), folder]), *how])  # takes the rows that are there
    write(series, name, folder)


TRAINED, EVALUATED = "commit.txt", "evaluation_commit.txt"  # in a run's folder: the commits at which it was done


def train(folder: Path, words: list[str]) -> None:
    """Train a run in a folder, or continue it; the commits of both stand in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not finished(folder):
        note_commit(folder / TRAINED)
    run(["train.py", *words, "--run.dir", str(folder)])


def finished(folder: Path) -> bool:
    """Whether a run was trained to its end."""
    path = folder / "summary.json"
    if not path.exists():
        return False
    summary = json.loads(path.read_text())
    return summary["step"] == summary["steps"]


def note_commit(path: Path) -> None:
    """Add the commit of now to those in a file."""
    if (now := commit()) not in (known := noted(path)):
        path.write_text("".join(f"{each}\n" for each in [*known, now]))


def noted(path: Path) -> list[str]:
    """The commits in a file, the first one first; [] where there is none."""
    return path.read_text().split() if path.exists() else []


def commit() -> str:
    """The commit of the project's files, "-dirty" behind it where they differ from it (results/ apart, which a series writes
    itself); "unknown" outside a checkout."""
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return head + "-dirty" * bool(changed) if head else "unknown"


def git(*words: str) -> str:
    """What git says of the project, "" where it says nothing or is not there."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def alike(folder: Path) -> list[Path]:
    """A run beside this one that was evaluated on the same data set, with the same random encoder where there is one: given to
    evaluate.py first, its baselines are taken where they are this run's too; [] where there is none."""

    def data(place: Path) -> list[str]:
        lines = part((place / "config.yaml").read_text().splitlines(), "data")
        return [line for line in lines if line.strip().startswith(("name:", "split_seed:"))]

    def encoder(place: Path) -> list[str]:
        lines = (place / "config.yaml").read_text().splitlines()
        return [line for line in lines if line.startswith(("seed:", "precision:", "norm:"))] + part(lines, "encoder")

    others = sorted(report.parent for report in folder.parent.glob("*/report.json") if report.parent != folder)
    others = [other for other in others if data(other) == data(folder)]
    return [*(other for other in others if encoder(other) == encoder(folder)), *others][:1]


def part(lines: list[str], group: str) -> list[str]:
    """The lines of a group of a config.yaml."""
    after = lines[lines.index(f"{group}:") + 1 :]
    return list(itertools.takewhile(lambda line: line.startswith(" ") or line.startswith("- "), after))


def write(series: str, name: str, folder: Path) -> None:
    """The JSON of a run that was trained and evaluated."""
    what, words = SERIES[series][name]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "what": what,
        "command": f"python train.py {words} --data.root DIR",
        "commit": ", ".join(noted(folder / TRAINED)),
        "evaluation_commit": ", ".join(noted(folder / EVALUATED)),
        "hardware": f"one thread of {processor()}, shared with other work",
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "probes while training": [row for row in rows if "probe/fc_accuracy" in row],
        "last": rows[-1],
        "evaluation": json.loads((folder / "report.json").read_text()),
        "kept": {place.name: json.loads((place / "report.json").read_text())["linear"]["rows"] for place in kept(folder)},
    }
    path = RESULTS / series / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def kept(folder: Path) -> list[Path]:
    """The copies of a run that were kept on its way, in order."""
    return sorted(folder.glob("epoch-*"), key=lambda place: int(place.name.removeprefix("epoch-")))


def run(words: list[str]) -> None:
    """A script of the project with one thread; a failure ends everything with its own message."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.returncode)


def processor() -> str:
    """The processor's name where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "an unknown processor"


def table(series: str) -> str:
    """The records as Markdown, baselines once for each data set and encoder (those of batch statistics)."""
    lines = ["| run | conv | fc | y | bound at the end | rank of y | images/s |", "|---|---|---|---|---|---|---|"]
    shown: set = set()
    for name in SERIES[series]:
        path = RESULTS / series / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        accuracy = {
            row: f"{100 * cells['all']['accuracy']:.1f}" for row, cells in found["evaluation"]["linear"]["rows"].items()
        }
        data, encoder = (found["evaluation"]["run"][key] for key in ("data", "encoder"))
        if data not in shown:
            lines.append(f"| {data}, raw pixels | {accuracy['raw pixels']} | | | | | |")
        if (data, encoder) not in shown:
            random = " | ".join(accuracy[f"random {layer}"] for layer in ("conv", "fc", "y"))
            lines.append(f"| {data}, random {encoder}, seed 0 | {random} | | | |")
        shown |= {data, (data, encoder)}
        last = found["last"]
        bounds = []
        for key in last:
            if "/bound_" in key:
                ceiling = last[key.replace("bound", "ceiling")]
                top = "" if ceiling is None else f" of {ceiling:.2f}"
                bounds.append(f"{key.split('/')[0]} {last[key]:.2f}{top} {key.split('_')[-1]}")
        cells = [accuracy[f"trained {layer}"] for layer in ("conv", "fc", "y")] + [", ".join(bounds)]
        seed = found["evaluation"]["run"]["seed"]
        rank, speed = last["code/effective_rank"], found["images_per_second"]
        lines.append(f"| {found['what']}, seed {seed} | {' | '.join(cells)} | {rank:.1f} | {speed:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
