"""The report of a run: everything that was measured of it, as report.json, report.md and tables in the terminal.

A report belongs to weights, images and a validation split, each named by its content; sections are evaluators, filled row
by row and saved after each, so that an interrupted evaluation continues and nothing is measured twice.
"""

import hashlib
import json
import os
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from dim.checkpoint import replacing, save_json

OF = {  # what the numbers of a report belong to, in words
    "weights_sha256": "weights",
    "data_sha256": "images",
    "shape": "sizes of images",
    "fit": "data.fit",
    "split_seed": "data.split_seed",
}
TITLES = {"all": "all labels", "resamples": "resamples", "folds": "folds"}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of an encoder's weights and statistics, by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def opened(path: Path, run: dict, warn: Callable[[str], None]) -> dict:
    """The report at a path where it belongs to the same weights, images and split; else a new one, and one line to `warn`.

    run: facts of the run, the keys of OF among them. A file that is no report is kept beside, as report.damaged.json.
    """
    if not path.exists():
        return {"run": run}
    try:
        content = json.loads(path.read_bytes())
        other = [key for key in OF if content["run"][key] != run[key]]
        for part in (part for name, part in content.items() if name != "run"):
            part["protocol"], part["rows"].items(), part.get("columns", {}).items()
        numbers(content), comparison({"": content}), markdown(content, "")  # all that is done with it later
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        aside = path.with_suffix(".damaged.json")
        os.replace(path, aside)
        warn(f"{path} is damaged or no report: moved to {aside.name}, everything is measured anew")
        return {"run": run}
    if other:
        warn(f"{path} is of other {', '.join(OF[key] for key in other)}: everything is measured anew")
        return {"run": run}
    return content | {"run": content["run"] | run}


def section(content: dict, name: str, heading: dict, columns: Mapping[str, str] = MappingProxyType({})) -> dict:
    """The rows of a section, to be filled. Those of another heading are dropped, and of the others the cells of a column that
    now means something else; columns, of a table of accuracies: what each one means, beside those that are there already."""
    found = content.get(name, {})
    if {key: value for key, value in found.items() if key not in ("rows", "columns")} != heading:
        found = {"rows": {}}
    before = found.get("columns", {})
    gone = {column for column, words in columns.items() if before.get(column, words) != words}
    rows = {row: {key: value for key, value in cells.items() if key not in gone} for row, cells in found["rows"].items()}
    content[name] = {**heading, **({"columns": before | columns} if columns else {}), "rows": rows}
    return rows


def save(path: Path, content: dict) -> None:
    """report.json at a path, and report.md beside it."""
    save_json(path, content)
    with replacing(path.with_suffix(".md")) as file:
        file.write(markdown(content, path.parent.name).encode())


# ---- tables


def sections(content: dict) -> dict[str, dict]:
    """The sections that are tables of accuracies, where a row is there."""
    return {name: part for name, part in content.items() if isinstance(part, dict) and "columns" in part and part["rows"]}


def cells_of(part: dict) -> tuple[list[str], dict[str, list[str]]]:
    """Titles of the columns, and for each row its accuracies in per cent as text; a star: not converged."""
    titles = [TITLES.get(column, f"{column} a class") for column in part["columns"]]
    return titles, {name: [shown(row.get(column)) for column in part["columns"]] for name, row in part["rows"].items()}


def shown(cell: dict | None) -> str:
    """63.2 +- 0.4, in per cent; "" for none, where a row was not asked for with all columns."""
    if cell is None:
        return ""
    spread = "" if cell["sd"] is None else f" +- {100 * cell['sd']:.1f}"
    return f"{100 * cell['accuracy']:.1f}{spread}" + ("" if cell["converged"] else "*")


def protocol(part: dict) -> str:
    """How the numbers of a section were measured, that of its columns included."""
    return "; ".join([part["protocol"], *dict.fromkeys(words for words in part.get("columns", {}).values() if words)])


