"""The commands of the records: each is a configuration that can be read."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from dim.reading import read

sys.path.insert(0, str(ROOT / "benchmarks"))
import records

COMMANDS = {f"{series} {name}": words for series, runs in records.SERIES.items() for name, (_, words) in runs.items()}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_command_of_a_record_is_a_valid_configuration(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    read([*words.split(), "--data.root", "data", "--run.dir", "runs/x"], ROOT / "configs" / "digits.yaml")


def test_no_two_records_are_the_same_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = [str(read(words.split(), ROOT / "configs" / "digits.yaml")[0]) for words in COMMANDS.values()]
    assert len(set(configs)) == len(configs)


def test_names_may_stand_behind_the_options(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "record", lambda series, name, data, folder: asked.append((name, data)))
    monkeypatch.setattr(sys, "argv", ["records.py", "cifar10", "--data", "d", "prior", "one_view"])
    records.main()
    assert asked == [("prior", "d"), ("one_view", "d")]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit of two files; returns its folder and a function that runs git there."""

    def git(*words: str) -> str:
        given = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words]
        return subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/a.json"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return tmp_path, git


def test_a_commit_says_whether_the_code_differs_from_it(checkout, tmp_path_factory, monkeypatch):
    folder, git = checkout
    head = git("rev-parse", "HEAD")
    assert len(head) == 40
    (folder / "notes.txt").write_text("untracked")
    (folder / "results" / "a.json").write_text("2")  # what a series writes while it runs
    assert records.commit() == head
    (folder / "code.py").write_text("2")
    assert records.commit() == f"{head}-dirty"
    monkeypatch.setattr(records, "ROOT", tmp_path_factory.mktemp("elsewhere"))
    assert records.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert records.commit() == "unknown"


def test_a_record_says_the_commits_of_its_training_and_of_its_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(records, "SERIES", {"s": {"a": ("what", "--seed 3")}})
    folder, now, stop, rows = tmp_path / "a", iter("abcdef"), [True, False, False], []
    monkeypatch.setattr(records, "commit", lambda: next(now))

    def run(words):
        if words[0] == "evaluate.py":
            rows.append(len(rows))
            (folder / "report.json").write_text(json.dumps({"run": {}, "linear": {"rows": {str(row): 1 for row in rows}}}))
            if len(rows) == 1:
                raise KeyboardInterrupt
            return
        stopped = stop.pop(0)
        (folder / "summary.json").write_text(json.dumps({"step": 5 if stopped else 9, "steps": 9}))
        (folder / "metrics.jsonl").write_text(json.dumps({"images_per_second": 1.0}))
        if stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(records, "run", run)
    path = tmp_path / "results" / "s" / "a.json"
    for _ in ("stopped in training", "stopped after a row of the evaluation"):
        with pytest.raises(KeyboardInterrupt):
            records.record("s", "a", "data", folder)
        assert not path.exists()
    records.record("s", "a", "data", folder)
    found = json.loads(path.read_text())
    assert (found["commit"], found["evaluation_commit"]) == ("a, b", "c, d")
    assert found["evaluation"]["linear"]["rows"] == {"0": 1, "1": 1}


def test_records_of_earlier_versions_are_read():
    for name, path in ((path.stem, path) for path in (ROOT / "results" / "cifar10").glob("*.json")):
        found = json.loads(path.read_text())
        assert records.CIFAR10[name][0] == found["what"]
        assert found["what"] in records.table("cifar10")


def test_kept_copies_come_in_the_order_of_their_epochs(tmp_path):
    for epoch in (10, 5, 20):
        (tmp_path / f"epoch-{epoch}").mkdir()
    assert [place.name for place in records.kept(tmp_path)] == ["epoch-5", "epoch-10", "epoch-20"]


def test_rows_are_taken_from_a_run_with_the_same_images_and_first_weights(tmp_path):
    text = "seed: {}\nnorm: {}\nprecision: float32\ndata:\n  name: {}\nviews:\n  kind: {}\nencoder:\n  name: small8x8\n"
    for name, values in {
        "mine": (0, "batch", "digits", "none"),
        "other_seed": (1, "batch", "digits", "none"),
        "other_norm": (0, "layer", "digits", "none"),
        "other_data": (0, "batch", "mnist", "none"),
        "twin": (0, "batch", "digits", "strong"),
        "unfinished": (0, "batch", "digits", "none"),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text.format(*values))
        if name != "unfinished":
            (tmp_path / name / "report.json").write_text("{}")
    assert records.alike(tmp_path / "mine") == [tmp_path / "twin"]
    assert records.alike(tmp_path / "other_data") == []
    (tmp_path / "twin" / "report.json").unlink()
    assert records.alike(tmp_path / "mine") == [tmp_path / "other_norm"]  # its raw pixels are the same
