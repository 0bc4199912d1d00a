"""The critic of MINE and NDM: its training, its thirds, its read-out, and when it is believed."""

import math

import pytest
import torch
from torch import nn

from dim.config import UserError
from dim.estimators import dv, jsd, logmeanexp
from dim.evals import ratio
from dim.evals.mine import Pairs
from dim.evals.ratio import (
    Head,
    Measured,
    MovingAverage,
    Reading,
    best_scale,
    doubts,
    objective,
    read,
    score,
    spread,
    thirds,
    train,
)
from dim.randomness import generator


def scores(rows, shuffles, seed=0, spread=1.0):
    draws = torch.Generator().manual_seed(seed)
    pos, neg = (torch.randn(rows, n, generator=draws, dtype=torch.float64) * spread for n in (1, shuffles))
    return pos + 1, neg


# ---- the head


def test_the_head_is_its_definition_and_zero_before_training():
    torch.manual_seed(0)
    head, u = Head(8).double(), torch.randn(5, 3, 8, dtype=torch.float64)
    assert torch.equal(head(u), torch.zeros(5, 3).double())
    for layer in (head.out, head.skip):
        nn.init.normal_(layer.weight)
    nn.init.normal_(head.out.bias)
    for i in range(5):
        for j in range(3):
            first = h = [max(0.0, v) for v in u[i, j, :4].tolist()] + [v * v for v in u[i, j, 4:].tolist()]
            for layer in head.hidden:
                rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
                h = [max(0.0, sum(w * v for w, v in zip(row, h, strict=True)) + bias) for row, bias in rows]
            expected = sum(w * v for w, v in zip(head.out.weight[0].tolist(), h, strict=True)) + head.out.bias.item()
            expected += sum(w * v for w, v in zip(head.skip.weight[0].tolist(), first, strict=True))
            assert head(u)[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_the_critic_can_be_the_log_ratio_of_gaussians():
    """log r = (rho x z - rho^2 (x^2 + z^2) / 2) / (1 - rho^2) + constant: squares of x + z, x - z and z, linearly."""
    rho, critic = 0.7, Pairs(1, 1, units=6).double()
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    a, b = rho / (1 - rho**2), rho**2 / (1 - rho**2)
    critic.left.weight.data[3:, 0] = torch.tensor([1.0, 1.0, 0.0]).double()
    critic.right.weight.data[3:, 0] = torch.tensor([1.0, 0.0, 1.0]).double()
    critic.head.skip.weight.data[0, 3:] = torch.tensor([a / 2, -(a + b) / 2, -(a + b) / 2]).double()
    x, z = torch.randn(50, 1, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    pos, _ = critic((x, z), torch.arange(50), 1, torch.Generator())
    assert torch.allclose(pos, a * x * z - b * (x**2 + z**2) / 2, atol=1e-12)


# ---- MINE's moving average


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_moving_average_is_its_definition(decay):
    """Gradient e^T / (N average), the average with weights decay^age over all batches so far; the value is the plain one."""
    reduction, means = MovingAverage(decay), []
    for step in range(6):
        t = (torch.randn(7, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 3).requires_grad_()
        value = reduction(t)
        (gradient,) = torch.autograd.grad(value, t)
        means.append(t.detach().exp().mean().item())
        weights = [decay**age for age in reversed(range(len(means)))]
        average = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        assert value.item() == pytest.approx(logmeanexp(t.detach()).item(), abs=1e-12)
        assert gradient.tolist() == pytest.approx((t.detach().exp() / 7 / average).tolist(), rel=1e-9)


def test_the_moving_average_takes_scores_of_any_size():
    reduction = MovingAverage(0.99)
    for size in (-3000.0, 3000.0, -3000.0):
        t = torch.full((4, 2), size, requires_grad=True)
        value = reduction(t)
        (gradient,) = torch.autograd.grad(value, t)
        assert value.item() == size
        assert gradient.isfinite().all()
        assert gradient.sum().item() <= 100 + 1e-3  # 1 / (1 - decay)


def test_a_large_batch_mean_is_remembered_and_a_batch_mean_is_not_biased():
    """The mean over batches of the surrogate's gradient is that of the whole; of the plain log's it is not."""
    table = torch.randn(800, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2

    def slope(reduction):
        """d/ds of log mean e^(sT) at s = 1, averaged over batches of four."""
        total = 0.0
        for batch in table:
            s = torch.ones((), dtype=torch.float64, requires_grad=True)
            total += torch.autograd.grad(reduction(s * batch), s)[0].item()
        return total / len(table)

    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    truth = torch.autograd.grad(logmeanexp(s * table), s)[0].item()
    plain, corrected = slope(logmeanexp), slope(MovingAverage(0.999))
    assert abs(plain - truth) > 1.0
    assert abs(corrected - truth) < 0.3


def test_each_dv_objective_has_an_average_of_its_own():
    pos, neg = scores(6, 2)
    assert objective("jsd") is jsd
    first, second = objective("dv"), objective("dv")
    first(pos, neg + 50)
    t = neg.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(second(pos, t), t)
    assert gradient.sum().item() == pytest.approx(-1)
    assert second(pos, neg).item() == pytest.approx(dv(pos, neg).item())
    with pytest.raises(UserError, match="estimator is 'nwj': choose jsd or dv"):
        objective("nwj")


# ---- thirds


def test_thirds_are_disjoint_complete_and_new_for_each_seed():
    parts = thirds(100, 0)
    assert [len(part) for part in parts] == [34, 33, 33]
    assert torch.cat(parts).sort().values.tolist() == list(range(100))
    assert all(torch.equal(a, b) for a, b in zip(parts, thirds(100, 0), strict=True))
    assert not torch.equal(parts[0], thirds(100, 1)[0])


@pytest.fixture
def pairs():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=draws)
    return x, x[:, :1] + torch.randn(600, 1, generator=draws)


def estimated(data, split, steps=20):
    return ratio.estimate(data, lambda: Pairs(2, 1, 16), split, "jsd", steps, seed=0)


def test_reporting_rows_neither_train_nor_choose(pairs):
    split = thirds(600, 0)
    before = estimated(pairs, split)
    pairs[1][split[2]] = torch.randn(200, 1)
    after = estimated(pairs, split)
    for key in ("choosing_nats", "training_nats", "scale", "step"):
        assert before[key] == after[key]
    assert before["nats"] > after["nats"] + 0.05


def test_choosing_rows_do_not_train(pairs):
    split, seen = thirds(600, 0), set()

    class Spy(Pairs):
        def forward(self, data, rows, shuffles, draws):
            if self.training and torch.is_grad_enabled():
                seen.update(rows.tolist())
            return super().forward(data, rows, shuffles, draws)

    train(Spy(2, 1, 8), pairs, split[0], split[1], "jsd", 5, seed=0)
    assert seen == set(split[0].tolist())


def test_rows_and_shuffles_are_new_at_every_step(pairs):
    """One fixed shuffle, or one fixed order, lets a critic learn it by heart."""
    split, batches, seeds = thirds(600, 0), [], []

    class Spy(Pairs):
        def forward(self, data, rows, shuffles, draws):
            if torch.is_grad_enabled():
                batches.append(tuple(rows.tolist()))
                seeds.append(draws.initial_seed())
            return super().forward(data, rows, shuffles, draws)

    train(Spy(2, 1, 8), pairs, split[0], split[1], "jsd", 8, seed=0)
    assert len(set(batches)) == len(set(seeds)) == 8
    assert all(set(batch) == set(split[0].tolist()) for batch in batches)  # fewer rows than a batch: all of them


def test_the_best_stop_is_kept(pairs, monkeypatch):
    """By the value on the choosing rows: the critic kept reads there what it was kept for."""
    monkeypatch.setattr(ratio, "PATIENCE", 100)
    split, values = thirds(600, 0), []
    monkeypatch.setattr(ratio, "read", lambda *all: values.append(read(*all).value) or read(*all))
    torch.manual_seed(0)
    kept = train(Pairs(2, 1, 64), pairs, split[0][:40], split[1], "jsd", 200, seed=0)
    assert len(values) == 20
    assert kept.value == max(values) > values[-1]
    assert kept.step == 10 * (1 + values.index(max(values)))
    again = score(kept.critic, pairs, split[1], 4, generator(0, "look"))
    assert read(*again, best_scale(*again)).value == pytest.approx(kept.value)


def test_training_ends_when_nothing_gets_better(pairs, monkeypatch):
    monkeypatch.setattr(ratio, "PATIENCE", 2)
    looks = iter([0.1, 0.3, 0.2, 0.2])
    monkeypatch.setattr(ratio, "read", lambda *all: Reading(next(looks), 0.0, 0.0))
    kept = train(Pairs(2, 1, 8), pairs, *thirds(600, 0)[:2], "jsd", 40, seed=0)
    assert (kept.step, kept.value) == (4, 0.3)


def test_a_critic_that_found_nothing_yet_is_given_time(pairs, monkeypatch):
    """Parity stays at 0 for a while before it is found."""
    monkeypatch.setattr(ratio, "PATIENCE", 2)
    looks = iter([0.0] * 19 + [0.3])
    monkeypatch.setattr(ratio, "read", lambda *all: Reading(next(looks), 0.0, 0.0))
    assert train(Pairs(2, 1, 8), pairs, *thirds(600, 0)[:2], "jsd", 40, seed=0).step == 40


# ---- the read-out


def test_a_reading_is_donsker_varadhan_of_scaled_scores():
    pos, neg = scores(40, 6)
    for scale in (1.0, 0.3):
        found = read(pos, neg, scale)
        assert found.positive == pytest.approx(sum(scale * t for t in pos.flatten().tolist()) / 40)
        assert found.negative == pytest.approx(math.log(sum(math.exp(scale * t) for t in neg.flatten().tolist()) / 240))
        assert found.value == pytest.approx(dv(scale * pos, scale * neg).item())


def test_the_standard_error_is_that_of_the_best_critic():
    """At T = log r of d pairs the variance is d rho^2 / n + ((1 - rho^2)^-d - 1) / M; mean and spread over 200 samples."""
    rho, d, n, shuffles = 0.6, 2, 400, 4
    sizes = (n, n, n * shuffles, n * shuffles)
    x, noise, x_other, other = (
        torch.randn(200, m, d, generator=generator(0, "test", i), dtype=torch.float64) for i, m in enumerate(sizes)
    )

    def log_ratio(x, z):
        return ((rho * x * z - rho**2 * (x**2 + z**2) / 2) / (1 - rho**2) - math.log(1 - rho**2) / 2).sum(-1)

    pos = log_ratio(x, rho * x + math.sqrt(1 - rho**2) * noise)
    readings = [read(p[:, None], q.view(n, shuffles)) for p, q in zip(pos, log_ratio(x_other, other), strict=True)]
    truth = math.sqrt(d * rho**2 / n + ((1 - rho**2) ** -d - 1) / (n * shuffles))
    errors = torch.tensor([r.error for r in readings])
    values = torch.tensor([r.value for r in readings])
    assert errors.mean().item() == pytest.approx(truth, rel=0.05)
    assert values.std().item() == pytest.approx(truth, rel=0.2)
    assert values.mean().item() == pytest.approx(-d / 2 * math.log(1 - rho**2), abs=5 * truth / math.sqrt(200))


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
def test_the_best_scale_reads_highest(factor):
    pos, neg = scores(200, 5, spread=0.8)
    pos, neg = pos * factor, neg * factor
    best = best_scale(pos, neg)
    grid = torch.linspace(0, 2, 401).tolist()
    values = [read(pos, neg, scale).value for scale in grid]
    assert best == pytest.approx(grid[values.index(max(values))], abs=0.006)
    assert read(pos, neg, best).value >= max(values) - 1e-5


def test_a_reversed_critic_is_scaled_to_nothing():
    pos, neg = scores(50, 3)
    assert best_scale(pos - 3, neg) == 0
    assert read(pos - 3, neg, 0.0).value == pytest.approx(0, abs=1e-12)


def test_readings_of_enormous_scores_stay_finite():
    pos, neg = scores(50, 3, spread=3000.0)
    found = read(pos, neg)
    assert all(math.isfinite(number) for number in found)
    assert 0 <= best_scale(pos, neg) <= 2


# ---- whether to believe it


def measurement(value=1.0, choosing=1.01, error=0.01, second=0.0):
    reporting = Reading(value, 0.0, error)
    return Measured(20, 1.0, reporting, Reading(choosing, 0.0, error), reporting, Reading(value, second, error), 8)


def test_a_value_without_doubts_has_converged():
    assert doubts(measurement(), 0.99, "jsd", 5000) == []
    assert doubts(measurement(-0.01, 0.0), 0.0, "jsd", 100) == []
    assert doubts(measurement(), 0.99, "jsd", 21) == []  # log 21 = 3.04
    assert doubts(measurement(second=0.5), 0.99, "jsd", 5000) == []  # too sure of itself, which the scale mends
    assert doubts(measurement(second=-9.0), 0.99, "dv", 5000) == []  # its constant is free


@pytest.mark.parametrize(
    ("change", "half", "rows", "message"),
    [
        ({}, 0.8, 5000, "half of the rows and steps give 0.80 of 1.00 nats"),
        ({"error": 0.1}, 0.99, 5000, "the standard error is 0.10 nats"),
        ({"choosing": 1.3}, 0.99, 5000, "the rows that chose the critic give 1.30 nats, those that report 1.00"),
        ({"choosing": 0.7}, 0.99, 5000, "the rows that chose the critic give 0.70 nats, those that report 1.00"),
        ({"second": -0.5}, 0.99, 5000, "the second term was -0.50 before scaling, not 0"),
        ({}, 0.99, 19, "19 rows can certify about 2.9 nats"),
    ],
)
def test_each_doubt_is_said_with_its_numbers(change, half, rows, message):
    (found,) = doubts(measurement(**change), half, "jsd", rows)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("value", "half", "believed"), [(3.0, 2.87, True), (3.0, 2.75, False), (0.1, 0.07, True), (0.1, 0.05, False)]
)
def test_half_of_what_is_missing_decides(value, half, believed):
    """A tenth of the truth + 0.05 nats may be missing, the truth being value + 2 (value - half)."""
    missing = 2 * (value - half)
    assert believed == (missing <= 0.1 * (value + missing) + 0.05)
    assert believed == (doubts(measurement(value, value), half, "jsd", 5000) == [])


def test_a_doubt_is_no_convergence(pairs, monkeypatch):
    monkeypatch.setattr(ratio, "doubts", lambda *all: ["a reason"])
    found = estimated(pairs, thirds(600, 0), 2)
    assert (found["converged"], found["doubts"]) == (False, ["a reason"])
    monkeypatch.setattr(ratio, "doubts", lambda *all: [])
    assert estimated(pairs, thirds(600, 0), 2)["converged"] is True


def test_the_half_has_half_the_rows_and_steps_and_the_same_reporting_rows(pairs, monkeypatch):
    seen = []

    def spy(critic, data, rows, choosing, estimator, steps, seed):
        seen.append((len(rows), len(choosing), steps))
        return train(critic, data, rows, choosing, estimator, steps, seed)

    monkeypatch.setattr(ratio, "train", spy)
    found = estimated(pairs, thirds(600, 0), 20)
    assert seen == [(200, 200, 20), (100, 200, 10)]
    assert found["rows"] == [200, 200, 200]
    assert found["certifiable_nats"] == pytest.approx(math.log(200))
    assert found["nats"] == pytest.approx(found["positive_term"] - found["negative_term"])


def test_the_scale_is_that_of_the_choosing_rows_and_the_report_is_read_with_it(pairs, monkeypatch):
    split = thirds(600, 0)
    made, before = [], ratio.train
    monkeypatch.setattr(ratio, "train", lambda *given: made.append(before(*given)) or made[-1])
    found = ratio.measured(Pairs(2, 1, 8), pairs, split, "jsd", 200, seed=0)
    chosen = score(made[0].critic, pairs, split[1], ratio.SHUFFLES, generator(0, "choose"))
    reported = score(made[0].critic, pairs, split[2], ratio.SHUFFLES, generator(0, "report"))
    assert found.scale == best_scale(*chosen) != best_scale(*reported)
    assert found.scale != pytest.approx(1, abs=0.01)
    assert found.reporting == read(*reported, found.scale)
    assert found.choosing == read(*chosen, found.scale)
    assert found.unscaled == read(*reported)


def test_the_estimator_asked_for_trains(pairs):
    values = []
    for name in ("jsd", "dv", "jsd"):
        torch.manual_seed(0)  # the same first weights
        values.append(ratio.measured(Pairs(2, 1, 8), pairs, thirds(600, 0), name, 40, seed=0).reporting)
    assert values[0] != values[1]
    assert values[0] == values[2]


def test_spread_over_seeds():
    runs = [{"mi_nats": value, "converged": value > 1} for value in (1.0, 2.0, 3.0)]
    found = spread(runs, "mi_nats")
    assert (found["mi_nats"], found["sd"]) == (2.0, pytest.approx(1.0))
    assert found["converged"] == pytest.approx(2 / 3)
    assert found["runs"] == runs
    assert spread(runs[:1], "mi_nats")["sd"] is None
