"""Few labels, and other images: the tables of results/few_labels.md, one JSON a point; what is there is not done again.

python benchmarks/few_labels.py RUN [--data DIR] [NAME ...]     a trained run; NAME: points or beginnings of them; without, all
python benchmarks/few_labels.py RUN linear --more RUN RUN       the linear probe of three runs that differ in their seed alone
python benchmarks/few_labels.py --table                         the tables of the points so far

Linear probe (`dim.evals.linear`, the numbers of evaluate.py --probes linear --labels-per-class 10 50 250): conv, fc and y of
the trained encoder and of its first weights, and raw pixels; one JSON for each pretraining seed.

Fine-tuning (`dim.evals.finetune`): 10 and 250 labels a class, the run's encoder with no loss on unlabelled images and with
each one, and its first weights without; three seeds. Adaptation (`dim.evals.adapt`): a classifier fine-tuned on all labels of
the data as they are, moved to noise and to low contrast, with as many images of each class and with unequal classes, by the
information loss with two weights of its diversity term, at two rates; three seeds, each with its own classifier
(RUN/few_labels).

The same command continues. In fine-tuning and adaptation a seed means a draw of labels, a head and an order: the pretrained
encoder is RUN's, so the spread is not that of pretraining. That of the linear probe is, where several runs are given.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs where nothing is installed

from records import TRAINED, commit, noted, processor  # beside this file

import evaluate
from dim import build, checkpoint, report
from dim.config import Config, UserError, built, flat
from dim.data import Dataset
from dim.evals.adapt import adapt, corrupted, unbalanced
from dim.evals.features import LAYERS
from dim.evals.finetune import LOSSES as UNLABELLED
from dim.evals.finetune import Classifier, FineTuning, finetune, finetuned, first_classifier
from dim.evals.linear import LINEAR
from dim.evals.protocol import columns_for, probe
from dim.evals.sections import Features, places
from dim.reading import saved
from dim.views import VIEWS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "few_labels"
SEEDS = (0, 1, 2)
LABELS, FINE_LABELS = (10, 50, 250), (10, 250)
LOSSES = {"none": {}, **{name: {name: 1.0} for name in UNLABELLED}}
DIVERSITIES, RATES = (0.1, 1.0), ("1e-4", "1e-5")

PROBED = {  # name, the JSON's with the seed of the run behind it: name and kind of the features, layer, labels a class
    f"linear_{kind}_{layer}_{labels}": (row, kind, layer, labels) for row, kind, layer in places(LAYERS) for labels in LABELS
}
FINETUNING = {  # name: encoder, labels a class, losses, seed
    f"finetune_{encoder}_{labels}_{loss}_seed{seed}": (encoder, labels, loss, seed)
    for encoder, losses in (("trained", LOSSES), ("random", ("none",)))
    for labels in FINE_LABELS
    for loss in losses
    for seed in SEEDS
}
ADAPTATION = {  # name: corruption, classes, weight of diversity, rate, seed
    f"adapt_{kind}_{classes}_{diversity:g}_{rate}_seed{seed}": (kind, classes, diversity, float(rate), seed)
    for kind in ("noise", "contrast")
    for classes in ("balanced", "unbalanced")
    for diversity in DIVERSITIES
    for rate in RATES
    for seed in SEEDS
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("names", nargs="*", metavar="NAME", help="points, or beginnings of their names; without, all")
    parser.add_argument("--data", help="--data.root, where it is not the run's")
    parser.add_argument("--steps", type=int, help="fewer steps, to try it; needs --results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are")
    parser.add_argument("--table", action="store_true", help="print the tables and do nothing")
    parser.add_argument("--more", nargs="+", type=Path, default=[], metavar="RUN", help="linear probe: runs of other seeds")
    chosen = parser.parse_intermixed_args()
    if chosen.steps and chosen.results == RESULTS:
        parser.error("--steps changes the protocol: give --results another folder")
    points = [*PROBED, *FINETUNING, *ADAPTATION]
    if unknown := [name for name in chosen.names if not any(point.startswith(name) for point in points)]:
        parser.error(f"no point begins with {', '.join(unknown)}; they are {', '.join(points[:2])}, .., {points[-1]}")
    if not chosen.table:
        if chosen.run is None:
            parser.error("give the folder of a trained run, or --table")
        wanted = [point for point in points if not chosen.names or point.startswith(tuple(chosen.names))]
        try:
            runs = [Run(folder, chosen.data) for folder in (chosen.run, *chosen.more)]
            differ_in_seed(runs)
            measure(runs, wanted, chosen.results, {"steps": chosen.steps} if chosen.steps else {})
        except UserError as error:
            parser.error(str(error))
    print(tables(chosen.results))
    return 0


class Run:
    """A trained run in its folder: what is asked of it is read once."""

    def __init__(self, folder: Path, root: str | None):
        """root: data.root where it is not the run's."""
        self.folder, self.config = folder, saved(folder)
        if root is not None:
            self.config = built(flat(self.config) | {"data.root": root})
        self.state = checkpoint.load(folder)

    @cached_property
    def data(self) -> Dataset:
        data = build.dataset(self.config).with_labels()
        evaluate.fits(self.folder, self.state["data"], data)
        return data

    @cached_property
    def facts(self) -> dict:
        """What a point belongs to."""
        facts = {"run": self.folder.name, "steps": self.state["step"], "data": self.data.name, "seed": self.config.seed}
        facts |= {"encoder": self.config.encoder.name, "weights_sha256": report.digest(self.state["encoder"])}
        facts |= {"data_sha256": self.data.fingerprint, "split_seed": self.config.data.split_seed}
        return facts | {"settings": list(report.of_keys(flat(self.config), "encoder.", "norm", "precision"))}


