"""A grid of runs as one picture and one table: accuracies and bounds against the number of negatives, or another axis.

Each line is a setting, each point the mean over seeds with its 95 % interval (Student's t). Seeds are paired: the same seed has
the same first weights, images and pictures at every point, so differences to the first line are taken seed by seed.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dim import checkpoint
from dim.config import Config, UserError, flat
from dim.config import Term as TermConfig
from dim.critics import CRITICS
from dim.estimators import ESTIMATORS
from dim.figures import drawing
from dim.figures.drawing import Curve, Level, Lines, number

BOUND, FRESH, SPREAD = "bound", "read out by infonce with 4,096 fresh negatives", "sd of the bound of one batch"
OF_A_UNIT = {BOUND, SPREAD}  # values in the estimator's own unit


class Point(NamedTuple):
    """A finished run: where it lies in the grid, and its values by name. unit, ceiling: of BOUND; truth: nats, where it is
    known."""

    setting: dict[str, Any]
    values: dict[str, float]
    unit: str
    ceiling: float | None
    truth: float | None = None


def term_of(config: Config) -> tuple[str, TermConfig]:
    """The term that a picture is about, by its name in the log: the local one where there is one."""
    return ("local", config.objective.local) if config.objective.local.weight else ("global", config.objective.glob)


def point(folder: Path, config: Config, axes: Sequence[str], report: dict | None) -> Point:
    """A run as a point. report: its report.json as `evaluate.py` returns it; None for Gaussians, whose run kept its values."""
    name, c = term_of(config)
    values: dict[str, float] = {}
    unit = ESTIMATORS[c.estimator].unit
    truth = config.data.information if config.data.name == "gaussian" else None
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        last = summary["last"]
        if report is None:
            held_out = summary["held_out"]
            (mean, sd), (fresh, _) = held_out["bound"], held_out["infonce_4096_nats"]
            values = {BOUND: mean, FRESH: fresh, SPREAD: sd}
            values = {key: value for key, value in values.items() if value is not None}
        else:
            for row, cells in report["linear"]["rows"].items():
                kind, _, layer = row.partition(" ")
                if kind == "trained":
                    values[f"{layer} accuracy"] = 100 * cells["all"]["accuracy"]
                    if "validation_accuracy" in cells["all"]:  # a knob that is fixed is chosen by none
                        values[f"{layer} validation accuracy"] = 100 * cells["all"]["validation_accuracy"]
            values[BOUND] = last[f"{name}/bound_{unit}"]
        ceiling = last[f"{name}/ceiling_{unit}"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{folder}/summary.json is damaged or of an unfinished run: train the grid again") from None
    settings = flat(config)
    return Point({key: settings[key] for key in axes}, values, unit, ceiling, truth)


def axis_of(axes: Mapping[str, Sequence[Any]]) -> str:
    """The key that the picture runs along: K where it varies, the local term's first, else the number with the most values,
    the seed apart. UserError where there is none."""
    numbers = [k for k, v in axes.items() if k != "seed" and all(type(x) in (int, float) for x in v)]
    if not numbers:
        varied = ", ".join(axes) or "nothing"
        raise UserError(f"a picture of a grid needs an axis of numbers beside the seed, and its runs differ in {varied}")
    by_k: list[str] = [key for key in ("objective.local.k", "objective.glob.k") if key in numbers]
    return (by_k or sorted(numbers, key=lambda key: -len(axes[key])))[0]


def table(points: Sequence[Point], axis: str) -> list[dict]:
    """One row for each setting: {"line", axis, "unit", "ceiling", "truth", name of a value: {"mean", "interval": half of the
    95 % one or None, "seeds", "each": by seed, "minus": {"mean", "interval"} of the differences to the first line at the same
    place, seed by seed}}; bounds of different units have no difference.
    """
    cells: dict[tuple[str, Any], list[Point]] = {}
    for one in sorted(points, key=rank):
        cells.setdefault((line_of(one.setting, axis), one.setting[axis]), []).append(one)
    first = next(iter(cells))[0]
    rows = []
    for (line, place), members in cells.items():
        row: dict[str, Any] = {"line": line, axis: place}
        row |= {"unit": members[0].unit, "ceiling": members[0].ceiling, "truth": members[0].truth}
        rival = {one.setting.get("seed"): one for one in cells.get((first, place), [])}
        for name in dict.fromkeys(name for one in members for name in one.values):
            each = {one.setting.get("seed"): one.values[name] for one in members if name in one.values}
            row[name] = interval(list(each.values())) | {"seeds": len(each), "each": list(each.values())}
            both = [seed for seed in each if seed in rival and name in rival[seed].values]
            same = name not in OF_A_UNIT or (both and rival[both[0]].unit == members[0].unit)
            if line != first and both and same:
                row[name]["minus"] = interval([each[seed] - rival[seed].values[name] for seed in both])
        rows.append(row)
    return rows


def rank(one: Point) -> list:
    """Points in order, whatever their seed: estimators and critics as their tables have them, numbers by size."""
    names, values = [*ESTIMATORS, *CRITICS], [value for key, value in one.setting.items() if key != "seed"]
    return [(names.index(v), "") if v in names else (v, "") if isinstance(v, (int, float)) else (0, str(v)) for v in values]


def line_of(setting: dict[str, Any], axis: str) -> str:
    """The name of a line: the values of what is neither the axis nor the seed, numbers with their key."""
    words = []
    for key, value in setting.items():
        if key not in (axis, "seed"):
            name = key.rsplit(".", 1)[-1].replace("_", " ")
            words.append(value if isinstance(value, str) else f"{name} {json.dumps(value)}")
    return ", ".join(words) or "all"


def interval(values: Sequence[float]) -> dict:
    """{"mean", "interval"}: half the width of the 95 % interval of the mean by Student's t, None for one value."""
    from scipy.stats import t

    n = len(values)
    half = None if n < 2 else float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": statistics.fmean(values), "interval": half}


