"""Survive: a run that is killed, stopped or refused by its disk ends in the bits of one that never was. Real signals.

The short form of each count runs by default; the long one, whose output stands in results/reliability.md, is slow.
"""

import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import small_sets
import torch
from conftest import same, tiny

import train
from dim import checkpoint, journal
from dim.guard import Guard
from dim.objective import Objective

FORK = multiprocessing.get_context("fork")
STEPS = 12
WORDS = ["--train.steps", str(STEPS), "--train.batch_size", "60", "--run.log_every", "5", "--run.save_every", "4"]
EVERYTHING = [
    *("--objective.glob.weight", "0.5", "--objective.glob.units", "8", "--objective.glob.estimator", "jsd"),
    *("--objective.prior.weight", "0.1", "--train.average", "0.9", "--views.number", "2", "--views.kind", "affine"),
]


def run(folder: Path, *words: str) -> int:
    return train.main(tiny(folder, *WORDS, *words))


def started(folder: Path, words: list[str], slow_disk: float = 0.0) -> multiprocessing.Process:
    """A run in a process of its own; slow_disk: seconds that each fsync takes longer."""

    def target() -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, the process ends with it
        fsync = os.fsync
        os.fsync = lambda number: (time.sleep(slow_disk), fsync(number))[1]  # type: ignore
        os._exit(run(folder, *words))

    process = FORK.Process(target=target)
    process.start()
    return process


def assert_the_same(one: Path, other: Path) -> None:
    """The states of two finished runs are equal to the bit, and the lines of their logs, times aside."""
    assert same(checkpoint.load(one), checkpoint.load(other))
    logs = [
        [json.loads(line) | {"images_per_second": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
    assert json.loads((other / "summary.json").read_text())["step"] == STEPS


@pytest.fixture
def unbroken(tmp_path) -> Path:
    assert run(tmp_path / "unbroken", *EVERYTHING) == 0
    return tmp_path / "unbroken"


def killed_runs(unbroken: Path, folder: Path, kills: int) -> tuple[int, int]:
    """Kill runs at random moments, each then resumed to its end; how many ended as the unbroken one, how many in a save."""
    draws, equal, in_save = random.Random(0), 0, 0
    for kill in range(kills):
        shutil.rmtree(folder, ignore_errors=True)
        process = started(folder, [*EVERYTHING, "--run.save_every", "1"], slow_disk=0.02)
        while not (folder / checkpoint.NEWEST).exists() and process.is_alive():
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        while kill % 2 and not (folder / "checkpoint.writing").exists() and process.is_alive():
            time.sleep(0.002)  # every other one inside a save
        process.kill()
        process.join()
        in_save += (folder / "checkpoint.writing").exists() or not (folder / checkpoint.NEWEST).exists()
        assert run(folder, *EVERYTHING) == 0
        assert not (folder / "checkpoint.writing").exists()
        assert_the_same(unbroken, folder)
        equal += 1
    return equal, in_save


def test_killed_runs_end_in_the_bits_of_the_unbroken_one(unbroken, tmp_path):
    equal, in_save = killed_runs(unbroken, tmp_path / "killed", 10)
    assert equal == 10
    assert in_save >= 3


@pytest.mark.slow
def test_fifty_killed_runs(unbroken, tmp_path):
    equal, in_save = killed_runs(unbroken, tmp_path / "killed", 50)
    print(f"{equal} of 50 killed runs ended in the bits of the unbroken one; {in_save} were killed inside a save")
    assert equal == 50
    assert in_save >= 15


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)], ids=lambda value: str(value)
)
def test_a_signal_finishes_the_step_saves_and_says_so(unbroken, tmp_path, number, code, monkeypatch, capsys):
    watch = Guard.watch

    def signalling(self, step, values):
        watch(self, step, values)
        if step == 6:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Guard, "watch", signalling)
    folder = tmp_path / "stopped"
    assert run(folder, *EVERYTHING, "--run.save_every", "1000") == code
    assert "stopped at step 7 of 12, saved; the same command continues there" in capsys.readouterr().err
    assert checkpoint.load(folder)["step"] == 7
    monkeypatch.undo()
    assert run(folder, *EVERYTHING, "--run.save_every", "1000") == 0
    assert_the_same(unbroken, folder)


