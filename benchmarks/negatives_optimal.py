"""Estimators at the best critic of correlated Gaussians, against theory: mean and standard deviation over draws, for each K.

python benchmarks/negatives_optimal.py             a JSON for each information in results/negatives_optimal; these are kept
python benchmarks/negatives_optimal.py --table     the table and results/negatives_optimal.png of what is there
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dim.checkpoint import save_json  # noqa: E402
from dim.estimators import ESTIMATORS  # noqa: E402
from dim.figures import drawing  # noqa: E402
from dim.figures.drawing import Curve, Level, Lines, number  # noqa: E402
from dim.gaussian import correlation, log_ratio  # noqa: E402
from dim.randomness import generator  # noqa: E402

INFORMATION, D, ANCHORS, DRAWS = (2, 4, 6), 20, 64, 200
KS = tuple(4**i for i in range(7))  # 1 .. 4096
NAMES = ("jsd", "dv", "dv_per_anchor", "infonce", "nwj")
OWN = "own"
RESULTS = ROOT / "results" / "negatives_optimal"
MANY = 1_000_000  # draws of the expectations that have no closed form


def measure(information: float, draws: int = DRAWS) -> dict:
    """{name: {K: {"mean", "sd"}}} over draws of a batch, "own" being the mean of own scores, whatever K.

    Every negative of every anchor is a vector of its own. The first K of a draw's negatives serve for each K, in float64.
    """
    rho, values = correlation(information, D), {name: {k: [] for k in KS} for name in (*NAMES, OWN)}
    for draw in tqdm(range(draws), desc=f"{information} nats", disable=None, leave=False):
        pos, neg = scores(ANCHORS, max(KS), rho, draw)
        for k in KS:
            values[OWN][k].append(pos.mean().item())
            for name in NAMES:
                values[name][k].append(ESTIMATORS[name](pos, neg[:, :k]).item())
    return {name: {k: moments(row) for k, row in by_k.items()} for name, by_k in values.items()}


def scores(anchors: int, k: int, rho: float, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best critic's scores of a batch: pos [A, 1], neg [A, K], float64."""
    draws = generator(0, "best critic", draw)
    x, e = torch.randn(2, anchors, 1, D, generator=draws, dtype=torch.float64)
    pos = log_ratio(x, rho * x + math.sqrt(1 - rho**2) * e, rho)
    neg = [log_ratio(one, torch.randn(k, D, generator=draws, dtype=torch.float64), rho) for one in x]  # [K] for each anchor
    return pos, torch.stack(neg)


def moments(values: list[float]) -> dict:
    row = torch.tensor(values, dtype=torch.float64)
    return {"mean": row.mean().item(), "sd": row.std().item()}


def theory(information: float) -> dict:
    """What mean and sd should be: {"nwj": {"mean", "sd": {K: ..}}, "jsd": {"mean"}, "dv_per_anchor at 1": ..}, D pairs.

    nwj: mean I, variance d rho^2 / A + (e^(2 I) - 1) / (A K). jsd: twice the Jensen-Shannon divergence whatever K, by MANY
    draws of each kind of pair. dv_per_anchor with one negative:
    d rho^2 / (1 - rho^2), I plus the reverse divergence.
    """
    rho = correlation(information, D)
    draws = generator(1, "own pairs", int(information * 1000))
    x, e = torch.randn(2, MANY, D, generator=draws, dtype=torch.float64)
    own = log_ratio(x, rho * x + math.sqrt(1 - rho**2) * e, rho)
    other = log_ratio(x, torch.randn(MANY, D, generator=draws, dtype=torch.float64), rho)
    softplus = torch.nn.functional.softplus
    jsd = 2 * math.log(2) - softplus(-own).mean().item() - softplus(other).mean().item()
    variance = {k: D * rho**2 / ANCHORS + math.expm1(2 * information) / (ANCHORS * k) for k in KS}
    return {
        "nwj": {"mean": information, "sd": {k: math.sqrt(v) for k, v in variance.items()}},
        "jsd": {"mean": jsd},
        "dv_per_anchor at 1": D * rho**2 / (1 - rho**2),
        "infonce at most": {k: min(information, math.log(k + 1)) for k in KS},
    }


