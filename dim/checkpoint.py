"""Checkpoints: everything needed to continue a run, in one file that is never half written."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from dim.config import UserError


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
    except BaseException:
        if aside.is_file():
            aside.unlink()
        raise


KEYS = {"encoder", "objective", "optimizer", "step", "steps", "sums", "log_length", "data"}  # what every run saves


def save(path: Path, state: dict) -> None:
    """Write the state of a run."""
    with replacing(path) as file:
        torch.save(state, file)


def keep(folder: Path, place: Path) -> None:
    """Copy a run as it is now to another folder, which is then a run of its own; the checkpoint comes last."""
    place.mkdir(exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", "checkpoint.pt"):
        with open(folder / name, "rb") as source, replacing(place / name) as copy:
            shutil.copyfileobj(source, copy)


def save_json(path: Path, content: dict) -> None:
    """Write what people and other programs read beside the state."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def fill(module: nn.Module, weights: dict, folder: Path) -> None:
    """Load weights of the run in a folder; UserError where they are not those of the module, or not finite."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # of other shapes or names; no weights at all
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml, or one is damaged: {why}") from None
    if not all(bool(t.isfinite().all()) for t in module.state_dict().values()):
        raise UserError(f"{folder}/checkpoint.pt holds weights that are not finite: it is damaged")


def load(path: Path) -> dict:
    """The state in a checkpoint, on the CPU: tensors, numbers and text only, no code is run. UserError if unreadable."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= KEYS:
            raise ValueError("it holds something else than a run")
        return state
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}: train the run first") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path} is damaged or no checkpoint: {reason}; move it away to train anew") from None
