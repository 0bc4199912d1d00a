"""The objective: mutual-information terms and prior matching put together.

    encoder and critics   minimise  -(alpha * global + beta * local) + gamma * prior.encoder_loss(y)
    prior discriminator   minimises prior.discriminator_loss(y.detach(), sample)

Paper, equation (8); the only minus sign before an estimate stands here. The paper's presets (alpha, beta, gamma): DIM(G)
(1, 0, 1), DIM(L) (0, 1, 0.1), DIM(L+G) (0.5, 0.1, 1; this gamma is unverified). The paper's beta / M^2 times a sum over
locations is our beta times a mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dim import distributed
from dim.critics import Critic
from dim.encoders import Encoding, places
from dim.estimators import joined, raised
from dim.pool import Pool, Queue, batch_pool, skipping
from dim.prior import Prior
from dim.randomness import generator


class Pair(NamedTuple):
    """Vectors of a term: anchors a [views * N, U], locations b [views * N, L, U]."""

    a: Tensor
    b: Tensor


class Scores(NamedTuple):
    """What an estimator is given: pos [A, L] and neg [A, K]."""

    pos: Tensor
    neg: Tensor


class Side(NamedTuple):
    """Anchors a [A, U] before a pool, rows [A, K] of it or all; of a symmetric term the global vectors as a pool [P, 1, U], in
    which the anchors have these places [A]."""

    a: Tensor
    pool: Pool
    rows: Tensor | None
    back: Tensor | None
    place: Tensor


class Term(nn.Module):
    """One mutual-information term between global vectors and places of maps: critic x pool x negatives x estimator.

    symmetric averages it with the same estimate the other way round: anchors the A L own locations, pool the global vectors of
    the batch, K = A - 1 with a ceiling of its own. lipschitz, weight_clip: the two ways to hold a Wasserstein critic, as
    `slope` and `constrain` say; 0: neither. parts: in how many equal parts of the anchors scores are made, one after the other;
    pooled: of the estimator then, as `estimators.joined` takes it.
    """

    def __init__(
        self,
        critic: Critic,
        estimator: Callable[[Tensor, Tensor], Tensor],
        negatives: Callable[..., Tensor | None],
        pool: Callable[[Tensor, Tensor], Pool] = batch_pool,
        symmetric: bool = False,
        lipschitz: float = 0.0,
        weight_clip: float = 0.0,
        parts: int = 1,
        pooled: bool = False,
    ):
        super().__init__()
        self.critic, self.estimator, self.negatives, self.pool = critic, estimator, negatives, pool
        self.symmetric, self.lipschitz, self.weight_clip = symmetric, lipschitz, weight_clip
        self.parts, self.pooled = parts, pooled

    def forward(self, y: Tensor, m: Tensor, image: Tensor, seed: int, step: int, views: int = 1) -> Tensor:
        """y [views * N, Dy], m [views * N, Dm, L], image [N] -> the estimate, a scalar."""
        return self.estimate(self.scores(self.embed(y, m), image, seed, step, views))

    def embed(self, y: Tensor, m: Tensor) -> Pair:
        """Every vector once, of all views in one batch."""
        return Pair(*self.critic.embed(y, m))

    def scores(self, pair: Pair, image: Tensor, seed: int, step: int, views: int = 1) -> list[Scores]:
        """What the estimator is given, once for each of the `crossed` views; then of a symmetric term the other way round."""
        each = [self.of_anchors(self.side(one, image, seed, step), slice(None)) for one in crossed(pair, views)]
        return [scores for way in zip(*each, strict=True) for scores in way]

    def side(self, pair: Pair, image: Tensor, seed: int, step: int) -> Side:
        """The anchors of one view with all that they are set against."""
        pool = self.pool(pair.b, image)  # who may be a negative
        rows = self.negatives(pool, seed, step)  # rows of other images [A, K]; None: all of them
        back = distributed.gathered(pair.a)[:, None] if self.symmetric else None
        return Side(pair.a, pool, rows, back, distributed.places(pair.a))

    def of_anchors(self, side: Side, some: slice) -> list[Scores]:
        """Scores of some of the anchors; of a symmetric term those of their own locations as anchors too."""
        a, b = side.a[some], side.pool.b
        rows = None if side.rows is None else side.rows[some]
        # own locations [A, L], real negatives only [A, K]
        found = [Scores(*self.critic.scores(a, b, side.pool.own[some], side.pool.out[some], rows))]
        if side.back is not None:
            mine = b.index_select(0, side.pool.own[some])  # each anchor's own map [A, L, U]
            own = side.place[some].repeat_interleave(b.shape[1])  # of a location, its anchor
            neg = self.critic.pairs(mine.flatten(0, 1), side.back, own[:, None])  # [A L, A - 1]
            found.append(Scores(found[0].pos.reshape(-1, 1), neg))
        return found

    def estimate(self, scores: list[Scores]) -> Tensor:
        """The mean of the estimator over what `scores` gave, a scalar; larger is better."""
        return torch.stack([self.estimator(*one) for one in scores]).mean()

    def value(
        self, pair: Pair, image: Tensor, seed: int, step: int, views: int = 1, keep: bool = False
    ) -> tuple[Tensor, list[Scores]]:
        """The estimate, and the scores behind it; in parts those of the first part, where they are to be kept."""
        if self.parts == 1:
            scores = self.scores(pair, image, seed, step, views)
            return self.estimate(scores), scores
        sides = [self.side(one, image, seed, step) for one in crossed(pair, views)]
        size = len(pair.a) // views // self.parts
        somes = [slice(first, first + size) for first in range(0, size * self.parts, size)]
        values = torch.stack([self.in_parts(side, somes) for side in sides]).mean()
        with torch.no_grad():
            kept = [self.of_anchors(side, somes[0]) for side in sides] if keep else []
        return values, [scores for way in zip(*kept, strict=True) for scores in way]

    def in_parts(self, side: Side, somes: list[slice]) -> Tensor:
        """The estimate of one side, a scalar, with the scores of a part of the anchors at a time, made once more when their
        gradient is due; equal to that of all at once but for rounding."""

        def of_part(some: slice) -> tuple[Tensor, Tensor]:
            each = self.of_anchors(side, some)
            own = torch.stack([raised(pos).mean() for pos, _ in each])
            return torch.stack([self.estimator(*one) for one in each]), own

        parts = [checkpoint(of_part, some, use_reentrant=False) for some in somes]
        values, own = (torch.stack(each) for each in zip(*parts, strict=True))  # [parts, ways]
        return joined(values, own, self.pooled).mean()

    def slope(self, pair: Pair, image: Tensor, seed: int, step: int, views: int = 1) -> Tensor:
        """How far the critic is from slope 1: mean of max(0, |gradient of the score| - 1)^2, a scalar, 0 where it is Lipschitz.

        The gradient is with respect to (a, b), so T is held Lipschitz in the embedded vectors, not in the images. It is taken
        between own and negative pairs: at each location of each anchor, its map mixed with another image's map by a share drawn
        anew, as in Gulrajani et al. 2017 (arXiv 1704.00028), one-sided as in Petzka et al. 2018 (arXiv 1709.08894).
        """
        total = pair.a.new_zeros(())
        for a, b in crossed(pair, views):
            pool = self.pool(b, image)
            others = len(pool.b) - pool.out.shape[1]
            nth = (pool.own + torch.randint(others, (), generator=generator(seed, "partners", step)).to(b.device)) % others
            mine, other = (pool.b.index_select(0, at) for at in (pool.own, skipping(nth[:, None], pool.out)[:, 0]))
            draws = generator(seed, "slopes", step, device=b.device)
            share = torch.rand(len(a) * distributed.ranks(), b.shape[1], 1, generator=draws, device=b.device)
            share = share[distributed.places(a)].to(b.dtype)  # by place in the whole batch
            # expanded: each location has a gradient of its own
            at = torch.broadcast_tensors(a[:, None], share * mine + (1 - share) * other)
            at = [x if x.requires_grad else x.detach().requires_grad_() for x in at]
            gradients = torch.autograd.grad(self.critic.score(*at).sum(), at, create_graph=True)
            norm = torch.stack([raised(g).square().sum(-1) for g in gradients]).sum(0)
            # the square root's slope is infinite at 0, and below 1 it is not asked for
            total = total + (norm.clamp_min(1).sqrt() - 1).square().mean()
        return total / views

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep every weight of the critic within +- weight_clip, after a step (Arjovsky et al. 2017, arXiv 1701.07875): T's
        slope is then bounded where its inputs are, by a constant that nobody knows. A temperature is no weight."""
        if self.weight_clip:
            for weight in self.critic.parameters():
                if weight.ndim:
                    weight.clamp_(-self.weight_clip, self.weight_clip)

    def remember(self, pair: Pair, image: Tensor, step: int, views: int = 1, unless: Tensor | None = None) -> None:
        """Give the maps of this step to the queue, those of the first view: the other's show the same images. unless: a flag
        on the device; where it is set the queue stays as it is."""
        if isinstance(self.pool, Queue):
            self.pool.push(pair.b.chunk(views)[0], image, step, unless)


