"""The loop: what a run leaves behind, exact repetition and continuation, non-finite numbers, messages."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, first_point, same, tiny

import train
from dim import build, checkpoint
from dim.config import Config, built, flat
from dim.data import Dataset, Split
from dim.encoders import Encoder
from dim.guard import Guard
from dim.reading import read, saved

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ALL = ("--objective.local.negatives", "all", "--objective.local.k", "0")
TIMES = ("images_per_second",)
FILES = ["checkpoint.before.pt", "checkpoint.pt", "config.yaml", "metrics.jsonl", "summary.json"]


def run(folder: Path, *words: str) -> int:
    return train.main(tiny(folder, *words))


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def state(folder: Path) -> dict:
    return checkpoint.load(folder)


STORED = {"digits": (1, 8), "cifar10": (3, 32), "cifar100": (3, 32), "stl10": (3, 96), "folder": (3, 64)}  # channels, side


@pytest.mark.parametrize("path", [p for p in CONFIGS if "gaussian" not in p.stem], ids=lambda path: path.stem)
def test_every_config_trains_two_steps(path, tmp_path, capsys, monkeypatch, slim_alex):
    """On 13 random images of the size that the configured data set is stored in."""
    length = ["--train.steps", "2"] if (point := first_point(path)) else ["--train.epochs", "1"]
    words = ["--config", str(path), "--train.batch_size", "6", *length, "--run.probe_every", "0"]
    config, _ = read([*words, *point], path)
    channels, side = STORED[config.data.name]
    images = torch.randint(0, 256, (13, channels, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(images, torch.arange(13) % 10)
    made = {config.data.name: lambda c, size: Dataset("made", split, split, 10, size=size, fit=c.fit)}
    monkeypatch.setattr(build, "DATASETS", made)
    train.train(config, build.dataset(config), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    (row,) = rows(tmp_path)
    assert row["step"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in row.values() if value is not None)
    assert "2 steps of 6 images" in capsys.readouterr().out


def test_a_run_leaves_its_files_and_says_its_numbers(tmp_path, capsys):
    assert run(tmp_path / "r", "--run.probe_every", "1", "--objective.prior.weight", "0.1", *ALL) == 0
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["best", *FILES]
    first, _, last = rows(tmp_path / "r")
    assert (first["step"], last["step"], last["epoch"]) == (1, 3, 1.0)
    assert first["local/ceiling_nats"] == pytest.approx(torch.tensor(26753.0).log().item(), 1e-5)
    assert first["local/bound_nats"] < last["local/bound_nats"] < first["local/ceiling_nats"]
    assert first["local/chance_nats"] == 0
    assert first["local/negatives_per_anchor"] == 418 * 64
    assert first["prior/discriminator_loss_nats"] == pytest.approx(1.386, abs=0.05)
    assert first["loss"] == pytest.approx(-first["local/bound_nats"] + 0.1 * first["prior/encoder_loss_nats"], rel=1e-4)
    assert 1 <= first["code/effective_rank"] <= 64
    assert 0.1 < last["probe/fc_accuracy"] <= 1
    assert "probe/fc_accuracy" not in first
    out = capsys.readouterr().out
    for said in (
        "1,257 training images 1 x 8 x 8",
        "map 8 x 8, all negatives",
        "K = 26,752 for each of 419 anchors",
        "42.9 MiB of scores",
        "1,232,672 parameters",
        "float32",
    ):
        assert said in out


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 100)  # the caller's random state plays no part
        assert run(tmp_path / name, "--seed", str(seed)) == 0
    a, b, c = (state(tmp_path / name) for name in "abc")
    assert same(a, b)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert not same(a["encoder"], c["encoder"])


RECIPE = [
    *("--train.optimizer", "adamw", "--train.weight_decay", "0.1", "--train.clip", "0.5", "--train.warmup", "2"),
    *("--train.average", "0.9", "--views.number", "2", "--views.kind", "strong"),
]


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("more", [("--objective.local.estimator", "dv"), RECIPE], ids=["dv", "recipe"])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path, monkeypatch, capsys, stop, more):
    words = ["--run.save_every", "1", "--run.log_every", "2", *more]
    words += ["--objective.prior.weight", "0.1", "--objective.local.negatives", "sampled", "--objective.local.k", "50"]
    assert run(tmp_path / "whole", *words) == 0
    save = checkpoint.save

    def stopping(path, content):
        save(path, content)
        if content["step"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    assert run(tmp_path / "stopped", *words) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "save", save)
    with open(tmp_path / "stopped" / "metrics.jsonl", "a") as file:
        file.write('{"step": 99}\n')  # written after the save, by a process that then died
    assert run(tmp_path / "stopped", *words) == 0
    assert f"continues at step {stop} of 3" in capsys.readouterr().out
    assert same(state(tmp_path / "whole"), state(tmp_path / "stopped"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_kept_copies_are_runs_of_their_own(tmp_path):
    words = ("--train.epochs", "3", "--run.save_every", "100")
    assert run(tmp_path / "r", *words, "--run.keep_every", "1") == 0
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if p.is_dir()) == ["epoch-1", "epoch-2"]  # the end is the run
    kept = tmp_path / "r" / "epoch-2"
    assert state(kept)["step"] == 6
    assert rows(kept) == rows(tmp_path / "r")[:6]
    assert not same(state(kept)["encoder"], state(tmp_path / "r")["encoder"])
    assert run(kept, *words) == 0
    assert same(state(kept), state(tmp_path / "r"))


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, monkeypatch, capsys):
    watch = Guard.watch

    def interrupting(self, step, values):
        watch(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert run(tmp_path / "whole") == 0
    monkeypatch.setattr(Guard, "watch", interrupting)
    assert run(tmp_path / "stopped") == 130
    assert "stopped at step 2 of 3, saved; the same command continues there" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(tmp_path / "stopped") == 0
    assert same(state(tmp_path / "whole"), state(tmp_path / "stopped"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Guard, "watch", lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert run(tmp_path / "r") == 130
    assert "stopped at once" in capsys.readouterr().err
    assert state(tmp_path / "r")["step"] == 0


def moved(folder: Path) -> float:
    """How far the encoder's last layer went from its first weights, the largest component."""
    first = build.encoder(saved(folder), (1, 8, 8)).state_dict()["layers.y.weight"]
    return (state(folder)["encoder"]["layers.y.weight"] - first).abs().max().item()


