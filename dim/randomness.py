"""Randomness is a function, not a state: every draw follows from the seed, its purpose and its place in the run.

So nothing of it needs to be saved, and a picture, a negative or a prior sample does not depend on batch size, on workers
or on what else was drawn before.
"""

import hashlib

import torch


def generator(seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose draws depend on (seed, purpose, place) alone, for one device.

    The key is hashed, so neighbouring seeds, epochs or steps share nothing.
    """
    key = hashlib.blake2b(repr((seed, purpose, *place)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)


def order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """The order of n samples in an epoch: a permutation of 0 .. n - 1."""
    return torch.randperm(n, generator=generator(seed, "order", epoch))
