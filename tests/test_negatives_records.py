"""The script of the grids' records: points as JSON, continued, and drawn from these alone."""

import json
import math
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import negatives
import negatives_optimal

GAUSSIAN = """
data: {name: gaussian, information: 2, dimensions: 4}
objective:
  local: {units: 8, negatives: sampled}
train: {steps: 20, batch_size: 16}
grid:
  objective.local.estimator: [infonce, jsd]
  objective.local.k: [2, 20]
  seed: [0, 1]
"""
DIGITS = """
train: {epochs: 1, batch_size: 419}
views: {number: 1, kind: none}
objective:
  local: {units: 8, negatives: sampled}
grid:
  objective.local.k: [2, 20]
  seed: [0]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "configs" / "negatives_gaussian.yaml").write_text(GAUSSIAN)
    (tmp_path / "configs" / "negatives_digits.yaml").write_text(DIGITS)
    monkeypatch.setattr(negatives, "ROOT", tmp_path)
    monkeypatch.setattr(negatives, "RESULTS", tmp_path / "results")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["negatives.py", *words, "--runs", str(tmp_path / "runs")])
        return negatives.main()

    return run


def test_gaussians_point_by_point(project, tmp_path, capsys):
    place = tmp_path / "results" / "negatives_gaussian"
    assert project("gaussian", "--seeds", "0") == 0
    assert {path.name for path in place.iterdir()} == {
        f"estimator-{name}_k-{k}_seed-0.json" for name in ("infonce", "jsd") for k in (2, 20)
    }
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert project("gaussian") == 0
    assert len(list(place.iterdir())) == 8
    assert all(path.read_bytes() == content for path, content in before.items())  # not done again
    assert not list((tmp_path / "runs" / "negatives_gaussian").iterdir())
    for path in place.iterdir():
        content = json.loads(path.read_text())
        held_out = content["summary"]["held_out"]
        fresh = "read out by infonce with 4,096 fresh negatives"
        bound, sd = held_out["bound"]
        assert content["values"] == {
            "bound": bound,
            fresh: held_out["infonce_4096_nats"][0],
            "sd of the bound of one batch": sd,
        }
        assert content["truth"] == 2
    rows = json.loads((tmp_path / "results" / "negatives_gaussian.json").read_text())["rows"]
    assert [(row["line"], row["objective.local.k"], row["bound"]["seeds"]) for row in rows] == [
        (name, k, 2) for name in ("jsd", "infonce") for k in (2, 20)
    ]
    assert (tmp_path / "results" / "negatives_gaussian.png").exists()
    capsys.readouterr()
    assert project("gaussian", "--table") == 0
    assert "| infonce | 20 |" in capsys.readouterr().out


def test_images_are_probed_and_baselines_measured_once(project, tmp_path, monkeypatch):
    kinds = []
    plain = negatives.evaluate.features_of
    monkeypatch.setattr(negatives.evaluate, "features_of", lambda kind, *args: kinds.append(kind) or plain(kind, *args))
    assert project("digits") == 0
    assert kinds == ["raw", "random", "trained", "trained"]
    for path in (tmp_path / "results" / "negatives_digits").iterdir():
        content = json.loads(path.read_text())
        assert {"raw pixels", "random fc", "random y", "trained fc", "trained y"} <= content["rows"].keys()
        assert content["values"]["y accuracy"] == 100 * content["rows"]["trained y"]["accuracy"]
        assert "test images" in content["protocol"]


def test_the_best_critics_table_from_few_draws(tmp_path, monkeypatch):
    """Its theory against what 60 draws can show: means of nwj and jsd, and dv_per_anchor's at one negative."""
    monkeypatch.setattr(negatives_optimal, "KS", (1, 16))
    monkeypatch.setattr(negatives_optimal, "MANY", 100_000)
    measured, theory = negatives_optimal.measure(0.5, draws=60), negatives_optimal.theory(0.5)
    for name, k, mean in [
        ("nwj", 16, 0.5),
        ("jsd", 1, theory["jsd"]["mean"]),
        ("jsd", 16, theory["jsd"]["mean"]),
        ("dv_per_anchor", 1, theory["dv_per_anchor at 1"]),
    ]:
        cell = measured[name][k]
        assert abs(cell["mean"] - mean) < 4 * cell["sd"] / 60**0.5
    assert measured["nwj"][16]["sd"] == pytest.approx(theory["nwj"]["sd"][16], rel=0.3)
    assert measured["infonce"][16]["mean"] < theory["infonce at most"][16]


def test_theory_of_nwj(monkeypatch):
    monkeypatch.setattr(negatives_optimal, "MANY", 10)
    found, rho2 = negatives_optimal.theory(4)["nwj"]["sd"], 1 - math.exp(-0.4)
    for k in (1, 4096):
        assert found[k] == pytest.approx(math.sqrt(20 * rho2 / 64 + (math.exp(8) - 1) / (64 * k)), rel=1e-9)


@pytest.mark.parametrize(
    ("own", "whole", "said"),
    [(0.3, math.sqrt(0.09 + 0.81 * math.expm1(4) / 64), "90%"), (0.3, 0.2, "0%"), (3.0, 3.1, "hidden")],
    ids=["nine tenths", "none", "hidden"],
)
def test_what_was_drawn_of_the_negatives_part(own, whole, said):
    """2 nats, one negative for each of 64 anchors: a standard deviation of sqrt((e^4 - 1) / 64) = 0.92."""
    measured = {"nwj": {"1": {"sd": whole}}, "own": {"1": {"sd": own}}}
    content = {"information_nats": 2, "anchors": 64, "draws": 200, "measured": measured}
    assert negatives_optimal.sampled(content, 1) == said


def test_gains_along_a_line_are_taken_seed_by_seed():
    def point(k, seed, value):
        return negatives.negatives.Point({"objective.local.k": k, "seed": seed}, {"y": value}, "nats", None)

    points = [point(8, 0, 5.0), point(1, 0, 3.0), point(1, 1, 4.0), point(8, 1, 7.0), point(4, 1, 6.0), point(1, 2, 9.0)]
    found = negatives.gains(points, "objective.local.k").splitlines()[3:]
    assert found[0].startswith("| all | 1 | 8 | +2.50 +- 6.35 |")  # 2 and 3: 12.706 / 2
    assert found[1:] == ["| all | 4 | 8 | +1.00 |"]
