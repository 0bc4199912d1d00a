"""The planted faults still fit the code; planting them takes minutes and is done by the script."""

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
