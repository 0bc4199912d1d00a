"""Evaluate runs from their folders alone: python evaluate.py RUN [RUN ...] [--probes linear svm mlp knn] [--figures curves]

Probes print a table for each run, beside a random encoder and raw pixels, and save it in the run's folder as report.json
and report.md; what is there is not done again, and baselines that several runs share are computed once. Several runs give a
comparison too, in the folder that holds them; the folder of a grid gives a table and a picture against its axes.
--data.KEY VALUE replaces a key of the run's data: --data.root DIR, or --data.name cifar100 to probe another data set.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from dim import build, checkpoint, export, grid, machine, report, signals, tracking
from dim.average import Average
from dim.config import Config, UserError, built, check, flat, leaves, require
from dim.data import Dataset, keys
from dim.evals import sections
from dim.evals.features import LAYERS, features, raw_pixels, set_statistics
from dim.evals.finetune import LOSSES, FineTuning, finetuned, paired
from dim.evals.sections import ENCODERS, KINDS, Features, Section
from dim.figures import FIGURES, comparison, negatives
from dim.reading import command_line, nearest, one_line, refuse, saved, typed


def evaluate(folder: Path, chosen: argparse.Namespace, config: Config, known: dict) -> dict:
    """Everything asked of the run in a folder; its report. known: rows of runs before it, shared where the same."""
    if (chosen.probes or chosen.measures or chosen.figures) and not os.access(folder, os.W_OK):  # before hours of work
        raise UserError(f"{folder} cannot be written: the report goes there")
    state = checkpoint.load(folder, lambda text: print(f"warning: {text}", file=sys.stderr))
    if chosen.export is not None:
        encoder = trained_encoder(config, state["data"]["shape"], state, chosen.weights, folder)
        save = export.save_onnx if chosen.export.suffix == ".onnx" else export.save_encoder
        save(chosen.export, encoder, config, state["data"], state["step"])
        print(f"{folder}: {state['step']:,} steps trained, saved as {chosen.export}")
    if not (chosen.probes or chosen.measures or chosen.features or chosen.figures):
        return {}  # an export needs no data
    data = build.dataset(config)
    print(f"{folder}: {state['step']:,} of {state['steps']:,} steps trained")
    fits(folder, state["data"], data)
    if chosen.probes or chosen.supervised:
        data.with_labels()
    torch.set_num_threads(1 if len(data.pretraining) < SMALL else THREADS)
    encoder = trained_encoder(config, data.shape, state, chosen.weights, folder)
    found: dict = {}
    decoded: dict = {}
    numbers: dict[str, float] = {}
    pictures: dict[str, Path] = {}
    other = other_data(config, data, state["data"])
    if chosen.probes or chosen.measures:
        average = ["average"] * (chosen.weights == "average")
        path = folder / ("_".join(["report", *average, *[other] * bool(other), *told_apart(folder, config)]) + ".json")
        facts = run_facts(config, data, encoder, state, chosen.weights)
        found = report.opened(path, facts, lambda text: print(f"warning: {text}", file=sys.stderr))
        decoded = measure(path, chosen, config, data, encoder, found, known, f" on {other}" * bool(other))
        print(f"saved as {path} and .md")
        part = path.stem.removeprefix("report").removeprefix("_")  # "average", "cifar100": numbers beside those of report.json
        numbers = {"/".join([*[part] * bool(part), key]): value for key, value in report.numbers(found).items()}
    if chosen.features is not None:
        splits = (("train", data.train), ("test", data.test), ("unlabelled", data.unlabelled))
        parts = {name: images for name, images in splits if images is not None and len(images)}
        export.save_features(chosen.features, parts, encoder, data, chosen.layers or LAYERS)
        print(f"saved as {chosen.features}")
    for name in chosen.figures:
        more = {"decoded": decoded.get("y"), "force": chosen.force} if name == "reconstruction" else {}
        for path in FIGURES[name](folder, config, data, state, other, **more):
            print(f"saved as {path}")
            pictures[f"figures/{path.stem}"] = path
    if (numbers or pictures) and config.run.wandb != "off" and state.get("tracking_id"):
        tracker = tracking.start(config, folder, state["tracking_id"], lambda text: print(f"warning: {text}", file=sys.stderr))
        tracker.results(numbers, pictures)
        tracker.finish()
    return found


def measure(
    path: Path, chosen: argparse.Namespace, config: Config, data: Dataset, encoder: nn.Module, found: dict, known: dict, on: str
) -> dict:
    """Every probe and measure asked for, into the report at a path; what it has is not done again. on: " on <other data>".

    Returns what decoders of the trained encoder's layers made of the test images, by layer, where they were trained now.
    """
    decoded: dict = {}
    parts = asked_for(chosen, config, data)
    if any(row.kind == "supervised" for part in parts for row in part.rows):
        how = with_labels(config, found["run"]["steps"])
        found["run"]["supervised rows"] = (
            f"the same net trained from its first weights with all labels: a linear head on {how.layer}, cross-entropy, "
            f"{how.steps:,} steps of {how.batch} images, views {config.views.kind}, Adam at {how.lr:g}; probed as the others"
        )
    rows = {part.title: report.section(found, part.title, part.heading, part.columns) for part in parts}
    places = {
        (part.title, row.name + on): (json.dumps(part.heading), row.name, *report.dependence(row.kind, found["run"]))
        for part in parts
        for row in part.rows
    }
    if chosen.force:
        for part in parts:
            for row in part.rows:
                cells = rows[part.title].pop(row.name + on, {})
                if kept := {column: cell for column, cell in cells.items() if part.columns and column not in part.columns}:
                    rows[part.title][row.name + on] = kept
    for (title, name), key in places.items():
        if key in known:
            rows[title][name] = known[key] | rows[title].get(name, {})
    missing = [
        (part.title, row)
        for part in parts
        for row in part.rows
        if row.name + on not in rows[part.title] or part.columns.keys() - rows[part.title][row.name + on].keys()
    ]
    with tqdm(disable=None, total=len(missing), unit="row", leave=False, dynamic_ncols=True) as bar:
        for kind in KINDS:
            todo = [(title, row) for title, row in missing if row.kind == kind]
            if not todo:
                continue
            bar.set_description_str(f"features: {kind}")
            layers = {layer for _, row in todo for layer in row.layers}
            seen = features_of(kind, config, data, encoder, layers, found["run"]["steps"])
            for title, row in sorted(todo, key=lambda item: item[1].layers):  # by layer: each is prepared once
                bar.set_description_str(f"{title}: {row.name}")
                there = rows[title].get(row.name + on, {})
                rows[title][row.name + on] = there | row.act(seen, there)
                report.save(path, found)
                bar.update()
            decoded = seen.decoded if kind == "trained" else decoded
    for part in parts:
        names = [row.name + on for row in part.rows]
        found[part.title]["rows"] = {name: rows[part.title][name] for name in dict.fromkeys([*names, *rows[part.title]])}
        for name in names:  # of the columns asked for: others that a report has may be of another protocol in the next one
            row = rows[part.title][name]
            known[places[part.title, name]] = {column: row[column] for column in part.columns} if part.columns else row
    report.save(path, found)
    for part in parts if not chosen.quiet else []:
        print(report.table(found[part.title]), report.headline(found[part.title]) if part.title == "linear" else "", sep="\n")
    if images := found["run"].get("test images seen in training"):
        print(f"warning: {images} of {len(data.test)} test images trained the encoder, without their labels", file=sys.stderr)
    return decoded


def asked_for(chosen: argparse.Namespace, config: Config, data: Dataset) -> list[Section]:
    """The sections of the report that the command line asks for."""
    layers, few, parts = chosen.layers or list(LAYERS), chosen.labels_per_class, []
    encoders = KINDS[1:] if chosen.supervised else ENCODERS
    for name in chosen.probes:
        if name == "finetune":
            losses = {loss: 1.0 for loss in LOSSES if loss in chosen.unlabelled}
            if config.views.kind == "none" and (names := paired(losses)):
                raise UserError(f"--unlabelled {names[0]} compares images with the run's views of them, and views.kind is none")
            view = build.views(config, data) if config.views.kind != "none" else None
            parts.append(sections.fine_tuned(data, chosen.layers or ["fc"], few, losses, view))
        elif chosen.protocol == "paper":
            parts.append(sections.paper(data, layers, encoders))
        else:
            kind, seed = build.PROBES[name], config.data.split_seed
            parts.append(sections.probe(name, kind, data, layers, few, seed, encoders, resampled=not chosen.once))
    codes = chosen.layers or ["y"]
    made = {
        "mine": lambda: sections.mutual_information(data, chosen.pairs or [("x", "y")], encoders),
        "ndm": lambda: sections.total_correlation(data, codes, encoders),
        "reconstruction": lambda: sections.decoded(data, codes, encoders),
    }
    return [*parts, *(made[name]() for name in chosen.measures)]


def draw_grid(place: Path, configs: dict[Path, Config], reports: dict[str, dict]) -> None:
    """The runs of a grid as one table and one picture, in its folder."""
    axes = grid.axes_of(list(configs.values()))
    points = [negatives.point(run, config, list(axes), reports.get(str(run))) for run, config in configs.items()]
    protocol = next((report.protocol(content["linear"]) for content in reports.values()), "")
    axis = negatives.axis_of(axes)
    print(negatives.markdown(negatives.table(points, axis), axis))
    for path in negatives.draw(place / "negatives.png", points, axes, next(iter(configs.values())), protocol):
        print(f"saved as {path}")


def compare(reports: dict[str, dict]) -> None:
    """Runs beside each other, grouped by seeds: printed, and saved in the folder that holds them."""
    place = Path(os.path.commonpath([Path(folder).resolve().parent for folder in reports]))
    names = {str(Path(folder).resolve().relative_to(place)): content for folder, content in reports.items()}
    found = report.comparison(names)
    checkpoint.save_json(place / "comparison.json", found)
    with checkpoint.replacing(place / "comparison.md") as file:
        file.write(report.compared(found).encode())
    print(report.compared(found), f"saved as {place / 'comparison.json'} and .md", sep="\n")
    try:
        print(f"saved as {comparison.draw(place / 'comparison.png', found)}")
    except UserError as error:  # the numbers stand without their picture
        print(f"no comparison.png: {error}")


def other_data(config: Config, data: Dataset, trained: dict) -> str:
    """The name of the data set where its images are not those that trained the encoder, a folder's own name; else ""."""
    now = data.facts
    same = torch.equal(trained["files"], now["files"]) and trained.get("content", now["content"]) == now["content"]
    if same and trained["name"] == now["name"]:
        return ""
    return Path(config.data.root).resolve().name if data.name == "folder" else data.name


