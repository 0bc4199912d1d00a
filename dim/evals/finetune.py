"""Fine-tuning: the whole encoder and a linear head trained on few labels, with or without losses on unlabelled images.

The protocol is fixed by the defaults of `FineTuning`; which labels are used are the linear probe's draws. Nothing is chosen
during a run, and the test split is read once, at its end.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dim.config import UserError
from dim.data import Dataset, Images
from dim.evals.features import LAYERS, pictures
from dim.evals.protocol import label_draws
from dim.evals.unlabelled import consistency, information_maximisation, pseudo_labels, sharpened
from dim.randomness import generator

PAIRED = ("consistency", "sharpened")  # compare an image with its augmentation
LOSSES = ("information", "pseudo", *PAIRED)


class View(Protocol):
    """An augmentation, as `dim.build.views` makes them: images [N, C, H, W] in [0, 1], draws [N, draws] -> images."""

    @property
    def draws(self) -> int: ...

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FineTuning:
    """How a classifier is fine-tuned; the defaults are the protocol.

    layer: conv, fc or y, flattened, which the head reads; steps of Adam at learning rates encoder_lr and lr (the head's); seed:
    of the label draw, the head's first weights, orders and augmentations; losses: weights on unlabelled images by name, of
    LOSSES, 0 where not named; diversity: of the information loss; batch: labelled images a step (all, where there are fewer);
    unlabelled_batch: unlabelled ones, only where a loss has a weight.
    """

    layer: str = "fc"
    steps: int = 1500
    seed: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    diversity: float = 0.1
    batch: int = 32
    unlabelled_batch: int = 64
    lr: float = 1e-3
    encoder_lr: float = 3e-4

    def __post_init__(self):
        if self.layer not in LAYERS:
            raise UserError(f"layer is {self.layer!r}: choose among {', '.join(LAYERS)}")
        check(self.losses, self.seed, steps=self.steps, batch=self.batch, unlabelled_batch=self.unlabelled_batch)


class Classifier(nn.Module):
    """One layer of an encoder, flattened, and a linear head: x [N, C, H, W] -> logits [N, classes]."""

    def __init__(self, encoder: nn.Module, layer: str, head: nn.Linear):
        super().__init__()
        self.encoder, self.layer, self.head = encoder, layer, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(getattr(self.encoder(x), self.layer).flatten(1))


def finetune(
    encoder: nn.Module, data: Dataset, labels_per_class: int | Tensor | None, view: View | None = None, **settings
) -> dict:
    """Test accuracy of a copy of the encoder, fine-tuned on few labels of each class; settings are those of `FineTuning`.

    encoder: a module that returns `dim.encoders.Encoding`; it is not changed. The rest as in `finetuned`. Returns {"accuracy",
    "class_accuracy": as in `accuracies`, "chance": 1 / classes, "labels": how many in all, "labels_per_class", "augmented":
    whether there was a view, and every setting}; "labels_per_class" is None for labels given by their indices.
    """
    how = FineTuning(**settings)
    index = chosen_labels(data, labels_per_class, how.seed)
    per_class = None if isinstance(labels_per_class, Tensor) else labels_per_class
    facts = {"labels": len(index), "labels_per_class": per_class, "augmented": view is not None, **asdict(how)}
    return accuracies(finetuned(encoder, data, labels_per_class, view, how), data) | {"chance": 1 / data.classes} | facts


def finetuned(
    encoder: nn.Module,
    data: Dataset,
    labels_per_class: int | Tensor | None,
    view: View | None = None,
    how: FineTuning | None = None,
) -> Classifier:
    """The fine-tuned classifier, in eval mode where the encoder is; the encoder given is copied.

    labels_per_class: None for all labels; the indices of those used, such as an official fold; otherwise number `seed` of the
    draws over which the linear probe averages. view: changes the labelled images, and makes the augmentations that PAIRED
    losses compare; the other losses see the unlabelled images as they are. Those are `data.pretraining`, the labelled ones
    among them; their labels are never read. One pass sees all pictures of a step, as in UDA, so with losses BatchNorm's
    statistics are those of unlabelled images too. Same seed, same bits on a CPU.
    """
    how = FineTuning() if how is None else how
    view_for(how.losses, view)
    index = chosen_labels(data, labels_per_class, how.seed)
    model = first_classifier(encoder, data, how)
    device = next(model.parameters()).device
    groups = [
        {"params": [*model.encoder.parameters()], "lr": how.encoder_lr},
        {"params": [*model.head.parameters()], "lr": how.lr},
    ]
    optimizer = torch.optim.Adam(groups, fused=True)
    rows = index[places(len(index), min(how.batch, len(index)), how.steps, how.seed, "labelled images")]  # [steps, batch]
    labels = data.train.labels.cpu()[rows].to(device)
    labelled = data.train.to(device).batches(rows.flatten(), rows.shape[1])
    unlabelled = stream(data.pretraining.to(device), how.unlabelled_batch, how.steps, how.seed) if any_of(how.losses) else None
    for step in tqdm(range(how.steps), disable=None, leave=False, desc="fine-tuning", unit="step"):
        parts = [picture(model, data, next(labelled), view, how.seed, step, "labelled views")]
        if unlabelled is not None:
            parts += unlabelled_pictures(model, data, next(unlabelled), view, how.losses, how.seed, step)
        logits = model(torch.cat(parts)).split([len(part) for part in parts])
        loss = F.cross_entropy(logits[0], labels[step])
        if unlabelled is not None:
            loss = loss + unlabelled_loss(how.losses, how.diversity, *logits[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return finished(model, f"lr {how.lr:g} and encoder_lr {how.encoder_lr:g}")


def first_classifier(encoder: nn.Module, data: Dataset, how: FineTuning) -> Classifier:
    """A copy of the encoder with a head whose first weights are a function of the seed, in training mode."""
    encoder = copy.deepcopy(encoder).requires_grad_().to(memory_format=torch.channels_last)
    weight = next(encoder.parameters())
    with torch.no_grad():
        width = getattr(encoder.eval()(weight.new_zeros(1, *data.shape)), how.layer).numel()
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
        torch.manual_seed(generator(how.seed, "head", width, data.classes).initial_seed())
        head = nn.Linear(width, data.classes)
    return Classifier(encoder, how.layer, head.to(weight)).train()


def unlabelled_loss(losses: Mapping[str, float], diversity: float, logits: Tensor, augmented: Tensor | None = None) -> Tensor:
    """The weighted sum of the losses on unlabelled images: logits and, for PAIRED, augmented [n, classes] -> scalar."""
    total = logits.new_zeros(())
    if weight := losses.get("information"):
        total = total + weight * information_maximisation(logits, diversity)
    if weight := losses.get("pseudo"):
        total = total + weight * pseudo_labels(logits)
    if augmented is not None and (weight := losses.get("consistency")):
        total = total + weight * consistency(logits, augmented)
    if augmented is not None and (weight := losses.get("sharpened")):
        total = total + weight * sharpened(logits, augmented)
    return total


def unlabelled_pictures(
    model: nn.Module, data: Dataset, images: Tensor, view: View | None, losses: Mapping[str, float], seed: int, step: int
) -> list[Tensor]:
    """uint8 images as a classifier sees them and, where a loss compares them with these, their augmentations."""
    plain = [pictures(model, data, images)]
    return [*plain, picture(model, data, images, view, seed, step, "unlabelled views")] if paired(losses) else plain


def picture(model: nn.Module, data: Dataset, images: Tensor, view: View | None, seed: int, step: int, purpose: str) -> Tensor:
    """uint8 images as a classifier sees them, changed by a view whose draws are a function of (seed, purpose, step, place)."""
    if view is None:
        return pictures(model, data, images)
    weight = next(model.parameters())
    draws = torch.rand(len(images), view.draws, generator=generator(seed, purpose, step)).to(weight.device) * 2 - 1
    changed = view(data.units(images.to(weight.device), weight.dtype), draws)
    return data.normalised(changed).contiguous(memory_format=torch.channels_last)


def places(n: int, batch: int, steps: int, seed: int, purpose: str) -> Tensor:
    """Which of n images each step sees, int64 [steps, batch]: one shuffled pass over all of them after the other."""
    passes = range(-(-steps * batch // n))
    order = torch.cat([torch.randperm(n, generator=generator(seed, purpose, p)) for p in passes])
    return order[: steps * batch].view(steps, batch)


def stream(images: Images, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """A batch of uint8 images for each step, their order a function of the seed."""
    batch = min(batch, len(images))
    return images.batches(places(len(images), batch, steps, seed, "unlabelled images").flatten(), batch)


def chosen_labels(data: Dataset, per_class: int | Tensor | None, seed: int) -> Tensor:
    """Indices of the training images whose labels are used; UserError where a class has fewer."""
    labels = data.with_labels().train.labels.cpu()
    if isinstance(per_class, Tensor):
        return per_class.cpu()
    if per_class is None:
        return torch.arange(len(labels))
    fewest = int(labels.bincount(minlength=data.classes).min())
    if not 1 <= per_class <= fewest:
        raise UserError(f"labels_per_class is {per_class}: {data.name} has from 1 to {fewest} in each class, None for all")
    return label_draws(labels, per_class, seed + 1)[seed]


def check(losses: Mapping[str, float], seed: int, **at_least_1: int) -> None:
    """UserError for a loss that does not exist, a weight that is negative or not finite, a negative seed, a number below 1."""
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be at least 0")
    for name, weight in losses.items():
        if name not in LOSSES:
            raise UserError(f"losses has {name!r}: choose among {', '.join(LOSSES)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"losses gives {name} the weight {weight}: it must be finite and not negative")
    for name, value in at_least_1.items():
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")


def any_of(losses: Mapping[str, float]) -> bool:
    """Whether a loss on unlabelled images has a weight."""
    return any(losses.values())


def paired(losses: Mapping[str, float]) -> list[str]:
    """The losses with a weight that compare an image with its augmentation."""
    return [name for name in PAIRED if losses.get(name)]


def view_for(losses: Mapping[str, float], view: View | None) -> None:
    """UserError where such a loss lacks its augmentation."""
    if view is None and (names := paired(losses)):
        raise UserError(f"the {names[0]} loss compares an image with its augmentation: give a view, such as crop_flip")


def finished(model: Classifier, rates: str) -> Classifier:
    """The classifier in eval mode; UserError where training made weights that are not finite."""
    if not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
        raise UserError(f"training made weights that are not finite: lower {rates}")
    return model.eval()


@torch.no_grad()
def accuracies(model: Classifier, data: Dataset, batch: int = 500) -> dict[str, float]:
    """On the test split, in [0, 1]: {"accuracy": share of images, "class_accuracy": mean over classes of each one's share}."""
    was_training, labels = model.training, data.test.labels.cpu()
    model.eval()
    images = data.test.batches(torch.arange(len(labels)), batch)
    right = torch.cat([model(pictures(model, data, chunk)).argmax(1) for chunk in images]).cpu() == labels
    model.train(was_training)
    counts, hits = (part.bincount(minlength=data.classes).double() for part in (labels, labels[right]))
    there = counts > 0
    return {"accuracy": right.double().mean().item(), "class_accuracy": (hits[there] / counts[there]).mean().item()}