def differ_in_seed(runs: Sequence[Run]) -> None:
    """UserError where runs differ in something else than their seeds, or not in these: no spread over pretraining seeds."""
    first = settings(runs[0])
    for run in runs[1:]:
        if other := [key for key, value in settings(run).items() if value != first.get(key)]:
            raise UserError(
                f"{run.folder} and {runs[0].folder} differ in {', '.join(other[:3])}: give runs of other seeds alone"
            )
    if len({run.config.seed for run in runs}) < len(runs):
        raise UserError(f"the runs have the seeds {', '.join(str(run.config.seed) for run in runs)}: give one of each seed")


def settings(run: Run) -> dict:
    """All that makes a run beside its seed and its place."""
    found = {key: value for key, value in flat(run.config).items() if not key.startswith(("run.", "data.root", "seed"))}
    return found | {"trained steps": run.state["step"]}


def measure(runs: Sequence[Run], wanted: Sequence[str], results: Path, short: dict) -> None:
    """Every wanted point that is not there yet; points of fine-tuning and adaptation belong to the first run."""
    for run in runs:
        for name in (name for name in wanted if name in PROBED):
            kind = PROBED[name][1]
            seed = "" if kind == "raw" else f"_seed{run.config.seed}"  # pixels have no seed
            point(f"{name}{seed}", run, name, results, {key: run.facts[key] for key in DEPENDS.get(kind, run.facts)}, short)
    features_of.cache_clear()
    for name in (name for name in wanted if name not in PROBED):
        point(name, runs[0], name, results, runs[0].facts | {f"short {key}": value for key, value in short.items()}, short)


IMAGES = ("data", "data_sha256", "split_seed")
DEPENDS = {"raw": IMAGES, "random": (*IMAGES, "seed", "encoder", "settings")}  # of the facts; else all


def point(file: str, run: Run, name: str, results: Path, facts: dict, short: dict) -> None:
    """One point, unless it is there; facts: what it depends on."""
    path = results / f"{file}.json"
    if path.exists():
        if (before := json.loads(path.read_text())["run"]) != facts:
            raise UserError(f"{path} is of another run, {before}: give --results another folder")
        return
    print(file, flush=True)
    begun, now = time.perf_counter(), commit()
    if name in PROBED:
        found = {"result": probed(name, run)}
    elif name in FINETUNING:
        found = {"result": fine(name, run, short)}
    else:
        found = moved(name, run, short)
    found = {
        "run": facts,
        "command": f"python benchmarks/few_labels.py RUN --data DIR {name}",
        "training_commit": ", ".join(noted(run.folder / TRAINED)) or "unknown",
        "commit": now,
        "hardware": hardware(),
        "seconds": round(time.perf_counter() - begun),
        **found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_json(path, found)


def probed(name: str, run: Run) -> dict:
    """One point of the linear probe: the mean over draws of labels, their number and the standard deviation over them."""
    row, kind, layer, labels = PROBED[name]
    split_seed = run.config.data.split_seed
    columns = replace(columns_for(run.data, (labels,), split_seed, resampled=False), everything=False)
    pair = features_of(run, kind).standardised(layer)
    return probe(LINEAR, row, *pair, run.data, split_seed, columns)[str(labels)] | {"draws": columns.draws}


@lru_cache(maxsize=1)  # those of one kind at a time: they are large
def features_of(run: Run, kind: str) -> Features:
    """Features of all layers, or pixels, as evaluate.py makes them."""
    encoder = evaluate.trained_encoder(run.config, run.data.shape, run.state, "last", run.folder)
    layers = {"x"} if kind == "raw" else set(LAYERS)
    return evaluate.features_of(kind, run.config, run.data, encoder, layers, run.state["step"])


def fine(name: str, run: Run, short: dict) -> dict:
    """One point of fine-tuning; labelled images are augmented as `view` says."""
    kind, labels, loss, seed = FINETUNING[name]
    encoder = first_encoder(run.config, run.data, run.state if kind == "trained" else None)
    return finetune(encoder, run.data, labels, view(run.config, run.data), seed=seed, losses=LOSSES[loss], **short)


def moved(name: str, run: Run, short: dict) -> dict:
    """One point of adaptation, and the commit at which its classifier was trained."""
    kind, classes, diversity, lr, seed = ADAPTATION[name]
    how = FineTuning(seed=seed, **short)
    folder = run.folder / "few_labels" / run.facts["weights_sha256"][:12]
    model, made_at = source(run.config, run.data, run.state, how, folder)
    target = corrupted(run.data, kind, seed)
    if classes == "unbalanced":
        target = unbalanced(target, seed=seed)
    return {"source_commit": made_at, "result": adapt(model, target, diversity=diversity, lr=lr, seed=seed, **short)}


def source(config: Config, data: Dataset, state: dict, how: FineTuning, folder: Path) -> tuple[Classifier, str]:
    """The classifier to be adapted, the run's encoder fine-tuned on all labels, and the commit that made it; made once for a
    seed and kept."""
    path = folder / f"source_seed{how.seed}_{how.steps}_steps.pt"
    encoder = first_encoder(config, data, state)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        now = commit()
        made = finetuned(encoder, data, None, view(config, data), how)
        path.with_suffix(".txt").write_text(now)
        with checkpoint.replacing(path) as file:
            torch.save(made.state_dict(), file)
    model = first_classifier(encoder, data, how)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), ", ".join(noted(path.with_suffix(".txt"))) or "unknown"


