"""The clean protocol around the probes: what chooses, what is refitted, what is read once, and over what it spreads."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import clouds_of, made_data
from torch import nn

from dim import data, datasets
from dim.build import PROBES
from dim.config import Data, UserError
from dim.evals import linear, mlp, protocol, sections
from dim.evals.features import raw_pixels
from dim.evals.knn import KNN
from dim.evals.protocol import COLUMNS, Columns, Kind
from dim.evals.sections import Features


def probed(made: data.Dataset, kind: Kind = linear.LINEAR, columns: Columns | None = None) -> dict:
    """The cells of raw pixels."""
    rows = protocol.standardised(raw_pixels(made, made.train), raw_pixels(made, made.test))
    return protocol.probe(kind, "raw", *rows, made, 0, columns or protocol.columns_for(made))


def spied(sizes: list[int]) -> Kind:
    """The linear probe, noting on how many images each fit was made."""

    kind = linear.LINEAR

    def search(x, labels, x_validation):
        sizes.append(len(x))
        return kind.search(x, labels, x_validation)

    def predict(x, labels, x_test, value, subsets):
        sizes.extend(len(x) if subset is None else len(subset) for subset in subsets)
        return kind.predict(x, labels, x_test, value, subsets)

    return replace(kind, search=search, predict=predict)


def test_choose_takes_the_best_of_what_it_tried_on_validation_images():
    x, labels = clouds_of(300)
    how = protocol.choose(linear.LINEAR, x[:200], labels[:200], x[200:], labels[200:], 2)
    tried = linear.GRID[: len(how["tried"])]
    scores = {c: (linear.fit(x[:200], labels[:200], c).predict(x[200:]) == labels[200:]).double().mean().item() for c in tried}
    assert how["validation_accuracy"] == pytest.approx(max(scores.values()), abs=0.011)
    assert scores[how["C"]] == pytest.approx(how["validation_accuracy"], abs=0.011)
    assert 3 <= len(tried) < len(linear.GRID)


def listed(scores: list[float], patience: int) -> dict:
    """What `choose` makes of validation accuracies, in tenths, in this order."""

    def search(x, labels, x_validation):
        for value, score in enumerate(scores):
            yield value, torch.arange(10) < 10 * score

    kind = Kind("listed", "v", search, None, patience)
    return protocol.choose(kind, None, None, None, torch.ones(10, dtype=torch.bool), patience)


def test_two_worse_numbers_of_neighbours_do_not_end_the_search():
    assert listed([0.5, 0.4, 0.4, 0.9, 0.1, 0.1, 0.1, 1.0], KNN.patience)["v"] == 3


def test_choose_stops_where_the_last_values_are_below_the_best():
    assert listed([0.1, 0.5, 0.4, 0.3, 0.9], 2)["v"] == 1
    assert list(listed([0.1, 0.5, 0.4, 0.3, 0.9], 2)["tried"]) == ["0", "1", "2", "3"]
    assert listed([0.1, 0.5, 0.4, 0.3, 0.9], 3)["v"] == 4
    assert listed([0.1, 0.5, 0.4, 0.5, 0.4, 0.9], 2)["v"] == 5  # equal accuracies do not end it
    assert listed([0.5, 0.5, 0.5], 2)["v"] == 0  # the first of equals
    assert listed([0.5, 0.4, 0.3, 0.2, 0.9], None)["v"] == 4  # without patience all are tried


def test_few_images_do_not_end_the_search_at_the_weak_end_of_the_grid():
    """With a strong penalty all C predict the same: equal accuracies are no reason to stop."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    x = torch.randn(40, 60, generator=draws) * 0.5 + 3 * torch.eye(60)[labels]
    chosen = protocol.choose(linear.LINEAR, x[:30], labels[:30], x[30:], labels[30:], 2)
    assert chosen["C"] > 1e-3
    assert len(chosen["tried"]) > 6


