"""Fine-tuning on few labels: one step by hand, what may and may not change, which labels are read."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dim import information as info
from dim.config import UserError
from dim.data import Dataset, Split
from dim.encoders import Encoder
from dim.evals import finetune as module
from dim.evals.finetune import Classifier, FineTuning, accuracies, chosen_labels, finetune, finetuned, places
from dim.evals.protocol import label_draws
from dim.randomness import generator
from dim.views import Chain, Crop, Flip

VIEW = Chain((Crop(8, 1), Flip()))


def made_data(n=360, train=300) -> Dataset:
    """Images of three kinds: which third of the rows is brighter; noise over all of it."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = torch.randint(60, 160, (n, 1, 8, 8), generator=draws)
    for label in range(3):
        images[labels == label, :, 3 * label : 3 * label + 2] += 60
    images = images.to(torch.uint8)
    return Dataset("made", Split(images[:train], labels[:train]), Split(images[train:], labels[train:]), 3)


@pytest.fixture
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder("small8x8", 1)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_few_labels_teach_far_above_chance(encoder):
    found = finetune(encoder, made_data(), 10, steps=40, view=VIEW)
    assert found["accuracy"] > 0.8
    assert found["chance"] == 1 / 3
    assert found["labels"] == 30


def test_shuffled_labels_are_at_chance(encoder):
    data = made_data(n=660)
    shuffled = torch.randperm(660, generator=torch.Generator().manual_seed(1)) % 3
    train, test = Split(data.train.images, shuffled[:300]), Split(data.test.images, shuffled[300:])
    found = finetune(encoder, replace(data, train=train, test=test), 10, steps=20)
    assert abs(found["accuracy"] - 1 / 3) < 0.1  # a standard deviation of chance is 0.025


def test_it_returns_plain_numbers_with_every_setting(encoder):
    found = finetune(encoder, made_data(), 2, steps=1, losses={"pseudo": 0.5}, layer="y", seed=3)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("accuracy", "class_accuracy", "chance", "labels", "labels_per_class", "augmented", "layer", "steps", "seed"),
        *("losses", "diversity", "batch", "unlabelled_batch", "lr", "encoder_lr"),
    }
    assert (found["labels_per_class"], found["layer"], found["seed"], found["augmented"]) == (2, "y", 3, False)
    assert found["losses"] == {"pseudo": 0.5}


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_given_stays_as_it_was(encoder, training):
    encoder.train(training)
    encoder.layers["conv1"][0].weight.requires_grad_(False)
    before, random_state = state(encoder), torch.get_rng_state()
    finetune(encoder, made_data(), 5, steps=3, losses={"information": 1.0}, view=VIEW)
    assert equal(before, encoder.state_dict())
    assert all(m.training == training for m in encoder.modules())
    assert not encoder.layers["conv1"][0].weight.requires_grad
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("layer", "unmoved"), [("y", ()), ("fc", ("y",)), ("conv", ("fc1", "y"))])
def test_the_whole_encoder_below_the_layer_moves(encoder, layer, unmoved):
    """Also where the encoder came frozen: parameters and BatchNorm's statistics."""
    encoder.requires_grad_(False)
    model = finetuned(encoder, made_data(), 5, how=FineTuning(layer, steps=2))
    after = model.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        moved = name.split(".")[1] not in unmoved
        counter = "running" in name or "num_batches" in name  # every pass goes through all layers
        assert torch.equal(value, after[name]) == (not moved and not counter), name
    assert not any(m.training for m in model.modules())
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert model.head.in_features == {"y": 64, "fc": 512, "conv": 2048}[layer]