def told_apart(folder: Path, config: Config) -> list[str]:
    """What the command line replaced in how a run's images are split and fitted: a report of its own bears it in its name."""
    own = saved(folder).data
    split = [f"split{config.data.split_seed}"] * (config.data.split_seed != own.split_seed)
    return [*split, *[config.data.fit] * (config.data.fit != own.fit)]


def fits(folder: Path, trained: dict, data: Dataset) -> None:
    """UserError where images of the data set are not what the run's encoder takes."""
    for key, now in (("shape", list(data.shape)), ("levels", data.levels), ("signed", data.signed)):
        if trained[key] != now:
            raise UserError(f"{folder} was trained on images with {key} {trained[key]}, those of {data.name} have {key} {now}")


def run_facts(config: Config, data: Dataset, encoder: nn.Module, state: dict, weights: str) -> dict:
    """What the numbers belong to."""
    facts = {
        "data": data.name,
        "data_sha256": data.fingerprint,
        "shape": list(data.shape),
        "fit": config.data.fit,
        "split_seed": config.data.split_seed,
        "seed": config.seed,
        "steps": state["step"],
        "encoder": config.encoder.name,
        "weights": weights,
        "weights_sha256": report.digest(encoder.state_dict()),
        "versions": state["versions"],
        "config": {key: value for key, value in flat(config).items() if not key.startswith(("run.", "data.root", "seed"))},
    }
    seen = len(set(keys(data.test).tolist()) & set(state["data"]["files"].tolist()))
    return facts | ({"test images seen in training": seen} if seen else {})


