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

from dim.critics import Critic
from dim.encoders import Encoding, places
from dim.negatives import batch_pool
from dim.prior import Prior


class Term(nn.Module):
    """One mutual-information term between global vectors and places of maps: critic x pool x negatives x estimator.

    symmetric averages it with the same estimate the other way round: anchors the A L own locations, pool the global vectors,
    K = A - 1 with a ceiling of its own.
    """

    def __init__(
        self,
        critic: Critic,
        estimator: Callable[[Tensor, Tensor], Tensor],
        negatives: Callable[..., Tensor | None],
        pool: Callable[..., tuple[Tensor, Tensor, Tensor]] = batch_pool,
        symmetric: bool = False,
    ):
        super().__init__()
        self.critic, self.estimator, self.negatives, self.pool = critic, estimator, negatives, pool
        self.symmetric = symmetric

    def forward(self, y: Tensor, m: Tensor, image: Tensor, seed: int, step: int, views: int = 1) -> Tensor:
        """y [views * N, Dy], m [views * N, Dm, L], image [N] -> the estimate, a scalar.

        With two views the map of one meets the global vector of the other, and back: two estimates, averaged, each with one
        view in its pool. Every vector is embedded once, in one batch.
        """
        a, b = self.critic.embed(y, m)
        if views == 1:
            return self.estimate(a, b, image, seed, step)
        (a1, a2), (b1, b2) = a.chunk(2), b.chunk(2)
        return (self.estimate(a1, b2, image, seed, step) + self.estimate(a2, b1, image, seed, step)) / 2

    def estimate(self, a: Tensor, b: Tensor, image: Tensor, seed: int, step: int) -> Tensor:
        """a [A, U], b [A, L, U], image [A] -> scalar."""
        b, image, own = self.pool(b, image)  # who may be a negative
        mine = b.index_select(0, own)  # each anchor's own map [A, L, U]
        pos = self.critic.score(a[:, None], mine)  # own locations [A, L]
        rows = self.negatives(own, image, b.shape[1], seed, step)  # rows of other images [A, K]; None: all of them
        neg = self.critic.pairs(a, b, own, rows)  # real negatives only [A, K]
        value = self.estimator(pos, neg)  # larger is better
        if not self.symmetric:
            return value
        own = torch.arange(len(a), device=a.device).repeat_interleave(b.shape[1])  # of each location, its image's vector
        neg = self.critic.pairs(mine.flatten(0, 1), a[:, None], own)  # [A L, A - 1]
        return (value + self.estimator(pos.reshape(-1, 1), neg)) / 2


class Losses(NamedTuple):
    """What each owner minimises, and the parts behind it: scalars on the device."""

    encoder: Tensor
    discriminator: Tensor | None
    parts: dict[str, Tensor]


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
        parts: dict[str, Tensor] = {}
        loss = codes.y.new_zeros((), dtype=torch.float32 if codes.y.dtype != torch.float64 else torch.float64)
        if self.local is not None:
            parts["local"] = self.local(codes.y, places(codes.map), image, seed, step, views)
            loss = loss - self.beta * parts["local"]
        if self.glob is not None:  # the last map as one place: the paper's global critic sees it flattened
            parts["global"] = self.glob(codes.y, codes.conv.flatten(1)[:, :, None], image, seed, step, views)
            loss = loss - self.alpha * parts["global"]
        if self.prior is None:
            return Losses(loss, None, parts)
        parts["prior_encoder"] = self.prior.encoder_loss(codes.y)
        sample = self.prior.sample(len(codes.y), seed, step, codes.y.device)
        parts["prior_discriminator"] = self.prior.discriminator_loss(codes.y, sample)
        return Losses(loss + self.gamma * parts["prior_encoder"], parts["prior_discriminator"], parts)
