"""Gradient caching: the gradient of the whole batch from chunks, to rounding; with batch statistics that of such groups."""

import json

import pytest
import torch
from conftest import tiny
from torch import nn

import train
from dim import checkpoint, chunks
from dim.chunks import as_before, embedded_in_chunks
from dim.critics import Concat, Dot
from dim.encoders import Encoder
from dim.estimators import ESTIMATORS
from dim.negatives import All, Sampled, Shifted
from dim.objective import Embedded, Objective, Pair, Term
from dim.pool import Queue, batch_pool
from dim.prior import Prior

N = 12


def parts(norm="none", estimator="infonce", negatives=None, make=None, pool=batch_pool, dropout=0.0, seed=0):
    """An encoder of 8 x 8 images and DIM(L+G) with a prior, in float64 and training mode."""
    torch.manual_seed(seed)
    encoder = Encoder("small8x8", 1, 6, "paper", norm)
    make = make or (lambda width: Dot(6, width, 8, 0.3, norm))
    codes = encoder.eval()(torch.zeros(2, 1, 8, 8))
    encoder.train()
    local = Term(make(codes.map.shape[1]), ESTIMATORS[estimator], negatives or All(), pool)
    glob = Term(Dot(6, codes.conv[0].numel(), 8, 0.3, norm), ESTIMATORS["jsd"], All())
    objective = Objective(local, glob, Prior(6, penalty=0.5), 0.7, 1.0, 0.3)
    if dropout:
        encoder = nn.Sequential(nn.Dropout(dropout), encoder)
    return encoder.double(), objective.double()


def gradients(encoder, objective, pictures, chunk, views=1, step=3):
    """The loss, every gradient and every buffer after one step's backward pass."""
    torch.manual_seed(5)  # what dropout draws from
    image, state = torch.arange(len(pictures) // views) + 40, nn.ModuleList([encoder, objective])
    at = embedded_in_chunks(lambda some: objective.embed(encoder(some)), state, pictures, chunk, views)
    losses = objective.losses(at, image, 0, step, views)
    (losses.encoder + losses.discriminator).backward()
    found = [p.grad.clone() for p in state.parameters() if p.grad is not None]
    state.zero_grad()
    return losses.encoder.detach(), found, [b.clone() for b in state.buffers()]


def same(one, two, bound=1e-12):
    """Losses, gradients and buffers agree, relative to the largest number of each."""
    assert len(one[1]) == len(two[1]) > 10
    for a, b in zip([one[0], *one[1], *one[2]], [two[0], *two[1], *two[2]], strict=True):
        assert (a - b).abs().max() <= bound * max(1e-3, b.abs().max())


def images(views=1, seed=1):
    return torch.randn(views * N, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 3, 4, 6])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_without_batch_statistics_it_is_the_plain_gradient(norm, views, chunk):
    pair, pictures = parts(norm), images(views)
    same(gradients(*pair, pictures, chunk, views), gradients(*pair, pictures, 0, views))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("negatives", [All(), Sampled(5), Shifted(2)], ids=str)
@pytest.mark.parametrize("critic", [Dot, Concat])
def test_with_every_estimator_critic_and_kind_of_negatives(critic, negatives, estimator):
    options = (8, 0.3, "none") if critic is Dot else (8,)
    pair = parts("none", estimator, negatives, lambda width: critic(6, width, *options))
    same(gradients(*pair, images(), 4), gradients(*pair, images(), 0))


def test_with_a_queue():
    queue = Queue(24, 9, 8)
    queue.rows.normal_(generator=torch.Generator().manual_seed(0))
    width = parts()[0](images()).map
    queue = Queue(24, width.shape[2] * width.shape[3], 8)
    queue.rows.normal_(generator=torch.Generator().manual_seed(0))
    pair = parts("none", pool=queue)
    same(gradients(*pair, images(), 3), gradients(*pair, images(), 0))


def test_batch_statistics_in_eval_mode_are_no_hindrance():
    encoder, objective = parts("batch")
    gradients(encoder, objective, images(), 0)  # running statistics that are not 0 and 1
    pair = encoder.eval(), objective.eval()
    same(gradients(*pair, images(), 4), gradients(*pair, images(), 0))


