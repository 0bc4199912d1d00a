"""Who may be a negative, how often, and that every draw is a function of the seed and its place."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from dim.negatives import NEGATIVES, All, Sampled, Shifted
from dim.pool import Pool
from dim.randomness import generator, order

IMAGES, LOCATIONS = 5, 3
OWNS = {"in order": [0, 1, 2, 3, 4], "permuted": [3, 0, 4, 1, 2], "offset": [2, 3], "last": [4]}
CHOICES = {"one": Sampled(1), "some": Sampled(7), "every other": Sampled(12), "shift": Shifted(1), "all shifts": Shifted(4)}

each_own = pytest.mark.parametrize("own", OWNS.values(), ids=OWNS)
each_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def chosen(choice, own, images=IMAGES, locations=LOCATIONS, seed=0, step=0):
    """The rows [A, K] for anchors at these places of a pool."""
    own = torch.tensor(own)
    return choice(Pool(torch.zeros(images, locations, 2), own, own[:, None]), seed, step)


def others_of(place, images=IMAGES, locations=LOCATIONS):
    """The rows of the pool that do not show the image at this place."""
    return {j * locations + spot for j in range(images) if j != place for spot in range(locations)}


def test_the_names_in_a_configuration():
    assert {"all": All, "sampled": Sampled, "shifted": Shifted} == NEGATIVES


@each_own
@each_choice
def test_never_the_own_image_never_twice_and_as_many_as_promised(choice, own):
    for step in range(20):
        rows = chosen(choice, own, step=step)
        assert rows.dtype == torch.int64
        assert rows.shape == (len(own), choice.count(IMAGES - 1, LOCATIONS))
        for place, row in zip(own, rows.tolist(), strict=True):
            assert set(row) <= others_of(place)
            assert len(set(row)) == len(row)


def test_all_asks_for_the_table():
    assert chosen(All(), [0, 1]) is None
    assert All().count(IMAGES - 1, LOCATIONS) == 12


@each_own
def test_the_largest_sample_is_every_other_row(own):
    for place, row in zip(own, chosen(Sampled(12), own).tolist(), strict=True):
        assert set(row) == others_of(place)


@each_own
@pytest.mark.parametrize("k", [1, 3])
def test_shifts_are_the_maps_of_the_next_images(own, k):
    expected = [
        [((place + shift) % IMAGES) * LOCATIONS + spot for shift in range(1, k + 1) for spot in range(LOCATIONS)]
        for place in own
    ]
    assert chosen(Shifted(k), own).tolist() == expected
    assert chosen(Shifted(k), own, seed=1, step=5).tolist() == expected  # nothing is drawn


def test_a_shift_gives_every_row_to_the_same_number_of_anchors():
    counts = Counter(chosen(Shifted(2), range(IMAGES)).flatten().tolist())
    assert counts == dict.fromkeys(range(IMAGES * LOCATIONS), 2)


# ---- a sample is uniform


def test_sampled_covers_all_rows_evenly():
    """Each anchor's count of each row over the steps is binomial: within five standard deviations of k / 12."""
    k, steps, own = 4, 2000, [1, 4, 0]
    counts = torch.zeros(len(own), IMAGES * LOCATIONS)
    for step in range(steps):
        counts.scatter_add_(1, chosen(Sampled(k), own, step=step), torch.ones(len(own), k))
    share = k / 12
    margin = 5 * (steps * share * (1 - share)) ** 0.5
    assert margin < 0.2 * steps * share
    for place, count in zip(own, counts.tolist(), strict=True):
        for row in others_of(place):
            assert abs(count[row] - steps * share) < margin


def test_sampled_makes_every_subset_equally_likely():
    """Two of four rows: six subsets. Neighbouring rows are no likelier to come together than others."""
    steps, own = 1500, [0, 2]
    rows = [chosen(Sampled(2), own, images=3, locations=2, step=step).sort(1).values.tolist() for step in range(steps)]
    margin = 5 * (steps * 1 / 6 * 5 / 6) ** 0.5
    for anchor, place in enumerate(own):
        seen = Counter(tuple(row[anchor]) for row in rows)
        assert set(seen) == set(combinations(sorted(others_of(place, 3, 2)), 2))
        assert all(abs(count - steps / 6) < margin for count in seen.values())


