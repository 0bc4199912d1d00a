"""The machine: which device computes, in which precision, how a process of the command line uses processor and memory."""

import ctypes
import dataclasses
import os
import sys
from pathlib import Path

import torch

from dim import distributed
from dim.config import Config, UserError

CPUINFO = Path("/proc/cpuinfo")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names the instructions of x86 and of ARM
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def device(config: Config) -> torch.device:
    """The configured device; UserError where this machine lacks it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.device if config.device != "auto" else "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        have = ", ".join(key for key, there in available.items() if there)
        raise UserError(f"device {name} is not available to this torch; available: {have}, or auto")
    if config.norm == "sync" and name != "cuda" and distributed.asked_for() > 1:
        raise UserError(f"norm sync has no form for {name}, only for GPUs: choose batch, each process's share, or layer")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
        torch.use_deterministic_algorithms(True)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # a process of torchrun has a GPU of its own
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def settled(config: Config) -> Config:
    """The configuration with precision auto replaced by what it means here, so that a run's folder says which it was."""
    if config.precision != "auto":
        return config
    on_gpu = config.device in ("auto", "cuda") and torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else config.device != "mps" and cpu_has_bf16()
    return dataclasses.replace(config, precision="bf16" if fast and config.data.name != "gaussian" else "float32")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; where it does not, bf16 is slower than float32. Linux only."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BF16.isdisjoint(flags.split())


def tune_process() -> None:
    """What a process that only trains gains from, and a program that imports dim, or evaluates, may not want.

    Denormal numbers count as 0: tiny softmax gradients would run at half speed. Freed memory is kept, where the C library is
    glibc: every large tensor would be given back to the system and its next use paid with page faults.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
