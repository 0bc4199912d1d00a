"""The plain arrangement of a step that `benchmarks/step.py` times beside dim's, and the arithmetic that its limit counts."""

import argparse
import sys

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmarks"))
import step


@pytest.mark.parametrize("estimator", step.TABLES)
@pytest.mark.parametrize("critic", ["dot", "concat"])
def test_both_ways_have_the_same_loss_and_gradients(critic, estimator):
    found = step.check(critic, estimator, units=64, batch=6)
    assert found["loss"] < 1e-4
    assert found["gradient"] < 1e-4


def test_the_plain_encoder_is_torchs():
    t = step.training(2, "dot", 16, "cpu", "jsd")
    plain = step.plain_encoder(t.encoder)
    assert not any(isinstance(layer, step.Convolution) for layer in plain.modules())
    assert [layer.weight.shape[1] for layer in plain.modules() if isinstance(layer, torch.nn.Conv2d)] == [3, 64, 128]
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), t.encoder.parameters(), strict=True))


def test_ways_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setitem(step.TABLES, "jsd", lambda table: step.jsd_of_table(table * 1.01))
    with pytest.raises(RuntimeError, match="dot, jsd: the two ways differ"):
        step.check("dot", "jsd", units=64, batch=6)


def test_plain_losses_of_equal_scores_are_no_information():
    table = torch.zeros(5, 5, 3, 1, dtype=torch.float64)
    assert step.jsd_of_table(table).item() == pytest.approx(0, abs=1e-12)
    assert step.dv_of_table(table).item() == pytest.approx(0, abs=1e-12)
    assert step.infonce_of_table(table).item() == pytest.approx(0, abs=1e-4)  # the authors' -10 for an own image is no -inf


def test_the_limit_counts_the_score_table_of_a_bf16_step_in_float32():
    """2 A P L U for every score; all else in bf16, and as much but for the products with ones that sum rows and those that
    float32's convolutions do without."""
    batch, units, places = 8, 64, 64
    given = ("dot", "infonce", batch, argparse.Namespace(units=units, device="cpu"))
    whole, parted = step.flop("float32", *given), step.flop("bf16", *given)
    assert whole["bf16"] == 0
    assert parted["float32"] == 2 * batch * batch * places * units
    assert sum(parted.values()) - whole["float32"] == pytest.approx(spared(batch), rel=0.01)
    one_step = step.stepper("dim", "float32", *given)
    with FlopCounterMode(display=False) as counted:
        one_step(0)
    assert whole["float32"] == counted.get_total_flops()


def spared(batch: int) -> float:
    """7 of 16 products of the second and the third convolution and of both their gradients, where the CPU suits."""
    products = 8 * 8 * 128 * 64 * 16 + 4 * 4 * 256 * 128 * 16
    return 7 / 16 * 3 * 2 * batch * products if torch.backends.cpu.get_cpu_capability() == "AVX512" else 0


def test_each_product_counts_at_the_rate_of_its_own_precision():
    """3 of float32 at 1 a second and 8 of bf16 at 4 take 5 seconds."""
    assert step.share({"float32": 3, "bf16": 8}, {"float32": 1.0, "bf16": 4.0}, 10.0) == 0.5
