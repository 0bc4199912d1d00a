"""The planted faults still fit the code; planting them takes minutes and is done by the script."""

import json

import plant_faults
import pytest
from conftest import ROOT
from plant_faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_the_code_still_holds_what_a_fault_replaces(fault):
    assert fault.right in (ROOT / "dim" / f"{fault.file}.py").read_text()
    assert (ROOT / "tests" / f"test_{fault.tests}.py").exists()


def test_a_word_that_no_fault_has_is_said(capsys):
    assert plant_faults.main(["no such fault"]) == 2
    assert capsys.readouterr().err == "error: no fault has no such fault in its description or file\n"


def test_a_fault_is_tried_once_while_its_file_and_tests_are_the_same(tmp_path, monkeypatch, capsys):
    tried, red = [], iter(["test_one", None])
    monkeypatch.setattr(plant_faults, "RECORD", tmp_path / "faults.jsonl")
    monkeypatch.setattr(plant_faults, "planted", lambda fault: tried.append(fault.what) or next(red))
    assert plant_faults.main(["a shift of 0"]) == 0
    assert plant_faults.main(["a shift of 0"]) == 0
    assert tried == ["a shift of 0"]
    said = capsys.readouterr().out
    assert said.count("| a shift of 0 | `dim/negatives.py` | `test_one` |") == 2
    assert "1 of 1 faults were noticed" in said
    (line,) = (tmp_path / "faults.jsonl").read_text().splitlines()
    (tmp_path / "faults.jsonl").write_text(json.dumps(json.loads(line) | {"of": "earlier"}) + "\n")
    assert plant_faults.main(["a shift of 0"]) == 1
    assert "**none**" in capsys.readouterr().out
    assert len(tried) == 2
