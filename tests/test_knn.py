"""Nearest neighbours against loops."""

import math

import pytest
import torch
from conftest import clouds_of

from dim.config import UserError
from dim.evals import knn


def cosine(a, b) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_the_vote_is_its_definition_as_loops(monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 7)  # several chunks, the last one smaller
    x, labels = clouds_of(60)
    queries = x[40:] + 0.1
    x, labels = x[:40], labels[:40] * 5 + 2  # labels need not be 0, 1, 2
    for k, predicted in knn.search(x, labels, queries):
        for query, found in zip(queries, predicted, strict=True):
            near = sorted(range(40), key=lambda i: -cosine(query, x[i]))[:k]
            votes: dict[int, float] = {}
            for i in near:
                votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosine(query, x[i]) / 0.07)
            assert found == max(votes, key=votes.__getitem__), k


def test_k_stays_within_the_images():
    x, labels = clouds_of(60)
    assert [k for k, _ in knn.search(x[:7], labels[:7], x)] == [1, 2, 5]
    with pytest.raises(UserError, match="10 nearest neighbours are asked for among 4 images"):
        list(knn.predict(x, labels, x, 10, [torch.arange(4)]))
    with pytest.raises(UserError, match="among 0 images: at least 1 is needed"):
        list(knn.search(x[:0], labels[:0], x))


def test_neighbours_come_from_the_subset_only_and_the_nearest_of_an_image_is_itself():
    x, labels = clouds_of(60)
    (whole, sure), (part, _) = knn.predict(x, labels, x, 1, [None, torch.arange(30, 60)])
    assert sure
    assert torch.equal(whole, labels)
    assert torch.equal(part[30:], labels[30:])
    assert not torch.equal(part[:30], labels[:30])


def test_large_features_do_not_overflow_and_zeros_are_similar_to_nothing():
    x, labels = clouds_of(30)
    (predicted, _), *_ = knn.predict((x * 1e6).float(), labels, (x * 1e-6).float(), 5, [None])
    (wanted, _), *_ = knn.predict(x.float(), labels, x.float(), 5, [None])
    assert torch.equal(predicted, wanted)
    similarity, _ = knn.nearest(x, torch.zeros(1, 6, dtype=x.dtype), 3)
    assert similarity.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("everything", [True, False])
def test_subsets_share_their_similarities_and_have_neighbours_of_their_own(monkeypatch, everything):
    monkeypatch.setattr(knn, "CHUNK", 7)
    x, _ = clouds_of(60)
    draws = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(40, generator=draws)[:size] for size in (25, 10)] + [None] * everything
    together = knn.nearest_of(x[:40], x[40:], 4, subsets)
    assert len(together) == len(subsets)
    for subset, (similarity, place) in zip(subsets, together, strict=True):
        alone, where = knn.nearest(x[:40] if subset is None else x[subset], x[40:], 4)
        assert torch.equal(place, where if subset is None else subset[where])
        assert torch.allclose(similarity, alone, rtol=1e-12)