def test_two_anchors_share_no_more_rows_than_independent_draws():
    """Of the rows open to both, each is taken by both with chance (k / others)^2."""
    k, steps, total = 4, 2000, 0
    for step in range(steps):
        one, two = chosen(Sampled(k), [1, 3], step=step).tolist()
        total += len(set(one) & set(two))
    common = len(others_of(1) & others_of(3))
    assert total / steps == pytest.approx(common * (k / 12) ** 2, rel=0.1)


# ---- a function of seed and step


def test_sampled_is_a_function_of_seed_and_step():
    own = list(range(IMAGES))
    first = chosen(Sampled(6), own, seed=3, step=8)
    torch.manual_seed(12345)  # the global state has no say
    assert torch.equal(first, chosen(Sampled(6), own, seed=3, step=8))
    for seed, step in [(4, 8), (3, 9), (8, 3)]:
        assert not torch.equal(first, chosen(Sampled(6), own, seed=seed, step=step))


def test_sampled_differs_between_anchors():
    """As places among the other images, else every anchor would lean on the same rows of a step; two may meet by chance."""
    rows = chosen(Sampled(6), range(20), images=20, locations=4)
    places = rows - 4 * (rows >= torch.arange(20)[:, None] * 4)
    assert len({tuple(sorted(row)) for row in places.tolist()}) >= 15


def test_sampled_depends_on_the_anchors_place_not_on_who_stands_beside_it():
    """So two ranks that hold half of the anchors each choose what one rank would."""
    whole = chosen(Sampled(6), range(IMAGES))
    for own in OWNS.values():
        assert torch.equal(chosen(Sampled(6), own), whole[own])


def test_draws_leave_the_global_state_alone():
    before = torch.get_rng_state()
    chosen(Sampled(6), [0, 1])
    order(0, 0, 10)
    assert torch.equal(before, torch.get_rng_state())


# ---- refusals


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="13 negatives asked of 12: 5 images in the pool, 3 locations"):
        chosen(Sampled(13), [0])
    with pytest.raises(ValueError, match="5 shifts asked of a pool of 5 images: at most 4"):
        chosen(Shifted(5), [0])


# ---- randomness


def first_numbers(*key):
    return tuple(torch.randint(2**40, (4,), generator=generator(*key)).tolist())


def test_generator_is_a_function_of_its_key():
    assert first_numbers(0, "order", 1) == first_numbers(0, "order", 1)
    keys = [
        (0, "order"), (1, "order"), (-1, "order"), (0, "views"), (0, "order", 0), (0, "order", 1), (1, "order", 0),
        (0, "order", 0, 0), (0, "order", 1, 23), (0, "order", 12, 3), (0, "order", 123), (0, "order1", 23), (2**40, "order"),
    ]  # fmt: skip
    assert len({first_numbers(*key) for key in keys}) == len(keys)


def test_neighbouring_keys_share_nothing():
    """Bits of neighbouring seeds' and steps' first draws agree half of the time, within five standard deviations."""
    draws = torch.stack([torch.randint(2, (64,), generator=generator(s, "negatives", t)) for s in range(20) for t in range(20)])
    agree = (draws[1:] == draws[:-1]).double().mean().item()
    assert abs(agree - 0.5) < 5 * 0.5 / (399 * 64) ** 0.5


def test_order_is_a_permutation_of_the_samples_new_at_each_epoch():
    orders = [tuple(order(0, epoch, 30).tolist()) for epoch in range(5)]
    assert all(sorted(one) == list(range(30)) for one in orders)
    assert len({tuple(range(30)), *orders, tuple(order(1, 0, 30).tolist())}) == 7
    assert orders[2] == tuple(order(0, 2, 30).tolist())
