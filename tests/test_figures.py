"""Figures: the numbers drawn against loops and the log, and pages for every kind of run."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import tiny
from small_sets import pictures as write_pictures

import evaluate
import train
from dim import build, checkpoint
from dim.config import UserError
from dim.critics import Concat, Dot
from dim.data import Dataset, Split
from dim.encoders import Encoding
from dim.estimators import infonce, jsd
from dim.figures import captions, curves, drawing
from dim.negatives import NEGATIVES
from dim.objective import Objective, Term
from dim.pool import batch_pool
from dim.reading import saved

NAMES = ["bounds.png", "training.png", "scores.png", "codes.png"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(folder, *words):
    torch.set_num_threads(1)
    assert train.main(tiny(folder, *words)) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """No prior, one term with a ceiling, three rows."""
    return trained(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Two terms, one without a ceiling and one symmetric, a prior, a probe, clipped, one row; a dollar in its name."""
    words = {
        "--objective.local.estimator": "dv",
        "--objective.glob.weight": "0.5",
        "--objective.glob.units": "8",
        "--objective.glob.symmetric": "true",
        "--objective.prior.weight": "0.1",
        "--train.clip": "1",
        "--train.batch_size": "120",
        "--run.log_every": "1000",
        "--run.probe_every": "1",
    }
    return trained(tmp_path_factory.mktemp("runs") / "two $terms$", *itertools.chain(*words.items()))


