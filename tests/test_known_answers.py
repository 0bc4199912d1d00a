"""The known answers: their truths, by other means, and what the tables say of their records."""

import json
import math
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import known_answers
from known_answers import TABLE, TASKS, near, verdict


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_enough_tasks_cannot_be_solved():
    assert sum(task.hopeless for _, task in TASKS.values()) >= 5
    assert len(TASKS) >= 20


@pytest.mark.parametrize("name", TASKS)
def test_every_task_draws_what_its_estimate_takes(name):
    kind, task = TASKS[name]
    drawn = task.draw(40, draws())
    if kind == "mine":
        x, z = drawn
        assert len(x) == len(z) == 40
    else:
        assert drawn.ndim == 2
        assert len(drawn) == 40


def student_density(v, freedom, rho):
    """log density of the multivariate t with scale matrix (1 - rho) I + rho."""
    d = v.shape[1]
    matrix = torch.full((d, d), rho, dtype=torch.float64).fill_diagonal_(1)
    square = ((v @ torch.linalg.inv(matrix)) * v).sum(1)
    size = math.lgamma((freedom + d) / 2) - math.lgamma(freedom / 2) - d / 2 * math.log(freedom * math.pi)
    return size - torch.logdet(matrix) / 2 - (freedom + d) / 2 * torch.log1p(square / freedom)


@pytest.mark.parametrize(("width", "freedom", "rho"), [(2, 1, 0.8), (5, 2, 0.0)])
def test_the_truth_of_t_is_the_mean_log_ratio(width, freedom, rho):
    v = known_answers.student(40_000, width, freedom, rho, draws())
    ratio = student_density(v, freedom, rho) - sum(student_density(v[:, [i]], freedom, 0.0) for i in range(width))
    margin = 5 * ratio.std().item() / 200
    assert margin < 0.05
    assert known_answers.student_nats(width, freedom, rho) == pytest.approx(ratio.mean().item(), abs=margin)


def test_the_truth_of_equicorrelated_gaussians_is_that_of_their_matrix():
    matrix = torch.full((10, 10), 0.5, dtype=torch.float64).fill_diagonal_(1)
    assert known_answers.equicorrelated_nats(10, 0.5) == pytest.approx(-torch.logdet(matrix).item() / 2)
    sampled = known_answers.equicorrelated(40_000, 10, 0.5, draws())
    assert torch.allclose(sampled.T.corrcoef(), matrix, atol=0.03)


def test_the_truth_of_the_table_is_its_sum():
    assert TABLE.sum().item() == pytest.approx(1)
    rows, columns = TABLE.sum(1).tolist(), TABLE.sum(0).tolist()
    total = sum(TABLE[i, j].item() * math.log(TABLE[i, j].item() / rows[i] / columns[j]) for i in range(8) for j in range(8))
    assert known_answers.table_nats(TABLE) == pytest.approx(total)
    i, j = known_answers.drawn_from(TABLE, 40_000, draws())
    seen = torch.bincount(8 * i + j, minlength=64).view(8, 8) / 40_000
    assert (seen - TABLE).abs().max() < 0.01


def test_one_of_many_has_ordinary_columns_whose_sum_is_correlated():
    x, z = known_answers.one_of_many(40_000, 6, 0.7, draws())
    assert torch.allclose(x.T.cov(), torch.eye(6).double(), atol=0.04)
    assert torch.cat([x.sum(1, keepdim=True), z], 1).T.corrcoef()[0, 1].item() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    ("converged", "estimate", "truth", "expected"),
    [
        (True, 0.95, 1.1, "right"),
        (True, 0.9, 1.1, "wrongly believed"),
        (False, 0.9, 1.1, "right"),
        (False, 1.2, 1.1, "wrongly doubted"),
        (True, 0.04, 0.0, "right"),
        (True, 9.0, math.inf, "wrongly believed"),
        (False, 9.0, math.inf, "right"),
    ],
)
def test_a_flag_is_right_within_a_tenth_and_a_twentieth_of_a_nat(converged, estimate, truth, expected):
    assert verdict(converged, estimate, truth) == expected