@pytest.mark.slow
def test_twenty_signals_at_random_times(unbroken, tmp_path):
    draws, folder = random.Random(1), tmp_path / "stopped"
    for number, code in [(signal.SIGTERM, 143)] * 10 + [(signal.SIGINT, 130)] * 5 + [(signal.SIGUSR1, 143)] * 5:
        shutil.rmtree(folder, ignore_errors=True)
        process = started(folder, [*EVERYTHING, "--run.save_every", "1"], slow_disk=0.1)  # so that it lasts beyond the signal
        while not (folder / checkpoint.NEWEST).exists():
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 1.5))
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == code
        assert run(folder, *EVERYTHING) == 0
        assert_the_same(unbroken, folder)
    print("20 of 20 signals: the right exit code, and the bits of the unbroken run after going on")


def stops(tmp_path: Path, monkeypatch, words: list[str], points: list[int]) -> None:
    """Resume from the state after each of these steps of an unbroken run."""
    save, whole = checkpoint.save, tmp_path / "whole"

    def copying(folder, state):
        save(folder, state)
        if state["step"] in points:
            checkpoint.keep(folder, tmp_path / f"at-{state['step']}")

    monkeypatch.setattr(checkpoint, "save", copying)
    assert run(whole, *words, "--run.save_every", "1") == 0
    monkeypatch.setattr(checkpoint, "save", save)
    for point in points:
        folder = tmp_path / f"at-{point}"
        assert checkpoint.load(folder)["step"] == point
        assert run(folder, *words) == 0
        assert_the_same(whole, folder)


