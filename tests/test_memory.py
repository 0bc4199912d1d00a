"""What a step needs in memory, each side in a process of its own so that its peak is its own."""

import subprocess
import sys

import pytest
from conftest import ROOT

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
objective = Objective(local=Term(Dot(64, 128, 256, 1 / 16), infonce, All()))
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
    above = peak("whole") - peak("encoder")
    assert 2 * TABLE < above < 6 * TABLE
