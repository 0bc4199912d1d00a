"""Runs compared as bars."""

import pytest
from PIL import Image

from dim.figures import comparison, drawing

ACCURACIES = {
    "raw pixels": {"pixels": {"mean": 0.4, "sd": None, "seeds": 1, "converged": True}},
    "a, 2 seeds": {
        "fc": {"mean": 0.7, "sd": 0.01, "seeds": 2, "converged": True},
        "y": {"mean": 0.6, "sd": 0.02, "seeds": 2, "converged": True},
    },
    "b": {
        "fc": {"mean": 0.5, "sd": None, "seeds": 1, "converged": True},
        "y": {"mean": 0.3, "sd": None, "seeds": 1, "converged": True},
    },
}
NATS = {
    "a, 2 seeds": {"x:y": {"mean": 3.25, "sd": 0.125, "seeds": 2, "converged": True}},
    "b": {"x:y": {"mean": 2.0, "sd": None, "seeds": 1, "converged": True}},
}
PROTOCOL = "cifar10, 10,000 test images, logistic regression, C chosen on the validation tenth of the training split"
FOUND = {
    "runs": {
        "a, 2 seeds": {"data": "cifar10", "weights": "last", "seeds": [0, 1]},
        "b": {"data": "cifar10", "weights": "last", "seeds": [3]},
    },
    "tables": {
        "linear": {"of": "test accuracy in %", "percent": True, "chance": 0.1, "protocols": [PROTOCOL], "rows": ACCURACIES},
        "mine": {"of": "information in nats", "percent": False, "chance": None, "protocols": ["a third", "b"], "rows": NATS},
    },
}


@pytest.fixture
def drawn(tmp_path, monkeypatch) -> tuple:
    """The page, and the words in its file."""
    pages, page = [], drawing.page
    monkeypatch.setattr(drawing, "page", lambda *given: pages.append(page(*given)) or pages[-1])
    path = comparison.draw(tmp_path / "comparison.png", FOUND)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return pages[0], dict(image.text)


def test_every_mean_is_a_bar_with_its_spread(drawn):
    axes, _ = drawn[0].axes
    bars = [patch for patch in axes.patches if patch.get_width() > 0]
    assert [bar.get_width() for bar in bars] == pytest.approx([40, 70, 60, 50, 30])
    words = [text.get_text() for text in axes.texts]
    for said in ("raw pixels", "pixels 40.0", "a, 2 seeds", "fc 70.0 +- 1.0", "y 60.0 +- 2.0", "b", "fc 50.0", "y 30.0"):
        assert said in words
    assert axes.get_xlim() == (0, 100)
    assert bars[1].get_facecolor() == bars[3].get_facecolor() != bars[2].get_facecolor()
    errors = [lines for lines in axes.collections if len(lines.get_segments())]
    reach = [segment[:, 0].tolist() for lines in errors for segment in lines.get_segments()]
    assert reach == [pytest.approx([69, 71]), pytest.approx([58, 62])]
    assert axes.get_xlabel() == "test accuracy in %; dashed: chance"


def test_what_did_not_converge_has_a_star(tmp_path, monkeypatch):
    rows = {"b": {"x:y": {"mean": 2.0, "sd": None, "seeds": 1, "converged": False}}}
    tables = {"mine": FOUND["tables"]["mine"] | {"rows": rows}}
    pages, page = [], drawing.page
    monkeypatch.setattr(drawing, "page", lambda *given: pages.append(page(*given)) or pages[-1])
    path = comparison.draw(tmp_path / "comparison.png", {"runs": {"b": FOUND["runs"]["b"]}, "tables": tables})
    assert "x:y 2.000*" in {text.get_text() for text in pages[0].axes[0].texts}
    with Image.open(path) as image:
        assert "* not converged." in image.text["Description"]


def test_a_measure_is_in_its_own_unit(drawn):
    _, axes = drawn[0].axes
    assert [patch.get_width() for patch in axes.patches if patch.get_width() > 0] == pytest.approx([3.25, 2])
    assert axes.get_xlabel() == "information in nats"
    assert {"x:y 3.250 +- 0.125", "x:y 2.000"} <= {text.get_text() for text in axes.texts}
    assert axes.get_xlim()[1] > 1.4 * 3.375  # room for the words


def test_the_picture_says_which_runs_on_what_data_by_which_protocol(drawn):
    figure, words = drawn
    assert words["Title"] == "3 runs compared on cifar10"
    for said in (
        "a, 2 seeds: cifar10, training seeds 0, 1, last weights; b: cifar10, training seed 3, last weights.",
        f"linear: Test accuracy in %, chance 10; {PROTOCOL}.",
        "mine: Information in nats; a third / b.",
        "+-: standard deviation over training seeds",
    ):
        assert said in words["Description"], said
    shown = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert words["Title"] in shown
    assert "validation tenth of the training split" in shown
