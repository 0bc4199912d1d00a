"""The tables of few labels: their points, what continues and what they say."""

import json
import sys
from statistics import mean, stdev

import pytest
import torch
from conftest import ROOT, tiny

sys.path.insert(0, str(ROOT / "benchmarks"))
import few_labels

import evaluate
import train
from dim import build, checkpoint
from dim.evals import protocol
from dim.evals.adapt import unbalanced
from dim.reading import saved


def test_points_are_what_their_names_say():
    assert len(few_labels.FINETUNING) == 2 * 3 * (5 + 1)
    assert len(few_labels.ADAPTATION) == 2 * 2 * 2 * 2 * 3
    assert len(few_labels.PROBED) == (1 + 2 * 3) * 3
    assert few_labels.PROBED["linear_random_conv_250"] == ("random conv", "random", "conv", 250)
    assert few_labels.FINETUNING["finetune_trained_250_pseudo_seed2"] == ("trained", 250, "pseudo", 2)
    assert few_labels.ADAPTATION["adapt_noise_unbalanced_0.1_1e-5_seed1"] == ("noise", "unbalanced", 0.1, 1e-5, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train.main(tiny(folder)) == 0
    return folder


def test_points_are_measured_once_and_tabled(run, tmp_path, monkeypatch, capsys):
    names = ("finetune_trained_10_consistency_seed1", "finetune_random_10_none_seed0", "adapt_contrast_unbalanced_1_1e-4_seed2")
    words = ["few_labels.py", str(run), *names, "--steps", "2", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", words)
    few_labels.main()
    table = capsys.readouterr().out
    files = {path.stem: path for path in (tmp_path / "results").iterdir()}
    assert set(files) == set(names)
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert found[names[0]]["result"]["losses"] == {"consistency": 1.0}
    assert (found[names[0]]["result"]["seed"], found[names[0]]["result"]["augmented"]) == (1, True)
    assert found[names[1]]["result"]["labels_per_class"] == 10
    assert (found[names[2]]["result"]["diversity"], found[names[2]]["result"]["seed"]) == (1.0, 2)
    assert found[names[0]]["run"]["run"] == "digits"
    score = 100 * found[names[1]]["result"]["accuracy"]
    assert f"| random encoder, labels only | {score:.1f} (1 seed) |  |" in table

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


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "other"
    assert train.main(tiny(folder, "--seed", "1")) == 0
    return folder


def asked(monkeypatch, results, *words) -> dict[str, dict]:
    """The command with these words; all points that are then there."""
    monkeypatch.setattr(sys, "argv", ["few_labels.py", *map(str, words), "--results", str(results)])
    assert few_labels.main() == 0
    return {path.stem: json.loads(path.read_text()) for path in results.iterdir()}


@pytest.fixture
def two_draws(monkeypatch):
    """The digits protocol with fewer draws, so that it takes seconds."""
    monkeypatch.setitem(protocol.COLUMNS, "digits", protocol.Columns(draws=2, knobs={"C": 1.0}, resampled=False))


def test_the_linear_probe_is_that_of_evaluate(run, two_draws, tmp_path, monkeypatch, capsys):
    names = [f"linear_{point}" for point in ("raw_x_10", "random_fc_10", "trained_fc_10", "trained_fc_50")]
    found = asked(monkeypatch, tmp_path, run, *names)
    assert set(found) == {"linear_raw_x_10", *(f"{name}_seed0" for name in names[1:])}
    assert evaluate.main([str(run), "--layers", "fc", "--labels-per-class", "10", "50"]) == 0
    rows = json.loads((run / "report.json").read_text())["linear"]["rows"]
    for name, point in found.items():
        row, _, _, labels = few_labels.PROBED[name.removesuffix("_seed0")]
        theirs = rows[row][str(labels)]
        assert {key: point["result"][key] for key in theirs if key != "seconds"} | {"seconds": theirs["seconds"]} == theirs
        assert point["result"]["draws"] == 2
    assert found["linear_raw_x_10"]["run"].keys() == {"data", "data_sha256", "split_seed"}
    cell = rows["trained fc"]["50"]
    text = f"{100 * cell['accuracy']:.1f} +- {100 * cell['sd']:.1f} (2 draws)"
    assert text in next(line for line in few_labels.tables(tmp_path).splitlines() if line.startswith("| trained fc "))
    capsys.readouterr()


def test_the_spread_of_several_runs_is_over_their_seeds(two_draws, run, other_seed, tmp_path, monkeypatch, capsys):
    name = "linear_trained_y_10"
    made, before = [], few_labels.probed
    monkeypatch.setattr(few_labels, "probed", lambda name, run: made.append(run.config.seed) or before(name, run))
    asked(monkeypatch, tmp_path, run, name)
    found = asked(monkeypatch, tmp_path, run, name, "--more", other_seed)
    assert made == [0, 1]  # what is there is not done again
    assert set(found) == {f"{name}_seed0", f"{name}_seed1"}
    assert [point["run"]["seed"] for point in found.values()] == [int(stem[-1]) for stem in found]
    scores = [100 * point["result"]["accuracy"] for point in found.values()]
    assert f"| {mean(scores):.1f} +- {stdev(scores):.1f} (2 pretraining seeds) |  |  |" in capsys.readouterr().out


def test_only_runs_that_differ_in_their_seed_alone_have_a_spread(run, other_seed, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "slow"
    assert train.main(tiny(folder, "--seed", "2", "--train.lr", "1e-5")) == 0
    for more, message in (
        ([run], "the runs have the seeds 0, 0: give one of each seed"),
        ([other_seed, folder], "differ in train.lr: give runs of other seeds alone"),
    ):
        words = ["few_labels.py", str(run), "linear", "--more", *map(str, more), "--results", str(tmp_path / "none")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit):
            few_labels.main()
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_every_point_says_its_commits(run, two_draws, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(few_labels, "commit", lambda: "a1-dirty")
    (run / "commit.txt").write_text("b2\n")
    names = ("adapt_noise_balanced_1_1e-5_seed1", "finetune_random_10_none_seed1", "linear_trained_y_50")
    found = asked(monkeypatch, tmp_path, run, *names, "--steps", "3")
    assert [(point["training_commit"], point["commit"]) for point in found.values()] == [("b2", "a1-dirty")] * 3
    monkeypatch.setattr(few_labels, "commit", lambda: "c3")
    later = asked(monkeypatch, tmp_path, run, names[0].replace("balanced", "unbalanced"), "--steps", "3")
    point = later["adapt_noise_unbalanced_1_1e-5_seed1"]
    assert (point["commit"], point["source_commit"]) == ("c3", "a1-dirty")  # its classifier was there
    (run / "commit.txt").unlink()
    capsys.readouterr()


@pytest.fixture
def handed(run, tmp_path, monkeypatch):
    """Measure points; what each handed over to a function of few_labels, which is called as ever."""

    def measure(function: str, *names: str) -> list[tuple]:
        found, real = [], getattr(few_labels, function)

        def noting(*arguments, **settings):
            found.append(arguments)
            return real(*arguments, **settings)

        monkeypatch.setattr(few_labels, function, noting)
        words = ["few_labels.py", str(run), *names, "--steps", "2", "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", words)
        assert few_labels.main() == 0
        assert len(found) == len(names)
        return found

    return measure


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value.cpu(), other[name].cpu()) for name, value in one.items())


def test_points_of_adaptation_have_their_classes_and_a_classifier_for_each_seed(handed):
    points = ("balanced_0.1_1e-4_seed0", "balanced_0.1_1e-4_seed1", "unbalanced_0.1_1e-4_seed0")
    names = [f"adapt_contrast_{point}" for point in points]
    (first, balanced), (second, _), (again, long_tail) = handed("adapt", *names)
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.head.state_dict(), second.head.state_dict())
    for part in ("train", "test"):
        full, cut = (getattr(data, part).labels.bincount().tolist() for data in (balanced, long_tail))
        assert cut == [round(n * 0.1 ** (c / 9)) for c, n in enumerate(full)]


def test_points_of_adaptation_have_a_target_for_each_seed(handed):
    names = [f"adapt_noise_{point}" for point in ("balanced_1_1e-5_seed0", "balanced_1_1e-5_seed1", "unbalanced_1_1e-5_seed1")]
    (_, first), (_, second), (_, cut) = handed("adapt", *names)
    assert not torch.equal(first.train.images, second.train.images)
    assert torch.equal(cut.test.images, unbalanced(second, seed=1).test.images)
    assert not torch.equal(cut.test.images, unbalanced(second, seed=0).test.images)


def test_points_of_other_settings_are_refused(run, two_draws, tmp_path, monkeypatch, capsys):
    folder, name = tmp_path / "narrow", "linear_random_y_10"
    assert train.main(tiny(folder, "--encoder.code_size", "16")) == 0
    asked(monkeypatch, tmp_path / "results", run, name, "finetune_random_10_none_seed0", "--steps", "2")
    for words in ([folder, name], [run, "finetune_random_10_none_seed0"]):  # of another encoder, of the whole protocol
        monkeypatch.setattr(sys, "argv", ["few_labels.py", *map(str, words), "--results", str(tmp_path / "results")])
        with pytest.raises(SystemExit):
            few_labels.main()
        assert "is of another run" in capsys.readouterr().err


def test_points_of_adaptation_have_the_rate_of_their_name(run, two_draws, tmp_path, monkeypatch, capsys):
    names = [f"adapt_contrast_balanced_1_{rate}_seed0" for rate in few_labels.RATES]
    found = asked(monkeypatch, tmp_path, run, *names, "--steps", "2")
    assert [found[name]["result"]["lr"] for name in names] == [1e-4, 1e-5]
    capsys.readouterr()


def test_points_of_fine_tuning_have_the_encoder_of_their_name(handed, run):
    config, state = saved(run), checkpoint.load(run)
    (trained, *_), (random, *_) = handed("finetune", "finetune_trained_10_none_seed0", "finetune_random_10_none_seed0")
    assert same(trained.state_dict(), state["encoder"])
    assert same(random.state_dict(), build.encoder(config, build.dataset(config).shape).state_dict())
    assert not same(random.state_dict(), state["encoder"])


def test_each_column_of_adaptation_is_what_its_head_says(tmp_path):
    shares = {"before": (0.1, 0.4), "statistics": (0.2, 0.5), "after": (0.3, 0.6)}
    result = {name: {"accuracy": images, "class_accuracy": classes} for name, (images, classes) in shares.items()}
    for seed in few_labels.SEEDS:
        (tmp_path / f"adapt_noise_unbalanced_1_1e-5_seed{seed}.json").write_text(json.dumps({"result": result}))
    table = few_labels.tables(tmp_path)
    assert "| adapted to | diversity | rate | before | statistics | after | classes after |" in table
    assert "| noise, unbalanced | 1 | 1e-5 | 10.0 +- 0.0 | 20.0 +- 0.0 | 30.0 +- 0.0 | 60.0 +- 0.0 |" in table


def test_the_random_encoder_is_the_runs_before_training(run):
    config, state = saved(run), checkpoint.load(run)
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
