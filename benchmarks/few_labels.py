"""Few labels, and other images: the tables of results/few_labels.md, one JSON a point; what is there is not done again.

python benchmarks/few_labels.py RUN [--data DIR] [NAME ...]     a trained run; NAME: points or beginnings of them; without, all
python benchmarks/few_labels.py --table                         the tables of the points so far

Fine-tuning (`dim.evals.finetune`): 10, 50 and 250 labels a class, the run's encoder with no loss on unlabelled images and with
each one, and its first weights without; three seeds. Adaptation (`dim.evals.adapt`): a classifier fine-tuned on all labels of
the data as they are, moved to noise and to low contrast, with as many images of each class and with unequal classes, by the
information loss with two weights of its diversity term; three seeds, each with a classifier of its own (RUN/few_labels).

The same command continues. A seed means a draw of labels, a head and an order: the pretrained encoder is the same, so the
spread is not that of pretraining.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs where nothing is installed

from records import processor  # beside this file

from dim import build, checkpoint, report
from dim.config import Config, UserError, built, flat
from dim.data import Dataset
from dim.evals.adapt import adapt, corrupted, unbalanced
from dim.evals.finetune import Classifier, FineTuning, finetune, finetuned, first_classifier
from dim.reading import saved
from dim.views import VIEWS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "few_labels"
SEEDS = (0, 1, 2)
LABELS = (10, 50, 250)
LOSSES = {"none": {}, **{name: {name: 1.0} for name in ("information", "pseudo", "consistency")}}
DIVERSITIES = (0.1, 1.0)

FINETUNING = {  # name: encoder, labels a class, losses, seed
    f"finetune_{encoder}_{labels}_{loss}_seed{seed}": (encoder, labels, loss, seed)
    for encoder, losses in (("trained", LOSSES), ("random", ("none",)))
    for labels in LABELS
    for loss in losses
    for seed in SEEDS
}
ADAPTATION = {  # name: corruption, classes, weight of diversity, seed
    f"adapt_{kind}_{classes}_{diversity:g}_seed{seed}": (kind, classes, diversity, seed)
    for kind in ("noise", "contrast")
    for classes in ("balanced", "unbalanced")
    for diversity in DIVERSITIES
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
    chosen = parser.parse_intermixed_args()
    if chosen.steps and chosen.results == RESULTS:
        parser.error("--steps changes the protocol: give --results another folder")
    points = [*FINETUNING, *ADAPTATION]
    if unknown := [name for name in chosen.names if not any(point.startswith(name) for point in points)]:
        parser.error(f"no point begins with {', '.join(unknown)}; they are {', '.join(points[:2])}, .., {points[-1]}")
    if not chosen.table:
        if chosen.run is None:
            parser.error("give the folder of a trained run, or --table")
        wanted = [point for point in points if not chosen.names or point.startswith(tuple(chosen.names))]
        try:
            measure(chosen.run, chosen.data, wanted, chosen.results, chosen.steps)
        except UserError as error:
            parser.error(str(error))
    print(tables(chosen.results))
    return 0


def measure(folder: Path, root: str | None, wanted: list[str], results: Path, steps: int | None) -> None:
    """Every wanted point that is not there yet."""
    config = saved(folder)
    if root is not None:
        config = built(flat(config) | {"data.root": root})
    data = build.dataset(config).with_labels()
    state = checkpoint.load(folder)
    facts = {"run": folder.name, "steps": state["step"], "data": data.name, "seed": config.seed, "encoder": config.encoder.name}
    facts |= {"weights_sha256": report.digest(state["encoder"]), "data_sha256": data.fingerprint}
    short = {"steps": steps} if steps else {}
    for name in wanted:
        path = results / f"{name}.json"
        if path.exists():
            if (before := json.loads(path.read_text())["run"]) != facts:
                raise UserError(f"{path} is of another run, {before}: give --results another folder")
            continue
        print(name, flush=True)
        begun = time.perf_counter()
        if name in FINETUNING:
            result = fine(name, config, data, state, short)
        else:
            result = moved(name, config, data, state, short, folder / "few_labels" / facts["weights_sha256"][:12])
        found = {
            "run": facts,
            "command": f"python benchmarks/few_labels.py RUN --data DIR {name}",
            "commit": commit(),
            "hardware": hardware(),
            "seconds": round(time.perf_counter() - begun),
            "result": result,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_json(path, found)


def fine(name: str, config: Config, data: Dataset, state: dict, short: dict) -> dict:
    """One point of fine-tuning; labelled images are augmented as `view` says."""
    kind, labels, loss, seed = FINETUNING[name]
    encoder = first_encoder(config, data, state if kind == "trained" else None)
    return finetune(encoder, data, labels, view(config, data), seed=seed, losses=LOSSES[loss], **short)


def moved(name: str, config: Config, data: Dataset, state: dict, short: dict, folder: Path) -> dict:
    """One point of adaptation."""
    kind, classes, diversity, seed = ADAPTATION[name]
    model = source(config, data, state, FineTuning(seed=seed, **short), folder)
    target = corrupted(data, kind, seed)
    if classes == "unbalanced":
        target = unbalanced(target, seed=seed)
    return adapt(model, target, diversity=diversity, seed=seed, **short)


def source(config: Config, data: Dataset, state: dict, how: FineTuning, folder: Path) -> Classifier:
    """The classifier to be adapted: the run's encoder fine-tuned on all labels; made once for a seed and kept."""
    path = folder / f"source_seed{how.seed}_{how.steps}_steps.pt"
    encoder = first_encoder(config, data, state)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = finetuned(encoder, data, None, view(config, data), how)
        with checkpoint.replacing(path) as file:
            torch.save(made.state_dict(), file)
    model = first_classifier(encoder, data, how)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


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


