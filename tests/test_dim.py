"""The package itself: its example runs as it stands there."""

import doctest

import torch

import dim


def test_the_example_in_the_docstring_runs():
    torch.manual_seed(0)
    assert doctest.testmod(dim) == (0, 13)  # none failed of 13 tried
