"""Grids as tables and pictures: means, intervals and paired differences by hand, and evaluate.py on a grid's folder."""

import json
import math
import statistics

import pytest
from conftest import ROOT, tiny
from scipy.stats import ttest_1samp

import evaluate
import train
from dim import grid
from dim.config import Config, Train, UserError
from dim.critics import CRITICS
from dim.figures import negatives
from dim.figures.drawing import look_of
from dim.figures.negatives import Point, axis_of, interval, markdown, panels, table

K = "objective.local.k"
ESTIMATOR = "objective.local.estimator"


def point(estimator, k, seed, y, bound=1.0):
    unit, top = {"jsd": ("jsd", 2 * math.log(2)), "infonce": ("nats", math.log(k + 1)), "dv": ("nats", None)}[estimator]
    return Point({ESTIMATOR: estimator, K: k, "seed": seed}, {"y accuracy": y, "bound": bound}, unit, top)


POINTS = [
    point("infonce", 1, 0, 50.0),
    point("infonce", 1, 1, 53.0),
    point("infonce", 8, 0, 60.0),
    point("jsd", 1, 1, 56.0),
    point("jsd", 1, 0, 54.0),
    point("jsd", 8, 0, 57.0),
    point("dv", 8, 0, 40.0, bound=3.0),
]


def test_the_table_by_hand():
    rows = table(POINTS, K)
    assert [(row["line"], row[K]) for row in rows] == [("jsd", 1), ("jsd", 8), ("dv", 8), ("infonce", 1), ("infonce", 8)]
    by = {(row["line"], row[K]): row for row in rows}
    cell = by["infonce", 1]["y accuracy"]
    assert cell["mean"] == 51.5
    assert cell["seeds"] == 2
    assert cell["minus"]["mean"] == -3.5  # seed by seed: 50 - 54 and 53 - 56
    assert cell["minus"]["interval"] == pytest.approx(12.706205 * math.sqrt(0.5) / math.sqrt(2), rel=1e-6)
    assert by["infonce", 8]["y accuracy"]["interval"] is None
    assert by["infonce", 8]["y accuracy"]["minus"]["mean"] == 3.0
    assert "minus" not in by["jsd", 1]["y accuracy"]
    assert "minus" not in by["dv", 8]["bound"]  # nats against jsd
    assert by["jsd", 8]["ceiling"] == 2 * math.log(2)