def commit() -> str:
    """The commit that this file stands at, "" outside a checkout."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def hardware() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of {processor()}"


def tables(results: Path) -> str:
    """The points so far as Markdown: test accuracy in %, mean and standard deviation over the seeds that are there."""
    lines = ["| fine-tuned | " + " | ".join(f"{labels} a class" for labels in LABELS) + " |", "|---|" + "---|" * len(LABELS)]
    rows = [("random", "none"), *(("trained", loss) for loss in LOSSES)]
    for encoder, loss in rows:
        cells = []
        for labels in LABELS:
            names = [f"finetune_{encoder}_{labels}_{loss}_seed{seed}" for seed in SEEDS]
            cells.append(cell([found["accuracy"] for found in read(results, names)]))
        lines.append(f"| {encoder} encoder, " + (loss if loss != "none" else "labels only") + f" | {' | '.join(cells)} |")
    kinds = ("before", "statistics", "after")
    lines += ["", "| adapted to | diversity | " + " | ".join(kinds) + " | classes after |", "|---|---|---|---|---|---|"]
    for kind in ("noise", "contrast"):
        for classes in ("balanced", "unbalanced"):
            for diversity in DIVERSITIES:
                found = read(results, [f"adapt_{kind}_{classes}_{diversity:g}_seed{seed}" for seed in SEEDS])
                cells = [cell([each[k]["accuracy"] for each in found]) for k in kinds]
                cells.append(cell([each["after"]["class_accuracy"] for each in found]))
                lines.append(f"| {kind}, {classes} | {diversity:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read(results: Path, names: list[str]) -> list[dict]:
    """The results of the points that are there."""
    paths = [results / f"{name}.json" for name in names]
    return [json.loads(path.read_text())["result"] for path in paths if path.exists()]


def cell(scores: list[float]) -> str:
    """Accuracies as mean +- standard deviation in %; fewer than all seeds say how many."""
    if not scores:
        return ""
    spread = f" +- {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}" + (f" ({len(scores)} seeds)" if len(scores) < len(SEEDS) else "")


if __name__ == "__main__":
    sys.exit(main())
