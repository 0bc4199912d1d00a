"""The report of a run and the comparison of several."""

import itertools
import json

import pytest
import torch

from dim import report
from dim.figures import comparison

RUN = {
    "weights_sha256": "w",
    "data_sha256": "d",
    "shape": [3, 32, 32],
    "fit": "none",
    "split_seed": 0,
    "data": "made",
    "seed": 0,
    "steps": 3,
    "weights": "last",
    "config": {"train.lr": 1.0, "encoder.name": "basic32x32", "views.kind": "none", "norm": "batch"},
}


def part(rows: dict[str, float], labels: tuple[str, ...] = ("all",)) -> dict:
    cell = {"sd": None, "converged": True, "seconds": 2.0}
    return {
        "protocol": "the protocol",
        "chance": 0.1,
        "columns": {label: f"{label} drawn" if label.isdigit() else "" for label in labels},
        "rows": {name: {label: {"accuracy": score, **cell} for label in labels} for name, score in rows.items()},
    }


def test_the_headline_names_the_winner_whoever_it_is():
    def result(fc):
        return part({"raw pixels": 0.5, "random conv": 0.6, "random fc": 0.55, "trained fc": fc, "trained y": 0.9})

    assert report.headline(result(0.7)).endswith(
        "70.0\nagainst random conv 60.0 (+10.0) and raw pixels 50.0 (+20.0): ahead of both"
    )
    assert report.headline(result(0.55)).endswith("random conv 60.0 (-5.0) and raw pixels 50.0 (+5.0): not ahead of both")
    assert report.headline(part({"trained y": 0.5})) == ""
    both = result(0.7)
    both["columns"]["10"] = "10 drawn"
    both["rows"]["trained y"]["10"] = both["rows"]["trained y"]["all"]  # one row alone has this column
    assert report.headline(both) == report.headline(result(0.7))


def test_a_report_belongs_to_weights_images_and_split(tmp_path):
    path, said = tmp_path / "report.json", []
    assert report.opened(path, RUN, said.append) == {"run": RUN}
    content = {"run": RUN, "linear": part({"trained y": 0.5})}
    report.save(path, content)
    assert report.opened(path, RUN, said.append) == json.loads(path.read_text()) == content
    assert not said
    assert set(report.OF) == {"weights_sha256", "data_sha256", "shape", "fit", "split_seed"}
    for key, words in report.OF.items():
        assert report.opened(path, RUN | {key: "other"}, said.append) == {"run": RUN | {key: "other"}}
        assert said.pop() == f"{path} is of other {words}: everything is measured anew"


SOUND = part({"trained y": 0.5})


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", '{"run": 3}', '"text"', "[" * 100_000, json.dumps({"run": RUN}) + "}"),
        *(
            json.dumps({"run": RUN, "linear": SOUND | {"rows": rows}})
            for rows in ([], {"trained y": None}, {"trained y": {"all": None}}, {"trained y": {"all": 0.5}}, None)
        ),
        *(
            json.dumps({"run": RUN, "linear": SOUND, "mine": mine})
            for mine in ([], None, {"columns": {"all": ""}}, {"protocol": "the protocol", "rows": []})
        ),
    ],
    ids=itertools.count(),
)
def test_what_is_no_report_is_kept_beside(tmp_path, damage):
    path, said = tmp_path / "report.json", []
    path.write_text(damage)
    assert report.opened(path, RUN, said.append) == {"run": RUN}
    assert said == [f"{path} is damaged or no report: moved to report.damaged.json, everything is measured anew"]
    assert (tmp_path / "report.damaged.json").read_text() == damage


def test_a_section_of_another_protocol_starts_anew():
    content = {"run": RUN, "linear": part({"trained y": 0.5})}
    heading = {key: content["linear"][key] for key in ("protocol", "chance")}
    assert list(report.section(content, "linear", heading, {"all": ""})) == ["trained y"]
    assert report.section(content, "linear", heading | {"protocol": "another"}) == {}
    assert content["linear"]["protocol"] == "another"
    report.section(content, "mine", {"protocol": "its own"})["row"] = {}
    assert content["mine"] == {"protocol": "its own", "rows": {"row": {}}}


