"""Pictures of a run: what is drawn. `captions` says what it means, `drawing` draws.

Curves come from metrics.jsonl up to the last checkpoint; scores and codes from the trained encoder and critics in eval mode,
on images without augmentation.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dim import build, checkpoint
from dim.config import Config, UserError
from dim.data import Dataset
from dim.encoders import Encoding
from dim.estimators import ESTIMATORS
from dim.evals.features import pictures
from dim.figures import captions, drawing, samples
from dim.figures.drawing import Curve, Densities, Level, Lines, Panel, Sample, number
from dim.figures.samples import Drawn, drawn_images, trained_encoder
from dim.metrics import code_statistics
from dim.monitor import above
from dim.objective import Objective
from dim.randomness import generator

MOST_CODES = 1_000  # images whose codes are drawn
MOST_SCORES = 1_000_000  # negative scores that a histogram is made of


def draw(folder: Path, config: Config, data: Dataset, state: dict, other: str = "") -> list[Path]:
    """folder/figures: bounds.png and training.png over the epochs, scores.png and codes.png of the trained run.

    Of another data set scores and codes alone: the course of the training is not about it.
    """
    drawing.needed()
    run = captions.about(folder.resolve().name, config, data, state, other)
    drawn = drawn_images(config, data, other)
    found = trained_samples(folder, config, data, state, drawn)
    rank, prior = code_statistics(found.y)["code/effective_rank"] or 0.0, config.objective.prior
    beside = prior.kind if prior.weight else ""
    pages: dict[str, tuple[str, Sequence[Panel], list[str]]] = {}
    if not other:
        rows = log_rows(folder, state)
        pages["bounds"] = ("Bounds of the training batches", bound_panels(rows, config), captions.of_bounds(config))
        course, words = training_panels(rows, config, data), captions.of_training(config, data, any(map(probed, rows)))
        pages["training"] = ("Course of the training", course, words)
    pages |= {
        "scores": (
            "Scores of matching and mismatching pairs",
            score_panels(found.scores, config),
            captions.of_scores(config.train.batch_size, drawn.kind, config),
        ),
        "codes": (
            f"Codes beside their {beside} prior" if beside else "Codes; no prior was trained",
            code_panels(found.seen, beside),
            captions.of_codes(len(found.y), drawn.kind, config, rank),
        ),
    }
    return [
        drawing.save(samples.place(folder, name, other), title, panels, [run, *notes])
        for name, (title, panels, notes) in pages.items()
    ]


def log_rows(folder: Path, state: dict) -> list[dict]:
    """The rows of metrics.jsonl up to the checkpoint; UserError where there is none."""
    path = folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_bytes()[: state["log_length"]].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'a row is damaged'}") from None
    if not rows:
        raise UserError(f"{path} has no row yet, so there is no curve to draw: continue the run")
    return rows


# ---- curves


def bound_panels(rows: list[dict], config: Config) -> list[Lines]:
    """A panel for each term: its bound over the epochs, its chance level and, where there is one, its ceiling.

    A start far below chance, usual with scores that are not scaled, is cut off and said: it would flatten all the rest.
    """
    panels, last = [], rows[-1]
    for key in (key for key in last if "/bound_" in key):
        name, unit = key.split("/bound_")
        found = {kind: last[f"{name}/{kind}_{unit}"] for kind in ("chance", "ceiling")}
        levels = [Level(f"{kind} {value:.4g}", value) for kind, value in found.items() if value is not None]
        title = captions.heading(name, captions.term_of(name, config), last[f"{name}/negatives_per_anchor"])
        axis = {"jsd": "twice the JS divergence"}.get(unit, unit)
        bound = over_epochs(rows, key, "bound")
        low, high = min(bound.y), max([*bound.y, *(level.y for level in levels)])
        floor = Level(f"below: down to {number(low)}", -high / 2) if low < -high < 0 <= bound.y[-1] else None
        panels.append(Lines(title, "epoch", axis, [bound], levels, floor=floor))
    return panels


def training_panels(rows: list[dict], config: Config, data: Dataset) -> list[Lines]:
    """Probe accuracies and prior losses where there are any, effective rank, gradient norm, learning rate where it changes."""
    panels, c, last = [], config.train, rows[-1]
    if any(map(probed, rows)):
        found = [over_epochs(list(filter(probed, rows)), f"probe/{layer}_accuracy", layer, 100) for layer in ("fc", "y")]
        chance = 100 / data.classes
        panels.append(Lines("Linear probe", "epoch", "accuracy, %", found, [Level(f"chance {number(chance)}", chance)]))
    most = min(c.batch_size - 1, config.encoder.code_size)
    title = f"Effective rank of the codes of a training batch; dead dimensions at the end: {last['code/dead_units']}"
    levels = [Level(f"at most min(N - 1, d) = {most}", most), Level("collapsed: 1", 1)]
    panels.append(Lines(title, "epoch", "effective rank", [over_epochs(rows, "code/effective_rank", "last")], levels))
    if "prior/encoder_loss_nats" in last:
        found = [over_epochs(rows, f"prior/{owner}_loss_nats", owner) for owner in ("discriminator", "encoder")]
        levels = [Level("2 log 2: not told apart", 2 * math.log(2)), Level("log 2: not told apart", math.log(2))]
        panels.append(Lines("Prior matching: the losses of its two owners", "epoch", "nats", found, levels))
    levels = [Level(f"clipped at {c.clip:g}", c.clip)] if c.clip else []
    norms = over_epochs(rows, "gradient_norm", "last")
    panels.append(Lines("Gradient norm of encoder and critics", "epoch", "norm", [norms], levels, log=min(norms.y) > 0))
    if len({row["learning_rate"] for row in rows}) > 1:
        rate = over_epochs(rows, "learning_rate", "last", 1 / c.lr)
        panels.append(Lines(f"Learning rate, as a share of {c.lr:g}", "epoch", "share", [rate]))
    return panels


def probed(row: dict) -> bool:
    """Whether a row of the log holds the quick probe."""
    return "probe/fc_accuracy" in row


def over_epochs(rows: list[dict], key: str, label: str, factor: float = 1) -> Curve:
    """A key of the rows over their epochs, labelled with its last value."""
    values = [math.nan if row[key] is None else factor * row[key] for row in rows]
    return Curve(f"{label} {number(values[-1])}", [row["epoch"] for row in rows], values)


# ---- scores and codes


Scores = dict[str, tuple[Tensor, Tensor]]  # of each term: pos [A, L], neg [A, K]


class Trained(NamedTuple):
    """What a trained run makes of images: scores of one batch, codes y [n, d], and what the prior sees of these."""

    scores: Scores
    y: Tensor
    seen: Tensor


@torch.no_grad()
def trained_samples(folder: Path, config: Config, data: Dataset, state: dict, drawn: Drawn) -> Trained:
    """The scores of one batch of drawn images and the codes of at most MOST_CODES, by the last weights, in eval mode. UserError
    where the run's critics are damaged."""
    encoder = trained_encoder(config, data, state)
    objective, _ = build.objective(config, encoder, data.shape)
    checkpoint.fill(objective, state["objective"], folder)
    encoder, objective = encoder.eval(), objective.to(next(encoder.parameters()).device).eval()

    n = config.train.batch_size
    (batch,) = drawn.images.batches(drawn.order[:n], n)
    scores = score_samples(objective, encoder(pictures(encoder, data, batch)), config.seed)
    chunks = drawn.images.batches(drawn.order[:MOST_CODES], 250)
    y = torch.cat([encoder(pictures(encoder, data, chunk)).y for chunk in chunks])
    seen = y if objective.prior is None else objective.prior.squash(y)
    return Trained(scores, y.cpu(), seen.cpu())


