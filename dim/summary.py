"""What a run will do, said before it does it: shapes, negatives, sizes."""

import torch
from torch import nn

from dim.build import TermFacts
from dim.config import Config
from dim.data import Dataset
from dim.encoders import Encoder
from dim.evals.features import pictures
from dim.objective import Objective


def summary(
    config: Config,
    data: Dataset,
    encoder: Encoder,
    objective: Objective,
    terms: list[TermFacts],
    device: torch.device,
    steps: int,
) -> str:
    """One line for each part of the run."""
    images, c = data.train.images, config.train
    with torch.no_grad():
        codes = encoder.eval()(pictures(encoder, data, images[:2]))
    encoder.train()
    layers = ", ".join(f"{name} {by(t.shape[1:])}" for name, t in codes._asdict().items())
    lines = [
        f"data       {data.name}, {len(images):,} training images {by(images.shape[1:])}; "
        f"{config.views.number} view{'s' * (config.views.number > 1)}, {config.views.kind}",
        f"encoder    {config.encoder.name}, norm {config.norm}, {parameters(encoder):,} parameters; {layers}",
    ]
    for t in terms:
        chosen, module = (config.objective.local, objective.local), (config.objective.glob, objective.glob)
        key, term = chosen if t.name == "local" else module
        top = "no ceiling" if t.ceiling is None else f"at most {t.ceiling:.4g}"
        side = round(t.locations**0.5)
        lines += [
            f"{t.name:<10} weight {key.weight:g}, {key.estimator}, {top} {t.unit}, 0 at chance"
            + (": twice the Jensen-Shannon divergence, not nats of information" if t.unit == "jsd" else ""),
            f"           {key.critic} critic, {parameters(term):,} parameters; M {side}, K {t.negatives:,} ({key.negatives}) "
            f"for each of {c.batch_size} anchors, {t.score_bytes / 2**20:.1f} MiB of scores",
        ]
    if objective.prior is not None:
        p = config.objective.prior
        lines.append(f"prior      weight {p.weight:g}, {p.kind}, discriminator of {parameters(objective.prior):,} parameters")
    lines.append(
        f"training   {steps:,} steps of {c.batch_size} images, {c.epochs} epochs, Adam {c.lr:g} {c.schedule}; "
        f"{device}, {torch.get_num_threads()} threads, {config.precision}, torch {torch.__version__}"
    )
    return "\n".join(lines)


def parameters(module: nn.Module | None) -> int:
    """The number of parameters of a module, 0 where there is none."""
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def by(shape: torch.Size) -> str:
    """[3, 32, 32] -> 3 x 32 x 32"""
    return " x ".join(map(str, shape))
