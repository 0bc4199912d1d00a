"""The configuration: one typed schema with its ranges and contradictions. `dim.reading` reads it from files and words.

Each field says its default, its help with the unit, and its range. A value is a number, a text, a choice or a pair: no
configuration can name a class or a file to run.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, get_type_hints


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what was given and what is possible. Exit code 2."""


def require(package: str, what: str, install: str = "") -> None:
    """UserError where a package that only `what` needs is missing; called before anything is computed."""
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {install or package}: pip install {install or package}") from None


def option(default: Any, help: str, at_least: float | None = None, above: float | None = None, at_most: float | None = None):
    """A field of the schema with its help and range."""
    return dataclasses.field(default=default, metadata=dict(help=help, at_least=at_least, above=above, at_most=at_most))


@dataclass(frozen=True)
class Run:
    dir: str = option("", "folder of the run; empty: runs/<name of the config file>")
    log_every: int = option(100, "steps between lines of metrics.jsonl", at_least=1)
    save_every: int = option(1000, "steps between checkpoints; the last step is always saved", at_least=1)
    probe_every: int = option(0, "epochs between quick linear probes on validation images; 0: none", at_least=0)
    keep_every: int = option(
        0, "epochs between copies that stay, as RUN/epoch-N for evaluate.py, the end apart; 0: none", at_least=0
    )
    jobs: int = option(1, "grids: runs side by side, each with its share of the processor's cores", at_least=1)
    timeout: float = option(300.0, "torchrun: seconds that a process waits for the others before it gives up", above=0)
    wandb: Literal["off", "offline", "online"] = option("off", "rows go to Weights & Biases too; offline: files for wandb sync")
    project: str = option("dim", "wandb: project that the run belongs to")


@dataclass(frozen=True)
class Data:
    name: Literal["digits", "cifar10", "cifar100", "mnist", "stl10", "folder", "gaussian"] = option(
        "digits", "data set; digits needs no files, folder is one of your own images, gaussian none: pairs of known information"
    )
    root: str = option("data", "folder that holds the data set in torchvision's layout, or your own images")
    download: bool = option(False, "fetch missing files into data.root")
    fit: Literal["none", "resize", "crop"] = option(
        "none", "images larger than the encoder's where no view makes a window: none: refused; resized, or centre-cropped"
    )
    labels: Literal["none", "folders"] = option(
        "none", "folder: no labels, or one folder a class (in train and val where they exist)"
    )
    side: int = option(0, "folder: pictures are stored at side x side pixels; 0: the encoder's size", at_least=0)
    skip_bad: bool = option(False, "folder: leave out files that are no images, with a warning; else they end the run")
    memory: float = option(4.0, "folder: GiB of pictures to hold in memory, training and test; more are streamed", at_least=0)
    workers: int = option(2, "folder: processes that decode images", at_least=0)
    information: float = option(4.0, "gaussian: mutual information of a pair, nats", above=0)
    dimensions: int = option(20, "gaussian: numbers in each half of a pair", at_least=1)
    split_seed: int = option(0, "seed of the validation part, the same for all runs to be compared", at_least=0)


@dataclass(frozen=True)
class Views:
    number: Literal[1, 2] = option(1, "pictures made of each image; with 2 the map of one meets the vector of the other")
    kind: Literal["none", "affine", "crop_flip", "strong"] = option("none", "augmentation")
    shift: float = option(0.75, "affine: largest shift along each axis, pixels", at_least=0)
    rotation: float = option(10.0, "affine: largest rotation, degrees", at_least=0, at_most=180)
    scale: float = option(0.1, "affine: largest |log| of the scale of each axis", at_least=0)
    shear: float = option(0.1, "affine: largest shear, a factor", at_least=0)
    padding: int = option(4, "crop_flip: black border from which the window is cut, pixels", at_least=0)
    area: tuple[float, float] = option(
        (0.2, 1.0), "strong: share of the image that is kept; [1, 1]: all, no crop", above=0, at_most=1
    )
    ratio: tuple[float, float] = option((0.75, 4 / 3), "strong: width / height of what is kept", above=0)
    flip: float = option(0.5, "crop_flip, strong: probability of a mirror image", at_least=0, at_most=1)
    brightness: float = option(0.4, "strong: brightness times 1 +- this", at_least=0, at_most=1)
    contrast: float = option(0.4, "strong: contrast times 1 +- this", at_least=0, at_most=1)
    saturation: float = option(0.4, "strong: saturation times 1 +- this", at_least=0, at_most=1)
    hue: float = option(0.1, "strong: hue moved by +- this share of the colour circle", at_least=0, at_most=0.5)
    jitter: float = option(
        0.8, "strong: probability that brightness, contrast, saturation and hue change", at_least=0, at_most=1
    )
    grey: float = option(0.2, "strong: probability of a picture without colour", at_least=0, at_most=1)


