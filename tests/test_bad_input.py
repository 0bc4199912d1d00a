"""Bad input by the hundred: whatever is wrong with a configuration or a checkpoint, exit code 2 and one line, nothing else.

The cases by hand stand beside what they are about: `test_config.py`, `test_damaged_data.py`, `test_checkpoint.py`. Here they
are generated. The short form runs by default; the long one, whose output stands in results/reliability.md, is slow.
"""

import random
import shutil
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from conftest import ROOT, tiny
from test_checkpoint import KINDS, damaged
from test_config import misspelt

import evaluate
import train
from dim import checkpoint
from dim.config import Config, flat, leaves

WRONG = (
    "",
    "abc",
    "[1",
    "{a: 1}",
    "true",
    "null",
    "1.5",
    "-1",
    ".nan",
    "1e999",
    "[1, 2, 3]",
    "é\u202e",
    "~",
    "!!python/x y",
    "0x",
)


def of_another_kind(draws: random.Random) -> list[str]:
    """A key with a value that is hardly one of its own."""
    return [f"--{draws.choice(list(leaves()))}", draws.choice(WRONG)]


def beyond_its_limits(draws: random.Random) -> list[str]:
    key, (_, field) = draws.choice([leaf for leaf in leaves().items() if leaf[1][1].metadata["at_least"] is not None])
    low = field.metadata["at_least"] - draws.choice((1, 5, 10**9))
    value = f"[{low}, {low}]" if isinstance(flat(Config())[key], tuple) else str(low)
    return [f"--{key}", value]


def misspelt_key(draws: random.Random) -> list[str]:
    return [f"--{misspelt(draws.choice(list(leaves())), draws)}", "1"]


def misspelt_choice(draws: random.Random) -> list[str]:
    key, (kind, _) = draws.choice([leaf for leaf in leaves().items() if get_origin(leaf[1][0]) is Literal])
    return [f"--{key}", misspelt(draws.choice([str(choice) for choice in get_args(kind)]), draws)]


def words_in_disorder(draws: random.Random) -> list[str]:
    words = ["--seed", "3", "--train.lr", "1e-3", "--config", "--", "-x", "=", "--=", "--seed=", "train.lr=3", "\0"]
    return draws.sample(words, 3)


ON_THE_COMMAND_LINE = (of_another_kind, beyond_its_limits, misspelt_key, misspelt_choice, words_in_disorder)


def damaged_text(text: str, draws: random.Random) -> bytes:
    """The text of a configuration with a few bytes put in, left out or replaced."""
    content = bytearray(text.encode())
    for _ in range(draws.choice((1, 2, 8))):
        place = draws.randrange(len(content))
        act = draws.choice(("in", "out", "other", "cut"))
        if act == "in":
            content.insert(place, draws.randrange(256))
        elif act == "out":
            del content[place : place + draws.choice((1, 9))]
        elif act == "other":
            content[place] = draws.choice(b"\0\t:{[&*!|>%@`\xff\n#-")
        else:
            del content[max(place, 2) :]
    return bytes(content)


def refused(words: list[str], main, capsys, tmp_path: Path) -> bool:
    """Whether a script refuses these words, in one line; a dry run that it does not refuse ends well."""
    code = main(words)
    err = capsys.readouterr().err.replace(str(tmp_path), "")
    assert code in (0, 2), (words, code)
    if code == 2:
        assert err.startswith("error: "), (words, err)
        assert err.count("\n") == 1, (words, err)
        assert len(err) < 420, (words, err)
        assert "Traceback" not in err
    return code == 2


@pytest.mark.parametrize("wanted", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_bad_configuration_is_one_line(wanted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws, found, accepted = random.Random(0), 0, 0
    lines = (ROOT / "configs" / "cifar10.yaml").read_text().splitlines(keepends=True)
    whole = "".join(line for line in lines if not line.startswith("#"))
    assert yaml.safe_load(whole)
    while found < wanted:
        if draws.random() < 0.3:
            (tmp_path / "c.yaml").write_bytes(damaged_text(whole, draws))
            words = ["--config", "c.yaml", "--data.name", "digits", "--encoder.name", "small8x8", "--dry-run"]
        else:
            words = [*tiny(tmp_path / "r"), *draws.choice(ON_THE_COMMAND_LINE)(draws), "--dry-run"]
        no = refused(words, train.main, capsys, tmp_path)
        found, accepted = found + no, accepted + (not no)
    assert not (tmp_path / "r").exists()
    assert accepted < wanted
    print(f"{found} bad configurations: exit code 2 and one line; {accepted} others that were generated are good ones")


@pytest.mark.parametrize("share", [30, pytest.param(3, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_one_line(share, tmp_path, capsys):
    whole, place, found = tmp_path / "whole", tmp_path / "r", 0
    assert train.main(tiny(whole, "--train.steps", "1", "--encoder.code_size", "2")) == 0
    capsys.readouterr()
    content, draws = (whole / checkpoint.NEWEST).read_bytes(), random.Random(0)
    place.mkdir()
    shutil.copy(whole / "config.yaml", place)
    for kind, times in KINDS.items():
        for _ in range(max(1, times // share)):
            made = damaged(content, kind, draws)
            if made == content:
                continue
            (place / checkpoint.NEWEST).write_bytes(made)
            assert refused([str(place)], evaluate.main, capsys, tmp_path)
            assert (place / checkpoint.NEWEST).read_bytes() == made
            found += 1
    print(f"{found} damaged checkpoints: exit code 2 and one line")


NAMES = {  # of a run's folder
    "..": None,
    "../..": None,
    "/proc/x": None,
    "/dev/null": None,
    "/dev/null/x": None,
    "a\0b": None,
    "a\nb": None,
    "\x1b[31m": None,
    "x" * 300: None,
    "x/" * 3000: None,
    "file": None,
    "file/x": None,
    "folder/x": None,
    "-": "-",
    "CON": "CON",
    "~": "~",
    "ü ¿": "ü ¿",
    "a;touch b": "a;touch b",
    "$(touch b)": "$(touch b)",
}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_run_folder_is_where_it_is_said_to_be_or_one_line(name, tmp_path, capsys, monkeypatch):
    """No name is a command, and a name that no folder can have costs one line. What lies above stays as it is."""
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    (home / "file").write_text("mine")
    monkeypatch.chdir(home)
    (home / "folder").mkdir()
    (home / "folder" / "x").write_text("mine")
    before = {path for path in tmp_path.rglob("*")}
    code = train.main(tiny(name, "--train.steps", "1"))
    err = capsys.readouterr().err
    if NAMES[name] is None and name not in ("..", "../.."):
        assert code == 2, err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert {path for path in tmp_path.rglob("*")} == before
    elif NAMES[name] is None:  # a folder above, said by the user: a run there, beside what there is
        assert code == 0
        assert (home / name / "config.yaml").exists()
        assert before <= {path for path in tmp_path.rglob("*")}
    else:
        assert code == 0, err
        assert {path.relative_to(home).parts[0] for path in {*tmp_path.rglob("*")} - before} == {NAMES[name]}


def test_no_key_of_the_environment_stands_in_a_run(tmp_path, monkeypatch):
    planted = "s3cr3t" * 6
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, planted)
    folder = tmp_path / "r"
    assert train.main(tiny(folder, "--train.steps", "1")) == 0
    assert evaluate.main([str(folder), "--probes", "knn", "--layers", "y", "--once"]) == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if planted.encode() in path.read_bytes()]
