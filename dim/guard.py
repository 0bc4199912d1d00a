"""A guard against non-finite numbers: a step with a bad loss or gradient makes no update.

The decision stays on the device: the flag goes into the fused optimizer, so nothing waits for it in a step.
"""

import torch
from torch import Tensor, nn

from dim.distributed import any_of


class DivergedError(RuntimeError):
    """Training met a number that is not finite. Exit code 3."""


class Guard(nn.Module):
    """Counts the steps at which a watched value was not finite; remembers the first of them, and which value.

    allowed: how many may be left out; from one more on no update is made at all.
    """

    bad: Tensor
    left_out: Tensor
    step: Tensor

    def __init__(self, device: torch.device, allowed: int = 0):
        super().__init__()
        self.allowed = allowed
        self.bad = torch.zeros((), dtype=torch.bool, device=device)  # this step makes no update
        self.flags = torch.zeros(0)  # which values were bad at the first bad step
        self.names: list[str] = []
        self.register_buffer("left_out", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("step", torch.full((), -1, dtype=torch.long, device=device))  # the first bad one

    def watch(self, step: int, values: dict[str, Tensor]) -> None:
        """Look at the values of a step, scalars on the device."""
        flags = torch.stack([~torch.isfinite(value.detach()) for value in values.values()])
        flags = any_of(flags)  # one rank's bad number is all ranks'
        now = flags.any()
        first = now & (self.step < 0)
        self.names = list(values)
        self.flags = flags if not self.flags.numel() else torch.where(first, flags, self.flags)
        self.step.copy_(torch.where(first, step, self.step))
        self.left_out.add_(now)
        self.bad = now | (self.left_out > self.allowed)

    def withhold(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's next step one that changes nothing if anything was bad: what GradScaler does, without scale."""
        optimizer.found_inf, optimizer.grad_scale = self.bad.float(), None  # type: ignore[attr-defined]

    def verdict(self) -> str | None:
        """None, or where training first went wrong, if more often than allowed; reads from the device."""
        if (left_out := self.left_out.item()) <= self.allowed:
            return None
        bad = [name for name, flag in zip(self.names, self.flags.tolist(), strict=True) if flag]
        which = ", ".join(bad) or "a loss or gradient"  # of a step before the run was continued
        more = f", the first of {left_out:,}; train.skip_bad leaves out {self.allowed:,}" if self.allowed else ""
        return f"step {int(self.step)}: {which} not finite{more}"
