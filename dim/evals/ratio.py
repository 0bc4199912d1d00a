"""Ratio: a critic T learns the log density ratio of own and shuffled rows and is read out on rows that it never saw.

    read-out   E T+ - log E e^T-   nats   (Donsker-Varadhan; T+ scores of own rows, T- of shuffled ones)

MINE and NDM are this with two kinds of shuffle. The rows fall into thirds: one trains, one chooses the step, one reports. A
held-out value is a lower bound up to its standard error, while a critic's own training rows over-report without limit.

Critic: inputs standardised; a first layer of 128, half of it with ReLU, half squared; three layers of 128 with ReLU; the first
layer also straight to the score, so that log ratios of Gaussians are linear in the squares. Found on other data than those of
`benchmarks/known_answers.py`: without squares 20 correlated pairs (2 nats, 20,000 training rows) read 10 % low, with them 4 %;
with one layer for three a table of 10 x 10 (0.5 nats, 10,000 rows) read 21 % low, with three 2 %. Adam with a cosine,
weights averaged over about 100 steps, the best of 20 stops; T = 0, which reads 0 nats, is the first of them.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dim.average import Average
from dim.config import UserError
from dim.estimators import dv, jsd, logmeanexp
from dim.randomness import generator, order
from dim.schedule import cosine, warmed

STEPS, UNITS = 1000, 128
BATCH = 512
RATE = 3e-3
AVERAGE = 0.99
STOPS = 20  # at which the critic is looked at
PATIENCE = 6  # stops without a better one, after which training ends
LOOK = 4096  # rows of a look, with 4 shuffles; the report takes all of its third, with SHUFFLES
SHUFFLES = 32
MARGIN = 2.0  # nats below the log of the reporting rows from which on the large e^T- are too rare to be judged by those drawn
CHUNK = 4096  # rows through the first layer at once: 67 MB of a map of 4,096 numbers

Estimator = Callable[[Tensor, Tensor], Tensor]


class Head(nn.Module):
    """First layer's output u [..., units] -> scores [...]; zero before training."""

    def __init__(self, units: int):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(units, units) for _ in range(3)])
        self.out, self.skip = nn.Linear(units, 1), nn.Linear(units, 1, bias=False)
        for layer in (self.out, self.skip):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, u: Tensor) -> Tensor:
        kinked, squared = u.chunk(2, -1)
        h = first = torch.cat([F.relu(kinked), squared.square()], -1)
        for layer in self.hidden:
            h = F.relu(layer(h))
        return (self.out(h) + self.skip(first)).squeeze(-1)


class MovingAverage:
    """DV's second term with MINE's correction: the value log mean e^T, the gradient that of mean e^T / average of it.

    The gradient of a batch's log divides by the batch's own mean, so its expectation is not that of the population; a mean over
    steps takes the place of the divisor. Kept in log space, weighted from the first batch on as Adam's moments are, the
    present batch included, so the ratio cannot exceed 1 / (1 - decay). Belghazi et al. 2018, section 3.2.
    """

    def __init__(self, decay: float = 0.99):
        self.decay, self.steps, self.log_sum = decay, 0, torch.tensor(-math.inf)

    def __call__(self, scores: Tensor) -> Tensor:
        now = logmeanexp(scores)
        self.steps += 1
        weighted = now.detach() + math.log1p(-self.decay)
        self.log_sum = torch.logaddexp(self.log_sum.to(now) + math.log(self.decay), weighted)
        ratio = (now - self.log_sum + math.log1p(-(self.decay**self.steps))).exp()
        return now.detach() + ratio - ratio.detach()


def objective(name: str) -> Estimator:
    """What a critic maximises: "jsd", or "dv" with a moving average of its own."""
    if name == "jsd":
        return jsd
    if name == "dv":
        reduction = MovingAverage()
        return lambda pos, neg: dv(pos, neg, logmeanexp=reduction)
    raise UserError(f"estimator is {name!r}: choose jsd or dv")


# ---- training and reading


class Trained(NamedTuple):
    """A critic as it was at its best stop."""

    critic: nn.Module
    step: int
    value: float  # nats on the rows that chose the stop, with the best scale there


