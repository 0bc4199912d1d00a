"""The MLP under both protocols."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dim.data import Dataset, Split
from dim.evals import mlp
from dim.evals.protocol import Columns, probe


def rings(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An inner disc and a ring round it in three dimensions: no linear probe tells them apart."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    x = torch.nn.functional.normalize(torch.randn(n, 3, generator=draws), dim=1) * (0.5 + labels[:, None])
    return x + 0.1 * torch.randn(n, 3, generator=draws), labels + 4


def test_it_learns_what_no_linear_probe_can(monkeypatch):
    monkeypatch.setattr(mlp, "CLEAN", mlp.CLEAN._replace(dropout=0.0, batch=50))
    x, labels = rings(1500)
    tried = dict(zip(range(30), mlp.search(x[:1000], labels[:1000], x[1000:]), strict=False))
    assert [value for value, _ in tried.values()] == list(range(1, 31))
    assert (tried[29][1] == labels[1000:]).float().mean() > 0.95


def test_a_fit_is_a_function_of_its_data_and_of_nothing_else():
    x, labels = rings(400)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    (first, _), (other, _) = mlp.predict(x, labels, x, 20, [None, None])
    assert torch.equal(state, torch.get_rng_state())  # the caller's random state is left as it was
    torch.manual_seed(2)
    (again, _), *_ = mlp.predict(x, labels, x, 20, [None])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # each resample has first weights of its own
    looks = mlp.search(x, labels, x)
    assert next(looks)[0] == 10
    epochs, searched = next(looks)
    assert epochs == 20
    assert torch.equal(searched, first)  # what was chosen on validation images is what is fitted again


@pytest.mark.parametrize(("images", "every"), [(1, 10), (100, 10), (499, 10), (1257, 2), (2500, 1), (50_000, 1)])
def test_looks_are_ten_steps_apart_or_an_epoch(images, every):
    assert list(mlp.looks_of(images)) == [every * look for look in range(1, 101)]


@pytest.mark.parametrize(("best", "converged"), [(30, True), (40, False), (80, False)])
def test_a_number_of_epochs_near_the_last_is_not_believed(best, converged):
    """The looks are those at the fitting images, 10 epochs apart; at all images they would be 5 apart."""
    x, labels = rings(600)
    labels -= 4
    images = torch.zeros(600, 1, 8, 8, dtype=torch.uint8)
    data = Dataset("made", Split(images, labels), Split(images[:50], labels[:50]), 2)

    def search(x, labels, x_validation):
        for count in range(10, 90, 10):
            yield count, data.train.labels[data.validation(0)[1]] if count == best else torch.zeros(len(x_validation))

    cell = probe(replace(mlp.MLP, search=search), "rings", x, x[:50], data, 0, Columns(resampled=False))["all"]
    assert (cell["epochs"], cell["converged"]) == (best, converged)


def test_the_network_is_the_papers():
    net = mlp.network(64, 10, 0.1)
    kinds = [type(layer) for layer in net]
    assert kinds == [mlp.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert net[1].weight.shape == (200, 64)
    assert net[0].share == 0.1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_dropout_is_torchs_but_for_its_draws(share):
    drop, x = mlp.Dropout(share), torch.full((301, 999), 2.0, requires_grad=True)
    torch.manual_seed(0)
    found, again = drop(x), drop(x)
    n = x.numel()
    assert (found == 0).double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5)
    torch.testing.assert_close(found[found != 0], torch.full_like(found[found != 0], 2 / (1 - share)))
    both = ((found == 0) & (again == 0)).double().mean().item()  # independent from one pass to the next
    assert both == pytest.approx(share**2, abs=5 * (share / n) ** 0.5)
    beside = ((found[:, 1:] == 0) & (found[:, :-1] == 0)).double().mean().item()  # and from one number to the next
    assert beside == pytest.approx(share**2, abs=5 * (share / n) ** 0.5)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, found.detach() / 2)
    assert drop.eval()(x) is x


def test_rates_fall_after_their_epochs_and_dropout_is_on_in_training_only(monkeypatch):
    x, labels = rings(200)
    rates, modes = [], []
    step = torch.optim.Adam.step

    def spy(self, *others, **more):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *others, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    recipe = mlp.Recipe(0.1, 1.0, (0.9, 0.999), 200, drops=(1, 3))
    for net in mlp.epochs(x, labels, 4, recipe):
        modes.append(net.training)
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert modes == [False] * 4


def test_each_epoch_has_an_order_and_dropout_masks_of_its_own(monkeypatch):
    orders, masks, network = [], [], mlp.network

    def noted(*sizes):
        net = network(*sizes)
        net[0].register_forward_hook(lambda layer, inputs, out: note(inputs[0], out))
        return net

    def note(x: torch.Tensor, out: torch.Tensor) -> None:
        orders.append(x[:, 0].long().tolist())
        masks.append((out == 0).flatten().tolist())

    monkeypatch.setattr(mlp, "network", noted)
    x = torch.arange(1.0, 31.0)[:, None].expand(30, 8)
    for _ in mlp.epochs(x, torch.arange(30) % 2, 4, mlp.Recipe(0.5, 1e-3, (0.9, 0.999), 15)):
        pass
    epochs = [orders[i] + orders[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(epoch) == list(range(1, 31)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({tuple(mask) for mask in masks}) == 8


def test_the_papers_protocol_is_the_mean_of_the_last_epochs(monkeypatch):
    assert (mlp.PAPER_EPOCHS, mlp.PAPER_LAST) == (200, 100)
    monkeypatch.setattr(mlp, "PAPER_EPOCHS", 6)
    monkeypatch.setattr(mlp, "PAPER_LAST", 3)
    x, labels = rings(300)
    found = mlp.paper(x[:200], labels[:200], x[200:], labels[200:])
    scores = []
    for net in mlp.epochs(x[:200], labels[:200], 6, mlp.PAPER):
        scores.append((net(x[200:]).argmax(1) + 4 == labels[200:]).double().mean().item())
    assert found["accuracy"] == pytest.approx(sum(scores[3:]) / 3)
    assert (found["lowest"], found["highest"]) == (min(scores[3:]), max(scores[3:]))
    assert (mlp.PAPER.dropout, mlp.CLEAN.dropout) == (0.1, 0.5)
    assert (mlp.PAPER.lr, mlp.PAPER.betas, mlp.PAPER.batch, mlp.PAPER.drops) == (1e-4, (0.5, 0.999), 64, (50, 100))


def test_fewer_images_than_a_batch_are_one_batch():
    x, labels = rings(20)
    (found, _), *_ = mlp.predict(x, labels, x, 3, [None])
    assert set(found.tolist()) <= {4, 5}
