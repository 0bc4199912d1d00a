"""Evaluate runs from their folders alone: python evaluate.py RUN [RUN ...] [--probes linear] [--figures curves] [--export FILE]

Probes print a table for each run, beside a random encoder and raw pixels, and save it as RUN/evaluation.json; baselines that
several runs share are computed once. --data.KEY VALUE replaces a key of the run's data, such as --data.root DIR.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dim import build, checkpoint, export
from dim.average import Average
from dim.config import Config, UserError, built, check, flat, leaves
from dim.data import Dataset, keys
from dim.evals import linear
from dim.evals.features import LAYERS, features, raw_pixels, set_statistics
from dim.figures import FIGURES
from dim.reading import command_line, nearest, one_line, refuse, saved, typed


def evaluate(folder: Path, chosen: argparse.Namespace, config: Config, known: dict) -> None:
    """Everything asked of the run in a folder. known: baselines of runs before it, shared where they are the same."""
    state = checkpoint.load(folder / "checkpoint.pt")
    if chosen.export is not None:
        encoder = trained_encoder(config, state["data"]["shape"], state, chosen.weights, folder)
        save = export.save_onnx if chosen.export.suffix == ".onnx" else export.save_encoder
        save(chosen.export, encoder, config, state["data"], state["step"])
        print(f"{folder}: {state['step']:,} steps trained, saved as {chosen.export}")
    if not (chosen.probes or chosen.features or chosen.figures):
        return  # an export needs no data
    data = build.dataset(config)
    print(f"{folder}: {state['step']:,} of {state['steps']:,} steps trained")
    fits(folder, state["data"], data)
    torch.set_num_threads(1 if len(data.pretraining) < SMALL else THREADS)
    encoder = trained_encoder(config, data.shape, state, chosen.weights, folder)
    if chosen.probes:
        probe(folder, chosen, config, data.with_labels(), encoder, state, known)
    if chosen.features is not None:
        splits = (("train", data.train), ("test", data.test), ("unlabelled", data.unlabelled))
        parts = {name: images for name, images in splits if images is not None and len(images)}
        export.save_features(chosen.features, parts, encoder, data, chosen.layers)
        print(f"saved as {chosen.features}")
    for name in chosen.figures:
        for path in FIGURES[name](folder, config, data, state):
            print(f"saved as {path}")


def probe(
    folder: Path,
    chosen: argparse.Namespace,
    config: Config,
    data: Dataset,
    encoder: nn.Module,
    state: dict,
    known: dict,
) -> None:
    """Every named probe, as tables and as evaluation.json in the run's folder."""
    results = {"run": config_facts(config, data, state) | {"weights": chosen.weights}}
    if seen := len(set(keys(data.test).tolist()) & set(state["data"]["files"].tolist())):
        results["run"]["test images seen in training"] = seen
        print(f"warning: {seen} of {len(data.test)} test images trained the encoder, without their labels", file=sys.stderr)
    for name in chosen.probes:
        evaluator = build.EVALUATORS[name]
        c = config  # all that a baseline depends on
        key = (name, data.fingerprint, data.shape, c.data.fit, c.data.split_seed, c.seed, c.encoder, c.norm, c.precision)
        if key not in known:
            known[key] = evaluator(bar(baselines(config, data), name), data, config.data.split_seed)
        results[name] = evaluator(bar(layers("trained", encoder, data), name), data, config.data.split_seed)
        results[name]["rows"] = known[key]["rows"] | results[name]["rows"]
        print(table(results[name]), headline(results[name]), sep="\n")
    path = folder / ("evaluation.json" if chosen.weights == "last" else "evaluation_average.json")
    checkpoint.save_json(path, results)
    print(f"saved as {path}")


def fits(folder: Path, trained: dict, data: Dataset) -> None:
    """UserError where images of the data set are not what the run's encoder takes."""
    for key, now in (("shape", list(data.shape)), ("levels", data.levels), ("signed", data.signed)):
        if trained[key] != now:
            raise UserError(f"{folder} was trained on images with {key} {trained[key]}, those of {data.name} have {key} {now}")


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


THREADS = torch.get_num_threads()
SMALL = 10_000  # images below which a second thread waits more than it works: the digits took 65 s with two, 16 s with one

Rows = Iterator[tuple[str, Tensor, Tensor]]  # name, training features, test features; one at a time since maps are large


