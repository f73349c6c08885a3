"""Pictures of any size at the size of a model: what is cut off, what is added, and which bucket a picture goes to."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.resizing import Resizing, bucket_sizes
from tests.support.pictures import picture

SD = Resizing(how="buckets", size=(512, 512), step=64)
sides = st.integers(1, 400)


def to(how: str, size: tuple[int, int] = (32, 32), step: int = 16) -> Resizing:
    return Resizing(how=how, size=size, step=step)  # type: ignore[arg-type]


def striped(width: int, height: int) -> Image.Image:
    """Three parts along the longer side: red, the middle square in gray, blue."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    long = pixels if height > width else pixels.transpose(1, 0, 2)  # a view
    margin = abs(width - height) // 2
    long[:margin], long[len(long) - margin :] = (255, 0, 0), (0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("how", ["crop", "letterbox", "buckets", "none"])
def test_a_picture_that_fits_is_left_as_it_is(how: str) -> None:
    np.testing.assert_array_equal(to(how).apply(picture(0)), picture(0))


@given(sides, sides, st.sampled_from(["crop", "letterbox", "buckets"]))
def test_every_size_becomes_one_that_the_model_takes(width: int, height: int, how: str) -> None:
    resizing = to(how)
    found = resizing.apply(picture(0, width, height))
    assert found.size == resizing.target((width, height))
    assert found.size in resizing.sizes
    assert found.mode == "RGB"


@pytest.mark.parametrize("size", [(96, 40), (40, 96), (300, 200)])
def test_crop_takes_the_middle(size: tuple[int, int]) -> None:
    """The colours beside the middle square are gone, but for what the filter takes from the next pixels."""
    found = np.asarray(to("crop").apply(striped(*size))).astype(int)
    assert np.abs(found[2:-2, 2:-2] - 128).max() <= 2


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_letterbox_shows_all_and_continues_the_sides(size: tuple[int, int]) -> None:
    """Three quarters of the longer sides are gray, so their median is."""
    found = np.asarray(to("letterbox").apply(striped(*size))).astype(int)
    across = found if size[0] > size[1] else found.transpose(1, 0, 2)  # a wide picture: margins above and below
    assert (across[:4] == 128).all()
    assert (across[28:] == 128).all()
    assert (np.abs(across[4:28, 0] - (255, 0, 0)) <= 3).all()
    assert (np.abs(across[4:28, -1] - (0, 0, 255)) <= 3).all()


def test_buckets_of_stable_diffusion() -> None:
    assert [f"{width}x{height}" for width, height in SD.sizes] == [
        *("256x1024", "320x768", "384x640", "448x576", "512x512", "576x448", "640x384", "768x320", "1024x256")
    ]
    phones = {(3024, 4032): (448, 576), (4032, 3024): (576, 448), (1080, 1920): (384, 640), (1080, 2400): (320, 768)}
    assert {size: SD.target(size) for size in phones} == phones
    assert SD.target((700, 700)) == (512, 512)
    assert SD.target((100, 9000)) == (256, 1024)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 16, 64]))
def test_buckets_have_about_the_area_of_the_model(across: int, down: int, step: int) -> None:
    size = across * step, down * step
    area = size[0] * size[1]
    found = bucket_sizes(size, step)
    assert {(height, width) for width, height in found} == set(found)
    for width, height in found:
        assert width % step == height % step == 0
        assert width * height <= area < (width + step) * height
    shape = max(size) / min(size)
    assert (size in found) == (shape <= 4)


def test_none_refuses_another_size() -> None:
    to("none").require_taken(Path("a.png"), (32, 32))
    to("crop").require_taken(Path("a.png"), (48, 32))
    with pytest.raises(ConfigError, match=r"a\.png is 48 x 32 pixels, the model trains at 32 x 32") as caught:
        to("none").require_taken(Path("a.png"), (48, 32))
    assert "resize to crop, letterbox or buckets" in caught.value.hint


def test_far_too_small_is_under_half_of_the_shorter_side() -> None:
    assert not SD.is_far_too_small((256, 4000))
    assert not SD.is_far_too_small((224, 288)), "its bucket is 448 x 576"
    assert SD.is_far_too_small((220, 288))
    assert not to("crop").is_far_too_small((16, 16))
    assert to("crop").is_far_too_small((15, 500))
