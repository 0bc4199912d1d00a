"""Tracking: what wandb's files hold, and that no failure of its stops or changes a run. Needs no network and no account."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny

import evaluate
import train
from dim import checkpoint, report, tracking
from dim.config import flat
from dim.evals import protocol
from dim.reading import saved

KEY = "planted" + "0123456789" * 4  # looks like a key to wandb, and is none
CLOSED = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """No key, settings or open run of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))
    yield
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="module")
def untracked(tmp_path_factory) -> Path:
    """The folder of a run with wandb off, in a process of its own that says whether wandb was imported."""
    folder = tmp_path_factory.mktemp("off") / "r"
    script = "import sys, train; code = train.main(sys.argv[1:]); print('wandb' in sys.modules); sys.exit(code)"
    words = [sys.executable, "-c", script, *tiny(folder, "--run.save_every", "1")]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "imported").write_text(done.stdout.splitlines()[-1])
    return folder


def run(folder: Path, mode: str, *words: str) -> int:
    return train.main(tiny(folder, "--run.wandb", mode, "--run.save_every", "1", *words))


def later() -> None:
    """Wait as long as it takes to start a process: wandb names a folder by the second and would write over the one before."""
    time.sleep(1.1)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def weights(folder: Path) -> dict:
    state = checkpoint.load(folder)
    return state["encoder"] | state["objective"]


def same_weights(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def one_warning(capsys) -> str:
    """The only line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: run.wandb")
    return line


def records(path: Path) -> list:
    """The records of a .wandb file: 7 bytes, then LevelDB's log format, blocks of 32 KiB with parts of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, found, parts = path.read_bytes(), 7, [], b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little left in the block for the head of a part
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):  # still being written
            break
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            found.append(Record.FromString(parts))
            parts = b""
    return found


def values(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def tracked(path: Path) -> dict:
    """A .wandb file as {"id", "project", "config", "rows" without wandb's own keys, "summary"}."""
    found: dict = {"rows": [], "summary": {}}
    for record in records(path):
        if kind := record.WhichOneof("record_type"):
            part = getattr(record, kind)
            if kind == "run":
                found |= {"id": part.run_id, "project": part.project, "config": values(part.config.update)}
            if kind == "history":
                row = {key: value for key, value in values(part.item).items() if key not in ("_timestamp", "_runtime")}
                assert row.pop("_step") == row["step"]  # the x axis
                found["rows"].append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()})
            if kind == "summary":
                found["summary"] |= values(part.update)
    return found


def files(folder: Path) -> list[dict]:
    """The .wandb files of a run in the order they were begun, once they are written.

    wandb's own process writes them, on a busy machine later than ours goes on: until the last record of a finished run is
    there, or for one that was killed until nothing has come for some seconds.
    """
    paths = sorted(folder.glob("wandb/*/*.wandb"), key=lambda path: path.parent.name)
    size, still = -1, time.monotonic()
    while not all(map(finished, paths)) and time.monotonic() < still + 5:
        if size != (size := sum(path.stat().st_size for path in paths)):
            still = time.monotonic()
        time.sleep(0.2)
    return [tracked(path) for path in paths]


def finished(path: Path) -> bool:
    """Whether the run in a .wandb file came to its end."""
    return path.stat().st_size > 7 and any(record.WhichOneof("record_type") == "exit" for record in records(path))


# ---- off


def test_off_imports_nothing_of_wandb_and_writes_nothing_of_it(untracked):
    assert (untracked / "imported").read_text() == "False"
    assert not (untracked / "wandb").exists()
    assert checkpoint.load(untracked)["tracking_id"] == ""


# ---- offline


def test_an_offline_run_holds_every_row_the_configuration_and_the_best_values(untracked, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("PLANTED", KEY)
    folder = tmp_path / "r"
    assert run(folder, "offline", "--run.project", "digits") == 0
    said = capfd.readouterr()
    assert "wandb" not in said.out + said.err
    (file,) = files(folder)
    assert file["rows"] == rows(folder)
    assert len(file["rows"]) == 3
    assert file["project"] == "digits"
    assert file["id"] == checkpoint.load(folder)["tracking_id"]
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in flat(saved(folder)).items()}
    assert {key: file["config"].get(key, "missing") for key in given} == given
    assert file["summary"]["best"] == summary(folder)["best"]
    assert same_weights(untracked, folder)
    for path in folder.rglob("*"):  # nothing of the environment, the code or the machine beside the rows
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
        assert path.is_dir() or path.suffix in (".wandb", ".log", ".jsonl", ".json", ".yaml", ".pt")


