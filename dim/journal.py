"""The journal: what a run leaves in its folder while it is trained, checkpoint, log and summary, and what it tells wandb.

checkpoint.pt, checkpoint.before.pt    the state to continue from, and the one before it
metrics.jsonl, summary.json            a line each time the log is due; the last and the best of them
epoch-N/, best/                        copies that stay: every run.keep_every epochs, and of the best quick probe
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from dim import checkpoint, distributed, metrics, tracking
from dim.config import Config
from dim.guard import DivergedError
from dim.reading import one_line
from dim.state import Run, circumstances, continued, settings

PROBE = "probe/fc_accuracy"
PATIENCE = 3  # saves in a row that a full disk may refuse


class Journal:
    """The folder of one run. facts: of the images that train it; steps: of the whole run. Of several processes the first one
    reads and writes."""

    def __init__(
        self,
        run: Run,
        config: Config,
        facts: dict,
        folder: Path,
        device: torch.device,
        steps: int,
        epoch_steps: int,
        warn: Callable[[str], None],
    ):
        """Continue the run in the folder, if there is one; else its first state is saved before the first step, so that a
        folder or a disk that does not take it is known before hours are spent. OSError then."""
        self.run, self.config, self.facts, self.folder, self.warn = run, config, facts, folder, warn
        self.device, self.steps, self.epoch_steps, self.refused = device, steps, epoch_steps, 0
        self.writes = distributed.rank() == 0
        state = distributed.from_first(lambda: checkpoint.load(folder, warn) if checkpoint.exists(folder) else None)
        if state is not None:
            continued(run, state, config, facts, device, folder, warn)
        if not self.writes:
            return
        if state is not None:
            checkpoint.make_newest(folder, run.step)
        self.log = metrics.JsonLines(folder / "metrics.jsonl", run.log_length)
        self.tracker = tracking.start(config, folder, run.tracking_id, warn)
        run.tracking_id = self.tracker.id
        if run.step:
            self.beside()  # it may have been killed before these were written
        else:
            self.save()
            self.room()

    def write(self, row: dict) -> None:
        """A line of the log."""
        if self.writes:
            self.log.write(row)
            self.tracker.log(row)

    def save(self, last: bool = False) -> None:
        """The state as it is now; a warning where the disk does not take it, OSError the third time in a row or where it is
        the last chance."""
        if not self.writes:
            return
        if not self.run.finite():
            raise DivergedError(f"step {self.run.step - 1}: the update made weights that are not finite; {self.kept()}")
        left_out = "not saved"
        try:
            self.run.log_length = self.log.flush()
            about = {"steps": self.steps, "data": self.facts, "config": settings(self.config)}
            about |= {"versions": circumstances(self.device, self.config)}
            checkpoint.save(self.folder, self.run.state_dict() | about)
            left_out = "saved, but not what goes with it"
            self.beside()
            self.refused = 0
        except OSError as error:
            self.refused += 1
            if self.refused == PATIENCE or last or self.run.step in (0, self.steps):
                raise
            self.warn(f"step {self.run.step}: {one_line(str(error))}; {left_out}, the run goes on")

    def beside(self) -> None:
        """What goes with a checkpoint: the summary, and copies where they are due."""
        rows = list(self.log.rows())
        so_far = metrics.last_and_best(rows, self.run.step, self.steps)
        checkpoint.save_json(self.folder / "summary.json", so_far)
        self.tracker.summarise(so_far)
        if self.keeps():
            checkpoint.keep(self.folder, self.folder / f"epoch-{self.run.step // self.epoch_steps}")
        if rows and rows[-1]["step"] == self.run.step and rows[-1].get(PROBE) == metrics.rounded(self.run.best):
            checkpoint.keep(self.folder, self.folder / "best")

    def keeps(self) -> bool:
        """Whether a copy of the state after this step is to stay."""
        every = self.config.run.keep_every * self.epoch_steps
        return every > 0 and 0 < self.run.step < self.steps and self.run.step % every == 0

    def keep_best(self, row: dict) -> None:
        """Save and keep a copy where the quick probe is better than ever."""
        if row[PROBE] > self.run.best:
            self.run.best = row[PROBE]
            self.save()

    def room(self) -> None:
        """OSError where the disk has not room for what the run will hold at once: this state, the one before, the next one."""
        size = (self.folder / checkpoint.NEWEST).stat().st_size
        if (free := shutil.disk_usage(self.folder).free) < 3 * size:
            raise OSError(errno.ENOSPC, f"{self.folder} has room for {free:,} bytes, and three checkpoints need {3 * size:,}")

    def kept(self) -> str:
        """Where the last good state is."""
        path = self.folder / checkpoint.NEWEST
        return f"last good state: {path if path.exists() else 'none'}"

    def finish(self) -> None:
        """The run is complete."""
        if self.writes:
            self.tracker.finish()