def first_encoder(config: Config, data: Dataset, state: dict | None) -> nn.Module:
    """The run's encoder, trained, or with its first weights where no state is given."""
    encoder = build.encoder(config, data.shape)
    if state is not None:
        encoder.load_state_dict(state["encoder"])
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


def view(config: Config, data: Dataset):
    """The augmentation of labelled images and of consistency's: the run's own where it has one, else crops and flips."""
    if config.views.kind != "none":
        return build.views(config, data)
    return VIEWS["crop_flip"](config.views, data.shape[-1], data.fitting)


def hardware() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of {processor()}"


def tables(results: Path) -> str:
    """The points so far as Markdown: test accuracy in %, mean and standard deviation over the seeds that are there."""
    lines = heading("linear probe", LABELS)
    for row, kind, layer in places(LAYERS):
        names = [f"linear_{kind}_{layer}_{labels}" for labels in LABELS]
        lines.append(f"| {row} | {' | '.join(over_runs(results, name) for name in names)} |")
    lines += ["", *heading("fine-tuned", FINE_LABELS)]
    rows = [("random", "none"), *(("trained", loss) for loss in LOSSES)]
    for encoder, loss in rows:
        cells = []
        for labels in FINE_LABELS:
            names = [f"finetune_{encoder}_{labels}_{loss}_seed{seed}" for seed in SEEDS]
            cells.append(cell([found["accuracy"] for found in read(results, names)]))
        lines.append(f"| {encoder} encoder, " + (loss if loss != "none" else "labels only") + f" | {' | '.join(cells)} |")
    kinds = ("before", "statistics", "after")
    lines += ["", "| adapted to | diversity | rate | " + " | ".join(kinds) + " | classes after |", "|---" * 7 + "|"]
    for kind in ("noise", "contrast"):
        for classes in ("balanced", "unbalanced"):
            for diversity, rate in itertools.product(DIVERSITIES, RATES):
                found = read(results, [f"adapt_{kind}_{classes}_{diversity:g}_{rate}_seed{seed}" for seed in SEEDS])
                cells = [cell([each[k]["accuracy"] for each in found]) for k in kinds]
                cells.append(cell([each["after"]["class_accuracy"] for each in found]))
                lines.append(f"| {kind}, {classes} | {diversity:g} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def heading(what: str, labels: Sequence[int]) -> list[str]:
    """The first two lines of a table with a column for each number of labels."""
    return [f"| {what} | {' | '.join(f'{each} a class' for each in labels)} |", "|---|" + "---|" * len(labels)]


def over_runs(results: Path, name: str) -> str:
    """Mean and standard deviation of a point of the linear probe: over the runs that are there, or over draws of labels where
    there is one; the cell says which."""
    found = read(results, [name, *sorted(path.stem for path in results.glob(f"{name}_seed*.json"))])
    if not found:
        return ""
    scores = [100 * each["accuracy"] for each in found]
    star = "*" * (not all(each["converged"] for each in found))
    if len(found) == 1:
        return f"{scores[0]:.1f} +- {100 * found[0]['sd']:.1f} ({found[0]['draws']} draws){star}"
    return f"{statistics.mean(scores):.1f} +- {statistics.stdev(scores):.1f} ({len(scores)} pretraining seeds){star}"


def read(results: Path, names: list[str]) -> list[dict]:
    """The results of the points that are there."""
    paths = [results / f"{name}.json" for name in names]
    return [json.loads(path.read_text())["result"] for path in paths if path.exists()]


def cell(scores: list[float]) -> str:
    """Accuracies as mean +- standard deviation in %; fewer than all seeds say how many."""
    if not scores:
        return ""
    spread = f" +- {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}" + (
        f" ({len(scores)} seed{'s' * (len(scores) > 1)})" if len(scores) < len(SEEDS) else ""
    )


if __name__ == "__main__":
    sys.exit(main())
