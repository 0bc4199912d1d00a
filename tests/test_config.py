"""Configuration: what is read, what is refused, and in which words."""

import itertools
import random
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from conftest import first_point
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.backbones import RESNETS, STEMS
from dim.build import CRITICS, DATASETS, ESTIMATORS, NEGATIVES, SCHEDULES, VIEWS
from dim.config import Config, UserError, built, check, flat, leaves
from dim.encoders import ARCHITECTURES
from dim.norms import NORMS
from dim.reading import differences, dump, edits, nearest, prepare, read, saved

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def parsed(tmp_path, text: str, *words: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return read(list(words), path)[0]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("encoder.name", [*ARCHITECTURES, *RESNETS]),
        ("encoder.stem", STEMS),
        ("data.name", [*DATASETS, "gaussian"]),
        ("views.kind", VIEWS),
        ("norm", NORMS),
        ("train.schedule", SCHEDULES),
        ("objective.local.estimator", ESTIMATORS),
        ("objective.local.critic", CRITICS),
        ("objective.local.negatives", NEGATIVES),
    ],
)
def test_every_name_of_a_factor_can_be_configured(key, names):
    assert set(get_args(leaves()[key][0])) == set(names)


def test_every_key_has_one_line_of_help():
    for key, (_, field) in leaves().items():
        assert field.metadata["help"], key
        assert "\n" not in field.metadata["help"], key


