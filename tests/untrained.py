"""A run of no steps, for pictures: on some digits, or on as many without labels and without a test split."""

import torch

from dim import build, datasets
from dim.config import Config, Data
from dim.data import Dataset, Split


def untrained(labelled: bool = True, train: int = 80, test: int = 30) -> tuple[Config, Dataset, dict]:
    """What a figure is given, but for the folder."""
    config, digits = Config(), datasets.digits(Data())
    cut = [Split(part.images[:n], part.labels[:n]) for part, n in ((digits.train, train), (digits.test, test))]
    if not labelled:
        cut = [Split(cut[0].images, torch.full((train,), -1)), Split(cut[1].images[:0], cut[1].labels[:0])]
    data = Dataset("digits", cut[0], cut[1], classes=10 if labelled else 0, levels=16, signed=False)
    return config, data, {"encoder": build.encoder(config, data.shape).state_dict(), "step": 7, "data": data.facts}


def saved_pages(monkeypatch, drawing) -> list[tuple]:
    """The pages that are saved from now on: (path, title, panels, caption)."""
    found, save = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda *page: found.append(page) or save(*page))
    return found