@dataclass(frozen=True)
class Encoder:
    name: Literal["small8x8", "basic28x28", "basic32x32", "basic64x64", "alex64x64", "resnet18", "resnet50"] = option(
        "small8x8", "architecture, the paper's with their image size in the name or torchvision's"
    )
    code_size: int = option(64, "numbers in the global vector y", at_least=1)
    local: str = option(
        "paper", "layer whose output is the local map: conv1, .., fc1, .. or layer1, ..; paper: the paper's, layer2 of a resnet"
    )
    glob: str = option("avgpool", "resnets: layer whose output is the vector before y")
    stem: Literal["torchvision", "cifar"] = option("torchvision", "resnets: 7 x 7 with pooling, or cifar: 3 x 3 without")
    size: int = option(0, "resnets: side of the images they see; 0: as stored", at_least=0)


@dataclass(frozen=True)
class Term:
    weight: float = option(0.0, "weight of the term (alpha for glob, beta for local); 0: not built", at_least=0)
    estimator: Literal[
        "jsd", "dv", "dv_per_anchor", "infonce", "nwj", "nce", "rkl", "chi2", "hellinger", "tv", "wasserstein"
    ] = option("infonce", "estimator of the term")
    critic: Literal["dot", "cosine", "bilinear", "concat"] = option("dot", "critic of the term")
    units: int = option(2048, "width of the critic's embedding, not of bilinear's; the paper: dot 2048, concat 512", at_least=1)
    scale: float | Literal["1/sqrt(units)"] = option(1.0, "dot: factor of the scores; the paper: 1", above=0)
    temperature: float = option(0.1, "cosine: what the cosines are divided by", at_least=0.01)
    learn_temperature: bool = option(False, "cosine: the temperature is trained from there on, down to 0.01")
    projector: int = option(0, "width of a network between y and the critic; 0: none", at_least=0)
    negatives: Literal["all", "sampled", "shifted"] = option("all", "which locations of other images are negatives")
    k: int = option(0, "sampled: negatives of each anchor; shifted: shifts of the batch; all: 0", at_least=0)
    queue: int = option(
        0, "images of earlier steps whose locations are negatives too, a multiple of the batch, less than an epoch", at_least=0
    )
    symmetric: bool = option(False, "average with the same estimate the other way round")
    slope: float = option(10.0, "wasserstein: weight of the penalty on slopes of the score above 1", above=0)
    weight_clip: float = option(
        0.0, "wasserstein: the critic's weights stay within +- this, in the penalty's place; 0: penalty", at_least=0
    )


@dataclass(frozen=True)
class Prior:
    weight: float = option(0.0, "weight of the encoder's prior loss (gamma); 0: no discriminator is built", at_least=0)
    kind: Literal["uniform", "normal"] = option("uniform", "sigmoid(y) against U[0, 1], or y against N(0, 1)")
    lr: float = option(1e-4, "Adam's learning rate of the prior discriminator", above=0)
    penalty: float = option(0.0, "weight of the discriminator's gradient penalty", at_least=0)


@dataclass(frozen=True)
class Objective:
    local: Term = Term(weight=1.0)
    glob: Term = Term()
    prior: Prior = Prior()


@dataclass(frozen=True)
class Train:
    epochs: int = option(30, "passes over the training images", at_least=1)
    steps: int = option(0, "steps, whatever an epoch has; 0: train.epochs", at_least=0)
    batch_size: int = option(128, "images a step, at least 2; the last incomplete batch of an epoch is dropped", at_least=2)
    chunk: int = option(
        0, "images embedded at a time, twice, so that a large batch needs little memory; 0: all at once", at_least=0
    )
    score_memory: float = option(
        1.0, "GiB of scores of a term at once; more are made for a part of the anchors at a time, twice", above=0
    )
    optimizer: Literal["adam", "adamw"] = option("adam", "Adam, or AdamW whose weight decay does not pass through the moments")
    lr: float = option(1e-3, "learning rate of encoder and critics", above=0)
    betas: tuple[float, float] = option((0.9, 0.999), "Adam's betas, of the prior discriminator too", at_least=0)
    weight_decay: float = option(0.0, "adamw: weight decay of encoder's and critics' matrices and filters", at_least=0)
    clip: float = option(0.0, "largest norm of the gradient of encoder and critics together; 0: no limit", at_least=0)
    warmup: int = option(0, "steps over which all learning rates rise from 0", at_least=0)
    schedule: Literal["constant", "cosine"] = option("constant", "learning rates after the warm-up: constant, or cosine to 0")
    skip_bad: int = option(
        0,
        "steps to leave out, their loss or gradient being not finite, before the run ends; 0: it ends at once",
        at_least=0,
    )
    average: float = option(0.0, "decay a step of an average of the encoder's weights, for evaluation; 0: none", at_least=0)