def test_near_is_a_tenth_and_a_twentieth_of_a_nat():
    assert near(1.14, 1.0)
    assert near(0.86, 1.0)
    assert not any(near(*pair) for pair in ((1.16, 1.0), (0.84, 1.0), (0.06, 0.0), (math.inf, math.inf)))


@pytest.mark.parametrize(("flags", "expected"), [("11000", False), ("11100", True), ("1100", False), ("1", True), ("0", False)])
def test_a_task_is_believed_where_more_than_half_of_its_seeds_are(flags, expected):
    assert known_answers.majority([{"converged": flag == "1"} for flag in flags]) == expected


@pytest.mark.parametrize(("estimate", "expected"), [(1.024, "none"), (1.1, "mine_gaussian_1"), (1.2, "mine_gaussian_1")])
def test_more_than_three_hundredths_and_a_twentieth_of_a_nat_above_the_truth_is_over_reported(estimate, expected):
    truth = TASKS["mine_gaussian_1"][1].truth
    runs = [{"mi_nats": estimate * truth + 0.05, "converged": True}]
    over, *_ = known_answers.summary({"mine_gaussian_1": runs})
    assert over == f"- Mean over seeds above truth + 0.05 nats + 3 %: {expected}"


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(known_answers, "RESULTS", tmp_path)
    return tmp_path


def test_a_record_is_written_once_and_read_by_the_tables(records, monkeypatch, capsys):
    asked = []

    def counted(*data, seed, **options):
        asked.append((len(data), seed, options))
        return {"mi_nats" if len(data) == 2 else "total_correlation_nats": 0.83} | terms(True)

    def terms(converged):
        return {"positive_term": 0.9, "negative_term": 0.07, "half_nats": 0.8, "converged": converged}

    monkeypatch.setattr(known_answers, "mine", counted)
    monkeypatch.setattr(known_answers, "ndm", counted)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["known_answers.py", "mine_cubes", "ndm_duplicated_few", "mine_gaussian_1_few"])
        assert known_answers.main() == 0
    assert len(asked) == 15
    for columns, tasks in ((2, 2), (1, 1)):  # of MINE two tasks, of NDM one
        seeds = sorted(seed for number, seed, _ in asked if number == columns)
        assert seeds == sorted([*known_answers.SEEDS] * tasks)
    assert len(list(records.iterdir())) == 15
    saved = json.loads((records / "ndm_duplicated_few_seed1.json").read_text())
    assert saved["truth_nats"] is None
    printed = capsys.readouterr().out
    cells = ["cubes of 1 pair, rho 0.9", "60,000", "0.830", "0.830", "0.000", "-0.000 (-0.0%)", "0.90", "0.07", "0.80"]
    assert f"| {' | '.join(cells)} | 5 of 5 | right |" in printed
    assert "| a Gaussian twice, hopeless | 3,000 | inf |" in printed
    assert "right 1 of 3 (33%), wrongly believed 2 of 3 (67%), wrongly doubted 0 of 3 (0%)" in printed
    assert "above truth + 0.05 nats + 3 %: none" in printed
    (records / "mine_cubes_seed3.json").write_text(json.dumps(saved | {"mi_nats": 9.0}))
    assert "above truth + 0.05 nats + 3 %: mine_cubes" in known_answers.tables()


def test_a_task_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["known_answers.py", "mine_cube"])
    with pytest.raises(SystemExit):
        known_answers.main()
    assert "there is no mine_cube; there are mine_gaussian_1" in capsys.readouterr().err


def test_the_version_of_the_code_does_not_see_docstrings(tmp_path, monkeypatch):
    (tmp_path / "dim" / "evals").mkdir(parents=True)
    for name in ("columns", "ratio", "mine", "ndm"):
        (tmp_path / "dim" / "evals" / f"{name}.py").write_text('"""A."""\n\ndef f():\n    """B."""\n    return 1  # c\n')
    monkeypatch.setattr(known_answers, "ROOT", tmp_path)
    before = known_answers.code()
    path = tmp_path / "dim" / "evals" / "mine.py"
    path.write_text('"""Other."""\n\ndef f():\n    """Words."""\n    return 1\n')
    assert known_answers.code() == before
    path.write_text("def f():\n    return 2\n")
    assert known_answers.code() != before