@pytest.mark.parametrize("losses", [{}, {"information": 0.3}, {"pseudo": 0.7}, {"consistency": 2.0}, {"sharpened": 0.6}, None])
def test_one_step_by_hand(encoder, losses, monkeypatch):
    """Adam's first step is minus the rate times the sign of the gradient, of the loss written out here."""
    monkeypatch.setattr(module, "consistency", lambda p, q: kl_by_hand(p.detach(), q / 0.4))
    monkeypatch.setattr(module, "sharpened", lambda p, q: kl_by_hand(p.detach() / 0.4, q))
    monkeypatch.setattr(module, "pseudo_labels", lambda p: F.cross_entropy(p, p.detach().argmax(1)))  # all are confident
    losses = {"information": 0.3, "pseudo": 0.7, "consistency": 2.0, "sharpened": 0.6} if losses is None else losses
    data, seed, encoder = made_data(), 5, encoder.double()
    how = FineTuning("fc", 1, seed, losses, diversity=0.4, batch=6, unlabelled_batch=7, lr=1e-3, encoder_lr=1e-5)
    found = finetuned(encoder, data, 4, VIEW, how)

    start = module.first_classifier(encoder, data, how)
    labelled = label_draws(data.train.labels, 4, seed + 1)[seed]
    labelled = labelled[torch.randperm(12, generator=generator(seed, "labelled images", 0))[:6]]
    unlabelled = torch.randperm(300, generator=generator(seed, "unlabelled images", 0))[:7]
    x = changed(data.train.images[labelled], generator(seed, "labelled views", 0))
    u = data.train.images[unlabelled].double() / 255 * 2 - 1
    v = changed(data.train.images[unlabelled], generator(seed, "unlabelled views", 0))
    pictures = [x] + [u] * bool(losses) + [v] * bool({"consistency", "sharpened"} & losses.keys())
    logits = start(torch.cat(pictures))
    loss = F.cross_entropy(logits[:6], data.train.labels[labelled])
    p = logits[6:13]
    if "information" in losses:
        joint = p.softmax(1) / 7
        conditional = -(joint * p.log_softmax(1)).sum()
        marginal = -(joint.sum(0) * joint.sum(0).log()).sum()
        assert conditional.item() == pytest.approx(info.conditional_entropy(joint))
        loss = loss + 0.3 * (conditional - 0.4 * marginal)
    if "pseudo" in losses:
        loss = loss - 0.7 * p.log_softmax(1).amax(1).mean()
    if "consistency" in losses:
        loss = loss + 2 * kl_by_hand(p.detach(), logits[13:] / 0.4)
    if "sharpened" in losses:
        loss = loss + 0.6 * kl_by_hand(p.detach() / 0.4, logits[13:])
    loss.backward()
    after = dict(found.named_parameters())
    for name, weight in start.named_parameters():
        if weight.grad is None:
            assert torch.equal(after[name], weight)
            continue
        rate = 1e-3 if name.startswith("head") else 1e-5
        sure = weight.grad.abs() > 1e-6  # Adam divides by |gradient| + 1e-8
        assert sure.float().mean() > 0.3
        torch.testing.assert_close((after[name] - weight)[sure], -rate * weight.grad.sign()[sure], rtol=0.02, atol=0)
    for name, value in start.named_buffers():
        torch.testing.assert_close(dict(found.named_buffers())[name], value)


def test_gradients_do_not_add_up_over_steps(encoder):
    """Without a step of the weights, and with all labelled images in each batch, the last gradient is that of one step."""
    gradients = []
    for steps in (1, 3):
        how = FineTuning(steps=steps, batch=6, lr=0.0, encoder_lr=0.0)
        gradients.append(finetuned(encoder.double(), made_data(), 2, None, how).head.weight.grad)
    torch.testing.assert_close(*gradients)


def changed(images, draws):
    """The view's pictures of uint8 images, as the encoder sees them."""
    return VIEW(images.double() / 255, torch.rand(len(images), VIEW.draws, generator=draws) * 2 - 1) * 2 - 1


def kl_by_hand(p, q):
    return F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")