def test_an_evaluation_adds_its_numbers_and_pictures_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(protocol.COLUMNS, "digits", protocol.Columns(few=(10,), draws=2, knobs={"C": 1.0}, resampled=False))
    folder = tmp_path / "r"
    assert run(folder, "offline", "--train.average", "0.5") == 0
    later()
    assert evaluate.main([str(folder), "--layers", "y", "--probes", "linear", "--figures", "neighbours"]) == 0
    later()
    assert evaluate.main([str(folder), "--layers", "y", "--weights", "average"]) == 0
    trained, evaluated, averaged = files(folder)
    assert trained["id"] == evaluated["id"] == averaged["id"]
    numbers, average = (
        report.numbers(json.loads((folder / f"{name}.json").read_text())) for name in ("report", "report_average")
    )
    rows = ("raw pixels", "random y", "trained y")
    assert numbers.keys() == {f"linear/{row}/{what}" for row in rows for what in ("all", "10", "10/sd")}
    content = json.loads((folder / "report.json").read_text())["linear"]["rows"]["trained y"]["10"]
    assert (numbers["linear/trained y/10"], numbers["linear/trained y/10/sd"]) == (content["accuracy"], content["sd"])
    assert {key: evaluated["summary"][key] for key in numbers} == numbers
    assert {key: averaged["summary"][f"average/{key}"] for key in average} == average
    assert not numbers.keys() & averaged["summary"].keys()  # those of the last weights stay what they were
    picture = evaluated["summary"]["figures/neighbours"]
    assert picture["_type"] == "image-file"
    (copy,) = folder.glob(f"wandb/*/files/{picture['path']}")
    assert copy.read_bytes() == (folder / "figures" / "neighbours.png").read_bytes()


def test_a_resumed_run_has_the_same_id_and_continues_its_curve(untracked, tmp_path, monkeypatch, capsys):
    folder, save = tmp_path / "r", checkpoint.save

    def killed(path, content):
        if content["step"] == 2:
            raise KeyboardInterrupt
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", killed)
    assert run(folder, "offline") == 130
    later()
    monkeypatch.setattr(checkpoint, "save", save)
    assert run(folder, "offline") == 0
    assert "continues at step 1 of 3" in capsys.readouterr().out
    before, after = files(folder)
    assert before["id"] == after["id"] == checkpoint.load(folder)["tracking_id"]
    assert [row["step"] for row in before["rows"]] == [1, 2]
    assert [row["step"] for row in after["rows"]] == [2, 3]  # step 2 again, at the same place of the curve
    assert before["rows"][:1] + after["rows"] == rows(folder)
    assert same_weights(untracked, folder)


def test_an_id_survives_a_stretch_without_wandb(tmp_path, monkeypatch):
    folder, save = tmp_path / "r", checkpoint.save
    ids = []

    def stopping(path, content):
        save(path, content)
        if content["step"]:
            ids.append(content["tracking_id"])
            if content["step"] < 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    assert [run(folder, mode) for mode in ("offline", "off")] == [130, 130]
    later()
    assert run(folder, "offline") == 0
    assert len(ids[0]) == 8
    assert ids == [ids[0]] * 3
    assert [[row["step"] for row in file["rows"]] for file in files(folder)] == [[1], [3]]


def test_online_without_a_key_goes_on_offline(untracked, tmp_path, capsys):
    folder = tmp_path / "r"
    assert run(folder, "online") == 0
    assert "run.wandb is online, but No API key configured" in (line := one_warning(capsys))
    assert line.endswith(f"the run goes on offline; later: wandb sync {folder}/wandb/offline-run-*")
    assert files(folder)[-1]["rows"] == rows(folder)
    assert same_weights(untracked, folder)