def baselines(config: Config, data: Dataset) -> Rows:
    """Raw pixels, and the encoder before training: same seed and architecture, BatchNorm statistics set on training images."""
    pixels = raw_pixels(data, data.train, device()), raw_pixels(data, data.test, device())
    if linear.PROTOCOLS.get(data.name, linear.Protocol()).unscaled:
        yield linear.UNSCALED, *pixels
    yield "raw pixels", *pixels
    encoder = first_encoder(config, data.shape)
    yield from layers("random", set_statistics(encoder, data, data.train), data)


def trained_encoder(config: Config, shape: tuple[int, int, int], state: dict, weights: str, folder: Path) -> nn.Module:
    """The run's encoder with its last weights, or with their average where it kept one."""
    encoder = first_encoder(config, shape)
    if weights == "average":
        if "average" not in state:
            raise UserError(
                f"{folder} kept no average of its weights: train it with --train.average 0.999, or take --weights last"
            )
        average = Average(encoder, config.train.average)
        average.load_state_dict(state["average"])
        return average.module
    encoder.load_state_dict(state["encoder"])
    return encoder


def layers(name: str, encoder: nn.Module, data: Dataset) -> Rows:
    """Each layer of an encoder."""
    train, test = features(encoder, data, data.train), features(encoder, data, data.test)
    for layer in LAYERS:
        yield f"{name} {layer}", train.pop(layer), test.pop(layer)


def first_encoder(config: Config, shape: tuple[int, int, int]) -> nn.Module:
    """The run's encoder with its first weights, for images of a shape."""
    return build.encoder(config, shape).to(device()).to(memory_format=torch.channels_last)


def device() -> str:
    """Where features and probes are computed."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def table(result: dict) -> str:
    """A result as text: accuracy in per cent, a row for each kind of features, a column for each number of labels."""
    columns = result["labels"]
    titles = [{"all": "all labels", "folds": "folds"}.get(column, f"{column} a class") for column in columns]
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
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--probes", nargs="+", choices=list(build.EVALUATORS), help="evaluators; linear where nothing else is asked for either"
    )
    parser.add_argument("--weights", choices=["last", "average"], default="last", help="the last, or the run's train.average")
    parser.add_argument("--figures", nargs="+", choices=list(FIGURES), default=[], help="pictures, as PNG files in RUN/figures")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the encoder: .safetensors for dim.load_encoder, .onnx"
    )
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="write the features of all images")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="of --features")
    parser.error = refuse  # type: ignore
    try:
        chosen, rest = parser.parse_known_args(argv)
        check_files(chosen)
        if not (chosen.probes or chosen.figures or chosen.export or chosen.features):
            chosen.probes = ["linear"]
        replaced = data_keys(rest)
        known: dict = {}
        for folder in chosen.runs:
            config = built(flat(saved(folder)) | replaced)
            check(config)
            evaluate(folder, chosen, config, known)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError, OSError) as error:
        print(f"error: the machine: {one_line(str(error)) or 'out of memory'}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("stopped; nothing was saved of the run being evaluated", file=sys.stderr)
        return 130
    return 0


def data_keys(words: list[str]) -> dict:
    """{"data.root": "..", ..} of the words that are no options of this script; UserError for other keys."""
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and not key.startswith("data."):
            options = ["probes", "weights", "figures", "export", "features", "layers"]
            why = "belongs to training; here only --data.KEY can be replaced" if key in leaves() else "is no option"
            raise UserError(f"--{key} {why}{nearest(key, options)}")
    return {key: typed(key, value) for key, value in command_line(words).items()}


def check_files(chosen: argparse.Namespace) -> None:
    """UserError where what is asked for cannot be, said before anything is computed."""
    if chosen.figures and chosen.weights == "average":
        raise UserError("--figures show the last weights: leave out --weights average")
    for flag, path, suffixes in (
        ("--export", chosen.export, (".safetensors", ".onnx")),
        ("--features", chosen.features, (".npz",)),
    ):
        if path is not None and path.suffix not in suffixes:
            raise UserError(f"{flag} is {path}: its name must end in {' or '.join(suffixes)}")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{flag} is {path}: {path.parent} is no folder")
        if path is not None and len(chosen.runs) > 1:
            raise UserError(f"{flag} names one file, but {len(chosen.runs)} runs are given: give one run")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
