"""Gaussians of known information: the density ratio, the draws, a run, and what is refused."""

import json
import math
import os
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from scipy.stats import multivariate_normal, norm

import evaluate
import train
from dim import checkpoint, gaussian
from dim.critics import Critic
from dim.estimators import infonce, nwj
from dim.gaussian import correlation, log_ratio, pairs
from dim.guard import Guard
from dim.reading import open_axes

CONFIG = ROOT / "configs" / "negatives_gaussian.yaml"


@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize("information", [0.5, 4.0, 10.0])
def test_the_correlation_has_the_information(information, d):
    assert -d / 2 * math.log(1 - correlation(information, d) ** 2) == pytest.approx(information, rel=1e-7)


def test_the_log_ratio_against_scipys_densities():
    rho, draws = 0.7, torch.Generator().manual_seed(0)
    x, z = torch.randn(5, 3, generator=draws, dtype=torch.float64), torch.randn(5, 3, generator=draws, dtype=torch.float64)
    joint = multivariate_normal([0, 0], [[1, rho], [rho, 1]])
    for one, other, found in zip(x.tolist(), z.tolist(), log_ratio(x, z, rho).tolist(), strict=True):
        expected = sum(joint.logpdf([a, b]) - norm.logpdf(a) - norm.logpdf(b) for a, b in zip(one, other, strict=True))
        assert found == pytest.approx(expected, abs=1e-12)


def test_own_pairs_are_correlated_and_no_others():
    rho, n, d = 0.8, 20_000, 2
    x, z = pairs(n, 2 * n, d, rho, 0, "pairs", 3)
    assert x.shape == (n, d)
    assert z.shape == (2 * n, d)
    for i in range(d):
        for j in range(d):
            both = torch.corrcoef(torch.stack([x[:, i], z[:n, j]]))[0, 1].item()
            assert both == pytest.approx(rho if i == j else 0, abs=0.03)
            assert abs(torch.corrcoef(torch.stack([x[:, i], z[n:, j]]))[0, 1].item()) < 0.03
    assert z.var(0).tolist() == pytest.approx([1, 1], abs=0.03)


def test_draws_are_a_function_of_seed_purpose_and_step():
    first = pairs(4, 8, 3, 0.5, 1, "pairs", 2)
    assert all(map(torch.equal, first, pairs(4, 8, 3, 0.5, 1, "pairs", 2)))
    for place in ((2, "pairs", 2), (1, "held out", 2), (1, "pairs", 3)):
        assert not torch.equal(first[0], pairs(4, 8, 3, 0.5, *place)[0])


class Best(Critic):
    """The best critic in a term's place; embeds nothing."""

    def __init__(self, rho):
        super().__init__()
        self.rho = rho

    def embed(self, y, m):
        return y, m.transpose(1, 2)

    def score(self, a, b):
        return log_ratio(*torch.broadcast_tensors(a, b), self.rho)


def config(*words):
    return train.read(["--config", str(CONFIG), "--seed", "0", *words], CONFIG)[0]


WORDS = ["--objective.local.estimator", "nwj", "--objective.local.k", "63", "--data.information", "1"]


def test_held_out_values_at_the_best_critic_are_what_theory_says():
    """NWJ's mean is I, InfoNCE with many negatives close below it, both within what their draws allow."""
    made = config(*WORDS)
    term = gaussian.Term(Best(correlation(1.0, 20)), nwj, gaussian.build.NEGATIVES["sampled"](63))
    found = gaussian.held_out(made, term, 64, log_ratio=True)
    mean, sd = found["bound"]
    assert mean == pytest.approx(1, abs=4 * sd / gaussian.DRAWS**0.5)
    fresh, sd = found["infonce_4096_nats"]
    assert fresh == pytest.approx(1, abs=0.01 + 4 * sd / gaussian.FRESH**0.5)
    assert found["read/nwj_nats"][0] == pytest.approx(mean, rel=1e-5)
    assert found["truth_nats"] == 1


def test_fresh_negatives_are_those_of_other_draws():
    """Each anchor against the same 4,096 vectors that are paired with nothing: the value by hand."""
    made = config(*WORDS)
    rho = correlation(1.0, 20)
    term = gaussian.Term(Best(rho), nwj, gaussian.build.NEGATIVES["sampled"](63))
    x, z = pairs(64, 64 + 4096, 20, rho, 0, "fresh", 0)
    values = []
    for draw in range(gaussian.FRESH):
        x, z = pairs(64, 64 + 4096, 20, rho, 0, "fresh", draw)
        neg = torch.stack([log_ratio(one, z[64:], rho) for one in x])
        values.append(infonce(log_ratio(x, z[:64], rho)[:, None], neg).item())
    mean, sd = gaussian.held_out(made, term, 64, False)["infonce_4096_nats"]
    assert mean == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert sd == pytest.approx(statistics.stdev(values), rel=1e-4)


def test_what_is_held_out_was_not_trained_on(monkeypatch, tmp_path):
    """The draws of the end are none of the steps'."""
    seen, plain = [], gaussian.pairs

    def spied(*args):
        seen.append(args[-3:])
        return plain(*args)

    monkeypatch.setattr(gaussian, "pairs", spied)
    gaussian.train(replace(config(*WORDS, "--train.steps", "70", "--objective.local.units", "8"), seed=7), tmp_path / "run")
    assert len(set(seen)) == len(seen) == 70 + gaussian.DRAWS + gaussian.FRESH
    assert {(seed, purpose) for seed, purpose, _ in seen} == {(7, "pairs"), (7, "held out"), (7, "fresh")}


