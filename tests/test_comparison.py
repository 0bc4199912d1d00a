"""Runs compared as bars."""

import pytest
from PIL import Image

from dim.figures import comparison, drawing

FOUND = {
    "linear": {
        "raw pixels": {"pixels": {"mean": 0.4, "sd": None, "seeds": 1}},
        "a, 2 seeds": {"fc": {"mean": 0.7, "sd": 0.01, "seeds": 2}, "y": {"mean": 0.6, "sd": 0.02, "seeds": 2}},
        "b": {"fc": {"mean": 0.5, "sd": None, "seeds": 1}, "y": {"mean": 0.3, "sd": None, "seeds": 1}},
    }
}


def test_every_mean_is_a_bar_with_its_spread(tmp_path, monkeypatch):
    pages = []
    page = drawing.page
    monkeypatch.setattr(drawing, "page", lambda *given: pages.append(page(*given)) or pages[-1])
    path = comparison.draw(tmp_path / "comparison.png", FOUND, 0.1)
    with Image.open(path) as image:
        assert image.format == "PNG"
    (axes,) = pages[0].axes
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