def draw(path: Path, points: Sequence[Point], axes: Mapping[str, Sequence[Any]], config: Config, protocol: str) -> list[Path]:
    """A PNG file at a path and its numbers as JSON beside it. config: of any of the points; protocol: of the accuracies."""
    drawing.needed()
    axis = axis_of(axes)
    rows = table(points, axis)
    title, caption = words(rows, axis, axes, config, protocol, len(points))
    anchors = None if "train.batch_size" in axes else config.train.batch_size
    checkpoint.save_json(path.with_suffix(".json"), {"axis": axis, "anchors": anchors, "about": caption, "rows": rows})
    return [drawing.save(path, title, panels(rows, axis, along(axis, config)), caption), path.with_suffix(".json")]


def along(axis: str, config: Config) -> str:
    """What the axis is called."""
    group, _, name = axis.rpartition(".")
    if name != "k":
        return name.replace("_", " ")
    kind = (config.objective.local if group.endswith("local") else config.objective.glob).negatives
    return "K, negatives of each anchor" if kind == "sampled" else "k, shifts of the batch"


def panels(rows: Sequence[dict], axis: str, label: str) -> list[Lines]:
    """A panel for each value: accuracies in per cent, then bounds of one unit each with their ceiling, and where it is known
    and the same for all the truth, nats."""
    names = [name for name in values_of(rows) if "validation" not in name]
    looks = {line: i for i, line in enumerate(dict.fromkeys(row["line"] for row in rows))}
    log = min(row[axis] for row in rows) > 0
    truths = {row["truth"] for row in rows}
    truth = truths.pop() if len(truths) == 1 else None
    found = []
    for name in names:
        for unit in dict.fromkeys(row["unit"] for row in rows) if name in OF_A_UNIT else [""]:
            chosen = [row for row in rows if name in row and unit in ("", row["unit"])]
            curves = [curve(chosen, line, axis, name, looks[line]) for line in dict.fromkeys(row["line"] for row in chosen)]
            in_nats = unit == "nats" or name == FRESH
            levels = [Level(f"the truth, {truth:g} nats", truth)] if truth is not None and in_nats and name != SPREAD else []
            if name == BOUND:
                tops = {row["ceiling"] for row in chosen} - {None}
                if len(tops) == 1:
                    levels += [Level(f"ceiling {number(top)}", top) for top in tops]
                else:
                    curves += ceilings(chosen, axis)
            title = f"{name}, {unit}" if unit else name
            what = "test accuracy, %" if "accuracy" in name else "nats" if in_nats else unit
            found.append(Lines(title, label + " (log scale)" * log, what, curves, levels, log_x=log))
    return found


