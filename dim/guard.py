"""A guard against non-finite numbers: from the first bad loss or gradient on, no update is made.

The decision stays on the device: the flag goes into the fused optimizer, so nothing waits for it in a step.
"""

import torch
from torch import Tensor


class DivergedError(RuntimeError):
    """Training met a number that is not finite. Exit code 3."""


class Guard:
    """Remembers the first step at which a watched value was not finite, and which."""

    def __init__(self, device: torch.device):
        self.bad = torch.zeros((), device=device)  # 1 from the first bad step on
        self.step = torch.full((), -1, device=device)
        self.flags = torch.zeros(0)  # which values were bad at that step
        self.names: list[str] = []

    def watch(self, step: int, values: dict[str, Tensor]) -> None:
        """Look at the values of a step, scalars on the device."""
        flags = torch.stack([~torch.isfinite(value.detach()) for value in values.values()])
        first = flags.any() & (self.bad == 0)
        self.names = list(values)
        self.flags = flags if not self.flags.numel() else torch.where(first, flags, self.flags)
        self.step = torch.where(first, step, self.step)
        self.bad = torch.maximum(self.bad, first.to(self.bad.dtype))

    def withhold(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's next step one that changes nothing if anything was bad: what GradScaler does, without scale."""
        optimizer.found_inf, optimizer.grad_scale = self.bad, None  # type: ignore[attr-defined]

    def verdict(self) -> str | None:
        """None, or where training went wrong; reads from the device."""
        if not self.bad.item():
            return None
        bad = [name for name, flag in zip(self.names, self.flags.tolist(), strict=True) if flag]
        return f"step {int(self.step)}: {', '.join(bad)} not finite"