@pytest.mark.parametrize("unit", [2.0**-60, 2.0**90])
def test_standardised_knows_no_unit(unit):
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0.1
    plain, scaled = (protocol.standardised(part[:200], part[200:]) for part in (x, x * unit))
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))
    assert plain[0].std(0, correction=0).tolist() == pytest.approx([1, 1, 1, 0, 1], abs=1e-5)


def test_standardised_uses_the_training_features_only():
    x = torch.cat([clouds_of(300)[0], torch.full((300, 1), 7.0)], 1).float()  # a dead feature
    train, test = protocol.standardised(x[:200], x[200:] + 100)
    assert train.mean(0).tolist() == pytest.approx([0] * 7, abs=1e-5)
    assert train.std(0, correction=0).tolist() == pytest.approx([1] * 6 + [0], abs=1e-5)
    assert test[:, :6].min() > 10
    assert train.dtype == test.dtype == torch.float32


def test_label_draws_are_balanced_distinct_and_the_same_each_time():
    labels = torch.arange(100) % 5
    draws = protocol.label_draws(labels, 3, 10)
    for index in draws:
        assert len(set(index.tolist())) == 15
        assert labels[index].bincount().tolist() == [3] * 5
    assert len({tuple(index.tolist()) for index in draws}) == 10
    assert all(torch.equal(a, b) for a, b in zip(draws, protocol.label_draws(labels, 3, 10), strict=True))


def test_the_knob_is_chosen_without_the_test_split():
    made = made_data()
    good = probed(made)["all"]
    wrong = replace(made, test=data.Split(made.test.images, (made.test.labels + 1) % 3))
    bad = probed(wrong)["all"]
    assert good["accuracy"] > 0.95
    assert bad["accuracy"] < 0.05
    assert (good["C"], good["tried"]) == (bad["C"], bad["tried"])


def test_a_probe_is_chosen_on_nine_tenths_and_refitted_on_all():
    sizes: list[int] = []
    probed(made_data(), spied(sizes), Columns(resampled=False))
    assert sizes == [270, 300]


def test_resamples_are_four_fifths_of_each_class_and_their_spread_is_said():
    made, sizes = made_data(), []
    cells = probed(made, spied(sizes))
    assert list(cells) == ["all", "resamples"]
    assert sizes == [270, 300] + [240] * 5
    subsets = protocol.subsets_of(Columns(), made)["resamples"]
    for subset in subsets:
        assert made.train.labels[subset].bincount().tolist() == [80] * 3
        assert len(subset.unique()) == 240
    assert len({tuple(subset.tolist()) for subset in subsets}) == 5
    x, x_test = protocol.standardised(raw_pixels(made, made.train), raw_pixels(made, made.test))
    fits = [linear.fit(x[subset], made.train.labels[subset], cells["all"]["C"]) for subset in subsets]
    scores = torch.tensor([linear.accuracy(fit, x_test, made.test.labels) for fit in fits])
    assert cells["resamples"]["accuracy"] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert cells["resamples"]["sd"] == pytest.approx(scores.std().item(), abs=1e-6)
    assert cells["all"]["sd"] is None
    assert (
        "5 fits, each on 80% of each class, C as for all" in protocol.described(linear.LINEAR, made, Columns())[1]["resamples"]
    )


def test_few_labels_have_a_knob_of_their_own_and_never_see_the_other_labels():
    made, sizes = made_data(), []
    columns = protocol.columns_for(made, [5])
    cells = probed(made, spied(sizes), columns)
    assert list(cells) == ["all", "resamples", "5"]
    assert sizes == [270, 300] + [240] * 5 + [15] + [15] * 10
    assert cells["5"]["tried"] != cells["all"]["tried"]
    with pytest.raises(UserError, match="91 labels a class are asked for: made has from 1 to 90 in each"):
        protocol.columns_for(made, [91])
    with pytest.raises(UserError, match="from 1 to 90"):
        protocol.columns_for(made, [0, 5])


