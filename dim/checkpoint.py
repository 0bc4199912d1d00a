"""Checkpoints: everything needed to continue a run, in one file that is never half written."""

import os
from pathlib import Path

import torch

from dim.config import UserError


def save(path: Path, state: dict) -> None:
    """Write `state` aside, flush it to the disk, then rename it over `path`: a reader sees the old file or the new one."""
    aside = path.with_suffix(".writing")
    with open(aside, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load(path: Path) -> dict:
    """The state in a checkpoint, on the CPU: tensors, numbers and text only, no code is run. UserError if unreadable."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}: train the run first") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path} is damaged or no checkpoint: {reason}; move it away to train anew") from None
