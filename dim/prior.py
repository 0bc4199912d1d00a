"""Adversarial prior matching: keeps the distribution of the codes y close to a prior (paper, section 3.3, equation (7)).

Two losses, two owners. The discriminator D minimises `discriminator_loss`, which falls as it tells prior samples from codes;
the encoder minimises `encoder_loss`, which falls as D takes its codes for prior samples. The encoder's loss is the
non-saturating one, as in the official code; the paper writes the minimax form of the same game.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dim.estimators import jsd, raised, softplus
from dim.randomness import generator


class Prior(nn.Module):
    """The prior and its discriminator 1000-200-1 with ReLU.

    kind: "uniform" sets sigmoid(y) against U[0, 1]^d, as in the paper; "normal" sets y against N(0, I). Only the prior sees
    the sigmoid: critics and probes see y as it is.
    penalty: weight of half the mean squared gradient of D at samples and at codes (Mescheder et al. 2018), over the whole
    batch; the official code takes it at the last sample only.
    """

    def __init__(self, code_size: int, kind: str = "uniform", penalty: float = 0.0):
        super().__init__()
        self.code_size, self.kind, self.penalty = code_size, kind, penalty
        self.net = nn.Sequential(nn.Linear(code_size, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1))

    def squash(self, y: Tensor) -> Tensor:
        """Codes y [N, d] in the support of the prior [N, d]."""
        return raised(y).sigmoid() if self.kind == "uniform" else raised(y)

    def sample(self, n: int, seed: int, step: int, device: torch.device | str = "cpu") -> Tensor:
        """n draws of the prior [n, d], a function of seed, step and place."""
        draws = generator(seed, "prior", step, device=device)
        uniform = torch.rand(n, self.code_size, generator=draws, device=device)
        if self.kind == "uniform":
            return uniform
        return torch.special.ndtri(uniform.clamp_min(2**-25))  # torch.randn's first rows would depend on n

    def encoder_loss(self, y: Tensor) -> Tensor:
        """E sp(-D(y)), y [N, d] -> scalar, nats, log 2 at D = 0; no gradient reaches D."""
        frozen = {name: weight.detach() for name, weight in self.net.named_parameters()}
        with torch.autocast(y.device.type, enabled=False):
            return softplus(-functional_call(self.net, frozen, (self.squash(y),))).mean()

    def discriminator_loss(self, y: Tensor, sample: Tensor) -> Tensor:
        """2 log 2 - jsd(D(sample), D(y)) + penalty, y and sample [N, d] -> scalar, nats, 2 log 2 at D = 0.

        No gradient reaches the encoder. The first part is twice the binary cross-entropy of "sample" against "code".
        """
        with torch.autocast(y.device.type, enabled=False):
            code, sample = self.squash(y.detach()), sample.detach().to(raised(y).dtype)
            if self.penalty:
                code, sample = code.requires_grad_(), sample.requires_grad_()
            real, fake = self.net(sample), self.net(code)
            loss = 2 * math.log(2) - jsd(real, fake)
            if self.penalty:
                loss = loss + self.penalty / 2 * (squared_gradient(real, sample) + squared_gradient(fake, code))
            return loss


def squared_gradient(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean over the batch of the squared norm of d score / d input: scores [N, 1], inputs [N, d] -> scalar.

    A score depends on its own input only (no batch statistics in D), so the gradient of the sum holds each sample's.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.square().sum(1).mean()
