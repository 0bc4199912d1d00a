"""A folder of images of any kind and size -> splits, held in memory where they fit a stated budget, else streamed.

Every picture is made upright (EXIF), RGB, its shorter side resized, its centre cut to a square: the same bytes whether held
or streamed and whatever the number of workers.
"""

import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dim import signals
from dim.config import Data, UserError, require
from dim.data import Dataset, Images, Split, stratified
from dim.randomness import generator

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_PIXELS = 50_000_000  # a picture that claims more is refused: a few kilobytes can unpack to gigabytes
LONGEST = 1000  # sides of a picture, longer / shorter: a strip of one row would be enlarged to gigabytes


def folder(c: Data, size: int = 0) -> Dataset:
    """Images under data.root, found in all depths; labels: none, or folders, one folder a class.

    With folders, `root/train` and `root/val`, or without it `root/test`, are the splits where they exist; else a stratified
    fifth, drawn by data.split_seed, is kept for testing, and the encoder does not see it.
    """
    require("PIL", "data.name folder", "pillow")
    root, side = Path(c.root), c.side or size
    if not os.path.isdir(root):
        raise UserError(f"data.root {root} is no folder: give the folder of your images")
    if not side:
        raise UserError("data.side is 0 and the encoder takes any size: give the side of the pictures, such as --data.side 64")
    if c.labels == "none":
        paths = images_under(root)
        (train,) = sources(c, [good(c, paths, torch.full((len(paths),), -1))], side)
        none = Split(torch.zeros(0, 3, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        return Dataset("folder", train, none, classes=0, size=size, fit=c.fit)
    parts = [root / name for name in ("train", "val", "test") if os.path.isdir(root / name)]
    official = len(parts) >= 2 and parts[0].name == "train"
    if parts and not official:
        there = " and ".join(part.name for part in parts)
        raise UserError(f"{root} has {there}: a split needs train, and val or test; or give one folder a class, without them")
    names = classes_of(parts[0] if official else root)
    labelled = [with_labels(c, part, names) for part in (parts[:2] if official else [root])]
    train, test = sources(c, labelled if official else held_out(c, *labelled[0], len(names)), side)
    return Dataset("folder", train, test, classes=len(names), size=size, fit=c.fit)


def classes_of(root: Path) -> list[str]:
    """The names of the folders in a folder: its classes."""
    try:
        found = sorted((e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from None
    if len(found) < 2:
        some = f"{len(found)} folder{'s' * (len(found) != 1)}"
        raise UserError(f"{root} has {some}, but data.labels is folders: give one folder a class, at least 2")
    link = next((Path(entry.path) for entry in found if entry.is_symlink()), None)
    if link is not None:
        raise UserError(f"{link} is a link: links to folders are not followed, put the class's folder itself there")
    return [entry.name for entry in found]


def with_labels(c: Data, root: Path, names: list[str]) -> tuple[list[Path], Tensor]:
    """All images of all classes, and their labels."""
    other = set(classes_of(root)) ^ set(names)
    if other:
        raise UserError(f"{root} and its neighbour have different classes: {', '.join(sorted(other)[:3])} in one only")
    found = [images_under(root / name) for name in names]
    labels = torch.cat([torch.full((len(paths),), label) for label, paths in enumerate(found)])
    return good(c, [path for paths in found for path in paths], labels)


def held_out(c: Data, paths: list[Path], labels: Tensor, classes: int) -> list[tuple[list[Path], Tensor]]:
    """The images as (training part, test part), the latter a stratified fifth."""
    test = torch.zeros(len(paths), dtype=torch.bool)
    test[stratified(labels, classes, 0.2, generator(c.split_seed, "test"))] = True
    if not test.any():
        raise UserError(f"{c.root}: a fifth of each class for testing is no image: give at least 2 images of a class")
    return [([paths[i] for i in part.nonzero()[:, 0].tolist()], labels[part]) for part in (~test, test)]


def images_under(root: Path) -> list[Path]:
    """Files with an image's suffix, in all depths, sorted; hidden ones left out, links to other folders not followed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    for here, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in sorted(files) if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    inside = Path(os.path.realpath(root))
    outside = next((p for p in found if p.is_symlink() and not Path(os.path.realpath(p)).is_relative_to(inside)), None)
    if outside is not None:
        raise UserError(f"{outside} is a link that leaves {root}: copy the image, or remove the link")
    if not found:
        raise UserError(f"{root} holds no image: none of its files ends in {', '.join(SUFFIXES)}")
    return found


def good(c: Data, paths: list[Path], labels: Tensor) -> tuple[list[Path], Tensor]:
    """The files whose headers are those of images, and their labels."""
    from tqdm import tqdm

    shown = tqdm(paths, "headers", unit="image", disable=None, delay=1, leave=False)
    bad = {i: why for i, path in enumerate(shown) if (why := complaint(path))}
    keep = kept(c, paths, bad)
    return [paths[i] for i in keep.tolist()], labels[keep]


def kept(c: Data, paths: list[Path], bad: dict[int, str]) -> Tensor:
    """Indices of all but the bad files; UserError that counts and names these unless they may be left out."""
    if bad:
        some = ", ".join(f"{os.path.relpath(paths[i], c.root)} ({why})" for i, why in list(bad.items())[:3])
        what = f"{len(bad):,} of {len(paths):,} images in {c.root} cannot be used: {some}{', ...' if len(bad) > 3 else ''}"
        if len(bad) == len(paths):
            raise UserError(f"{what}; none is left")
        if not c.skip_bad:
            raise UserError(f"{what}; mend or remove them, or leave them out with --data.skip_bad true")
        print(f"warning: {what}; they are left out", file=sys.stderr)
    return torch.tensor([i for i in range(len(paths)) if i not in bad])


def complaint(path: Path) -> str:
    """Why a file cannot be an image, from its header, or ""."""
    try:
        with opened(path):
            return ""
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def opened(path: Path):
    """A PIL image that is not decoded yet. Raises OSError where the file is none, or one of an absurd size."""
    from PIL import Image, UnidentifiedImageError

    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise OSError("not a file")
    if not status.st_size:
        raise OSError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, and earlier
            image = Image.open(path, formats=("JPEG", "PNG", "WEBP"))  # whatever the suffix says, no other decoder runs
    except Image.DecompressionBombError:
        raise OSError("a decompression bomb") from None
    except (UnidentifiedImageError, ValueError, SyntaxError):
        raise OSError("not a JPEG, PNG or WebP image") from None
    with image:
        (width, height), most = image.size, MOST_PIXELS / 1e6
        if width * height > MOST_PIXELS:
            raise OSError(f"{width} x {height} pixels, more than {most:.0f} million")
        if max(image.size) > LONGEST * min(image.size):
            raise OSError(f"{width} x {height} pixels, a strip")
        yield image


def picture(path: Path, side: int) -> np.ndarray:
    """uint8 [3, side, side]. Transparent parts are laid on white. Raises OSError where the file is damaged."""
    from PIL import Image, ImageOps

    with opened(path) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, which PIL would cut off at 255
            image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).round().astype(np.uint8))
        if image.has_transparency_data:
            clear = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        image = image.convert("RGB")
        scale = side / min(image.size)
        if scale != 1:
            image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.BILINEAR)
        left, top = ((length - side) // 2 for length in image.size)
        return np.asarray(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


def sources(c: Data, parts: list[tuple[list[Path], Tensor]], side: int) -> list[Images]:
    """The images of each split's files and labels: decoded now and held while all that are held fit into data.memory, else
    decoded when needed."""
    room = c.memory * 2**30
    found: list[Images] = []
    for paths, labels in parts:
        streamed, size = Streamed(tuple(map(str, paths)), labels, side, c.workers), len(paths) * 3 * side * side
        fits = size <= room
        room -= size * fits
        found.append(held(c, streamed, paths) if fits else streamed)
    return found


def held(c: Data, streamed: "Streamed", paths: list[Path]) -> Split:
    """The images of these files, decoded."""
    from tqdm import tqdm

    labels, side = streamed.labels, streamed.side
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)
    bad: dict[int, str] = {}
    place = 0
    with tqdm(total=len(paths), desc="decoding", unit="image", disable=None, delay=1, leave=False) as bar:
        for batch, complaints in streamed.raw(torch.arange(len(paths)), 100):
            images[place : place + len(batch)] = batch
            bad |= {place + i: why for i, why in complaints.items()}
            place += len(batch)
            bar.update(len(batch))
    if not bad:
        return Split(images, labels, streamed.names)
    keep = kept(c, paths, bad)
    return Split(images[keep], labels[keep], tuple(streamed.names[i] for i in keep.tolist()))


@dataclass(frozen=True)
class Streamed:
    """Image files, decoded by worker processes when they are needed."""

    names: tuple[str, ...]  # paths
    labels: Tensor
    side: int
    workers: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        """One picture and no complaint, or a black one and why."""
        try:
            return torch.from_numpy(picture(Path(self.names[i]), self.side).copy()), ""
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises at a damaged file; it is named, never passed over
            return torch.zeros(self.shape, dtype=torch.uint8), " ".join(str(error).split())[:60] or type(error).__name__

    def raw(self, index: Tensor, size: int) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Batches of pictures, and complaints by their place in the batch. OSError where a worker was killed."""
        from torch.utils.data import DataLoader

        sampler = [chunk.tolist() for chunk in index.split(size)]
        workers = min(self.workers, len(sampler) - 1)  # for one batch none is worth its start
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are the user's choice
            loader: DataLoader = DataLoader(
                self,  # type: ignore[arg-type]
                batch_sampler=sampler,
                num_workers=max(0, workers),
                collate_fn=stacked,
                worker_init_fn=leave_signals_to_the_parent,
                generator=torch.Generator(),  # else each epoch would draw from the global state
            )
            batches = iter(loader)
        try:
            yield from batches
        except RuntimeError as error:  # only a worker's end comes here: what decoding raises is a complaint
            why = " ".join(str(error).split())[:80]
            raise OSError(f"a process that decodes images ended ({why}): lower --data.workers") from None

    def batches(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """UserError at a file that turns out to be damaged."""
        chunks = index.cpu().split(size)
        for chunk, (images, complaints) in zip(chunks, self.raw(index.cpu(), size), strict=True):
            for place, why in complaints.items():
                raise UserError(f"{self.names[chunk[place]]} cannot be decoded: {why}; mend or remove it")
            yield images

    def to(self, device: torch.device | str) -> "Streamed":
        return self

    def content(self) -> Iterator[bytes]:
        for path, label in zip(self.names, self.labels.tolist(), strict=True):
            yield os.fsencode(Path(path).name) + f" {os.path.getsize(path)} {label}\n".encode()


def stacked(items: list[tuple[Tensor, str]]) -> tuple[Tensor, dict[int, str]]:
    """Pictures of a batch as one tensor, complaints by their place; here, where any kind of worker process finds it."""
    return torch.stack([image for image, _ in items]), {i: why for i, (_, why) in enumerate(items) if why}


def leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, SIGTERM all of a job; the parent decides."""
    signals.left_to_the_parent()
