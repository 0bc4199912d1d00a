"""Signals: a run that is asked to stop finishes its step and saves first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# exit codes; SIGUSR1 is what SLURM can be asked to send ahead of time
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class StopRequest(BaseException):  # no error, so nothing that waits for errors takes it for one
    """A run that was asked to stop has saved and stops, with the exit code of what asked."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextmanager
def noted() -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM or SIGUSR1 gives its exit code; a second Ctrl-C stops at once, as KeyboardInterrupt."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(CODES[signal.Signals(number)])

    with handled(note):
        yield asked


@contextmanager
def raised() -> Iterator[None]:
    """Inside, each of the signals raises StopRequest with its exit code, once."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(number)
            raise StopRequest("stopped", CODES[signal.Signals(number)])

    with handled(stop):
        yield


@contextmanager
def handled(handler) -> Iterator[None]:
    """Inside, the signals go to a handler; afterwards where they went before."""
    before = {number: signal.signal(number, handler) for number in CODES}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def left_to_the_parent() -> None:
    """For a process that works for a run: what reaches all processes of a terminal or of a job, the run decides on."""
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)