def table(part: dict) -> str:
    """A section as text, a row for each kind of features: accuracies in per cent, or a measure's numbers."""
    if "columns" not in part:
        return listing(part)
    titles, rows = cells_of(part)
    width = max(22, *(len(name) + 2 for name in rows))
    title = f"test accuracy in %, chance {100 * part['chance']:g}"
    lines = [*textwrap.wrap(f"{title}; {protocol(part)}", 96), "", " " * width + "".join(f"{title:>14}" for title in titles)]
    lines += [f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells) for name, cells in rows.items()]
    if any("*" in cell for cells in rows.values() for cell in cells):
        lines.append(STAR)
    return "\n".join(lines)


def listing(part: dict) -> str:
    """A measure as text: its numbers side by side."""
    keys, rows = values_of(part)
    width = max(len(name) + 2 for name in ["", *rows])
    wide = [max(len(text) for text in column) + 2 for column in zip(keys, *rows.values(), strict=True)]
    lines = [*textwrap.wrap(part["protocol"], 96), ""]
    for name, cells in [("", keys), *rows.items()]:
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>{space}}" for cell, space in zip(cells, wide, strict=True)))
    return "\n".join([*lines, *doubts(part)])


def doubts(part: dict) -> list[str]:
    """A line for each row of a measure whose seeds say why they did not converge."""
    lines = []
    for name, row in part["rows"].items():
        reasons = dict.fromkeys(reason for run in row.get("runs", []) for reason in run.get("doubts", []))
        if reasons:
            lines.append(f"not converged, {name}: {'; '.join(reasons)}")
    return lines


SHOWN = {"converged": "share of seeds converged"}  # what a key alone would not say


def values_of(part: dict) -> tuple[list[str], dict[str, list[str]]]:
    """The names of a measure's plain numbers, and for each row their text."""
    keys = list(dict.fromkeys(key for row in part["rows"].values() for key in row if plain(row[key])))
    rows = {name: [number(row.get(key)) for key in keys] for name, row in part["rows"].items()}
    return [SHOWN.get(key, key) for key in keys], rows


def headline(part: dict) -> str:
    """Trained fc against the best random layer and the best raw row, in one column, whoever wins; "" where one is missing."""
    for column in ("10", "all"):  # the first one that all of them have
        score = {name: row[column]["accuracy"] for name, row in part["rows"].items() if column in row}
        kinds = {kind: [name for name in score if name.startswith(kind)] for kind in ("trained fc", "random", "raw")}
        if all(kinds.values()):
            break
    else:
        return ""
    rivals = [max(kinds[kind], key=score.__getitem__) for kind in ("random", "raw")]
    trained = 100 * score[kinds["trained fc"][0]]
    parts = [f"{name} {100 * score[name]:.1f} ({trained - 100 * score[name]:+.1f})" for name in rivals]
    verdict = "ahead of both" if trained > 100 * max(score[name] for name in rivals) else "not ahead of both"
    labels = "all labels" if column == "all" else f"{column} labels a class"
    return f"\nfc after training, {labels}: {trained:.1f}\nagainst {' and '.join(parts)}: {verdict}"


def seconds(part: dict) -> float:
    """What a section took, for the rows that it has."""
    cells = (cell for row in part["rows"].values() for cell in (row.values() if "columns" in part else [row]))
    return sum(cell.get("seconds", 0.0) for cell in cells)


LEGEND = (
    "Rows: x or raw pixels, the images themselves; *random*, the encoder before training, its BatchNorm statistics set on "
    "training images; *trained*, after it, without labels; *supervised*, the same net trained with all labels, whatever a "
    "column says. conv: the last convolution; fc: the hidden layer; y: the code. +-: over what a section says, never over "
    "training seeds (several runs: the comparison); draws of labels and resamples are the same for all rows. The split seed "
    "moves the validation tenth, not the test images."
)


