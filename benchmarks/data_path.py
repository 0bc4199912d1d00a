"""Batches of cropped and flipped pictures, two ways: python benchmarks/data_path.py [--repeats 7] [--threads 1] [--json FILE]

Run from the repository root, on an idle machine. 10,000 random pictures of CIFAR's shape become batches of floats in [-1, 1]:
a window of 32 x 32 out of a border of 4, flipped or not, a draw for each picture.

    dim        one uint8 tensor, windows and flips of a batch by one gather (`dim/views.py`), the draws of an epoch as one table
    loader     torchvision's RandomCrop, RandomHorizontalFlip, ToTensor and Normalize in a torch DataLoader without workers

Both in one process, in turn, an epoch each; CPU seconds of the process, so that with one thread the ratio is that of the work.
Before that each way's pictures are checked: every one is a window of its image, flipped or not, and none lies outside [-1, 1].
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from step_parts import describe, machine, markdown, settle  # beside this file; makes dim importable
from torch import Tensor
from tqdm import tqdm

from dim.batches import walk
from dim.build import views
from dim.config import Config, Train, Views
from dim.data import Dataset, Split

IMAGES, SIDE, PADDING = 10_000, 32, 4


def of_dim(images: Tensor, batch: int) -> Callable[[int], Iterator[Tensor]]:
    """epoch -> its batches [N, 3, 32, 32], as a training run makes them."""
    config = Config(device="cpu", views=Views(kind="crop_flip", padding=PADDING), train=Train(batch_size=batch))
    split = Split(images, torch.zeros(len(images), dtype=torch.long))
    data, steps = Dataset("random", split, split, 1), len(images) // batch
    batches = walk(config, data, views(config, data), torch.device("cpu"))
    return lambda epoch: (pictures for _, _, pictures in batches(epoch * steps, (epoch + 1) * steps))


def of_loader(images: Tensor, batch: int) -> Callable[[int], Iterator[Tensor]]:
    """The same by torchvision's transforms of one picture at a time."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.transforms.functional import to_pil_image

    steps = [transforms.RandomCrop(SIDE, PADDING), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    change = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    pictures = [to_pil_image(image) for image in images]  # as torchvision's data set makes them, but once

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> Tensor:
            return change(pictures[i])

    loader: DataLoader = DataLoader(Pictures(), batch, shuffle=True, drop_last=True)
    return lambda epoch: iter(loader)


WAYS = {"dim": of_dim, "loader": of_loader}


def check(way: str) -> None:
    """ValueError where a picture is not a window of its image, flipped or not. The images are flat, each of its own grey."""
    images = torch.arange(1, 241, dtype=torch.uint8)[:, None, None, None].expand(240, 3, SIDE, SIDE).contiguous()
    for pictures in WAYS[way](images, 60)(0):
        for levels in ((pictures + 1) * 127.5).round().to(torch.int64):
            if levels.unique().numel() > 2 or (levels == 0).float().mean() > 1 - ((SIDE - PADDING) / SIDE) ** 2:
                raise ValueError(f"{way} made a picture that is no window of one image and its border")


def seconds(make: Callable[[int], Iterator[Tensor]], epoch: int) -> float:
    """CPU seconds of an epoch."""
    begun, seen = time.process_time(), 0
    for pictures in make(epoch):
        seen += len(pictures)
    return (time.process_time() - begun) * IMAGES / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7, help="epochs of each way")
    parser.add_argument("--json", type=Path, help="write the same numbers to this file")
    args = parser.parse_args()
    settle(args.threads)
    for way in WAYS:
        check(way)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made = {way: make(images, args.batch) for way, make in WAYS.items()}
    turns = [
        {way: seconds(make, epoch) for way, make in made.items()}
        for epoch in tqdm(range(args.repeats + 1), disable=None, leave=False)
    ][1:]  # the first warms up
    ratios = [turn["loader"] / turn["dim"] for turn in turns]
    on = machine("cpu")
    print("## Cropped and flipped batches\n")
    print(f"{IMAGES:,} pictures of {SIDE} x {SIDE}, batch {args.batch}, {args.repeats} turns; {', '.join(describe(on))}\n")
    rows = [[way, f"{IMAGES / statistics.median(turn[way] for turn in turns):,.0f}"] for way in WAYS]
    print(markdown(["way", "images per CPU second"], rows))
    print(f"\n- dim over the loader: {statistics.median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f})")
    if args.json:
        options = {"batch": args.batch, "repeats": args.repeats, "threads": args.threads}
        args.json.write_text(
            json.dumps({"machine": on, "options": options, "seconds": turns, "ratios": ratios}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