def test_flat_and_built_are_inverse():
    assert built(flat(Config())) == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read_back_the_same(path, tmp_path):
    config, _ = read(first_point(path), path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert read([], tmp_path / "again.yaml")[0] == config


FACTS = ("Reproduces", "Command", "Hardware", "Time", "Result")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_reproduces_and_how_it_was_measured(path):
    """In five labelled facts, with what must be known of its data between them, continued on lines that stand further in."""
    lines = path.read_text().splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert not any(line.startswith("#") for line in lines[len(header) :])
    whole = "\n".join(header).replace("\n#   ", " ").splitlines()
    pairs = [line.removeprefix("# ").partition(": ")[::2] for line in whole]
    found = dict(pairs)
    assert len(found) == len(pairs)
    assert [label for label in found if label != "Data"] == list(FACTS)
    assert all(found.values())
    named = f"--config {path.relative_to(ROOT)}" if path.stem != "digits" else "./run"
    assert named in found["Command"]
    assert "easured" in found["Time"] or re.search(r"about [\d.]+ (second|minute|hour)", found["Time"])
    records = re.findall(r"results/[\w./]*\w", found["Result"])
    assert found["Result"].startswith("not measured") or records
    assert all((ROOT / record).exists() for record in records)


@given(
    seed=st.integers(0, 2**40),
    lr=st.floats(1e-8, 1e3, allow_nan=False),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    root=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
    scale=st.one_of(st.floats(1e-6, 1e6), st.just("1/sqrt(units)")),
)
@settings(max_examples=60, deadline=None)
def test_generated_configurations_round_trip(tmp_path_factory, seed, lr, betas, root, scale):
    config = built(
        flat(Config()) | {"seed": seed, "train.lr": lr, "train.betas": betas, "data.root": root, "objective.local.scale": scale}
    )
    path = tmp_path_factory.mktemp("round") / "c.yaml"
    path.write_text(dump(config))
    assert read([], path)[0] == config


def test_command_line_stands_over_the_file(tmp_path):
    config = parsed(tmp_path, "train: {lr: 1e-3, epochs: 5}", "--train.lr=2e-3", "--objective.local.symmetric", "true")
    assert (config.train.lr, config.train.epochs, config.objective.local.symmetric) == (2e-3, 5, True)


MISTAKES = [  # file, command line, the message
    ("train: {epochz: 3}", [], r"unknown key 'train.epochz' in .*c.yaml; did you mean train.epochs\?"),
    ("", ["--train.epoch", "3"], r"unknown key 'train.epoch' in the command line; did you mean train.epochs\?"),
    ("", ["--train", "{lr: 1}"], "unknown key 'train'"),
    ("train: {epochs: 3, epochs: 4}", [], "line 1: the key 'epochs' stands there twice"),
    ("", ["--seed", "1", "--seed", "2"], "--seed is given twice"),
    ("", ["--seed"], "--seed needs a value: a whole number"),
    ("", ["--seed", "--norm", "none"], "--seed needs a value"),
    ("", ["seed"], "'seed' is not an option"),
    ("train: {epochs: 1.5}", [], "train.epochs is 1.5: it must be a whole number"),
    ("seed: null", [], "seed is None: it must be a whole number"),
    ("seed: 010", [], "010 would be read as octal"),
    ("train: {lr: true}", [], "train.lr is True: it must be a number"),
    ("train: {lr: .nan}", [], "train.lr is nan: it must be finite"),
    ("train: {lr: .inf}", [], "train.lr is inf: it must be finite"),
    ("train: {lr: 0}", [], "train.lr is 0.0: it must be above 0"),
    ("train: {batch_size: 1}", [], "train.batch_size is 1: it must be at least 2"),
    ("train: {betas: [0.9]}", [], r"train.betas is \[0.9\]: it must be \[number, number\]"),
    ("train: {betas: [0.9, 1.0]}", [], "both must be below 1"),
    ("views: {rotation: 181}", [], "views.rotation is 181.0: it must be at most 180"),
    ("views: {area: [0.5, 0.2]}", [], r"views.area is \[0.5, 0.2\]: the first number must not be larger than the second"),
    ("views: {ratio: [2, 1]}", [], r"views.ratio is \[2.0, 1.0\]: the first number must not be larger"),
    ("views: {area: [0.2, 1.1]}", [], "views.area is 1.1: it must be at most 1"),
    ("views: {area: [0, 1]}", [], "views.area is 0.0: it must be above 0"),
    ("views: {area: 0.2}", [], r"views.area is 0.2: it must be \[number, number\]"),
    ("views: {hue: 0.6}", [], "views.hue is 0.6: it must be at most 0.5"),
    ("views: {kind: crop}", [], r"one of none, affine, crop_flip, strong; did you mean crop_flip\?"),
    ("train: {weight_decay: 0.01}", [], "weight_decay is 0.01, but train.optimizer is adam: set that to adamw, or .* to 0"),
    ("train: {optimizer: sgd}", [], "it must be one of adam, adamw"),
    ("train: {warmup: -1}", [], "train.warmup is -1: it must be at least 0"),
    ("data: {root: no}", [], "data.root is False: it must be a text"),
    ("data: {name: cifar}", [], r"one of digits, cifar10.*; did you mean cifar10\?"),
    ("", ["--lr", "1"], r"unknown key 'lr' in the command line; did you mean train.lr\?"),
    ("objective: {local: {estimator: InfoNCE}}", [], r"did you mean infonce\?"),
    ("objective: {local: {scale: big}}", [], r"it must be a number or 1/sqrt\(units\)"),
    ("train: 3", [], "train is a group of keys, not 3"),
    ("- 3", [], "must hold `key: value` lines, not list"),
    ("a: &x 3\nb: *x", [], "line 2: aliases are not allowed"),
    ("seed: !!python/object/apply:os.getpid []", [], "line 1: tags are not allowed"),
    ('seed: !!int ""', [], "line 1: tags are not allowed"),
    ("seed: !!bool x", [], "line 1: tags are not allowed"),
    ("train: !!map {lr: 1}", [], "line 1: tags are not allowed"),
    (f"seed: {10**30}", [], "seed has 31 digits: it must be below"),
    ('run: {dir: "a\\0b"}', [], r"run.dir is 'a\\x00b': it has characters that cannot be printed"),
    ("", ["--data.root", "a\ud800"], "it has characters that cannot be printed"),
    ("device: {class_path: os.system}", [], "it must be one of auto, cpu, cuda, mps"),
    ("train: {class_path: os.system}", [], "unknown key 'train.class_path'"),
    ("{[}", [], "not YAML of a configuration"),
    ("? {a: 1}\n: 2", [], "not YAML of a configuration"),
    ("[" * 5000, [], "not YAML of a configuration"),
    ("views: {number: 2}", [], "set views.kind affine or views.number 1"),
    ("", ["--objective.local.k", "3"], "set that to sampled or shifted, or objective.local.k to 0"),
    ("", ["--objective.local.negatives", "sampled"], "needs objective.local.k of at least 1"),
    ("", ["--objective.local.negatives", "shifted", "--objective.local.k", "128"], "a batch of 128 has 127 shifts"),
    ("", ["--objective.local.critic", "concat", "--objective.local.scale", "2"], "only the dot critic has a scale"),
    ("", ["--objective.local.weight", "0"], "both 0: nothing to train"),
    ("", ["--precision", "float64", "--device", "mps"], "choose float32 or device cpu"),
    ("", ["--config", "configs/digit.yaml"], "no such file: configs/digit.yaml"),
    ("", ["--config"], "argument --config: expected one argument"),
]


@pytest.mark.parametrize(("text", "words", "message"), MISTAKES)
def test_a_mistake_gives_one_short_line(text, words, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        parsed(tmp_path, text, *words)
    line = str(caught.value).replace(str(tmp_path), "")
    assert "\n" not in line
    assert len(line) < 250


@given(
    st.dictionaries(st.text(max_size=8), st.recursive(st.integers() | st.text(max_size=5) | st.none(), st.lists), max_size=3)
)
@settings(max_examples=100, deadline=None)
def test_whatever_stands_in_a_file_it_is_a_configuration_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    message = ""
    try:
        read([], path)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_a_file_of_more_than_1_mb_is_refused(tmp_path):
    with pytest.raises(UserError, match="more than 1 MB"):
        parsed(tmp_path, "#" * 1_000_001)


def test_a_typo_within_two_letters_is_put_right():
    wrong = [(key, key[:-1]) for key in leaves()] + [(key, key + "s") for key in leaves()]
    right = 0
    for key, typo in wrong:
        with pytest.raises(UserError, match="unknown key") as caught:
            read([f"--{typo}", "1"], ROOT / "configs" / "digits.yaml")
        right += f"did you mean {key}?" in str(caught.value)
    assert right >= 0.95 * len(wrong)


def test_check_refuses_every_limit_of_the_schema():
    limited = 0
    for key, (_, field) in leaves().items():
        low, above, high = (field.metadata[name] for name in ("at_least", "above", "at_most"))
        bad = [None if low is None else low - 1, above, None if high is None else high + 1]
        for value in filter(lambda value: value is not None, bad):
            limited += 1
            value = (value, value) if isinstance(flat(Config())[key], tuple) else value
            with pytest.raises(UserError, match=re.escape(f"{key} is ")):
                check(built(flat(Config()) | {key: value}))
    assert limited > 20


@pytest.mark.parametrize(
    "given",
    [
        {"views.area": (0.3, 0.3)},
        {"views.area": (1.0, 1.0)},
        {"views.ratio": (1.0, 1.0)},
        {"train.weight_decay": 0.01, "train.optimizer": "adamw"},
        {"train.optimizer": "adamw"},
    ],
)
def test_check_accepts_what_lies_on_the_border(given):
    check(built(flat(Config()) | given))


def test_a_folder_with_another_configuration_is_refused(tmp_path):
    prepare(Config(), tmp_path / "run")
    prepare(replace(Config(), device="cpu"), tmp_path / "run")  # where it runs does not count
    other = built(flat(Config()) | {"seed": 1, "norm": "none", "train.lr": 0.5, "train.epochs": 7})
    with pytest.raises(UserError, match=r"seed: 0 -> 1; norm: batch -> none; train.epochs: 30 -> 7 and 1 more.*--run.dir"):
        prepare(other, tmp_path / "run")
    assert differences(saved(tmp_path / "run"), Config()) == []


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        saved(tmp_path)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--encoder.stem", "cifar"], "encoder.name resnet18 or resnet50"),
        (["--encoder.size", "64"], "encoder.name resnet18 or resnet50"),
        (["--views.kind", "affine", "--views.padding", "9"], "views.kind crop_flip"),
        (["--views.kind", "strong", "--views.shift", "2"], "views.kind affine"),
        (["--views.kind", "affine", "--views.flip", "0"], "views.kind crop_flip or strong"),
        (["--views.kind", "affine", "--views.grey", "0"], "views.kind strong"),
        (["--data.labels", "folders"], "data.name folder"),
        (["--objective.glob.units", "7"], "objective.glob.weight above 0"),
        (["--objective.prior.lr", "3"], "objective.prior.weight above 0"),
        (["--run.project", "mine"], "run.wandb offline or online"),
    ],
)
def test_a_word_without_effect_is_refused(tmp_path, words, needed):
    with pytest.raises(UserError, match=f"^{re.escape(words[-2])} would have no effect: it needs {needed}$"):
        parsed(tmp_path, "", *words)


