"""Memory: what a step will take, found by making it with tensors that have shapes and no numbers.

Counted are the tensors that live at the same time, as torch's own operators make and free them, forward and backward; and
what stays, weights, gradients, Adam's moments, buffers. Not seen is what an operator takes inside; what the allocator keeps is
a share of a step, by measurement.
"""

import resource
import sys
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dim.model import Model

# Of a step's bytes, what glibc holds beside them once freed memory is kept (`dim.machine.tune_process`): pieces that the next
# request does not fit into. Between none and 1.2 of a step (results/performance.md).
KEPT = 0.5


class Live(TorchDispatchMode):
    """Inside, bytes of all storages that operators make: those that live `now`, and the most at once, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += (size := storage.nbytes())
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, size)

    def freed(self, size: int) -> None:
        self.now -= size


def of_a_step(model: Model, pictures: tuple[int, ...], images: int, step: int = 0) -> int:
    """Bytes that training with `images` images a step adds to what stands already: the graph or a checkpoint that is written,
    gradients, Adam's two moments.

    pictures: the shape of their pictures, of all views. The model's weights stay as they are, and nothing is computed.
    """
    weight = next(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        tensors: dict[str, Tensor] = {
            name: fake.from_tensor(t) for name, t in (*model.named_parameters(), *model.named_buffers())
        }
        wanted = [tensors[name] for name, p in model.named_parameters() if p.requires_grad]
        shown = torch.empty(pictures, dtype=weight.dtype, device=weight.device).contiguous(memory_format=torch.channels_last)
        index = torch.arange(images, device=weight.device)
        with Live() as live:
            losses, _ = functional_call(model, tensors, (shown, index, step))
            total = losses.encoder if losses.discriminator is None else losses.encoder + losses.discriminator
            gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    trained = sum(g.nbytes for g in gradients if g is not None)
    saved = 2 * trained + sum(t.nbytes for t in tensors.values())  # what a checkpoint's file holds is put together in memory
    return 2 * trained + max(live.peak + shown.nbytes, trained + saved)


def line(model: Model, shape: tuple[int, int, int], images: int) -> str:
    """What a run will need at its peak, `images` images of a shape a step in all their views, as a line of the summary."""
    device = next(model.parameters()).device
    step = of_a_step(model, (model.views * images, *shape), images)  # first: it imports what an optimizer imports too
    if device.type == "cuda":
        stands, where = torch.cuda.memory_allocated(device), f"on {device}"
    else:  # ru_maxrss counts KiB, but bytes on macOS
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        stands, where = most, "the process with torch and the data"
    kept = KEPT * step if device.type == "cpu" and sys.platform == "linux" else 0
    parts = f"{stands / 2**30:.2f} {where}, {step / 2**30:.2f} for a step, a checkpoint, gradients and moments"
    parts += f", {kept / 2**30:.2f} freed and kept" if kept else ""
    return f"memory     about {(stands + step + kept) / 2**30:.2f} GiB at the peak: {parts}"