def test_warm_up_and_clipping_hold_the_weights_back(tmp_path):
    """Adam's step does not depend on the gradient's size, but for its epsilon of 1e-8: a clip far below it stops everything."""
    assert run(tmp_path / "plain") == 0
    assert moved(tmp_path / "plain") == pytest.approx(2e-3, rel=0.1)  # 1 + 0.75 + 0.25 steps of the rate 1e-3: cosine
    assert run(tmp_path / "clipped", "--train.clip", "1e-12") == 0
    assert moved(tmp_path / "clipped") < 1e-5
    assert rows(tmp_path / "clipped")[0]["gradient_norm"] == rows(tmp_path / "plain")[0]["gradient_norm"]  # as it was before
    assert run(tmp_path / "loose", "--train.clip", "1e6") == 0
    loose, plain = (state(tmp_path / name) for name in ("loose", "plain"))
    assert all(same(loose[part], plain[part]) for part in ("encoder", "objective", "optimizer"))
    assert run(tmp_path / "slow", "--train.warmup", "10") == 0
    assert moved(tmp_path / "slow") == pytest.approx(0.325e-3, rel=0.1)  # 0.1, 0.2 and 0.3 of these
    assert rows(tmp_path / "slow")[1]["learning_rate"] == pytest.approx(1.5e-4)


def test_weight_decay_shrinks_matrices_and_leaves_gains_and_biases(tmp_path):
    """With a decay d AdamW takes lr d w from a weight beside Adam's step."""
    assert run(tmp_path / "plain", "--train.epochs", "1", "--train.batch_size", "1000") == 0
    decay = ["--train.optimizer", "adamw", "--train.weight_decay", "0.5"]
    assert run(tmp_path / "decayed", *decay, "--train.epochs", "1", "--train.batch_size", "1000") == 0
    plain, decayed = (state(tmp_path / name)["encoder"] for name in ("plain", "decayed"))
    first = build.encoder(saved(tmp_path / "plain"), (1, 8, 8)).state_dict()
    for name, before in first.items():
        expected = plain[name] - (1e-3 * 0.5 * before if before.ndim > 1 else 0)
        torch.testing.assert_close(decayed[name], expected, rtol=0, atol=1e-6, msg=name)