VARIANTS = {
    "jsd": ["--objective.local.estimator", "jsd", *EVERYTHING],
    "infonce": ["--objective.local.estimator", "infonce", "--objective.local.k", "3"],
    "dv": ["--objective.local.estimator", "dv", "--train.optimizer", "adamw", "--train.warmup", "5", "--train.clip", "1"],
    "queue": ["--objective.local.queue", "240", "--objective.local.negatives", "sampled", "--objective.local.k", "50"],
    "chunk": ["--train.chunk", "20", *EVERYTHING],
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_a_run_stopped_after_some_steps_ends_in_the_same_bits(tmp_path, monkeypatch, words):
    stops(tmp_path, monkeypatch, words, [1, 8])


@pytest.mark.slow
@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_a_run_stopped_after_any_step_ends_in_the_same_bits(tmp_path, monkeypatch, words):
    monkeypatch.setattr(sys.modules[__name__], "STEPS", 24)
    stops(tmp_path, monkeypatch, [*words, "--train.steps", "24"], list(range(24)))
    print("24 of 24 stops, after each step from 0 on: equal at atol 0")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_of_streamed_pictures_stopped_after_any_step_ends_in_the_same_bits(tmp_path, monkeypatch, workers):
    small_sets.pictures(tmp_path / "images", {"": 130})
    words = ["--data.name", "folder", "--data.root", str(tmp_path / "images"), "--data.side", "8", "--data.memory", "0"]
    words += ["--data.workers", str(workers), "--train.batch_size", "20", *EVERYTHING]
    stops(tmp_path, monkeypatch, words, list(range(STEPS)))
    print(f"{STEPS} of {STEPS} stops with {workers} workers, after each step from 0 on: equal at atol 0")


def test_a_kill_between_checkpoint_and_summary_is_made_good(tmp_path, monkeypatch):
    def die(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "beside", die)
    words = ["--train.steps", "3", "--run.save_every", "3"]
    folder = tmp_path / "r"
    codes = [train.main(tiny(folder, *words)) for _ in range(2)]
    assert codes == [130, 130]  # in the first save, and in the last
    monkeypatch.undo()
    assert checkpoint.load(folder)["step"] in (0, 3)
    assert train.main(tiny(folder, *words)) == 0
    assert json.loads((folder / "summary.json").read_text())["step"] == 3


class FullDisk:
    """A disk that refuses some of the saves, by their number."""

    def __init__(self, refused: set[int]):
        self.refused, self.count, self.save = refused, 0, checkpoint.save

    def __call__(self, folder, state):
        self.count += 1
        if self.count in self.refused:
            raise OSError(errno.ENOSPC, "No space left on device, saving 10 bytes")
        self.save(folder, state)


def test_a_full_disk_costs_a_warning_and_no_bit(unbroken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "save", FullDisk({3, 4, 9}))  # the first is of step 0
    assert run(tmp_path / "r", *EVERYTHING, "--run.save_every", "1") == 0
    err = capsys.readouterr().err
    assert err.count("warning: step") == 3
    assert "warning: step 2: [Errno 28] No space left on device, saving 10 bytes; not saved, the run goes on" in err
    assert_the_same(unbroken, tmp_path / "r")


@pytest.mark.parametrize(("refused", "step"), [({1}, None), ({5, 6, 7}, 3), ({13}, 11)])
def test_a_disk_that_stays_full_ends_the_run_with_exit_code_4(tmp_path, monkeypatch, capsys, refused, step):
    monkeypatch.setattr(checkpoint, "save", FullDisk(refused))
    assert run(tmp_path / "r", "--run.save_every", "1") == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the machine: [Errno 28] No space left on device")
    if step is not None:
        assert checkpoint.load(tmp_path / "r")["step"] == step


def test_a_stop_that_cannot_be_saved_says_so(tmp_path, monkeypatch, capsys):
    watch = Guard.watch

    def signalling(self, step, values):
        watch(self, step, values)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Guard, "watch", signalling)
    monkeypatch.setattr(checkpoint, "save", FullDisk({3}))  # after those of steps 0 and 4
    assert run(tmp_path / "r") == 4
    err = capsys.readouterr().err
    assert "saved" not in err
    assert err.splitlines()[-1].startswith("error: the machine: [Errno 28] No space left on device")
    assert checkpoint.load(tmp_path / "r")["step"] == 4


