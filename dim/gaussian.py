"""Correlated Gaussians: the estimators and critics where the mutual information is known.

x and z of d numbers each, in pairs of correlation rho: I(x; z) = -d/2 log(1 - rho^2) nats. x stands where images have y, z
where they have a map of one location; every step draws new pairs, so nothing can be learned by heart. One pool of max(A, K + 1)
vectors z stands before all A anchors, as one batch of images does.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dim import build, checkpoint, metrics, monitor, signals
from dim.config import Config
from dim.estimators import infonce
from dim.guard import DivergedError, Guard
from dim.objective import Embedded, Objective, Term
from dim.randomness import generator
from dim.reading import prepare

MANY = 4096  # fresh negatives by which every critic is read out in the end, whatever it was trained with
DRAWS, FRESH = 64, 16  # batches of the held-out values; of these with MANY negatives


def correlation(information: float, d: int) -> float:
    """The rho at which d pairs have this mutual information, nats."""
    return math.sqrt(-math.expm1(-2 * information / d))


def pairs(anchors: int, pool: int, d: int, rho: float, seed: int, purpose: str, step: int) -> tuple[Tensor, Tensor]:
    """x [anchors, d] and z [pool, d], the first anchors of z paired with x, the others with nothing: a function of seed,
    purpose and step; float32 on the CPU."""
    draws = generator(seed, purpose, step)
    x, z = torch.randn(anchors, d, generator=draws), torch.randn(pool, d, generator=draws)
    z[:anchors] = rho * x + math.sqrt(1 - rho**2) * z[:anchors]
    return x, z


def log_ratio(x: Tensor, z: Tensor, rho: float) -> Tensor:
    """The best critic, log p(x, z) / p(x) p(z): x and z [..., d] -> [...], nats."""
    off = 1 - rho**2
    return (rho * x * z - rho**2 * (x.square() + z.square()) / 2).sum(-1) / off - x.shape[-1] * math.log(off) / 2


def train(config: Config, folder: Path, dry_run: bool = False) -> None:
    """Train one critic, read it out on fresh draws; metrics.jsonl and summary.json with `held_out` in the folder.

    A run takes seconds, so one that was interrupted begins anew.
    """
    c, d = config.train, config.data.dimensions
    anchors, rho = c.batch_size, correlation(config.data.information, d)
    pool = max(anchors, config.objective.local.k + 1)
    of_width = replace(config, encoder=replace(config.encoder, code_size=d))
    term, facts = build.term(of_width, config.objective.local, "local", torch.zeros(1, d, 1), pool)
    objective = Objective(local=term)
    print(
        f"data       {anchors} pairs a step of {d} + {d} numbers, correlation {rho:.4f}: {config.data.information:g} nats\n"
        f"local      {config.objective.local.estimator}, {config.objective.local.critic} critic\n"
        f"           K = {facts.negatives:,} for each of {anchors} anchors\ntraining   {c.steps:,} steps"
    )
    if dry_run:
        return
    with checkpoint.locked(folder), signals.raised():
        prepare(config, folder)
        optimizer, schedule = build.optimizer(config, list(term.parameters())), build.schedule(config)
        log, guard = metrics.JsonLines(folder / "metrics.jsonl"), Guard(torch.device("cpu"))
        sums: dict[str, torch.Tensor] = {}
        image, clock = torch.arange(anchors), time.perf_counter()
        for step in tqdm(range(c.steps), disable=None, unit="step", dynamic_ncols=True):
            x, z = pairs(anchors, pool, d, rho, config.seed, "pairs", step)
            logs = (step + 1) % config.run.log_every == 0 or step + 1 == c.steps
            at = Embedded(x, term.embed(x, z[:, :, None]), None)
            losses = objective.losses(at, image, config.seed, step, keep_scores=logs)
            for group in optimizer.param_groups:
                group["lr"] = c.lr * schedule(step, c.steps)
            optimizer.zero_grad()
            losses.encoder.backward()
            watched = {**losses.parts, "loss": losses.encoder, "gradient_norm": metrics.gradient_norm(optimizer)}
            if c.clip:
                torch.nn.utils.clip_grads_with_norm_(list(term.parameters()), c.clip, watched["gradient_norm"])
            guard.watch(step, watched)
            guard.withhold(optimizer)
            optimizer.step()
            objective.constrain()
            watched["steps"] = torch.ones(())
            sums = {name: value.detach() + sums.get(name, 0) for name, value in watched.items()}
            if logs:
                if verdict := guard.verdict():
                    raise DivergedError(f"{verdict}; {folder} has what was logged before")
                log.write({"step": step + 1} | metrics.means(sums, [facts]) | monitor.log_row(losses.scores, [facts]))
                sums = {}
        found = held_out(config, term, pool, facts.log_ratio) | {"seconds": time.perf_counter() - clock}
        log.flush()
        so_far = metrics.last_and_best(log.rows(), c.steps, c.steps)
        checkpoint.save_json(folder / "summary.json", so_far | {"held_out": found})
        bound, sd, fresh = (
            "not finite" if value is None else f"{value:.3f}" for value in (*found["bound"], found[f"infonce_{MANY}_nats"][0])
        )
        print(
            f"{folder}: {c.steps} steps done. Held out: {bound} {facts.unit}, sd {sd} over {DRAWS} batches; the critic "
            f"read out by infonce with {MANY:,} negatives {fresh} nats; the truth is {config.data.information:g} nats"
        )


@torch.no_grad()
def held_out(config: Config, term: Term, pool: int, log_ratio: bool) -> dict:
    """Values on DRAWS fresh batches, the critic in eval mode: {"bound": [mean, sd over batches], "truth_nats", ..}.

    bound: the trained estimator with its own K; the keys of `dim.monitor` for the same scores; infonce_4096_nats: InfoNCE of
    the same critic with 4,096 fresh negatives.
    """
    term.eval()
    anchors, d = config.train.batch_size, config.data.dimensions
    rho, image = correlation(config.data.information, d), torch.arange(anchors)
    rows: list[dict[str, float]] = []
    for draw in range(DRAWS):
        x, z = pairs(anchors, pool, d, rho, config.seed, "held out", draw)
        scores = term.scores(term.embed(x, z[:, :, None]), image, config.seed, draw)
        row = {"bound": term.estimate(scores)} | monitor.readings(scores[:1], log_ratio)
        if draw < FRESH:
            x, z = pairs(anchors, anchors + MANY, d, rho, config.seed, "fresh", draw)
            a, b = term.embed(x, z[:, :, None])
            fresh = term.critic.table(a, b[anchors:]).flatten(1)
            row[f"infonce_{MANY}_nats"] = infonce(term.critic.score(a, b[:anchors, 0])[:, None], fresh)
        rows.append({key: value.item() for key, value in row.items()})
    found: dict = {"truth_nats": config.data.information, "draws": DRAWS}
    for key in rows[0]:
        values = torch.tensor([row[key] for row in rows if key in row], dtype=torch.float64)
        found[key] = [value if math.isfinite(value) else None for value in (values.mean().item(), values.std().item())]
    return found
