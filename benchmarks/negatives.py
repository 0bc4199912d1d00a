"""The grids of results/negatives.md, one JSON a point; what is there is not done again.

python benchmarks/negatives.py GRID [--data DIR] [--runs runs] [--seeds 0 1]    GRID: the end of configs/negatives_GRID.yaml
python benchmarks/negatives.py GRID --table                                     tables and picture of the points so far

One thread, seed by seed; two processes with other seeds do not meet. A run's folder is removed once its JSON is there.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from records import commit, processor  # beside this file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT))  # so that it runs where nothing is installed

import evaluate  # noqa: E402
import train  # noqa: E402
from dim import grid  # noqa: E402
from dim.checkpoint import save_json  # noqa: E402
from dim.figures import negatives  # noqa: E402
from dim.reading import read, settings_of  # noqa: E402
from dim.report import protocol  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "grid", choices=sorted(path.stem.partition("_")[2] for path in (ROOT / "configs").glob("negatives_*.yaml"))
    )
    parser.add_argument("--data", default="data", help="--data.root of the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs are kept meanwhile")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the grid's; without, all")
    parser.add_argument("--table", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    path = ROOT / "configs" / f"negatives_{chosen.grid}.yaml"
    axes = settings_of(path)[1]
    place = RESULTS / path.stem
    torch.set_num_threads(1)
    known: dict = {}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for point in sorted(points, key=lambda point: point["seed"]):  # a seed is whole before the next begins
        saved = place / f"{grid.name(point)}.json"
        if not chosen.table and not saved.exists() and point["seed"] in (chosen.seeds or axes["seed"]):
            folder = chosen.runs / path.stem / grid.name(point)
            save_point(saved, folder, path, point, Path(chosen.data).resolve(), known)
    show(place, axes, path)
    return 0


def save_point(saved: Path, folder: Path, path: Path, point: dict, data: Path, known: dict) -> None:
    """Train and evaluate a point, write its JSON. known: rows of points before it, shared where the same."""
    where = {"run.dir": str(folder)} | ({} if "gaussian" in path.stem else {"data.root": str(data)})
    words = ["--config", str(path), *grid.texts(point | where)]
    begun, now = time.process_time(), commit()
    if code := train.main(words):
        sys.exit(code)
    trained = time.process_time()
    config, _ = read(words, path)
    report, more = None, {}
    if config.data.name != "gaussian":
        report = evaluate.evaluate(folder, evaluate.options([str(folder), "--once", "--layers", "fc", "y"])[0], config, known)
        rows = report["linear"]["rows"]
        more = {"protocol": protocol(report["linear"]), "rows": {name: row["all"] for name, row in rows.items()}}
    found = negatives.point(folder, config, list(point), report)
    summary = json.loads((folder / "summary.json").read_text())
    more |= {
        "summary": summary,
        "training_cpu_seconds": trained - begun,
        "evaluation_cpu_seconds": time.process_time() - trained,
    }
    saved.parent.mkdir(exist_ok=True)
    save_json(saved, found._asdict() | more | {"commit": now, "hardware": f"one thread of {processor()}"})
    shutil.rmtree(folder)


def show(place: Path, axes: dict, path: Path) -> None:
    """Table, PNG and JSON of the points so far, in results."""
    contents = [json.loads(file.read_text()) for file in sorted(place.glob("*.json"))]
    if not contents:
        return
    points = [negatives.Point(*(content[key] for key in negatives.Point._fields)) for content in contents]
    config, _ = read(["--config", str(path), *grid.texts(points[0].setting)], path)
    axis = negatives.axis_of(axes)
    print(negatives.markdown(negatives.table(points, axis), axis))
    print(gains(points, axis))
    there = {key: values for key, values in axes.items() if len(values) > 1}
    for file in negatives.draw(RESULTS / f"{path.stem}.png", points, there, config, contents[0].get("protocol", "")):
        print(f"saved as {file}")


def gains(points: list[negatives.Point], axis: str) -> str:
    """What each line gains from a place on the axis to its last one, seed by seed: mean +- 95 % interval, Markdown."""
    names = list(dict.fromkeys(name for one in points for name in one.values))
    lines = ["", f"| gain of | from | to | {' | '.join(names)} |", f"|{' --- |' * (3 + len(names))}"]
    each: dict = {}
    for one in sorted(points, key=negatives.rank):
        each.setdefault(negatives.line_of(one.setting, axis), {}).setdefault(one.setting[axis], {})[one.setting["seed"]] = one
    for line, by_place in each.items():
        *places, last = sorted(by_place)
        for place in places:
            both = by_place[place].keys() & by_place[last].keys()
            pairs = [(by_place[place][seed].values, by_place[last][seed].values) for seed in sorted(both)]
            cells = [negatives.interval([late[name] - early[name] for early, late in pairs]) for name in names] if pairs else []
            text = " | ".join(negatives.with_interval(cell, "+") for cell in cells)
            lines.append(f"| {line} | {place:g} | {last:g} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