def values_of(rows: Sequence[dict]) -> list[str]:
    """Names of what was measured, accuracies first."""
    names = dict.fromkeys(name for row in rows for name, cell in row.items() if isinstance(cell, dict))
    return sorted(names, key=lambda name: ("accuracy" not in name, list(names).index(name)))


def curve(rows: Sequence[dict], line: str, axis: str, name: str, look: int) -> Curve:
    """The means of a line with their intervals, labelled with its last mean."""
    mine = sorted((row for row in rows if row["line"] == line), key=lambda row: row[axis])
    means = [row[name]["mean"] for row in mine]
    spread = [row[name]["interval"] or 0.0 for row in mine]  # a single run has no bar
    return Curve(f"{line} {number(means[-1])}", [row[axis] for row in mine], means, spread, look=look)


def ceilings(rows: Sequence[dict], axis: str) -> list[Curve]:
    """The ceilings that the bounds of a panel have, one curve for each that differs."""
    found: dict[tuple, Curve] = {}
    for line in dict.fromkeys(row["line"] for row in rows):
        mine = sorted((row for row in rows if row["line"] == line and row["ceiling"] is not None), key=lambda row: row[axis])
        if mine:
            tops = [row["ceiling"] for row in mine]
            label = f"ceiling of {line}\n{number(tops[-1])}"
            found.setdefault(tuple(tops), Curve(label, [row[axis] for row in mine], tops, grey=True))
    if len(found) == 1 and all(row["ceiling"] is not None for row in rows):  # everyone's
        return [one._replace(label=f"ceiling {number(one.y[-1])}") for one in found.values()]
    return list(found.values())


def words(
    rows: Sequence[dict], axis: str, axes: Mapping[str, Sequence[Any]], config: Config, protocol: str, runs: int
) -> tuple[str, list[str]]:
    """Title and caption."""
    counts = {cell["seeds"] for row in rows for cell in row.values() if isinstance(cell, dict)}
    by_k = axis.endswith(".k")
    steps = f"{config.train.steps:,} steps" if config.train.steps else f"{config.train.epochs} epochs"
    if config.data.name == "gaussian":
        on = f"{config.data.dimensions} pairs of correlated Gaussians"
        what = "Values on fresh draws; one pool of max(A, K + 1) vectors stands before all anchors."
    else:
        on, what = config.data.name, f"{protocol}. Bounds are those of training batches."
    lasts = {key.rsplit(".", 1)[-1] for key in axes}
    who = "Critics" if "critic" in lasts and "estimator" not in lasts else "Estimators"
    title = f"{who} against the number of negatives" if by_k else f"A grid over {axis.rsplit('.', 1)[-1].replace('_', ' ')}"
    few, many = min(counts), max(counts)
    seeds = "One seed." if many == 1 else f"Points: mean over {few if few == many else f'{few} to {many}'} seeds, bars: 95 % "
    seeds += "interval of the mean (Student's t), none where there is one seed." if many > 1 else ""
    varied = [key for key in axes if key not in (axis, "seed")]
    lines = f"Lines: {', '.join(varied)}." if varied else ""
    anchors = "A anchors, the batch" if "train.batch_size" in axes else f"A = {config.train.batch_size} anchors"
    k = f"K negatives stand against each of {anchors}, A K pairs in all, which dv's one logarithm runs over." * by_k
    return title, [f"{runs} runs of {steps} on {on}. {what}", f"{seeds} {lines} {k}".strip()]


def markdown(rows: Sequence[dict], axis: str) -> str:
    """The table as Markdown: mean +- interval, and in brackets the paired difference to the first line."""
    names = values_of(rows)
    head = ["", axis.rsplit(".", 1)[-1], *names, "ceiling"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for row in rows:
        cells = [shown(row.get(name)) for name in names]
        top = "" if row["ceiling"] is None else f"{row['ceiling']:.3f}"
        lines.append(f"| {' | '.join([row['line'], f'{row[axis]:g}', *cells, top])} |")
    return "\n".join(lines)


def shown(cell: dict | None) -> str:
    """63.21 +- 0.40 (-1.20 +- 0.30)"""
    if cell is None:
        return ""
    text = with_interval(cell)
    return text + (f" ({with_interval(cell['minus'], '+')})" if "minus" in cell else "")


def with_interval(cell: dict, sign: str = "") -> str:
    return f"{cell['mean']:{sign}.2f}" + ("" if cell["interval"] is None else f" +- {cell['interval']:.2f}")
