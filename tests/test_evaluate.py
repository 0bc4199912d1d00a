"""evaluate.py: from the run folder alone, beside a random encoder and raw pixels; what scripts need and do not need."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import small_sets
import torch
from conftest import ROOT, made_data, tiny

import evaluate
import train
from dim import build, checkpoint, report
from dim.average import Average
from dim.config import Config, built, flat
from dim.evals import mlp, protocol, sections
from dim.evals.features import features, set_statistics
from dim.evals.reconstruction import Reconstruction
from dim.reading import saved


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "r"
    assert train.main(tiny(folder)) == 0
    return folder


@pytest.fixture
def two_columns(monkeypatch):
    """The digits protocol with fewer draws, so that it takes seconds."""
    few = protocol.Columns(few=(10,), draws=2, knobs={"C": 1.0}, resampled=False, unscaled=True)
    monkeypatch.setitem(protocol.COLUMNS, "digits", few)


def test_a_run_is_evaluated_from_its_folder(trained, two_columns, capsys):
    assert evaluate.main([str(trained)]) == 0
    out = capsys.readouterr().out
    saved_result = json.loads((trained / "report.json").read_text())
    rows = saved_result["linear"]["rows"]
    kinds = [f"{kind} {layer}" for kind in ("random", "trained") for layer in ("conv", "fc", "y")]
    assert list(rows) == ["raw pixels, unscaled", "raw pixels", *kinds]
    assert saved_result["run"]["data"] == "digits"
    assert saved_result["run"]["steps"] == 3
    for name, row in rows.items():
        assert f"{100 * row['all']['accuracy']:.1f}" in out, name
    assert "540 test images" in out
    assert "3 of 3 steps trained" in out
    assert "test accuracy in %, chance 10" in out
    assert "fc after training, 10 labels a class" in out


def test_what_is_done_is_not_done_again_unless_forced(trained, two_columns, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)
    made, before = [], protocol.probe
    monkeypatch.setattr(
        protocol,
        "probe",
        lambda kind, name, *others, **more: made.append((kind.knob, name)) or before(kind, name, *others, **more),
    )

    def asked(*words: str) -> list[tuple[str, str]]:
        made.clear()
        assert evaluate.main([str(folder), *words]) == 0
        return list(made)

    assert len(asked("--layers", "y")) == 4  # two of raw pixels, random, trained
    assert asked("--layers", "y") == []
    assert asked("--layers", "fc", "y") == [("C", "random fc"), ("C", "trained fc")]
    assert {knob for knob, _ in asked("--layers", "y", "--probes", "linear", "knn")} == {"k"}
    report = json.loads((folder / "report.json").read_text())
    assert list(report) == ["run", "linear", "knn"]
    before_force = json.loads((folder / "report.json").read_text())
    assert len(asked("--layers", "y", "--force")) == 4
    after = json.loads((folder / "report.json").read_text())
    assert list(after) == ["run", "linear", "knn"]  # what was not asked for stays
    assert after["knn"] == before_force["knn"]
    same = {name for name, cells in after["linear"]["rows"].items() if cells == before_force["linear"]["rows"][name]}
    assert same == {"random fc", "trained fc"}
    monkeypatch.setattr(evaluate, "THREADS", 1)
    few = asked("--layers", "y", "--once", "--labels-per-class", "5", "--data.split_seed", "1")
    assert len(few) == 4
    assert (folder / "report_split1.json").exists()
    assert json.loads((folder / "report.json").read_text()) == after  # of another split
    assert len(asked("--layers", "y", "--labels-per-class", "5")) == 4  # another protocol, so its rows are new
    assert train.main(tiny(folder, "--seed", "1", "--run.dir", str(tmp_path / "other"))) == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", folder)
    assert len(asked("--layers", "y", "--labels-per-class", "5")) == 4  # other weights
    assert "report.json is of other weights: everything is measured anew" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_stopped_evaluation_keeps_its_rows_and_continues(trained, two_columns, tmp_path, monkeypatch, capsys, number, code):
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    before = protocol.probe

    def stopping(kind, name, *others, **more):
        if name == "random y":
            os.kill(os.getpid(), number)
        return before(kind, name, *others, **more)

    monkeypatch.setattr(protocol, "probe", stopping)
    (folder / "report.json").unlink(missing_ok=True)
    assert evaluate.main([str(folder), "--layers", "y"]) == code
    assert "the same command continues" in capsys.readouterr().err
    assert list(json.loads((folder / "report.json").read_text())["linear"]["rows"]) == ["raw pixels, unscaled", "raw pixels"]
    monkeypatch.setattr(protocol, "probe", before)
    assert evaluate.main([str(folder), "--layers", "y"]) == 0
    assert list(json.loads((folder / "report.json").read_text())["linear"]["rows"])[2:] == ["random y", "trained y"]


def test_the_papers_protocol_stands_apart(trained, two_columns, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mlp, "PAPER_EPOCHS", 4)
    monkeypatch.setattr(mlp, "PAPER_LAST", 2)
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)
    assert evaluate.main([str(folder), "--probes", "mlp", "--protocol", "paper", "--layers", "y"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert list(report) == ["run", "mlp, the paper's protocol"]
    part = report["mlp, the paper's protocol"]
    assert list(part["rows"]) == ["raw pixels", "random y", "trained y"]
    assert "compared with the paper only" in part["protocol"]
    assert "compared with the paper only" in capsys.readouterr().out.replace("\n", " ")


def read_report(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_once_leaves_out_the_column_of_resamples():
    for words, columns in (([], ["all", "resamples"]), (["--once"], ["all"])):
        chosen, _ = evaluate.options(["run", *words])
        (part,) = evaluate.asked_for(chosen, Config(), made_data())
        assert list(part.columns) == columns


def test_another_number_of_labels_measures_its_column_alone(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(protocol.COLUMNS, "digits", protocol.Columns(draws=2, knobs={"k": 5}))
    folder, asked, before = tmp_path / "r", [], protocol.probe
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)

    def counted(*args, known, **more):
        found = before(*args, known=known, **more)
        asked.extend(found)
        return found

    monkeypatch.setattr(protocol, "probe", counted)
    words = [str(folder), "--probes", "knn", "--layers", "y"]
    assert evaluate.main([*words, "--once"]) == 0
    assert asked == ["all"] * 3
    first = read_report(folder)["knn"]
    for more, columns in ((["--labels-per-class", "10"], ["resamples", "10"]), (["--once", "--labels-per-class", "5"], ["5"])):
        asked.clear()
        assert evaluate.main([*words, *more]) == 0
        assert asked == columns * 3
    asked.clear()
    assert evaluate.main([*words, "--labels-per-class", "5", "10"]) == 0
    assert not asked
    found = read_report(folder)["knn"]
    for name, row in first["rows"].items():
        assert list(found["rows"][name]) == list(found["columns"]) == ["all", "resamples", "10", "5"]
        assert found["rows"][name]["all"] == row["all"]
    out = capsys.readouterr().out
    assert "resamples    10 a class     5 a class" in out
    assert "each on 80% of each class, k as for all; columns with few labels: mean and" in out.replace("\n", " ")


def test_the_averaged_weights_are_probed_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    few = protocol.Columns(few=(10,), draws=2, knobs={"k": 5}, resampled=False)
    monkeypatch.setitem(protocol.COLUMNS, "digits", few)
    folder, words = tmp_path / "r", ["--layers", "y", "--probes", "knn"]
    assert train.main(tiny(folder, "--train.average", "0.5", "--train.lr", "0.01")) == 0
    assert evaluate.main([str(folder), *words]) == 0
    assert evaluate.main([str(folder), *words, "--weights", "average"]) == 0
    config, state = saved(folder), checkpoint.load(folder)
    data = build.dataset(config)
    average = Average(build.encoder(config, data.shape), 0.5)
    average.load_state_dict(state["average"])
    last, found = (json.loads((folder / name).read_text()) for name in ("report.json", "report_average.json"))
    assert (last["run"]["weights"], found["run"]["weights"]) == ("last", "average")
    assert found["run"]["weights_sha256"] == report.digest(average.module.state_dict()) != last["run"]["weights_sha256"]
    pair = (features(average.module, data, part, layers=["y"])["y"] for part in (data.train, data.test))
    cells = protocol.probe(build.PROBES["knn"], "y", *protocol.standardised(*pair), data, 0, few)
    rows, of_last = found["knn"]["rows"], last["knn"]["rows"]
    assert rows["trained y"]["10"]["accuracy"] == pytest.approx(cells["10"]["accuracy"], abs=0.002)
    assert rows["trained y"]["10"]["accuracy"] != of_last["trained y"]["10"]["accuracy"]
    assert rows["random y"]["10"]["accuracy"] == of_last["random y"]["10"]["accuracy"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried 8 bytes"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_machine_that_cannot_go_on_is_one_line_and_exit_code_4(error, trained, monkeypatch, capsys):
    def failing(*_):
        raise error

    monkeypatch.setattr(evaluate, "evaluate", failing)
    assert evaluate.main([str(trained)]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: the machine: ")
    assert err.count("\n") == 1
    error.args = ("a shape of dim's own",)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="of dim's own"):
            evaluate.main([str(trained)])


def quick(monkeypatch):
    """Measures with few steps."""
    monkeypatch.setattr(sections, "SEEDS", 2)
    monkeypatch.setattr(sections, "mine", partial(sections.mine, steps=20))
    monkeypatch.setattr(sections, "ndm", partial(sections.ndm, steps=20))
    monkeypatch.setattr(sections.reconstruction, "reconstruction", partial(sections.reconstruction.reconstruction, steps=5))
    monkeypatch.setattr(sections.finetune, "finetune", partial(sections.finetune.finetune, steps=3))


def test_measures_fill_their_sections_beside_the_random_encoder(trained, tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)
    decoders, decoder = [], sections.reconstruction.trained
    monkeypatch.setattr(sections.reconstruction, "trained", lambda *given: decoders.append(given) or decoder(*given))
    words = [
        str(folder),
        "--measures",
        "mine",
        "ndm",
        "reconstruction",
        "--pairs",
        "x:y",
        "fc:y",
        "--figures",
        "reconstruction",
    ]
    assert evaluate.main(words) == 0
    assert len(decoders) == 2  # of the random and of the trained y: the figure shows the latter
    report, out = json.loads((folder / "report.json").read_text()), capsys.readouterr().out
    assert list(report) == ["run", "mine", "ndm", "reconstruction"]
    rows = {name: list(part["rows"]) for name, part in report.items() if name != "run"}
    assert rows["mine"] == ["random x:y", "random fc:y", "trained x:y", "trained fc:y"]
    assert rows["ndm"] == [f"{kind} y{squash}" for kind in ("random", "trained") for squash in ("", ", squashed")]
    assert rows["reconstruction"] == ["random y", "trained y"]
    found = report["mine"]["rows"]["trained x:y"]
    assert found["positive_term"] - found["negative_term"] == pytest.approx(found["mi_nats"], abs=1e-6)
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["mi_nats"] != report["mine"]["rows"]["random x:y"]["mi_nats"]
    assert 0 < report["reconstruction"]["rows"]["trained y"]["ms_ssim"] <= 1
    for said in ("mi_nats", "total_correlation_nats", "ms_ssim", "a third that it never saw"):
        assert said in out.replace("\n", " ")
    before = (folder / "report.json").stat().st_mtime_ns, report
    monkeypatch.setattr(sections, "mine", None)  # what is there is not measured again
    assert evaluate.main(words) == 0
    assert json.loads((folder / "report.json").read_text()) == before[1]
    assert len(decoders) == 2
    assert evaluate.main([str(folder), "--figures", "reconstruction", "--force"]) == 0
    assert len(decoders) == 3


def test_measures_alone_are_compared_too(trained, tmp_path, monkeypatch, capsys):
    terms = {"positive_term": 2.0, "negative_term": 1.0, "standard_error": 0.1, "certifiable_nats": 6.0, "converged": True}
    made = Reconstruction({"ms_ssim": 0.5, "mse": 0.1}, torch.zeros(540, 1, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(sections, "ndm", lambda y, seed, **_: {"total_correlation_nats": y.std().item(), **terms})
    monkeypatch.setattr(sections.reconstruction, "reconstruction", lambda *_: made)
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "report.json").unlink(missing_ok=True)
    words = [str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b"), "--measures", "ndm", "reconstruction"]
    assert evaluate.main(words) == 0
    tables = json.loads((tmp_path / "runs" / "comparison.json").read_text())["tables"]
    assert {title: table["of"] for title, table in tables.items()} == {
        "ndm": "total correlation in nats",
        "reconstruction": "MS-SSIM, 1 for equal images",
    }
    trained_y = read_report(tmp_path / "runs" / "a")["ndm"]["rows"]["trained y"]["total_correlation_nats"]
    assert tables["ndm"]["rows"]["a"]["y"]["mean"] == trained_y
    assert (tmp_path / "runs" / "comparison.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "runs" / "comparison.png").exists()


def test_fine_tuning_takes_few_labels_or_all_and_says_its_losses(trained, tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)
    words = [str(folder), "--probes", "finetune", "--layers", "y", "--labels-per-class", "5", "10"]
    assert evaluate.main(words) == 0
    assert evaluate.main([*words, "--unlabelled", "information"]) == 0
    report = read_report(folder)
    assert list(report) == ["run", "finetune", "finetune, information 1"]
    assert evaluate.main([*words[:-3], "--unlabelled", "pseudo"]) == 0
    assert list(read_report(folder)["finetune, pseudo 1"]["rows"]["trained y"]) == ["all"]
    for title in list(report)[1:]:
        assert list(report[title]["rows"]) == ["random y", "trained y"]
        assert [list(row) for row in report[title]["rows"].values()] == [["5", "10"]] * 2
    assert report["finetune"]["rows"]["trained y"]["10"]["sd"] is not None
    capsys.readouterr()


def test_several_runs_stand_beside_each_other(trained, two_columns, tmp_path, capsys):
    for name, words in {"a_seed0": (), "a_seed1": ("--seed", "1"), "b": ("--train.lr", "0.01")}.items():
        assert train.main(tiny(tmp_path / "runs" / name, *words)) == 0
    assert evaluate.main([*map(str, sorted((tmp_path / "runs").iterdir())), "--layers", "y"]) == 0
    found = json.loads((tmp_path / "runs" / "comparison.json").read_text())["tables"]["linear"]["rows"]
    assert set(found) == {"raw pixels", "random encoder", "a_seed, 2 seeds", "b"}
    assert found["a_seed, 2 seeds"]["y"]["seeds"] == 2
    assert found["a_seed, 2 seeds"]["y"]["sd"] is not None
    text = (tmp_path / "runs" / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert "| a_seed, 2 seeds |" in text
    assert (tmp_path / "runs" / "comparison.png").exists()


def test_a_closed_pipe_ends_it_quietly_and_loses_nothing(trained, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)
    line = f"{sys.executable} {ROOT}/evaluate.py {folder} --layers y | true"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert "Broken" not in done.stderr
    assert "error" not in done.stderr


def test_the_random_encoder_is_the_trained_one_before_its_first_step(trained):
    config, state = saved(trained), checkpoint.load(trained)
    data = build.dataset(config)
    encoder = evaluate.trained_encoder(config, data.shape, state, "last", trained)
    rows = {
        kind: evaluate.features_of(kind, config, data, encoder, layers, state["step"])
        for kind, layers in (("raw", {"x"}), ("random", {"fc", "y"}), ("trained", {"fc", "y"}))
    }
    found = {f"{kind} {layer}": pair[1] for kind, features_ in rows.items() for layer, pair in features_.parts.items()}
    start = set_statistics(build.encoder(config, data.shape), data, data.train)
    assert torch.allclose(found["random fc"], features(start, data, data.test)["fc"], atol=1e-3)
    end = build.encoder(config, data.shape)
    end.load_state_dict(state["encoder"])
    assert torch.allclose(found["trained y"], features(end, data, data.test)["y"], atol=1e-3)
    assert not torch.allclose(found["random y"], found["trained y"], atol=1e-1)
    assert torch.equal(found["raw x"], data.test.images.flatten(1) / 16)


def test_the_same_net_trained_with_labels_is_an_option(two_columns, tmp_path, monkeypatch, capsys):
    folder, other, made, before = tmp_path / "r", tmp_path / "jsd", [], evaluate.finetuned
    monkeypatch.setattr(evaluate, "finetuned", lambda *words: made.append(words) or before(*words))
    for place, estimator in ((folder, "infonce"), (other, "jsd")):
        assert train.main(tiny(place, "--train.epochs", "10", "--objective.local.estimator", estimator)) == 0
    assert evaluate.main([str(folder), str(other), "--supervised"]) == 0
    assert len(made) == 1  # its rows are the same for both runs
    report = json.loads((folder / "report.json").read_text())
    rows = report["linear"]["rows"]
    kinds = ("random", "supervised", "trained")
    assert list(rows)[2:] == [f"{kind} {layer}" for kind in kinds for layer in ("conv", "fc", "y")]
    assert rows["supervised y"]["all"]["accuracy"] > rows["trained y"]["all"]["accuracy"] + 0.05
    words = "head on y, cross-entropy, 30 steps of 419 images, views affine, Adam at 0.001"
    assert words in report["run"]["supervised rows"]
    comparison = json.loads((tmp_path / "comparison.json").read_text())["tables"]["linear"]["rows"]
    assert list(comparison) == ["raw pixels", "random encoder", "supervised encoder", "r", "jsd"]
    capsys.readouterr()
    assert evaluate.main([str(folder)]) == 0  # without the option the rows stay, and what they are
    assert "supervised y" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert words in report["run"]["supervised rows"]
    assert report["linear"]["rows"]["supervised y"] == rows["supervised y"]


def test_several_runs_share_their_baselines(trained, two_columns, tmp_path, monkeypatch, capsys):
    assert train.main(tiny(tmp_path / "jsd", "--objective.local.estimator", "jsd")) == 0
    assert train.main(tiny(tmp_path / "seed", "--seed", "1")) == 0
    made, before = [], protocol.probe
    monkeypatch.setattr(
        protocol, "probe", lambda kind, name, *others, **more: made.append(name) or before(kind, name, *others, **more)
    )
    assert evaluate.main([str(trained), str(tmp_path / "jsd"), str(tmp_path / "seed"), "--force"]) == 0
    assert made.count("raw pixels") == 1
    assert made.count("random fc") == 2  # seeds 0 and 1
    assert made.count("trained fc") == 3
    one, two, three = (
        json.loads((folder / "report.json").read_text())["linear"]["rows"]
        for folder in (trained, tmp_path / "jsd", tmp_path / "seed")
    )
    assert list(one) == list(two) == list(three)
    assert one["random fc"] == two["random fc"] != three["random fc"]
    assert one["trained fc"] != two["trained fc"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not the folder of a run: it has no config.yaml"),
        (["{run}", "--probes", "knm"], "choose from 'linear', 'svm', 'mlp', 'knn'"),
        (["{run}", "--layers", "fd"], "choose from 'conv', 'fc', 'y'"),
        (
            ["{run}", "--protocol", "paper", "--probes", "svm"],
            "--protocol paper is that of an mlp on all labels: give --probes mlp",
        ),
        (
            ["{run}", "--measures", "ndm", "--labels-per-class", "5"],
            "--labels-per-class belongs to probes: give --probes linear",
        ),
        (
            ["{run}", "--probes", "finetune", "--labels-per-class", "200"],
            "labels_per_class is 200: digits has from 1 to 122 in each class",
        ),
        (["{run}", "--unlabelled", "pseudo"], "--unlabelled belongs to fine-tuning: give --probes finetune too"),
        (["{run}", "--pairs", "fc:y"], "--pairs belongs to mine: give --measures mine too"),
        (["{run}", "--measures", "mine", "--layers", "fc"], "--layers belongs to probes, ndm, reconstruction and --features"),
        (["{run}", "--measures", "mine", "--pairs", "x:z"], "x:z names z: write A:B with two of x, conv, fc, y"),
        (["{run}", "--measures", "mine", "--pairs", "y"], "y names nothing: write A:B"),
        (["{run}", "--figures", "embedding", "--layers", "fc"], "--layers belongs to probes, ndm, reconstruction"),
        (["{run}", "--probes", "finetune", "--supervised"], "--supervised adds rows to measures and to probes of frozen"),
        (
            ["{run}", "--measures", "ndm", "--once"],
            "--once leaves out resamples of probes of frozen features, and there are none",
        ),
        (["{run}", "x" * 300], "is not the folder of a run: it has no config.yaml"),
        (["{run}", "--labels-per-class", "0", "5"], "0 labels a class are asked for: digits has from 1 to 11"),
        (["{run}", "--labels-per-class", "200"], "200 labels a class are asked for: digits has from 1 to 11"),
        ([], "the following arguments are required: RUN"),
        (["{run}", "--probe", "linear"], "--probe is no option; did you mean probes?"),
        (["{run}", "--train.lr", "1"], "--train.lr belongs to training"),
        (["{run}", "--data.rot", "x"], "unknown key 'data.rot' in the command line; did you mean data.root?"),
        (["{run}", "--data.root"], "--data.root needs a value"),
        (["{run}", "--export", "encoder.pt"], "--export is encoder.pt: its name must end in .safetensors or .onnx"),
        (["{run}", "--features", "f.npy"], "its name must end in .npz"),
        (["{run}", "elsewhere", "--export", "e.onnx"], "--export names one file, but 2 runs are given: give one run"),
        (["{run}", "--export", "nowhere/e.safetensors"], "--export is nowhere/e.safetensors: nowhere is no folder"),
        (["{run}", "--weights", "average"], "kept no average of its weights: train it with --train.average"),
    ],
)
def test_a_mistake_ends_with_one_line_and_exit_code_2(words, message, trained, capsys):
    assert evaluate.main([word.format(run=trained) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_fine_tuned_runs_are_compared_by_their_number_of_labels(trained, tmp_path, monkeypatch, capsys):
    """With and without augmentation: what the random encoder is fine-tuned to differs too."""
    monkeypatch.setattr(sections, "SEEDS", 1)
    monkeypatch.setattr(sections.finetune, "finetune", partial(sections.finetune.finetune, steps=5))
    for name in ("affine", "none"):
        assert train.main(tiny(tmp_path / name, "--views.kind", name)) == 0
    words = ["--probes", "finetune", "--layers", "y", "--labels-per-class", "3", "5"]
    assert evaluate.main([str(tmp_path / "affine"), str(tmp_path / "none"), *words]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert list(found["tables"]) == ["finetune, 3 labels a class", "finetune, 5 labels a class"]
    one, two = (json.loads((tmp_path / name / "report.json").read_text())["finetune"] for name in ("affine", "none"))
    assert one["rows"]["random y"]["5"]["seconds"] != two["rows"]["random y"]["5"]["seconds"]
    assert (one["augmentation"] == "None", two["augmentation"]) == (False, "None")
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "none"), *words, "--unlabelled", "consistency"]) == 2
    assert "consistency compares images with the run's views of them, and views.kind is none" in capsys.readouterr().err


def damaged(folder, change):
    """The checkpoint of a run with its state changed."""
    state = checkpoint.load(folder)
    change(state["encoder"])
    (folder / "checkpoint.pt").write_bytes(checkpoint.sealed(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.popitem(), "checkpoint.pt does not fit"),
        (lambda weights: weights.update({next(iter(weights)): torch.zeros(1)}), "size mismatch"),
        (lambda weights: next(iter(weights.values())).view(-1)[:1].fill_(torch.nan), "holds weights that are not finite"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(change, message, trained, tmp_path, capsys):
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    damaged(folder, change)
    for words in (["--layers", "y"], ["--probes", "mlp", "--protocol", "paper"], ["--features", str(tmp_path / "f.npz")]):
        assert evaluate.main([str(folder), *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "f.npz").exists()


def test_a_run_that_has_not_been_trained_is_said(trained, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    for words in ([], ["--measures", "mine"], ["--figures", "neighbours"], ["--probes", "finetune", "--labels-per-class", "5"]):
        assert evaluate.main([str(tmp_path), *words]) == 2
        err = capsys.readouterr().err
        assert err.endswith(f"no checkpoint {tmp_path}/checkpoint.pt: train the run first\n")
        assert err.count("\n") == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A tiny run on a folder of two classes."""
    place = tmp_path_factory.mktemp("photos")
    small_sets.pictures(place / "images", {"a": 20, "b": 20})
    words = [
        "--data.name",
        "folder",
        "--data.labels",
        "folders",
        "--data.root",
        str(place / "images"),
        "--train.batch_size",
        "16",
    ]
    assert train.main(tiny(place / "run", *words)) == 0
    return place / "run"