def markdown(content: dict, name: str) -> str:
    """report.md: what the numbers belong to, then a table for each section."""
    run = content["run"]
    lines = [f"# {name}", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in run.items() if not isinstance(value, dict)]
    lines += ["", LEGEND]
    for title, part in sections(content).items():
        titles, rows = cells_of(part)
        lines += ["", f"## {title}", "", f"Test accuracy in %, chance {100 * part['chance']:g}; {protocol(part)}.", ""]
        lines += grid(["", *titles], [[row, *cells] for row, cells in rows.items()])
        lines += ["", f"{seconds(part):.0f} s for the probes, without the encoder."]
    for title, part in measured(content).items():
        keys, rows = values_of(part)
        lines += ["", f"## {title}", "", f"{part['protocol']}.", ""]
        lines += grid(["", *keys], [[row, *cells] for row, cells in rows.items()])
        lines += [line for said in doubts(part) for line in ("", f"{said}.")]
    return "\n".join(lines) + "\n"


def numbers(content: dict) -> dict[str, float]:
    """Accuracies, in [0, 1], and measures of a report by their path, such as "linear/trained fc/all", and beside those that
    are means their standard deviations, such as "linear/trained fc/resamples/sd"."""
    cells = {
        f"{title}/{name}/{column}": cell
        for title, part in sections(content).items()
        for name, row in part["rows"].items()
        for column, cell in row.items()
    }
    accuracies = {path: cell["accuracy"] for path, cell in cells.items()}
    spreads = {f"{path}/sd": cell["sd"] for path, cell in cells.items() if cell["sd"] is not None}
    return {**accuracies, **spreads} | {
        f"{title}/{name}/{key}": value
        for title, part in measured(content).items()
        for name, row in part["rows"].items()
        for key, value in row.items()
        if isinstance(value, float)
    }


def measured(content: dict) -> dict[str, dict]:
    """The sections that are no accuracies of probes, where a row is there."""
    return {
        name: part for name, part in content.items() if isinstance(part, dict) and part.get("rows") and "columns" not in part
    }


def plain(value: object) -> bool:
    """Whether a value fits a cell."""
    return value is None or isinstance(value, bool | int | float | str)


