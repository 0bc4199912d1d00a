"""The script of the paper's Table 4: stages of evaluations, copied so that a run that is gone can be trained again."""

import json
import shutil
import sys

import pytest
from conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "benchmarks"))
import records
import table4


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two tiny runs on the digits and two quick stages."""
    words = " ".join(["--config configs/digits.yaml", *(f"{key} {value}" for key, value in TINY.items())])
    runs = {"a": ("one", words), "b": ("other", f"{words} --objective.local.estimator jsd")}
    monkeypatch.setattr(table4, "CIFAR10", runs)
    monkeypatch.setattr(table4, "RUNS", tuple(runs))
    monkeypatch.setattr(table4, "STAGES", {"clean": "--probes linear --layers y", "decoder": "--probes knn --layers y"})
    monkeypatch.setattr(table4, "PLACE", tmp_path / "table4")
    return tmp_path


@pytest.mark.slow
def test_stages_are_copied_and_go_on_where_a_run_is_gone(small, monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "one")
    table4.measure(["clean"], [], small / "runs")
    before = json.loads((small / "table4" / "a.json").read_text())
    assert list(before) == ["run", "linear"]
    assert before["run"]["training_commits"] == before["run"]["evaluation_commits"] == ["one"]
    monkeypatch.setattr(records, "commit", lambda: "two")
    shutil.rmtree(small / "runs" / "a")
    table4.measure(["clean", "decoder"], [], small / "runs")
    for name in ("a", "b"):
        after = json.loads((small / "table4" / f"{name}.json").read_text())
        assert list(after) == ["run", "linear", "knn"]
    after = json.loads((small / "table4" / "a.json").read_text())
    assert after["linear"] == before["linear"]  # with its seconds: not measured again
    assert (after["run"]["training_commits"], after["run"]["evaluation_commits"]) == (["two"], ["one", "two"])
    other = json.loads((small / "table4" / "b.json").read_text())
    assert (other["run"]["training_commits"], other["run"]["evaluation_commits"]) == (["one"], ["one", "two"])
    stages = [json.loads(line) for line in (small / "table4" / "stages.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in stages] == ["clean", "clean", "decoder"]
    assert all(row["cpu_seconds"] > 0 and row["commit"] for row in stages)


def test_the_table_shows_runs_and_each_random_encoder_once(small):
    cell = {"accuracy": 0.51234, "sd": 0.01, "converged": True, "seconds": 2.0}
    value = {"mi_nats": 3.456, "sd": 0.1, "converged": 1 / 3, "seconds": 30.0}
    report = {
        "run": {"seed": 0},
        "svm": {"rows": {"raw pixels": {"resamples": cell}, "random y": {"resamples": cell}, "trained y": {"resamples": cell}}},
        "mine": {"rows": {"random x:y": value, "trained x:y": value}},
    }
    (small / "table4").mkdir()
    for name in ("a", "b"):
        (small / "table4" / f"{name}.json").write_text(json.dumps(report))
    lines = table4.tables().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| one, seed 0", "| random encoder, seed 0", "| other, seed 0"]
    shown = dict(zip(lines[0].strip("| ").split(" | "), lines[2].strip("|").split("|"), strict=True))
    assert shown["svm y"].strip() == "51.23 ± 1.00"
    assert shown["MINE I(x; y)"].strip() == "3.46 ± 0.10*"
    assert shown["svm conv"].strip() == shown["NDM"].strip() == ""
    assert "| a | 2 | 30 |" in lines
    assert "| a, random and raw | 4 | 30 |" in lines
