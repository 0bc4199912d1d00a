"""Names in the configuration -> objects: the one file that imports every factor."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dim import distributed, randomness
from dim.backbones import Backbone, resnet
from dim.config import Config, UserError
from dim.config import Term as TermConfig
from dim.critics import CRITICS, Critic, InnerProduct, Projected
from dim.data import Dataset
from dim.datasets import DATASETS
from dim.encoders import ARCHITECTURES, Encoder, local_layers, places
from dim.estimators import ESTIMATORS, dv
from dim.evals.knn import KNN
from dim.evals.linear import LINEAR
from dim.evals.mlp import MLP
from dim.evals.svm import SVM
from dim.model import Model
from dim.negatives import NEGATIVES
from dim.objective import Objective, Term
from dim.pool import Pool, Queue, batch_pool
from dim.prior import Prior
from dim.schedule import SCHEDULES, warmed
from dim.views import VIEWS, Chain

PROBES = {"linear": LINEAR, "svm": SVM, "mlp": MLP, "knn": KNN}


class TermFacts(NamedTuple):
    """What is fixed about a term before training."""

    name: str  # local or global
    unit: str
    locations: int  # L
    negatives: int  # K of each anchor
    ceiling: float | None
    score_bytes: int  # the largest tensor of scores, or of the concat critic's hidden layer
    warning: str  # what a user should know before the run, or ""
    log_ratio: bool = False  # whether nwj and smile may read the critic
    queue: int = 0  # images of earlier steps
    parts: int = 1  # of the anchors, whose scores are made one after the other


def dataset(config: Config) -> Dataset:
    """The configured data set; UserError where it is missing or does not fit the encoder."""
    arch = ARCHITECTURES.get(config.encoder.name)
    size = arch.size if arch else config.encoder.size
    found = DATASETS[config.data.name](config.data, size)
    side = found.pretraining.shape[-1]
    if size > side or (size and size != side and config.data.fit == "none"):
        fitting = [name for name, other in ARCHITECTURES.items() if other.size == side]
        larger = " with --data.fit resize or crop" if size < side else ""
        choices = " or ".join(fitting or ["resnet18"]) + (f", or keep {config.encoder.name}{larger}" if larger else "")
        raise UserError(
            f"encoder.name {config.encoder.name} takes images of {size} x {size}, {found.name} has {side} x {side}: "
            f"choose {choices}"
        )
    return found


def encoder(config: Config, shape: tuple[int, int, int]) -> nn.Module:
    """The configured encoder for images of a shape, its first weights a function of the seed and of nothing else."""
    c, channels = config.encoder, shape[0]
    if c.name in ARCHITECTURES:
        if c.local not in ["paper", *local_layers(c.name)]:
            raise UserError(
                f"encoder.local is {c.local!r}: {c.name} has {', '.join(local_layers(c.name))}, or paper for the paper's choice"
            )
        return seeded(config, "encoder", lambda: Encoder(c.name, channels, c.code_size, c.local, config.norm))
    local = "layer2" if c.local == "paper" else c.local

    def make() -> nn.Module:
        net = resnet(c.name, channels, c.stem, config.norm)
        return Backbone(net, local, c.glob, example=torch.zeros(2, *shape), code_size=c.code_size)

    try:
        return seeded(config, "encoder", make)
    except ValueError as error:
        raise UserError(f"encoder.{error}") from None


def objective(config: Config, made: nn.Module, shape: tuple[int, int, int]) -> tuple[Objective, list[TermFacts]]:
    """The configured objective for an encoder, its shapes found by a dry run, and the facts of its terms."""
    with torch.no_grad():
        codes = made.eval()(next(made.parameters()).new_zeros(1, *shape))
    made.train()
    c = config.objective
    local, glob, facts = None, None, []
    if c.local.weight:
        local, about = term(config, c.local, "local", places(codes.map))
        facts.append(about)
    if c.glob.weight:
        glob, about = term(config, c.glob, "global", codes.conv.flatten(1)[:, :, None])
        facts.append(about)
    prior = None
    if c.prior.weight:
        prior = seeded(config, "prior", lambda: Prior(config.encoder.code_size, c.prior.kind, c.prior.penalty))
    return Objective(local, glob, prior, alpha=c.glob.weight, beta=c.local.weight, gamma=c.prior.weight), facts


def term(config: Config, c: TermConfig, name: str, m: Tensor, entries: int = 0) -> tuple[Term, TermFacts]:
    """One configured term for maps m [1, Dm, L], and its facts. UserError where more negatives are asked than exist.

    entries: images before the anchors where they are neither the batch nor a queue behind it.
    """
    width, locations, anchors = m.shape[1], m.shape[2], config.train.batch_size
    key = f"objective.{'local' if name == 'local' else 'glob'}"
    negatives = NEGATIVES[c.negatives](c.k)
    entries = entries or anchors + c.queue
    others = entries - 2 if c.queue else entries - 1  # a queue's copy of the own image is left out too
    k, most = negatives.count(others, locations), others * locations
    if k > most:
        behind = f" and a queue of {c.queue}" * bool(c.queue)
        raise UserError(f"{key}.k is {c.k}: a batch of {anchors}{behind} with {locations} locations a map has {most} negatives")
    fewest = min(k, anchors - 1) if c.symmetric else k
    if c.estimator == "dv_per_anchor" and fewest == 1:
        raise UserError(f"{key}: dv_per_anchor with 1 negative grows without end: raise {key}.k or choose another estimator")
    critic = seeded(config, name, lambda: make_critic(c, config, width))
    pool: Callable[[Tensor, Tensor], Pool] = batch_pool
    if c.queue:
        with torch.no_grad():
            _, b = critic.eval().embed(m.new_zeros(1, config.encoder.code_size), m)
        critic.train()
        pool = Queue(c.queue, locations, b.shape[-1]).to(b.dtype)
    slope = c.slope if c.estimator == "wasserstein" and not c.weight_clip else 0.0
    clip = c.weight_clip if c.estimator == "wasserstein" else 0.0
    estimator = ESTIMATORS[c.estimator]
    if c.estimator == "dv":  # its one logarithm runs over all ranks; the other estimators are means over anchors
        estimator = dataclasses.replace(estimator, function=partial(dv, logmeanexp=distributed.logmeanexp))
    ceilings = [estimator.ceiling(n) for n in ([k, anchors - 1] if c.symmetric else [k])]
    limit = None if None in ceilings else sum(filter(None, ceilings)) / len(ceilings)
    inner = critic.critic if isinstance(critic, Projected) else critic
    table = c.negatives == "all" or (isinstance(inner, InnerProduct) and inner.from_table(k, entries * locations))
    score_bytes = 4 * anchors * (entries * locations if table else k) * (c.units if c.critic == "concat" else 1)
    share = anchors // distributed.ranks()
    needed = score_bytes / distributed.ranks() / (config.train.score_memory * 2**30)
    parts = next(n for n in range(1, share + 1) if share % n == 0 and (n >= needed or n == share))
    made = Term(critic, estimator, negatives, pool, c.symmetric, slope, clip, parts, estimator.pooled)
    warning = ""
    if c.estimator == "dv_per_anchor" and fewest < 256:
        warning = f"{key}: dv_per_anchor with {fewest} negatives; below about 256 its scores run away"
    if c.queue and c.negatives == "shifted" and c.k < anchors:
        warning = f"{key}: {c.k} shifts reach the queue from the batch's last images only; sampled or all use all of it"
    facts = TermFacts(name, estimator.unit, locations, k, limit, score_bytes, warning, estimator.log_ratio, c.queue, parts)
    return made, facts


def make_critic(c: TermConfig, config: Config, width: int) -> Critic:
    """The configured critic between y and places of `width` channels."""
    code = config.encoder.code_size
    anchor = c.projector or code
    scale = c.units**-0.5 if isinstance(c.scale, str) else c.scale
    options: tuple = {
        "dot": (c.units, scale, config.norm),
        "cosine": (c.units, c.temperature, c.learn_temperature, config.norm),
        "bilinear": (),
        "concat": (c.units,),
    }[c.critic]
    made = CRITICS[c.critic](anchor, width, *options)
    return Projected(code, c.projector, made, config.norm) if c.projector else made


def views(config: Config, data: Dataset) -> Chain:
    """The configured augmentation of one stored picture, at the encoder's size."""
    return VIEWS[config.views.kind](config.views, data.shape[-1], data.fitting)


def schedule(config: Config):
    """The configured learning-rate factor, a function of (step, steps)."""
    return warmed(SCHEDULES[config.train.schedule], config.train.warmup)


def model(config: Config, shape: tuple[int, int, int]) -> tuple[Model, list[TermFacts]]:
    """Encoder and objective for images of a shape as one module, and the facts of its terms."""
    made = encoder(config, shape)
    found, facts = objective(config, made, shape)
    return Model(made, found, config.views.number, config.train.chunk, config.precision == "bf16", config.seed), facts


def optimizer(config: Config, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer of encoder and critics; weight decay reaches matrices and filters, not biases and gains."""
    c = config.train
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[c.optimizer]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": c.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return kind(groups, c.lr, c.betas, fused=True)


def seeded(config: Config, part: str, make):
    """Make a module whose first weights are a function of (seed, part); the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.generator(config.seed, "weights of", *part.encode()).initial_seed())
        made: nn.Module = make()
    return made.double() if config.precision == "float64" else made
