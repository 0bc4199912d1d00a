"""The machine: device, precision, and settings of the process, which only the command line makes."""

import mmap
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT, tiny

import train
from dim import critics, machine
from dim.config import Config, Data, UserError
from dim.winograd import Convolution

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


def products(vendor: str, flags: str, tmp_path, monkeypatch) -> str:
    """What `tune_products` chooses on such a processor."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    with machine.coarse_products(False):  # puts back what it was
        machine.ONEDNN.fp32_precision, Convolution.fewer_products = "none", False
        machine.tune_products()
        assert Convolution.fewer_products == (machine.ONEDNN.fp32_precision == "bf16")
        return machine.ONEDNN.fp32_precision


def test_products_are_onednns_on_amd_where_they_are_exact(tmp_path, monkeypatch):
    here = partial(products, tmp_path=tmp_path, monkeypatch=monkeypatch)
    monkeypatch.setattr(machine, "exact_products", lambda: True)
    assert here("AuthenticAMD", "avx2 avx512f") == "bf16"
    for vendor, flags in (("GenuineIntel", "avx512f"), ("AuthenticAMD", "avx2"), ("AuthenticAMD", "avx512f amx_tile")):
        assert here(vendor, flags) == "none"
    monkeypatch.setattr(machine, "exact_products", lambda: False)
    assert here("AuthenticAMD", "avx2 avx512f") == "none"


def test_rounded_factors_are_no_exact_products(monkeypatch):
    assert machine.exact_products()
    plain = torch.Tensor.__matmul__

    def rounded(x, y):
        return plain(x.bfloat16().float(), y.bfloat16().float()) if x.dtype == torch.float32 else plain(x, y)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not machine.exact_products()


def test_products_of_this_machine_stay_exact():
    """The settings that the command line makes, on shapes of a critic and of a probe."""
    code = (
        "import torch; from dim import machine; machine.tune_products()\n"
        "for n, k, m in ((64, 2048, 512), (512, 64, 2048), (300, 1000, 10)):\n"
        "    a, b = torch.randn(n, k), torch.randn(k, m)\n"
        "    assert ((a @ b) - (a.double() @ b.double())).abs().max() < 2e-5 * k ** 0.5, (n, k, m)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_factors_are_rounded_within_a_step_of_bf16_alone():
    before = machine.ONEDNN.fp32_precision, machine.CUBLAS.fp32_precision
    with machine.coarse_products(False):
        assert (machine.ONEDNN.fp32_precision, machine.CUBLAS.fp32_precision) == before
    with suppress(KeyError), machine.coarse_products(True):
        assert (machine.ONEDNN.fp32_precision, machine.CUBLAS.fp32_precision) == ("bf16", "tf32")
        raise KeyError
    assert (machine.ONEDNN.fp32_precision, machine.CUBLAS.fp32_precision) == before


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_step_rounds_factors_and_the_probe_does_not(tmp_path, monkeypatch, precision):
    seen = {}

    def noted(where, plain):
        def call(*args, **more):
            seen.setdefault(where, set()).add(machine.CUBLAS.fp32_precision)
            return plain(*args, **more)

        return call

    monkeypatch.setattr(train, "quick_probe", noted("probe", train.quick_probe))
    monkeypatch.setattr(critics.Dot, "table", noted("scores", critics.Dot.table))
    monkeypatch.setattr(torch.Tensor, "backward", noted("backward", torch.Tensor.backward))
    words = {"--precision": precision, "--train.steps": "14", "--train.batch_size": "89", "--run.probe_every": "1"}
    assert train.main(tiny(tmp_path / "r", *[word for pair in words.items() for word in pair])) == 0
    plain = machine.CUBLAS.fp32_precision
    step = {"tf32"} if precision == "bf16" else {plain}
    assert plain != "tf32"
    assert seen == {"scores": step, "backward": step, "probe": {plain}}


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
faults()  # the heap grows by a tensor or a few, depending on what lies at its end
print(faults(), bool(tiny * 1 == 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators have no such setting")
def test_only_the_command_line_keeps_freed_memory_and_flushes_denormals():
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True, check=True)
    (before, flushed_before), (after, flushed_after) = (line.split() for line in done.stdout.splitlines())
    assert int(before) > 10 * 9000 * 4096 / mmap.PAGESIZE  # a fault for each page of each tensor
    assert int(after) < int(before) / 5
    assert (flushed_before, flushed_after) == ("False", "True")
