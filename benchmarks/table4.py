"""The paper's Table 4 in our form: four runs on CIFAR-10 measured by everything, the records of results/table4.md.

python benchmarks/table4.py --data DIR [--runs runs/records]     one thread; the same command continues
python benchmarks/table4.py --table                              the tables of what is there so far

The runs are those of records.py, trained where they are gone. Each stage is one evaluate.py of all four, so that they share
raw pixels and random encoders; after each the reports are copied to results/table4/, from where a retrained run goes on.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs where nothing is installed

# beside this file
from records import CIFAR10, EVALUATED, RESULTS, ROOT, TRAINED, commit, note_commit, noted, processor, run, train

from dim.checkpoint import save_json

RUNS = ("paper_global", "paper_infonce", "paper_local_global", "recommended_seed1")
STAGES = {
    "clean": "--probes svm mlp --measures mine ndm",
    "decoder": "--measures reconstruction",
    "paper": "--probes mlp --protocol paper --layers y",
}
PLACE = RESULTS / "table4"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; without, all")
    parser.add_argument("--data", default="data", help="--data.root of the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "records", help="where the runs are kept meanwhile")
    parser.add_argument("--table", action="store_true", help="print the tables and do nothing")
    chosen = parser.parse_intermixed_args()
    if unknown := set(chosen.stages) - set(STAGES):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    if not chosen.table:
        measure(chosen.stages or list(STAGES), ["--data.root", str(Path(chosen.data).resolve())], chosen.runs / "cifar10")
    print(tables())
    return 0


def measure(stages: list[str], where: list[str], runs: Path) -> None:
    """Train what is missing, then evaluate the runs stage by stage; reports that are there are continued."""
    folders = [runs / name for name in RUNS]
    for name, folder in zip(RUNS, folders, strict=True):
        train(folder, [*CIFAR10[name][1].split(), *where])
        if (PLACE / f"{name}.json").exists() and not (folder / "report.json").exists():
            shutil.copy(PLACE / f"{name}.json", folder / "report.json")  # evaluate.py drops it where the weights are others
    PLACE.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        for folder in folders:
            note_commit(folder / EVALUATED)
        before, now = os.times(), commit()
        run(["evaluate.py", *map(str, folders), *STAGES[stage].split(), *where])
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        for name, folder in zip(RUNS, folders, strict=True):
            save_json(PLACE / f"{name}.json", with_commits(folder))
        log = PLACE / "stages.jsonl"
        row = {"stage": stage, "words": STAGES[stage], "cpu_seconds": round(used), "commit": now}
        row |= {"hardware": f"one thread of {processor()}"}
        log.write_text((log.read_text() if log.exists() else "") + json.dumps(row) + "\n")


def with_commits(folder: Path) -> dict:
    """The report of a run with the commits at which it was trained and, in all stages so far, evaluated: those of stages before
    the run was trained again stand in the report that was copied back."""
    found = json.loads((folder / "report.json").read_text())
    evaluated = [*found["run"].get("evaluation_commits", []), *noted(folder / EVALUATED)]
    found["run"] |= {"training_commits": noted(folder / TRAINED), "evaluation_commits": list(dict.fromkeys(evaluated))}
    return found


def tables() -> str:
    """The reports so far as Markdown: a row for each run and for its random encoder, and the seconds of each part."""
    reports = {name: json.loads(path.read_text()) for name in RUNS if (path := PLACE / f"{name}.json").exists()}
    return "\n".join([*rows(reports), *raw(reports), "", *seconds(reports)])


HEAD = {  # column: section, features, key
    **{f"svm {layer}": ("svm", layer, "resamples") for layer in ("conv", "fc", "y")},
    **{f"mlp {layer}": ("mlp", layer, "all") for layer in ("conv", "fc", "y")},
    "MS-SSIM": ("reconstruction", "y", "ms_ssim"),
    "MINE I(x; y)": ("mine", "x:y", "mi_nats"),
    "NDM": ("ndm", "y", "total_correlation_nats"),
    "NDM, squashed": ("ndm", "y, squashed", "total_correlation_nats"),
    "paper's mlp y": ("mlp, the paper's protocol", "y", "all"),
}


def rows(reports: dict[str, dict]) -> list[str]:
    lines = [f"| run | {' | '.join(HEAD)} |", "|---" * (len(HEAD) + 1) + "|"]
    for name, report in reports.items():
        random = f"random encoder, seed {report['run']['seed']}"
        for kind, title in (("trained", CIFAR10[name][0] + f", seed {report['run']['seed']}"), ("random", random)):
            line = f"| {title} | {' | '.join(cell(report, kind, *where) for where in HEAD.values())} |"
            if line not in lines:
                lines.append(line)
    return lines


def raw(reports: dict[str, dict]) -> list[str]:
    """Raw pixels in words: they are the same for all runs and have no layers."""
    parts = {"svm": ("svm", "resamples"), "mlp": ("mlp", "all"), "paper's mlp": ("mlp, the paper's protocol", "all")}
    report = next(iter(reports.values()), {})
    found = {name: cell(report, "raw", section, "pixels", key) for name, (section, key) in parts.items()}
    words = ", ".join(f"{name} {text}" for name, text in found.items() if text)
    return ["", f"Raw pixels: {words}."] * bool(words)


def cell(report: dict, kind: str, section: str, features: str, key: str) -> str:
    """One number with its standard deviation, "" where it is not there; a star: not converged."""
    row = report.get(section, {"rows": {}})["rows"].get(f"{kind} {features}")
    if row is None:
        return ""
    if section.startswith(("svm", "mlp")):
        found = row[key]
        spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.2f}"
        return f"{100 * found['accuracy']:.2f}{spread}" + "*" * (not found["converged"])
    spread = f" ± {row['sd']:.2f}" if row.get("sd") is not None else ""
    return f"{row[key]:.2f}{spread}" + "*" * (row.get("converged", 1.0) <= 0.5)


def seconds(reports: dict[str, dict]) -> list[str]:
    """Wall-clock seconds of each section, for a run's own rows and for those of its random encoder with raw pixels."""
    asked = list(dict.fromkeys(section for section, _, _ in HEAD.values()))
    sections = [section for section in asked if any(section in report for report in reports.values())]
    lines = [f"| seconds | {' | '.join(sections)} |", "|---" * (len(sections) + 1) + "|"]
    for name, report in reports.items():
        for title, kinds in ((name, ("trained",)), (f"{name}, random and raw", ("random", "raw"))):
            parts = [took(report.get(section, {"rows": {}})["rows"], kinds) for section in sections]
            lines.append(f"| {title} | {' | '.join(f'{part:.0f}' for part in parts)} |")
    return lines


def took(part: dict, kinds: tuple[str, ...]) -> float:
    """Seconds of the rows of some kinds: of a measure, or of a probe's columns."""
    found = [row for name, row in part.items() if name.startswith(kinds)]
    return sum(row["seconds"] if "seconds" in row else sum(column["seconds"] for column in row.values()) for row in found)


if __name__ == "__main__":
    sys.exit(main())