def number(value: object) -> str:
    """A value as a cell shows it."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


# ---- several runs


def dependence(kind: str, run: dict) -> tuple:
    """All that a row of a kind depends on beside its evaluator, from the facts of a run: runs that share it share the row."""
    config = run["config"]
    images = (run["data_sha256"], tuple(run["shape"]), run["fit"], run["split_seed"])
    if kind == "raw":
        return images
    if kind == "trained":
        return (*images, run["weights_sha256"])
    encoder = (*images, run["seed"], *of_keys(config, "encoder.", "norm", "precision"))
    return encoder if kind == "random" else (*encoder, run["steps"], *of_keys(config, "views.", "train.batch_size"))


def of_keys(config: dict, *beginnings: str) -> tuple[str, ...]:
    """The keys of a flat configuration with these beginnings, and their values."""
    return tuple(f"{key}={value}" for key, value in config.items() if key.startswith(beginnings))


def grouped(reports: Mapping[str, dict]) -> dict[str, list[dict]]:
    """Reports by name -> groups of runs that differ in their seed alone; a group of several is named by what names share."""
    groups: dict[str, dict[str, dict]] = {}
    for name, content in reports.items():
        run = content["run"]
        key = json.dumps([run[key] for key in ("config", "steps", "data_sha256", "split_seed", "weights")], sort_keys=True)
        while run["seed"] in {member["run"]["seed"] for member in groups.get(key, {}).values()}:
            key += " again"  # the same run twice is no second seed
        groups.setdefault(key, {})[name] = content
    found: dict[str, list[dict]] = {}
    for members in groups.values():
        names = list(members)
        shared = common(names).rstrip("_-0123456789 ") or names[0]
        title = names[0] if len(names) == 1 else f"{shared}, {len(names)} seeds"
        found[title if title not in found else ", ".join(names)] = list(members.values())
    return found


def common(names: Sequence[str]) -> str:
    """What names begin with."""
    first, last = min(names), max(names)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


WHOSE = {"raw": "raw pixels", "random": "random encoder", "supervised": "supervised encoder"}


MEASURES = {  # what a comparison shows of a measure: its number, and what that is
    "mine": ("mi_nats", "mutual information in nats"),
    "ndm": ("total_correlation_nats", "total correlation in nats"),
    "reconstruction": ("ms_ssim", "MS-SSIM, 1 for equal images"),
}


def comparison(reports: Mapping[str, dict]) -> dict:
    """{"runs": by name of a group of runs {"data", "weights", "seeds": [..]}, "tables": {section: a table}}.

    A table: {"of": the quantity with its unit, "percent": whether shares are to be shown in per cent, "chance": of an accuracy
    where it is the same for all runs, else None, "protocols": in words, each once, "rows": {row of baselines or name of a
    group: {features: {"mean", "sd": over training seeds or None, "seeds", "converged"}}}}.

    Accuracies are those of all labels, or where a section has none a table for each number of labels. Trained features stand
    under their group's name; raw pixels and the other encoders under theirs, over seeds; where these differ between groups in
    more than seeds (another architecture, other images), each names the first of its groups.
    """
    found: dict[str, dict] = {}
    groups = grouped(reports)
    for title, column in dict.fromkeys(table for content in reports.values() for table in tables_of(content)):
        gathered: dict[str, dict[str, dict]] = {}
        whose = baselines(groups, title)
        for group, members in groups.items():
            for content in members:
                for row, cells in content.get(title, {"rows": {}})["rows"].items():
                    if column not in cells:
                        continue  # this run has other numbers of labels
                    kind, _, layer = row.partition(" ")
                    name = group if kind == "trained" else whose[kind, lineage(kind, content, title)]
                    once = content["run"]["seed"] if kind != "raw" else 0  # pixels have no seed
                    value = cells[column] if title in MEASURES else cells[column]["accuracy"]
                    sure = believed(cells if title in MEASURES else cells[column])
                    gathered.setdefault(name, {}).setdefault(layer, {})[once] = value, sure
        parts = [content[title] for content in reports.values() if title in content]
        of = MEASURES[title][1] if title in MEASURES else "test accuracy in %"
        chances = {part.get("chance") for part in parts}
        found[f"{title}, {column} labels a class" if column.isdigit() else title] = {
            "of": of,
            "percent": title not in MEASURES,
            "chance": chances.pop() if len(chances) == 1 else None,
            "protocols": list(dict.fromkeys(map(protocol, parts))),
            "rows": {
                name: {layer: spread(list(by_seed.values())) for layer, by_seed in layers.items()}
                for name, layers in gathered.items()
            },
        }
    return {"runs": {name: about(members) for name, members in groups.items()}, "tables": found}


def about(members: Sequence[dict]) -> dict:
    """What the runs of a group were measured on, and which they are."""
    first = members[0]["run"]
    return {"data": first["data"], "weights": first["weights"], "seeds": [member["run"]["seed"] for member in members]}


def tables_of(content: dict) -> list[tuple[str, str]]:
    """(section, column or number) of each table that a comparison shows."""
    accuracies = [
        (title, column)
        for title, part in sections(content).items()
        for column in (["all"] if "all" in part["columns"] else part["columns"])
    ]
    return accuracies + [(title, MEASURES[title][0]) for title in measured(content) if title in MEASURES]


def lineage(kind: str, content: dict, title: str) -> tuple:
    """What a baseline of a section depends on beside its seed; fine-tuned ones on the augmentation too."""
    return *dependence(kind, content["run"] | {"seed": None}), content[title].get("augmentation")


def baselines(groups: Mapping[str, list[dict]], title: str) -> dict[tuple, str]:
    """Names of the baselines of a section by (kind, lineage)."""
    found: dict[tuple, str] = {}
    for kind, name in WHOSE.items():
        first: dict[tuple, str] = {}
        for group, members in groups.items():
            for content in members:
                if title in content:
                    first.setdefault(lineage(kind, content, title), group)
        found |= {(kind, of): name if len(first) == 1 else f"{name} of {group}" for of, group in first.items()}
    return found


def believed(cell: dict) -> bool:
    """Whether an accuracy's fits converged, or a measure's with more than half of its seeds."""
    return cell.get("converged", True) > 0.5


def spread(found: Sequence[tuple[float, bool]]) -> dict:
    """Mean and standard deviation of values, the latter None for one, and whether each of them converged."""
    values = [value for value, _ in found]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "seeds": len(values), "converged": all(sure for _, sure in found)}


def compared(found: dict) -> str:
    """A comparison as Markdown: what was compared, then a table for each section, mean and sd over training seeds."""
    lines = ["# Comparison", "", *(f"- {text}" for text in listed(found["runs"])), "", OVER_SEEDS]
    most = most_seeds(found)
    for title, table in found["tables"].items():
        rows = table["rows"]
        features = list(dict.fromkeys(layer for cells in rows.values() for layer in cells))
        lines += ["", f"## {title}", "", f"{said(table)}.", ""]
        lines += grid(
            ["", *features],
            [
                [name, *(mean_sd(cells.get(layer), table["percent"], most[name]) for layer in features)]
                for name, cells in rows.items()
            ],
        )
        if not all(cell["converged"] for cells in rows.values() for cell in cells.values()):
            lines += ["", STAR]
    return "\n".join(lines) + "\n"


STAR = "* not converged"
OVER_SEEDS = (
    "+-: standard deviation over training seeds, where a row is the mean of several runs that differ in nothing else; the "
    "spread over resamples, or over a measure's own seeds, stands in the report of each run."
)


def listed(runs: Mapping[str, dict]) -> list[str]:
    """Each group of runs in words."""
    return [
        f"{name}: {run['data']}, training seed{'s' * (len(run['seeds']) > 1)} {', '.join(map(str, run['seeds']))}, "
        f"{run['weights']} weights"
        for name, run in runs.items()
    ]


def said(table: dict) -> str:
    """What the numbers of a table are, and how they were measured."""
    chance = "" if table["chance"] is None else f", chance {100 * table['chance']:g}"
    words = " / ".join(table["protocols"])
    of = "" if words.lower().startswith(table["of"].lower()) else f"{table['of']}{chance}; "
    return f"{of}{words}"[0].upper() + f"{of}{words}"[1:]


def most_seeds(found: dict) -> dict[str, int]:
    """For each row of a comparison how many seeds there are, of the runs or, of a baseline, in its fullest cell."""
    most = {name: len(run["seeds"]) for name, run in found["runs"].items()}
    for table in found["tables"].values():
        for name, cells in table["rows"].items():
            most[name] = max(most.get(name, 1), *(cell["seeds"] for cell in cells.values()))
    return most


def mean_sd(cell: dict | None, percent: bool, most: int) -> str:
    """63.2 +- 0.4 in per cent, else 0.632 +- 0.004; "" for none; where not all of `most` seeds were measured, of how many."""
    if cell is None:
        return ""
    one = (lambda value: f"{100 * value:.1f}") if percent else number
    return one(cell["mean"]) + ("" if cell["sd"] is None else f" +- {one(cell['sd'])}") + note(cell, most)


def note(cell: dict, most: int) -> str:
    """What must be known of a cell beside its number."""
    few = f" ({cell['seeds']} of {most} seeds)" if cell["seeds"] < most else ""
    return "*" * (not cell["converged"]) + few
