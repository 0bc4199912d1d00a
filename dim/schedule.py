"""Learning rates over a run: functions of the step that return a factor of the base rate."""

import math
from collections.abc import Callable


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """From 1 at step 0 along half a cosine towards 0 at `steps` (Loshchilov & Hutter 2017, without restarts)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def warmed(schedule: Callable[[int, int], float], warmup: int) -> Callable[[int, int], float]:
    """The schedule times a line from 1 / warmup at step 0 to 1 at step warmup - 1."""
    return lambda step, steps: schedule(step, steps) * min(1, (step + 1) / max(1, warmup))


SCHEDULES = {"constant": constant, "cosine": cosine}