@torch.no_grad()
def score_samples(objective: Objective, codes: Encoding, seed: int) -> Scores:
    """What each term's estimator is given for a batch, on the CPU: {"local": (pos [A, L], neg [A, K]), ...}.

    Of a symmetric term the first direction.
    """
    at = objective.embed(codes)
    image = -2 - torch.arange(len(codes.y), device=codes.y.device)  # numbers that no entry of a queue has
    found: Scores = {}
    for name, term, _, pair in objective.terms(at):
        pos, neg = term.scores(pair, image, seed, step=0)[0]
        found[name] = pos.cpu(), neg.cpu()
    return found


def thinned(values: Tensor, most: int = MOST_SCORES) -> Tensor:
    """All numbers of a tensor, or `most` of them drawn with replacement; even steps could meet some locations only."""
    values = values.flatten()
    if len(values) <= most:
        return values
    return values[torch.randint(len(values), (most,), generator=generator(0, "figures"))]


def score_panels(scores: Scores, config: Config) -> list[Densities]:
    """A panel for each term: its positive and negative scores over common bins."""
    panels = []
    for name, (pos, neg) in scores.items():
        c = captions.term_of(name, config)
        mine, others = pos.flatten().double().numpy(), thinned(neg).double().numpy()
        samples = [Sample(described(f"{pos.numel():,} positives", mine), mine)]
        drawn = "" if len(others) == neg.numel() else f"{len(others):,} drawn of\n"
        samples.append(Sample(described(f"{drawn}{neg.numel():,} negatives", others), others))
        estimator = ESTIMATORS[c.estimator]
        value, unit = estimator(pos, neg).item(), "nats" if estimator.unit == "nats" else ""
        remark = (
            f"{c.estimator} of this batch:\n{number(value)} {unit}\n"
            f"positive above negative:\n{1 - above(pos, neg).item():.1%} (chance 50%)"
        )
        bins = edges(np.concatenate([mine, others]), 100)
        title = captions.heading(name, c, neg.shape[1])
        panels.append(Densities(title, "score of a pair, no unit", samples, bins, remark=remark))
    return panels


