"""A folder of images: every kind of picture, splits and labels, held or streamed, files that cannot be used."""

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from conftest import ROOT, tiny
from PIL import Image
from torch.utils.data import get_worker_info

import evaluate
import train
from dim import checkpoint, data, folder, randomness
from dim.config import Data, UserError
from dim.encoders import Encoder
from dim.evals import sections
from dim.evals.features import set_statistics
from dim.evals.linear import quick_probe
from dim.folder import picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def of(root: Path, size: int = 8, **keys):
    return folder.folder(Data("folder", str(root), **keys), size)


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture without symmetry, so that a JPEG keeps it."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    array = np.stack([x, y, (x + y) / 2], 2).round().astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def by_hand(image: Image.Image, side: int) -> np.ndarray:
    """The shorter side resized to `side`, then the middle square."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != side:
        image = image.resize((max(side, round(width * side / shorter)), max(side, round(height * side / shorter))), 2)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    array = np.asarray(image)[top : top + side, left : left + side]
    assert array.shape == (side, side, 3)
    return array.transpose(2, 0, 1)


# ---- kinds of pictures


@pytest.mark.parametrize("size", [(40, 40), (60, 40), (40, 61), (9, 9), (100, 8), (7, 5), (1, 1), (3, 300)])
def test_the_shorter_side_is_resized_and_the_middle_cut(size, tmp_path):
    image = drawn(*size)
    image.save(tmp_path / "a.png")
    assert np.array_equal(picture(tmp_path / "a.png", 9), by_hand(image, 9))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.WebP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_png_and_webp_in_colour_and_grey(name, mode, tmp_path):
    drawn(40, 30, mode).save(tmp_path / name, {"a.WebP": "webp"}.get(name), quality=95)
    with Image.open(tmp_path / name) as stored:
        plain = stored.convert("RGB")
    assert np.array_equal(picture(tmp_path / name, 16), by_hand(plain, 16))
    assert abs(picture(tmp_path / name, 16).astype(int) - by_hand(drawn(40, 30, mode).convert("RGB"), 16)).max() < 12


def test_cmyk_becomes_rgb(tmp_path):
    drawn(40, 30).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert abs(picture(tmp_path / "a.jpg", 16).astype(int) - by_hand(drawn(40, 30), 16)).max() < 12


def test_16_bit_grey_keeps_its_range(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(picture(tmp_path / "a.png", 8), np.broadcast_to((deep / 257).round().astype(np.uint8), (3, 8, 8)))


def test_one_bit_and_palette_pictures(tmp_path):
    for mode in ("1", "P"):
        image = drawn(12, 12).convert(mode)
        image.save(tmp_path / "a.png")
        assert np.array_equal(picture(tmp_path / "a.png", 8), by_hand(image.convert("RGB"), 8))


def half_clear(mode: str) -> Image.Image:
    """Red, its right half transparent, with blue below the transparent part where the mode has room for it."""
    image = Image.new("RGBA", (8, 8), (*RED, 255))
    image.paste((*BLUE, 0), (4, 0, 8, 8))
    if mode == "LA":
        return image.convert("LA")
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([*RED, *BLUE])
        palette.paste(1, (4, 0, 8, 8))
        palette.info["transparency"] = 1
        return palette
    if mode == "RGB":
        plain = image.convert("RGB")
        plain.info["transparency"] = BLUE
        return plain
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_laid_on_white(mode, tmp_path):
    image = half_clear(mode)
    image.save(tmp_path / "a.png", **{k: v for k, v in image.info.items() if k == "transparency"})
    found = picture(tmp_path / "a.png", 8)
    assert (found[:, :, 4:] == 255).all()
    assert (found[:, :, :4] == np.array([76, 76, 76] if mode == "LA" else RED)[:, None, None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_pictures_are_upright(orientation, kind, tmp_path):
    """A camera held in eight ways stores the upright picture turned back; the tag says how to turn it."""
    stored_by = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL's numbers of the inverse moves
    upright = drawn(40, 40)
    stored = upright if stored_by is None else upright.transpose(Image.Transpose(stored_by))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{kind}", exif=exif, quality=95)
    assert abs(picture(tmp_path / f"a.{kind}", 20).astype(int) - by_hand(upright, 20)).max() < 12


# ---- which files


def test_unlabelled_images_are_found_in_all_depths(tmp_path):
    small_sets.pictures(tmp_path, {"": 2, "a/b/c": 3, "z": 1})
    for name in (".hidden.png", "a/.hidden/x.png", "notes.txt", "a/._x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    found = of(tmp_path)
    assert (len(found.train), len(found.test), found.classes) == (6, 0, 0)
    assert found.train.labels.tolist() == [-1] * 6
    assert [str(Path(name).relative_to(tmp_path)) for name in found.train.names] == [
        *("000.png", "001.png", "a/b/c/000.png", "a/b/c/001.png", "a/b/c/002.png", "z/000.png")
    ]
    with pytest.raises(UserError, match="has no labels to probe"):
        found.with_labels()


@pytest.mark.parametrize("name", ["val", "test"])
def test_one_folder_a_class_with_an_official_split(name, tmp_path):
    small_sets.pictures(tmp_path / "train", {"cat": 3, "dog": 2, "ant": 4})
    small_sets.pictures(tmp_path / name, {"cat": 1, "dog": 2, "ant": 1}, seed=1)
    found = of(tmp_path, labels="folders")
    assert found.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2  # ant, cat, dog
    assert found.test.labels.tolist() == [0, 1, 2, 2]
    assert found.classes == 3
    assert all(f"/{name}/" in path for path in found.test.names)


def test_without_a_split_a_stratified_fifth_is_held_out_and_never_pretrained_on(tmp_path):
    small_sets.pictures(tmp_path, {"cat": 20, "dog": 10})
    found, again, other = (of(tmp_path, labels="folders", split_seed=seed) for seed in (0, 0, 1))
    assert found.test.labels.bincount().tolist() == [4, 2]
    assert found.train.labels.bincount().tolist() == [16, 8]
    assert found.pretraining is found.train
    assert not set(found.train.names) & set(found.test.names)
    assert len({*found.train.names, *found.test.names}) == 30
    pixels = {image.numpy().tobytes() for image in found.train.images}
    assert not pixels & {image.numpy().tobytes() for image in found.test.images}
    assert found.test.names == again.test.names != other.test.names


# ---- held and streamed


def test_held_and_streamed_give_equal_pictures_whatever_the_number_of_workers(tmp_path):
    small_sets.pictures(tmp_path, {"": 23})
    order = randomness.order(0, 0, 23)
    held = of(tmp_path)
    expected = list(held.train.batches(order, 5))
    assert isinstance(held.train, folder.Split)
    for workers in (0, 1, 3):
        streamed = of(tmp_path, memory=0.0, workers=workers)
        assert isinstance(streamed.train, folder.Streamed)
        assert streamed.train.shape == held.train.shape
        assert streamed.train.names == held.train.names
        found = list(streamed.train.batches(order, 5))
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(of(tmp_path, workers=workers).train.images, held.train.images)


def test_the_fingerprint_of_streamed_files_names_them(tmp_path):
    small_sets.pictures(tmp_path, {"": 3})
    first = of(tmp_path, memory=0.0).fingerprint
    assert of(tmp_path, memory=0.0).fingerprint == first
    (tmp_path / "002.png").rename(tmp_path / "003.png")
    assert of(tmp_path, memory=0.0).fingerprint != first


def test_workers_of_any_kind_of_process_can_be_given_their_work(tmp_path):
    small_sets.pictures(tmp_path, {"": 3})
    streamed = of(tmp_path, memory=0.0).train
    again, stack, _ = pickle.loads(pickle.dumps((streamed, folder.stacked, folder.leave_signals_to_the_parent)))
    assert torch.equal(stack([again[1]])[0][0], streamed[1][0])


def run(run_dir: Path, root: Path, *words: str) -> int:
    """Three steps of 7 images each on a folder of 23."""
    given = {"--data.name": "folder", "--data.root": str(root), "--train.batch_size": "7", "--run.save_every": "1"}
    return train.main(tiny(run_dir, *[word for pair in given.items() for word in pair], *words))


@pytest.mark.parametrize(
    ("room", "expected"),
    [(15, ("Split", "Split")), (14, ("Split", "Streamed")), (9, ("Streamed", "Split")), (4, ("Streamed", "Streamed"))],
)
def test_the_budget_is_that_of_all_splits_together(room, expected, tmp_path):
    """Ten images for training and five for testing; a split is held while all that are held fit."""
    small_sets.pictures(tmp_path / "train", {"a": 5, "b": 5})
    small_sets.pictures(tmp_path / "val", {"a": 3, "b": 2}, seed=1)
    found = of(tmp_path, labels="folders", memory=room * 3 * 8 * 8 / 2**30)
    assert tuple(type(part).__name__ for part in (found.train, found.test)) == expected


STREAMED = ("--data.memory", "0")


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run_dir)
    assert state["step"] == 3
    return state["encoder"] | state["objective"]


def test_held_and_streamed_runs_end_in_the_same_bits_also_resumed(tmp_path, monkeypatch, capsys):
    small_sets.pictures(tmp_path / "images", {"": 23})
    assert run(tmp_path / "held", tmp_path / "images") == 0
    assert run(tmp_path / "streamed", tmp_path / "images", *STREAMED, "--data.workers", "2") == 0
    save = checkpoint.save

    def stopping(path, content):
        save(path, content)
        if content["step"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    assert run(tmp_path / "resumed", tmp_path / "images", *STREAMED, "--data.workers", "1") == 130
    monkeypatch.setattr(checkpoint, "save", save)
    assert run(tmp_path / "resumed", tmp_path / "images", *STREAMED, "--data.workers", "1") == 0
    assert "continues at step 1 of 3" in capsys.readouterr().out
    held = weights(tmp_path / "held")
    for other in ("streamed", "resumed"):
        found = weights(tmp_path / other)
        assert found.keys() == held.keys()
        assert all(torch.equal(found[key], held[key]) for key in held)


def test_a_quick_probe_needs_labels_before_the_run_begins(tmp_path, capsys):
    small_sets.pictures(tmp_path / "images", {"": 23})
    assert run(tmp_path / "r", tmp_path / "images", "--run.probe_every", "1") == 2
    assert "folder has no labels to probe" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_run_is_not_continued_on_other_files(tmp_path, monkeypatch, capsys):
    small_sets.pictures(tmp_path / "images", {"": 23})
    save = checkpoint.save

    def stopping(path, content):
        save(path, content)
        if content["step"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    assert run(tmp_path / "r", tmp_path / "images") == 130
    monkeypatch.setattr(checkpoint, "save", save)
    (tmp_path / "images" / "022.png").rename(tmp_path / "images" / "new.png")
    assert run(tmp_path / "r", tmp_path / "images") == 2
    assert "was trained on 23 images of folder, and these are 23 or others" in capsys.readouterr().err
    (tmp_path / "images" / "new.png").rename(tmp_path / "images" / "022.png")
    assert run(tmp_path / "r", tmp_path / "images") == 0


def test_test_images_that_trained_the_encoder_are_said_and_counted(tmp_path, capsys):
    """Trained on everything, then probed with one folder a class, of which a fifth is for testing."""
    small_sets.pictures(tmp_path / "images", {"a": 15, "b": 15})
    assert run(tmp_path / "r", tmp_path / "images") == 0
    assert evaluate.main([str(tmp_path / "r"), "--data.labels", "folders"]) == 0
    assert "warning: 6 of 6 test images trained the encoder" in capsys.readouterr().err
    assert json.loads((tmp_path / "r/report_images.json").read_text())["run"]["test images seen in training"] == 6
    assert run(tmp_path / "s", tmp_path / "images", "--data.labels", "folders") == 0
    assert evaluate.main([str(tmp_path / "s")]) == 0
    assert "trained the encoder" not in capsys.readouterr().err


def test_a_run_without_labels_is_measured_where_no_label_is_needed(tmp_path, monkeypatch, capsys):
    for name in ("mine", "ndm"):
        monkeypatch.setattr(sections, name, partial(getattr(sections, name), steps=3))
    monkeypatch.setattr(sections, "SEEDS", 1)
    small_sets.pictures(tmp_path / "photos", {"": 36})
    assert run(tmp_path / "r", tmp_path / "photos") == 0
    assert evaluate.main([str(tmp_path / "r"), "--measures", "mine", "ndm"]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert "over the 36 training images of folder" in report["ndm"]["protocol"]
    assert list(report["mine"]["rows"]) == ["random x:y", "trained x:y"]
    assert report["mine"]["rows"]["trained x:y"]["runs"][0]["rows"] == [12, 12, 12]
    capsys.readouterr()
    for words, message in (
        (["--measures", "reconstruction"], "folder has 0 test images, and a reconstruction is judged on at least 2"),
        (["--measures", "ndm", "--probes", "linear"], "folder has no labels to probe"),
        (["--measures", "ndm", "--supervised"], "folder has no labels to probe"),
    ):
        assert evaluate.main([str(tmp_path / "r"), *words, "--force"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
        assert json.loads((tmp_path / "r" / "report.json").read_text()) == report  # said before anything is measured


def test_a_run_without_labels_is_probed_on_another_data_set_by_its_name(tmp_path, capsys):
    small_sets.pictures(tmp_path / "photos", {"": 30})
    small_sets.pictures(tmp_path / "animals", {"cat": 15, "dog": 15})
    assert run(tmp_path / "r", tmp_path / "photos") == 0
    assert evaluate.main([str(tmp_path / "r")]) == 2
    assert "folder has no labels to probe: give one folder a class" in capsys.readouterr().err
    words = ["--data.root", str(tmp_path / "animals"), "--data.labels", "folders", "--layers", "y"]
    assert evaluate.main([str(tmp_path / "r"), *words]) == 0
    assert not (tmp_path / "r/report.json").exists()
    report = json.loads((tmp_path / "r/report_animals.json").read_text())
    assert list(report["linear"]["rows"]) == [f"{row} on animals" for row in ("raw pixels", "random y", "trained y")]
    assert "trained y on animals" in capsys.readouterr().out
    assert evaluate.main([str(tmp_path / "r"), *words, "--figures", "curves", "neighbours"]) == 0
    drawn = {path.name: path for path in (tmp_path / "r" / "figures").iterdir()}
    assert drawn.keys() == {"scores_animals.png", "codes_animals.png", "neighbours_animals.png"}  # of the training none
    for path in drawn.values():
        with Image.open(path) as image:
            said = image.info["Description"]
        assert "seed 0. folder, 30 training images 3 x 8 x 8; " in said
        assert "Shown here: animals, another data set, 24 training and 6 test images." in said
        assert "was trained on them" not in said
    capsys.readouterr()
    assert "test images seen in training" not in report["run"]


def test_other_images_of_the_same_names_are_another_data_set(tmp_path, capsys):
    small_sets.pictures(tmp_path / "images", {"a": 15, "b": 15})
    assert run(tmp_path / "r", tmp_path / "images", "--data.labels", "folders") == 0
    assert evaluate.main([str(tmp_path / "r"), "--layers", "y"]) == 0
    shutil.copytree(tmp_path / "images", tmp_path / "dark")
    for path in (tmp_path / "dark").rglob("*.png"):
        with Image.open(path) as image:
            image.point(lambda value: value // 2).save(path)
    before = (tmp_path / "r/report.json").read_bytes()
    assert evaluate.main([str(tmp_path / "r"), "--layers", "y", "--data.root", str(tmp_path / "dark")]) == 0
    assert (tmp_path / "r/report.json").read_bytes() == before
    assert "trained y on dark" in json.loads((tmp_path / "r/report_dark.json").read_text())["linear"]["rows"]
    assert "trained the encoder" not in capsys.readouterr().err


def test_a_report_is_not_continued_with_another_fit(tmp_path):
    small_sets.pictures(tmp_path / "images", {"a": 15, "b": 15}, side=12)
    assert run(tmp_path / "r", tmp_path / "images", "--data.labels", "folders", "--data.fit", "resize") == 0
    words = [str(tmp_path / "r"), "--layers", "y"]
    assert evaluate.main(words) == 0
    first = json.loads((tmp_path / "r/report.json").read_text())
    assert evaluate.main([*words, "--data.fit", "crop"]) == 0
    second = json.loads((tmp_path / "r/report_crop.json").read_text())
    assert json.loads((tmp_path / "r/report.json").read_text()) == first
    assert (first["run"]["fit"], second["run"]["fit"]) == ("resize", "crop")
    assert first["linear"]["rows"] != second["linear"]["rows"]


def test_a_folder_smaller_than_a_batch_can_be_measured_and_not_trained_on(tmp_path, capsys):
    small_sets.pictures(tmp_path / "images", {"a": 15, "b": 15})
    small_sets.pictures(tmp_path / "few", {"a": 6, "b": 6})
    batch = ["--data.labels", "folders", "--train.batch_size", "20"]
    assert run(tmp_path / "r", tmp_path / "images", *batch) == 0
    assert evaluate.main([str(tmp_path / "r"), "--layers", "y", "--data.root", str(tmp_path / "few")]) == 0
    assert run(tmp_path / "s", tmp_path / "few", *batch) == 2
    assert "train.batch_size is 20, but folder has 10 images: lower it" in capsys.readouterr().err


def test_other_images_than_the_encoder_takes_are_one_line(tmp_path, capsys):
    small_sets.pictures(tmp_path / "images", {"a": 15, "b": 15})
    assert run(tmp_path / "r", tmp_path / "images") == 0
    assert evaluate.main([str(tmp_path / "r"), "--data.name", "digits"]) == 2
    assert "was trained on images with shape [3, 8, 8], those of digits have shape [1, 8, 8]" in capsys.readouterr().err


def test_the_quick_probe_sees_all_classes_of_a_folder():
    """Files come class by class; with more of them than the probe fits on, all classes are drawn from."""
    classes, each = 6, 60
    labels = torch.arange(classes).repeat_interleave(each)
    images = (labels[:, None, None, None] * 40 + torch.zeros(1, 1, 8, 8)).to(torch.uint8)
    noise = torch.randint(0, 9, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = data.Split(images + noise, labels)
    made = data.Dataset("made", split, split, classes, signed=False)
    encoder = set_statistics(Encoder("small8x8", 1), made, split)
    assert quick_probe(encoder, made, 0, most=100)["probe/fc_accuracy"] > 0.95


# ---- files that cannot be used


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG of one bit a pixel, its header as it should be whatever its content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    """A picture whose header is right and whose end is missing."""
    path.write_bytes(path.read_bytes()[:-60])


def test_unusable_files_are_counted_and_named(tmp_path):
    small_sets.pictures(tmp_path, {"": 20})
    (tmp_path / "a.jpg").write_text("text")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.webp").write_bytes(png(20_000, 20_000))
    (tmp_path / "d.png").write_bytes(png(10_000, 10_000))
    match = (
        r"4 of 24 images in .* cannot be used: a.jpg \(not a JPEG, PNG or WebP image\), b.png \(empty\), c.webp "
        r"\(.*bomb\), \.\.\.; mend or remove them, or leave them out with --data.skip_bad true"
    )
    with pytest.raises(UserError, match=match):
        of(tmp_path)


@pytest.mark.parametrize("keys", [{}, {"labels": "folders"}])
def test_unusable_files_are_left_out_with_a_warning_where_that_was_asked_for(keys, tmp_path, capsys):
    small_sets.pictures(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "007.png").write_text("text")
    truncated(tmp_path / "b" / "003.png")
    with pytest.raises(UserError, match="1 of 40 images"):
        of(tmp_path, **keys)
    found = of(tmp_path, skip_bad=True, **keys)
    err = capsys.readouterr().err
    assert err.count("warning: 1 of") == 2
    assert "a/007.png (not a JPEG, PNG or WebP image)" in err
    assert "b/003.png (image file is truncated" in err
    names = [Path(name).relative_to(tmp_path).as_posix() for split in (found.train, found.test) for name in split.names]
    assert sorted(names) == [f"{c}/{i:03d}.png" for c in "ab" for i in range(20) if (c, i) not in {("a", 7), ("b", 3)}]
    for split in (found.train, found.test):
        for name, image, label in zip(split.names, split.images, split.labels, strict=True):
            assert np.array_equal(image, picture(Path(name), 8))
            assert label == (-1 if not keys else "ab".index(Path(name).parent.name))


def test_a_bomb_is_refused_by_its_header(tmp_path):
    """The second really decodes, from 12 kilobytes to 100 megapixels."""
    path = tmp_path / "a.png"
    sizes = {(20_000, 20_000): "a decompression bomb", (10_000, 10_000): "10000 x 10000 pixels, more than 50 million"}
    for (width, height), why in (sizes | {(40_000, 4): "40000 x 4 pixels, a strip"}).items():
        path.write_bytes(png(width, height, bytes((width // 8 + 1) * height) if width == 10_000 else b""))
        assert folder.complaint(path) == why
        with pytest.raises(OSError, match=why):
            picture(path, 8)


def test_only_three_decoders_run_whatever_the_suffix_says(tmp_path):
    for kind in ("gif", "bmp", "tiff", "eps"):
        drawn(8, 8).save(tmp_path / "a.png", kind)
        assert folder.complaint(tmp_path / "a.png") == "not a JPEG, PNG or WebP image"
    drawn(8, 8).save(tmp_path / "a.png", "jpeg")
    assert folder.complaint(tmp_path / "a.png") == ""


def test_a_file_that_turns_out_damaged_ends_a_streamed_run_which_keeps_its_checkpoint(tmp_path, capsys):
    small_sets.pictures(tmp_path / "images", {"": 23})
    last = randomness.order(0, 0, 23)[20].item()  # of the third batch, and none of the two that the summary looks at
    assert last > 1
    truncated(tmp_path / "images" / f"{last:03d}.png")
    assert run(tmp_path / "r", tmp_path / "images", *STREAMED) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert f"{last:03d}.png cannot be decoded: image file is truncated" in err
    assert checkpoint.load(tmp_path / "r")["step"] == 2


def test_a_killed_worker_is_one_line_and_exit_code_4(tmp_path, monkeypatch, capsys):
    small_sets.pictures(tmp_path / "images", {"": 23})
    whole = folder.Streamed.__getitem__

    def killed(self, i):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, i)

    monkeypatch.setattr(folder.Streamed, "__getitem__", killed)
    assert run(tmp_path / "r", tmp_path / "images", *STREAMED) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: the machine: a process that decodes images ended")
    assert err.count("\n") == 1


def test_too_little_memory_is_no_fault_of_an_image(tmp_path, monkeypatch):
    small_sets.pictures(tmp_path, {"": 3})

    def full(path, side):
        raise MemoryError

    monkeypatch.setattr(folder, "picture", full)
    with pytest.raises(MemoryError):
        of(tmp_path)


def test_ctrl_c_saves_a_streamed_run_and_its_workers_are_silent(tmp_path):
    small_sets.pictures(tmp_path / "images", {"": 200})
    words = tiny(tmp_path / "r", "--data.name", "folder", "--data.root", str(tmp_path / "images"), "--train.epochs", "9999",
                 "--train.batch_size", "4", *STREAMED)  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log, patience = tmp_path / "r" / "metrics.jsonl", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < patience and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "saved; the same command continues there" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert checkpoint.load(tmp_path / "r")["step"] >= 1


# ---- the real pictures


@pytest.mark.slow
def test_real_pictures_are_the_same_held_and_streamed_over_an_epoch(real_data):
    root = real_data / "tiny-imagenet-29"
    if not root.is_dir():
        pytest.skip("DIM_DATA holds no tiny-imagenet-29")
    held, streamed = (of(root, 64, labels="folders", memory=memory) for memory in (4.0, 0.0))
    assert held.classes == 29
    assert held.train.labels.bincount().min() > 0
    assert torch.equal(held.train.labels, streamed.train.labels)
    order = randomness.order(0, 0, len(held.train))
    for a, b in zip(held.train.batches(order, 500), streamed.train.batches(order, 500), strict=True):
        assert torch.equal(a, b)
