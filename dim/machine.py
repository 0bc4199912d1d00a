"""The machine: which device computes, in which precision, how a process of the command line uses processor and memory."""

import ctypes
import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dim import distributed
from dim.config import Config, UserError
from dim.winograd import Convolution

CPUINFO = Path("/proc/cpuinfo")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names the instructions of x86 and of ARM
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
# torch's settings of products of float32 matrices
ONEDNN = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # it is made when torch is imported
CUBLAS = torch.backends.cuda.matmul


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
    return not BF16.isdisjoint(of_cpu("flags", "features"))


def of_cpu(*keys: str) -> set[str]:
    """The words behind the first of these keys that Linux says of the processor; none elsewhere."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.lower().startswith(keys)), "").split())


@contextmanager
def coarse_products(allowed: bool) -> Iterator[None]:
    """Within it, where allowed, products of float32 matrices may round their factors: to bf16 on a CPU, where oneDNN does so
    only if that is faster (with AMX), to TF32's 11 bits on an NVIDIA GPU. Sums and results stay float32.

    Beside bf16 autocast: the factors of a score were made in bf16. In full float32 the table of scores, an eighth of the
    arithmetic, took a third of the step on a CPU with AVX512-BF16 and would take half of it on a GPU.
    """
    places = (ONEDNN, "bf16"), (CUBLAS, "tf32")
    before = [place.fp32_precision for place, _ in places]
    try:
        for place, coarse in places:
            if allowed:
                place.fp32_precision = coarse
        yield
    finally:
        for (place, _), kept in zip(places, before, strict=True):
            place.fp32_precision = kept


def tune_products() -> None:
    """On AMD's processors with AVX-512, let oneDNN multiply float32 matrices, where it proves to do so exactly.

    MKL, torch's choice, runs there at half the rate: 91 against 190 GFLOP/s on one core of an EPYC. Torch takes oneDNN only
    where factors may be rounded to bf16, and oneDNN rounds them only if the processor has AMX, which AMD's have not: whether
    it does is measured on a product before it is relied on. With such products a convolution by fewer of them pays.
    """
    flags = of_cpu("flags")
    if "AuthenticAMD" in of_cpu("vendor_id") and "avx512f" in flags and not any(flag.startswith("amx") for flag in flags):
        ONEDNN.fp32_precision = "bf16"
        if exact_products():
            Convolution.fewer_products = True
        else:
            ONEDNN.fp32_precision = "none"


def exact_products(side: int = 128) -> bool:
    """Whether products of float32 matrices, transposed ones too, are as exact as float32 is; with bf16's factors they are 1,000
    times further off."""
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=draws) for _ in range(2))
    each = ((x, y) for x in (a, a.T) for y in (b, b.T))
    return all((x @ y - x.double() @ y.double()).abs().max() < 1e-5 * side**0.5 for x, y in each)


def tune_process() -> None:
    """What a process that only trains gains from, and a program that imports dim, or evaluates, may not want.

    Denormal numbers count as 0: tiny softmax gradients would run at half speed. Freed memory is kept, where the C library is
    glibc: every large tensor would be given back to the system and its next use paid with page faults.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
