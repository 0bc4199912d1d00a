"""The commands of the records: each is a configuration that can be read."""

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
