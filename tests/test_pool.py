"""Pools: whose rows stand before an anchor, and that a queue is the list of the last rows."""

import json
import math

import pytest
import torch
from conftest import tiny

import train
from dim import checkpoint, objective
from dim.critics import Concat, Dot
from dim.estimators import ESTIMATORS
from dim.negatives import All, Sampled, Shifted
from dim.objective import Pair, Term
from dim.pool import Pool, Queue, batch_pool, skipping

L, U, BATCH, SIZE = 3, 2, 4, 12


def rows_of(image, step):
    """Rows [N, L, U] that say which image and step they are of."""
    return (image[:, None, None] * 100.0 + step).expand(-1, L, U) + torch.arange(L)[:, None] / 10


def test_batch_pool_is_the_batch():
    b = torch.randn(4, 3, 2)
    pool = batch_pool(b, torch.tensor([9, 2, 5, 7]))
    assert pool.b is b
    assert pool.own.tolist() == [0, 1, 2, 3]
    assert pool.out.tolist() == [[0], [1], [2], [3]]


def test_rows_behind_the_batch_belong_to_no_anchor():
    pool = batch_pool(torch.randn(6, 3, 2), torch.tensor([9, 2]))
    assert pool.own.tolist() == [0, 1]
    assert len(pool.b) == 6


@pytest.mark.parametrize("width", [1, 4])
def test_skipping_by_loop(width):
    out = torch.tensor([[0, 3], [1, 2], [2, 5]])
    found = skipping(torch.arange(4 * width).expand(3, -1), out * width, width)
    for gone, row in zip(out.tolist(), found.tolist(), strict=True):
        assert row == [place * width + one for place in range(6) if place not in gone for one in range(width)]


def epochs(images, batch, count, seed=0):
    """Batches of epochs in orders of their own, as training walks them."""
    for epoch in range(count):
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: images // batch * batch].split(batch)


@pytest.mark.parametrize("size", [4, 12, 16])
def test_a_queue_is_the_list_of_the_last_rows_and_leaves_out_the_own_image(size):
    """20 images in batches of 4: against a plain list over five epochs, order by order, an epoch less one batch at most."""
    queue, held = Queue(size, L, U), []
    for step, image in enumerate(epochs(20, BATCH, 5)):
        b = rows_of(image, step)
        if len(held) == size:
            pool = queue(b, image)
            assert pool.b.shape == (BATCH + size, L, U)
            assert torch.equal(pool.b[:BATCH], b)
            kept = {(int(n), s): rows_of(n[None], s)[0] for n, s in held}
            assert sorted(pool.b[BATCH:].flatten(1).tolist()) == sorted(r.flatten().tolist() for r in kept.values())
            assert pool.out.shape == (BATCH, 2)
            for place, number in enumerate(image.tolist()):
                own, gone = pool.out[place].tolist()
                assert own == place == pool.own[place]
                copies = [(n, s) for n, s in held if n == number]
                assert len(copies) <= 1
                n, s = copies[0] if copies else held[0]  # else one of the oldest
                left = pool.b[gone, 0, 0].item()
                assert left == n * 100 + s if copies else left % 100 == s
            assert queue.age(step).item() == pytest.approx(sum(step - s for _, s in held) / size)
        queue.push(b, image, step)
        held = [*held, *((n, step) for n in image)][-size:]
    assert len(held) == size


@pytest.mark.parametrize("negatives", [All(), Sampled(7), Sampled(39), Shifted(2)], ids=str)
@pytest.mark.parametrize("make", [lambda: Dot(5, 6, U, norm="none"), lambda: Concat(5, 6, U)], ids=["dot", "concat"])
def test_a_term_with_a_queue_by_loop(make, negatives):
    """Every negative is a row of another image; all of them once where all are asked for."""
    torch.manual_seed(0)
    critic, queue, image = make().double(), Queue(SIZE, L, U).double(), torch.tensor([3, 8, 20, 21])
    for step in range(3):
        queue.push(torch.randn(BATCH, L, U).double(), torch.arange(4 * step, 4 * step + 4), step)  # images 0 to 11
    term = Term(critic, ESTIMATORS["infonce"], negatives, queue)
    a, b = term.embed(torch.randn(BATCH, 5).double(), torch.randn(BATCH, 6, L).double())
    ((pos, neg),) = term.scores(Pair(a, b), image, seed=1, step=3)

    entries = [(n, b[i]) for i, n in enumerate(image.tolist())] + [(n, queue.rows[n]) for n in range(SIZE)]
    for i, number in enumerate(image.tolist()):
        assert pos[i].tolist() == pytest.approx([critic.score(a[i], b[i, place]).item() for place in range(L)])
        out = number if number < SIZE else 0  # its copy, or the oldest
        others = [row for j, (n, row) in enumerate(entries) if j != i and not (j >= BATCH and n == out)]
        scores = [critic.score(a[i], row[place]).item() for row in others for place in range(L)]
        assert len(scores) == (BATCH + SIZE - 2) * L
        if isinstance(negatives, All):
            assert neg[i].tolist() == pytest.approx(scores)
        else:
            assert neg.shape[1] == negatives.count(BATCH + SIZE - 2, L)
            for score in neg[i].tolist():
                assert min(abs(score - one) for one in scores) < 1e-12


