"""The tables of few labels: their points, what continues and what they say."""

import json
import sys

import pytest
from conftest import ROOT, tiny

sys.path.insert(0, str(ROOT / "benchmarks"))
import few_labels

import train


def test_points_are_what_their_names_say():
    assert len(few_labels.FINETUNING) == 3 * 3 * (4 + 1)
    assert len(few_labels.ADAPTATION) == 2 * 2 * 2 * 3
    assert few_labels.FINETUNING["finetune_trained_50_pseudo_seed2"] == ("trained", 50, "pseudo", 2)
    assert few_labels.ADAPTATION["adapt_noise_unbalanced_0.1_seed1"] == ("noise", "unbalanced", 0.1, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train.main(tiny(folder)) == 0
    return folder


def test_points_are_measured_once_and_tabled(run, tmp_path, monkeypatch, capsys):
    names = ("finetune_trained_10_consistency_seed1", "finetune_random_50_none_seed0", "adapt_contrast_unbalanced_1_seed2")
    words = ["few_labels.py", str(run), *names, "--steps", "2", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", words)
    few_labels.main()
    table = capsys.readouterr().out
    files = {path.stem: path for path in (tmp_path / "results").iterdir()}
    assert set(files) == set(names)
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert found[names[0]]["result"]["losses"] == {"consistency": 1.0}
    assert (found[names[0]]["result"]["seed"], found[names[0]]["result"]["augmented"]) == (1, True)
    assert found[names[1]]["result"]["labels_per_class"] == 50
    assert (found[names[2]]["result"]["diversity"], found[names[2]]["result"]["seed"]) == (1.0, 2)
    assert found[names[0]]["run"]["run"] == "digits"
    score = 100 * found[names[1]]["result"]["accuracy"]
    assert f"| random encoder, labels only |  | {score:.1f} (1 seeds) |  |" in table

    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    monkeypatch.setattr(few_labels, "fine", None)
    monkeypatch.setattr(few_labels, "moved", None)
    few_labels.main()  # nothing left to do
    assert {name: path.stat().st_mtime_ns for name, path in files.items()} == before

    for path in files.values():
        path.write_text(path.read_text().replace('"run": "digits"', '"run": "other"'))
    with pytest.raises(SystemExit):
        few_labels.main()
    assert "is of another run" in capsys.readouterr().err


def test_the_random_encoder_is_the_runs_before_training(run):
    import torch

    from dim import build, checkpoint
    from dim.reading import saved

    config, state = saved(run), checkpoint.load(run / "checkpoint.pt")
    data = build.dataset(config)
    random, trained = few_labels.first_encoder(config, data, None), few_labels.first_encoder(config, data, state)
    expected = build.encoder(config, data.shape).state_dict()
    assert all(torch.equal(value.cpu(), expected[name]) for name, value in random.state_dict().items())
    assert all(torch.equal(value.cpu(), state["encoder"][name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "5"], "--steps changes the protocol: give --results another folder"),
        (["runs/x", "finetuned"], "no point begins with finetuned"),
        ([], "give the folder of a trained run, or --table"),
        (["nowhere", "adapt"], "nowhere is not the folder of a run"),
    ],
)
def test_mistakes_are_named(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["few_labels.py", *words])
    with pytest.raises(SystemExit):
        few_labels.main()
    assert message in capsys.readouterr().err


def test_mean_and_spread_of_a_cell():
    assert few_labels.cell([0.5, 0.6, 0.7]) == "60.0 +- 10.0"
    assert few_labels.cell([0.5, 0.6]) == "55.0 +- 7.1 (2 seeds)"
    assert few_labels.cell([]) == ""
