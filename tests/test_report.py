"""The report of a run and the comparison of several."""

import json

import pytest
import torch

from dim import report

RUN = {"weights_sha256": "w", "data_sha256": "d", "split_seed": 0, "seed": 0, "weights": "last", "config": {"train.lr": 1.0}}


def part(rows: dict[str, float], labels: tuple[str, ...] = ("all",)) -> dict:
    cell = {"sd": None, "converged": True, "seconds": 2.0}
    return {
        "protocol": "the protocol",
        "chance": 0.1,
        "labels": list(labels),
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


def test_a_report_belongs_to_weights_images_and_split(tmp_path):
    path = tmp_path / "report.json"
    assert report.opened(path, RUN) == {"run": RUN}
    content = {"run": RUN, "linear": part({"trained y": 0.5})}
    report.save(path, content)
    assert report.opened(path, RUN) == json.loads(path.read_text()) == content
    assert report.opened(path, RUN, force=True) == {"run": RUN}
    for key in ("weights_sha256", "data_sha256", "split_seed"):
        assert report.opened(path, RUN | {key: "other"}) == {"run": RUN | {key: "other"}}
    for damage in ("", "{", "[]", '{"run": 3}', '"text"'):
        path.write_text(damage)
        assert report.opened(path, RUN) == {"run": RUN}


def test_a_section_of_another_protocol_starts_anew():
    content = {"run": RUN, "linear": part({"trained y": 0.5})}
    heading = {key: content["linear"][key] for key in ("protocol", "chance", "labels")}
    assert list(report.section(content, "linear", heading)) == ["trained y"]
    assert report.section(content, "linear", heading | {"protocol": "another"}) == {}
    assert content["linear"]["protocol"] == "another"
    report.section(content, "svm", heading)["row"] = {}
    assert content["svm"]["rows"] == {"row": {}}


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
    assert "Test accuracy in %, chance 10; the protocol." in lines
    assert "12 s." in lines
    for said in ("41.7", "64.1 +- 0.4", "64.9*", "the protocol", "* not converged", "10 a class"):
        assert said in text


def test_seeds_of_one_configuration_are_one_group():
    reports = {
        f"cifar_seed{seed}": {
            "run": RUN | {"seed": seed, "weights_sha256": str(seed)},
            "linear": part({"trained y": score, "random y": 0.3 + seed / 10, "raw pixels": 0.4}),
        }
        for seed, score in enumerate((0.6, 0.7, 0.8))
    }
    reports["other"] = {
        "run": RUN | {"config": {"train.lr": 2.0}},
        "linear": part({"trained y": 0.5, "raw pixels": 0.4, "random y": 0.3}),
    }
    found = report.comparison(reports)["linear"]
    assert list(found) == ["cifar_seed, 3 seeds", "random encoder", "raw pixels", "other"]
    group = found["cifar_seed, 3 seeds"]["y"]
    assert group == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.1), "seeds": 3}
    assert found["other"]["y"] == {"mean": 0.5, "sd": None, "seeds": 1}
    assert found["random encoder"]["y"]["mean"] == pytest.approx(0.4)
    assert found["raw pixels"]["pixels"]["mean"] == pytest.approx(0.4)