def test_the_average_lies_between_first_and_last_weights(tmp_path):
    assert run(tmp_path / "r", "--train.average", "0.5") == 0
    first = build.encoder(saved(tmp_path / "r"), (1, 8, 8)).state_dict()["layers.y.bias"]
    content = state(tmp_path / "r")
    average, last = content["average"]["module.layers.y.bias"], content["encoder"]["layers.y.bias"]
    assert 0 < (average - first).abs().max() < (last - first).abs().max()
    assert run(tmp_path / "without") == 0
    assert same(state(tmp_path / "without")["encoder"], content["encoder"])  # it changes nothing but itself


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    assert run(tmp_path / "r") == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    assert run(tmp_path / "r") == 0
    assert "is finished: 3 steps" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


def test_the_saved_configuration_reproduces_the_run(tmp_path):
    assert run(tmp_path / "a", "--views.shear", "0.2") == 0
    assert train.main(["--config", str(tmp_path / "a" / "config.yaml"), "--run.dir", str(tmp_path / "b")]) == 0
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_the_two_views_of_an_image_differ_and_the_prior_has_its_own_rate(tmp_path, monkeypatch):
    """What the encoder is given: the first half view one, the second view two of the same images."""
    seen = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: (seen.append(x.detach().clone()), forward(self, x))[1])
    prior = ("--objective.prior.weight", "0.1", "--objective.prior.lr", "1e-5")
    assert run(tmp_path / "r", "--views.number", "2", "--views.shift", "1", "--run.save_every", "1", *prior) == 0
    one, two = next(x for x in seen if len(x) == 838).chunk(2)
    assert not torch.isclose(one, two).flatten(1).all(1).any()
    between = (one - two).flatten(1).norm(dim=1).mean()
    others = (one - two.roll(1, 0)).flatten(1).norm(dim=1).mean()
    assert between < 0.9 * others  # of the same image nevertheless
    groups = {name: state(tmp_path / "r")[name]["param_groups"] for name in ("optimizer", "prior_optimizer")}
    assert groups["prior_optimizer"][0]["lr"] == pytest.approx(groups["optimizer"][0]["lr"] / 100)


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert run(tmp_path / "r", *ALL, "--dry-run") == 0
    assert not (tmp_path / "r").exists()
    assert "K = 26,752" in capsys.readouterr().out


def test_the_batches_of_an_epoch_hold_every_image_at_most_once(tmp_path, monkeypatch):
    seen = []
    units = Dataset.units

    def spy(self, images, dtype=torch.float32):
        seen.append(len(images))
        return units(self, images, dtype)

    monkeypatch.setattr(Dataset, "units", spy)
    assert run(tmp_path / "r") == 0
    assert seen.count(419) == 3  # the summary looks at 2 images, each step at a batch


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_other_precisions_train_close_to_float32(tmp_path, precision):
    assert run(tmp_path / "float32") == 0
    assert run(tmp_path / precision, "--precision", precision) == 0
    first, other = rows(tmp_path / "float32")[0], rows(tmp_path / precision)[0]
    assert other["local/bound_nats"] == pytest.approx(first["local/bound_nats"], abs=0.02 if precision == "bf16" else 1e-3)
    weights = state(tmp_path / precision)["encoder"]["layers.conv1.0.weight"]
    assert weights.dtype == (torch.float64 if precision == "float64" else torch.float32)


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("local", ["conv1", "fc1"])
def test_controls_and_other_maps_train(tmp_path, norm, local):
    assert (
        run(tmp_path / "r", "--norm", norm, "--encoder.local", local, "--train.batch_size", "20", "--run.log_every", "62") == 0
    )
    running = [name for name in state(tmp_path / "r")["encoder"] if "running" in name]
    assert not running


