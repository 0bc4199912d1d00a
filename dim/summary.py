"""What a run will do, said before it does it: shapes, negatives, sizes."""

from collections.abc import Sequence

import torch
from torch import nn

from dim.build import TermFacts
from dim.config import Config, Train
from dim.data import Dataset
from dim.evals.features import pictures
from dim.objective import Objective


def summary(
    config: Config,
    data: Dataset,
    encoder: nn.Module,
    objective: Objective,
    terms: list[TermFacts],
    device: torch.device,
    steps: int,
) -> str:
    """One line for each part of the run."""
    images, c, terms_ = data.pretraining, config.train, config.objective
    with torch.no_grad():
        codes = encoder.eval()(pictures(encoder, data, next(images.batches(torch.arange(2), 2))))
    encoder.train()
    layers = ", ".join(f"{name} {by(t.shape[1:])}" for name, t in codes._asdict().items())
    lines = [
        f"data       {data.name}, {len(images):,} training images {by(images.shape)}; "
        f"{some(config.views.number, 'view')}, {config.views.kind}",
        f"encoder    {config.encoder.name}, norm {config.norm}, {parameters(encoder):,} parameters",
        f"           {layers}",
    ]
    for t in terms:
        key, term = (terms_.local, objective.local) if t.name == "local" else (terms_.glob, objective.glob)
        top = "no ceiling" if t.ceiling is None else f"at most {t.ceiling:.4g}"
        unit = "(twice the JS divergence, not nats of information)" if t.unit == "jsd" else t.unit
        unit = f"{', in' * (t.ceiling is None)} {unit}"
        side = round(t.locations**0.5)
        lines += [
            f"{t.name:<10} weight {key.weight:g}, {key.estimator}: {top}{unit}; 0 at zero scores",
            f"           {key.critic} critic, {parameters(term):,} parameters; map {side} x {side}, {key.negatives} negatives",
            f"           K = {t.negatives:,} for each of {c.batch_size} anchors, {t.score_bytes / 2**20:.1f} MiB of scores"
            + f" in {t.parts} parts" * (t.parts > 1),
        ]
        if key.symmetric:
            lines.append(
                f"           symmetric: averaged with the other way round, K = {c.batch_size - 1}; the ceiling is the mean"
            )
    if objective.prior is not None:
        p = config.objective.prior
        lines.append(f"prior      weight {p.weight:g}, {p.kind}, discriminator of {parameters(objective.prior):,} parameters")
    lines.append(f"training   {steps:,} steps of {c.batch_size} images, {length(c)}{recipe(c)}")
    lines.append(
        f"           {device}, {some(torch.get_num_threads(), 'thread')}, {config.precision}, torch {torch.__version__}"
    )
    return "\n".join(lines)


def length(c: Train) -> str:
    """3 epochs, or nothing where steps are counted."""
    return "" if c.steps else f"{some(c.epochs, 'epoch')}, "


def recipe(c: Train) -> str:
    """How the weights are updated, in words."""
    parts = [{"adam": "Adam", "adamw": f"AdamW (decay {c.weight_decay:g})"}[c.optimizer] + f" {c.lr:g} {c.schedule}"]
    parts += [f"{c.warmup} steps of warm-up"] * (c.warmup > 0) + [f"gradients clipped at {c.clip:g}"] * (c.clip > 0)
    return ", ".join(parts + [f"average of weights {c.average:g}"] * (c.average > 0))


def some(number: int, what: str) -> str:
    """1 epoch, 2 epochs"""
    return f"{number} {what}{'s' * (number != 1)}"


def parameters(module: nn.Module | None) -> int:
    """The number of parameters of a module, 0 where there is none."""
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def by(shape: Sequence[int]) -> str:
    """[3, 32, 32] -> 3 x 32 x 32"""
    return " x ".join(map(str, shape))
