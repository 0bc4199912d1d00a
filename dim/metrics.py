"""Metrics: what a run writes down, one JSON object a line, and the statistics of the code that show a collapse."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from dim.config import UserError
from dim.estimators import raised


class JsonLines:
    """A file of one JSON object a line; its length in bytes goes into the checkpoint, and a resumed run cuts back to it.

    A line that the disk does not take waits for the next one, so a disk that is full for a while costs no line.
    """

    def __init__(self, path: Path, length: int = 0):
        self.path = path
        with open(path, "ab") as file:
            if file.tell() < length:
                raise UserError(
                    f"{path} is shorter than the checkpoint beside it says: put it back, or train in another folder"
                )
            file.truncate(length)
        self.length, self.waiting = length, b""  # bytes

    def write(self, row: dict) -> None:
        """One row; floats keep six significant digits."""
        short = {key: rounded(value) if isinstance(value, float) else value for key, value in row.items()}
        self.waiting += json.dumps(short, allow_nan=False).encode() + b"\n"
        with suppress(OSError):  # flush tells of it, before a save counts on it
            self.flush()

    def flush(self) -> int:
        """Bring every row to the disk; its length then. OSError where it cannot be, and the file ends with a whole line."""
        if self.waiting:
            with open(self.path, "r+b") as file:
                file.truncate(self.length)  # what a failed attempt left
                file.seek(self.length)
                file.write(self.waiting)
                file.flush()
                os.fsync(file.fileno())
        self.length, self.waiting = self.length + len(self.waiting), b""
        return self.length

    def rows(self) -> list[dict]:
        """All rows so far, those of earlier processes too. UserError where a line is damaged."""
        found = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                raise UserError(f"{self.path}, line {number}, is damaged: put it back, or train in another folder") from None
        return found


def rounded(value: float) -> float:
    """A number as the log has it, with six significant digits."""
    return float(f"{value:.6g}")


def last_and_best(rows: list[dict], step: int, steps: int) -> dict:
    """What summary.json says of a run at `step` of `steps`: its last row and, where larger is better, its best values.

    {"step", "steps", "last": row, "best": {key: {"value", "step"}}}; of equal values the first. Bounds are those of training
    batches and accuracies those of validation images, so the best of many is a little flattered: nothing to report.
    """
    best: dict[str, dict] = {}
    for row in rows:
        for key, value in row.items():
            counts = value is not None and ("/bound_" in key or key.endswith("_accuracy"))
            if counts and (key not in best or value > best[key]["value"]):
                best[key] = {"value": value, "step": row["step"]}
    return {"step": step, "steps": steps, "last": rows[-1] if rows else {}, "best": best}


def means(sums: dict[str, Tensor], terms: list) -> dict:
    """Means over the steps summed; each bound beside its chance level, its ceiling (None: there is none) and its negatives.

    terms: `dim.build.TermFacts`. jsd is 2 x Jensen-Shannon divergence, the others nats of mutual information.
    """
    exact = {name: (value / sums["steps"]).item() for name, value in sums.items()}
    mean = {name: value if math.isfinite(value) else None for name, value in exact.items()}  # None: all steps were left out
    row = {"loss": mean["loss"], "gradient_norm": mean["gradient_norm"]}
    for t in terms:
        row[f"{t.name}/bound_{t.unit}"] = mean[t.name]
        row |= {f"{t.name}/chance_{t.unit}": 0.0, f"{t.name}/ceiling_{t.unit}": t.ceiling}
        row[f"{t.name}/negatives_per_anchor"] = t.negatives
        if f"{t.name}_slope" in mean:
            row[f"{t.name}/slope_penalty"] = mean[f"{t.name}_slope"]
    for owner in ("encoder", "discriminator"):
        if f"prior_{owner}" in mean:
            row[f"prior/{owner}_loss_nats"] = mean[f"prior_{owner}"]
    if "prior_gradient_norm" in mean:
        row["prior/gradient_norm"] = mean["prior_gradient_norm"]
    return row


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The Euclidean norm of all gradients of an optimizer's parameters, a scalar on the device."""
    return torch.nn.utils.get_total_norm(
        [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )


def bar_text(row: dict, terms: list) -> str:
    """A row as the progress bar shows it: speed, bounds with their ceilings, probe."""
    parts = [f"{row['images_per_second']:,.0f} img/s"]
    for t in terms:
        top = "" if t.ceiling is None else f" of {t.ceiling:.2f}"
        value = row[f"{t.name}/bound_{t.unit}"]
        parts.append(f"{t.name} {'-' if value is None else format(value, '.2f')}{top} {t.unit}")
    return ", ".join(parts + [f"{key} {value:.1%}" for key, value in row.items() if key.startswith("probe/")])


def code_statistics(y: Tensor) -> dict[str, float | None]:
    """How much of the code space a batch of codes y [N, d] fills.

    code/sd_min and code/sd_median: standard deviation of a dimension; code/dead_units: dimensions with less than 0.001;
    code/effective_rank: exp of the entropy of the shares of variance along the principal axes, 1 (all on a line, collapsed)
    to min(N - 1, d). None where the codes are not finite.
    """
    y = raised(y.detach())
    if not y.isfinite().all():  # of a step that was left out
        return dict.fromkeys(("code/sd_min", "code/sd_median", "code/dead_units", "code/effective_rank"))
    centred = y - y.mean(0)
    sd = centred.square().mean(0).sqrt()
    return {
        "code/sd_min": sd.min().item(),
        "code/sd_median": sd.quantile(0.5).item(),
        "code/dead_units": int((sd < 1e-3).sum()),
        "code/effective_rank": effective_rank(centred).item(),
    }


def effective_rank(centred: Tensor) -> Tensor:
    """exp of the entropy of the shares s_i^2 / sum s_j^2, s the singular values of centred [N, d]; 1 where all is 0.

    Roy & Vetterli 2007 take shares of s; shares of the variance s^2 fall to 1 sooner when one direction takes over.
    """
    variance = torch.linalg.svdvals(centred).square()
    share = variance / variance.sum().clamp_min(torch.finfo(variance.dtype).tiny)
    return torch.special.entr(share).sum().exp()
