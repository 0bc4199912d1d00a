"""Source-free adaptation: one step by hand, the frozen head, labels never read; the targets it is tried on."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from test_finetune import VIEW, encoder, equal, made_data, state  # noqa: F401

from dim.config import UserError
from dim.data import Dataset, Split
from dim.evals import adapt as module
from dim.evals.adapt import Adaptation, adapt, adapted, contrast, corrupted, noise, unbalanced
from dim.evals.features import set_statistics
from dim.evals.finetune import Classifier, FineTuning, accuracies, finetuned
from dim.evals.unlabelled import information_maximisation
from dim.randomness import generator


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Trained on the made images until it is nearly always right."""
    from dim.encoders import Encoder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Encoder("small8x8", 1)
    return finetuned(made, made_data(), None, how=FineTuning(steps=60))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- adaptation


def test_adaptation_repairs_what_low_contrast_breaks(classifier):
    target = corrupted(made_data(), "contrast")
    found = adapt(classifier, target, steps=20)
    assert accuracies(classifier, made_data())["accuracy"] > 0.95
    assert found["before"] == accuracies(classifier, target)
    assert found["before"]["accuracy"] < 0.8
    assert found["after"]["accuracy"] > found["before"]["accuracy"] + 0.15


def test_it_returns_plain_numbers_with_every_setting(classifier):
    found = adapt(classifier, made_data(), steps=1, seed=2, losses={"pseudo": 0.5})
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("before", "statistics", "after", "augmented", "losses", "diversity", "steps", "seed", "batch", "lr")
    }
    assert all(found[name].keys() == {"accuracy", "class_accuracy"} for name in ("before", "statistics", "after"))
    assert adapt(classifier, made_data(), steps=1)["losses"] == {"information": 1.0}