def sampled(content: dict, k: int) -> str:
    """What the draws show of the part of nwj's standard deviation that is due to negatives, sqrt((e^(2 I) - 1) / (A K)): "82%".

    "hidden" where its variance is less than twice the error of that of own scores, from which it is told by subtraction.

    The n-th moment of the ratio is finite for rho < 1 / (n - 1) alone, so from rho = 1/3 on, which all of these pass, the
    sampled variance has no variance itself: it comes in rare large draws, and most series read too little.
    """
    measured, own = (content["measured"][name][str(k)]["sd"] ** 2 for name in ("nwj", OWN))
    due = math.expm1(2 * content["information_nats"]) / (content["anchors"] * k)
    if due < 2 * own * math.sqrt(2 / (content["draws"] - 1)):
        return "hidden"
    return f"{math.sqrt(max(measured - own, 0) / due):.0%}"


def table(found: dict[float, dict]) -> str:
    """Mean (sd) of each estimator beside theory, Markdown."""
    head = ["nats", "K", *NAMES, "log(K + 1)", "nwj's sd in theory", "of its negatives' part drawn"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for information, content in found.items():
        for k in KS:
            cells = [content["measured"][name][str(k)] for name in NAMES]
            spread = [f"{content['theory']['nwj']['sd'][str(k)]:.3g}", sampled(content, k)]
            words = [f"{cell['mean']:.3f} ({cell['sd']:.3f})" for cell in cells]
            lines.append(f"| {' | '.join([f'{information:g}', str(k), *words, f'{math.log(k + 1):.3f}', *spread])} |")
    lines += ["", "| nats | jsd in theory, any K | dv_per_anchor at K = 1 in theory |", "| --- | --- | --- |"]
    for information, content in found.items():
        t = content["theory"]
        lines.append(f"| {information:g} | {t['jsd']['mean']:.4f} | {t['dv_per_anchor at 1']:.3f} |")
    return "\n".join(lines)


def draw(found: dict[float, dict]) -> Path:
    """results/negatives_optimal.png"""
    panels = []
    along = "K, negatives of each anchor (log scale)"
    for information, content in found.items():
        shown = [name for name in NAMES if name not in ("jsd",)]
        curves = [line(content["measured"][name], name, "mean", NAMES.index(name)) for name in shown]
        top = [math.log(k + 1) for k in KS]
        curves.append(Curve("log(K + 1)", KS, top, grey=True))
        truth = Level(f"the truth, {information:g} nats", information)
        panels.append(Lines(f"mean at {information:g} nats", along, "nats", curves, [truth], log_x=True))
    ends = [line(content["measured"]["jsd"], f"{i:g} nats:", "mean", n) for n, (i, content) in enumerate(found.items())]
    levels = [Level("2 log 2", 2 * math.log(2))]
    levels += [Level(f"theory at {i:g} nats", content["theory"]["jsd"]["mean"]) for i, content in found.items()]
    panels.append(Lines("mean of jsd", along, "2 JS", ends, levels, log_x=True))
    for information, content in found.items():
        curves = [line(content["measured"][name], name, "sd", NAMES.index(name)) for name in NAMES]
        nwj = content["theory"]["nwj"]["sd"]
        curves.append(Curve("nwj in theory", KS, [nwj[str(k)] for k in KS], grey=True))
        panels.append(Lines(f"standard deviation of a batch at {information:g} nats", along, "", curves, log=True, log_x=True))
    caption = [
        f"Best critic of {D} pairs of correlated Gaussians, {DRAWS} batches of A = {ANCHORS} anchors, each with K negatives of "
        "its own, so A K in all: dv takes one logarithm over these, dv_per_anchor one over each K.",
        "InfoNCE stays below log(K + 1) and rises with K; jsd's mean does not depend on K; dv reads above the truth with few "
        "negatives; where nwj's measured standard deviation lies below theory the rare large ratios were not drawn.",
    ]
    return drawing.save(ROOT / "results" / "negatives_optimal.png", "Estimators at the best critic", panels, caption)


def line(by_k: dict, name: str, what: str, look: int) -> Curve:
    values = [by_k[str(k)][what] for k in KS]
    return Curve(f"{name} {number(values[-1])}", KS, values, look=look)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    if not parser.parse_args().table:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        RESULTS.mkdir(exist_ok=True)
        for information in INFORMATION:
            path = RESULTS / f"{information}_nats.json"
            if not path.exists():
                about = {"information_nats": information, "pairs": D, "anchors": ANCHORS, "draws": DRAWS, "commit": commit}
                save_json(path, about | {"measured": measure(information), "theory": theory(information)})
    found = {i: json.loads(path.read_text()) for i in INFORMATION if (path := RESULTS / f"{i}_nats.json").exists()}
    print(table(found), f"\nsaved as {draw(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
