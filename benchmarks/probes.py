"""Linear probes beside scikit-learn's: python benchmarks/probes.py --data DIR [--images 10000] [--repeats 3] [--json FILE]

Run from the repository root, on an idle machine. Features are CIFAR-10's by the untrained encoder of seed 0, fc (1,024
numbers), standardised by the training images: the first --images training images to fit on, the 10,000 test images to score.

    svm        squared hinge, one class against the rest: dim's Newton steps, and LinearSVC with the same C, its own choice of
               the dual or the primal problem, tolerance 1e-4, iterations until it has converged
    linear     logistic regression: dim's conditioned L-BFGS, and LogisticRegression with the same C, tolerance 1e-4

Both in one process, in turn, float32 for dim and for scikit-learn what it makes of float32; CPU seconds of the process.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from step_parts import describe, machine, markdown, settle  # beside this file; makes dim importable
from torch import Tensor
from tqdm import tqdm

from dim.config import Data
from dim.data import Split
from dim.datasets import cifar10
from dim.encoders import Encoder
from dim.evals import linear, svm
from dim.evals.features import features, set_statistics
from dim.evals.protocol import standardised

MOST = 1_000_000  # iterations that scikit-learn may take
PENALTIES = {"svm": (1e-4, 1e-3, 1e-2), "linear": (1e-3, 1e-2, 1e-1)}  # C


def of_cifar(root: str, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, labels of training images; x, labels of test images: fc of the untrained encoder, standardised."""
    torch.manual_seed(0)
    data = cifar10(Data(name="cifar10", root=root))
    train = Split(data.train.images[:images], data.train.labels[:images])
    encoder = set_statistics(Encoder("basic32x32", 3), data, train)
    x, x_test = (features(encoder, data, split, layers=("fc",))["fc"] for split in (train, data.test))
    x, x_test = standardised(x, x_test)
    return x, train.labels, x_test, data.test.labels


def ours(kind: str, penalty: float, x: Tensor, labels: Tensor) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Predictions, and whether the fit converged."""
    probe = {"svm": svm.fit, "linear": linear.fit}[kind](x, labels, penalty)
    return probe.predict, probe.converged


def theirs(kind: str, penalty: float, x: Tensor, labels: Tensor) -> tuple[Callable[[Tensor], Tensor], bool]:
    """The same of scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    makers = {
        "svm": lambda: LinearSVC(C=penalty, loss="squared_hinge", dual="auto", tol=1e-4, max_iter=MOST),
        "linear": lambda: LogisticRegression(C=penalty, tol=1e-4, max_iter=MOST),
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = makers[kind]().fit(x.numpy(), labels.numpy())
    converged = not any("converge" in str(warning.message) for warning in told)
    return lambda some: torch.from_numpy(model.predict(some.numpy())), converged


WAYS = {"dim": ours, "scikit-learn": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--data", required=True, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="fits of each way")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    settle(args.threads)
    x, labels, x_test, labels_test = of_cifar(args.data, args.images)
    on = machine("cpu")
    print("## Linear probes beside scikit-learn's\n")
    print(f"{len(x):,} x {x.shape[1]:,} features, {args.repeats} turns; {', '.join(describe(on))}\n")
    found = []
    cases = [(kind, penalty) for kind, penalties in PENALTIES.items() for penalty in penalties]
    for kind, penalty in tqdm(cases, disable=None, leave=False):
        one: dict = {"kind": kind, "C": penalty, "seconds": []}
        for turn in range(args.repeats):
            taken = {}
            for way in list(WAYS)[:: 1 if turn % 2 else -1]:  # neither always follows the other
                begun = time.process_time()
                predict, converged = WAYS[way](kind, penalty, x, labels)
                taken[way] = time.process_time() - begun
                accuracy = (predict(x_test) == labels_test).double().mean().item()
                one[way] = {"accuracy": accuracy, "converged": converged}
            one["seconds"].append(taken)
        one["ratios"] = [turn["scikit-learn"] / turn["dim"] for turn in one["seconds"]]
        found.append(one)
    rows = []
    for one in found:
        times = [f"{statistics.median(turn[way] for turn in one['seconds']):.2f}" for way in WAYS]
        scores = [f"{one[way]['accuracy']:.2%}" for way in WAYS]
        ratio = f"x{statistics.median(one['ratios']):.1f} [{min(one['ratios']):.1f}..{max(one['ratios']):.1f}]"
        doubts = ", ".join(way for way in WAYS if not one[way]["converged"]) or "none"
        rows.append([f"{one['kind']}, C {one['C']:g}", *times, ratio, *scores, doubts])
    names = ["probe", "dim, CPU s", "scikit-learn", "ratio", "dim, test accuracy", "scikit-learn", "not converged"]
    print(markdown(names, rows))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key not in ("json", "data")}
        args.json.write_text(json.dumps({"machine": on, "options": options, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