def test_the_interval_is_scipys():
    values = [3.1, 2.7, 4.0, 3.3]
    found, known = interval(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["mean"] - found["interval"] == pytest.approx(known.low)
    assert found["mean"] + found["interval"] == pytest.approx(known.high)


def test_the_axis_is_k_or_the_number_with_most_values():
    assert axis_of({"seed": [0, 1, 2], K: [1, 8], "train.lr": [1, 2, 3]}) == K
    assert axis_of({"seed": [0, 1, 2], "objective.local.temperature": [0.1, 1.0], ESTIMATOR: ["jsd", "dv"]}).endswith(
        "temperature"
    )
    with pytest.raises(UserError, match="needs an axis of numbers beside the seed, and its runs differ in"):
        axis_of({"seed": [0, 1], "objective.local.symmetric": [False, True]})


def test_lines_are_named_by_what_is_neither_axis_nor_seed():
    name = negatives.line_of({ESTIMATOR: "jsd", K: 3, "objective.local.projector": 64, "seed": 2, "x.learn_it": True}, K)
    assert name == "jsd, projector 64, learn it true"
    assert negatives.line_of({K: 3, "seed": 1}, K) == "all"


def test_critics_stand_in_the_order_of_their_table():
    points = [
        one._replace(setting={"objective.local.critic": critic, K: 8, "seed": 0})
        for critic, one in zip(sorted(CRITICS), POINTS, strict=False)
    ]
    assert [row["line"] for row in table(points, K)] == list(CRITICS)


def test_panels_keep_units_apart_and_lines_look_the_same_everywhere():
    points = [one._replace(truth=2.0) for one in POINTS]
    found = panels(table(points, K), K, "K")
    assert [panel.title for panel in found] == ["y accuracy", "bound, jsd", "bound, nats"]
    accuracy, in_jsd, in_nats = found
    look = {curve.label.split()[0]: curve.look for curve in accuracy.curves}
    assert look == {"jsd": 0, "dv": 1, "infonce": 2}
    assert [(c.label.split()[0], c.look) for c in in_nats.curves if not c.grey] == [("dv", 1), ("infonce", 2)]
    assert [level.label for level in in_jsd.levels] == ["ceiling 1.39"]
    assert [c.y for c in in_nats.curves if c.grey] == [[math.log(2), math.log(9)]]
    assert [level.y for level in in_nats.levels] == [2.0]
    assert all(panel.log_x for panel in found)
    assert accuracy.curves[2].spread[0] == pytest.approx(interval([50, 53])["interval"])


def test_markdown_says_mean_interval_and_difference():
    text = markdown(table(POINTS, K), K)
    assert "| infonce | 8 | 60.00 (+3.00) | 1.00 | 2.197 |" in text
    assert "| infonce | 1 | 51.50 +- 19.06 (-3.50 +- 6.35) |" in text


GRID = """
train: {epochs: 1, batch_size: 419}
views: {number: 1, kind: none}
objective:
  local: {units: 8, negatives: sampled}
run: {log_every: 1}
grid:
  objective.local.estimator: [infonce, jsd]
  objective.local.k: [2, 20]
"""


def test_two_truths_are_no_line_and_an_axis_with_0_is_not_logarithmic():
    two = [point("dv", k, 0, 1.0)._replace(truth=truth) for k, truth in ((1, 2.0), (8, 6.0))]
    assert panels(table(two, K), K, "K")[-1].levels == []
    zero = [point("dv", k, 0, 1.0) for k in (0, 8)]
    assert not panels(table(zero, K), K, "K")[0].log_x


def test_the_first_line_is_the_same_whichever_seeds_are_missing():
    """axes_of puts the seed first among the settings; jsd's first seed is not there."""
    some = [point("dv", 8, 0, 41.0), point("infonce", 8, 0, 60.0), point("jsd", 8, 1, 57.0), point("infonce", 8, 1, 61.0)]
    rows = table([one._replace(setting={"seed": one.setting["seed"]} | one.setting) for one in some], K)
    assert [row["line"] for row in rows] == ["jsd", "dv", "infonce"]
    assert "minus" not in rows[1]["y accuracy"]
    assert rows[2]["y accuracy"]["minus"]["mean"] == 4.0  # seed 1 against seed 1, not the first against the first


def test_the_caption_says_how_many_seeds_a_point_has():
    config = train.read([], ROOT / "configs" / "digits.yaml")[0]
    rows = table(POINTS, K)
    _, (about, points) = negatives.words(rows, K, {K: [1, 8], ESTIMATOR: ["jsd"], "seed": [0, 1]}, config, "protocol", 7)
    assert "mean over 1 to 2 seeds" in points
    assert "A = 128 anchors" in points
    _, (_, varied) = negatives.words(rows, K, {K: [1, 8], "train.batch_size": [8, 32]}, config, "protocol", 7)
    assert "each of A anchors, the batch, A K" in varied
    assert about.startswith("7 runs of 30 epochs on digits. protocol.")


def test_the_term_that_is_there_is_the_one_shown(tmp_path):
    (tmp_path / "summary.json").write_text('{"last": {"global/bound_jsd": 0.5, "global/ceiling_jsd": 1.4}}')
    words = ["--objective.local.weight", "0", "--objective.glob.weight", "1", "--objective.glob.estimator", "jsd"]
    path = tmp_path / "c.yaml"
    path.write_text("")
    config = train.read(["--config", str(path), *words], path)[0]
    report = {"linear": {"rows": {"trained y": {"all": {"accuracy": 0.25, "validation_accuracy": 0.5}}}}}
    found = negatives.point(tmp_path, config, ["seed"], report)
    assert found.values == {"y accuracy": 25.0, "y validation accuracy": 50.0, "bound": 0.5}
    assert (found.unit, found.ceiling) == ("jsd", 1.4)


def test_what_cannot_be_drawn_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: pytest.fail("measured"))
    for name, words in (("a", ["--seed", "0"]), ("b", ["--seed", "1"])):
        assert train.main(tiny(tmp_path / "grid" / name, *words)) == 0
    assert evaluate.main([str(tmp_path / "grid")]) == 2
    assert "needs an axis of numbers beside the seed, and its runs differ in seed" in capsys.readouterr().err
    (tmp_path / "grid" / "b" / "config.yaml").write_text("data: {name: gaussian}\ntrain: {steps: 3}\n")
    assert evaluate.main([str(tmp_path / "grid")]) == 2
    assert "holds runs on Gaussians and on images" in capsys.readouterr().err


