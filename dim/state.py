"""A run's state: all that changes while it is trained, as one object that is saved and loaded."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from dim import __version__, distributed
from dim.average import Average
from dim.config import Config, UserError, flat
from dim.guard import Guard
from dim.reading import ELSEWHERE


@dataclass
class Run:
    """What is trained, what trains it, and where it stands. Order, views, negatives, prior samples and learning rates are
    functions of the seed and the step, so of them there is nothing to save."""

    encoder: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    guard: Guard
    prior_optimizer: torch.optim.Optimizer | None = None
    average: Average | None = None
    step: int = 0  # done
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the values since the last line of the log
    log_length: int = 0  # bytes of metrics.jsonl
    tracking_id: str = ""
    best: float = 0.0  # quick probe so far

    def parts(self) -> dict:
        """What has a state of its own, by name."""
        names = ("encoder", "objective", "optimizer", "prior_optimizer", "average", "guard")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: part for name, part in self.parts().items() if name.endswith("optimizer")}

    def state_dict(self) -> dict:
        numbers = {name: getattr(self, name) for name in ("step", "sums", "log_length", "tracking_id", "best")}
        return {name: part.state_dict() for name, part in self.parts().items()} | numbers

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """ValueError, KeyError or RuntimeError where it is of another run."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.step, self.log_length = int(state["step"]), int(state["log_length"])
        self.tracking_id, self.best = str(state["tracking_id"]), float(state["best"])

    def add(self, values: dict[str, Tensor]) -> None:
        """Sum the values of a step until the log is due; those of a step that was left out count nothing."""
        values = values | {"steps": torch.ones_like(values["loss"])}
        over_ranks = distributed.mean(torch.stack([value.detach().to(values["loss"].dtype) for value in values.values()]))
        for name, value in zip(values, over_ranks.unbind(), strict=True):
            value = torch.where(self.guard.bad, 0, value) if self.guard.allowed else value
            self.sums[name] = value + self.sums.get(name, 0)

    def finite(self) -> bool:
        """Whether all weights, statistics and moments are; one read from the device, only before a save."""
        tensors = [t for part in self.parts().values() for t in numbers_in(part.state_dict())]
        by_device = {t.device: [one for one in tensors if one.device == t.device] for t in tensors}  # Adam may count on the CPU
        return all(bool(torch.stack([torch.isfinite(t).all() for t in some]).all()) for some in by_device.values())


def numbers_in(content) -> list[Tensor]:
    """All tensors of numbers with fractions in nested dicts and lists."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [t for part in content for t in numbers_in(part)]
    return [content] if isinstance(content, Tensor) and content.is_floating_point() else []


def circumstances(device: torch.device, config: Config) -> dict:
    """What the same bits need to be equal, beside the configuration."""
    on_gpu = device.type == "cuda"
    return {
        "dim": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "instructions": str(torch.version.cuda) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": distributed.ranks(),
        "precision": config.precision,
    }


def settings(config: Config) -> dict:
    """What a run is: its configuration without where it happens."""
    return {key: value for key, value in flat(config).items() if not key.startswith(ELSEWHERE)}


def same_images(before: dict, now: dict) -> bool:
    """Whether two facts of a data set are of the same images, by number, names and content."""
    files = before.get("files")
    equal = all(before.get(key) == now[key] for key in ("images", "content"))
    return equal and isinstance(files, Tensor) and torch.equal(files, now["files"])


def continued(
    run: Run, state: dict, config: Config, facts: dict, device: torch.device, folder: Path, warn: Callable[[str], None]
) -> None:
    """Load a saved state into a run. UserError, one line, where it is of other settings or other images or does not fit;
    one warning where circumstances have changed, so that not every bit will be that of a run never stopped."""
    old, new = settings(Config()) | state["config"], settings(config)  # what an older dim did not know is as it was
    if unknown := sorted(map(str, old.keys() - new.keys())):
        why = f"the checkpoint's configuration is not of this dim ({unknown[0]})"
        raise UserError(f"{folder}: {why}: train in another --run.dir")
    changed = [f"{key}: {old[key]} -> {value}" for key, value in new.items() if old[key] != value]
    if changed:
        raise UserError(f"{folder}: the checkpoint is of a run with another configuration: {'; '.join(changed[:3])}")
    if not same_images(before := state["data"], facts):
        raise UserError(
            f"{folder} was trained on {before.get('images', 0):,} images of {before.get('name')}, and these are "
            f"{facts['images']:,} or others: put the same files there, or train in another --run.dir"
        )
    try:
        run.load_state_dict(state, device)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = " ".join(str(error).split())[:80]
        raise UserError(f"{folder}: the checkpoint does not fit its configuration: {why}; train in another --run.dir") from None
    now = circumstances(device, config)
    then = state["versions"]
    if moved := [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]:
        warn(f"{folder} continues with {', '.join(moved)}: not every bit will be that of a run never stopped")