def with_labels(config: Config, steps: int) -> FineTuning:
    """How the run's net is trained with labels from its first weights: a head on y, one learning rate, all labels."""
    return FineTuning("y", steps, config.seed, batch=config.train.batch_size, lr=1e-3, encoder_lr=1e-3)


THREADS = torch.get_num_threads()
SMALL = 10_000  # images below which a second thread waits more than it works: the digits took 65 s with two, 16 s with one


def features_of(kind: str, config: Config, data: Dataset, encoder: nn.Module, layers: set[str], steps: int) -> Features:
    """Features of one kind: raw pixels; of the encoder before training, same seed and architecture, its BatchNorm statistics
    set on training images; of the same trained with labels for as many steps; or of the trained one. Images pass an encoder
    once, and only the layers asked for are kept."""
    made = encoder
    if kind == "random":
        made = set_statistics(first_encoder(config, data.shape), data, data.train)
    elif kind == "supervised":
        view = build.views(config, data) if config.views.kind != "none" else None
        made = finetuned(first_encoder(config, data.shape), data, None, view, with_labels(config, steps)).encoder
    found = {}
    if "x" in layers:
        found["x"] = (raw_pixels(data, data.train, device()), raw_pixels(data, data.test, device()))
    if own := [layer for layer in LAYERS if layer in layers]:
        train, test = (features(made, data, images, layers=own) for images in (data.train, data.test))
        found |= {layer: (train[layer], test[layer]) for layer in own}
    return Features(found, made)


