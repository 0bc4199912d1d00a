"""Prior matching: whose loss it is, what it is worth, and that codes really move toward the prior."""

import math
from statistics import fmean

import pytest
import torch

from dim.prior import Prior

LOG2 = math.log(2)
each_kind = pytest.mark.parametrize("kind", ["uniform", "normal"])


def prior_of(kind="uniform", penalty=0.0, size=3, sharp=20.0):
    """In float64; `sharp` multiplies the last weights, so that D is far from 0."""
    torch.manual_seed(0)
    prior = Prior(size, kind, penalty).double()
    with torch.no_grad():
        prior.net[-1].weight *= sharp
    return prior


def codes_and_sample(prior, n=6):
    y = torch.randn(n, prior.code_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y.requires_grad_(), prior.sample(n, 0, 0).double()


def squashed(y, kind):
    return 1 / (1 + (-y).exp()) if kind == "uniform" else y


# ---- values


@each_kind
def test_losses_equal_the_definition(kind):
    """Cross-entropies, one number at a time: the sample's label is 1, the code's 0; the encoder wants 1 for its codes."""
    prior = prior_of(kind)
    y, sample = codes_and_sample(prior)
    with torch.no_grad():
        prior.net[-1].bias -= prior.net(sample).mean()  # verdicts of both signs
    real, fake = (prior.net(x).flatten().tolist() for x in (sample, squashed(y, kind)))
    assert min(real + fake) < -0.1 < 0.1 < max(real + fake)
    chance = [1 / (1 + math.exp(-t)) for t in fake]
    expected = -fmean(math.log(1 / (1 + math.exp(-t))) for t in real) - fmean(math.log(1 - p) for p in chance)
    assert prior.discriminator_loss(y, sample).item() == pytest.approx(expected, abs=1e-12)
    assert prior.encoder_loss(y).item() == pytest.approx(-fmean(map(math.log, chance)), abs=1e-12)


@each_kind
def test_an_undecided_discriminator(kind):
    prior = prior_of(kind, penalty=3.0)
    torch.nn.init.zeros_(prior.net[-1].weight)
    torch.nn.init.zeros_(prior.net[-1].bias)
    y, sample = codes_and_sample(prior)
    assert prior.encoder_loss(y).item() == pytest.approx(LOG2, abs=1e-15)
    assert prior.discriminator_loss(y, sample).item() == pytest.approx(2 * LOG2, abs=1e-15)


def test_the_discriminator_has_the_papers_size():
    assert sum(weight.numel() for weight in Prior(64).parameters()) == 64 * 1000 + 1000 + 1000 * 200 + 200 + 200 + 1


@each_kind
def test_penalty_equals_a_loop_over_samples(kind):
    """weight / 2 (mean |grad D|^2 at the samples + the same at the codes), in what the discriminator sees."""
    plain, fined = prior_of(kind), prior_of(kind, penalty=0.8)
    y, sample = codes_and_sample(fined)

    def mean_square(points):
        squares = []
        for point in points:
            x = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(fined.net(x[None]).squeeze(), x, create_graph=True)
            squares.append((gradient**2).sum())
        return sum(squares) / len(squares)

    expected = 0.4 * (mean_square(sample) + mean_square(squashed(y, kind).detach()))
    assert expected > 1e-3
    penalty = fined.discriminator_loss(y, sample) - plain.discriminator_loss(y, sample).item()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-9)
    base = torch.autograd.grad(plain.discriminator_loss(y, sample), list(plain.parameters()))
    total = torch.autograd.grad(fined.discriminator_loss(y, sample), list(fined.parameters()))
    loop = torch.autograd.grad(expected, list(fined.parameters()), allow_unused=True)  # biases: some have no part in it
    for whole, part, extra in zip(total, base, loop, strict=True):
        torch.testing.assert_close(whole - part, torch.zeros_like(part) if extra is None else extra)


# ---- two losses, two owners


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@each_kind
def test_each_gradient_reaches_only_its_owner(kind, penalty):
    prior = prior_of(kind, penalty)
    y, sample = codes_and_sample(prior)
    prior.encoder_loss(y).backward()
    assert y.grad.any()
    assert all(weight.grad is None for weight in prior.parameters())

    y.grad = None
    prior.discriminator_loss(y, sample).backward()
    assert y.grad is None
    assert all(weight.grad is not None and weight.grad.any() for weight in prior.net[0::2].parameters())


@each_kind
def test_a_step_of_the_encoder_raises_the_verdict_on_its_codes(kind):
    prior = prior_of(kind)
    y, _ = codes_and_sample(prior)
    (gradient,) = torch.autograd.grad(prior.encoder_loss(y), y)
    before, after = (prior.net(squashed(codes, kind)) for codes in (y, y - 0.1 * gradient))
    assert (after > before).all()