def crossed(pair: Pair, views: int) -> list[Pair]:
    """The vectors of one view with the maps of the other, and back; with one view just these.

    So no anchor meets the other view of its own image's map as a negative.
    """
    if views == 1:
        return [pair]
    (a1, a2), (b1, b2) = (t.chunk(2) for t in pair)
    return [Pair(a1, b2), Pair(a2, b1)]


class Embedded(NamedTuple):
    """All that the objective needs of a batch of pictures: the codes, and the vectors of each term."""

    y: Tensor
    local: Pair | None
    glob: Pair | None


class Losses(NamedTuple):
    """What each owner minimises, and the parts behind it: scalars on the device. scores: what each term was estimated from,
    detached, where asked for; of a symmetric term the first direction."""

    encoder: Tensor
    discriminator: Tensor | None
    parts: dict[str, Tensor]
    scores: dict[str, list[Scores]]


class Objective(nn.Module):
    """alpha * global + beta * local - gamma * prior, as two losses with two owners. A term without weight is not built."""

    def __init__(
        self,
        local: Term | None = None,
        glob: Term | None = None,
        prior: Prior | None = None,
        alpha: float = 0.0,
        beta: float = 1.0,
        gamma: float = 0.0,
    ):
        super().__init__()
        self.local, self.glob, self.prior = local, glob, prior
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, codes: Encoding, image: Tensor, seed: int = 0, step: int = 0, views: int = 1) -> Losses:
        """Encoding of views * N pictures, the first N of view one; image [N], their data-set numbers -> Losses."""
        return self.losses(self.embed(codes), image, seed, step, views)

    def embed(self, codes: Encoding) -> Embedded:
        """The part that looks at each picture by itself (batch statistics apart)."""
        local = None if self.local is None else self.local.embed(codes.y, places(codes.map))
        # the last map as one place: the paper's global critic sees it flattened
        glob = None if self.glob is None else self.glob.embed(codes.y, codes.conv.flatten(1)[:, :, None])
        return Embedded(codes.y, local, glob)

    def losses(
        self, at: Embedded, image: Tensor, seed: int = 0, step: int = 0, views: int = 1, keep_scores: bool = False
    ) -> Losses:
        """The part that sets pictures against each other -> Losses."""
        parts: dict[str, Tensor] = {}
        kept: dict[str, list[Scores]] = {}
        loss = at.y.new_zeros((), dtype=torch.float32 if at.y.dtype != torch.float64 else torch.float64)
        for name, term, weight, pair in self.terms(at):
            parts[name], scores = term.value(pair, image, seed, step, views, keep_scores)
            loss = loss - weight * parts[name]
            if term.lipschitz:
                parts[f"{name}_slope"] = term.slope(pair, image, seed, step, views)
                loss = loss + weight * term.lipschitz * parts[f"{name}_slope"]
            if keep_scores:
                first = scores[: len(scores) // (1 + term.symmetric)]
                kept[name] = [Scores(pos.detach(), neg.detach()) for pos, neg in first]
        if self.prior is None:
            return Losses(loss, None, parts, kept)
        parts["prior_encoder"] = self.prior.encoder_loss(at.y)
        sample = self.prior.sample(len(at.y) * distributed.ranks(), seed, step, at.y.device).unflatten(0, (views, -1))
        sample = distributed.mine(sample, dim=1).flatten(0, 1)  # by place in the whole batch
        parts["prior_discriminator"] = self.prior.discriminator_loss(at.y, sample)
        return Losses(loss + self.gamma * parts["prior_encoder"], parts["prior_discriminator"], parts, kept)

    def terms(self, at: Embedded) -> list[tuple[str, Term, float, Pair]]:
        """Name, term, weight and vectors of each term that was built."""
        every = (("local", self.local, self.beta, at.local), ("global", self.glob, self.alpha, at.glob))
        return [(name, term, weight, pair) for name, term, weight, pair in every if term is not None and pair is not None]

    def critics(self) -> nn.ModuleList:
        """The networks that `embed` runs."""
        return nn.ModuleList([term.critic for term in (self.local, self.glob) if term is not None])

    def constrain(self) -> None:
        """After an update of the weights: what `Term.constrain` says."""
        for term in (self.local, self.glob):
            if term is not None:
                term.constrain()

    def remember(self, at: Embedded, image: Tensor, step: int, views: int = 1, unless: Tensor | None = None) -> None:
        """After a step: what `Term.remember` says."""
        for _, term, _, pair in self.terms(at):
            term.remember(pair, image, step, views, unless)

    def ages(self, step: int) -> dict[str, float]:
        """Mean age of the rows in each queue, in steps: {"local/queue_age_steps": 12.5}; reads the device."""
        queues = {"local": self.local, "global": self.glob}
        found = {name: term.pool for name, term in queues.items() if term is not None and isinstance(term.pool, Queue)}
        return {f"{name}/queue_age_steps": queue.age(step).item() for name, queue in found.items()}
