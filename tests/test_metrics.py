"""Statistics of the code against known answers, and the log that a resumed run cuts back."""

import json
import math
from statistics import median, pstdev

import pytest
import torch

from dim.build import TermFacts
from dim.config import UserError
from dim.metrics import JsonLines, bar_text, code_statistics, effective_rank, last_and_best, means


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(rows, columns):
    """Orthonormal columns [rows, columns], each of mean 0."""
    x = normal(rows, columns)
    return torch.linalg.qr(x - x.mean(0)).Q


# ---- effective rank


@pytest.mark.parametrize("d", [1, 2, 7])
def test_isotropic_codes_have_full_rank(d):
    assert effective_rank(3.7 * orthogonal(20, d)).item() == pytest.approx(d, abs=1e-9)


def test_codes_on_a_line_have_rank_one():
    line = normal(20, 1) * normal(1, 6, seed=1)
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-9)
    # a code whose mean is far from 0 is not thereby a line
    assert code_statistics(orthogonal(20, 6) + 1000)["code/effective_rank"] == pytest.approx(6, abs=1e-6)


def test_collapsed_codes_have_rank_one_and_no_nan():
    assert effective_rank(torch.zeros(8, 5)).item() == 1
    row = code_statistics(torch.full((8, 5), 0.25))
    assert row == {"code/sd_min": 0, "code/sd_median": 0, "code/dead_units": 5, "code/effective_rank": 1}


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_two_directions_by_the_entropy_of_their_variances(share):
    x = orthogonal(20, 2) * torch.tensor([share, 1 - share], dtype=torch.float64).sqrt()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert effective_rank(x).item() == pytest.approx(math.exp(entropy), abs=1e-9)


def test_rank_by_eigenvalues_of_the_covariance():
    y = normal(30, 5) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double()) @ normal(5, 5, seed=1) + 4
    shares = torch.linalg.eigvalsh(torch.cov(y.T))
    shares = (shares / shares.sum()).tolist()
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert 1.5 < expected < 4.5
    assert code_statistics(y)["code/effective_rank"] == pytest.approx(expected, abs=1e-9)
    assert code_statistics(100 * y)["code/effective_rank"] == pytest.approx(expected, abs=1e-9)


def test_rank_is_at_most_the_number_of_codes_less_one():
    assert code_statistics(normal(4, 50))["code/effective_rank"] <= 3 + 1e-9


# ---- code statistics


def test_standard_deviations_equal_a_loop():
    y = normal(9, 5) * torch.tensor([1.0, 0.2, 3.0, 0.5, 2.0])
    expected = [pstdev(column) for column in y.T.tolist()]
    row = code_statistics(y)
    assert row["code/sd_min"] == pytest.approx(min(expected), abs=1e-12)
    assert row["code/sd_median"] == pytest.approx(median(expected), abs=1e-12)
    assert row["code/dead_units"] == 0


def test_median_of_an_even_number_of_dimensions():
    y = normal(9, 4) * torch.tensor([1.0, 0.2, 3.0, 0.5])
    assert code_statistics(y)["code/sd_median"] == pytest.approx(median(pstdev(column) for column in y.T.tolist()), abs=1e-12)


def test_dead_units_are_those_below_a_thousandth():
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None]
    y = 5 + signs * torch.tensor([0.0, 0.0009, 0.0011, 1.0]).double()
    row = code_statistics(y)
    assert row["code/dead_units"] == 2
    assert isinstance(row["code/dead_units"], int)
    assert row["code/sd_min"] == 0


def test_half_precision_codes_and_gradients_are_no_obstacle():
    y = normal(16, 4).bfloat16().requires_grad_()
    assert code_statistics(y) == code_statistics(y.detach().float())


# ---- the log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path, rows, length=0):
    """Write rows behind `length` bytes of what is there; the length at the end."""
    log = JsonLines(path, length)
    for row in rows:
        log.write(row)
    return log.length


def test_rows_are_read_back_with_six_digits(path):
    row = {"step": 1234567, "bound": 1.23456789, "small": 1.23456789e-9, "none": None, "name": "x"}
    end = written(path, [row, {"step": 2}])
    assert rows_of(path) == [row | {"bound": 1.23457, "small": 1.23457e-09}, {"step": 2}]
    assert end == path.stat().st_size
    assert path.read_bytes().endswith(b"\n")


