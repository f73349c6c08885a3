"""Pictures of one site: the spectrum and its cut, leakage, the moment."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.report.plots import sites
from tests.support.reports import CALLED, site_report


def test_a_spectrum_and_its_cut(figures: dict[str, Any]) -> None:
    eigenvalues = np.geomspace(1e-3, 10, 8)
    list(sites.draw_spectra([site_report()], [eigenvalues], CALLED, lambda name: Path(f"{name}.png")))
    (drawn,) = figures["spectra.png"].axes
    lines = {line.get_label(): line for line in drawn.get_lines()}
    np.testing.assert_allclose(lines["eigenvalues"].get_ydata(), eigenvalues[::-1])
    np.testing.assert_allclose(lines["threshold"].get_ydata(), 0.1)
    shaded = {patch.get_label(): patch for patch in drawn.patches}
    assert shaded["null space"].get_x() == 5.5, "the last three of eight"
    assert drawn.get_title() == "mid_block.attentions.0 q\n3 of 8 null"
    assert drawn.get_ylim() == pytest.approx((1e-3 / 3, 30)), "no room for the noise floor, far below"


def test_what_lies_below_the_noise_floor_is_drawn_on_it(figures: dict[str, Any]) -> None:
    entry = site_report(noise_floor=1e-6)
    list(sites.draw_spectra([entry], [np.geomspace(1e-12, 10, 8)], CALLED, lambda name: Path(f"{name}.png")))
    (drawn,) = figures["spectra.png"].axes
    lines = {line.get_label(): line for line in drawn.get_lines()}
    assert min(lines["eigenvalues"].get_ydata()) == 1e-6
    assert drawn.get_ylim()[0] == pytest.approx(1e-6 / 3)
    (legend,) = figures["spectra.png"].legends
    assert "below the noise floor" in [text.get_text() for text in legend.get_texts()]


def test_twelve_spectra_a_page(figures: dict[str, Any]) -> None:
    entries = [site_report(threshold=None, timestep=float(i)) for i in range(13)]
    list(sites.draw_spectra(entries, [np.ones(8)] * 13, CALLED, lambda name: Path(f"{name}.png")))
    assert {name: len(made.axes) for name, made in figures.items()} == {"spectra-1.png": 12, "spectra-2.png": 1}


@pytest.mark.parametrize("heldout", [None, 0.4])
def test_the_largest_leakage_is_on_top(figures: dict[str, Any], heldout: float | None) -> None:
    small, large = site_report(leakage=0.01), site_report(feature="out", leakage=0.3)
    sites.draw_leakage([large, replace(small, heldout_leakage=heldout)], CALLED, Path("leakage.png"))
    (drawn,) = figures["leakage.png"].axes
    labels = [label.get_text() for label in drawn.get_yticklabels()]
    assert labels == [f"mid_block.attentions.0 {of}" for of in (("q", "out") if heldout is None else ("out", "q"))]
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn.get_lines()}
    assert sorted(lines["collected prompts"]) == [0.01, 0.3]
    assert ("held-out prompts" in lines) == (heldout is not None)


def test_a_moment_with_its_numbers(figures: dict[str, Any]) -> None:
    sites.draw_moment("mid.q", np.diag([4.0, 1.0]), mean=np.array([1.0, 0.0]), count=1234, path=Path("moment.png"))
    made = figures["moment.png"]
    assert made.get_suptitle() == (
        "Second moment of mid.q, 1,234 vectors\n"
        "trace 5, largest mean square 4, the mean's share of the trace 20.0 %, off the diagonal 0.0 % of the norm"
    )
    heat, _, diagonal, mean = made.axes  # the second is the colour bar
    np.testing.assert_array_equal(heat.images[0].get_array(), np.diag([4.0, 1.0]))
    np.testing.assert_array_equal(diagonal.get_lines()[0].get_ydata(), [4.0, 1.0])
    np.testing.assert_array_equal(mean.get_lines()[0].get_ydata(), [1.0, 0.0])