PROBED = ["--train.epochs", "2", "--train.batch_size", "419", "--run.probe_every", "1", "--run.log_every", "1"]
KEPT = [*PROBED, "--run.keep_every", "1"]


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_a_run_whose_newest_state_is_lost_at_an_epochs_end_continues(tmp_path, capsys, lost):
    """The state before takes its place, in the copies too."""
    assert train.main(tiny(tmp_path / "whole", *KEPT)) == 0
    words = [*KEPT, "--run.save_every", "1"]
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    before = checkpoint.load(tmp_path / "r" / "epoch-1")
    shutil.rmtree(tmp_path / "r" / "epoch-1")
    (tmp_path / "r" / checkpoint.BEFORE).write_bytes(checkpoint.sealed(before))
    newest = tmp_path / "r" / checkpoint.NEWEST
    newest.write_bytes(b"rot") if lost == "damaged" else newest.unlink()
    capsys.readouterr()
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    assert ("is damaged" in capsys.readouterr().err) == (lost == "damaged")
    assert same(checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "r"))
    assert checkpoint.load(tmp_path / "r" / "epoch-1")["step"] == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_copy_of_the_best_that_failed_is_made_good_or_said(tmp_path, monkeypatch, capsys, stop):
    keep, copies = checkpoint.keep, []

    def failing(folder, place):
        copies.append(place.name)
        if len(copies) == 1:
            raise stop
        keep(folder, place)

    monkeypatch.setattr(checkpoint, "keep", failing)
    if stop is KeyboardInterrupt:
        assert train.main(tiny(tmp_path / "r", *PROBED)) == 130
        assert train.main(tiny(tmp_path / "r", *PROBED, "--dry-run")) == 0
        monkeypatch.setattr(Guard, "watch", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main(tiny(tmp_path / "r", *PROBED)) == 130  # before its next step
        assert checkpoint.load(tmp_path / "r" / "best")["step"] == checkpoint.load(tmp_path / "r")["step"] == 3
        monkeypatch.undo()
    assert train.main(tiny(tmp_path / "r", *PROBED)) == 0
    if stop is not KeyboardInterrupt:
        said = "warning: step 3: [Errno 28] No space left on device; saved, but not what goes with it, the run goes on"
        assert said in capsys.readouterr().err
    assert set(copies) == {"best"}
    assert checkpoint.load(tmp_path / "r")["step"] == 6


def test_a_line_of_the_log_waits_for_room(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    fsync, calls = os.fsync, []

    def refusing(number):
        if os.readlink(f"/proc/self/fd/{number}").endswith("metrics.jsonl"):
            calls.append(number)
            if len(calls) in (1, 3):
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", refusing)
    assert run(tmp_path / "r") == 0
    assert len(calls) > 3
    assert_the_same(tmp_path / "whole", tmp_path / "r")


def test_too_little_room_is_said_before_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    assert run(tmp_path / "r") == 4
    assert "has room for 1 bytes, and three checkpoints need" in capsys.readouterr().err
    assert not (tmp_path / "r" / "metrics.jsonl").read_text()


def test_a_state_of_other_circumstances_is_continued_with_one_warning(tmp_path, monkeypatch, capsys):
    words = ["--train.steps", "2"]
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    state = checkpoint.load(tmp_path / "r")
    state["versions"] |= {"torch": "2.0", "threads": 64}
    (tmp_path / "r" / "checkpoint.pt").write_bytes(checkpoint.sealed(state))
    capsys.readouterr()
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"continues with torch 2.0 -> {torch.__version__}, threads 64 -> 1: not every bit will be" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": lambda c: c | {"seed": 5}}, "of a run with another configuration: seed: 5 -> 0"),
        ({"config": lambda c: c | {"encoder.name": "basic32x32", "norm": "layer"}}, "norm: layer -> batch; encoder.name: "),
        ({"config": lambda c: c | {"no.such": 5}}, "configuration is not of this dim"),
        ({"encoder": lambda e: dict(list(e.items())[1:])}, "the checkpoint does not fit its configuration"),
        ({"encoder": lambda e: e | {"layers.y.weight": torch.zeros(2, 2)}}, "the checkpoint does not fit its configuration"),
        ({"optimizer": lambda o: {"state": {}, "param_groups": []}}, "the checkpoint does not fit its configuration"),
        ({"data": lambda d: d | {"images": 7}}, "was trained on 7 images of digits, and these are 1,257 or others"),
        ({"data": lambda d: d | {"content": "other"}}, "was trained on 1,257 images of digits, and these are 1,257 or others"),
        ({"sums": lambda s: {"loss": 3}}, "the checkpoint does not fit its configuration"),
        ({"guard": lambda g: {}}, "the checkpoint does not fit its configuration"),
    ],
)
def test_a_checkpoint_of_another_run_is_one_line(tmp_path, capsys, change, message):
    words = ["--train.steps", "2"]
    assert train.main(tiny(tmp_path / "r", *words)) == 0
    state = checkpoint.load(tmp_path / "r")
    before = checkpoint.sealed(state | {key: act(state[key]) for key, act in change.items()})
    (tmp_path / "r" / "checkpoint.pt").write_bytes(before)
    capsys.readouterr()
    assert train.main(tiny(tmp_path / "r", *words)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "r" / "checkpoint.pt").read_bytes() == before


