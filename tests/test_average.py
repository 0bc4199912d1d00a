"""The average of weights against a loop over plain numbers."""

import torch
from torch import nn

from dim.average import Average


def test_the_average_is_the_recursion_written_out():
    net, decay = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double(), 0.8
    average = Average(net, decay)
    expected = net[0].weight.detach().clone()
    mean = net[1].running_mean.clone()
    for t in range(40):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(3, 2).double())
        net(torch.randn(5, 2).double())
        average.update(net)
        kept = min(decay, (1 + t) / (10 + t))
        expected = kept * expected + (1 - kept) * net[0].weight.detach()
        mean = kept * mean + (1 - kept) * net[1].running_mean
    torch.testing.assert_close(average.module[0].weight, expected, rtol=1e-6, atol=1e-6)  # the share itself is float32
    torch.testing.assert_close(average.module[1].running_mean, mean, rtol=1e-6, atol=1e-6)
    assert average.module[1].num_batches_tracked == 40
    assert not average.module[0].weight.requires_grad


def test_the_module_is_left_alone_and_the_state_carries_on():
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    one = Average(net, 0.9)
    for _ in range(3):
        one.update(net)
    assert torch.equal(net.weight, before)
    two = Average(nn.Linear(2, 2), 0.9)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        net.weight.add_(1.0)
    one.update(net)
    two.update(net)
    assert torch.equal(one.module.weight, two.module.weight)