def numbered(made: data.Dataset, columns: Columns, split_seed: int = 0, failing: tuple[int, ...] = ()) -> tuple[dict, ...]:
    """Cells, and the images of each search and of each fit, of a probe whose features are the numbers of the images.

    Test images have negative numbers. failing: the fits that do not converge, counted from 0.
    """
    searches: list[tuple[list, list]] = []
    fits: list[list] = []

    def search(x, labels, x_validation):
        assert torch.equal(labels, made.train.labels[x[:, 0].long()])
        searches.append((x[:, 0].tolist(), x_validation[:, 0].tolist()))
        yield 1.0, made.train.labels[: len(x_validation)]

    def predict(x, labels, x_test, value, subsets):
        for subset in subsets:
            fits.append((x if subset is None else x[subset])[:, 0].tolist())
            yield torch.zeros(len(x_test), dtype=torch.long), len(fits) - 1 not in failing

    x, x_test = torch.arange(300.0)[:, None], -1 - torch.arange(60.0)[:, None]
    cells = protocol.probe(Kind("numbered", "v", search, predict), "numbers", x, x_test, made, split_seed, columns)
    return cells, searches, fits


@pytest.mark.parametrize("split_seed", [0, 3])
def test_a_knob_is_chosen_on_the_validation_part_and_fitted_on_none_of_it(split_seed):
    made = made_data()
    fitting, validation = (set(part.tolist()) for part in made.validation(split_seed))
    _, searches, _ = numbered(made, Columns(few=(20, 5)), split_seed)
    assert [len(x) for x, _ in searches] == [270, 60, 15]
    for x, x_validation in searches:
        assert set(x) <= fitting
        assert set(x_validation) == validation


def test_few_labels_are_other_ones_in_each_draw():
    made = made_data()
    _, _, fits = numbered(made, Columns(few=(5,), resampled=False))
    assert fits == [list(range(300)), *(index.tolist() for index in protocol.label_draws(made.train.labels, 5, 10))]
    assert len({tuple(fit) for fit in fits}) == 11


def test_a_column_converged_where_all_its_fits_did():
    def converged(*failing: int) -> list[bool]:
        cells, *_ = numbered(made_data(), Columns(few=(5, 1)), failing=failing)  # 1, 5, 10 and 10 fits
        return [cell["converged"] for cell in cells.values()]

    assert converged() == [True] * 4
    assert converged(0) == [False, True, True, True]
    assert converged(3, 15) == [True, False, False, True]


def test_the_digits_protocol_has_its_columns_and_draws():
    digits = datasets.digits(Data())
    assert COLUMNS["digits"].knobs == {"C": 1.0}
    seen = Features({"x": (raw_pixels(digits, digits.train), raw_pixels(digits, digits.test))}, nn.Identity())
    rows = {row.name: row for row in sections.probe("linear", linear.LINEAR, digits, [], [], 0).rows}
    assert list(rows) == [protocol.UNSCALED, "raw pixels"]
    for name, accuracy in ((protocol.UNSCALED, 0.919), ("raw pixels", 0.920)):
        # scikit-learn's logistic regression with C = 1, measured apart: 91.9 unscaled, 92.0 standardised
        cells = rows[name].act(seen, {})
        assert list(cells) == ["all", "10", "5", "1"]
        assert cells["all"]["accuracy"] == pytest.approx(accuracy, abs=0.003)
        assert [cell["sd"] is None for cell in cells.values()] == [True, False, False, False]
        assert all(cell["converged"] for cell in cells.values())
        assert [cell["C"] for cell in cells.values()] == [1.0] * 4


def test_official_folds_stand_beside_all_labels_in_place_of_resamples():
    folds = tuple(torch.arange(300)[k::5] for k in range(3))
    made, sizes = replace(made_data(), folds=folds), []
    cells = probed(made, spied(sizes))
    assert list(cells) == ["all", "folds"]
    assert sizes == [270, 300, 60, 60, 60]
    assert cells["folds"]["C"] == cells["all"]["C"]
    x, x_test = protocol.standardised(raw_pixels(made, made.train), raw_pixels(made, made.test))
    probes = [linear.fit(x[fold], made.train.labels[fold], cells["all"]["C"]) for fold in folds]
    scores = [linear.accuracy(probe, x_test, made.test.labels) for probe in probes]
    assert cells["folds"]["accuracy"] == pytest.approx(sum(scores) / 3, abs=1e-6)
    assert cells["folds"]["sd"] == pytest.approx(torch.tensor(scores).std().item(), abs=1e-6)
    words = protocol.described(linear.LINEAR, made, Columns())[1]
    assert "over the 3 official folds of 60 labels, C and standardisation as for all 300" in words["folds"]
    assert "folds" not in protocol.described(linear.LINEAR, made_data(), Columns())[1]