def test_a_section_keeps_the_columns_whose_meaning_is_the_same():
    content = {"run": RUN, "linear": part({"raw pixels": 0.4, "trained y": 0.5}, ("all", "10"))}
    heading = {key: content["linear"][key] for key in ("protocol", "chance")}
    rows = report.section(content, "linear", heading, {"all": "", "50": "50 drawn"})
    assert {name: list(row) for name, row in rows.items()} == {"raw pixels": ["all", "10"], "trained y": ["all", "10"]}
    assert content["linear"]["columns"] == {"all": "", "10": "10 drawn", "50": "50 drawn"}
    rows["trained y"]["50"] = {"accuracy": 0.45, "sd": 0.01, "converged": True, "seconds": 1.0}
    lines = report.markdown(content, "runs/a").splitlines()
    assert "| raw pixels | 40.0 | 40.0 |  |" in lines
    assert "| trained y | 50.0 | 50.0 | 45.0 +- 1.0 |" in lines
    assert "Test accuracy in %, chance 10; the protocol; 10 drawn; 50 drawn." in lines
    rows = report.section(content, "linear", heading, {"10": "drawn otherwise"})
    assert list(rows["trained y"]) == ["all", "50"]
    assert content["linear"]["columns"]["10"] == "drawn otherwise"


def test_the_digest_tells_any_weight():
    state = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    same = {"b": torch.zeros(2), "a": torch.arange(4.0)}
    assert report.digest(state) == report.digest(same)
    assert report.digest(state) != report.digest(state | {"b": torch.tensor([0.0, 1e-30])})
    assert report.digest(state) != report.digest({"a": torch.arange(4.0), "c": torch.zeros(2)})


def test_markdown_and_text_show_every_number_with_its_spread():
    content = {"run": RUN, "linear": part({"raw pixels": 0.417, "trained y": 0.6489}, ("all", "resamples", "10"))}
    content["linear"]["rows"]["trained y"]["resamples"] |= {"sd": 0.0042, "accuracy": 0.641}
    content["linear"]["rows"]["trained y"]["10"] |= {"converged": False}
    text, lines = report.table(content["linear"]), report.markdown(content, "runs/a").splitlines()
    assert "| trained y | 64.9 | 64.1 +- 0.4 | 64.9* |" in lines
    assert "|  | all labels | resamples | 10 a class |" in lines
    assert "Test accuracy in %, chance 10; the protocol; 10 drawn." in lines
    assert "12 s for the probes, without the encoder." in lines
    for said in ("41.7", "64.1 +- 0.4", "64.9*", "the protocol", "* not converged", "10 a class"):
        assert said in text


def test_measures_are_tables_too_in_text_and_in_markdown():
    one = {"mi_nats": 2.25, "sd": 0.125, "converged": 2 / 3, "runs": [{"mi_nats": 2.0}], "seconds": 3.0}
    content = {"run": RUN, "mine": {"protocol": "how it is measured", "rows": {"random x:y": one, "trained x:y": one}}}
    lines = report.markdown(content, "runs/a").splitlines()
    place = lines.index("## mine")
    assert lines[place + 1 :] == [
        *("", "how it is measured.", ""),
        "|  | mi_nats | sd | share of seeds converged | seconds |",
        "| --- | --- | --- | --- | --- |",
        "| random x:y | 2.250 | 0.125 | 0.667 | 3.000 |",
        "| trained x:y | 2.250 | 0.125 | 0.667 | 3.000 |",
    ]
    shown = report.table(content["mine"])
    for said in ("how it is measured", "share of seeds converged", "trained x:y", "2.250", "0.125", "0.667"):
        assert said in shown


