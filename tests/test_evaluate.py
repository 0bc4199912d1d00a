"""evaluate.py: from the run folder alone, beside a random encoder and raw pixels; what scripts need and do not need."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tiny

import evaluate
import train
from dim import build
from dim.evals import linear
from dim.evals.features import features, set_statistics
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
    monkeypatch.setitem(linear.PROTOCOLS, "digits", linear.Protocol(labels=(None, 10), draws=2, penalty=1.0, unscaled=True))


def test_a_run_is_evaluated_from_its_folder(trained, two_columns, capsys):
    assert evaluate.main([str(trained)]) == 0
    out = capsys.readouterr().out
    saved_result = json.loads((trained / "evaluation.json").read_text())
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


def test_the_headline_names_the_winner_whoever_it_is():
    def result(fc):
        scores = {"raw pixels": 0.5, "random conv": 0.6, "random fc": 0.55, "trained fc": fc, "trained y": 0.9}
        return {"labels": ["all"], "rows": {name: {"all": {"accuracy": score}} for name, score in scores.items()}}

    assert evaluate.headline(result(0.7)).endswith(
        "70.0\nagainst random conv 60.0 (+10.0) and raw pixels 50.0 (+20.0): ahead of both"
    )
    assert evaluate.headline(result(0.55)).endswith("random conv 60.0 (-5.0) and raw pixels 50.0 (+5.0): not ahead of both")


def test_the_random_encoder_is_the_trained_one_before_its_first_step(trained):
    config, state = saved(trained), torch.load(trained / "checkpoint.pt", weights_only=True)
    data = build.dataset(config)
    trained_rows = evaluate.layers("trained", evaluate.trained_encoder(config, data.shape, state, "last", trained), data)
    rows = [*evaluate.baselines(config, data), *trained_rows]
    found = {name: test for name, _, test in rows}
    start = set_statistics(build.encoder(config, data.shape), data, data.train)
    assert torch.allclose(found["random fc"], features(start, data, data.test)["fc"], atol=1e-3)
    end = build.encoder(config, data.shape)
    end.load_state_dict(state["encoder"])
    assert torch.allclose(found["trained y"], features(end, data, data.test)["y"], atol=1e-3)
    assert not torch.allclose(found["random y"], found["trained y"], atol=1e-1)
    assert torch.equal(found["raw pixels"], data.test.images.flatten(1) / 16)


def test_several_runs_share_their_baselines(trained, two_columns, tmp_path, monkeypatch, capsys):
    assert train.main(tiny(tmp_path / "jsd", "--objective.local.estimator", "jsd")) == 0
    assert train.main(tiny(tmp_path / "seed", "--seed", "1")) == 0
    made, before = [], evaluate.baselines
    monkeypatch.setattr(evaluate, "baselines", lambda config, data: made.append(config.seed) or before(config, data))
    assert evaluate.main([str(trained), str(tmp_path / "jsd"), str(tmp_path / "seed")]) == 0
    assert made == [0, 1]
    one, two, three = (
        json.loads((folder / "evaluation.json").read_text())["linear"]["rows"]
        for folder in (trained, tmp_path / "jsd", tmp_path / "seed")
    )
    assert list(one) == list(two) == list(three)
    assert one["random fc"] == two["random fc"] != three["random fc"]
    assert one["trained fc"] != two["trained fc"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not the folder of a run: it has no config.yaml"),
        (["{run}", "--probes", "knn"], "choose from 'linear'"),
        ([], "the following arguments are required: RUN"),
        (["{run}", "--probe", "linear"], "--probe is no option; did you mean probes?"),
        (["{run}", "--train.lr", "1"], "--train.lr belongs to training"),
        (["{run}", "--data.rot", "x"], "unknown key 'data.rot' in the command line; did you mean data.root?"),
        (["{run}", "--data.root"], "--data.root needs a value"),
        (["{run}", "--export", "encoder.pt"], "--export is encoder.pt: its name must end in .safetensors or .onnx"),
        (["{run}", "--features", "f.npy"], "its name must end in .npz"),
        (["{run}", "{run}", "--export", "e.onnx"], "--export names one file, but 2 runs are given: give one run"),
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


def test_a_run_that_has_not_been_trained_is_said(trained, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    assert evaluate.main([str(tmp_path)]) == 2
    assert "train the run first" in capsys.readouterr().err


def blocked(*names: str) -> str:
    """Python code that makes these imports fail."""
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


EXTRAS = ("wandb", "matplotlib", "torchmetrics", "safetensors", "torchvision")


def test_importing_dim_costs_torch_and_numpy_alone():
    code = blocked(*EXTRAS, "sklearn", "scipy", "jsonargparse", "yaml", "tqdm")
    code += "import dim.build, dim.metrics, dim.guard, dim.checkpoint, dim.summary, dim.evals.linear"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=120)


NEEDS = [  # a package, what needs it, what is said
    ("safetensors", ["evaluate", "{run}", "--export", "e.safetensors"], "an export needs the package safetensors"),
    ("onnx", ["evaluate", "{run}", "--export", "e.onnx"], "an export to ONNX needs the package onnx"),
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
def test_a_missing_package_stops_only_what_needs_it_in_one_line(package, words, said, trained, tmp_path):
    script, *words = [word.format(run=trained) for word in words]
    code = blocked(package) + f"sys.path.insert(0, {str(ROOT)!r})\nimport {script}\nsys.exit({script}.main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_training_and_evaluating_need_none_of_the_extras(trained, tmp_path):
    code = blocked(*EXTRAS) + (
        "import train, evaluate\n"
        "from dim.evals import linear\n"
        "linear.PROTOCOLS['digits'] = linear.Protocol(penalty=1.0)\n"
        f"sys.exit(train.main({tiny(tmp_path / 'r')!r}) or evaluate.main([{str(tmp_path / 'r')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
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