@each_kind
def test_a_step_of_the_discriminator_parts_samples_from_codes(kind):
    prior = prior_of(kind, sharp=1.0)
    y, sample = codes_and_sample(prior)

    def gap():
        return (prior.net(sample).mean() - prior.net(squashed(y, kind)).mean()).item()

    before = gap()
    gradients = torch.autograd.grad(prior.discriminator_loss(y, sample), list(prior.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(prior.parameters(), gradients, strict=True):
            weight -= 1e-3 * gradient
    assert gap() > before


def distance_to_prior(y, kind):
    """Kolmogorov-Smirnov: the largest gap between the codes' distribution function and the prior's, over all dimensions."""
    level = y.detach().double().sigmoid() if kind == "uniform" else torch.special.ndtr(y.detach().double())
    steps = torch.arange(1, len(y) + 1)[:, None] / len(y)
    return (level.sort(0).values - steps).abs().max().item()


@each_kind
def test_codes_move_to_the_prior(kind):
    """Codes that start as a narrow heap to one side, trained alternately: their distribution comes near the prior's."""
    torch.manual_seed(0)
    prior, distances = Prior(2, kind), []
    y = (0.3 * torch.randn(64, 2) + torch.tensor([1.5, -1.5])).requires_grad_()
    encoder, adversary = (torch.optim.Adam(p, lr, (0.5, 0.999)) for p, lr in (([y], 0.1), (prior.parameters(), 2e-3)))
    for step in range(100):
        distances.append(distance_to_prior(y, kind))
        adversary.zero_grad()
        prior.discriminator_loss(y, prior.sample(len(y), 0, step)).backward()
        adversary.step()
        encoder.zero_grad()
        prior.encoder_loss(y).backward()
        encoder.step()
    assert distances[0] > 0.7
    assert fmean(distances[-30:]) < 0.25  # they circle each other; 64 draws of the prior itself come to about 0.15


# ---- samples


def test_samples_come_from_the_prior():
    """Mean and variance within five standard errors, and (uniform) never out of [0, 1]."""
    n = 20_000
    uniform, normal = (Prior(2, kind).sample(n, 0, 0) for kind in ("uniform", "normal"))
    assert uniform.shape == normal.shape == (n, 2)
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() <= 1
    for draws, mean, var, fourth in [(uniform, 0.5, 1 / 12, 1 / 80), (normal, 0.0, 1.0, 3.0)]:
        assert (draws.mean(0) - mean).abs().max() < 5 * math.sqrt(var / n)
        assert (draws.var(0) - var).abs().max() < 5 * math.sqrt((fourth - var**2) / n)
        assert torch.corrcoef(draws.T)[0, 1].abs() < 5 / math.sqrt(n)


@each_kind
def test_a_sample_is_a_function_of_seed_and_step(kind):
    prior = prior_of(kind)
    first = prior.sample(8, 3, 5)
    torch.manual_seed(99)
    assert torch.equal(first, prior.sample(8, 3, 5))
    for seed, step in [(3, 6), (4, 5), (5, 3)]:
        assert not torch.isclose(first, prior.sample(8, seed, step)).any()


@pytest.mark.parametrize(
    "kind",
    [
        "uniform",
        "normal",
    ],
)
def test_a_sample_does_not_depend_on_the_size_of_the_batch(kind):
    prior = prior_of(kind)
    whole = prior.sample(64, 0, 0)
    for n in (1, 5, 33):
        assert torch.equal(prior.sample(n, 0, 0), whole[:n])


# ---- arguments


def test_the_callers_tensors_are_left_as_they_were():
    prior = prior_of(penalty=1.0)
    y, sample = codes_and_sample(prior)
    prior.discriminator_loss(y, sample)
    assert not sample.requires_grad


def test_encoder_loss_keeps_float64():
    prior = prior_of()
    with torch.no_grad():
        prior.net[-1].weight.zero_()
        prior.net[-1].bias.fill_(-21.0)
    y, _ = codes_and_sample(prior)
    assert prior.encoder_loss(y).item() == pytest.approx(21 + math.log1p(math.exp(-21)), abs=1e-13)


@each_kind
def test_losses_under_autocast_are_float32(kind):
    prior = prior_of(kind, penalty=1.0).float()
    y, sample = (t.float() for t in codes_and_sample(prior))
    with torch.autocast("cpu", torch.bfloat16):
        low = prior.encoder_loss(y.bfloat16()), prior.discriminator_loss(y.bfloat16(), sample.clone())
    y = y.bfloat16().float()
    exact = prior.encoder_loss(y), prior.discriminator_loss(y, sample.clone())
    for one, other in zip(low, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
