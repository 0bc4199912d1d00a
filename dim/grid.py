"""Grids: every combination of the values of some keys as a run of its own, `RUN/<key>-<value>_..`, trained by train.py.

A configuration file holds `grid: {objective.local.k: [1, 64], seed: [0, 1], ..}`. Keys that stand on the command line are fixed
there. The same command continues: finished runs are left alone, others go on from their checkpoints (runs on Gaussians, which
are short, begin anew).
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dim import signals
from dim.config import Config, UserError, flat
from dim.machine import settled
from dim.reading import ELSEWHERE, check_folder, read, settings_of, typed, words_of

SCRIPT = Path(__file__).resolve().parent.parent / "train.py"


def train(argv: list[str], default: Path, flags: dict[str, str], axes: dict[str, list]) -> int:
    """Train every point of a grid; exit code 0, or 1 where a run failed, which stops no other.

    argv, default, flags: as `read` takes them; axes: {key: values} that argv leaves open. All points are read before the
    first begins, so a mistake in one of them costs nothing.
    """
    chosen, asked = words_of(argv, default, flags)
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    given = settings_of(chosen.config)[0]
    base = Path(asked.get("run.dir") or given.get("run.dir") or Path("runs") / chosen.config.stem)
    jobs = typed("run.jobs", asked.pop("run.jobs", given.get("run.jobs", 1)))
    if jobs < 1:
        raise UserError(f"run.jobs is {jobs}: it must be at least 1")
    words = {}
    for point in points:
        folder = base / name(point)
        words[folder] = ["--config", str(chosen.config), *texts(asked | point | {"run.dir": str(folder)})]
        try:
            check_folder(settled(read(words[folder], default, flags)[0]), folder)
        except UserError as error:
            raise UserError(f"{folder.name}: {error}") from None
    todo = [folder for folder in words if not finished(folder)]
    print(f"grid       {base}, {len(words)} runs over {', '.join(axes)}; {len(words) - len(todo)} of them are finished")
    if chosen.dry_run:  # the first stands for all
        return subprocess.run([sys.executable, str(SCRIPT), *words[base / name(points[0])], "--dry-run"]).returncode
    return run({folder: words[folder] for folder in todo}, jobs)


def name(point: dict[str, Any]) -> str:
    """The folder of a point: estimator-jsd_k-8_seed-0; a key whose last word others have too stands with the one before."""
    lasts = [key.rsplit(".", 1)[-1] for key in point]
    parts = [last if lasts.count(last) == 1 else ".".join(key.split(".")[-2:]) for key, last in zip(point, lasts, strict=True)]
    return "_".join(f"{part}-{value}" for part, value in zip(parts, point.values(), strict=True)).replace("/", ":")


def texts(keys: dict[str, Any]) -> list[str]:
    """Keys as words of a command line."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def finished(folder: Path) -> bool:
    """Whether a run has made all its steps."""
    try:
        found = json.loads((folder / "summary.json").read_bytes())
        return found["step"] == found["steps"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def runs_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The finished runs in the folder of a grid, by name, and the others; none where the folder is a run itself, or nothing."""
    if os.path.exists(folder / "config.yaml") or not os.path.isdir(folder):  # a name that is too long is no folder
        return [], []
    runs = sorted(place.parent for place in folder.glob("*/config.yaml"))
    return [run for run in runs if finished(run)], [run for run in runs if not finished(run)]


def axes_of(configs: Sequence[Config]) -> dict[str, list]:
    """The keys in which configurations differ, with their values in order: {"objective.local.k": [1, 64], ..}; where a run
    happened is none of them."""
    each = [flat(config) for config in configs]
    found = {key: {values[key] for values in each} for key in each[0] if not key.startswith(ELSEWHERE)}
    return {
        key: sorted(values, key=lambda value: (str(type(value)), value)) for key, values in found.items() if len(values) > 1
    }


def run(words: dict[Path, list[str]], jobs: int) -> int:
    """Train runs, `jobs` of them side by side, each in a process of its own with a bar below the grid's.

    What a run prints is in its folder too, so only bars and complaints are shown. A signal is passed on as it came to the runs
    that are under way, which save; in a session of their own they get no second Ctrl-C from the terminal, which would not.
    """
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    places, live = list(range(1, jobs + 1)), set()  # free lines for bars; processes under way

    def one(folder: Path) -> int:
        place = places.pop(0)
        more = threads | {"TQDM_POSITION": str(place), "TQDM_LEAVE": "0"}
        line = [sys.executable, str(SCRIPT), *words[folder]]
        process = subprocess.Popen(line, env=os.environ | more, stdout=subprocess.DEVNULL, start_new_session=True)
        live.add(process)
        code = process.wait()
        live.discard(process)
        places.insert(0, place)
        return code

    failed = {}
    with (
        ThreadPoolExecutor(jobs) as pool,
        signals.raised(),
        tqdm(total=len(words), desc="grid", unit="run", disable=None, dynamic_ncols=True, position=0) as bar,
    ):
        try:
            for folder, code in zip(words, pool.map(one, words), strict=True):
                bar.update()
                if code:
                    failed[folder] = code
        except (KeyboardInterrupt, signals.StopRequest) as stop:
            pool.shutdown(wait=False, cancel_futures=True)
            under_way, code = list(live), getattr(stop, "code", 130)
            for process in under_way:
                process.send_signal(signal.SIGINT if code == 130 else signal.SIGTERM)  # a second SIGTERM does no harm
            lost = [code for code in (process.wait() for process in under_way) if code not in (0, *signals.CODES.values())]
            what = f"{len(lost)} of the runs under way ended with exit code {lost[0]}" if lost else "the runs under way saved"
            raise signals.StopRequest(f"stopped, {what}; the same command continues there", code) from None
    for folder, code in failed.items():
        print(f"failed     {folder}, exit code {code}; alone: python train.py {shlex.join(words[folder])}", file=sys.stderr)
    print(f"{len(words) - len(failed)} of {len(words)} runs done" + f", {len(failed)} failed" * bool(failed))
    return int(bool(failed))
