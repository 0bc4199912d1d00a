"""What a step needs in memory, each side in a process of its own so that its peak is its own."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tiny

import train
from dim import memory

TABLE = 64  # MiB: 512 anchors x 512 images x 64 locations, float32

SCRIPT = """
import resource, sys
import torch
from dim.build import TermFacts
from dim.critics import Dot
from dim.encoders import Encoder
from dim.estimators import infonce
from dim.monitor import log_row
from dim.negatives import All
from dim.objective import Objective, Term

torch.set_num_threads(1)
torch.set_flush_denormal(True)
encoder, images = Encoder("basic32x32"), torch.randn(512, 3, 32, 32)
objective = Objective(local=Term(Dot(64, 128, 256, 1 / 16), infonce, All(), parts=8 if sys.argv[1] == "parts" else 1))
optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], 1e-3, fused=True)
for step in range(2):
    codes = encoder(images)
    if sys.argv[1] == "encoder":
        loss = codes.y.square().mean() + codes.map.square().mean()
    else:
        losses = objective.losses(objective.embed(codes), torch.arange(512), 0, step, keep_scores=True)
        loss = losses.encoder
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if sys.argv[1] != "encoder":
        log_row(losses.scores, [TermFacts("local", "nats", 64, 511 * 64, None, 0, "")])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(what: str) -> float:
    """MiB at most in a process of a few steps."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    return float(done.stdout)


@pytest.mark.slow
def test_infonce_of_512_images_stays_within_six_tables():
    """Above the encoder's own peak, heads and a monitored step among it; 512^2 x 64^2 scores would be 4 GiB a copy."""
    encoder, whole, parts = peak("encoder"), peak("whole"), peak("parts")
    print(f"tables above the encoder's peak: {(whole - encoder) / TABLE:.1f}, in 8 parts {(parts - encoder) / TABLE:.1f}")
    assert 2 * TABLE < whole - encoder < 6 * TABLE
    assert parts < whole - TABLE


RUN = """
import re, resource, sys, train
assert train.main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def printed(*words: str) -> str:
    """What a run prints in a process of its own, and its peak in GiB."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--config", "configs/cifar10.yaml", "--views.number", "1", "--views.kind", "none"],
        ["--config", "configs/cifar10.yaml", "--train.batch_size", "512"],
        ["--config", "configs/cifar10.yaml", "--train.batch_size", "512", "--train.chunk", "64"],
        ["--config", "configs/paper/cifar10_local_global.yaml"],
    ],
    ids=["one view", "512", "chunks", "local and global"],
)
def test_a_dry_run_foretells_the_peak(words, tmp_path, real_data):
    words = [*words, "--data.root", str(real_data), "--run.probe_every", "0", "--run.dir", str(tmp_path / "r")]
    foretold = float(re.search(r"about ([\d.]+) GiB at the peak", printed(*words, "--dry-run"))[1])
    measured = float(re.search(r"peak ([\d.]+)", printed(*words, "--train.steps", "3"))[1])
    print(f"{foretold:.2f} GiB foretold, {measured:.2f} measured")
    assert measured == pytest.approx(foretold, rel=0.25)


def test_a_dry_run_says_the_memory_of_a_small_run(tmp_path, capsys, monkeypatch):
    assert train.main(tiny(tmp_path / "r", "--dry-run")) == 0
    assert re.search(
        r"memory     about [\d.]+ GiB at the peak: [\d.]+ the process .*, 0\.\d+ for a step", capsys.readouterr().out
    )
    monkeypatch.setattr(memory, "of_a_step", lambda *given: 300 * 2**20)  # large enough to add up what is printed
    assert train.main(tiny(tmp_path / "r", "--dry-run")) == 0
    line = r"memory     about ([\d.]+) GiB at the peak: ([\d.]+) the process .*, (0\.\d+) for a step.*, (0\.\d+) freed and kept"
    total, process, step, kept = map(float, re.search(line, capsys.readouterr().out).groups())
    assert total == pytest.approx(process + step + kept, abs=0.02)
    assert kept == pytest.approx(step / 2, abs=0.01)
    assert not (tmp_path / "r").exists()


def test_live_counts_what_lives_at_once():
    with memory.Live() as live:
        a = torch.zeros(1000)
        b = a + 1  # two at once
        del a
        c = b.view(10, 100)  # no storage of its own
        d = c * 2
        del b, c
        e = d.clone()
    assert live.peak == 2 * 4000
    assert live.now == 2 * 4000
    assert e.shape == d.shape
