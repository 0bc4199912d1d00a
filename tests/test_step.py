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


def test_the_plain_encoder_is_torchs(monkeypatch):
    monkeypatch.setattr(step.Convolution, "fewer_products", True)
    t = step.training(64, "dot", 16, "cpu", "jsd")
    with FlopCounterMode(display=False) as ours:
        t.encoder(t.pictures)
    plain = step.plain_encoder(t.encoder)
    with FlopCounterMode(display=False) as theirs:
        plain(t.pictures)
    third = 2 * 64 * 4 * 4 * 256 * 128 * 16  # of the third convolution, 9 of 16 products
    assert theirs.get_total_flops() - ours.get_total_flops() == 7 / 16 * third
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
    """2 A P L U for every score; all else in bf16, but the products with ones that sum rows."""
    batch, units, places = 8, 64, 64
    given = ("dot", "infonce", batch, argparse.Namespace(units=units, device="cpu"))
    whole, parted = step.flop("float32", *given), step.flop("bf16", *given)
    assert whole["bf16"] == 0
    assert parted["float32"] == 2 * batch * batch * places * units
    assert sum(parted.values()) == pytest.approx(whole["float32"], rel=0.01)
    one_step = step.stepper("dim", "float32", *given)
    with FlopCounterMode(display=False) as counted:
        one_step(0)
    assert whole["float32"] == counted.get_total_flops()


def test_each_product_counts_at_the_rate_of_its_own_precision():
    """3 of float32 at 1 a second and 8 of bf16 at 4 take 5 seconds."""
    assert step.share({"float32": 3, "bf16": 8}, {"float32": 1.0, "bf16": 4.0}, 10.0) == 0.5
