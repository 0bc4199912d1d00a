"""Grids: every point a run of its own, finished ones left alone, failures said at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY

import train
from dim import grid
from dim.config import UserError
from dim.reading import dump, open_axes, read, saved

GRID = """
objective: {local: {negatives: sampled}}
grid:
  objective.local.estimator: [jsd, infonce]
  objective.local: {k: [1, 8]}
"""
WORDS = [word for key, value in TINY.items() if ".negatives" not in key and ".k" not in key for word in (key, value)]


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "g.yaml"
    path.write_text(GRID)
    return path


def words(config: Path, *more: str) -> list[str]:
    return ["--config", str(config), *WORDS, "--run.dir", str(config.parent / "runs"), *more]


def test_a_grid_trains_every_point_once(config, capfd):
    runs = config.parent / "runs"
    assert train.main(words(config)) == 0
    names = [f"estimator-{estimator}_k-{k}" for estimator in ("jsd", "infonce") for k in (1, 8)]
    assert sorted(path.name for path in runs.iterdir()) == sorted(names)
    for folder in runs.iterdir():
        local = saved(folder).objective.local
        assert folder.name == f"estimator-{local.estimator}_k-{local.k}"
        assert local.negatives == "sampled"
        assert json.loads((folder / "summary.json").read_text())["step"] == 3
    assert "4 runs over objective.local.estimator, objective.local.k; 0 of them are finished" in capfd.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert train.main(words(config)) == 0
    assert "4 of them are finished" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_where_and_how_many_side_by_side_may_stand_in_the_file(config, tmp_path, monkeypatch):
    config.write_text(GRID + f"run: {{dir: {tmp_path}/elsewhere, jobs: 3}}\n")
    asked = []
    monkeypatch.setattr(grid, "run", lambda words, jobs: asked.append((sorted(map(str, words)), jobs)) or 0)
    assert train.main(["--config", str(config), *WORDS]) == 0
    ((folders, jobs),) = asked
    assert folders[0] == f"{tmp_path}/elsewhere/estimator-infonce_k-1"
    assert jobs == 3


def test_no_run_at_a_time_is_refused(config, capsys):
    assert train.main(words(config, "--run.jobs", "0")) == 2
    assert "run.jobs is 0: it must be at least 1" in capsys.readouterr().err


def test_a_point_is_the_run_that_its_own_command_would_be(config, tmp_path):
    """Two side by side, one axis fixed on the command line."""
    assert train.main(words(config, "--objective.local.k", "8", "--run.jobs", "2")) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["estimator-infonce", "estimator-jsd"]
    alone = words(config, "--objective.local.k", "8", "--objective.local.estimator", "jsd")
    alone[alone.index("--run.dir") + 1] = str(tmp_path / "alone")
    assert train.main(alone) == 0

    def course(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]

    assert course(tmp_path / "runs" / "estimator-jsd") == course(tmp_path / "alone")


def test_a_failed_run_stops_no_other_and_is_said_at_the_end(config, tmp_path, capfd):
    """Its folder cannot be made: a file stands there."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "estimator-jsd").write_text("in the way")
    assert train.main(words(config, "--objective.local.k", "8")) == 1
    said = capfd.readouterr()
    assert "1 of 2 runs done, 1 failed" in said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("failed")]
    assert "runs/estimator-jsd, exit code" in line
    assert "--objective.local.k=8 --objective.local.estimator=jsd" in line
    assert grid.finished(tmp_path / "runs" / "estimator-infonce")


def test_a_mistake_in_one_point_is_said_before_anything_is_trained(config, tmp_path, capsys):
    config.write_text(GRID.replace("[1, 8]", "[1, eight]"))
    assert train.main(words(config)) == 2
    assert "error: estimator-jsd_k-eight: objective.local.k is 'eight': it must be a whole number" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: 3", "grid is a group of keys with lists of values, not 3"),
        ("grid: {seed: 1}", "grid: seed is 1: it must be a list of values"),
        ("grid: {seed: []}", r"grid: seed is \[\]: it must be a list"),
        ("grid: {seed: [1, 1]}", "grid: seed has a value twice"),
        ("grid: {seeds: [1, 2]}", "unknown key 'seeds' in .*: grid; did you mean seed"),
        ("seed: 3\ngrid: {seed: [1, 2]}", "seed has a value and stands in the grid too"),
        ("grid: {run.dir: [a, b]}", "run.dir tells no runs apart"),
    ],
)
def test_a_grid_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_axes([], tmp_path / "c.yaml")


def test_one_run_is_not_read_from_a_grid_without_a_value_for_each_axis(config):
    with pytest.raises(UserError, match=r"g\.yaml is a grid over objective\.local\.k: one run of it needs a value for each"):
        read(["--objective.local.estimator", "jsd"], config)
    assert open_axes(["--objective.local.estimator", "jsd"], config) == {"objective.local.k": [1, 8]}
    assert read(["--objective.local.estimator", "jsd", "--objective.local.k=8"], config)[0].objective.local.k == 8


def test_names_tell_points_apart():
    assert grid.name({"objective.local.k": 1, "seed": 0}) == "k-1_seed-0"
    assert grid.name({"objective.local.k": 1, "objective.glob.k": 2}) == "local.k-1_glob.k-2"
    assert grid.name({"objective.local.scale": "1/sqrt(units)"}) == "scale-1:sqrt(units)"
    assert grid.name({"views.area": [0.2, 1]}) == "area-[0.2, 1]"


def test_an_interrupt_reaches_the_run_under_way_which_saves(config, tmp_path):
    line = [sys.executable, str(ROOT / "train.py"), *words(config), "--run.save_every", "1000"]
    line[line.index("--train.epochs") + 1] = "100"
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics, end = tmp_path / "runs" / "estimator-jsd_k-1" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "the same command continues there" in (tmp_path / "said").read_text()
    assert json.loads((metrics.parent / "summary.json").read_text())["step"] > 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["estimator-jsd_k-1"]


def test_a_saved_configuration_is_no_grid(tmp_path, config):
    made = read(["--objective.local.estimator", "jsd", "--objective.local.k=8"], config)[0]
    (tmp_path / "again.yaml").write_text(dump(made))
    assert open_axes([], tmp_path / "again.yaml") == {}