def train(critic, data: Sequence[Tensor], rows: Tensor, choosing: Tensor, estimator: str, steps: int, seed: int) -> Trained:
    """Train a critic on some rows of the data; its averaged weights at the stop that reads highest on the choosing rows.

    critic(data, rows, shuffles, draws) -> pos [B, 1], neg [B, shuffles].
    """
    maximised, batch = objective(estimator), min(BATCH, len(rows))
    average, rate = Average(critic, AVERAGE), warmed(cosine, max(1, steps // 20))
    optimizer = torch.optim.Adam(critic.parameters(), RATE, fused=True)
    best = Trained(copy.deepcopy(average.module), 0, 0.0)  # T = 0
    per_epoch, waited = len(rows) // batch, 0
    for step in tqdm(range(steps), desc="critic", disable=None, leave=False):
        if step % per_epoch == 0:
            shuffled = rows[order(seed, step // per_epoch, len(rows)).to(rows.device)]
        start = step % per_epoch * batch
        optimizer.param_groups[0]["lr"] = RATE * rate(step, steps)
        loss = -maximised(*critic(data, shuffled[start : start + batch], 1, generator(seed, "shuffles", step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(critic)
        if (step + 1) * STOPS // steps > step * STOPS // steps:
            scores = score(average.module, data, choosing[:LOOK], 4, generator(seed, "look"))
            value = read(*scores, best_scale(*scores)).value
            if value > best.value:
                best, waited = Trained(copy.deepcopy(average.module), step + 1, value), 0
            elif best.step and (waited := waited + 1) == PATIENCE:
                break
    return best


@torch.no_grad()
def score(critic, data: Sequence[Tensor], rows: Tensor, shuffles: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A critic's scores of rows [m] and of shuffled ones: pos [m, 1], neg [m, shuffles], float64."""
    pos, neg = critic(data, rows, shuffles, draws)
    return pos.double(), neg.double()


def best_scale(pos: Tensor, neg: Tensor) -> float:
    """The factor of the scores in [0, 2] at which Donsker-Varadhan reads highest on them.

    The value is concave in it, so halving finds the place where the derivative, E T+ - E T- weighted by e^(scale T-), is 0. A
    critic with few training rows is too sure of itself: with 2,000 rows of 20 correlated pairs, 3 nats, it reads 1.6 as it is
    and 2.5 at a scale of 0.6, whatever the stop.
    """
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        weighted = ((middle * neg).flatten().softmax(0) * neg.flatten()).sum()
        low, high = (middle, high) if pos.mean() > weighted else (low, middle)
    return low


class Reading(NamedTuple):
    """Donsker-Varadhan's two terms over some rows, in nats."""

    positive: float  # E T+
    negative: float  # log E e^T-
    error: float  # standard error of their difference at T = log r; that shuffles share rows is left out: 20 % more elsewhere

    @property
    def value(self) -> float:
        return self.positive - self.negative


def read(pos: Tensor, neg: Tensor, scale: float = 1.0) -> Reading:
    """The value of scores times a scale, pos [m, 1], neg [m, shuffles]."""
    pos, neg = scale * pos, scale * neg
    negative = logmeanexp(neg)
    spread = logmeanexp(2 * (neg - negative)).exp() - 1  # variance of e^T- over its squared mean
    error = pos.var() / pos.numel() + spread / neg.numel()
    return Reading(pos.mean().item(), negative.item(), error.clamp_min(0).sqrt().item())


# ---- the estimate and whether to believe it


def thirds(n: int, seed: int) -> tuple[Tensor, ...]:
    """Rows that train, choose and report: random thirds of 0 .. n - 1, new for each seed."""
    return torch.randperm(n, generator=generator(seed, "thirds")).tensor_split(3)


class Measured(NamedTuple):
    """A trained critic and what it reads on each third, with the scale that the choosing rows gave it."""

    step: int
    scale: float
    training: Reading
    choosing: Reading
    reporting: Reading
    unscaled: Reading  # of the reporting rows
    shuffles: int


def measured(critic, data: Sequence[Tensor], split: Sequence[Tensor], estimator: str, steps: int, seed: int) -> Measured:
    """Train a critic and read it out; split: rows that train, choose and report."""
    training, choosing, reporting = split
    trained = train(critic, data, training, choosing, estimator, steps, seed)
    own = score(trained.critic, data, training[:LOOK], 4, generator(seed, "look"))
    chosen = score(trained.critic, data, choosing, SHUFFLES, generator(seed, "choose"))
    reported = score(trained.critic, data, reporting, SHUFFLES, generator(seed, "report"))
    scale = best_scale(*chosen)
    readings = read(*own, scale), read(*chosen, scale), read(*reported, scale), read(*reported)
    return Measured(trained.step, scale, *readings, shuffles=reported[1].shape[1])


def estimate(data: Sequence[Tensor], make: Callable[[], nn.Module], split, estimator: str, steps: int, seed: int) -> dict:
    """The held-out divergence between own and shuffled rows in nats, "nats" of the result, with all that its reader needs.

    It is at most the log of the reporting rows: shuffled rows that decide log E e^T- are then too rare to be among those drawn,
    and the terms alone say anything; 40 Gaussians with 30 nats read 34 and 59 from 1,000 rows.

    data: tables [n, D], standardised; split: rows that train, choose, report; make: a new critic. A second critic, trained on
    half of the training rows for half of the steps, tells whether more of both would still raise the value; it costs half as
    much again.
    """
    split = [rows.to(data[0].device) for rows in split]

    def one(part: int) -> Measured:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "critic").initial_seed())
            critic = make().to(data[0].device)
        few = split[0][: len(split[0]) // part]
        return measured(critic, data, (few, *split[1:]), estimator, max(1, steps // part), seed)

    whole, half = one(1), one(2)
    reasons, most = doubts(whole, half.reporting.value, estimator, len(split[2])), math.log(len(split[2]))
    return {
        "nats": min(whole.reporting.value, most),
        "positive_term": whole.reporting.positive,
        "negative_term": whole.reporting.negative,
        "standard_error": whole.reporting.error,
        "converged": not reasons,
        "doubts": reasons,
        "certifiable_nats": most,
        "half_nats": min(half.reporting.value, most),
        "choosing_nats": whole.choosing.value,
        "training_nats": whole.training.value,
        "scale": whole.scale,
        "unscaled_terms": [whole.unscaled.positive, whole.unscaled.negative],
        "step": whole.step,
        "steps": steps,
        "rows": [len(rows) for rows in split],
        "shuffles": whole.shuffles,
        "estimator": estimator,
        "seed": seed,
    }


def doubts(whole: Measured, half: float, estimator: str, rows: int) -> list[str]:
    """Why a value may be off by more than a tenth + 0.05 nats, in words; none: it counts as converged.

    half: the value after half of the training. What halving loses is taken to be half of what is still missing: of 20 pairs
    with 2 nats it lost 0.05 and 0.06 where 0.09 and 0.13 were missing. The second term of a critic that JSD trained is 0 on
    average, as T is log r; well below 0 tells that the rare large e^T- were not drawn.

    Dependence of which no critic found anything passes: both values are then 0, as they are for independent rows.
    """
    value, choosing, second = whole.reporting.value, whole.choosing.value, whole.unscaled.negative
    error, missing = whole.reporting.error, max(0.0, 2 * (value - half))
    allowed = 0.1 * max(0.0, value) + 0.05
    found = []
    if missing > allowed + 0.1 * missing:
        found.append(f"half of the rows and steps give {half:.2f} of {value:.2f} nats: with more it would still rise")
    if 2 * error > allowed:
        found.append(f"the standard error is {error:.2f} nats: a few shuffled rows decide the second term")
    if abs(choosing - value) > allowed + 2 * error:
        found.append(f"the rows that chose the critic give {choosing:.2f} nats, those that report {value:.2f}")
    if estimator == "jsd" and second < -allowed:
        found.append(f"the second term was {second:.2f} before scaling, not 0: the value may be too high")
    if value > math.log(rows) - MARGIN:
        found.append(f"{rows:,} rows can certify about {math.log(rows):.1f} nats")
    return found


def spread(runs: Sequence[dict], key: str) -> dict:
    """Results of one estimate with several seeds -> mean and standard deviation of a value, share that converged, the runs."""
    values = torch.tensor([run[key] for run in runs], dtype=torch.float64)
    return {
        key: values.mean().item(),
        "sd": values.std().item() if len(values) > 1 else None,
        "converged": sum(run["converged"] for run in runs) / len(runs),
        "runs": list(runs),
    }