def pictures(train: dict[str, int], test: dict[str, int]):
    """Makes a folder of training and test pictures of each class; an empty file stands in a class of none."""

    def make(root):
        for part, classes in (("train", train), ("val", test)):
            small_sets.pictures(root / part, classes, seed=part == "val")
            for name in (name for name, n in classes.items() if not n):
                (root / part / name / "empty.png").touch()

    return make


TOO_LITTLE = [  # training and test pictures, what is asked for, what is said
    (pictures({"a": 9, "b": 0}, {"a": 3, "b": 3}), ["--layers", "y"], "folder has labels of 1 class: a probe needs two"),
    (pictures({"a": 1, "b": 1}, {"a": 3, "b": 3}), ["--layers", "y"], "no class has 2, one of them for validation"),
    (pictures({"a": 1, "b": 1}, {"a": 3, "b": 3}), ["--probes", "knn"], "no class has 2, one of them for validation"),
    (pictures({"a": 2, "b": 2}, {"a": 3, "b": 3}), ["--figures", "neighbours"], "neighbours need 5 training images"),
    (pictures({"a": 5, "b": 5}, {"a": 3, "b": 3}), ["--figures", "embedding"], "an embedding needs 21 images"),
    (pictures({"a": 5, "b": 5}, {"a": 3, "b": 3}), ["--measures", "mine"], "needed are real numbers [n, D] with n at least 30"),
    (pictures({"a": 5, "b": 5}, {"a": 3, "b": 3}), ["--measures", "ndm"], "needed are real numbers [n, D] with n at least 30"),
    (
        pictures({"a": 5, "b": 5}, {"a": 3, "b": 3}),
        ["--probes", "finetune", "--labels-per-class", "6"],
        "labels_per_class is 6: folder has from 1 to 5 in each class",
    ),
]


