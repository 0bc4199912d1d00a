"""The machine: device, precision, and settings of the process, which only the command line makes."""

import mmap
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from dim import machine
from dim.config import Config, Data, UserError

FLAGS = {
    "flags\t\t: fpu avx512f avx512_vnni": False,
    "flags\t\t: fpu avx512f avx512_bf16": True,
    "flags\t\t: fpu amx_bf16 amx_tile": True,
    "Features\t: fp asimd bf16 i8mm": True,
    "processor\t: 0": False,
}


@pytest.mark.parametrize(("line", "there"), FLAGS.items())
def test_precision_follows_the_processor(tmp_path, monkeypatch, line, there):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t\t: amx_bf16\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    config = Config(device="cpu")
    assert machine.settled(config).precision == ("bf16" if there else "float32")
    assert machine.settled(replace(config, precision="float64")).precision == "float64"
    assert machine.settled(replace(config, data=Data(name="gaussian"))).precision == "float32"
    assert machine.settled(replace(config, device="mps")).precision == "float32"


def test_a_system_without_the_list_of_flags_computes_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine.settled(Config(device="cpu")).precision == "float32"


def test_several_processes_normalise_together_on_gpus_only(monkeypatch):
    together = Config(device="cpu", norm="sync")
    assert machine.device(together) == torch.device("cpu")  # alone it is batch
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert machine.device(replace(together, norm="batch")) == torch.device("cpu")
    with pytest.raises(UserError, match="norm sync has no form for cpu, only for GPUs: choose batch"):
        machine.device(together)


def test_a_gpu_is_asked_by_torch(monkeypatch):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: pytest.fail("the processor does not matter here"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert machine.settled(Config()).precision == expected


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.device(Config()) == torch.device("cpu")
    with pytest.raises(UserError, match="device cuda is not available to this torch; available: cpu"):
        machine.device(Config(device="cuda"))


FREED = """
import resource, sys, torch
import dim
from dim import machine
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(10_000_000)  # 40 MB, more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
tiny = torch.tensor([1e-40])
print(faults(), bool(tiny * 1 == 0))
machine.tune_process()
print(faults(), bool(tiny * 1 == 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators have no such setting")
def test_only_the_command_line_keeps_freed_memory_and_flushes_denormals():
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True, check=True)
    (before, flushed_before), (after, flushed_after) = (line.split() for line in done.stdout.splitlines())
    assert int(before) > 10 * 9000 * 4096 / mmap.PAGESIZE  # a fault for each page of each tensor
    assert int(after) < int(before) / 5
    assert (flushed_before, flushed_after) == ("False", "True")
