"""Columns that a critic reads: standardised on training rows alone, by ranks or not."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

from dim.config import UserError
from dim.evals import columns
from dim.evals.columns import LIMIT, indicators, standardised, table


@pytest.fixture
def values():
    """200 rows of 70 columns, more than one block, of very different sizes."""
    draws = torch.Generator().manual_seed(0)
    return (torch.randn(200, 70, generator=draws, dtype=torch.float64) + 3) * torch.logspace(-20, 20, 70)


TRAIN = torch.arange(0, 200, 2)


@pytest.mark.parametrize("ranks", [False, True])
def test_mean_and_deviation_are_those_of_the_training_rows(values, ranks):
    before = values.clone()
    found, dead = standardised(values, TRAIN, ranks)
    assert torch.equal(values, before)
    assert (found.shape, found.dtype) == (values.shape, torch.float32)
    assert dead == 0
    assert found[TRAIN].mean(0).abs().max() < 1e-5
    assert (found[TRAIN].std(0, correction=0) - 1).abs().max() < 1e-5
    others = values.clone()
    others[1::2] *= 100
    assert torch.equal(standardised(others, TRAIN, ranks)[0][TRAIN], found[TRAIN])


def test_without_ranks_it_is_the_definition(values):
    found, _ = standardised(values, TRAIN, ranks=False)
    for column in (0, 40, 63, 64, 69):
        known = values[TRAIN, column]
        expected = (values[:, column] - known.mean()) / known.std(correction=0)
        assert torch.allclose(found[:, column], expected.float(), atol=1e-5)


def test_ranks_are_normal_quantiles_of_the_place_among_training_rows():
    values = torch.tensor([[5.0], [1.0], [1.0], [9.0], [7.0], [0.0], [100.0], [5.0], [6.0]])
    train = torch.arange(5)  # 1, 1, 5, 7, 9
    found, _ = standardised(values, train, ranks=True)
    places = [2.5, 1, 1, 4.5, 3.5, 0.5, 4.5, 2.5, 3]  # below and above the known ones: half a place from the end
    normal = torch.tensor([NormalDist().inv_cdf(place / 5) for place in places], dtype=torch.float64)
    expected = (normal - normal[train].mean()) / normal[train].std(correction=0)
    assert found[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_ranks_are_the_same_after_any_increasing_map():
    values = torch.randn(300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, _ = standardised(values, TRAIN, ranks=True)
    for mapped in (values**3, values.exp(), values.exp().exp(), 1e9 * values - 7):
        assert torch.equal(standardised(mapped, TRAIN, ranks=True)[0], found)


@pytest.mark.parametrize("ranks", [False, True])
def test_a_column_that_is_constant_in_training_is_dead_everywhere(ranks):
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    values[:50, 1] = 0.1
    found, dead = standardised(values, torch.arange(50), ranks)
    assert dead == 1
    assert (found[:, 1] == 0).all()
    assert found[:, [0, 2]].abs().amin() > 0


@pytest.mark.parametrize("scale", [2.0**-990, 2.0**990])
def test_the_unit_of_a_column_means_nothing(scale):
    values = torch.randn(100, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, _ = standardised(values, torch.arange(50), ranks=False)
    assert torch.equal(standardised(values * scale, torch.arange(50), ranks=False)[0], expected)


def test_what_lies_far_out_is_cut():
    values = torch.randn(100, 1, generator=torch.Generator().manual_seed(2))
    values[60], values[61] = 1e30, -1e30
    found, _ = standardised(values, torch.arange(50), ranks=False)
    assert (found[60].item(), found[61].item()) == (LIMIT, -LIMIT)


def test_discrete_columns_become_indicators_of_their_training_levels():
    draws = torch.Generator().manual_seed(3)
    grades, bits = torch.randint(4, (90, 1), generator=draws) * 10, torch.randint(2, (90, 1), generator=draws)
    values = torch.cat([torch.rand(90, 1, generator=draws), grades, bits], 1)
    values[60, 1] = 5  # no level of the training rows: in none of the indicators
    found, of = indicators(values, torch.arange(60))
    assert of.tolist() == [0, 1, 1, 1, 1, 2]
    assert found[:, [0, 5]].tolist() == values[:, [0, 2]].double().tolist()
    assert found[:, 1:5].tolist() == [[float(row[1] == level) for level in (0, 10, 20, 30)] for row in values]


def test_other_tables_stay_as_they_are(monkeypatch):
    draws = torch.Generator().manual_seed(3)
    for rows, values in (
        (30, torch.rand(90, 2, generator=draws)),  # 30 values in 30 rows are no levels
        (60, torch.randint(columns.LEVELS * 2, (90, 1), generator=draws)),
        (60, torch.randint(4, (90, 86), generator=draws)),  # 344 indicators
    ):
        found, of = indicators(values, torch.arange(rows))
        assert found is values
        assert of.tolist() == list(range(values.shape[1]))
    monkeypatch.setattr(columns, "INDICATORS", 7)
    grades = torch.randint(4, (90, 2), generator=draws)
    assert indicators(grades, torch.arange(60))[0] is grades  # 8 indicators
    assert indicators(grades[:, :1], torch.arange(60))[0].shape == (90, 4)


def test_arrays_of_every_kind_become_tables():
    draws = np.random.default_rng(0)
    maps = draws.random((40, 3, 2, 2))
    assert torch.equal(table(maps, "x"), torch.from_numpy(maps.reshape(40, 12)))
    assert table(np.arange(40), "x").shape == (40, 1)
    assert table(torch.zeros(40, 2, requires_grad=True), "x").requires_grad is False
    assert table(np.zeros((40, 2), bool), "x").shape == (40, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 2)), r"x has shape \[5, 2\] of torch.float64: needed are real numbers \[n, D\] with n at least 30"),
        (np.zeros((40, 0)), r"x has shape \[40, 0\]"),
        (np.float64(1), r"x has shape \[\]"),
        (torch.zeros(40, 2, dtype=torch.complex64), "complex64: needed are real"),
        (np.where(np.arange(80).reshape(40, 2) < 3, np.nan, 1.0), "x has 3 of 80 values that are not finite"),
        (np.full((40, 1), np.inf), "x has 40 of 40 values"),
        (np.array(["a"] * 40), "x is no array of numbers: "),
        ([[1.0], [1.0, 2.0]], "x is no array of numbers: "),
    ],
)
def test_what_is_no_table_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        table(values, "x")
