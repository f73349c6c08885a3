"""A sheet has every picture in its place, as it is, and the texts that belong to it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.report import sheet as module
from nullbooth_cli.report.sheet import Sheet, draw_sheet, write_pictures, write_sheet

COLOURS = [
    (200, 30, 30),
    (30, 200, 30),
    (30, 30, 200),
    (200, 200, 30),
    (30, 200, 200),
    (200, 30, 200),
    (90, 90, 200),
    (250, 150, 0),
]


def made(
    side: int, prompts: int = 2, seeds: int = 2, models: tuple[str, ...] = ("base: toy", "runs/toy-sks")
) -> tuple[Sheet, list[tuple[int, int, int]]]:
    """A sheet in which every picture has one colour, and those colours by model, prompt and seed."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(models) * prompts * seeds)]
    pictures = np.array(colours, np.uint8).reshape(len(models), prompts, seeds, 1, 1, 3)
    images = np.broadcast_to(pictures, (len(models), prompts, seeds, side, side, 3))
    texts = tuple(f"a prompt of number {i}" for i in range(prompts))
    return Sheet(prompts=texts, seeds=tuple(range(seeds)), models=dict(zip(models, images, strict=True))), colours


@pytest.mark.parametrize(("side", "shown"), [(32, 256), (200, 400), (512, 512), (1024, 512)])
def test_every_picture_is_there_in_its_order(side: int, shown: int) -> None:
    sheet, colours = made(side)
    pixels = np.asarray(draw_sheet(sheet)).astype(int)
    places = []
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert len(rows) == shown**2, "whole, and nowhere else"
        assert (np.ptp(rows), np.ptp(columns)) == (shown - 1, shown - 1)
        places.append((rows[0], columns[0]))
    by_model = np.array(places).reshape(2, 2, 2, 2)  # model, prompt, seed
    assert (by_model[:, :, :, 0] == by_model[:1, :, :1, 0]).all(), "a prompt is a row"
    assert (by_model[:, :, :, 1] == by_model[:, :1, :, 1]).all(), "a model and seed are a column"
    assert (np.diff(by_model[0, :, 0, 0]) > shown).all()
    assert (np.diff(by_model[:, 0, :, 1].ravel()) > shown).all()


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 1, 32, 32, 3), np.uint8)
    drawn = np.asarray(draw_sheet(Sheet(prompts=("a",), seeds=(0,), models={"toy": noise})))
    expected = noise[0, 0].repeat(8, 0).repeat(8, 1)
    found = drawn[-256 - 16 : -16, 16 : 16 + 256]
    assert np.array_equal(found, expected)


def test_models_of_several_sizes() -> None:
    small, large = made(32, 1, 1, ("small",))[0].models["small"], made(300, 1, 1, ("large",))[0].models["large"]
    drawn = draw_sheet(Sheet(prompts=("a",), seeds=(0,), models={"small": small, "large": large}))
    red = (np.asarray(drawn) == COLOURS[0]).all(-1).sum()
    assert red == 256**2 + 300**2


@pytest.mark.parametrize(("models", "seeds"), [(("m" * 300,), 1), (("runs/" * 40,), 2), (("a", "b" * 90), 1)])
def test_long_texts_fold_and_stay_inside(models: tuple[str, ...], seeds: int) -> None:
    sheet, _ = made(32, 1, seeds, models)
    sheet = Sheet(prompts=("word " * 90,), seeds=sheet.seeds, models=sheet.models)
    pixels = np.asarray(draw_sheet(sheet).convert("L"))
    for edge in (pixels[:, :8], pixels[:, -8:], pixels[:8], pixels[-8:]):
        assert (edge == 255).all()


def test_no_name_runs_into_the_next_model() -> None:
    sheet, _ = made(32, 1, 1, ("a" * 90, "b" * 90))
    pixels = np.asarray(draw_sheet(Sheet(prompts=("a",), seeds=sheet.seeds, models=sheet.models)).convert("L"))
    assert (pixels[:, 16 + 256 : 16 + 256 + 32] == 255).all()


@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60),
    width=st.integers(40, 300),
)
@settings(max_examples=60, deadline=None)
def test_folding_loses_no_letter_and_stays_within_the_width(text: str, width: int) -> None:
    font = module._font("DejaVuSans.ttf", 16)
    lines = module._wrapped(text, font, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)


def test_files(tmp_path: Path) -> None:
    sheet, colours = made(32)
    path = write_sheet(tmp_path / "new" / "sheet.png", sheet)
    with Image.open(path) as opened:
        assert opened.size == draw_sheet(sheet).size
    written = write_pictures(tmp_path / "pictures", sheet)
    assert [path.name for path in written[:4]] == [
        "01-base-toy-seed0.png",
        "01-base-toy-seed1.png",
        "01-runs-toy-sks-seed0.png",
        "01-runs-toy-sks-seed1.png",
    ]
    found = []
    for name in written:
        with Image.open(name) as image:
            found.append(image.copy())
    assert all(image.size == (32, 32) for image in found)
    by_model = np.array(colours).reshape(2, 2, 2, 3).swapaxes(0, 1).reshape(-1, 3)
    assert [image.getpixel((0, 0)) for image in found] == [tuple(colour) for colour in by_model.tolist()]


def test_names_of_files_are_told_apart(tmp_path: Path) -> None:
    sheet, _ = made(32, 1, 1, ("a/b", "a b", "../c"))
    assert [path.name for path in write_pictures(tmp_path, sheet)] == [
        "01-1-a-b-seed0.png",
        "01-2-a-b-seed0.png",
        "01-c-seed0.png",
    ]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    sheet, _ = made(32, 1, 1)
    with pytest.raises(ConfigError, match=r"sheet\.jpg does not end in \.png"):
        write_sheet(tmp_path / "sheet.jpg", sheet)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.png is a folder"):
        write_sheet(tmp_path / "folder.png", sheet)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write into"):
        write_sheet(tmp_path / "file" / "sheet.png", sheet)
    with pytest.raises(ResourceError, match="cannot write into"):
        write_pictures(tmp_path / "file", sheet)
