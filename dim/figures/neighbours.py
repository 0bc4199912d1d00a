"""Neighbours: a few images and the training images whose codes are nearest to theirs."""

from pathlib import Path

import torch
from torch import Tensor

from dim.config import Config, UserError
from dim.data import Dataset
from dim.evals.neighbours import METRICS, agreement, nearest
from dim.evals.reconstruction import stored
from dim.figures import captions, drawing, samples
from dim.figures.drawing import BLUE, VERMILLION, Strip, Tile

QUERIES, NEIGHBOURS = 10, 5  # a row each; neighbours by each metric
COUNTED = 1_000  # images whose neighbours' labels are counted


def draw(folder: Path, config: Config, data: Dataset, state: dict, other: str = "") -> list[Path]:
    """folder/figures/neighbours.png: each row an image and its nearest training images in y by L1 distance and by cosine.

    UserError where there are fewer candidates than neighbours.
    """
    drawing.needed()
    parts, names = samples.parts(config, data, other), samples.class_names(config, data)
    if min(len(parts.train_order) - NEIGHBOURS, len(parts.test_order) - 1) < 0:
        raise UserError(
            f"neighbours need {NEIGHBOURS} training images and 1 to ask about: {data.name} has {len(parts.train_order)} and "
            f"{len(parts.test_order)}"
        )
    encoder = samples.trained_encoder(config, data, state)
    asked = parts.test_order[:COUNTED]
    x = samples.codes(encoder, data, parts.train, parts.train_order)
    queries = samples.codes(encoder, data, parts.test, asked)
    places = {metric: nearest(x, queries, NEIGHBOURS, metric) for metric in METRICS}
    labels, own = parts.train.labels[parts.train_order], parts.test.labels[asked]
    shown = rows_shown(own, data.classes)
    groups = [tiles(stored(data, parts.test, asked[shown]), own[shown], own[shown], names, framed=False)]
    for found in places.values():
        near = found[shown].flatten()
        groups.append(
            tiles(
                stored(data, parts.train, parts.train_order[near]),
                labels[near],
                own[shown].repeat_interleave(NEIGHBOURS),
                names,
            )
        )
    strips = [
        Strip([groups[0][i : i + 1], *(group[i * NEIGHBOURS : (i + 1) * NEIGHBOURS] for group in groups[1:])], close=i > 0)
        for i in range(len(shown))
    ]
    counts = {metric: agreement(labels, own, found) for metric, found in places.items()} if names else {}
    heads = ["query", "nearest by L1 distance", "nearest by cosine similarity"]
    notes = [captions.about(folder.resolve().name, config, data, state, other)]
    each = len(shown) == data.classes
    notes += captions.of_neighbours(parts, len(shown), each, len(asked), NEIGHBOURS, counts)
    page = [drawing.Pictures(heads, strips)]
    path = samples.place(folder, "neighbours", other)
    return [drawing.save(path, "Nearest training images by their codes y", page, notes)]


def rows_shown(labels: Tensor, classes: int) -> Tensor:
    """Which of the images asked about are shown: the first of each class where there are at most QUERIES, else the first."""
    if not 0 < classes <= QUERIES:
        return torch.arange(min(QUERIES, len(labels)))
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])


def tiles(images: Tensor, labels: Tensor, asked: Tensor, names: tuple[str, ...], framed: bool = True) -> list[Tile]:
    """Pictures uint8 [n, C, S, S] with the names of their labels [n]; framed: by whether these are those asked for [n]."""
    if not names:
        return [Tile(image.numpy()) for image in images]
    right = [BLUE if same else VERMILLION for same in (labels == asked).tolist()] if framed else [""] * len(images)
    return [Tile(*tile) for tile in zip(images.numpy(), [names[label] for label in labels], right, strict=True)]