def test_a_file_may_hold_what_a_word_switches_off(tmp_path):
    text = "views: {kind: strong, number: 2, area: [0.5, 1]}\nobjective: {prior: {weight: 1, lr: 0.1}}"
    off = ["--views.kind", "none", "--views.number", "1", "--objective.prior.weight", "0"]
    assert parsed(tmp_path, text, *off).views.area == (0.5, 1)


def test_an_average_that_would_keep_everything_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^train.average is 1.0: it must be below 1$"):
        parsed(tmp_path, "train: {average: 1.0}")


def misspelt(word: str, draws: random.Random) -> str:
    """A word with one or two letters put in, left out, replaced or exchanged."""
    letters = list(word)
    for _ in range(draws.choice((1, 2))):
        place, letter = draws.randrange(len(letters)), draws.choice(string.ascii_lowercase)
        act = draws.choice(("in", "out", "other", "exchange"))
        if act == "in":
            letters.insert(place, letter)
        elif act == "out" and len(letters) > 1:
            del letters[place]
        elif act == "exchange" and place:
            letters[place - 1 : place + 1] = letters[place], letters[place - 1]
        else:
            letters[place] = letter
    return "".join(letters)


def test_what_is_within_two_edits_is_suggested():
    draws, keys, found = random.Random(0), list(leaves()), []
    choices = [[str(choice) for choice in get_args(kind)] for kind, _ in leaves().values() if get_origin(kind) is Literal]
    for known in [keys, *choices]:
        for word in known:
            for _ in range(3):
                if len(word) > 3 and (wrong := misspelt(word, draws)) not in known:
                    found.append(f"did you mean {word}?" in nearest(wrong, known))
    print(f"{sum(found)} of {len(found)} misspelt keys and values have the right suggestion")
    assert len(found) > 200
    assert sum(found) >= 0.95 * len(found)


@pytest.mark.parametrize(
    ("a", "b", "number"), [("", "ab", 2), ("jsd", "jds", 1), ("train.lr", "train.lr", 0), ("abc", "ca", 3), ("ab", "bca", 3)]
)
def test_edits_are_counted_letter_by_letter(a, b, number):
    assert edits(a, b) == edits(b, a) == number
