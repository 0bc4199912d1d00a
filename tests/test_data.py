"""Splits and data sets: what an encoder and a probe are given, the validation part, the fingerprint."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dim.config import UserError
from dim.data import Dataset, Split, stratified
from dim.randomness import generator


def split_of(n: int, side: int = 2, channels: int = 1, label: int | None = None) -> Split:
    """n random images; labels 0, 1, .., 4, 0, .. or all the same."""
    images = torch.randint(0, 256, (n, channels, side, side), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return Split(images, torch.arange(n) % 5 if label is None else torch.full((n,), label))


def test_a_split_gives_the_asked_images_in_their_order():
    split = split_of(10)
    index = torch.tensor([7, 0, 3, 3, 9])
    batches = list(split.batches(index, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), split.images[index])
    assert (len(split), split.shape) == (10, (1, 2, 2))


def test_the_validation_part_is_a_stratified_tenth_and_depends_on_its_seed_alone():
    labels = torch.arange(10).repeat_interleave(torch.arange(100, 200, 10))
    split = Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    made = Dataset("made", split, split, 10)
    fitting, validation = made.validation(0)
    assert sorted([*fitting.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert labels[validation].bincount().tolist() == [round(n / 10) for n in range(100, 200, 10)]
    torch.manual_seed(5)
    assert torch.equal(made.validation(0)[1], validation)
    assert not torch.equal(made.validation(1)[1], validation)


def test_stratified_takes_its_share_of_each_class_and_never_an_unlabelled_image():
    labels = torch.tensor([0] * 10 + [-1] * 10 + [2] * 20)
    index = stratified(labels, 3, 0.2, generator(0, "made"))
    assert labels[index].tolist() == [0] * 2 + [2] * 4
    assert len(set(index.tolist())) == 6


def test_the_fingerprint_changes_with_one_pixel_label_or_unlabelled_image():
    split, more = split_of(4), split_of(6, label=-1)
    made = Dataset("made", split, split, 5, unlabelled=more)
    pixel = split.images.clone()
    pixel[2, 0, 1, 1] += 1
    others = [Split(pixel, split.labels), Split(split.images, split.labels.flip(0))]
    changed = [replace(made, train=other) for other in others] + [replace(made, test=other) for other in others]
    changed += [replace(made, unlabelled=split_of(7, label=-1)), replace(made, unlabelled=None)]
    assert len({made.fingerprint, *(other.fingerprint for other in changed)}) == 7
    assert replace(made, name="other").fingerprint == made.fingerprint


def test_an_encoder_trains_on_the_unlabelled_images_where_there_are_any():
    train, more = split_of(4), split_of(6, label=-1)
    assert Dataset("made", train, train, 5).pretraining is train
    assert Dataset("made", train, train, 5, unlabelled=more).pretraining is more


@pytest.mark.parametrize(("signed", "ends"), [(True, [-1.0, 1.0]), (False, [0.0, 1.0])])
def test_values_end_at_the_ends(signed, ends):
    made = Dataset("made", split_of(4), split_of(4), 5, levels=16, signed=signed)
    assert made.floats(torch.tensor([[[[0, 16]]]], dtype=torch.uint8)).flatten().tolist() == ends
    assert made.floats(torch.tensor([[[[0, 16]]]], dtype=torch.uint8), torch.float64).dtype == torch.float64


def test_images_of_the_encoders_size_are_not_touched():
    made = Dataset("made", split_of(4, 6), split_of(4, 6), 5, signed=False, size=6)
    assert made.fitting == ()
    assert torch.equal(made.floats(made.train.images), made.train.images / 255)
    assert replace(made, size=0).shape == (1, 6, 6)


def test_larger_images_are_centre_cropped_or_resized_when_they_are_measured():
    split = split_of(3, 9, channels=3)
    made = Dataset("made", split, split, 5, signed=False, size=4, fit="crop")
    assert made.shape == (3, 4, 4)
    assert torch.equal(made.floats(split.images), split.images[:, :, 2:6, 2:6] / 255)
    resized = F.interpolate(split.images / 255, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(replace(made, fit="resize").floats(split.images), resized)
    torch.testing.assert_close(replace(made, fit="resize", signed=True).floats(split.images), resized * 2 - 1)


def test_without_labels_there_is_nothing_to_probe():
    labelled = Dataset("made", split_of(4), split_of(4), 5)
    assert labelled.with_labels() is labelled
    with pytest.raises(
        UserError, match=r"made has no labels to probe: .*--data.labels folders.*probe_every.*--data.name NAME --data.root DIR"
    ):
        replace(labelled, classes=0).with_labels()
