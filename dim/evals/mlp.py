"""A small network on frozen features: dropout, one hidden layer of 200 units with BatchNorm and ReLU, and the scores.

The same network under two protocols that are never compared: MLP is the clean one (the number of epochs chosen on
validation images, test read once), `paper` is the paper's (section 4.1: mean test accuracy of the last 100 epochs, which
reads the test split after every epoch), for comparison with the paper's tables only.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.evals.protocol import Kind
from dim.randomness import generator, order

HIDDEN = 200
LOOKS, PATIENCE = 100, 5  # at the validation images, and how many worse ones end the training
LOOK_STEPS = 10  # at least between two looks: with few labels an epoch is one step, and 100 are not enough
PAPER_EPOCHS, PAPER_LAST = 200, 100


class Recipe(NamedTuple):
    """How the network is trained. drops: epochs after which the rate is divided by 10."""

    dropout: float
    lr: float
    betas: tuple[float, float]
    batch: int
    drops: tuple[int, ...] = ()


CLEAN = Recipe(dropout=0.5, lr=1e-3, betas=(0.9, 0.999), batch=250)
PAPER = Recipe(dropout=0.1, lr=1e-4, betas=(0.5, 0.999), batch=64, drops=(50, 100))  # rdevon/DIM, classification_eval.py


def epochs(x: Tensor, labels: Tensor, count: int, recipe: Recipe, seed: int = 0) -> Iterator[nn.Module]:
    """The network after each of `count` epochs on x [n, D], in eval mode; its labels are places in labels.unique()."""
    target = labels.unique(return_inverse=True)[1]
    with torch.random.fork_rng():
        torch.manual_seed(generator(seed, "mlp").initial_seed())
        net = network(x.shape[1], int(target.max()) + 1, recipe.dropout).to(x.device, x.dtype)
    optimizer = torch.optim.Adam(net.parameters(), recipe.lr, recipe.betas, fused=True)
    batch = min(recipe.batch, len(x))
    for epoch in range(count):
        if epoch in recipe.drops:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        net.train()
        with torch.random.fork_rng():
            torch.manual_seed(generator(seed, "mlp", epoch).initial_seed())  # dropout
            for index in order(seed, epoch, len(x)).to(x.device).split(batch):
                if len(index) < batch:
                    break  # the last incomplete batch is dropped: BatchNorm wants more than one image
                optimizer.zero_grad()
                F.cross_entropy(net(x[index]), target[index]).backward()
                optimizer.step()
        yield net.eval()


class Dropout(nn.Module):
    """nn.Dropout, whose share is exact to 1 / 65,536, with four numbers of a mask from one draw of 64 bits.

    torch draws them one by one on a CPU, which took half of the network's time.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.share * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.share))


def network(width: int, classes: int, dropout: float) -> nn.Sequential:
    """features [n, width] -> scores [n, classes]; dropout before the hidden layer, as in the official code."""
    return nn.Sequential(
        Dropout(dropout),
        nn.Linear(width, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


def predicted(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """x [n, D] -> labels [n]."""
    with torch.no_grad():
        return classes[net(x).argmax(1)]


def search(x: Tensor, labels: Tensor, x_validation: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Predictions at the looks of one training, by the number of epochs."""
    classes, looks = labels.unique(), looks_of(len(x))
    for done, net in enumerate(epochs(x, labels, looks[-1], CLEAN), 1):
        if done in looks:
            yield done, predicted(net, x_validation, classes)


def looks_of(images: int) -> range:
    """The epochs after which validation images are looked at."""
    every = -(-LOOK_STEPS // max(1, images // CLEAN.batch))
    return range(every, LOOKS * every + 1, every)


def predict(
    x: Tensor, labels: Tensor, x_test: Tensor, count: float, subsets: Sequence[Tensor | None]
) -> Iterator[tuple[Tensor, bool]]:
    """Predictions after `count` epochs on each subset, each with first weights and an order of its own."""
    for seed, subset in enumerate(subsets):
        some, own = (x, labels) if subset is None else (x[subset], labels[subset])
        *_, net = epochs(some, own, int(count), CLEAN, seed)
        yield predicted(net, x_test, own.unique()), True


MLP = Kind(
    f"an MLP of {HIDDEN} hidden units, dropout {CLEAN.dropout:g}", "epochs", search, predict, patience=PATIENCE, open_end=True
)


PAPER_WORDS = (
    f"an MLP of {HIDDEN} hidden units, dropout {PAPER.dropout:g}, on frozen features, mean test accuracy of the last "
    f"{PAPER_LAST} of {PAPER_EPOCHS} epochs: the paper's protocol, which reads the test split after every epoch, to be "
    "compared with the paper only"
)


def paper(x: Tensor, labels: Tensor, x_test: Tensor, test_labels: Tensor) -> dict:
    """The paper's protocol: {"accuracy": mean over the last 100 of 200 epochs, in [0, 1], "sd": None, ..}.

    No validation part: it reads the test split after every epoch, and rates and dropout of the official code were set by it.
    """
    from tqdm import tqdm

    classes, scores, begun = labels.unique(), [], time.perf_counter()
    trained = epochs(x, labels, PAPER_EPOCHS, PAPER)
    for net in tqdm(trained, total=PAPER_EPOCHS, desc="paper's MLP", unit="epoch", disable=None, leave=False):
        scores.append((predicted(net, x_test, classes) == test_labels).double().mean())
    last = torch.stack(scores[-PAPER_LAST:])
    return {
        "accuracy": last.mean().item(),
        "sd": None,
        "lowest": last.min().item(),
        "highest": last.max().item(),
        "epochs": PAPER_EPOCHS,
        "converged": True,
        "seconds": time.perf_counter() - begun,
    }
