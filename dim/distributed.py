"""Distributed: several processes under torchrun, each with its share of every batch, that compute what one process would.

A rank's loss is the mean over its own anchors, the embedded rows of all ranks stand in every pool, the gradient of a gathered
row is the sum over ranks, and DDP averages over ranks: so the gradient is that of the whole batch. Without torchrun, and with
one process under it, every function here gives back what it is given, to the bit.
"""

import inspect
import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dim.config import UserError
from dim.estimators import logsumexp

T = TypeVar("T")
GROUPS: dict = {}  # device: where tensors are; host: for what processes agree on without a look at the device


def rank() -> int:
    """The place of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def asked_for() -> int:
    """The number of processes that torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def place() -> int:
    """This process's number among those that torchrun has started; UserError where it did not."""
    if not (number := os.environ.get("RANK", "")).isdigit():
        raise UserError(f"WORLD_SIZE is {asked_for()} but RANK is {number!r}: start several processes with torchrun")
    return int(number)


@contextmanager
def joined(device: torch.device, seconds: float) -> Iterator[None]:
    """Inside, the processes that torchrun started know each other. seconds: how long one waits for the others in a step before
    it gives up; the first meeting may take ten minutes."""
    if asked_for() == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
        wait = timedelta(seconds=seconds)
        GROUPS["device"], GROUPS["host"] = dist.new_group(timeout=wait), dist.new_group(timeout=wait, backend="gloo")
        yield
        dist.barrier(group=GROUPS["host"])  # the first one saves last
    except RuntimeError as error:  # DistBackendError of gloo's connections and NCCL's watch is one
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "connection" in str(error).lower():
            raise LostError(str(error)) from None
        raise
    finally:
        GROUPS.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


class LostError(RuntimeError):
    """Another process has ended, or did not answer in time. Exit code 4."""


def first_then_others(make: Callable[[], T]) -> T:
    """make() on the first rank, which may download, and then on the others."""
    if ranks() == 1:
        return make()
    made = make() if rank() == 0 else None
    dist.barrier()  # with the patience of the first meeting
    return make() if made is None else made


def share(batch: int, key: str) -> int:
    """A process's part of a batch; UserError where it cannot be shared equally."""
    if batch % ranks():
        raise UserError(f"{key} is {batch}: it must be a multiple of the {ranks()} processes that share it")
    return batch // ranks()


def mine(batch: Tensor, dim: int = 0) -> Tensor:
    """This process's part of a whole batch along a dimension."""
    return batch.chunk(ranks(), dim)[rank()] if ranks() > 1 else batch


class Gathered(torch.autograd.Function):
    """All ranks' rows in order; the gradient of each is the sum of what all ranks have for it.

    torch.distributed.nn.functional has the same under a warning that it will go.
    """

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(ranks())]
        dist.all_gather(parts, own.contiguous(), group=GROUPS["device"])
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.float() if gradient.dtype in (torch.bfloat16, torch.float16) else gradient.clone()
        dist.all_reduce(total, group=GROUPS["device"])
        return mine(total).to(gradient.dtype)


def gathered(own: Tensor) -> Tensor:
    """own [A, ..] -> [ranks * A, ..], this process's rows from rank() * A on; with gradient."""
    return Gathered.apply(own) if ranks() > 1 else own


def places(own: Tensor) -> Tensor:
    """Where the rows own [A, ..] stand among those of all ranks: [A]."""
    return torch.arange(len(own), device=own.device) + rank() * len(own)


def logmeanexp(scores: Tensor) -> Tensor:
    """log of the mean of exp over the entries of all ranks, as many on each: scores of any shape -> scalar, with gradient."""
    each = gathered(logsumexp(scores.flatten(), 0)[None])
    return each.logsumexp(0) - math.log(scores.numel() * ranks())


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """The mean over ranks of each entry."""
    if ranks() > 1:
        values = values.clone()
        dist.all_reduce(values, group=GROUPS["device"])
        values /= ranks()
    return values


@torch.no_grad()
def any_of(flags: Tensor) -> Tensor:
    """Where a flag is set on any rank."""
    if ranks() > 1:
        found = flags.to(torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=GROUPS["device"])
        return found.to(flags.dtype)
    return flags


def highest(number: int) -> int:
    """The largest number of all ranks; nothing waits for the device."""
    if ranks() > 1:
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=GROUPS["host"])
        return int(found)
    return number


def wrapped(model: nn.Module, device: torch.device, unused: bool) -> nn.Module:
    """The model whose forward pass all ranks make together. unused: whether parameters may be without gradient.

    No rank sends its buffers at each step, as DDP would: running statistics are each rank's own and a queue is the same on all.
    """
    if ranks() == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    options: dict = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    options |= {"device_ids": [device] if device.type == "cuda" else None, "process_group": GROUPS["device"]}
    return DistributedDataParallel(model, find_unused_parameters=unused, **options)


def dealt(n: int, batch: int) -> Tensor | slice:
    """Which of n rows this rank works on, in whole batches, so that each batch is the one that one process would make."""
    if ranks() == 1:
        return slice(None)
    return torch.cat([torch.zeros(0, dtype=torch.long), *torch.arange(n).split(batch)[rank() :: ranks()]])


@torch.no_grad()
def assembled(rows: Tensor, at: Tensor | slice, n: int) -> Tensor:
    """rows [m, D] of this rank, which stand at these of n places -> those of all ranks [n, D]."""
    if ranks() == 1:
        return rows
    found = rows.new_zeros(n, *rows.shape[1:])
    found[at] = rows
    dist.all_reduce(found, group=GROUPS["device"])
    return found


@torch.no_grad()
def as_first(module: nn.Module) -> None:
    """Give every rank the running statistics of the first, which are the ones that are saved and measured."""
    if ranks() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0, group=GROUPS["device"])


def from_first(make: Callable[[], dict | None]) -> dict | None:
    """What make() returns on the first rank, tensors and numbers and text, on all; its UserError there ends all of them."""
    if ranks() == 1:
        return make()
    content, failure = b"", None
    if rank() == 0:
        try:
            buffer = io.BytesIO()
            torch.save(make(), buffer)
            content = buffer.getvalue()
        except UserError as error:
            failure = error
    place = "cuda" if dist.get_backend() == "nccl" else "cpu"
    size = torch.tensor(-1 if failure else len(content), device=place)
    dist.broadcast(size, 0, group=GROUPS["device"])
    if failure:
        raise failure
    if size < 0:
        raise UserError("the first process says why")
    sent = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(int(size), dtype=torch.uint8)
    sent = sent.to(place)
    dist.broadcast(sent, 0, group=GROUPS["device"])
    return torch.load(io.BytesIO(sent.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
