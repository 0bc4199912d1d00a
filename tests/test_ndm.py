"""NDM: shuffles that keep columns and break rows, and total correlations that are known."""

import math
from collections import Counter

import pytest
import torch

from dim.evals import ndm as module
from dim.evals import ratio
from dim.evals.ndm import Rows, ndm, permuted, shifted

both_shuffles = pytest.mark.parametrize("shuffle", [shifted, permuted])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer looks and shuffles than a real estimate has."""
    monkeypatch.setattr(ratio, "STOPS", 5)
    monkeypatch.setattr(ratio, "SHUFFLES", 8)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- shuffles


@both_shuffles
@pytest.mark.parametrize(("rows", "columns"), [(8, 3), (8, 8), (5, 9), (2, 1)])
def test_every_column_keeps_its_values(shuffle, rows, columns):
    places = shuffle(rows, columns, draws())
    assert places.shape == (rows, columns)
    assert all(column.tolist() == list(range(rows)) for column in places.sort(0).values.T)


@both_shuffles
def test_every_call_is_new_and_any_row_may_meet_any_other(shuffle):
    generator, met = draws(), Counter()
    for _ in range(600):
        met.update(map(tuple, shuffle(4, 2, generator).tolist()))
    together = {pair for pair in met if pair[0] == pair[1]}
    assert (not together) if shuffle is shifted else len(together) == 4  # a quarter of the rows stays whole
    expected = 2400 / (12 if shuffle is shifted else 16)
    assert len(met) == (12 if shuffle is shifted else 16)
    assert max(abs(count - expected) for count in met.values()) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("columns", [2, 7, 16])
def test_shifted_columns_never_share_a_row(columns):
    places = shifted(16, columns, draws())
    assert all(len(set(row)) == columns for row in places.tolist())


def test_scores_are_those_of_rows_and_of_shuffled_rows(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    torch.manual_seed(0)
    of = torch.tensor([0, 0, 1, 2])  # two columns tell of the first dimension
    critic = Rows(of, units=8).double()
    torch.nn.init.normal_(critic.head.out.weight)
    torch.nn.init.normal_(critic.head.skip.weight)
    y, rows = torch.randn(20, 4).double(), torch.randperm(20, generator=draws(3))[:9]
    pos, neg = critic((y,), rows, 2, draws(1))
    generator = draws(1)
    for k in range(2):
        places = shifted(9, 3, generator)
        for i in range(9):
            mixed = torch.stack([y[rows[places[i, of[d]]], d] for d in range(4)])
            assert neg[i, k].item() == pytest.approx(critic.head(critic.first(mixed)).item(), abs=1e-12)
            assert pos[i, 0].item() == pytest.approx(critic.head(critic.first(y[rows[i]])).item(), abs=1e-12)


# ---- known total correlations; `benchmarks/known_answers.py` has more, with more rows


def rotated(n):
    a, b = torch.rand(2, n, 1, generator=draws())
    return torch.cat([a + b, a - b], 1)


def test_independent_columns():
    found = ndm(torch.rand(3000, 6, generator=draws()), steps=100)
    assert abs(found["total_correlation_nats"]) < 0.03
    assert found["converged"]


@both_shuffles
def test_parity_bits(shuffle):
    """log 2, though any two columns are independent."""
    bits = torch.randint(2, (3000, 2), generator=draws())
    found = ndm(torch.cat([bits, bits.sum(1, keepdim=True) % 2], 1), steps=150, shuffle=shuffle)
    assert found["total_correlation_nats"] == pytest.approx(math.log(2), abs=0.03)
    assert found["converged"]


def test_a_duplicated_bit_and_dead_columns():
    bit = torch.randint(2, (3000, 1), generator=draws())
    found = ndm(torch.cat([bit, torch.full((3000, 2), 3.0), bit, torch.rand(3000, 1, generator=draws(1))], 1), steps=150)
    assert found["total_correlation_nats"] == pytest.approx(math.log(2), abs=0.03)
    assert found["dead_columns"] == 2


def test_levels_of_a_discrete_column_are_shuffled_together():
    """Five levels are five indicators, which depend on each other; shuffled apart they would be worth about 1 nat."""
    y = torch.randint(5, (3000, 3), generator=draws())
    assert abs(ndm(y, steps=100)["total_correlation_nats"]) < 0.03
    y[:, 2] = (y[:, 0] + y[:, 1]) % 5
    assert ndm(y, steps=150)["total_correlation_nats"] == pytest.approx(math.log(5), rel=0.03)


def test_rotated_uniforms():
    found = ndm(rotated(6000), steps=200)
    assert found["total_correlation_nats"] == pytest.approx(1 - math.log(2), abs=0.07)


def test_the_sigmoid_is_applied_and_changes_no_total_correlation():
    y = rotated(3000) * 4 - 2
    plain = ndm(y, steps=60)
    assert ndm(y, steps=60, squash=True) == plain | {"squash": True}  # ranks do not see it
    scaled = [ndm(y, steps=60, squash=squash, ranks=False)["total_correlation_nats"] for squash in (False, True)]
    assert scaled[0] != scaled[1]
    assert scaled == pytest.approx([plain["total_correlation_nats"]] * 2, abs=0.15)


def test_one_column_has_none():
    assert ndm(torch.rand(300), steps=10)["total_correlation_nats"] == pytest.approx(0, abs=0.02)


def test_the_same_seed_gives_the_same_bits():
    y = rotated(300)
    first = ndm(y, seed=1, steps=20)
    assert ndm(y.double().numpy(), seed=1, steps=20) == first
    assert ndm(y, seed=2, steps=20) != first


def test_columns_are_fitted_on_the_rows_that_train(monkeypatch):
    x, z = (torch.randn(300, 2, generator=torch.Generator().manual_seed(i)) for i in range(2))
    given = []
    for part in ("indicators", "standardised"):
        before = getattr(module, part)
        monkeypatch.setattr(module, part, lambda *words, before=before: given.append(words[1]) or before(*words))
    ndm(torch.cat([x, z], 1), seed=3, steps=2)
    assert len(given) == 2
    assert all(torch.equal(rows, ratio.thirds(300, 3)[0]) for rows in given)
