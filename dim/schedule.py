"""Learning rates over a run: functions of the step that return a factor of the base rate."""

import math


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """From 1 at step 0 along half a cosine towards 0 at `steps` (Loshchilov & Hutter 2017, without restarts)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


SCHEDULES = {"constant": constant, "cosine": cosine}
