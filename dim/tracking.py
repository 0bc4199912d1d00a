"""Tracking: the rows of metrics.jsonl in Weights & Biases too, where `run.wandb` asks for it.

A convenience beside a training run of hours, so nothing here may end one or hold it up for long: whatever fails, a key,
the network, the package, the disk, is one warning, and the run goes on. A resumed run continues its curve: its id is ours
and stands in the checkpoint, and each row carries its step. Rows that a killed run wrote behind its last checkpoint come
again: online wandb passes over steps that it has; offline each process writes a file of its own, and both hold them.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from dim.config import Config, flat
from dim.reading import one_line

Mode = Literal["online", "offline"]
PATIENCE = 10  # seconds for wandb to end its own process, where it failed
ATTEMPTS: dict[str, tuple[Mode, ...]] = {"online": ("online", "offline"), "offline": ("offline",)}

QUIET: dict[str, Any] = {  # no word on the terminal, and so no question for a key; nothing of code, machine and shell
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "symlink": False,
    "init_timeout": 20,  # seconds; wandb's own 90 would hold up a run without a network that long
    "finish_timeout": 60,  # seconds at the end of a run for rows not sent yet; they stay on the disk for `wandb sync`
}


class Tracker:
    """A run in wandb, or none; after its first failure none. `id` goes into the checkpoint, "" for a run never tracked."""

    def __init__(self, run: Any, id: str, warn: Callable[[str], None]):
        self.run, self.id, self.warn = run, id, warn

    def log(self, row: dict) -> None:
        """A row of metrics.jsonl, at its step."""
        self.attempt(lambda run: run.log(row, step=row["step"], commit=True))

    def summarise(self, summary: dict) -> None:
        """What `metrics.last_and_best` says; the last values wandb keeps itself."""
        self.attempt(lambda run: run.summary.update({"best": summary["best"]}))

    def results(self, numbers: dict[str, float], pictures: dict[str, Path]) -> None:
        """What an evaluation measured and drew, into the run's summary: numbers, and PNG files by name."""

        def act(run: Any) -> None:
            from wandb import Image

            run.summary.update({**numbers, **{name: Image(str(path)) for name, path in pictures.items()}})

        self.attempt(act)

    def finish(self) -> None:
        """The run is complete. One that ends otherwise is closed by wandb when the process ends, with its exit code."""
        self.attempt(lambda run: run.finish())
        self.run = None

    def attempt(self, act: Callable[[Any], object]) -> None:
        """Do this with the run; the first failure is said and is the last."""
        try:
            if self.run is not None:
                act(self.run)
        except Exception as error:  # wandb raises many kinds, and none is worth the training
            self.run = None
            self.warn(f"run.wandb: {reason(error)}; the run goes on without wandb, metrics.jsonl has every row")
            let_go()


def start(config: Config, folder: Path, id: str, warn: Callable[[str], None]) -> Tracker:
    """The tracker of a run in its folder. id: the one in its checkpoint, "" for a new run."""
    mode = config.run.wandb
    if mode == "off":
        return Tracker(None, id, warn)
    id = id or secrets.token_hex(4)
    failures, run = [], None
    for attempted in ATTEMPTS[mode]:
        try:
            run = begin(config, folder, id, attempted)
            break
        except ImportError:
            failures.append("the package wandb cannot be imported (pip install wandb)")
        except Exception as error:  # as in Tracker.attempt
            failures.append(reason(error))
    if failures:
        way = "without wandb" if run is None else "offline; later: wandb sync " + str(folder / "wandb" / "offline-run-*")
        warn(f"run.wandb is {mode}, but {failures[-1 if run is None else 0]}; the run goes on {way}")
    return Tracker(run, id, warn)


def begin(config: Config, folder: Path, id: str, mode: Mode) -> Any:
    """A wandb run with the flat configuration, its files in folder/wandb. Raises whatever wandb raises."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: no crash reports to wandb either
    import wandb

    settings = wandb.Settings(**QUIET)
    wandb.setup(settings)  # before init, which would speak before it reads its own settings
    try:
        return wandb.init(
            mode=mode,
            project=config.run.project,
            dir=folder,
            id=id,
            name=folder.name,
            resume="allow",
            reinit="finish_previous",
            config=flat(config),
            settings=settings,
        )
    except Exception:
        let_go()  # else the id counts as taken in a second attempt
        raise


def let_go() -> None:
    """Have wandb end its own process now: when ours ends it would try again, with a traceback where that process is lost, and
    for as long as it takes. Here it may take PATIENCE seconds, and the exit that it may ask for is that of a thread alone."""

    def act() -> None:
        from wandb import teardown

        with suppress(BaseException):
            teardown()

    thread = Thread(target=act, daemon=True)
    thread.start()
    thread.join(PATIENCE)


def reason(error: Exception) -> str:
    """A failure in a few words."""
    return one_line(str(error) or type(error).__name__, 120).rstrip(".")
