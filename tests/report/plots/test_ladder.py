"""The picture of a ladder: its lines are the numbers of its rungs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.report.inspection import Rule
from nullbooth_cli.report.ladder import Ladder, Rung, RungSite
from nullbooth_cli.report.plots.ladder import draw_ladder
from tests.support.reports import LAYER


def ladder(heldout: bool) -> Ladder:
    """Three rungs of two sites of ten dimensions; the first rung leaks nothing."""

    def site(null_dim: int, leakage: float) -> RungSite:
        return RungSite(
            layer=LAYER,
            feature="q",
            key="pooled",
            dim=10,
            null_dim=null_dim,
            leakage=leakage,
            heldout_leakage=2 * leakage if heldout else None,
            below_noise=False,
        )

    rungs = []
    for value, null_dim, leakage in ((0.1, 0, 0.0), (0.2, 4, 0.01), (0.3, 8, 0.1)):
        sites = (site(null_dim, leakage), site(null_dim // 2, leakage / 2))
        rungs.append(
            Rung(
                value=value,
                null_dim=sum(s.null_dim for s in sites),
                dim=20,
                largest_leakage=leakage,
                largest_heldout_leakage=2 * leakage if heldout else None,
                empty=0,
                below_noise=0,
                sites=sites,
            )
        )
    rule = Rule("relative_threshold", 0.2)
    return Ladder(store="run.zarr", scope="pooled", rule=rule, heldout=heldout, ladder=tuple(rungs))


@pytest.mark.parametrize("heldout", [False, True])
def test_lines_are_the_leakage_of_the_rungs(figures: dict[str, Any], heldout: bool) -> None:
    draw_ladder(ladder(heldout), Path("ladder.png"))
    (drawn,) = figures["ladder.png"].axes
    lines = {line.get_label(): line for line in drawn.get_lines()}
    largest = lines["collected prompts: largest"]
    np.testing.assert_allclose(largest.get_xdata(), [30, 60])  # a leakage of 0 has no place on a logarithmic axis
    np.testing.assert_allclose(largest.get_ydata(), [0.01, 0.1])
    np.testing.assert_allclose(lines["relative_threshold 0.2, in force"].get_xdata(), 30)
    assert ("held-out prompts: largest" in lines) == heldout
    if heldout:
        np.testing.assert_allclose(lines["held-out prompts: largest"].get_ydata(), [0.02, 0.2])
    notes = {note.get_text(): (note.xy, note.get_weight()) for note in drawn.texts}
    scale = 2 if heldout else 1  # the labels stand at the upper line
    assert notes == {"0.2": ((30, 0.01 * scale), "bold"), "0.3": ((60, 0.1 * scale), "normal")}
    of_sites = [line for line in drawn.get_lines() if line.get_linewidth() == 0.6 and len(line.get_xdata())]
    assert len(of_sites) == (4 if heldout else 2)


def test_labels_leave_room_for_each_other(figures: dict[str, Any]) -> None:
    """Of ten points in one place, the one in force has a label."""
    found = ladder(heldout=False)
    near = [replace(found.ladder[1], value=0.2 + i / 1000) for i in range(-5, 5)]
    draw_ladder(replace(found, ladder=(*near, found.ladder[2])), Path("ladder.png"))
    (drawn,) = figures["ladder.png"].axes
    assert [note.get_text() for note in drawn.texts] == ["0.2", "0.3"]