def test_the_classifier_given_stays_and_the_head_never_moves(classifier):
    before, random_state = state(classifier), torch.get_rng_state()
    adapt(classifier, corrupted(made_data(), "noise"), VIEW, steps=2, losses={"information": 1.0, "consistency": 1.0})
    assert equal(before, classifier.state_dict())
    assert not any(m.training for m in classifier.modules())
    assert all(p.requires_grad for p in classifier.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    moved = adapted(classifier, made_data(), how=Adaptation(steps=2))
    assert equal(classifier.head.state_dict(), moved.head.state_dict())
    for name, value in classifier.encoder.state_dict().items():
        unused = name.startswith("layers.y.")  # the head reads fc
        assert torch.equal(value, moved.encoder.state_dict()[name]) == unused, name
    assert not any(m.training for m in moved.modules())


@pytest.mark.parametrize("diversity", [0.1, 1.0])
def test_one_step_by_hand(classifier, diversity):
    model = Classifier(classifier.encoder, "fc", classifier.head)
    target = unbalanced(made_data(), 0.01)  # so that diversity has a gradient: 100, 10 and 1 images
    how = Adaptation(diversity=diversity, steps=1, seed=4, batch=30, lr=1e-5)
    found = adapted(model, target, None, how)
    start = adapted(model, target, None, replace(how, lr=0.0)).train()  # a copy
    rows = torch.randperm(111, generator=generator(4, "unlabelled images", 0))[:30]
    information_maximisation(start(target.train.images[rows].float() / 255 * 2 - 1), diversity).backward()
    for name, weight in start.named_parameters():
        if name.startswith(("head", "encoder.layers.y")):
            continue
        sure = weight.grad.abs() > 1e-5
        step = (dict(found.named_parameters())[name] - weight)[sure]
        assert sure.any()
        assert (step.sign() == -weight.grad.sign()[sure]).float().mean() > 0.99
        assert step.abs().median().item() == pytest.approx(1e-5, rel=0.05)


def test_gradients_do_not_add_up_over_steps(classifier):
    gradients = []
    for steps in (1, 3):
        found = adapted(classifier, made_data(), how=Adaptation(steps=steps, batch=300, lr=0.0))
        gradients.append(found.encoder.layers["fc1"][1].weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_no_label_of_the_target_is_read(classifier):
    target = made_data()
    blind = replace(
        target,
        train=Split(target.train.images, torch.full((300,), -1)),
        test=Split(target.test.images[:0], target.test.labels[:0]),
    )
    losses = {"information": 1.0, "pseudo": 1.0, "consistency": 1.0}
    one, other = (adapted(classifier, data, VIEW, Adaptation(losses, steps=2)) for data in (target, blind))
    assert equal(one.state_dict(), other.state_dict())


def test_statistics_alone_stand_beside_it(classifier):
    target = corrupted(made_data(), "contrast")
    model = finetuned(classifier.encoder, target, 1, how=FineTuning(steps=1, encoder_lr=0.0, lr=0.0))  # a copy
    model.head.load_state_dict(classifier.head.state_dict())
    model.encoder.load_state_dict(classifier.encoder.state_dict())
    set_statistics(model.encoder, target, target.train)
    assert adapt(classifier, target, steps=1)["statistics"] == accuracies(model, target)


def test_statistics_are_those_of_the_images_that_adapt(classifier):
    """Neither those of the test images nor those of the labelled ones, which have another contrast here."""
    plain = made_data()
    dim = corrupted(plain, "contrast")
    target = replace(dim, unlabelled=plain.train)
    by_images = {}
    for name in ("pretraining", "train", "test"):
        model = copy.deepcopy(classifier)
        set_statistics(model.encoder, target, getattr(target, name))
        by_images[name] = accuracies(model, target)
    assert adapt(classifier, target, steps=1)["statistics"] == by_images["pretraining"]
    for other in ("train", "test"):
        assert by_images[other]["accuracy"] > by_images["pretraining"]["accuracy"] + 0.1


def test_same_seed_same_bits(classifier):
    first, again, other = (adapted(classifier, made_data(), how=Adaptation(steps=2, seed=seed)) for seed in (0, 0, 1))
    assert equal(first.state_dict(), again.state_dict())
    assert not equal(first.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": {}}, "losses has no weight above 0: there is nothing to adapt by"),
        ({"losses": {"entropy": 1.0}}, "losses has 'entropy': choose among"),
        ({"losses": {"consistency": 1.0}}, "give a view"),
        ({"batch": 0}, "batch is 0: it must be at least 1"),
        ({"lr": 1e38, "steps": 3}, r"not finite: lower lr 1e\+38"),
    ],
)
def test_mistakes_are_named_in_one_line(classifier, settings, message):
    with pytest.raises(UserError, match=message) as error:
        adapt(classifier, made_data(), **settings)
    assert "\n" not in str(error.value)


# ---- targets


def test_noise_is_gaussian_of_the_stated_size():
    grey = torch.full((50, 3, 16, 16), 128, dtype=torch.uint8)
    changed = noise(grey, draws())
    assert changed.dtype == torch.uint8
    difference = changed.double() - 128
    assert difference.std().item() == pytest.approx(25.5, rel=0.02)
    assert difference.mean().item() == pytest.approx(0, abs=0.3)
    assert ((difference / 25.5) ** 4).mean().item() == pytest.approx(3, rel=0.05)  # a Gaussian's; 1.8 if uniform
    assert torch.equal(noise(grey, draws(), sd=0.0), grey)


def test_noise_is_cut_to_the_levels_and_never_wraps_round():
    black, white = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    assert noise(black, draws()).max() < 128
    assert noise(white, draws()).min() > 128
    sixteen = torch.full((20, 1, 8, 8), 15, dtype=torch.uint8)
    assert noise(sixteen, draws(), levels=16).max() == 16
    middle = torch.full((50, 1, 16, 16), 8, dtype=torch.uint8)
    assert noise(middle, draws(), levels=16).double().std().item() == pytest.approx((1.6**2 + 1 / 12) ** 0.5, rel=0.03)


def test_contrast_by_hand():
    image = torch.tensor([[[0, 100], [200, 100]], [[10, 10], [10, 10]]], dtype=torch.uint8)[None]
    assert contrast(image, draws()).tolist() == [[[[85, 100], [115, 100]], [[10, 10], [10, 10]]]]
    assert contrast(image, draws(), share=0.0).tolist() == [[[[100, 100], [100, 100]], [[10, 10], [10, 10]]]]
    assert torch.equal(contrast(image, draws(), share=1.0), image)


def test_corrupted_data_keep_labels_and_differ_by_seed_image_and_split():
    grey = Split(torch.full((700, 1, 8, 8), 128, dtype=torch.uint8), torch.arange(700) % 3)
    data = Dataset("grey", grey, grey, 3, unlabelled=grey)
    made, again, other = corrupted(data, "noise"), corrupted(data, "noise"), corrupted(data, "noise", seed=1)
    assert made.name == "grey, noise"
    for part in (made.train, made.test, made.unlabelled):
        assert part.images.shape == grey.images.shape
        assert torch.equal(part.labels, grey.labels)
    assert torch.equal(made.train.images, again.train.images)
    assert len(made.train.images.flatten(1).unique(dim=0)) == 700  # no chunk repeats another
    for different in (other.train, made.test, made.unlabelled):
        assert (different.images == made.train.images).float().mean() < 0.1
    assert torch.equal(corrupted(data, "contrast").train.images, grey.images)


def test_levels_of_the_data_reach_the_corruption():
    full = Split(torch.full((5, 1, 8, 8), 16, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    assert corrupted(Dataset("digits", full, full, 1, levels=16), "noise").train.images.max() == 16


def test_unbalanced_sizes_and_members():
    data = made_data()
    made = unbalanced(data, ratio=0.25)
    assert made.train.labels.bincount().tolist() == [100, 50, 25]
    assert made.test.labels.bincount().tolist() == [20, 10, 5]
    known = {tuple(image.flatten().tolist()): int(label) for image, label in zip(*parts(data.train), strict=True)}
    found = [known[tuple(image.flatten().tolist())] for image in made.train.images]
    assert found == made.train.labels.tolist()
    assert len({tuple(image.flatten().tolist()) for image in made.train.images}) == 175
    assert equal_splits(unbalanced(data, 0.25).train, made.train)
    assert not equal_splits(unbalanced(data, 0.25, seed=1).train, made.train)
    assert equal_splits(unbalanced(data, 1.0).train, data.train)
    assert unbalanced(data, 1e-9).train.labels.bincount().tolist()[2] == 1


def test_an_unbalanced_target_has_no_images_without_labels(classifier):
    data = replace(made_data(), unlabelled=made_data().train)
    target = unbalanced(data, 0.1)
    assert target.pretraining is target.train
    found = adapt(classifier, target, steps=2)
    assert found["before"]["accuracy"] > 0.9


def parts(split):
    return split.images, split.labels


def equal_splits(one, other):
    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: corrupted(data, "fog"), "corruption is 'fog': choose among noise, contrast"),
        (lambda data: unbalanced(data, 0.0), "ratio is 0.0: it must be above 0 and at most 1"),
    ],
)
def test_wrong_targets_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call(made_data())


def test_every_corruption_gives_uint8_images():
    images = made_data().train.images
    for corrupt in module.CORRUPTIONS.values():
        changed = corrupt(images, draws(), 255)
        assert (changed.dtype, changed.shape) == (torch.uint8, images.shape)
        assert not torch.equal(changed, images)