def trained_encoder(config: Config, shape: tuple[int, int, int], state: dict, weights: str, folder: Path) -> nn.Module:
    """The run's encoder with its last weights, or with their average where it kept one."""
    encoder = first_encoder(config, shape)
    if weights == "average":
        if "average" not in state:
            raise UserError(
                f"{folder} kept no average of its weights: train it with --train.average 0.999, or take --weights last"
            )
        average = Average(encoder, config.train.average)
        checkpoint.fill(average, state["average"], folder)
        return average.module
    checkpoint.fill(encoder, state["encoder"], folder)
    return encoder


def first_encoder(config: Config, shape: tuple[int, int, int]) -> nn.Module:
    """The run's encoder with its first weights, for images of a shape."""
    return build.encoder(config, shape).to(device()).to(memory_format=torch.channels_last)


def device() -> str:
    """Where features and probes are computed."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What a command line asks for, and the words that are keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--probes",
        nargs="+",
        choices=[*build.PROBES, "finetune"],
        default=[],
        help="on frozen features; linear where nothing else is asked for either",
    )
    parser.add_argument(
        "--protocol",
        choices=["clean", "paper"],
        default="clean",
        help="paper: mean test accuracy of the last 100 epochs of an mlp, for comparison with the paper only",
    )
    parser.add_argument(
        "--labels-per-class",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="columns of probes that are given N labels a class; without, finetune takes all labels, and each official fold",
    )
    parser.add_argument(
        "--unlabelled", nargs="+", choices=LOSSES, default=[], help="finetune: losses on unlabelled images, weight 1 each"
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=["mine", "ndm", "reconstruction"],
        default=[],
        help="mine of --pairs; the others of codes, or of --layers",
    )
    parser.add_argument(
        "--pairs", nargs="+", type=pair, default=[], metavar="A:B", help="layers that mine compares, x: pixels; x:y"
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, help="of probes, measures and --features; all, for measures y")
    parser.add_argument(
        "--supervised", action="store_true", help="rows of the same net trained with all labels, for as many steps as the run"
    )
    parser.add_argument("--once", action="store_true", help="probes without the column of resamples; of grids always")
    parser.add_argument("--force", action="store_true", help="measure anew what the report has")
    parser.add_argument("--weights", choices=["last", "average"], default="last", help="the last, or the run's train.average")
    parser.add_argument("--figures", nargs="+", choices=list(FIGURES), default=[], help=PICTURES)
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the encoder: .safetensors for dim.load_encoder, .onnx"
    )
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="write the features of all images")
    parser.error = refuse  # type: ignore
    chosen, rest = parser.parse_known_args(argv)
    if not (chosen.probes or chosen.measures or chosen.figures or chosen.export or chosen.features):
        chosen.probes = ["mlp" if chosen.protocol == "paper" else "linear"]
    chosen.quiet = False  # whether a run's tables are in its report only
    return chosen, rest


PICTURES = (
    "pictures, as PNG files in RUN/figures; drawn anew each time, which takes seconds, but for reconstruction, whose decoder "
    "takes minutes: a picture of the same weights and images stays"
)


def main(argv: list[str]) -> int:
    try:
        machine.tune_products()
        with signals.raised():
            work(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a fault of dim's own, with its traceback
        if isinstance(error, BrokenPipeError):  # someone reads the head of the output only; reports are saved before
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, Python flushes it once more at its end
            return 1
        print(f"error: the machine: {one_line(str(error)) or 'out of memory'}", file=sys.stderr)
        return 4
    except (KeyboardInterrupt, signals.StopRequest) as stop:
        print("stopped; the rows that were done are in the report, the same command continues", file=sys.stderr)
        return getattr(stop, "code", 130)
    return 0


def work(argv: list[str]) -> None:
    """Everything that a command line asks for. Raises UserError where it cannot be."""
    chosen, rest = options(argv)
    grids = {folder: runs for folder in chosen.runs if any(runs := grid.runs_of(folder))}
    if grids:
        check_grids(chosen, grids)
    check_options(chosen)
    replaced = data_keys(rest)
    places = {
        place: {run: built(flat(saved(run)) | replaced) for run in (grids[place][0] if grids else [place])}
        for place in chosen.runs
    }
    for configs in places.values():
        check_configs(configs, bool(grids))
    known: dict = {}
    reports = {}
    for configs in places.values():
        for folder, config in configs.items():
            if config.data.name != "gaussian" and not checkpoint.exists(folder):
                raise UserError(checkpoint.missing(folder))  # before hours are spent on the runs before it
    for place, configs in places.items():
        for folder, config in configs.items():
            if config.data.name != "gaussian":
                reports[str(folder)] = evaluate(folder, chosen, config, known)
        if grids:
            draw_grid(place, configs, {str(run): reports[str(run)] for run in configs if str(run) in reports})
    if len(chosen.runs) > 1 and (chosen.probes or chosen.measures) and not grids:
        compare(reports)


def pair(text: str) -> tuple[str, str]:
    """fc:y -> ("fc", "y")."""
    first, _, second = text.partition(":")
    for layer in (first, second):
        if layer not in ("x", *LAYERS):
            raise argparse.ArgumentTypeError(f"{text} names {layer or 'nothing'}: write A:B with two of x, {', '.join(LAYERS)}")
    return first, second


def data_keys(words: list[str]) -> dict:
    """{"data.root": "..", ..} of the words that are no options of this script; UserError for other keys."""
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and not key.startswith("data."):
            options = ["probes", "protocol", "labels-per-class", "unlabelled", "measures", "pairs", "layers", "supervised"]
            options += ["once", "force", "weights", "figures", "export", "features"]
            why = "belongs to training; here only --data.KEY can be replaced" if key in leaves() else "is no option"
            raise UserError(f"--{key} {why}{nearest(key, options)}")
    return {key: typed(key, value) for key, value in command_line(words).items()}


def check_configs(configs: dict[Path, Config], of_a_grid: bool) -> None:
    """UserError where runs cannot be evaluated, or not drawn together, said before anything is computed."""
    for config in configs.values():
        check(config)
    gaussian = [folder for folder, config in configs.items() if config.data.name == "gaussian"]
    if gaussian and not of_a_grid:
        raise UserError(f"{gaussian[0]} was trained on Gaussians: what there is to know stands in its summary.json")
    if of_a_grid:
        if 0 < len(gaussian) < len(configs):
            raise UserError(f"{gaussian[0].parent} holds runs on Gaussians and on images: no picture has both")
        negatives.axis_of(grid.axes_of(list(configs.values())))


def check_grids(chosen: argparse.Namespace, grids: dict[Path, tuple[list[Path], list[Path]]]) -> None:
    """Of grids: a linear probe of fc and y, once, since seeds give the spread; UserError for what makes no sense."""
    for place, (done, others) in grids.items():
        if not done:
            raise UserError(f"{place} has no finished run: train it to the end first")
        if others:
            print(
                f"warning: {place}: {len(others)} of {len(done) + len(others)} runs are not finished, left out", file=sys.stderr
            )
    if set(chosen.runs) != set(grids):
        raise UserError(f"{next(iter(grids))} is a grid and other folders are none: give either")
    if chosen.probes != ["linear"] or chosen.measures or chosen.figures or chosen.export or chosen.features:
        raise UserError("a grid is evaluated by a linear probe alone; for anything else give one of its runs")
    chosen.layers, chosen.once, chosen.quiet = chosen.layers or ["fc", "y"], True, True


def check_options(chosen: argparse.Namespace) -> None:
    """UserError where what is asked for cannot be, said before anything is computed."""
    if chosen.protocol == "paper" and (chosen.probes != ["mlp"] or chosen.labels_per_class):
        raise UserError("--protocol paper is that of an mlp on all labels: give --probes mlp and no --labels-per-class")
    for name in ("runs", "probes", "measures", "pairs", "layers", "labels_per_class", "figures"):  # asked for twice, done once
        setattr(chosen, name, list(dict.fromkeys(getattr(chosen, name) or [])))
    if chosen.labels_per_class and not chosen.probes:
        raise UserError("--labels-per-class belongs to probes: give --probes linear or another")
    if chosen.unlabelled and "finetune" not in chosen.probes:
        raise UserError("--unlabelled belongs to fine-tuning: give --probes finetune too")
    if chosen.pairs and "mine" not in chosen.measures:
        raise UserError("--pairs belongs to mine: give --measures mine too")
    if chosen.layers and chosen.measures == ["mine"] and not (chosen.probes or chosen.features):
        raise UserError("--layers belongs to probes, ndm, reconstruction and --features; mine has --pairs")
    if chosen.layers not in ([], ["y"]) and not (chosen.probes or chosen.measures or chosen.features):
        raise UserError("--layers belongs to probes, ndm, reconstruction and --features: pictures are of y")
    if chosen.supervised and not (chosen.measures or set(chosen.probes) - {"finetune"}):
        raise UserError("--supervised adds rows to measures and to probes of frozen features: give --probes linear or another")
    if chosen.once and (chosen.protocol == "paper" or not set(chosen.probes) - {"finetune"}):
        raise UserError("--once leaves out resamples of probes of frozen features, and there are none: leave it out")
    if chosen.figures:
        require("matplotlib", "a figure")
    if "embedding" in chosen.figures:
        require("sklearn", "an embedding", "scikit-learn")
    if "reconstruction" in (*chosen.measures, *chosen.figures):
        require("torchmetrics", "MS-SSIM")
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