def test_bad_numbers_end_a_run_at_once_on_a_cpu_with_exit_code_3(tmp_path, capsys):
    assert run(tmp_path / "r", "--train.lr", "1e30", "--run.save_every", "1") == 3
    err = capsys.readouterr().err
    assert re.search(r"error: step [12]: .*local.*not finite; no update was made.*last good state: .*checkpoint.pt", err)
    kept = state(tmp_path / "r")
    assert kept["step"] in (1, 2)
    for part in ("encoder", "objective"):
        assert all(torch.isfinite(t).all() for t in kept[part].values())


def test_an_update_that_ends_in_bad_weights_is_not_saved(tmp_path, capsys):
    words = ["--train.lr", "1e39", "--train.batch_size", "1257"]  # one step, whose loss and gradient are fine
    assert run(tmp_path / "r", *words) == 3
    assert "step 0: the update made weights that are not finite; last good state: " in capsys.readouterr().err
    assert state(tmp_path / "r")["step"] == 0


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (MemoryError(), "out of memory; lower train.batch_size or units"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory; lower train.batch_size or units"),
        (OSError(28, "No space left on device"), "No space left on device; free the disk"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_machine_that_cannot_go_on_is_one_line_and_exit_code_4(error, cure, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save", fail)
    assert run(tmp_path / "r") == 4
    err = capsys.readouterr().err
    assert err.startswith("error: the machine: ")
    assert err.endswith(cure + "\n")
    assert err.count("\n") == 1


def test_a_fault_of_our_own_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "r")


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / "file") == 2
    assert "cannot be written: File exists" in capsys.readouterr().err


def test_the_guard_withholds_every_update_from_the_first_bad_step_on():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], 0.1, fused=True)
    guard, history = Guard(torch.device("cpu")), []
    for step, value in enumerate([1.0, 2.0, float("nan"), 1.0, float("inf")]):
        weight.grad = torch.full((3,), value)
        guard.watch(step, {"local": torch.tensor(1.0), "gradient_norm": torch.tensor(value)})
        guard.withhold(optimizer)
        optimizer.step()
        history.append(weight[0].item())
    assert history[0] > history[1] == history[2] == history[3] == history[4]
    assert guard.verdict() == "step 2: gradient_norm not finite"
    assert optimizer.state[weight]["step"] == 2


def test_the_guard_passes_finite_numbers():
    guard = Guard(torch.device("cpu"))
    guard.watch(0, {"loss": torch.tensor(1e30)})
    assert guard.verdict() is None


def test_a_collapsing_code_is_reported_once(tmp_path, capsys):
    words = ["--encoder.code_size", "1", "--train.batch_size", "20", "--run.log_every", "5"]
    assert run(tmp_path / "r", *words) == 0
    err = capsys.readouterr().err
    assert err.count("warning:") == 1
    assert "the code collapses, effective rank 1.0 of 1" in err


