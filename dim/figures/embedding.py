"""Embedding: the codes of images as points in a plane (t-SNE), coloured by class."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dim.config import Config, UserError, require
from dim.data import Dataset
from dim.figures import captions, drawing, samples

MOST = 2_000  # points: more take minutes and hide each other
PERPLEXITY = 30.0


def draw(folder: Path, config: Config, data: Dataset, state: dict, other: str = "") -> list[Path]:
    """folder/figures/embedding.png: t-SNE of the codes y of at most MOST images."""
    drawing.needed()
    require("sklearn", "an embedding", "scikit-learn")
    parts = samples.parts(config, data, other)
    asked = parts.test_order[:MOST]
    y = samples.codes(samples.trained_encoder(config, data, state), data, parts.test, asked)
    points, trust = embedded(y)
    title = f"{len(y):,} {parts.kind} images"
    names = samples.class_names(config, data)
    page = [drawing.Scatter(title, points, parts.test.labels[asked].numpy(), names)]
    notes = [captions.about(folder.resolve().name, config, data, state, other)]
    notes += captions.of_embedding(parts, len(y), config.encoder.code_size, perplexity(len(y)), trust, bool(names))
    return [drawing.save(samples.place(folder, "embedding", other), "Codes y in the plane, by t-SNE", page, notes)]


def perplexity(n: int) -> float:
    """30, or less where there are few points: t-SNE looks at about three times as many neighbours."""
    return min(PERPLEXITY, (n - 1) / 3)


def embedded(y: Tensor) -> tuple[np.ndarray, float]:
    """Codes y [n, d] -> points [n, 2] by t-SNE (van der Maaten & Hinton 2008), and their trustworthiness in [0, 1].

    Euclidean distances of y as it is; started from the first two principal components, so nothing is drawn. Trustworthiness
    (Venna & Kaski 2001) is 1 where the 10 nearest of each point are also nearest in y, and about a half where points lie
    anyhow. UserError for fewer than 21 images or 2 dimensions, codes that are not finite, or all equal.
    """
    from sklearn.manifold import TSNE, trustworthiness

    n, d = y.shape
    if n < 21 or d < 2:
        raise UserError(f"an embedding needs 21 images and codes of 2 numbers: there are {n} images and codes of {d}")
    if not torch.isfinite(y).all():
        raise UserError(f"the codes y of some of {n:,} images are not finite: the run's checkpoint may be damaged")
    if not (y.std(0) > 0).any():
        raise UserError(f"the codes y of {n:,} images are all equal: they collapsed, and there is nothing to lay out")
    codes = y.double().numpy()
    points = TSNE(2, perplexity=perplexity(n), init="pca", learning_rate="auto", random_state=0).fit_transform(codes)
    return points, trustworthiness(codes, points, n_neighbors=10)
