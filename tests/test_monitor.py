"""The monitor: its numbers by loops, its ceilings, and that a run's log holds them at logging steps only."""

import json
import math
from statistics import fmean, pstdev

import pytest
import torch
from conftest import tiny

import train
from dim import objective
from dim.critics import Dot
from dim.estimators import infonce
from dim.monitor import above, readings
from dim.negatives import Sampled
from dim.objective import Scores


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(a=5, places=3, k=7, seed=0):
    return Scores(1 + normal(a, places, seed=seed), normal(a, k, seed=seed + 1))


def test_every_number_by_loops():
    one = scores()
    pos, neg = (t.tolist() for t in one)
    flat_pos, flat_neg = ([t for row in rows for t in row] for rows in (pos, neg))
    expected_infonce = fmean(
        p - math.log(math.exp(p) + sum(map(math.exp, others))) + math.log(8)
        for mine, others in zip(pos, neg, strict=True)
        for p in mine
    )
    expected = {
        "read/infonce_nats": expected_infonce,
        "read/infonce_ceiling": math.log(8),
        "read/infonce_saturated": 0.0,
        "read/dv_nats": fmean(flat_pos) - math.log(fmean(map(math.exp, flat_neg))),
        "read/jsd_jsd": 2 * math.log(2)
        - fmean(math.log1p(math.exp(-p)) for p in flat_pos)
        - fmean(math.log1p(math.exp(n)) for n in flat_neg),
        "read/jsd_ceiling": 2 * math.log(2),
        "read/nwj_nats": 1 + fmean(flat_pos) - fmean(map(math.exp, flat_neg)),
        "read/smile_nats": fmean(flat_pos) - math.log(fmean(math.exp(max(-5, min(5, n))) for n in flat_neg)),
        "positive/mean": fmean(flat_pos),
        "positive/sd": pstdev(flat_pos),
        "negative/mean": fmean(flat_neg),
        "negative/sd": pstdev(flat_neg),
        "negatives_above": fmean(
            (n > p) + (n == p) / 2 for mine, others in zip(pos, neg, strict=True) for p in mine for n in others
        ),
    }
    found = {key: value.item() for key, value in readings([one], log_ratio=True).items()}
    assert found == pytest.approx(expected, rel=1e-12)
    without = readings([one], log_ratio=False)
    assert expected.keys() - without.keys() == {"read/nwj_nats", "read/smile_nats"}


def test_two_views_are_averaged():
    one, two = scores(seed=0), scores(seed=9)
    both, first, second = (readings(some, True) for some in ([one, two], [one], [two]))
    for key, value in both.items():
        assert value.item() == pytest.approx((first[key].item() + second[key].item()) / 2)


@pytest.mark.parametrize(("share", "saturated"), [(0.94, 0.0), (0.96, 1.0)])
def test_saturation_begins_within_5_percent_of_the_ceiling(share, saturated):
    """InfoNCE of constant scores p against 0 is log((K + 1) / (1 + K e^-p)): p is chosen for the share."""
    k = 15
    p = -math.log(((k + 1) ** (1 - share) - 1) / k)
    found = readings([Scores(torch.full((4, 2), p).double(), torch.zeros(4, k).double())], False)
    assert found["read/infonce_nats"].item() == pytest.approx(share * math.log(k + 1))
    assert found["read/infonce_saturated"].item() == saturated


def test_ties_are_halves():
    pos, neg = normal(5, 3).round(decimals=1), normal(5, 40, seed=1).round(decimals=1)
    lost = [(n > p) + (p == n) / 2 for a in range(5) for p in pos[a].tolist() for n in neg[a].tolist()]
    assert above(pos, neg).item() == pytest.approx(fmean(lost), abs=1e-12)
    assert above(torch.zeros(2, 3), torch.zeros(2, 4)).item() == 0.5
    assert above(torch.ones(2, 3), torch.zeros(2, 4)).item() == 0
    assert above(torch.zeros(2, 3), torch.ones(2, 4)).item() == 1


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("estimator", "log_ratio"), [("infonce", False), ("jsd", True)])
def test_the_log_of_a_run_holds_it(tmp_path, estimator, log_ratio):
    """Of a run that logs each step: the bound that was trained is read off the same scores."""
    assert train.main(tiny(tmp_path / "run", "--objective.local.estimator", estimator)) == 0
    found = rows(tmp_path / "run")
    assert len(found) == 3
    for row in found:
        unit = "nats" if estimator == "infonce" else "jsd"
        assert row[f"local/read/{estimator}_{unit}"] == pytest.approx(row[f"local/bound_{unit}"], rel=1e-4)
        assert row["local/read/infonce_ceiling"] == pytest.approx(math.log(1 + row["local/negatives_per_anchor"]), rel=1e-5)
        assert ("local/read/nwj_nats" in row) == log_ratio
        assert 0 <= row["local/negatives_above"] <= 1


def test_scores_are_kept_at_logging_steps_only(tmp_path, monkeypatch):
    """They would double the memory of a step."""
    kept, plain = [], objective.Objective.losses

    def losses(self, *args, **options):
        found = plain(self, *args, **options)
        kept.append(bool(found.scores))
        return found

    monkeypatch.setattr(objective.Objective, "losses", losses)
    assert train.main(tiny(tmp_path / "run", "--train.epochs", "2", "--run.log_every", "4")) == 0
    assert kept == [False, False, False, True, False, True]


def test_a_symmetric_term_is_watched_in_its_first_direction(tmp_path):
    assert train.main(tiny(tmp_path / "run", "--objective.local.symmetric", "true", "--views.number", "2")) == 0
    row = rows(tmp_path / "run")[-1]
    assert row["local/read/infonce_ceiling"] == pytest.approx(math.log(1 + row["local/negatives_per_anchor"]), rel=1e-5)


def test_so_is_one_of_a_single_location():
    """Where both directions have as many positives: the global term, three negatives sampled of seven."""
    torch.manual_seed(0)
    term = objective.Term(Dot(4, 5, 6, norm="none"), infonce, Sampled(3), symmetric=True)
    made = objective.Objective(glob=term, alpha=1.0)
    at = objective.Embedded(torch.randn(8, 4), None, term.embed(torch.randn(8, 4), torch.randn(8, 5, 1)))
    (kept,) = made.losses(at, torch.arange(8), keep_scores=True).scores["global"]
    assert kept.neg.shape == (8, 3)
    assert not kept.pos.requires_grad
    assert not kept.neg.requires_grad


def test_what_no_number_holds_is_none(tmp_path):
    """Unscaled scores of a jsd critic pass 89, where e^T is infinite in float32: the run goes on, the log says null."""
    words = ["--objective.local.estimator", "jsd", "--objective.local.scale", "100"]
    assert train.main(tiny(tmp_path / "run", *words)) == 0
    assert rows(tmp_path / "run")[0]["local/read/nwj_nats"] is None