def test_a_run_draws_nothing_from_the_global_state(tmp_path):
    before = torch.get_rng_state()
    assert run(tmp_path / "r", *EVERYTHING) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_in_a_folder_that_another_trains_is_refused(tmp_path, capsys):
    assert train.main(tiny(tmp_path / "r", "--train.steps", "2")) == 0
    capsys.readouterr()
    with checkpoint.locked(tmp_path / "r"):
        assert train.main(tiny(tmp_path / "r", "--train.steps", "2")) == 2
    assert f"is being trained by process {os.getpid()}" in capsys.readouterr().err


def rss(process: multiprocessing.Process) -> int:
    """Bytes that a process holds in memory."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def logged(folder: Path) -> int:
    """The last step in a run's log."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith(b"}") else 0


@pytest.mark.slow
def test_ten_thousand_steps_with_a_kill_every_four_hundred(tmp_path, monkeypatch):
    """Memory does not grow, the folder neither, and the weights are those of the run that was never killed."""
    steps, draws = 10_000, random.Random(0)
    monkeypatch.setattr(sys.modules[__name__], "STEPS", steps)
    words = ["--train.steps", str(steps), "--run.save_every", "50", "--run.log_every", "50", "--encoder.code_size", "16"]
    process, held = started(tmp_path / "whole", words), {}
    while process.is_alive():
        held[logged(tmp_path / "whole")] = rss(process) or held[max(held)]
        time.sleep(0.2)
    process.join()
    assert process.exitcode == 0
    early = max(value for step, value in held.items() if 1000 <= step < 2000)
    late = max(value for step, value in held.items() if step >= 9000)
    kills, folder, size = 0, tmp_path / "killed", 0
    while logged(folder) < steps:
        process, goal = started(folder, words), logged(folder) + draws.randint(300, 500)
        while process.is_alive() and logged(folder) < min(goal, steps):
            time.sleep(draws.uniform(0.01, 0.05))
        kills += process.is_alive()
        process.kill()
        process.join()
        size = max(size, sum(path.stat().st_size for path in folder.rglob("*")))
    assert run(folder, *words) == 0
    assert_the_same(tmp_path / "whole", folder)
    one = (folder / checkpoint.NEWEST).stat().st_size
    print(
        f"{steps:,} steps, a save every 50, {kills} kills: memory {early / 2**20:.0f} MiB after a tenth, {late / 2**20:.0f} at "
        f"the end; folder at most {size / one:.2f} checkpoints; final state that of the unbroken run, to the bit"
    )
    assert kills >= 15
    assert late < 1.02 * early
    assert size < 3.5 * one


# ---- steps that are not finite


def poisoned(monkeypatch, steps: set[int]) -> None:
    """Pictures of these steps become NaN, which reaches loss, gradients, statistics and queue."""
    forward = train.Model.forward

    def poison(self, pictures, image, step, keep_scores=False):
        return forward(self, pictures * (float("nan") if step in steps else 1), image, step, keep_scores)

    monkeypatch.setattr(train.Model, "forward", poison)


SKIPPING = [*EVERYTHING, "--objective.local.queue", "240", "--train.skip_bad", "2"]


def test_steps_that_are_not_finite_are_left_out_up_to_a_number(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, {3, 9})
    assert run(tmp_path / "r", *SKIPPING) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "skip_bad" in line] == [
        "warning: step 5: 1 of 2 steps that train.skip_bad may leave out were not finite",
        "warning: step 10: 2 of 2 steps that train.skip_bad may leave out were not finite",
    ]
    state = checkpoint.load(tmp_path / "r")
    assert state["guard"]["left_out"] == 2
    assert state["guard"]["step"] == 3
    for part in ("encoder", "objective", "average"):
        assert all(t.isfinite().all() for t in state[part].values())
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_steps"] for row in rows] == [1, 2, 2]
    assert [row["code/effective_rank"] is None for row in rows] == [False, True, False]  # step 9's codes are not finite
    counts = {int(part["step"]) for part in state["optimizer"]["state"].values()}
    assert counts == {STEPS - 2}


