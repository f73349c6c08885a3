"""Attention maps as pictures: layers brought to one size, a row for each word."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from nullbooth_cli.datatypes import Step
from nullbooth_cli.report.plots.attention import draw_attention, word_maps
from nullbooth_cli.store import AttentionMaps


def test_word_maps_bring_layers_to_one_size() -> None:
    large = np.zeros((1, 4, 4, 1), np.float16)
    large[0, 0, 0] = 1
    small = np.arange(4, dtype=np.float16).reshape(1, 2, 2, 1)
    maps = AttentionMaps(("word",), (0,), {"large": large, "small": small}, np.zeros((8, 8, 3), np.uint8))
    found = word_maps(maps)[0, ..., 0]
    expected = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]) / 2
    expected[0, 0] += 0.5
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(word_maps(maps, ["small"])[0, ..., 0], small[0, ..., 0])


def test_a_row_for_each_word_of_the_prompt(figures: dict[str, Any]) -> None:
    """Begin and end marks are left out; columns are the image, the mean and the recorded timesteps."""
    words = ("<|begin|>", "red", "star", "<|end|>")
    maps = AttentionMaps(words, (0, 2), {"a": np.full((2, 4, 4, 4), 0.25, np.float16)}, np.zeros((8, 8, 3), np.uint8))
    steps = [Step(i, f"s{i}", 900.0 - 300 * i, 1.0) for i in range(3)]
    draw_attention("red star", maps, steps, Path("attention.png"))
    axes = figures["attention.png"].axes
    assert len(axes) == 2 * 4
    assert [each.get_title() for each in axes[:4]] == ["image", "mean", "t 900", "t 300"]
    assert [each.get_ylabel() for each in axes if each.get_ylabel()] == ["red", "star"]


def test_a_prompt_is_text_in_a_picture(tmp_path: Path) -> None:
    """Dollars begin no formula, and control characters are no part of an SVG file."""
    prompt = "costs $5_x and $6^{ \x1b[2J & <b>"
    maps = AttentionMaps(
        ("$5_x$", "\x1b<b>"), (0,), {"a": np.full((1, 4, 4, 2), 0.25, np.float16)}, np.zeros((8, 8, 3), np.uint8)
    )
    path = draw_attention(prompt, maps, [Step(0, "s0", 900.0, 1.0)], tmp_path / "attention.svg")
    ElementTree.parse(path)
    draw_attention(prompt, maps, [Step(0, "s0", 900.0, 1.0)], tmp_path / "attention.png")