def test_only_columns_that_are_not_known_are_measured_with_the_knob_that_was_chosen():
    fitted = []

    def search(x, labels, x_validation):
        fitted.append("search")
        yield from ((value, torch.full((len(x_validation),), int(value == 2))) for value in (1.0, 2.0, 3.0))

    def predict(x, labels, x_test, value, subsets):
        fitted.append((value, len(subsets)))
        yield from ((torch.zeros(len(x_test), dtype=torch.long), True) for _ in subsets)

    made = made_data()
    made.train.labels[made.validation(0)[1]] = 1  # so that 2 is best
    run = partial(protocol.probe, Kind("made up", "v", search, predict), "raw")
    pair = raw_pixels(made, made.train), raw_pixels(made, made.test)
    first = run(*pair, made, 0, Columns(resampled=False))
    assert fitted == ["search", (2.0, 1)]
    more = run(*pair, made, 0, Columns(few=(3,), draws=4), known=first)
    assert fitted[2:] == [(2.0, 5), "search", (2.0, 4)]  # resamples as all; few labels choose their own
    assert list(more) == ["resamples", "3"]
    assert {key: more["resamples"][key] for key in ("v", "tried")} == {key: first["all"][key] for key in ("v", "tried")}
    assert run(*pair, made, 0, Columns(few=(3,), draws=4), known=first | more) == {}
    assert len(fitted) == 5


@pytest.mark.parametrize("name", PROBES)
def test_blobs_are_told_apart_and_shuffled_labels_are_not(name, monkeypatch):
    monkeypatch.setattr(mlp, "LOOKS", 8)  # of the MLP, in one second
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    x = torch.randn(600, 60, generator=draws) + torch.randn(3, 60, generator=draws)[labels]
    scores = []
    for given in (labels, labels[torch.randperm(600, generator=draws)]):
        images = torch.zeros(600, 1, 1, 1, dtype=torch.uint8)
        made = data.Dataset("blobs", data.Split(images[:300], given[:300]), data.Split(images[300:], given[300:]), 3)
        rows = protocol.standardised(x[:300], x[300:])
        cells = protocol.probe(PROBES[name], name, *rows, made, 0, Columns(resampled=False))
        scores.append(cells["all"]["accuracy"])
    assert scores[0] > 0.95
    assert abs(scores[1] - 1 / 3) < 0.1  # a standard deviation of chance is 0.027


def test_features_that_are_not_finite_and_labels_of_one_class_are_refused():
    made = made_data()
    x, x_test = raw_pixels(made, made.train), raw_pixels(made, made.test)
    for bad in (float("nan"), float("inf")):
        broken = x_test.clone()
        broken[3, 5] = bad
        with pytest.raises(UserError, match="the features raw are not all finite"):
            protocol.probe(linear.LINEAR, "raw", x, broken, made, 0, Columns())
    one = replace(made, train=data.Split(made.train.images, made.train.labels * 0))
    with pytest.raises(UserError, match="made has labels of 1 class: a probe needs two"):
        protocol.probe(linear.LINEAR, "raw", x, x_test, one, 0, Columns())


def test_few_labels_can_stand_alone():
    """No fit on all labels, which takes most of the time, where nobody asks for it."""
    found, searches, fits = numbered(made_data(), Columns(few=(5,), everything=False, resampled=False))
    assert list(found) == ["5"]
    assert len(searches) == 1
    assert len(fits) == 10
