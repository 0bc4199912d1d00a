"""The script that sets bf16 against float32: runs as JSON, continued, and a table from these alone."""

import json
import statistics
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import precision


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "PLACE", tmp_path / "precision")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["precision.py", *words, "--runs", str(tmp_path / "runs")])
        return precision.main()

    return run


def test_a_seed_is_trained_and_evaluated_in_both_precisions_once(script, tmp_path, monkeypatch, capsys):
    few = "--config configs/digits.yaml --views.number 1 --views.kind none --train.batch_size 419 --objective.local.units 8"
    monkeypatch.setattr(precision, "RECOMMENDED", few)
    assert script("--seeds", "1") == 0
    found = {path.name: json.loads(path.read_text()) for path in precision.PLACE.iterdir()}
    assert sorted(found) == ["bf16_seed1.json", "float32_seed1.json"]
    for name, one in found.items():
        assert f"--train.epochs 5 --precision {name.split('_')[0]} --seed 1" in one["command"]
        assert {"trained fc", "trained y"} <= one["rows"].keys()
        assert "trained conv" not in one["rows"]
        assert one["last"]["step"] == 15
        assert one["protocol"]
    assert not list((tmp_path / "runs" / "precision").iterdir())
    before = {path: path.stat().st_mtime_ns for path in precision.PLACE.iterdir()}
    assert script("--seeds", "1") == 0
    assert {path: path.stat().st_mtime_ns for path in precision.PLACE.iterdir()} == before
    assert "bf16 minus float32, 1 pair |" in capsys.readouterr().out


def test_the_table_by_hand(script, capsys):
    precision.PLACE.mkdir()
    accuracy = {("float32", 0): (0.7, 0.6), ("float32", 1): (0.72, 0.61), ("bf16", 0): (0.69, 0.62), ("bf16", 1): (0.7, 0.62)}
    accuracy["float32", 2] = (0.9, 0.9)  # without its partner: in its own mean, in no difference
    for (kind, seed), (fc, y) in accuracy.items():
        rows = {"trained fc": {"accuracy": fc}, "trained y": {"accuracy": y}}
        text = json.dumps({"rows": rows, "images_per_second": 100 + seed})
        (precision.PLACE / f"{kind}_seed{seed}.json").write_text(text)
    assert script("--table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| float32, 3 seeds | 77.33 +- ")
    assert lines[3].startswith("| bf16, 2 seeds | 69.50 +- ")
    half = 12.706 * statistics.stdev([-1.0, -2.0]) / 2**0.5  # Student's t with one degree of freedom
    assert f"-1.50 +- {half:.2f} | +1.50 +- {half:.2f}" in lines[4]