@pytest.mark.parametrize(("make", "words", "said"), TOO_LITTLE)
def test_too_few_images_or_classes_are_one_line(make, words, said, photos, tmp_path, capsys):
    make(tmp_path / "root")
    given = [str(photos), "--data.root", str(tmp_path / "root"), "--data.skip_bad", "true", *words]
    assert evaluate.main(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_neighbours_are_no_more_than_there_are_images(photos, tmp_path, capsys):
    pictures({"a": 3, "b": 3}, {"a": 2, "b": 2})(tmp_path / "root")
    words = ["--data.root", str(tmp_path / "root"), "--probes", "knn", "--layers", "y", "--force"]
    assert evaluate.main([str(photos), *words]) == 0
    report = json.loads((photos / "report_root.json").read_text())
    assert all(cell["k"] <= 3 for row in report["knn"]["rows"].values() for cell in row.values())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "y"], "the features trained y are not all finite numbers: the run's weights or its images are damaged"),
        (["--probes", "svm", "--layers", "fc", "--once"], "the features trained fc are not all finite numbers"),
        (["--probes", "mlp", "--protocol", "paper", "--layers", "y"], "the features y are not all finite numbers"),
        (["--measures", "mine"], "values that are not finite"),
        (["--measures", "reconstruction"], "are not finite: the run may be damaged"),
        (["--figures", "neighbours"], "are not finite: the run's checkpoint may be damaged"),
        (["--figures", "embedding"], "are not finite: the run's checkpoint may be damaged"),
    ],
)
def test_features_that_are_not_finite_are_one_line(words, said, trained, tmp_path, monkeypatch, capsys):
    """Of weights that are finite, so that only what they make of an image tells."""
    quick(monkeypatch)
    monkeypatch.setattr(mlp, "PAPER_EPOCHS", 2)
    monkeypatch.setattr(mlp, "PAPER_LAST", 1)
    few = protocol.Columns(knobs={"C": 1.0}, resampled=False)
    monkeypatch.setitem(protocol.COLUMNS, "digits", few)
    shutil.copytree(trained, tmp_path / "r", ignore=shutil.ignore_patterns("report*"))
    damaged(tmp_path / "r", lambda weights: [t.fill_(3e38) for name, t in weights.items() if name.endswith("weight")])
    assert evaluate.main([str(tmp_path / "r"), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_run_on_cifar10_is_probed_on_cifar100_whose_name_stands_in_every_row(tmp_path, monkeypatch, capsys):
    small_sets.cifar10(monkeypatch, tmp_path / "ten")
    small_sets.cifar100(monkeypatch, tmp_path / "hundred", classes=4)
    words = ["--data.name", "cifar10", "--data.root", str(tmp_path / "ten"), "--data.fit", "resize", "--train.batch_size", "20"]
    assert train.main(tiny(tmp_path / "r", *words, "--encoder.name", "small8x8")) == 0
    words = [
        "--data.name",
        "cifar100",
        "--data.root",
        str(tmp_path / "hundred"),
        "--layers",
        "fc",
        "y",
        "--probes",
        "linear",
        "knn",
    ]
    assert evaluate.main([str(tmp_path / "r"), *words]) == 0
    assert not (tmp_path / "r" / "report.json").exists()
    report = json.loads((tmp_path / "r" / "report_cifar100.json").read_text())
    assert report["run"]["data"] == "cifar100"
    assert list(report) == ["run", "linear", "knn"]
    for title in ("linear", "knn"):
        part = report[title]
        assert part["chance"] == 0.01
        assert part["protocol"].startswith("cifar100, 20 test images")
        assert "100 training images" in part["protocol"]
        rows = ["raw pixels", "random fc", "random y", "trained fc", "trained y"]
        assert list(part["rows"]) == [f"{row} on cifar100" for row in rows]
    config = built(flat(saved(tmp_path / "r")) | {"data.name": "cifar100", "data.root": str(tmp_path / "hundred")})
    assert report["run"]["data_sha256"] == build.dataset(config).fingerprint
    assert "trained y on cifar100" in capsys.readouterr().out


def blocked(*names: str) -> str:
    """Python code that makes these imports fail."""
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


EXTRAS = ("wandb", "matplotlib", "torchmetrics", "safetensors", "torchvision")


def test_importing_dim_costs_torch_and_numpy_alone():
    code = blocked(*EXTRAS, "sklearn", "scipy", "jsonargparse", "yaml", "tqdm")
    code += "import dim.build, dim.metrics, dim.guard, dim.checkpoint, dim.summary, dim.evals.linear"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=300)


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        ("torchmetrics", ["--probes", "linear", "--measures", "reconstruction"], "MS-SSIM needs the package torchmetrics"),
        ("torchmetrics", ["--figures", "curves", "reconstruction"], "MS-SSIM needs the package torchmetrics"),
        ("matplotlib", ["--probes", "linear", "--figures", "curves"], "a figure needs the package matplotlib"),
        ("sklearn", ["--figures", "curves", "embedding"], "an embedding needs the package scikit-learn"),
    ],
)
def test_a_missing_package_is_said_before_anything_is_computed(package, words, said, trained, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate", None)
    monkeypatch.setitem(sys.modules, package, None)
    assert evaluate.main([str(trained), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


NEEDS = [  # a package, what needs it, what is said
    ("safetensors", ["evaluate", "{run}", "--export", "e.safetensors"], "an export needs the package safetensors"),
    ("onnx", ["evaluate", "{run}", "--export", "e.onnx"], "an export to ONNX needs the package onnx"),
    ("onnxscript", ["evaluate", "{run}", "--export", "e.onnx"], "an export to ONNX needs the package onnxscript"),
    ("torchmetrics", ["evaluate", "{run}", "--measures", "reconstruction"], "MS-SSIM needs the package torchmetrics"),
    ("sklearn", ["evaluate", "{photos}", "--figures", "embedding"], "an embedding needs the package scikit-learn"),
    ("matplotlib", ["evaluate", "{run}", "--figures", "curves"], "a figure needs the package matplotlib"),
    ("torchvision", ["train", "--encoder.name", "resnet18"], "encoder.name resnet18 needs the package torchvision"),
    (
        "torchvision",
        ["train", "--data.name", "mnist", "--data.download", "true"],
        "data.download needs the package torchvision",
    ),
    ("PIL", ["train", "--data.name", "folder", "--data.root", "."], "data.name folder needs the package pillow"),
    ("sklearn", ["train"], "data.name digits needs the package scikit-learn"),
]


@pytest.mark.parametrize(("package", "words", "said"), NEEDS)
def test_a_missing_package_stops_only_what_needs_it_in_one_line(package, words, said, trained, photos, tmp_path):
    script, *words = [word.format(run=trained, photos=photos) for word in words]
    code = blocked(package) + f"sys.path.insert(0, {str(ROOT)!r})\nimport {script}\nsys.exit({script}.main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_training_and_evaluating_need_none_of_the_extras(trained, tmp_path):
    code = blocked(*EXTRAS) + (
        "import train, evaluate\n"
        "from dim.evals import protocol\n"
        "protocol.COLUMNS['digits'] = protocol.Columns(knobs={'C': 1.0}, resampled=False)\n"
        f"sys.exit(train.main({tiny(tmp_path / 'r')!r}) or evaluate.main([{str(tmp_path / 'r')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "trained fc" in done.stdout


def test_the_scripts_run_from_any_folder(command, tmp_path):
    done = command("train.py", *tiny(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    assert "3 steps done" in done.stdout
    assert command("train.py", "--config", "missing.yaml").returncode == 2
    shown = command("train.py", "--help")
    assert shown.returncode == 0
    assert "one of jsd, dv, dv_per_anchor, infonce" in shown.stdout


def test_forced_columns_leave_the_others_as_they_are(trained, tmp_path, monkeypatch, capsys):
    """`--once` does not ask for the resamples, so `--force` keeps them."""
    columns = protocol.Columns(few=(10,), draws=2, knobs={"C": 1.0}, resampled=True, unscaled=False)
    monkeypatch.setitem(protocol.COLUMNS, "digits", columns)
    monkeypatch.setattr(protocol, "RESAMPLES", 2)
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / "report.json").unlink(missing_ok=True)

    def rows(*words: str) -> dict:
        assert evaluate.main([str(folder), "--layers", "y", *words]) == 0
        return json.loads((folder / "report.json").read_text())["linear"]["rows"]

    before, after = rows(), rows("--once", "--force")
    for name, cells in before.items():
        assert after[name].keys() == cells.keys() == {"all", "resamples", "10"}
        assert after[name]["resamples"] == cells["resamples"]
        assert after[name]["all"]["seconds"] != cells["all"]["seconds"]  # measured anew


def test_a_folder_that_takes_no_report_is_said_before_any_work(trained, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, how: False)
    monkeypatch.setattr(evaluate.build, "dataset", None)
    assert evaluate.main([str(trained), "--once"]) == 2
    assert capsys.readouterr().err == f"error: {trained} cannot be written: the report goes there\n"
