"""MINE: the critic by its definition, and informations that are known."""

import math

import numpy as np
import pytest
import torch

from dim.config import UserError
from dim.evals import mine as module
from dim.evals import ratio
from dim.evals.mine import Pairs, mine


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer looks and shuffles than a real estimate has."""
    monkeypatch.setattr(ratio, "STOPS", 5)
    monkeypatch.setattr(ratio, "SHUFFLES", 8)


def gaussians(n, pairs, rho, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, pairs, generator=draws) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.fixture
def critic():
    """A critic whose scores are not 0."""
    torch.manual_seed(0)
    made = Pairs(3, 2, 8).double()
    torch.nn.init.normal_(made.head.out.weight)
    torch.nn.init.normal_(made.head.skip.weight)
    return made


def test_scores_are_those_of_concatenated_pairs(critic, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)  # rows in three parts
    draws = torch.Generator().manual_seed(1)
    x, z = torch.randn(12, 3, generator=draws).double(), torch.randn(12, 2, generator=draws).double()
    rows = torch.tensor([3, 1, 4, 11, 5, 9, 2, 6, 0])
    pos, neg = critic((x, z), rows, 3, torch.Generator().manual_seed(5))
    shifts = (1 + torch.randperm(8, generator=torch.Generator().manual_seed(5))[:3]).tolist()
    weight = torch.cat([critic.left.weight, critic.right.weight], 1)  # W of W[x; z]

    def definition(i, j):
        return critic.head(weight @ torch.cat([x[i], z[j]]) + critic.left.bias).item()

    assert (pos.shape, neg.shape) == ((9, 1), (9, 3))
    for place, row in enumerate(rows.tolist()):
        assert pos[place].item() == pytest.approx(definition(row, row), abs=1e-12)
        for k, shift in enumerate(shifts):
            assert neg[place, k].item() == pytest.approx(definition(row, rows[(place - shift) % 9]), abs=1e-12)


@pytest.mark.parametrize("rows", [2, 5, 9])
@torch.no_grad()
def test_no_own_pair_is_among_the_shifted_ones(critic, rows):
    """All shifts there are: every other row of z meets each x once, never its own."""
    x, z = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    pos, neg = critic((x, z), torch.arange(rows), 100, torch.Generator().manual_seed(0))
    assert neg.shape == (rows, rows - 1)
    for place in range(rows):
        others = [critic((x, z[[j] * 9]), torch.tensor([place, place]), 1, torch.Generator())[0][0] for j in range(rows)]
        expected = torch.cat(others[:place] + others[place + 1 :])
        assert torch.allclose(neg[place].sort().values, expected.sort().values)
        assert pos[place, 0].item() == pytest.approx(others[place].item())


@pytest.mark.parametrize("estimator", ["jsd", "dv"])
def test_one_pair_of_gaussians(estimator):
    """0.511 nats, 1,000 training rows."""
    found = mine(*gaussians(3000, 1, 0.8), steps=150, estimator=estimator)
    assert found["mi_nats"] == pytest.approx(-math.log(1 - 0.64) / 2, abs=0.08)
    assert found["mi_nats"] == found["positive_term"] - found["negative_term"]
    assert 0 < found["standard_error"] < 0.05
    assert found["converged"]
    assert found["estimator"] == estimator


def test_independent_rows():
    found = mine(gaussians(3000, 5, 0, seed=1)[0], gaussians(3000, 5, 0, seed=2)[1], steps=100)
    assert abs(found["mi_nats"]) < 0.03
    assert found["converged"]


def test_heavy_tails_need_ranks():
    x, z = gaussians(3000, 1, 0.8)
    plain = mine(x, z, steps=100)
    cauchy = [torch.tan((torch.special.ndtr(v.double()) - 0.5) * math.pi) for v in (x, z)]
    assert mine(*cauchy, steps=100)["mi_nats"] == pytest.approx(plain["mi_nats"], abs=1e-3)
    assert mine(*cauchy, steps=100, ranks=False)["mi_nats"] < plain["mi_nats"] - 0.1


def test_too_few_rows_for_what_there_is_to_learn():
    """20 pairs, 10 nats, 100 training rows: the estimate is far off and says so."""
    found = mine(*gaussians(300, 20, math.sqrt(1 - math.exp(-1))), steps=100)
    assert found["mi_nats"] < 6
    assert not found["converged"]
    assert found["doubts"]
    assert found["certifiable_nats"] == pytest.approx(math.log(100))


def test_a_copy_is_never_believed():
    """Its information is infinite."""
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    found = mine(x, x, steps=200)
    assert not found["converged"]
    assert found["positive_term"] - found["negative_term"] > found["certifiable_nats"] + 1  # too good to be true
    assert found["mi_nats"] == found["certifiable_nats"] == pytest.approx(math.log(200))


def test_dead_columns_change_nothing_but_the_count():
    x, z = gaussians(900, 2, 0.8)
    found = mine(torch.cat([x, torch.full((900, 3), 0.1)], 1), z[:, :1] * 0 + 5, steps=20)
    assert found["dead_columns"] == [3, 1]
    assert found["mi_nats"] == pytest.approx(0, abs=0.01)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state():
    x, z = gaussians(300, 2, 0.8)
    state = torch.random.get_rng_state()
    first = mine(x, z, seed=1, steps=20)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert mine(x.numpy(), z.double().numpy(), seed=1, steps=20) == first
    assert mine(x, z, seed=2, steps=20)["mi_nats"] != first["mi_nats"]


def test_arrays_of_any_shape_and_layers_as_maps():
    maps = torch.rand(60, 3, 2, 2).numpy()
    assert math.isfinite(mine(maps, np.arange(60), steps=2)["mi_nats"])


def test_rows_that_are_no_pairs_are_refused():
    with pytest.raises(UserError, match="x has 40 rows and z 50: they must be pairs"):
        mine(torch.zeros(40, 1), torch.zeros(50, 1))
    with pytest.raises(UserError, match="z has shape"):
        mine(torch.zeros(40, 1), torch.zeros(40, 0))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [3072, 4096])
def test_wide_inputs_cost_one_copy_and_a_few_minutes(columns):
    """50,000 rows of raw pixels or of maps against 64 columns: peak memory above the input, in GB of float32 copies."""
    import resource

    x = torch.empty(50_000, columns).normal_(generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = mine(x, x[:, :64].cos())
    assert math.isfinite(found["mi_nats"])
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert more < 2 * x.nbytes


def test_columns_are_fitted_on_the_rows_that_train(monkeypatch):
    x, z = (torch.randn(300, 2, generator=torch.Generator().manual_seed(i)) for i in range(2))
    given = []
    for part in ("indicators", "standardised"):
        before = getattr(module, part)
        monkeypatch.setattr(module, part, lambda *words, before=before: given.append(words[1]) or before(*words))
    mine(x, z, seed=3, steps=2)
    assert len(given) == 4
    assert all(torch.equal(rows, ratio.thirds(300, 3)[0]) for rows in given)
