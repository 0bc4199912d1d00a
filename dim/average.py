"""An average of an encoder's weights over training: often a better encoder than the last weights, for evaluation only."""

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The exponential moving average of a module's parameters and statistics.

    decay: the share kept at each step; while young the average forgets faster, min(decay, (1 + t) / (10 + t)) at update t, so
    that first weights do not stay in it.
    """

    def __init__(self, module: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(module).requires_grad_(False), decay
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), device=next(module.parameters()).device))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights; counters are copied. Nothing is read from the device."""
        share = (1 - (1 + self.updates) / (10 + self.updates)).clamp_min(1 - self.decay)
        self.updates += 1
        for mine, theirs in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, share.to(mine.dtype))
            else:
                mine.copy_(theirs)
