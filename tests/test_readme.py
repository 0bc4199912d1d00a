"""The README's commands and code, as a newcomer would use them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from conftest import ROOT, first_point
from PIL import Image
from test_evaluate import quick

import evaluate
import train
from dim.evals import mlp
from dim.reading import read

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, flags=re.MULTILINE)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip().startswith(("python ", "./run"))]


def test_the_readme_has_commands_and_code():
    assert len(COMMANDS) >= 7
    assert any("Objective(" in block for block in BLOCKS)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "train.py" in line])
def test_every_training_command_is_a_valid_configuration(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.split("&&")[0], comments=True)
    assert words[:2] == ["python", "train.py"]
    if "--help" not in words:
        default = ROOT / "configs" / "digits.yaml"
        point = first_point(Path(words[words.index("--config") + 1])) if "--config" in words else []
        read([*words[2:], *point], default, {"dry-run": ""})


@pytest.mark.parametrize("path", re.findall(r"`((?:dim|configs|results|benchmarks|tests)/[\w./]*)`", README))
def test_every_file_it_names_exists(path):
    assert (ROOT / path).exists()


def test_the_library_example_runs():
    (code,) = (block for block in BLOCKS if "Objective(" in block and "import torch" in block)
    names: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    assert torch.isfinite(names["losses"].encoder)


def test_the_backbone_example_runs(capsys):
    (code,) = (block for block in BLOCKS if "Backbone(net" in block)
    exec("\n".join(line[4:] for line in code.splitlines()), {})
    assert capsys.readouterr().out == "torch.Size([4, 128, 8, 8])\n"


def test_the_commands_for_own_images_run(tmp_path, command):
    """As they stand there, but for a smaller batch and fewer epochs; then the lines that use the export."""
    draws = np.random.default_rng(0)
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    for i in range(12):
        picture = Image.fromarray(draws.integers(0, 256, (70 + i, 80, 3), dtype=np.uint8))
        picture.save(tmp_path / "photos" / f"trip/{i}.jpg")
    small = ["--train.batch_size", "4", "--train.epochs", "1", "--objective.local.units", "8"]
    train_line, evaluate_line = (line for line in COMMANDS if "photos" in line)
    words = shlex.split(train_line)[1:]
    words[words.index("--config") + 1] = str(ROOT / "configs/tiny_imagenet.yaml")
    done = command(*words, *small)
    assert done.returncode == 0, done.stderr
    done = command(*shlex.split(evaluate_line)[1:])
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "features.npz") as found:
        assert found["train_fc"].shape == (12, 512)
        assert [Path(name).name for name in found["train_names"]] == sorted(f"{i}.jpg" for i in range(12))
    (code,) = (block for block in BLOCKS if "dim.load_encoder(" in block)
    names: dict = {"images": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)}
    exec("\n".join(line[4:] for line in code.splitlines()).replace('"encoder.s', f'"{tmp_path}/encoder.s'), names)
    assert names["codes"].map.shape == (2, 128, 8, 8)


def test_an_estimator_can_be_added_as_it_says(tmp_path):
    """In a copy of the project: each block of its section in the file named last before it, and the choice in the schema. Then
    all tests that ask every estimator for something."""
    section = README.split("### Add your own estimator\n")[1].split("\n#")[0]
    project = copy_of_the_project(tmp_path)
    named = {}
    for block in (block for block in BLOCKS if block in section):
        before = section[: section.index(block)]
        name = re.findall(r"`((?:dim|tests)/[\w/]+\.py)`", before)[-1]
        named[name] = added(project / name, "\n".join(line[4:] for line in block.splitlines()).strip())
    assert named == {
        "dim/estimators.py": ["ESTIMATORS"],
        "dim/figures/captions.py": ["NATURE"],
        "tests/test_estimators.py": ["LOOPS", "CONSTANT", "PERFECT", "REVERSED", "TURNS"],
    }
    assert '`"least_squares"` behind `"wasserstein"` among the choices of `estimator` in `dim/config.py`' in section
    replaced(project / "dim/config.py", '"tv", "wasserstein"', '"tv", "wasserstein", "least_squares"')
    tests = [
        "tests/test_estimators.py",
        "tests/test_config.py::test_every_name_of_a_factor_can_be_configured",
        "tests/test_figures.py::test_jsd_is_not_called_information",
    ]
    words = [sys.executable, "-m", "pytest", "-q", *tests, "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    shown = subprocess.run([sys.executable, "train.py", "--help"], cwd=project, capture_output=True, text=True, timeout=300)
    assert "tv, wasserstein, least_squares" in shown.stdout


def added(path: Path, code: str) -> list[str]:
    """Put entries, written as NAME = {..., entry}, into the dicts of a file, and what stands before them above the first one;
    the names of the dicts."""
    entries = re.findall(r"^(\w+) = \{\.\.\., (.*)\}$", code, flags=re.MULTILINE)
    function = re.split(r"^\w+ = \{\.\.\.", code, maxsplit=1, flags=re.MULTILINE)[0].strip()
    for name, entry in entries:
        text = path.read_text()
        (start,) = (match.start() for match in re.finditer(rf"^{name} = \{{", text, flags=re.MULTILINE))
        above = f"{function}\n\n\n" if name == entries[0][0] and function else ""
        path.write_text(text[:start] + above + f"{name} = {{{entry}, " + text[start + len(f"{name} = {{") :])
    return [name for name, _ in entries]


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"DIM_PYTHON": sys.executable} | more


def copy_of_the_project(folder: Path) -> Path:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod((ROOT / name).stat().st_mode)
    return folder


def test_the_first_command_trains_evaluates_and_wins(tmp_path):
    """./run from its start to its table, without the installation: about a minute."""
    project = copy_of_the_project(tmp_path)
    done = subprocess.run(["./run"], cwd=project, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "trained fc" in done.stdout
    assert done.stdout.rstrip().endswith("./run evaluate runs/cifar10")
    rows = json.loads((project / "runs/digits/report.json").read_text())["linear"]["rows"]
    fc = rows["trained fc"]["10"]["accuracy"]
    assert fc > max(rows[f"random {layer}"]["10"]["accuracy"] for layer in ("conv", "fc", "y")) + 0.03
    assert fc > rows["raw pixels, unscaled"]["10"]["accuracy"] + 0.03
    assert all(cell["converged"] for row in rows.values() for cell in row.values())
    again = subprocess.run(["./run", "train"], cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert "is finished: 270 steps" in again.stdout


@pytest.mark.parametrize(
    ("words", "path", "message"),
    [
        (["fly"], None, "error: unknown job 'fly'"),
        ([], "", "python3 is missing; on Debian or Ubuntu: apt install python3 python3-venv"),
        ([], "exit 1", "dim needs 3.11 or later"),
        (
            [],
            'case "$2" in *version_info*) exit 0 ;; esac; exit 1',
            "python3 has no venv; on Debian or Ubuntu: apt install python3-venv",
        ),
    ],
)
def test_run_says_what_is_missing_in_one_line(words, path, message, tmp_path):
    """With a python3 that answers as the given shell line does, or none."""
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "cut", "cat", "cmp"):
        found = subprocess.run(["sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / "bin" / tool).symlink_to(found)
    if path:
        fake = tmp_path / "bin" / "python3"
        fake.write_text(f"#!/bin/sh\n{path}\n")
        fake.chmod(0o755)
    (tmp_path / "run").write_bytes((ROOT / "run").read_bytes())
    done = subprocess.run(
        ["sh", str(tmp_path / "run"), *words], env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_cifar10_commands_fit_the_real_data(real_data, command):
    for line in COMMANDS:
        if "cifar10" in line and "train.py" in line:
            words = shlex.split(line)[1:]
            words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
            if "--data.root" in words:
                words[words.index("--data.root") + 1] = str(real_data)
            done = command(*words, *(["--dry-run"] if "--dry-run" not in words else []))
            assert done.returncode == 0, done.stderr
            assert "50,000 training images 3 x 32 x 32" in done.stdout


@pytest.mark.slow
def test_the_evaluations_of_a_cifar10_run_do_what_they_say(tmp_path, monkeypatch, capsys):
    """As they stand there, on small data sets of the same layout, with fewer steps and 2 labels a class in the place of 250."""
    for made in (small_sets.cifar10, small_sets.cifar100):
        made(monkeypatch, tmp_path / "data", 24 if made is small_sets.cifar10 else 10)
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    monkeypatch.setattr(mlp, "PAPER_EPOCHS", 101)
    words = shlex.split(next(line for line in COMMANDS if "--data.download true" in line and "train.py" in line))[2:]
    words[words.index("--config") + 1] = str(ROOT / "configs/cifar10.yaml")
    small = ["--train.steps", "3", "--train.batch_size", "40", "--run.save_every", "3", "--run.probe_every", "0"]
    assert train.main([*words, *small]) == 0
    lines = [line for line in COMMANDS if line.startswith("python evaluate.py runs/cifar10")]
    assert len(lines) >= 7
    for line in lines:
        assert evaluate.main(shlex.split(line.replace(" 250 ", " 2 "))[2:]) == 0, line
    report = json.loads((tmp_path / "runs/cifar10/report.json").read_text())
    frozen, measures = {"linear", "svm", "mlp", "knn", "mlp, the paper's protocol"}, {"mine", "ndm", "reconstruction"}
    assert set(report) == {"run", "finetune, information 1"} | frozen | measures
    assert set(report["finetune, information 1"]["columns"]) == {"10", "2"}
    figures = {path.stem for path in (tmp_path / "runs/cifar10/figures").glob("*.png")}
    assert figures == {"bounds", "training", "scores", "codes", "neighbours", "embedding"}
    assert json.loads((tmp_path / "runs/cifar10/report_cifar100.json").read_text())["linear"]["rows"]
