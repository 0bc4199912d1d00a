"""Source-free adaptation: a trained classifier moved to other images without their labels and without its own training data.

The encoder moves, its BatchNorm statistics too; the head stays as it is, as in SHOT (Liang, Hu & Feng 2020). Targets to try it
on are made here: images with noise or with little contrast, and classes of unequal sizes.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from dim.config import UserError
from dim.data import Dataset, Images, Split
from dim.evals.features import set_statistics
from dim.evals.finetune import (
    Classifier,
    View,
    accuracies,
    any_of,
    check,
    finished,
    stream,
    unlabelled_loss,
    unlabelled_pictures,
    view_for,
)
from dim.randomness import generator


@dataclass(frozen=True)
class Adaptation:
    """How a classifier is adapted; the defaults are the protocol.

    losses: weights by name, of `finetune.LOSSES`; diversity: of the information loss, 1 in SHOT; steps of Adam at
    learning rate lr, each on `batch` images; seed: of their order and augmentations. At lr 1e-4 a thousand steps lose on
    CIFAR-10 what the target's statistics bring back (results/few_labels.md).
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"information": 1.0})
    diversity: float = 0.1
    steps: int = 1000
    seed: int = 0
    batch: int = 64
    lr: float = 1e-5

    def __post_init__(self):
        check(self.losses, self.seed, steps=self.steps, batch=self.batch)
        if not any_of(self.losses):
            raise UserError("losses has no weight above 0: there is nothing to adapt by")


def adapt(classifier: Classifier, data: Dataset, view: View | None = None, **settings) -> dict:
    """Accuracy on the target's test images before and after adaptation; settings are those of `Adaptation`.

    data: the target; of its training images no label is read. The classifier is not changed. Returns {"before", "statistics",
    "after": each {"accuracy", "class_accuracy"} as in `dim.evals.finetune.accuracies`, and every setting}: "statistics" is the
    classifier whose BatchNorm statistics alone are those of the target, which may be most of the gain.
    """
    how = Adaptation(**settings)
    statistics = copy.deepcopy(classifier)
    set_statistics(statistics.encoder, data, data.pretraining)
    models = {"before": classifier, "statistics": statistics, "after": adapted(classifier, data, view, how)}
    return {name: accuracies(model, data) for name, model in models.items()} | {"augmented": view is not None, **asdict(how)}


def adapted(classifier: Classifier, data: Dataset, view: View | None = None, how: Adaptation | None = None) -> Classifier:
    """A copy of the classifier adapted to the training images of the target, in eval mode; its head is that of the original.

    view: makes the augmentations that losses of `finetune.PAIRED` compare; the images are otherwise seen as they are.
    """
    how = Adaptation() if how is None else how
    view_for(how.losses, view)
    model = copy.deepcopy(classifier).train().requires_grad_()
    model.head.requires_grad_(False)
    optimizer = torch.optim.Adam(model.encoder.parameters(), how.lr, fused=True)
    images = stream(data.pretraining.to(next(model.parameters()).device), how.batch, how.steps, how.seed)
    for step in tqdm(range(how.steps), disable=None, leave=False, desc="adapting", unit="step"):
        parts = unlabelled_pictures(model, data, next(images), view, how.losses, how.seed, step)
        loss = unlabelled_loss(how.losses, how.diversity, *model(torch.cat(parts)).split([len(part) for part in parts]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return finished(model, f"lr {how.lr:g}")


def noise(images: Tensor, draws: torch.Generator, levels: int = 255, sd: float = 0.1) -> Tensor:
    """Gaussian noise on every value: uint8 [n, C, H, W] in 0 .. levels -> the same; sd as a share of levels.

    0.1 is the strongest of CIFAR-10-C (Hendrycks & Dietterich 2019).
    """
    drawn = torch.randn(images.shape, generator=draws).to(images.device)
    return (images + sd * levels * drawn).round().clamp(0, levels).to(torch.uint8)


def contrast(images: Tensor, draws: torch.Generator, levels: int = 255, share: float = 0.15) -> Tensor:
    """Differences from each channel's mean over the image cut to a share: uint8 [n, C, H, W] -> the same; nothing is drawn.

    0.15 is the strongest of CIFAR-10-C.
    """
    values = images.float()
    means = values.mean((2, 3), keepdim=True)
    return torch.lerp(means, values, share).round().clamp(0, levels).to(torch.uint8)


CORRUPTIONS = {"noise": noise, "contrast": contrast}


def corrupted(data: Dataset, kind: str, seed: int = 0) -> Dataset:
    """A data set with all its images corrupted, by name, held in memory; an image's noise is a function of seed and place."""
    if kind not in CORRUPTIONS:
        raise UserError(f"corruption is {kind!r}: choose among {', '.join(CORRUPTIONS)}")

    def part(images: Images, name: str) -> Split:
        chunks = enumerate(images.batches(torch.arange(len(images)), 500))  # as float32 at once they would be four times larger
        made = [CORRUPTIONS[kind](chunk, generator(seed, f"{kind}, {name}", i), data.levels) for i, chunk in chunks]
        return Split(torch.cat(made), images.labels, images.names)

    unlabelled = None if data.unlabelled is None else part(data.unlabelled, "unlabelled")
    return replace(
        data, name=f"{data.name}, {kind}", train=part(data.train, "train"), test=part(data.test, "test"), unlabelled=unlabelled
    )


def unbalanced(data: Dataset, ratio: float = 0.1, seed: int = 0) -> Dataset:
    """A data set with classes of unequal sizes, training and test images alike, held in memory.

    Of class c of C it keeps the share ratio^(c / (C - 1)), drawn, at least one image: all of the first and `ratio` of the last
    (the long tail of Cui et al. 2019). Images without labels are left out.
    """
    if not 0 < ratio <= 1:
        raise UserError(f"ratio is {ratio}: it must be above 0 and at most 1")

    def part(images: Images, name: str) -> Split:
        labels = images.labels.cpu()
        shuffled = torch.randperm(len(labels), generator=generator(seed, f"unbalanced, {name}"))
        members = [shuffled[labels[shuffled] == c] for c in range(data.classes)]
        sizes = [max(1, round(len(m) * ratio ** (c / max(1, data.classes - 1)))) for c, m in enumerate(members)]
        kept = torch.cat([m[:size] for m, size in zip(members, sizes, strict=True)]).sort().values
        return Split(torch.cat([*images.batches(kept, 500)]), labels[kept])

    train, test = part(data.train, "train"), part(data.test, "test")
    return replace(data, name=f"{data.name}, unbalanced", train=train, test=test, unlabelled=None, folds=())
