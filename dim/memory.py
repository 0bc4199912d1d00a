"""Memory: what a step will take, found by making it with tensors that have shapes and no numbers.

Counted are the tensors that live at the same time, as torch's own operators make and free them, forward and backward; and
what stays, weights, gradients, Adam's moments, buffers. Not seen is what an operator takes inside, and what an allocator keeps.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dim.model import Model


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
    """Bytes that one training step of `images` images adds to what stands already: the graph, gradients, Adam's two moments.

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
    moments = sum(2 * g.nbytes for g in gradients if g is not None)
    return live.peak + shown.nbytes + moments