def test_a_row_is_on_the_disk_when_write_returns(path):
    log = JsonLines(path)
    for step in (1, 2):
        log.write({"step": step})
        assert rows_of(path)[-1] == {"step": step}
        assert log.length == path.stat().st_size


def test_a_resumed_run_cuts_back_to_its_checkpoint(path):
    """Rows behind the checkpoint's length are written anew, not twice; one that was cut short is gone."""
    kept = written(path, [{"step": 1}, {"step": 2}])
    written(path, [{"step": 3}], kept)
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert written(path, [{"step": 3, "again": True}], kept) == path.stat().st_size
    assert rows_of(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_new_run_starts_an_empty_file(path):
    path.write_text("what another run left\n")
    written(path, [{"step": 1}])
    assert rows_of(path) == [{"step": 1}]


def test_rows_of_earlier_processes_are_read_too(path):
    kept = written(path, [{"step": 1}, {"step": 2}])
    log = JsonLines(path, kept)
    log.write({"step": 3})
    assert log.rows() == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_last_and_best_of_what_is_better_when_larger():
    rows = [
        {"step": 1, "loss": 9.0, "local/bound_nats": -2.0, "local/ceiling_nats": 5.0},
        {"step": 2, "loss": 7.0, "local/bound_nats": 3.0, "probe/fc_accuracy": 0.5},
        {"step": 3, "loss": 8.0, "local/bound_nats": 3.0},
    ]
    assert last_and_best(rows, 4, 10) == {
        "step": 4,
        "steps": 10,
        "last": rows[2],
        "best": {"local/bound_nats": {"value": 3.0, "step": 2}, "probe/fc_accuracy": {"value": 0.5, "step": 2}},
    }
    assert last_and_best([], 4, 10) == {"step": 4, "steps": 10, "last": {}, "best": {}}


# ---- rows


TERMS = [TermFacts("local", "nats", 64, 4032, math.log(4033), 0, ""), TermFacts("global", "nats", 1, 63, None, 0, "")]


def test_means_are_over_steps_and_each_bound_says_its_ceiling():
    sums = {"steps": 4, "loss": -8, "gradient_norm": 2, "local": 10, "global": 6}
    sums |= {"prior_encoder": 3, "prior_discriminator": 5, "prior_gradient_norm": 7}
    row = means({name: torch.tensor(float(value)) for name, value in sums.items()}, TERMS)
    assert row == {
        "loss": -2.0,
        "gradient_norm": 0.5,
        "local/bound_nats": 2.5,
        "local/chance_nats": 0.0,
        "local/ceiling_nats": math.log(4033),
        "local/negatives_per_anchor": 4032,
        "global/bound_nats": 1.5,
        "global/chance_nats": 0.0,
        "global/ceiling_nats": None,
        "global/negatives_per_anchor": 63,
        "prior/encoder_loss_nats": 0.75,
        "prior/discriminator_loss_nats": 1.25,
        "prior/gradient_norm": 1.75,
    }


def test_rows_without_a_prior_say_nothing_of_one():
    sums = {"steps": 4, "loss": -8, "gradient_norm": 2, "local": 10}
    row = means({name: torch.tensor(float(value)) for name, value in sums.items()}, TERMS[:1])
    assert not [key for key in row if "prior" in key or "global" in key]


def test_bar_text():
    row = {"images_per_second": 1234.6, "local/bound_nats": 2.5, "global/bound_nats": 1.5, "probe/linear": 0.9314, "loss": 1.0}
    assert bar_text(row, TERMS) == "1,235 img/s, local 2.50 of 8.30 nats, global 1.50 nats, probe/linear 93.1%"


def test_a_log_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).write({"step": 1})
    with pytest.raises(UserError, match="is shorter than the checkpoint beside it says"):
        JsonLines(path, 1000)


@pytest.mark.parametrize("line", [b'{"step": 1, "loss" 2}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is damaged: put it back, or train in another folder"):
        JsonLines(path, path.stat().st_size).rows()
