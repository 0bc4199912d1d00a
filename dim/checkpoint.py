"""Checkpoints: everything needed to continue a run, in files that are never half written nor read when damaged.

A file is torch's archive of tensors, numbers and text, and behind it, as the archive's comment, the SHA-256 of all before it:
torch.load accepts most flipped bits without a word. The newest state of a run is checkpoint.pt, the one before it
checkpoint.before.pt.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from dim.config import UserError

NEWEST, BEFORE = "checkpoint.pt", "checkpoint.before.pt"
FORMAT = 1
KEYS = {  # what every run saves, and of which kind
    **dict.fromkeys(("encoder", "objective", "optimizer", "sums", "data", "versions", "config"), dict),
    **dict.fromkeys(("format", "step", "steps", "log_length"), int),
}
DATA = {"name": str, "shape": list, "levels": int, "signed": bool, "images": int, "files": torch.Tensor}  # `Dataset.facts`
DIGITS = 64  # of a SHA-256 in hexadecimal
NO_COMMENT, COMMENT = (0).to_bytes(2, "little"), DIGITS.to_bytes(2, "little")  # a zip file ends with the length of its comment


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file written aside, flushed to the disk, then renamed over `path`: a reader sees the old file or the new one."""
    aside = path.with_suffix(".writing")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync(path.parent)
    except BaseException:
        if aside.is_file():
            aside.unlink()
        raise


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename outlasts a loss of power."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def sealed(state: dict) -> memoryview:
    """The content of a checkpoint's file; no second copy of it is made."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(-len(NO_COMMENT), io.SEEK_END)
    buffer.write(COMMENT + digest.encode())
    return buffer.getbuffer()


def opened(content: bytes | memoryview) -> dict:
    """The state in a checkpoint's file; ValueError where it is not what `sealed` made. No code in it is run."""
    end = len(content) - DIGITS
    archive = bytes(content[: max(0, end - len(COMMENT))]) + NO_COMMENT
    if content[end - len(COMMENT) : end] != COMMENT or hashlib.sha256(archive).hexdigest().encode() != content[end:]:
        raise ValueError("its checksum differs")
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:  # a file made to harm may bear the right checksum
        sizes = [entry.file_size for entry in entries.infolist() if entry.file_size == entry.compress_size]
        if len(sizes) < len(entries.infolist()) or sum(sizes) > len(archive):
            raise ValueError("its entries claim more than they hold")
    state = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise ValueError("it holds something else than a run")
    if state["format"] != FORMAT:
        raise ValueError(f"it has format {state['format']}, and this dim reads format {FORMAT}")
    if wrong := [key for key, kind in KEYS.items() if not isinstance(state.get(key), kind)]:
        raise ValueError(f"it lacks {', '.join(wrong)}")
    if wrong := [f"data.{key}" for key, kind in DATA.items() if not isinstance(state["data"].get(key), kind)]:
        raise ValueError(f"it lacks {', '.join(wrong)}")
    if not 0 <= state["step"] <= state["steps"]:
        raise ValueError(f"it says step {state['step']} of {state['steps']}")
    return state


def save(folder: Path, state: dict) -> None:
    """Write the state of a run; the newest so far becomes the one before. At every moment one of both is whole."""
    content = sealed(state)
    try:
        with replacing(folder / NEWEST) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if (folder / NEWEST).exists():
                os.replace(folder / NEWEST, folder / BEFORE)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, saving {len(content):,} bytes as {folder / NEWEST}") from None


def load(folder: Path, warn: Callable[[str], None] | None = None) -> dict:
    """The newest whole state of the run in a folder, on the CPU; UserError where there is none.

    Where the newest is damaged and the one before is not: the latter, and one line to `warn` that says so.
    """
    complaints = []
    for path in (folder / NEWEST, folder / BEFORE):
        if not path.exists():
            continue
        content = b"" if path.is_dir() else path.read_bytes()  # a disk that does not read is no damaged file
        try:
            state = opened(content)
        except MemoryError:
            raise
        except Exception as error:  # torch and zipfile raise many kinds for a damaged file
            complaints.append(f"{path} is damaged or no checkpoint: {' '.join(str(error).split())[:80]}")
            continue
        if complaints and warn is not None:
            warn(f"{complaints[0]}; {path.name} is whole, of step {state['step']:,}, and is taken in its place")
        return state
    if complaints:
        raise UserError(f"{'; '.join(complaints)}; move {'both' if complaints[1:] else 'it'} away to train anew")
    raise UserError(missing(folder))


def missing(folder: Path) -> str:
    """The words for a run that saved nothing."""
    return f"no checkpoint {folder / NEWEST}: train the run first"


def exists(folder: Path) -> bool:
    """Whether a run in a folder has saved anything."""
    return (folder / NEWEST).exists() or (folder / BEFORE).exists()


def make_newest(folder: Path, step: int) -> None:
    """Give the newest file's name to the state that `load` took, of a step: the one before where the newest is damaged, which
    is set aside, or where a kill came between two renames."""
    if (path := folder / NEWEST).exists():
        content = b"" if path.is_dir() else path.read_bytes()
        try:
            if opened(content)["step"] == step:
                return
        except MemoryError:
            raise
        except Exception:  # as in load
            os.replace(path, folder / "checkpoint.damaged.pt")
    os.replace(folder / BEFORE, path)


def keep(folder: Path, place: Path) -> None:
    """Copy a run as it is now to another folder, which is then a run of its own; the checkpoint comes last."""
    place.mkdir(exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", NEWEST):
        with open(folder / name, "rb") as source, replacing(place / name) as copy:
            shutil.copyfileobj(source, copy)


def save_json(path: Path, content: dict) -> None:
    """Write what people and other programs read beside the state."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


@contextmanager
def to_be_written(what: str) -> Iterator[None]:
    """Inside, a path that cannot be written is a mistake of the user, UserError; a full or failing disk stays an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise UserError(f"{what} cannot be written: {error.strerror}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process may train in the folder, which is made where it is missing; UserError where one does, or where
    it cannot be made. However it ends, it is free."""
    path = folder / "lock"
    with to_be_written(f"run.dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115, closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # unlinked by its owner
                raise BlockingIOError
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder} is being trained by {file.read().strip() or 'another process'}: wait for it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def fill(module: nn.Module, weights: dict, folder: Path) -> None:
    """Load weights of the run in a folder; UserError where they are not those of the module, or not finite."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # of other shapes or names; no weights at all
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml, or one is damaged: {why}") from None
    if not all(bool(t.isfinite().all()) for t in module.state_dict().values()):
        raise UserError(f"{folder}/checkpoint.pt holds weights that are not finite: it is damaged")