def test_online_without_a_network_goes_on_offline_soon(untracked, tmp_path, monkeypatch, capsys):
    assert tracking.QUIET["init_timeout"] == 20
    monkeypatch.setitem(tracking.QUIET, "init_timeout", 1)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    folder, clock = tmp_path / "r", time.perf_counter()
    assert run(folder, "online") == 0
    assert time.perf_counter() - clock < 25
    assert "the run goes on offline" in one_warning(capsys)
    # the attempt online leaves an empty file; folders begun in one second are told apart by the mode alone
    assert sorted(len(file["rows"]) for file in files(folder)) == [0, 3]
    assert same_weights(untracked, folder)
    assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_missing_package_is_said(mode, untracked, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(tmp_path / "r", mode) == 0
    why = "the package wandb cannot be imported (pip install wandb); the run goes on without wandb"
    assert one_warning(capsys) == f"warning: run.wandb is {mode}, but {why}"
    assert same_weights(untracked, tmp_path / "r")
    assert len(rows(tmp_path / "r")) == 3


@pytest.mark.parametrize("part", ["log", "finish"])
def test_a_full_disk_is_said_once(part, untracked, tmp_path, monkeypatch, capsys):
    import wandb

    calls = []

    def full(*_, **__):
        calls.append(part)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, part, full)
        assert run(tmp_path / "r", "offline") == 0
    assert calls == [part]
    assert "No space left on device; the run goes on without wandb" in one_warning(capsys)
    assert same_weights(untracked, tmp_path / "r")
    assert len(rows(tmp_path / "r")) == 3


def test_a_killed_process_of_wandbs_own_is_said_once(untracked, tmp_path):
    """In a process of its own, to its very end."""
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        import train
        from dim.guard import Guard

        def watch(self, step, values, watch=Guard.watch):
            watch(self, step, values)
            children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
            for child in [int(child) for path in children if step == 0 for child in path.read_text().split()]:
                print("killed", Path(f"/proc/{child}/cmdline").read_text())
                os.kill(child, signal.SIGKILL)

        Guard.watch = watch
        sys.exit(train.main(sys.argv[1:]))
    """
    words = tiny(tmp_path / "r", "--run.wandb", "offline", "--run.save_every", "1")
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "wandb-core" in done.stdout.partition("killed ")[2]
    (line,) = [line for line in done.stderr.splitlines() if "step/s" not in line and line.strip()]
    assert line.startswith("warning: run.wandb: ")
    assert line.endswith("the run goes on without wandb, metrics.jsonl has every row")
    assert same_weights(untracked, tmp_path / "r")
    assert len(rows(tmp_path / "r")) == 3


@pytest.mark.parametrize("way", ["waits for ever", "ends the process"])
def test_letting_go_of_wandb_neither_waits_long_nor_ends_the_run(way, monkeypatch):
    """As `teardown` does where its process does not answer, and where that ended with another code than 0."""
    import wandb

    calls, said, never = [], [], threading.Event()

    def teardown():
        calls.append(way)
        never.wait(60) if way == "waits for ever" else sys.exit(-9)

    tracker, clock = tracking.Tracker(object(), "id", said.append), time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "teardown", teardown)
        patch.setattr(tracking, "PATIENCE", 0.5)
        tracker.log({"step": 1})  # an object has no `log`
        tracker.log({"step": 2})
    assert time.perf_counter() - clock < 10
    assert len(calls) == len(said) == 1
    assert tracker.run is None
    never.set()


# ---- summary.json


def test_the_summary_says_last_and_best_also_after_a_resume(tmp_path, monkeypatch):
    folder, save = tmp_path / "r", checkpoint.save
    words = ("--run.probe_every", "1", "--train.epochs", "2", "--train.lr", "0.01")

    def stopping(path, content):
        save(path, content)
        if content["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    assert run(folder, "off", *words) == 130
    assert (summary(folder)["step"], summary(folder)["steps"]) == (3, 6)  # of the save before: the process died in this one
    monkeypatch.setattr(checkpoint, "save", save)
    path = folder / "metrics.jsonl"  # a best value from before the stop, as many bytes as the value it replaces
    path.write_text(re.sub(r'(?<="local/bound_nats": )[^,]+', lambda value: "9" * len(value[0]), path.read_text(), count=1))
    assert run(folder, "off", *words) == 0
    found, written = summary(folder), rows(folder)
    assert (found["step"], found["steps"], found["last"]) == (6, 6, written[-1])
    assert found["best"].keys() == {"local/bound_nats", "probe/fc_accuracy", "probe/y_accuracy"}
    assert found["best"]["local/bound_nats"]["step"] == 1
    for key, best in found["best"].items():
        top = max(row[key] for row in written if key in row)
        assert best == {"value": top, "step": next(row["step"] for row in written if row.get(key) == top)}
    assert not (folder / "summary.writing").exists()