def of_run(seed=0, config=(), rows=(), **run):
    """The report of a run with its seed's weights: {row: accuracy}."""
    config = RUN["config"] | dict(config)
    return {
        "run": RUN | {"seed": seed, "weights_sha256": f"{seed} {config}", "config": config} | run,
        "linear": part(dict(rows)),
    }


def compared(reports) -> dict[str, dict]:
    """The rows of each table of a comparison."""
    return {title: table["rows"] for title, table in report.comparison(reports)["tables"].items()}


def test_seeds_of_one_configuration_are_one_group():
    reports = {
        f"cifar_seed{seed}": of_run(seed, rows={"trained y": score, "random y": 0.3 + seed / 10, "raw pixels": 0.4})
        for seed, score in enumerate((0.6, 0.7, 0.8))
    }
    reports["other"] = of_run(config={"train.lr": 2.0}, rows={"trained y": 0.5, "raw pixels": 0.4, "random y": 0.3})
    found = compared(reports)["linear"]
    assert list(found) == ["cifar_seed, 3 seeds", "random encoder", "raw pixels", "other"]
    group = found["cifar_seed, 3 seeds"]["y"]
    assert group == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.1), "seeds": 3, "converged": True}
    assert found["other"]["y"] == {"mean": 0.5, "sd": None, "seeds": 1, "converged": True}
    assert found["random encoder"]["y"]["mean"] == pytest.approx(0.4)
    assert found["raw pixels"]["pixels"] == {"mean": 0.4, "sd": None, "seeds": 1, "converged": True}  # pixels have no seed


def test_runs_that_differ_in_more_than_their_seed_are_no_group():
    plain = of_run(0, rows={"trained y": 0.5})
    for other in (
        of_run(1, {"train.lr": 2.0}, {"trained y": 0.7}),
        of_run(1, rows={"trained y": 0.7}, split_seed=1),
        of_run(1, rows={"trained y": 0.7}, weights="average"),
        of_run(1, rows={"trained y": 0.7}, data_sha256="other"),
        of_run(1, rows={"trained y": 0.7}, steps=2),  # stopped before its end
        of_run(0, rows={"trained y": 0.7}),  # the same run again
    ):
        found = compared({"a": plain, "b": other})["linear"]
        assert {name: cells["y"]["mean"] for name, cells in found.items()} == {"a": 0.5, "b": 0.7}