def test_same_seed_same_bits_and_another_seed_others(encoder):
    data, losses = made_data(), {"consistency": 1.0, "information": 1.0}
    first, again, other = (
        finetuned(encoder, data, 3, VIEW, FineTuning(steps=2, seed=seed, losses=losses)).state_dict() for seed in (0, 0, 1)
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_the_head_is_a_function_of_the_seed(encoder):
    first, again, other = (module.first_classifier(encoder, made_data(), FineTuning(seed=seed)).head for seed in (0, 0, 1))
    assert equal(first.state_dict(), again.state_dict())
    assert not torch.equal(first.weight, other.weight)


def test_only_the_drawn_labels_are_read(encoder):
    """Other labels are wrong here, those of `unlabelled` are no classes at all, and there are no test images."""
    data, how = made_data(), FineTuning(steps=2, seed=1, losses={"information": 1.0, "pseudo": 1.0})
    index = chosen_labels(data, 4, 1)
    assert torch.equal(index, label_draws(data.train.labels, 4, 2)[1])
    labels = (data.train.labels + 1) % 3
    labels[index] = data.train.labels[index]
    blind = replace(
        data,
        train=Split(data.train.images, labels),
        test=Split(data.test.images, (data.test.labels + 1) % 3),
        unlabelled=Split(data.train.images, torch.full((300,), -1)),
    )
    expected = finetuned(encoder, data, 4, None, how)

    module_draws = module.label_draws
    try:
        module.label_draws = lambda *given: label_draws(data.train.labels, *given[1:])
        found = finetuned(encoder, blind, 4, None, how)
    finally:
        module.label_draws = module_draws
    assert equal(expected.state_dict(), found.state_dict())


def test_unlabelled_images_are_those_of_pretraining(encoder):
    data, seen = made_data(), []

    class Spy(Split):
        def batches(self, index, size):
            seen.append((len(index), size))
            yield from super().batches(index, size)

    extra = Spy(data.train.images[:40], torch.full((40,), -1))
    data = replace(data, unlabelled=extra)
    Spy.to = lambda self, device: self
    finetuned(encoder, data, 4, None, FineTuning(steps=3))
    assert seen == []  # no loss on them, so they are not even read
    finetuned(encoder, data, 4, None, FineTuning(steps=3, losses={"information": 1.0}, unlabelled_batch=10))
    finetuned(encoder, data, 4, None, FineTuning(steps=3, losses={"information": 1.0}))  # more asked for than there are
    assert seen == [(30, 10), (120, 40)]


def test_all_labels(encoder):
    data = made_data()
    assert chosen_labels(data, None, 7).tolist() == list(range(300))
    assert finetune(encoder, data, None, steps=1)["labels"] == 300


def test_every_image_is_seen_equally_often_and_orders_differ():
    order = places(10, 4, 25, 0, "x")
    assert order.shape == (25, 4)
    assert order.flatten().bincount().tolist() == [10] * 10
    assert order.flatten()[:10].tolist() != order.flatten()[10:20].tolist()
    assert torch.equal(places(10, 4, 5, 0, "x"), order[:5])
    assert not torch.equal(places(10, 4, 5, 0, "y"), order[:5])


def test_accuracies_by_hand():
    """Two classes, nine images to one: a classifier that always says 0 is right for 0.9 of the images, half of the classes."""
    labels = torch.tensor([0] * 9 + [1])
    split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), labels)
    head = torch.nn.Linear(64, 3)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([1.0, 0.0, 0.0])
    model = Classifier(Encoder("small8x8", 1), "y", head).train()
    data = Dataset("made", Split(split.images[:7], torch.full((7,), 2)), split, 3)  # class 2 has no test image, and all others
    assert accuracies(model, data, batch=4) == {"accuracy": pytest.approx(0.9), "class_accuracy": pytest.approx(0.5)}
    assert model.training
    assert model.encoder.training


def test_accuracies_are_those_of_eval_mode(encoder):
    """No image depends on the others of its batch, and BatchNorm's statistics stay."""
    data = made_data()
    model = Classifier(encoder, "fc", torch.nn.Linear(512, 3)).train()
    before = state(model)
    whole, parts = accuracies(model, data, 60), accuracies(model, data, 7)
    assert whole == parts
    assert equal(before, model.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "fc1"}, "layer is 'fc1': choose among conv, fc, y"),
        ({"losses": {"info": 1.0}}, "losses has 'info': choose among information, pseudo, consistency, sharpened"),
        ({"losses": {"pseudo": -1.0}}, "gives pseudo the weight -1.0: it must be finite and not negative"),
        ({"losses": {"pseudo": float("nan")}}, "the weight nan"),
        ({"losses": {"consistency": 1.0}}, "the consistency loss compares .* give a view, such as crop_flip"),
        ({"losses": {"sharpened": 1.0}}, "the sharpened loss compares .* give a view, such as crop_flip"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"labels_per_class": 101}, "labels_per_class is 101: made has from 1 to 100 in each class"),
        ({"labels_per_class": 0}, "labels_per_class is 0"),
        ({"encoder_lr": 1e38, "steps": 3}, r"not finite: lower lr 0.001 and encoder_lr 1e\+38"),
    ],
)
def test_mistakes_are_named_in_one_line(encoder, settings, message):
    with pytest.raises(UserError, match=message) as error:
        finetune(encoder, made_data(), **{"labels_per_class": 2, "batch": 4} | settings)
    assert "\n" not in str(error.value)


def test_data_without_labels_are_refused(encoder):
    data = replace(made_data(), classes=0)
    with pytest.raises(UserError, match="no labels to probe"):
        finetune(encoder, data, 2)