def test_one_more_ends_the_run_with_exit_code_3(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, {3, 9, 10})
    assert run(tmp_path / "r", *SKIPPING, "--run.save_every", "1") == 3
    err = capsys.readouterr().err
    assert "error: step 3: " in err
    assert "not finite, the first of 3; train.skip_bad leaves out 2; no update" in err
    assert checkpoint.load(tmp_path / "r")["step"] == 10
    monkeypatch.undo()
    assert run(tmp_path / "r", *SKIPPING) == 0  # what made it is gone: the saved state counts two


def injected(monkeypatch, place: str, at: int, bad: float) -> None:
    """A number becomes `bad` at a step: of the pictures, of a loss and its part, or of the gradient alone."""
    losses, forward = Objective.losses, train.Model.forward

    def of_loss(self, embedded, image, seed=0, step=0, *more):
        found = losses(self, embedded, image, seed, step, *more)
        if step != at or place == "pictures":
            return found
        if place == "gradient":
            found.encoder.register_hook(lambda gradient: gradient * bad)
            return found
        owner = "discriminator" if place == "prior_discriminator" else "encoder"
        parts = found.parts | {place: found.parts[place] * bad}
        return found._replace(parts=parts, **{owner: getattr(found, owner) * bad})

    def of_pictures(self, pictures, image, step, keep_scores=False):
        return forward(self, pictures * (bad if place == "pictures" and step == at else 1), image, step, keep_scores)

    monkeypatch.setattr(Objective, "losses", of_loss)
    monkeypatch.setattr(train.Model, "forward", of_pictures)


THIRTY = [
    pytest.param(place, at, bad, marks=[] if at == 5 and math.isnan(bad) else pytest.mark.slow)
    for place, at, bad in itertools.product(
        ("pictures", "local", "global", "prior_discriminator", "gradient"), (0, 5, STEPS - 1), (math.nan, math.inf)
    )
]


@pytest.mark.parametrize(("place", "at", "bad"), THIRTY)
def test_no_bad_number_reaches_a_weight(unbroken, tmp_path, monkeypatch, capsys, place, at, bad):
    injected(monkeypatch, place, at, bad)
    capsys.readouterr()
    assert run(tmp_path / "r", *EVERYTHING) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: step {at}: ")
    named = {"pictures": "local", "gradient": "gradient_norm"}.get(place, place)
    assert named in line.split(" not finite")[0]
    state = checkpoint.load(tmp_path / "r")
    assert state["step"] <= at
    assert all(t.isfinite().all() for part in ("encoder", "objective", "average") for t in state[part].values())
    monkeypatch.undo()
    assert run(tmp_path / "r", *EVERYTHING) == 0
    assert_the_same(unbroken, tmp_path / "r")


def test_without_a_bad_step_leaving_them_out_changes_no_bit(tmp_path):
    words = [*EVERYTHING, "--objective.local.queue", "240"]
    assert run(tmp_path / "plain", *words) == 0
    assert run(tmp_path / "skipping", *words, "--train.skip_bad", "2") == 0
    plain, skipping = (checkpoint.load(tmp_path / name) for name in ("plain", "skipping"))
    for part in ("encoder", "objective", "optimizer", "prior_optimizer", "average"):
        assert same(plain[part], skipping[part])


def test_a_skipped_step_leaves_statistics_and_queue_as_they_were(tmp_path, monkeypatch):
    words = ["--train.steps", "2", "--objective.local.queue", "120", "--train.batch_size", "60", "--train.skip_bad", "1"]
    assert train.main(tiny(tmp_path / "one", *words[2:], "--train.steps", "1")) == 0
    poisoned(monkeypatch, {1})
    assert train.main(tiny(tmp_path / "two", *words)) == 0
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert same(one["encoder"], two["encoder"])
    assert same(one["objective"], two["objective"])