@pytest.mark.parametrize("views", [1, 2])
def test_in_training_mode_a_chunk_is_the_group_that_is_normalised(views):
    """Against the same steps written out: chunk by chunk with the graph kept, running statistics updated in that order."""
    chunk, pictures = 4, images(views)
    (encoder, objective), twin = parts("batch"), parts("batch")
    found = gradients(encoder, objective, pictures, chunk, views)

    order, groups = [], [torch.cat([torch.arange(i, i + chunk) + v * N for v in range(views)]) for i in range(0, N, chunk)]
    embedded = [twin[1].embed(twin[0](pictures[group])) for group in groups]
    order = torch.cat(groups).argsort()
    y = torch.cat([e.y for e in embedded])[order]
    local, glob = (
        Pair(*(torch.cat([getattr(e, name)[k] for e in embedded])[order] for k in (0, 1))) for name in ("local", "glob")
    )
    losses = twin[1].losses(Embedded(y, local, glob), torch.arange(N) + 40, 0, 3, views)
    (losses.encoder + losses.discriminator).backward()
    both = nn.ModuleList(twin)
    grads = [p.grad for p in both.parameters() if p.grad is not None]
    same(found, (losses.encoder.detach(), grads, list(both.buffers())))
    whole = gradients(*parts("batch"), pictures, 0, views)
    assert max((a - b).abs().max() for a, b in zip(found[1], whole[1], strict=True)) > 1e-6  # and not that of the whole batch
    counted = [b for name, b in both.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(b) for b in counted} == {N // chunk}


def test_dropout_draws_the_same_in_both_passes():
    """Against chunks with the graph kept, in the same order of draws; other draws would be far away."""
    (encoder, objective), twin = parts("none", dropout=0.4), parts("none", dropout=0.4)
    found = gradients(encoder, objective, images(), 4)
    torch.manual_seed(5)
    embedded = [twin[1].embed(twin[0](images()[i : i + 4])) for i in (0, 4, 8)]
    pairs = [Pair(*(torch.cat([getattr(e, name)[k] for e in embedded]) for k in (0, 1))) for name in ("local", "glob")]
    losses = twin[1].losses(Embedded(torch.cat([e.y for e in embedded]), *pairs), torch.arange(N) + 40, 0, 3)
    (losses.encoder + losses.discriminator).backward()
    both = nn.ModuleList(twin)
    same(found, (losses.encoder.detach(), [p.grad for p in both.parameters() if p.grad is not None], list(both.buffers())))


class Turning(nn.Module):
    """A layer whose buffer changes with each pass and scales the next, as spectral normalisation's does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        out = x * self.turn
        self.turn.mul_(1.5)
        return out


def test_the_second_pass_finds_the_state_that_the_first_had():
    encoder, objective = parts()
    found = gradients(nn.Sequential(Turning(), encoder), objective, images(), 4)
    scaled = images() * torch.tensor([1.0, 1.5, 2.25], dtype=torch.float64).repeat_interleave(4)[:, None, None, None]
    plain = gradients(*parts(), scaled, 0)
    assert found[2][0].item() == 1.5**3
    same((found[0], found[1], found[2][1:]), plain)


def test_buffers_are_put_back_even_where_something_fails():
    buffer = torch.tensor([1.0, 2.0])

    def failing():
        with as_before([buffer], [torch.tensor([5.0, 6.0])]):
            assert buffer.tolist() == [5, 6]
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        failing()
    assert buffer.tolist() == [1, 2]


def test_one_chunk_at_a_time_is_in_memory():
    """The encoder's largest activations of one chunk stand at any time: counted by what autograd keeps alive."""
    encoder, objective = parts()
    alive, most = [], []

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            alive.append(len(x))
            most.append(sum(alive))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            _ = ctx.saved_tensors
            alive.remove(len(gradient))
            return gradient

    class Watched(nn.Module):
        def forward(self, x):
            return encoder(Held.apply(x.requires_grad_()) if torch.is_grad_enabled() else x)

    watched = Watched()
    state = nn.ModuleList([encoder, objective])
    at = embedded_in_chunks(lambda some: objective.embed(watched(some)), state, images(), 3)
    alive.clear()  # the first pass keeps nothing: what follows is the second
    most.clear()
    objective.losses(at, torch.arange(N)).encoder.backward()
    assert max(most) == 3
    assert len(most) == 4


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_embeds_a_chunk_at_a_time_and_copies_no_queue(tmp_path, monkeypatch):
    """Two views of 20 images at once; the buffers that are put back are those of encoder and heads."""
    sizes, kept, plain = [], [], chunks.as_before
    monkeypatch.setattr(chunks, "as_before", lambda buffers, before: kept.append(len(buffers)) or plain(buffers, before))
    monkeypatch.setattr(Encoder, "forward", seen_by(sizes, Encoder.forward))
    words = ["--train.batch_size", "60", "--train.chunk", "20", "--views.number", "2", "--objective.local.queue", "120"]
    words += ["--train.epochs", "1", "--run.log_every", "100"]
    assert train.main(tiny(tmp_path / "run", *words)) == 0
    assert set(sizes[1:]) - {1, 2} == {40}  # the first are those of shapes
    state = checkpoint.load(tmp_path / "run")
    normalised = [key for key in [*state["encoder"], *state["objective"]] if "running" in key or "tracked" in key]
    assert set(kept) == {len(normalised)}


def seen_by(sizes, forward):
    def spied(self, images):
        sizes.append(len(images))
        return forward(self, images)

    return spied


def test_a_run_in_chunks_is_the_run_at_once(tmp_path):
    words = ["--norm", "layer", "--precision", "float64", "--train.batch_size", "200", "--objective.prior.weight", "0.1"]
    for name, chunk in (("whole", "0"), ("chunks", "50")):
        assert train.main(tiny(tmp_path / name, *words, "--train.chunk", chunk)) == 0
    whole, chunks = (checkpoint.load(tmp_path / name)["encoder"] for name in ("whole", "chunks"))
    for key, value in whole.items():
        torch.testing.assert_close(chunks[key], value, rtol=1e-7, atol=1e-9)
    assert rows(tmp_path / "whole")[-1]["loss"] == pytest.approx(rows(tmp_path / "chunks")[-1]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.chunk", "100"], "train.chunk is 100: it must divide train.batch_size, 419"),
        (["--train.chunk", "1"], "statistics of one picture say nothing"),
    ],
)
def test_chunks_that_cannot_be_are_refused(tmp_path, capsys, words, said):
    assert train.main(tiny(tmp_path / "run", *words)) == 2
    assert said in capsys.readouterr().err