def test_groups_of_the_same_name_are_told_apart():
    reports = {f"run{i}": of_run(i % 2, {"train.lr": float(i // 2)}, {"trained y": i / 10}) for i in range(4)}
    found = compared(reports)["linear"]
    assert {name: cells["y"]["mean"] for name, cells in found.items()} == {
        "run, 2 seeds": pytest.approx(0.05),
        "run2, run3": pytest.approx(0.25),
    }


def test_baselines_that_differ_in_more_than_their_seed_stand_apart():
    """Another architecture has another random encoder; other images have other pixels too."""
    rows = {"raw pixels": 0.4, "random y": 0.3, "supervised y": 0.8, "trained y": 0.6}
    reports = {
        "a": of_run(0, rows=rows),
        "b": of_run(1, rows=rows | {"random y": 0.4}),
        "views": of_run(0, {"views.kind": "strong"}, rows | {"supervised y": 0.9}),
        "wide": of_run(0, {"encoder.name": "alex64x64"}, rows | {"random y": 0.2}),
    }
    found = compared(reports)["linear"]
    means = {name: cells["y"]["mean"] for name, cells in found.items() if "y" in cells and name not in reports}
    assert means == {
        "a, 2 seeds": 0.6,
        "random encoder of a, 2 seeds": pytest.approx(0.35),
        "supervised encoder of a, 2 seeds": 0.8,
        "supervised encoder of views": 0.9,
        "random encoder of wide": 0.2,
        "supervised encoder of wide": 0.8,
    }
    assert found["raw pixels"]["pixels"]["mean"] == 0.4
    found = compared({"a": reports["a"], "c": of_run(0, rows=rows, data_sha256="c")})["linear"]
    assert [name for name in found if name.startswith("raw")] == ["raw pixels of a", "raw pixels of c"]


def test_a_section_without_a_column_of_all_labels_has_a_table_for_each_number_of_labels():
    few = {"a": RUN, "b": RUN | {"weights_sha256": "b", "config": RUN["config"] | {"train.lr": 2.0}}}
    reports = {name: {"run": run, "finetune": part({"trained y": 0.5}, ("10", "250"))} for name, run in few.items()}
    found = report.comparison(reports)
    assert list(found["tables"]) == ["finetune, 10 labels a class", "finetune, 250 labels a class"]
    assert list(compared(reports)["finetune, 10 labels a class"]) == ["a", "b"]
    assert "## finetune, 250 labels a class" in report.compared(found)
    assert found["tables"]["finetune, 10 labels a class"]["chance"] == 0.1
    for name, views in (("a", "flips"), ("b", "None")):
        reports[name]["finetune"] = part({"random y": 0.3, "trained y": 0.5}, ("10",)) | {"augmentation": views}
    shown = list(compared(reports)["finetune, 10 labels a class"])
    assert shown == ["random encoder of a", "a", "random encoder of b", "b"]
    reports["b"]["finetune"]["chance"] = 0.01
    assert report.comparison(reports)["tables"]["finetune, 10 labels a class"]["chance"] is None


def test_runs_with_other_numbers_of_labels_stand_in_the_tables_that_they_have():
    reports = {
        name: {"run": RUN | {"weights_sha256": name}, "finetune": part({"trained y": score}, (labels,))}
        for name, labels, score in (("a", "5", 0.5), ("b", "10", 0.6))
    }
    found = compared(reports)
    assert {title: list(rows) for title, rows in found.items()} == {
        "finetune, 5 labels a class": ["a"],
        "finetune, 10 labels a class": ["b"],
    }


def test_what_did_not_converge_has_a_star_and_its_reasons():
    plain = report.compared(report.comparison({"a": of_run(0, rows={"trained y": 0.5})}))
    assert "*" not in plain
    failed = of_run(1, rows={"trained y": 0.7})
    failed["linear"]["rows"]["trained y"]["all"]["converged"] = False
    runs = [{"doubts": ["half gives less", "few rows"]}, {"doubts": ["few rows"]}, {"doubts": []}]
    for share in (0.0, 0.5, 0.75):
        row = {"mi_nats": 8.1, "sd": 0.1, "converged": share, "runs": runs}
        text = report.compared(report.comparison({"a": failed | {"mine": measured("mine", **{"trained_x:y": row})}}))
        assert "| a | 70.0* |" in text
        assert ("| a | 8.100* |" in text) == (share <= 0.5)
        assert text.count("* not converged") == 1 + (share <= 0.5)
    sections = {"mine": measured("mine", **{"trained_x:y": row, "random_x:y": row | {"runs": []}})}
    said = "not converged, trained x:y: half gives less; few rows"
    assert report.table(sections["mine"]).endswith(said)
    assert f"\n\n{said}.\n" in report.markdown({"run": RUN} | sections, "r")


def measured(title: str, **rows: dict) -> dict:
    """A section of a measure: {row: its numbers}."""
    return {"protocol": f"how {title} is measured", "rows": {name.replace("_", " "): row for name, row in rows.items()}}


def test_measures_stand_in_the_comparison_in_their_own_units():
    reports = {
        f"a_seed{seed}": of_run(seed, rows={"trained y": 0.6})
        | {
            "mine": measured("mine", random_y={"mi_nats": 0.5, "sd": 0.1}, trained_y={"mi_nats": 2.0 + seed, "sd": 0.1}),
            "reconstruction": measured("reconstruction", trained_y={"ms_ssim": 0.4 + seed / 10, "mse": 0.03}),
        }
        for seed in (0, 1)
    }
    reports["b"] = of_run(0, {"train.lr": 2.0}) | {"ndm": measured("ndm", trained_y={"total_correlation_nats": 7.5})}
    found, rows = report.comparison(reports), compared(reports)
    assert list(rows) == ["linear", "mine", "reconstruction", "ndm"]
    assert rows["mine"]["a_seed, 2 seeds"]["y"] == {"mean": 2.5, "sd": pytest.approx(0.5**0.5), "seeds": 2, "converged": True}
    assert rows["mine"]["random encoder"]["y"]["mean"] == 0.5
    assert rows["reconstruction"]["a_seed, 2 seeds"]["y"]["mean"] == pytest.approx(0.45)
    assert rows["ndm"] == {"b": {"y": {"mean": 7.5, "sd": None, "seeds": 1, "converged": True}}}
    text = report.compared(found)
    for said in (
        "- a_seed, 2 seeds: made, training seeds 0, 1, last weights",
        "Test accuracy in %, chance 10; the protocol.",
        "| a_seed, 2 seeds | 60.0 +- 0.0 |",
        "Mutual information in nats; how mine is measured.",
        "| a_seed, 2 seeds | 2.500 +- 0.707 |",
        "Total correlation in nats; how ndm is measured.",
        "| b | 7.500 |",
        "MS-SSIM, 1 for equal images; how reconstruction is measured.",
    ):
        assert said in text.splitlines(), said
    reports["b"]["ndm"]["protocol"] = "another way"
    reports["a_seed0"]["ndm"] = measured("ndm", trained_y={"total_correlation_nats": 5.0})
    assert "Total correlation in nats; how ndm is measured / another way." in report.compared(report.comparison(reports))


def test_a_row_depends_on_what_made_its_features():
    changes = {
        "images": {"data_sha256": "e"},
        "shape": {"shape": [3, 64, 64]},
        "fit": {"fit": "crop"},
        "split": {"split_seed": 1},
        "seed": {"seed": 1},
        "steps": {"steps": 4},
        "weights": {"weights_sha256": "v"},
        **{key: {"config": RUN["config"] | {key: "x"}} for key in ("encoder.name", "views.kind", "norm", "train.lr")},
    }
    of_all = {"images", "shape", "fit", "split"}
    expected = {
        "raw": of_all,
        "random": of_all | {"seed", "encoder.name", "norm"},
        "supervised": of_all | {"seed", "encoder.name", "norm", "views.kind", "steps"},
        "trained": of_all | {"weights"},
    }
    for kind, needed in expected.items():
        before = report.dependence(kind, RUN)
        assert {name for name, change in changes.items() if report.dependence(kind, RUN | change) != before} == needed


def test_a_cell_of_fewer_seeds_says_so():
    both = {"a_seed0": of_run(0, rows={"trained y": 0.5}), "a_seed1": of_run(1, rows={"trained y": 0.7})}
    both["a_seed0"]["knn"] = part({"raw pixels": 0.2, "trained y": 0.6})
    text = report.compared(report.comparison(both))
    assert "| a_seed, 2 seeds | 60.0 +- 14.1 |" in text
    assert "| a_seed, 2 seeds |  | 60.0 (1 of 2 seeds) |" in text
    assert "| raw pixels | 20.0 |" in text


def test_a_section_that_has_no_row_yet_is_left_out(tmp_path):
    content = of_run(0, rows={"trained y": 0.5}) | {
        "ndm": {"protocol": "total correlation", "rows": {}},
        "knn": part({}),
    }
    found = report.comparison({"a": content})
    assert list(found["tables"]) == ["linear"]
    assert "ndm" not in report.markdown(content, "a")
    assert comparison.draw(tmp_path / "c.png", found).exists()