def parts(folder):
    """What evaluate.py gives a figure, and the rows of the log."""
    config, rows = saved(folder), [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return config, build.dataset(config), checkpoint.load(folder), rows


def levels(panel):
    return {level.label.split()[0]: level.y for level in panel.levels}


# ---- the numbers


@pytest.mark.parametrize(("kind", "k"), [("all", 0), ("sampled", 7), ("shifted", 2)])
@pytest.mark.parametrize("make", [Dot, Concat])
def test_the_scores_are_those_of_a_loop(kind, k, make):
    torch.manual_seed(0)
    critic, negatives, images, places = make(3, 5, 8).eval(), NEGATIVES[kind](k), 6, 4
    codes = Encoding(normal(images, 5, 2, 2), normal(images, 2, 3, 3, seed=1), normal(images, 7), normal(images, 3, seed=2))
    objective = Objective(
        Term(critic, jsd, negatives), Term(make(3, 18, 8).eval(), infonce, NEGATIVES["all"](0), symmetric=True)
    )
    scores = curves.score_samples(objective, codes, seed=0)
    pos, neg = scores["local"]

    a, b = critic.embed(codes.y, codes.map.flatten(2))
    every = [
        [[critic.score(a[i], b[j, place]).item() for place in range(places)] for j in range(images)] for i in range(images)
    ]
    rows = negatives(batch_pool(b, torch.arange(images)), 0, 0)
    assert neg.shape == (images, negatives.count(images - 1, places))
    for i in range(images):
        assert pos[i].tolist() == pytest.approx(every[i][i], abs=1e-5)
        others = range(images * places) if rows is None else rows[i].tolist()
        pairs = [divmod(row, places) for row in others if rows is not None or row // places != i]
        assert all(j != i for j, _ in pairs)
        assert neg[i].tolist() == pytest.approx([every[i][j][place] for j, place in pairs], abs=1e-5)

    pos, neg = scores["global"]  # the first direction: anchors are the codes
    assert pos.shape == (images, 1)
    assert neg.shape == (images, images - 1)
    assert not pos.requires_grad


def test_few_scores_are_all_shown_and_many_are_drawn():
    few = normal(10, 10)
    assert torch.equal(curves.thinned(few, 100), few.flatten())
    many = torch.arange(10_000.0)
    drawn = curves.thinned(many, 1000)
    assert len(drawn) == 1000
    assert drawn.mean().item() == pytest.approx(5000, abs=4 * 2887 / 1000**0.5)
    assert torch.equal(drawn, curves.thinned(many, 1000))


def test_the_bounds_are_those_of_the_log(plain, rich):
    config, _, _, rows = parts(plain)
    (panel,) = curves.bound_panels(rows, config)
    assert len(rows) == 3
    assert list(panel.curves[0].y) == [row["local/bound_nats"] for row in rows]
    assert list(panel.curves[0].x) == [row["epoch"] for row in rows]
    assert levels(panel) == {"chance": 0, "ceiling": rows[-1]["local/ceiling_nats"]}
    assert f"K = {rows[-1]['local/negatives_per_anchor']}" in panel.title

    config, _, _, rows = parts(rich)
    local, glob = curves.bound_panels(rows, config)
    assert levels(local) == {"chance": 0}  # dv has no ceiling
    assert levels(glob) == {"chance": 0, "ceiling": rows[-1]["global/ceiling_nats"]}
    assert levels(glob)["ceiling"] == pytest.approx(math.log(120), abs=1e-5)  # both directions have 119 negatives
    assert local.title.startswith("Local term, weight 1: dv, dot critic of 8 units, K = 128 (shifted)")
    assert "infonce, symmetric" in glob.title
    assert "symmetric: the mean of both directions" in captions.of_bounds(config)[-1]


def test_a_start_far_below_chance_is_cut_off_and_said():
    def panel(*values):
        facts = {"local/chance_nats": 0.0, "local/ceiling_nats": None, "local/negatives_per_anchor": 4}
        rows = [{"epoch": i + 1.0, "local/bound_nats": value} | facts for i, value in enumerate(values)]
        return curves.bound_panels(rows, build.Config())[0]

    assert panel(-34.1, 1.0, 2.0).floor == drawing.Level("below: down to -34.1", -1)
    assert panel(-34.1, 1.0, 2.0).curves[0].y == [-34.1, 1.0, 2.0]
    assert panel(-1.9, 1.0, 2.0).floor is None
    assert panel(2.0, 1.0, -34.1).floor is None  # never the end of a run
    assert panel(-3.0, -2.0).floor is None


def test_jsd_is_not_called_information():
    rows = [{"epoch": 1.0, "local/bound_jsd": 0.5, "local/chance_jsd": 0.0, "local/ceiling_jsd": 1.38629}]
    config = build.Config()
    (panel,) = curves.bound_panels([rows[0] | {"local/negatives_per_anchor": 4}], config)
    assert panel.y == "twice the JS divergence"
    assert "not nats of mutual information" in captions.NATURE["jsd"]
    assert captions.NATURE.keys() == build.ESTIMATORS.keys()


def test_the_course_of_a_run(plain, rich):
    config, data, _, rows = parts(rich)
    found = {panel.title.split()[0]: panel for panel in curves.training_panels(rows, config, data)}
    assert list(found) == ["Linear", "Effective", "Prior", "Gradient"]  # one row: the learning rate does not change
    assert list(found["Linear"].curves[1].y) == [100 * rows[-1]["probe/y_accuracy"]]
    assert levels(found["Linear"]) == {"chance": 10}
    assert levels(found["Effective"]) == {"at": 64, "collapsed:": 1}
    assert levels(found["Prior"]) == {"2": 2 * math.log(2), "log": math.log(2)}
    assert levels(found["Gradient"]) == {"clipped": 1}
    config, data, _, rows = parts(plain)
    titles = [panel.title.split()[0] for panel in curves.training_panels(rows, config, data)]
    assert titles == ["Effective", "Gradient", "Learning"]


def test_the_codes_are_shown_as_the_prior_sees_them(plain, rich):
    for folder, span in ((rich, (0, 1)), (plain, None)):
        config, data, state, _ = parts(folder)
        drawn = curves.drawn_images(config, data)
        found = curves.trained_samples(folder, config, data, state, drawn)
        encoder = build.encoder(config, data.shape)
        encoder.load_state_dict(state["encoder"])
        y = curves.pictures(encoder, data, data.train.images[drawn.order[:1000]])
        with torch.no_grad():
            y = encoder.eval()(y).y
        assert torch.allclose(found.y, y, atol=1e-5)
        assert torch.allclose(found.seen, y.sigmoid() if span else y, atol=1e-5)
        prior = "uniform" if span else ""
        together, each = curves.code_panels(found.seen, prior)
        assert np.allclose(together.samples[0].values, found.seen.flatten())
        assert span is None or (together.edges[0], together.edges[-1]) == span
        area = np.trapezoid(together.goal.y, together.goal.x)
        assert area == pytest.approx(1, abs=1e-3)
        assert list(each.curves[0].y) == pytest.approx(sorted(found.seen.double().std(0, correction=0).tolist()))
        assert each.levels[0].y == pytest.approx(12**-0.5 if span else 1)
    assert "no prior was trained" in captions.of_codes(10, "training", config, 3)[-1].lower()


def test_the_images_shown_are_of_the_validation_part_in_a_mixed_order(rich, plain):
    config, data, *_ = parts(rich)
    images, order, kind = curves.drawn_images(config, data)
    assert kind == "validation"
    assert images is data.train
    assert sorted(order.tolist()) == sorted(data.validation(config.data.split_seed)[1].tolist())
    assert len(data.train.labels[order[:60]].unique()) == 10
    config, data, *_ = parts(plain)  # a batch is larger than the validation part
    images, order, kind = curves.drawn_images(config, data)
    assert (kind, len(order)) == ("training", len(data.train))
    unlabelled = Dataset("folder", Split(data.train.images, torch.full((len(order),), -1)), data.test, classes=0)
    assert curves.drawn_images(config, unlabelled).kind == "training"


# ---- the pages


@pytest.mark.parametrize("run", ["plain", "rich"])
def test_four_pages_are_written_and_say_what_they_show(run, request, capsys):
    from PIL import Image

    folder = request.getfixturevalue(run)
    assert evaluate.main([str(folder), "--figures", "curves"]) == 0
    assert capsys.readouterr().out.count("saved as ") == 4
    assert not (folder / "report.json").exists()
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(NAMES)
    for name in NAMES:
        with Image.open(folder / "figures" / name) as image:
            assert image.format == "PNG"
            assert image.width == 1280
            assert 600 < image.height < 2400
            pixels = np.asarray(image.convert("L"))
            words = image.text["Description"]
        assert 0.005 < (pixels < 128).mean() < 0.2
        assert (pixels[:, -8:] > 250).all()  # no label leaves the page
        assert (pixels[:, :8] > 250).all()
        assert f"Run {folder.name}: " in words
        assert "seed 0. digits, 1,257 training images 1 x 8 x 8" in words


def test_a_folder_without_labels_streamed(tmp_path):
    write_pictures(tmp_path / "images", {"a": 20, "b": 20})
    words = {
        "--data.name": "folder",
        "--data.root": tmp_path / "images",
        "--data.memory": "0",
        "--data.workers": "0",
        "--train.batch_size": "16",
        "--objective.local.critic": "concat",
        "--objective.local.scale": "1",
    }
    folder = trained(tmp_path / "r", *map(str, itertools.chain(*words.items())))
    assert evaluate.main([str(folder), "--figures", "curves"]) == 0
    assert len(list((folder / "figures").iterdir())) == 4


def test_from_the_command_line(plain, command):
    done = command("evaluate.py", plain, "--figures", "curves")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("saved as ") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.popitem(), "checkpoint.pt does not fit"),
        (lambda weights: weights.update({next(iter(weights)): torch.zeros(1)}), "size mismatch"),
        (lambda weights: weights.update(dict.fromkeys(weights, 3)), "checkpoint.pt does not fit"),
        (lambda weights: next(iter(weights.values())).view(-1)[:1].fill_(torch.nan), "holds weights that are not finite"),
    ],
)
def test_damaged_critics_are_one_line(change, message, plain, tmp_path, capsys):
    for name in ("config.yaml", "checkpoint.pt", "metrics.jsonl"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    state = checkpoint.load(tmp_path)
    change(state["objective"])
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint.sealed(state))
    assert evaluate.main([str(tmp_path), "--figures", "curves"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_what_cannot_be_drawn_is_one_line(plain, monkeypatch, capsys, tmp_path):
    def message():
        assert evaluate.main([str(folder), "--figures", "curves"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    folder = tmp_path / "r"
    folder.mkdir()
    for name in ("config.yaml", "checkpoint.pt"):
        (folder / name).write_bytes((plain / name).read_bytes())
    assert "metrics.jsonl cannot be read: No such file" in message()
    (folder / "metrics.jsonl").write_text("")
    assert "has no row yet" in message()
    (folder / "metrics.jsonl").write_text('{"step": 1,')
    assert "a row is damaged" in message()
    (folder / "metrics.jsonl").write_bytes((plain / "metrics.jsonl").read_bytes())
    (folder / "figures").write_text("in the way")
    assert "bounds.png cannot be written" in message()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "needs the package matplotlib: pip install matplotlib" in message()


def test_rows_behind_the_checkpoint_are_not_drawn(plain, tmp_path):
    _, _, state, rows = parts(plain)
    (tmp_path / "metrics.jsonl").write_bytes((plain / "metrics.jsonl").read_bytes() + b'{"step": 99}\n{"st')
    assert curves.log_rows(tmp_path, state) == rows
    with pytest.raises(UserError, match="no row yet"):
        curves.log_rows(tmp_path, state | {"log_length": 0})
    (tmp_path / "metrics.jsonl").write_bytes(b"[" * state["log_length"])
    with pytest.raises(UserError, match="a row is damaged"):
        curves.log_rows(tmp_path, state)


# ---- drawing


def test_labels_keep_their_places_unless_they_would_overlap():
    assert drawing.apart([0.1, 0.9, 0.5], [0.1] * 3) == pytest.approx([0.1, 0.9, 0.5])
    assert drawing.apart([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.45, 0.55])
    assert drawing.apart([0.52, 0.5, 0.9], [0.2, 0.1, 0.1]) == pytest.approx([0.585, 0.435, 0.9])
    assert drawing.apart([], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_no_two_labels_overlap(seed):
    centres, heights = normal(7, seed=seed).tolist(), (0.05 + normal(7, seed=9).abs()).tolist()
    found = drawing.apart(centres, heights)
    order = sorted(range(7), key=found.__getitem__)
    assert order == sorted(range(7), key=centres.__getitem__)
    for i, j in itertools.pairwise(order):
        assert found[j] - found[i] >= (heights[i] + heights[j]) / 2 - 1e-9


def test_numbers_have_three_digits():
    assert [drawing.number(value) for value in (1.3, 24.78, 100, 0, -0.09264)] == ["1.30", "24.8", "100", "0.00", "-0.0926"]


def test_the_bins_hold_all_values_or_the_only_one():
    values = np.array([-3.0, 1.0, 2.0])
    assert np.histogram(values, curves.edges(values, 10))[0].sum() == 3
    assert np.histogram(np.ones(5), curves.edges(np.ones(5), 10))[0].sum() == 5