MISTAKES = [
    (["--train.batch_size", "1258"], "train.batch_size is 1258, but digits has 1257 images"),
    (["--encoder.name", "basic32x32"], "takes images of 32 x 32, digits has 8 x 8: choose small8x8"),
    (["--encoder.local", "conv4"], "small8x8 has conv1, conv2, conv3, fc1, or paper"),
    (
        ["--objective.local.negatives", "sampled", "--objective.local.k", "26753"],
        "a batch of 419 with 64 locations a map has 26752",
    ),
    (
        ["--objective.local.estimator", "dv_per_anchor", "--objective.local.negatives", "sampled", "--objective.local.k", "1"],
        "dv_per_anchor with 1 negative grows without end",
    ),
    (["--data.name", "cifar10", "--data.root", "nowhere"], "cifar10 is not in nowhere"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_ends_with_one_line_and_exit_code_2(words, message, tmp_path, capsys):
    assert run(tmp_path / "r", *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "r").exists()


def test_few_negatives_for_dv_per_anchor_are_warned_about(tmp_path, capsys):
    words = [
        "--objective.local.estimator",
        "dv_per_anchor",
        "--objective.local.negatives",
        "sampled",
        "--objective.local.k",
        "255",
    ]
    assert run(tmp_path / "r", *words) == 0
    assert "warning: objective.local: dv_per_anchor with 255 negatives" in capsys.readouterr().err


def test_the_other_direction_of_a_symmetric_term_counts_too(tmp_path, capsys):
    words = ["--objective.local.estimator", "dv_per_anchor", "--objective.local.symmetric", "true"]
    words += ["--objective.local.negatives", "all", "--objective.local.k", "0"]
    assert run(tmp_path / "r", *words, "--train.batch_size", "2", "--dry-run") == 2
    assert "dv_per_anchor with 1 negative grows without end" in capsys.readouterr().err
    assert run(tmp_path / "r", *words, "--train.batch_size", "100", "--dry-run") == 0
    assert "dv_per_anchor with 99 negatives" in capsys.readouterr().err


def test_a_warm_up_longer_than_the_run_is_warned_about(tmp_path, capsys):
    assert run(tmp_path / "r", "--train.warmup", "3", "--dry-run") == 0
    assert "train.warmup is 3 steps of 3" in capsys.readouterr().err


def test_another_configuration_in_the_folder_is_refused_and_nothing_is_lost(tmp_path, capsys):
    assert run(tmp_path / "r") == 0
    before = (tmp_path / "r" / "checkpoint.pt").read_bytes()
    assert run(tmp_path / "r", "--seed", "5") == 2
    assert "holds a run with another configuration (seed: 0 -> 5)" in capsys.readouterr().err
    assert (tmp_path / "r" / "checkpoint.pt").read_bytes() == before


def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    missing = next(
        name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if not there
    )
    assert run(tmp_path / "r", "--device", missing) == 2
    assert f"device {missing} is not available to this torch; available: cpu" in capsys.readouterr().err


def test_first_weights_depend_on_the_seed_alone():
    one = build.encoder(built(flat(Config()) | {"objective.local.estimator": "jsd", "train.lr": 0.5}), (1, 8, 8))
    two = build.encoder(Config(), (1, 8, 8))
    other = build.encoder(replace(Config(), seed=1), (1, 8, 8))
    assert same(one.state_dict(), two.state_dict())
    assert not same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    "words", [["--objective.local.slope", "10"], ["--objective.local.weight_clip", "0.05"]], ids=["slope", "clip"]
)
def test_wasserstein_trains_under_its_limit(tmp_path, words):
    assert train.main(tiny(tmp_path / "run", "--objective.local.estimator", "wasserstein", *words)) == 0
    state = checkpoint.load(tmp_path / "run")["objective"]
    weights = [
        w for name, w in state.items() if name.startswith("local.critic") and "running" not in name and "num_" not in name
    ]
    clipped = all(w.abs().max() <= 0.05 for w in weights)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert clipped == ("weight_clip" in words[0])
    assert ("local/slope_penalty" in row) != clipped
    assert "local/bound_wasserstein" in row


def test_steps_replace_epochs(tmp_path, capsys):
    words = tiny(tmp_path / "run", "--train.steps", "5")
    assert train.main([*words, "--train.epochs", "2"]) == 2
    assert "--train.epochs would have no effect: it needs train.steps 0" in capsys.readouterr().err
    assert train.main(words) == 0
    assert "5 steps of 419 images, Adam" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "run")
    assert (state["step"], state["steps"]) == (5, 5)


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


def reads(monkeypatch, folder: Path, steps: int, *words: str) -> int:
    """How often a run of so many steps, one line of the log and one save, looks at what is on the device."""
    count = 0

    def counting(read):
        def act(*given, **more):
            nonlocal count
            count += 1
            return read(*given, **more)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_if_bad", lambda *_: None)  # on a CPU it looks at each step, since that costs nothing there
        for name in READS:
            patch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
        assert run(folder, "--train.steps", str(steps), "--run.log_every", "100", "--train.batch_size", "60", *words) == 0
    return count


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--objective.local.negatives", "sampled", "--objective.local.k", "40", "--objective.local.queue", "240"],
        ["--objective.local.symmetric", "true", "--train.clip", "1", "--train.average", "0.9", "--train.skip_bad", "3"],
        ["--objective.local.estimator", "wasserstein", "--objective.prior.weight", "0.1", "--objective.prior.penalty", "1"],
        ["--views.number", "2", "--views.kind", "strong", "--train.chunk", "20", "--precision", "bf16"],
    ],
    ids=["plain", "queue", "recipe", "wasserstein", "chunks"],
)
def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch, words):
    few, more = (reads(monkeypatch, tmp_path / str(steps), steps, *words) for steps in (4, 8))
    assert few == more > 0