def test_a_grid_on_images_from_its_folder_to_its_picture(tmp_path, capsys):
    path = tmp_path / "some.yaml"
    path.write_text(GRID)
    folder = tmp_path / "grid"
    assert train.main(["--config", str(path), "--run.dir", str(folder)]) == 0
    assert evaluate.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "| jsd | 2 |" in said
    content = json.loads((folder / "negatives.json").read_text())
    assert content["axis"] == K
    assert content["anchors"] == 419
    assert [(row["line"], row[K]) for row in content["rows"]] == [("jsd", 2), ("jsd", 20), ("infonce", 2), ("infonce", 20)]
    for run in grid.runs_of(folder)[0]:
        report = json.loads((run / "report.json").read_text())["linear"]
        assert set(report["columns"]) == {"all", "10", "5", "1"}
        assert not any("conv" in name for name in report["rows"])
        name = run.name.split("_")
        row = next(row for row in content["rows"] if f"estimator-{row['line']}" == name[0] and f"k-{row[K]}" == name[1])
        for layer in ("fc", "y"):
            assert row[f"{layer} accuracy"]["mean"] == pytest.approx(
                100 * report["rows"][f"trained {layer}"]["all"]["accuracy"]
            )
        last = json.loads((run / "summary.json").read_text())["last"]
        assert row["bound"]["mean"] == last.get("local/bound_nats", last.get("local/bound_jsd"))
    assert (folder / "negatives.png").stat().st_size > 10_000

    for words, complaint in [
        (["--probes", "knn"], "a grid is evaluated by a linear probe alone"),
        (["--measures", "ndm"], "a grid is evaluated by a linear probe alone"),
        (["--figures", "curves"], "a grid is evaluated by a linear probe alone"),
    ]:
        assert evaluate.main([str(folder), *words]) == 2
        assert complaint in capsys.readouterr().err
    assert evaluate.main([str(folder), str(grid.runs_of(folder)[0][0])]) == 2
    assert "is a grid and other folders are none" in capsys.readouterr().err


def test_where_a_run_happened_is_no_axis():
    config = train.read([], ROOT / "configs" / "digits.yaml")[0]
    elsewhere = train.read(["--device", "cpu", "--data.root", "there", "--seed", "3"], ROOT / "configs" / "digits.yaml")[0]
    assert grid.axes_of([config, elsewhere]) == {"seed": [0, 3]}


def test_unfinished_runs_are_left_out_and_a_run_is_no_grid(tmp_path):
    assert train.main(tiny(tmp_path / "grid" / "k-2")) == 0
    (tmp_path / "grid" / "k-3").mkdir()
    (tmp_path / "grid" / "k-3" / "config.yaml").write_text("seed: 1\n")
    for summary in ("{}", "[" * 100_000, '{"step": 1, "steps": 3}', "\x00"):
        (tmp_path / "grid" / "k-3" / "summary.json").write_text(summary)
        assert grid.runs_of(tmp_path / "grid") == ([tmp_path / "grid" / "k-2"], [tmp_path / "grid" / "k-3"])
    assert grid.runs_of(tmp_path / "grid" / "k-2") == ([], [])
    assert grid.runs_of(tmp_path / "nothing") == ([], [])


def test_a_ceiling_that_is_everyones_names_no_line_and_a_title_says_what_is_compared():
    some = [point("infonce", k, 0, 60.0) for k in (1, 8)]
    (in_nats,) = [panel for panel in panels(table(some, K), K, "K") if panel.title == "bound, nats"]
    assert [curve.label for curve in in_nats.curves if curve.grey] == ["ceiling 2.20"]
    (in_nats,) = [panel for panel in panels(table([*some, *POINTS[5:]], K), K, "K") if panel.title == "bound, nats"]
    assert [curve.label for curve in in_nats.curves if curve.grey] == ["ceiling of infonce\n2.20"]
    rows, config = table(some, K), Config(train=Train(steps=3))
    titles = [
        negatives.words(rows, K, {K: [1, 8]} | more, config, "", 2)[0]
        for more in (
            {ESTIMATOR: ["jsd", "dv"]},
            {"objective.local.critic": ["dot", "concat"]},
            {"objective.local.critic": ["dot"], ESTIMATOR: ["jsd"]},
        )
    ]
    assert titles == [f"{who} against the number of negatives" for who in ("Estimators", "Critics", "Estimators")]


def test_a_hundred_lines_look_different():
    assert len({look_of(line) for line in range(100)}) == 100


def test_the_axis_says_what_k_counts():
    for kind, label in (("sampled", "K, negatives"), ("shifted", "k, shifts")):
        words = ["--objective.local.negatives", kind, "--objective.local.k", "2"]
        made = train.read(words, ROOT / "configs" / "digits.yaml")[0]
        assert negatives.along(K, made).startswith(label)