def test_no_gradient_reaches_the_rows_and_rows_of_a_step_stand_behind_the_next():
    queue = Queue(SIZE, L, U)
    b = torch.randn(BATCH, L, U, requires_grad=True)
    for step in range(3):
        queue.push(b, torch.arange(BATCH) + 4 * step, step)
    pool = queue(b, torch.arange(BATCH) + 100)
    pool.b[BATCH:].sum().backward()
    assert b.grad.abs().sum() == 0
    assert not queue.rows.requires_grad


def test_two_views_give_the_first_ones_maps():
    pushed = []
    queue = Queue(4, L, U)
    queue.push = lambda b, image, step, unless: pushed.append((b, image, step))
    term = Term(Dot(2, 2, U, norm="none"), ESTIMATORS["jsd"], All(), queue)
    b = torch.randn(8, L, U)
    term.remember(Pair(torch.randn(8, U), b), torch.arange(4), 7, views=2)
    ((rows, _, step),) = pushed
    assert torch.equal(rows, b[:4])
    assert step == 7


WORDS = ["--objective.local.queue", "64", "--train.batch_size", "32"]


def test_a_run_with_a_queue_resumes_to_the_bit(tmp_path, monkeypatch):
    """Queue, pointer and ages are in the checkpoint: stopped in the middle of an epoch, the end is the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(tiny(whole, *WORDS)) == 0
    plain = objective.Objective.remember
    calls = []

    def remember(self, at, image, step, views=1, unless=None):
        plain(self, at, image, step, views, unless)
        if step >= 0:
            calls.append(step)
            if len(calls) == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(objective.Objective, "remember", remember)
    assert train.main(tiny(parts, *WORDS, "--run.save_every", "3")) == 130
    monkeypatch.undo()
    assert checkpoint.load(parts)["step"] == 6
    assert train.main(tiny(parts, *WORDS, "--run.save_every", "3")) == 0
    one, two = (checkpoint.load(folder) for folder in (whole, parts))
    assert one["objective"].keys() == two["objective"].keys() >= {"local.pool.rows", "local.pool.next"}
    for part in ("encoder", "objective"):
        for key, value in one[part].items():
            assert torch.equal(value, two[part][key]), key


def test_both_terms_remember_and_two_views_give_one_row_for_each_image(tmp_path):
    """Queues of two sizes, two views: filled from the start, ages and counts of each as its size says."""
    glob = ["--objective.glob.weight", "1", "--objective.glob.units", "8", "--objective.glob.queue", "128"]
    words = ["--objective.local.queue", "64", "--train.batch_size", "32", "--views.number", "2", "--run.log_every", "1"]
    assert train.main(tiny(tmp_path / "run", *words, *glob, "--train.steps", "3")) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["local/queue_age_steps"], row["global/queue_age_steps"]) == (1.5, 2.5)
    assert row["global/negatives_per_anchor"] == 32 + 128 - 2
    assert row["global/ceiling_nats"] == pytest.approx(math.log(159), rel=1e-5)
    assert row["global/read/infonce_ceiling"] == pytest.approx(math.log(159), rel=1e-5)
    state = checkpoint.load(tmp_path / "run")["objective"]
    for name, size in (("local", 64), ("glob", 128)):
        steps, counts = state[f"{name}.pool.born"].unique(return_counts=True)
        assert steps.tolist() == list(range(3 - size // 32, 3))  # from before the first step on
        assert set(counts.tolist()) == {32}
        assert state[f"{name}.pool.rows"].abs().sum((1, 2)).min() > 0


def test_a_queue_may_be_an_epoch_less_one_batch(tmp_path, capsys):
    """1,257 images in batches of 32: 39 steps, 1,248 images."""
    words = ["--train.batch_size", "32", "--train.steps", "1"]
    assert train.main(tiny(tmp_path / "most", *words, "--objective.local.queue", "1216")) == 0
    assert train.main(tiny(tmp_path / "more", *words, "--objective.local.queue", "1248")) == 2
    assert "it must hold less than an epoch, which has 1,248 images" in capsys.readouterr().err


def test_k_is_the_same_from_the_first_step_on_and_ages_are_logged(tmp_path):
    assert train.main(tiny(tmp_path / "run", *WORDS, "--run.log_every", "1")) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["local/queue_age_steps"] for row in rows} == {1.5}  # as the next step finds them: 64 / 32 steps, ages 1 and 2
    assert len({row["local/negatives_per_anchor"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective.local.queue", "50"], "it must be a multiple of train.batch_size, 32"),
        (["--objective.local.queue", "3200"], "it must hold less than an epoch, which has"),
        (
            ["--objective.local.queue", "32", "--objective.local.negatives", "sampled", "--objective.local.k", "9999"],
            "queue of 32",
        ),
    ],
)
def test_queues_that_cannot_be_are_refused(tmp_path, capsys, words, said):
    assert train.main(tiny(tmp_path / "run", "--train.batch_size", "32", *words)) == 2
    assert said in capsys.readouterr().err


def test_pool_is_what_it_says():
    assert Pool._fields == ("b", "own", "out")
