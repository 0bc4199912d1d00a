"""Test the tests: plant each fault in a copy of the project and see which tests turn red.

python tests/plant_faults.py            prints a Markdown table; exit code 1 if a fault goes unnoticed
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    """A mistake someone could make: in `file`, `right` becomes `wrong`; tests/test_<tests>.py should notice."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = (
    Fault("InfoNCE without the positive in its sum", "estimators", "torch.logaddexp(pos, others)", "others", "estimators"),
    Fault("InfoNCE's ceiling log K instead of log(K + 1)", "estimators", "math.log(k + 1)", "math.log(k)", "estimators"),
    Fault("JSD with positives and negatives exchanged", "estimators", "softplus(-pos).mean()", "softplus(pos).mean()", "estimators"),
    Fault("DV averages over anchors for the log", "estimators", "math.log(scores.numel())", "math.log(len(scores))", "estimators"),
    Fault(
        "a constant under the log, as in the official DV",
        "estimators",
        "scores.flatten().logsumexp(0) -",
        "(scores.flatten().logsumexp(0).exp() + 1e-6).log() -",
        "estimators",
    ),
    Fault("half-precision scores stay half", "estimators", "return scores.float() if", "return scores if", "estimators"),
    Fault("the own image among all negatives", "critics", "(others >= own[:, None])", "(others > own[:, None])", "critics"),
    Fault("scores of a table without their scale", "critics", "raised(a) * self.scale @", "raised(a) @", "critics"),
    Fault("a ReLU in the shortcut", "critics", "+ self.shortcut(x))", "+ F.relu(self.shortcut(x)))", "critics"),
    Fault("the own image among sampled negatives", "negatives", "(row >= own[:, None] * loc", "(row > own[:, None] * loc", "negatives"),
    Fault("sampled negatives with replacement", "negatives", "torch.randperm(others,", "torch.randint(others, (others,),", "negatives"),
    Fault("the same negatives at every step", "negatives", '"negatives", step,', '"negatives",', "negatives"),
    Fault("a shift of 0", "negatives", "torch.arange(1, self.k + 1,", "torch.arange(0, self.k,", "negatives"),
    Fault("the encoder helps the prior's adversary", "prior", "softplus(-functional_call", "softplus(functional_call", "prior"),
    Fault("the adversary's loss reaches the encoder", "prior", "self.squash(y.detach())", "self.squash(y)", "prior"),
    Fault("the encoder's loss reaches the adversary", "prior", "weight.detach() for", "weight for", "prior"),
    Fault("the penalty of the last sample only", "prior", ".square().sum(1).mean()", ".square().sum(1)[-1] / len(inputs)", "prior"),
    Fault("codes enter the uniform prior unsquashed", "prior", ".sigmoid() if", " if", "prior"),
    Fault("the estimate is minimised", "objective", "loss - self.beta *", "loss + self.beta *", "objective"),
    Fault("a view meets itself", "objective", "self.estimate(a1, b2,", "self.estimate(a1, b1,", "objective"),
    Fault("LayerNorm over the whole map", "norms", "return ChannelNorm(channels) if", "return nn.GroupNorm(1, channels) if", "encoders"),
    Fault("one draw for all images of a batch", "views", "draws = draws.to(images.dtype)", "draws = draws[:1].to(images.dtype).expand_as(draws)", "views"),
    Fault("C chosen with the test split", "evals/linear", "train[validation], labels[validation])", "test, test_labels)", "linear"),
    Fault("the probe standardised by all features", "evals/linear", "    mean = train.mean(0)\n    train, test", "    mean = torch.cat([train, test]).mean(0)\n    train, test", "linear"),
    Fault("no refit on the whole training split", "evals/linear", "[torch.arange(len(train))] if", "[fitting] if", "linear"),
    Fault("a probe that always says it converged", "evals/linear", "return self.gradient <= TOLERANCE", "return True", "linear"),
    Fault("an update with a gradient that is not finite", "guard", "optimizer.found_inf, ", "optimizer.found_, ", "train"),
    Fault("a resumed run draws the first batches again", "../train", "epoch, place = divmod(step, epoch_steps)", "epoch, place = divmod(step - start, epoch_steps)", "train"),
    Fault("a key given twice wins last", "reading", "if twice is not None:", "if False:", "config"),
)  # fmt: skip


def main() -> int:
    print("| fault | file | tests that turned red | first |\n|---|---|---|---|")
    unnoticed = 0
    for fault in tqdm(FAULTS, disable=None, unit="fault"):
        red = planted(fault)
        unnoticed += not red
        tqdm.write(
            f"| {fault.what} | `{shown(fault)}` | {len(red) or '**none**'} | {f'`{red[0]}`' if red else ''} |", file=sys.stdout
        )
    return int(unnoticed > 0)


def shown(fault: Fault) -> str:
    return "train.py" if fault.file == "../train" else f"dim/{fault.file}.py"


def planted(fault: Fault) -> list[str]:
    """The tests that fail with the fault in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dim"
        ignored = shutil.ignore_patterns(".*", "runs", "data", "results", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / "dim" / f"{fault.file}.py"
        text = path.read_text()
        if fault.right not in text:
            raise ValueError(f"{fault.what}: {fault.file}.py no longer holds {fault.right!r}")
        path.write_text(text.replace(fault.right, fault.wrong))
        words = ["-m", "pytest", f"tests/test_{fault.tests}.py", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True)
    return [
        line.split("::")[1].split(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR")) and "::" in line
    ]


if __name__ == "__main__":
    sys.exit(main())