def described(what: str, values: np.ndarray) -> str:
    """A label with mean and standard deviation."""
    return f"{what}\nmean {number(values.mean())}, sd {number(values.std())}"


def edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Bins of one width from the smallest to the largest value, around it where there is only one."""
    low, high = values.min(), values.max()
    return np.linspace(low, high, bins + 1) if low < high else np.linspace(low - 0.5, low + 0.5, bins + 1)


def code_panels(seen: Tensor, prior: str) -> list[Panel]:
    """Codes as the prior sees them [n, d], all dimensions together, and the spread of each dimension, beside the prior's.

    prior: uniform, normal, or "" where none was trained: then a standard normal for scale.
    """
    values = seen.flatten().double().numpy()
    if prior == "uniform":
        axis, sd, bins = "sigmoid(y)", 12**-0.5, np.linspace(0, 1, 51)
        goal = Curve("prior: uniform", np.array([0.0, 1.0]), np.ones(2))
    else:
        axis, sd, bins = "y", 1.0, edges(np.append(values, [-4, 4]), 100)
        x = np.linspace(bins[0], bins[-1], 401)
        goal = Curve(
            "prior: normal" if prior else "standard normal,\nfor scale", x, np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        )
    sample = Sample(described(f"{axis} of {seen.shape[0]:,} images\nin {seen.shape[1]} dimensions", values), values)
    spread = seen.double().std(0, correction=0).sort().values.tolist()
    levels = [Level(f"{prior or 'standard normal'}: {number(sd)}", sd), Level("constant: 0", 0)]
    return [
        Densities("All dimensions together", axis, [sample], bins, goal),
        Lines(
            "Each dimension by itself, from the least to the most varied",
            "dimensions",
            f"standard deviation of {axis}",
            [Curve("codes", range(1, len(spread) + 1), spread)],
            levels,
        ),
    ]
