"""Unlabelled images: losses on a classifier's predictions that need no labels, to minimise.

Functions of logits [n, classes] of n images -> scalar, in nats. They stay finite for logits of +-1e4 and far beyond; logits in
half precision are raised to float32. Nothing in them tells right predictions from wrong ones: they make a classifier sure, of
its mistakes too, so they stand beside the cross-entropy of a few labels (`dim.evals.finetune`) or start from a trained
classifier (`dim.evals.adapt`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.estimators import raised


def information_maximisation(logits: Tensor, diversity: float = 0.1) -> Tensor:
    """Mean entropy of the predictions - diversity * entropy of the mean prediction: sure of each image, not the same for all.

    logits [n, classes] -> scalar, from -diversity * log(classes) to (1 - diversity) * log(classes) for a diversity of at most
    1. At 1 it is minus the mutual information of image and predicted class over these n images (Krause, Perona & Gomes 2010,
    RIM), so never above 0, and 0 where all predictions are equal. SHOT (Liang, Hu & Feng 2020, equation 3) minimises L_ent +
    L_div: the first term here, and minus the entropy of the mean prediction, at diversity 1.

    Below 1, one class for all images reaches 0: then only the start and other losses keep the classes apart. The larger it is,
    the more every batch is pressed towards equally frequent classes, also where they are not.
    """
    log_p = checked(logits).log_softmax(1)  # [n, classes]
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))  # [classes]
    return entropy(log_p).mean() - diversity * entropy(log_mean)


def pseudo_labels(logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Self-training: cross-entropy against the most probable class of each prediction whose probability passes the threshold.

    logits [n, classes] -> scalar, from 0 to -log(threshold): the mean over the confident images, 0 with gradient 0 where
    there is none. The labels carry no gradient. Lee 2013 takes every image (threshold 0); 0.95 is FixMatch's (Sohn et al.
    2020), which divides by all images.
    """
    logits = checked(logits)
    probability, label = logits.detach().softmax(1).max(1)
    return mean_of(F.cross_entropy(logits, label, reduction="none"), probability > threshold)


def consistency(
    logits: Tensor, augmented: Tensor, temperature: float = 0.4, threshold: float = 0.8, target_temperature: float = 1.0
) -> Tensor:
    """KL from the predictions on images to those on their augmentations, where the former are confident, as in UDA.

    logits, augmented [n, classes] -> scalar, at least 0: with p = softmax(logits / target_temperature), which carries no
    gradient, and q = softmax(augmented / temperature), the mean of KL(p, q) over the images whose largest probability,
    untempered, is above the threshold; divided by their number, at least 1.

    By default the prediction on the augmentation is tempered and that on the image is not, so at KL 0 the classifier is less
    sure of the augmentation than of the image: its logits are pressed towards 0.4 of what they are, and few images stay above
    the threshold (results/few_labels.md). That is the form of the port SanghunYun/UDA_pytorch, which divides as here. UDA
    itself (Xie et al. 2020, arXiv 1904.12848, and google-research/uda) sharpens the image's instead: see `sharpened`.
    """
    target, augmented = checked(logits).detach(), checked(augmented)
    if target.shape != augmented.shape:
        raise ValueError(f"need logits of the same images; got {list(target.shape)} and {list(augmented.shape)}")
    confident = target.softmax(1).amax(1) > threshold
    log_p = (target / target_temperature).log_softmax(1)
    log_q = (augmented / temperature).log_softmax(1)
    return mean_of((log_p.exp() * (log_p - log_q)).sum(1), confident)


def sharpened(logits: Tensor, augmented: Tensor) -> Tensor:
    """`consistency` with the prediction on the image sharpened by 0.4 and that on the augmentation as it is, as UDA itself has
    it, but for the number that it divides by: all n there, the confident ones here. At KL 0 the classifier is surer of the
    augmentation than it was of the image.
    """
    return consistency(logits, augmented, temperature=1.0, target_temperature=0.4)


def entropy(log_p: Tensor) -> Tensor:
    """Of distributions along the last dimension, given by their logs [..., classes] -> [...], nats."""
    return -(log_p.exp() * log_p).sum(-1)


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen ones of values [n]; 0 where none is."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)


def checked(logits: Tensor) -> Tensor:
    """Logits [n, classes], raised to float32 at least; ValueError with their shape where they are none."""
    if logits.ndim != 2 or not logits.numel():
        raise ValueError(f"need logits [n, classes], none empty; got {list(logits.shape)}")
    return raised(logits)
