"""Evaluate runs from their folders alone: python evaluate.py RUN [RUN ...] [--probes linear] [--data.root DIR]

Prints a table for each, beside a random encoder and raw pixels, and saves it as RUN/evaluation.json. Baselines that several
runs share are computed once.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dim import build, checkpoint
from dim.config import Config, UserError
from dim.data import Dataset
from dim.encoders import Encoder
from dim.evals import linear
from dim.evals.features import LAYERS, features, raw_pixels, set_statistics
from dim.reading import refuse, saved


def evaluate(folder: Path, names: list[str], root: str | None, known: dict) -> None:
    """Every named evaluator on the run in a folder. known: baselines of runs before it, shared where they are the same."""
    config = saved(folder)
    if root is not None:
        config = replace(config, data=replace(config.data, root=root))
    state = checkpoint.load(folder / "checkpoint.pt")
    data = build.dataset(config)
    if len(data.train) < SMALL:
        torch.set_num_threads(1)
    steps = config.train.epochs * (len(data.train) // config.train.batch_size)
    print(f"{folder}: {state['step']:,} of {steps:,} steps trained")
    results = {"run": config_facts(config, data, state)}
    for name in names:
        evaluator = build.EVALUATORS[name]
        key = (name, data.fingerprint, config.data.split_seed, config.seed, config.encoder, config.norm, config.precision)
        if key not in known:
            known[key] = evaluator(bar(baselines(config, data), name), data, config.data.split_seed)
        results[name] = evaluator(bar(trained(config, data, state), name), data, config.data.split_seed)
        results[name]["rows"] = known[key]["rows"] | results[name]["rows"]
        print(table(results[name]), headline(results[name]), sep="\n")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"saved as {path}")


def bar(rows: Iterator, evaluator: str) -> Iterator:
    """The rows, with a line that says which one is being worked on."""
    with tqdm(disable=None, bar_format="{desc} [{elapsed}]") as line:
        for row in rows:
            line.set_description_str(f"{evaluator}: {row[0]}")
            yield row


def config_facts(config: Config, data: Dataset, state: dict) -> dict:
    """What the numbers belong to."""
    return {
        "data": data.name,
        "data_sha256": data.fingerprint,
        "seed": config.seed,
        "steps": state["step"],
        "encoder": config.encoder.name,
        "versions": state["versions"],
    }


SMALL = 10_000  # images below which a second thread waits more than it works: the digits took 65 s with two, 16 s with one

Rows = Iterator[tuple[str, Tensor, Tensor]]  # name, training features, test features; one at a time since maps are large


def baselines(config: Config, data: Dataset) -> Rows:
    """Raw pixels, and the encoder before training: same seed and architecture, BatchNorm statistics set on training images."""
    pixels = raw_pixels(data, data.train.images.to(device())), raw_pixels(data, data.test.images.to(device()))
    if linear.PROTOCOLS.get(data.name, linear.Protocol()).unscaled:
        yield linear.UNSCALED, *pixels
    yield "raw pixels", *pixels
    encoder = first_encoder(config, data)
    yield from layers("random", set_statistics(encoder, data, data.train.images), data)


def trained(config: Config, data: Dataset, state: dict) -> Rows:
    """The trained encoder."""
    encoder = first_encoder(config, data)
    encoder.load_state_dict(state["encoder"])
    yield from layers("trained", encoder, data)


def layers(name: str, encoder: Encoder, data: Dataset) -> Rows:
    """Each layer of an encoder."""
    train, test = features(encoder, data, data.train.images), features(encoder, data, data.test.images)
    for layer in LAYERS:
        yield f"{name} {layer}", train.pop(layer), test.pop(layer)


def first_encoder(config: Config, data: Dataset) -> Encoder:
    """The run's encoder with its first weights."""
    return build.encoder(config, data.train.images.shape[1]).to(device()).to(memory_format=torch.channels_last)


def device() -> str:
    """Where features and probes are computed."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def table(result: dict) -> str:
    """A result as text: accuracy in per cent, a row for each kind of features, a column for each number of labels."""
    columns = result["labels"]
    titles = [f"{column} labels" if column == "all" else f"{column} a class" for column in columns]
    title = f"test accuracy in %, chance {100 * result['chance']:g}"
    lines = [*textwrap.wrap(f"{title}; {result['protocol']}", 96), "", " " * 22 + "".join(f"{title:>14}" for title in titles)]
    for name, row in result["rows"].items():
        cells = []
        for column in columns:
            cell = row[column]
            spread = "" if cell["sd"] is None else f" +- {100 * cell['sd']:.1f}"
            cells.append(f"{100 * cell['accuracy']:.1f}{spread}" + ("" if cell["converged"] else "*"))
        lines.append(f"{name:<22}" + "".join(f"{cell:>14}" for cell in cells))
    if any(not row[column]["converged"] for row in result["rows"].values() for column in columns):
        lines.append(f"* not converged: a gradient component above {linear.TOLERANCE:g}")
    return "\n".join(lines)


def headline(result: dict) -> str:
    """Trained fc against the best random layer and the best raw row, in one column, whoever wins."""
    column = "10" if "10" in result["labels"] else "all"
    score = {name: row[column]["accuracy"] for name, row in result["rows"].items()}
    rivals = [max((n for n in score if n.startswith(kind)), key=score.__getitem__) for kind in ("random", "raw")]
    trained = 100 * score["trained fc"]
    parts = [f"{name} {100 * score[name]:.1f} ({trained - 100 * score[name]:+.1f})" for name in rivals]
    verdict = "ahead of both" if trained > 100 * max(score[name] for name in rivals) else "not ahead of both"
    labels = "all labels" if column == "all" else f"{column} labels a class"
    return f"\nfc after training, {labels}: {trained:.1f}\nagainst {' and '.join(parts)}: {verdict}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--probes", nargs="+", choices=list(build.EVALUATORS), default=["linear"], help="evaluators")
    parser.add_argument("--data.root", dest="root", help="where the data set is now, if not where the run found it")
    parser.error = refuse  # type: ignore
    try:
        chosen = parser.parse_args(argv)
        known: dict = {}
        for folder in chosen.runs:
            evaluate(folder, chosen.probes, chosen.root, known)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was saved of the run being evaluated", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