def test_the_rate_follows_the_schedule(tmp_path, monkeypatch):
    made, plain = [], gaussian.build.optimizer
    monkeypatch.setattr(gaussian.build, "optimizer", lambda *args: made.append(plain(*args)) or made[-1])
    c = config(*WORDS, "--train.steps", "4", "--objective.local.units", "8")
    gaussian.train(c, tmp_path / "run")
    rate = made[0].param_groups[0]["lr"]
    assert rate == pytest.approx(c.train.lr * gaussian.build.schedule(c)(3, 4))
    assert rate < 0.9 * c.train.lr


def test_a_run_learns_and_writes_what_it_found(tmp_path, capsys):
    words = ["--config", str(CONFIG), "--objective.local.estimator", "infonce", "--objective.local.k", "100", "--seed", "1"]
    words += [
        "--train.steps",
        "150",
        "--objective.local.units",
        "32",
        "--run.log_every",
        "50",
        "--run.dir",
        str(tmp_path / "run"),
    ]
    assert train.main(words) == 0
    assert "the truth is 4 nats" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["step"], summary["steps"]) == (150, 150)
    assert 1 < summary["held_out"]["bound"][0] < math.log(101)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert rows[0]["local/bound_nats"] < rows[-1]["local/bound_nats"]
    assert {row["local/negatives_per_anchor"] for row in rows} == {100}
    before = summary["held_out"]["bound"]
    assert train.main(words) == 0  # again, from the beginning, to the same numbers
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]["bound"] == before
    assert evaluate.main([str(tmp_path / "run")]) == 2
    assert "what there is to know stands in its summary.json" in capsys.readouterr().err


def small(*words):
    """A short run of a named estimator."""
    return ["--config", str(CONFIG), "--seed", "0", "--train.steps", "4", "--objective.local.units", "8", *words]


def test_wasserstein_before_a_pool_that_is_larger_than_the_batch(tmp_path):
    words = ["--objective.local.estimator", "wasserstein", "--objective.local.k", "100"]
    assert train.main(small(*words, "--run.dir", str(tmp_path / "slope"))) == 0
    made = []
    plain = gaussian.build.term
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian.build, "term", lambda *args: made.append(plain(*args)) or made[-1])
        assert train.main(small(*words, "--objective.local.weight_clip", "0.05", "--run.dir", str(tmp_path / "clip"))) == 0
    ((term, _),) = made
    assert all(w.abs().max() <= 0.05 for w in term.critic.parameters())
    assert not term.training  # read out in eval mode: the batches of the end do not move its statistics


def test_a_symmetric_term_has_the_batch_the_other_way_round(tmp_path):
    words = ["--objective.local.estimator", "infonce", "--objective.local.k", "1000", "--objective.local.symmetric", "true"]
    assert train.main(small(*words, "--run.dir", str(tmp_path / "run"))) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["local/ceiling_nats"] == pytest.approx((math.log(1001) + math.log(64)) / 2, rel=1e-5)
    assert row["local/read/infonce_ceiling"] == pytest.approx(math.log(1001), rel=1e-5)


def test_values_that_are_not_finite_are_said_to_be(tmp_path, capsys, monkeypatch):
    nothing = {"bound": [None, None], "infonce_4096_nats": [0.5, 0.1]}
    monkeypatch.setattr(gaussian, "held_out", lambda *args: nothing)
    words = ["--objective.local.estimator", "nwj", "--objective.local.k", "4", "--run.dir", str(tmp_path / "run")]
    assert train.main(small(*words)) == 0
    assert "Held out: not finite nats, sd not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective.glob.weight", "1"], "data.name gaussian has one term"),
        (["--objective.prior.weight", "1"], "data.name gaussian has one term"),
        (["--objective.local.queue", "64"], "set it to 0"),
        (["--train.chunk", "32"], "set it to 0"),
        (["--train.steps", "0"], "data.name gaussian has no epochs: give train.steps"),
        (["--precision", "float64"], "data.name gaussian computes in float32"),
        (["--objective.local.negatives", "shifted"], "data.name gaussian has no maps"),
        (["--data.information", "101"], "it must be at most 5 nats for each of data.dimensions, 100"),
        (["--run.wandb", "offline"], "--run.wandb would have no effect: it needs a data set of images"),
        (["--device", "cpu"], "--device would have no effect: it needs a data set of images"),
        (["--encoder.code_size", "32"], "--encoder.code_size would have no effect: it needs a data set of images"),
        (["--data.name", "digits"], "--data.information would have no effect: it needs data.name gaussian"),
    ],
)
def test_what_gaussians_do_not_have_is_refused(tmp_path, capsys, words, said):
    given = ["--objective.local.estimator", "jsd", "--objective.local.k", "4"]
    given += ["--seed", "0", "--run.dir", str(tmp_path / "run")]
    extra = ["--data.information", "3"] if words[0] == "--data.name" else []
    assert train.main(["--config", str(CONFIG), *given, *words, *extra]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_belongs_to_one_run_and_a_signal_ends_it(tmp_path, monkeypatch, capsys):
    words = [
        "--config",
        str(ROOT / "configs" / "negatives_gaussian.yaml"),
        "--run.dir",
        str(tmp_path / "r"),
        "--train.steps",
        "3",
    ]
    words += [f"--{key}={values[0]}" for key, values in open_axes(words, Path()).items()]
    with checkpoint.locked(tmp_path / "r"):
        assert train.main(words) == 2
    assert "is being trained by process" in capsys.readouterr().err
    watch = Guard.watch

    def signalling(self, step, values):
        watch(self, step, values)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Guard, "watch", signalling)
    assert train.main(words) == 143
    monkeypatch.undo()
    assert train.main(words) == 0
    assert not (tmp_path / "r" / "lock").exists()
