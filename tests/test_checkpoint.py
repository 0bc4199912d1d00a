"""Checkpoints: whole or not at all, whatever happens to the process, the disk or the file."""

import contextlib
import errno
import functools
import importlib
import io
import multiprocessing
import operator
import os
import pickle
import random
import resource
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from dim import checkpoint
from dim.config import UserError

STATE = {
    **{key: {} if kind is dict else 0 for key, kind in checkpoint.KEYS.items() if key != "format"},
    "encoder": {"weight": torch.arange(1000.0), "bias": torch.arange(10)},
    "data": {"name": "made", "shape": [1, 8, 8], "levels": 16, "signed": True, "images": 3, "files": torch.arange(3)},
    "steps": 1000,
}


def of_step(step: int) -> dict:
    return STATE | {"step": step}


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path, of_step(7))
    state = checkpoint.load(tmp_path)
    assert state["step"] == 7
    assert torch.equal(state["encoder"]["weight"], torch.arange(1000.0))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_newest_and_the_one_before_are_there(tmp_path):
    for step in range(4):
        checkpoint.save(tmp_path, of_step(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.before.pt", "checkpoint.pt"]
    steps = [checkpoint.opened((tmp_path / name).read_bytes())["step"] for name in (checkpoint.NEWEST, checkpoint.BEFORE)]
    assert steps == [3, 2]


def test_a_damaged_newest_gives_way_to_the_one_before_with_one_line(tmp_path):
    for step in range(2):
        checkpoint.save(tmp_path, of_step(step))
    content = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    lines: list[str] = []
    assert checkpoint.load(tmp_path, lines.append)["step"] == 0
    (line,) = lines
    assert "checkpoint.pt is damaged or no checkpoint: its checksum differs; checkpoint.before.pt is whole, of step 0" in line
    checkpoint.make_newest(tmp_path, 0)
    checkpoint.save(tmp_path, of_step(5))  # the whole one is not pushed out by the damaged one
    checkpoint.save(tmp_path, of_step(6))
    assert checkpoint.load(tmp_path, lines.append)["step"] == 6
    assert len(lines) == 1
    assert (tmp_path / "checkpoint.damaged.pt").read_bytes() == content


def test_a_whole_newest_is_not_set_aside(tmp_path):
    checkpoint.save(tmp_path, of_step(0))
    checkpoint.make_newest(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_what_the_machine_could_not_read_is_not_called_damaged(tmp_path, monkeypatch, error):
    for step in range(2):
        checkpoint.save(tmp_path, of_step(step))

    def failing(*words):
        raise error

    with monkeypatch.context() as context:
        if isinstance(error, MemoryError):
            context.setattr(checkpoint, "opened", failing)
        else:
            context.setattr(Path, "read_bytes", failing)
        with pytest.raises(type(error)):
            checkpoint.load(tmp_path)
        with pytest.raises(type(error)):
            checkpoint.make_newest(tmp_path, 1)
    assert checkpoint.load(tmp_path)["step"] == 1


def test_where_nothing_is_whole_one_line_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*checkpoint.pt: train the run first"):
        checkpoint.load(tmp_path)
    for name in (checkpoint.NEWEST, checkpoint.BEFORE):
        (tmp_path / name).write_bytes(b"PK")
    damage = "is damaged or no checkpoint"
    with pytest.raises(UserError, match=rf"checkpoint.pt {damage}.*checkpoint.before.pt {damage}.*move both away") as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / checkpoint.BEFORE).unlink()
    with pytest.raises(UserError, match=rf"checkpoint.pt {damage}.*move it away") as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def damaged(content: bytes, kind: str, draws: random.Random) -> bytes:
    """A checkpoint's file with one fault of a kind."""
    made, place = bytearray(content), draws.randrange(len(content))
    if kind == "bit":
        made[place] ^= 1 << draws.randrange(8)
    elif kind == "zeros":
        made[place : place + 512] = bytes(len(made[place : place + 512]))
    elif kind == "cut":
        del made[place:]
    elif kind == "swapped":
        a, b = sorted(draws.sample(range(0, len(content) - 64, 64), 2))
        made[a : a + 64], made[b : b + 64] = made[b : b + 64], made[a : a + 64]
    elif kind == "other":
        made = bytearray(draws.choice([b"", b"\0" * 999, b"PK\3\4", b"step: 1\n", content[::-1], content + content]))
    return bytes(made)


KINDS = {"bit": 100, "zeros": 100, "cut": 60, "swapped": 20, "other": 20}


@pytest.mark.parametrize(("kind", "times"), KINDS.items())
def test_no_damaged_file_is_loaded_without_a_word(kind, times):
    content, draws = bytes(checkpoint.sealed(of_step(3))), random.Random(0)
    silent = []
    for _ in range(times):
        made = damaged(content, kind, draws)
        try:
            checkpoint.opened(made)
        except Exception:
            continue
        silent.append(made != content)
    assert not any(silent)


class Calling:
    """What calls a function when it is unpickled by a loader that runs code."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def sealed_archive(archive: bytes) -> bytes:
    """Any archive with the checksum that it should have, as one made to harm would bear."""
    import hashlib

    return archive[:-2] + checkpoint.COMMENT + hashlib.sha256(archive).hexdigest().encode()


def hostile(tmp_path: Path) -> dict[str, bytes]:
    """Files that would run code, or fill memory, where a loader let them."""
    place = str(tmp_path / "harm")
    harm = Calling(Path.touch, tmp_path / "harm")
    every = {
        "plain": harm,
        "nested": of_step(1) | {"encoder": {"weight": harm}},
        "key": {harm: 1},
        "shell": Calling(os.system, f"touch {place}"),
        "process": Calling(subprocess.Popen, ["touch", place]),
        "eval": Calling(eval, f"open({place!r}, 'w')"),
        "exec": Calling(exec, f"open({place!r}, 'w').close()"),
        "open": Calling(open, place, "w"),
        "partial": Calling(functools.partial(Path.touch), tmp_path / "harm"),
        "chain": Calling(operator.call, Calling(getattr, Calling(importlib.import_module, "os"), "mkdir"), place),
        "torch": Calling(torch.save, 1, place),
    }
    made = {"bare": pickle.dumps(harm)}
    for name, content in every.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        made[name] = sealed_archive(buffer.getvalue())
    buffer = io.BytesIO()
    torch.save(of_step(1) | {"encoder": harm}, buffer, _use_new_zipfile_serialization=False)
    made["legacy"] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:  # before 2017
        for part in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(part)
            info.size = len(made["bare"])
            archive.addfile(info, io.BytesIO(made["bare"]))
    made["tar"] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    made["torchscript"] = sealed_archive(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as entries:
        entries.writestr("archive/data.pkl", bytes(50_000_000))
    made["bomb"] = sealed_archive(buffer.getvalue())
    return made


def does_harm(content: bytes, harm: Path) -> bool:
    """Whether a loader that runs code would have done what the file says."""
    with contextlib.suppress(Exception):
        found = torch.load(io.BytesIO(content), weights_only=False)
        if isinstance(found, subprocess.Popen):
            found.wait()
        if isinstance(found, io.IOBase):
            found.close()
    done = harm.exists()
    if done:
        harm.rmdir() if harm.is_dir() else harm.unlink()
    return done


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_no_file_runs_code_or_unpacks_to_more_than_it_is(tmp_path):
    files = hostile(tmp_path)
    assert sum(does_harm(content, tmp_path / "harm") for content in files.values()) >= 12
    for name, content in files.items():
        with pytest.raises(Exception, match=r".") as caught:  # any kind: load makes one line of it
            checkpoint.opened(content)
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(UserError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path)
        assert not (tmp_path / "harm").exists(), name
        if name == "bomb":
            assert "claim more than they hold" in str(caught.value)
    print(f"{len(files)} hostile checkpoints: no side effect, one line each")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "it has format 99, and this dim reads format 1"),
        ({"step": "many"}, "it lacks step"),
        ({"encoder": None}, "it lacks encoder"),
        ({"data": {}}, "it lacks data.name, data.shape, data.levels"),
        ({"data": STATE["data"] | {"shape": 8}}, "it lacks data.shape"),
        ({"step": 1001}, "it says step 1001 of 1000"),
        ({"step": -1}, "it says step -1 of 1000"),
    ],
)
def test_the_state_of_something_else_is_refused(tmp_path, change, message):
    checkpoint.save(tmp_path, STATE | change)
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_says_how_much(tmp_path):
    checkpoint.save(tmp_path, of_step(1))
    size = (tmp_path / "checkpoint.pt").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, size, max(1, size // 20)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=rf"saving {size:,} bytes as .*checkpoint.pt") as caught:
                checkpoint.save(tmp_path, of_step(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.errno == errno.EFBIG
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
        assert checkpoint.load(tmp_path)["step"] == 1


def test_an_error_while_serialising_leaves_the_old_one(tmp_path):
    class Unsaveable:
        def __reduce__(self):
            raise RuntimeError("cannot be written")

    checkpoint.save(tmp_path, of_step(1))
    with pytest.raises(RuntimeError):
        checkpoint.save(tmp_path, of_step(2) | {"bad": Unsaveable()})
    assert checkpoint.load(tmp_path)["step"] == 1


def test_the_file_and_the_folder_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_sync(number):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        fsync(number)

    def spy_rename(source, target):
        done.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy_rename)
    checkpoint.save(tmp_path, of_step(0))
    checkpoint.save(tmp_path, of_step(1))
    first = done.index("rename to checkpoint.pt")
    assert "file" in done[:first]
    assert done[first + 1] == "folder"
    second = done[first + 2 :]
    assert second.index("file") < second.index("rename to checkpoint.before.pt") < second.index("rename to checkpoint.pt")
    assert second[-1] == "folder"
    done.clear()
    checkpoint.save_json(tmp_path / "summary.json", {})
    assert done == ["file", "rename to summary.json", "folder"]


def try_to_lock(folder: Path, gate, results) -> None:
    gate.wait()
    try:
        with checkpoint.locked(folder):
            results.put("trains")
            gate.wait()  # until the other has tried
    except UserError as error:
        results.put(str(error))
        gate.wait()


def test_of_two_processes_exactly_one_trains(tmp_path):
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        gate, results = fork.Barrier(2), fork.Queue()
        both = [fork.Process(target=try_to_lock, args=(tmp_path, gate, results)) for _ in range(2)]
        for process in both:
            process.start()
        found = sorted((results.get(timeout=20), results.get(timeout=20)), key=len)
        for process in both:
            process.join(20)
        assert found[0] == "trains"
        assert "is being trained by" in found[1]
        assert not (tmp_path / "lock").exists()


def test_the_lock_names_its_holder_and_is_free_again(tmp_path):
    again, message = checkpoint.locked(tmp_path), rf"trained by process {os.getpid()} on .*: wait for it"
    with checkpoint.locked(tmp_path), pytest.raises(UserError, match=message), again:
        pass
    with checkpoint.locked(tmp_path):
        pass


def test_a_lock_that_its_owner_took_away_meanwhile_locks_nothing(tmp_path, monkeypatch):
    """Opened, then unlinked by the run that just ended: whoever holds that file would not keep a third one out."""
    flock = checkpoint.fcntl.flock

    def late(file, how):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").touch()  # of a third process
        flock(file, how)

    monkeypatch.setattr(checkpoint.fcntl, "flock", late)
    with pytest.raises(UserError, match="is being trained by another process"), checkpoint.locked(tmp_path):
        pass
    monkeypatch.undo()
    with checkpoint.locked(tmp_path):
        pass


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, OSError), (errno.EIO, OSError), (errno.EACCES, UserError)])
def test_a_full_disk_is_no_mistake_of_the_user(number, error):
    with pytest.raises(error) as raised, checkpoint.to_be_written("here"):
        raise OSError(number, "no")
    assert isinstance(raised.value, UserError) == (error is UserError)
    if error is UserError:
        assert str(raised.value) == "here cannot be written: no"