@dataclass(frozen=True)
class Config:
    seed: int = option(0, "seed of weights, order, views, negatives and prior samples", at_least=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to train; auto: cuda where there is one, else cpu")
    precision: Literal["auto", "float32", "bf16", "float64"] = option(
        "auto", "arithmetic; bf16: autocast, scores in float32; auto: bf16 where the hardware has it, else float32"
    )
    deterministic: bool = option(False, "same seed, same bits on a GPU too (slower); a CPU always does")
    norm: Literal["batch", "sync", "layer", "none"] = option(
        "batch", "normalisation in encoder and heads; the paper: batch; sync: batch over all processes' shares, on GPUs"
    )
    run: Run = Run()
    data: Data = Data()
    views: Views = Views()
    encoder: Encoder = Encoder()
    objective: Objective = Objective()
    train: Train = Train()


@functools.cache  # asked for at every key; a type's hints take long to resolve
def leaves(kind: type = Config, prefix: str = "") -> Mapping[str, tuple[Any, dataclasses.Field]]:
    """Every key of the schema with its type and field: {"train.lr": (float, Field), ...}."""
    found: dict[str, tuple[Any, dataclasses.Field]] = {}
    types = get_type_hints(kind)
    for f in fields(kind):
        if is_dataclass(types[f.name]):
            found |= leaves(types[f.name], f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = types[f.name], f
    return MappingProxyType(found)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"train.lr": 0.001, ...}."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        found |= flat(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: value}
    return found


def built(values: dict[str, Any], kind: type = Config, prefix: str = "") -> Any:
    """The configuration that holds these flat values; the inverse of `flat`."""
    types = get_type_hints(kind)
    return kind(
        **{
            f.name: built(values, types[f.name], f"{prefix}{f.name}.")
            if is_dataclass(types[f.name])
            else values[prefix + f.name]
            for f in fields(kind)
        }
    )


def check(config: Config) -> None:
    """Raise UserError where a value is out of its range or two values contradict each other."""
    values = flat(config)
    for key, (_, f) in leaves().items():
        value, limits = values[key], f.metadata
        if isinstance(value, str) and not value.isprintable():
            raise UserError(f"{key} is {value!r}: it has characters that cannot be printed")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{key} has {len(str(abs(number)))} digits: it must be below 2^63")
            if not math.isfinite(number):
                raise UserError(f"{key} is {number}: it must be finite")
            if limits["at_least"] is not None and number < limits["at_least"]:
                raise UserError(f"{key} is {number}: it must be at least {limits['at_least']}")
            if limits["above"] is not None and number <= limits["above"]:
                raise UserError(f"{key} is {number}: it must be above {limits['above']}")
            if limits["at_most"] is not None and number > limits["at_most"]:
                raise UserError(f"{key} is {number}: it must be at most {limits['at_most']}")
    if max(config.train.betas) >= 1:
        raise UserError(f"train.betas is {list(config.train.betas)}: both must be below 1")
    if config.train.average >= 1:
        raise UserError(f"train.average is {config.train.average}: it must be below 1")
    for key in ("views.area", "views.ratio"):
        if values[key][0] > values[key][1]:
            raise UserError(f"{key} is {list(values[key])}: the first number must not be larger than the second")
    if config.train.weight_decay and config.train.optimizer == "adam":
        raise UserError(
            f"train.weight_decay is {config.train.weight_decay}, but train.optimizer is adam: set that to adamw, or "
            "train.weight_decay to 0"
        )
    if config.encoder.name.startswith("resnet") and config.norm == "none":
        raise UserError("norm none is not possible with a resnet, whose convolutions have no biases: choose batch or layer")
    if config.views.number == 2 and config.views.kind == "none":
        raise UserError(
            "views.number is 2 but views.kind is none, so both would be equal: set views.kind affine or views.number 1"
        )
    if config.precision == "float64" and config.device == "mps":
        raise UserError("precision float64 is not possible on device mps: choose float32 or device cpu")
    c, o = config.train, config.objective
    if config.data.name == "gaussian":
        for key, set_ in (("objective.glob.weight", o.glob.weight), ("objective.prior.weight", o.prior.weight)):
            if set_:
                raise UserError(f"{key} is {set_}, but data.name gaussian has one term, objective.local: set it to 0")
        for key, set_ in (("objective.local.queue", o.local.queue), ("train.chunk", c.chunk), ("train.average", c.average)):
            if set_:
                raise UserError(
                    f"{key} is {set_}, but data.name gaussian draws as many negatives as are asked for: set it to 0"
                )
        if not c.steps:
            raise UserError("data.name gaussian has no epochs: give train.steps")
        if config.precision not in ("auto", "float32"):
            raise UserError(f"precision is {config.precision}, but data.name gaussian computes in float32")
        if o.local.negatives == "shifted":
            raise UserError("objective.local.negatives is shifted, but data.name gaussian has no maps: choose sampled or all")
        if (most := 5 * config.data.dimensions) < config.data.information:
            given = f"data.information is {config.data.information:g}"
            raise UserError(f"{given}: it must be at most 5 nats for each of data.dimensions, {most}")
    if c.chunk and c.batch_size % c.chunk:
        raise UserError(f"train.chunk is {c.chunk}: it must divide train.batch_size, {c.batch_size}")
    if c.chunk * config.views.number == 1 and config.norm in ("batch", "sync"):
        raise UserError("train.chunk is 1: statistics of one picture say nothing; raise it, or choose norm layer or none")
    terms = {"local": config.objective.local, "glob": config.objective.glob}
    if not any(term.weight for term in terms.values()):
        raise UserError("objective.local.weight and objective.glob.weight are both 0: nothing to train")
    for name, term in terms.items():
        check_term(f"objective.{name}", term, config)


def check_term(key: str, term: Term, config: Config) -> None:
    """The contradictions within one term; how many negatives exist is checked where the map's size is known."""
    if term.negatives == "all" and term.k:
        raise UserError(f"{key}.k is {term.k} but {key}.negatives is all: set that to sampled or shifted, or {key}.k to 0")
    if term.negatives != "all" and not term.k:
        raise UserError(f"{key}.negatives is {term.negatives} and needs {key}.k of at least 1")
    if term.negatives == "shifted" and not term.queue and term.k >= config.train.batch_size:
        raise UserError(f"{key}.k is {term.k}: a batch of {config.train.batch_size} has {config.train.batch_size - 1} shifts")
    if term.queue % config.train.batch_size:
        raise UserError(f"{key}.queue is {term.queue}: it must be a multiple of train.batch_size, {config.train.batch_size}")
    if term.critic == "concat" and term.scale != 1:
        raise UserError(
            f"{key}.scale is {term.scale}, but only the dot critic has a scale: set it to 1, or {key}.critic to dot"
        )


NO_GAUSSIANS = {  # keys of runs on images that Gaussians have no use for
    *("device", "deterministic", "data.root", "data.download", "data.fit", "data.split_seed"),
    *("run.save_every", "run.probe_every", "run.keep_every", "run.wandb", "run.project"),
}
VIEW_KEYS = {  # kinds of views that each key belongs to
    **dict.fromkeys(("shift", "rotation", "scale", "shear"), ("affine",)),
    "padding": ("crop_flip",),
    "flip": ("crop_flip", "strong"),
}


def needed_for(key: str, config: Config) -> str:
    """The setting without which a key has no effect, where the configuration lacks it; else ""."""
    group, _, name = key.rpartition(".")
    if config.data.name == "gaussian" and (group in ("views", "encoder") or key in NO_GAUSSIANS):
        return "a data set of images"
    if group == "views" and name not in ("number", "kind"):
        kinds = VIEW_KEYS.get(name, ("strong",))
        return "" if config.views.kind in kinds else f"views.kind {' or '.join(kinds)}"
    if key in ("encoder.stem", "encoder.glob", "encoder.size"):
        return "" if config.encoder.name.startswith("resnet") else "encoder.name resnet18 or resnet50"
    if key in ("data.labels", "data.side", "data.skip_bad", "data.memory", "data.workers"):
        return "" if config.data.name == "folder" else "data.name folder"
    if key in ("data.information", "data.dimensions"):
        return "" if config.data.name == "gaussian" else "data.name gaussian"
    if group in ("objective.local", "objective.glob", "objective.prior") and name != "weight":
        term = getattr(config.objective, group.rpartition(".")[2])
        if not term.weight:
            return f"{group}.weight above 0"
        if name in ("slope", "weight_clip") and term.estimator != "wasserstein":
            return f"{group}.estimator wasserstein"
        return f"{group}.weight_clip 0" if name == "slope" and term.weight_clip else ""
    if key == "train.epochs" and config.train.steps:
        return "train.steps 0"
    return "run.wandb offline or online" if key == "run.project" and config.run.wandb == "off" else ""
