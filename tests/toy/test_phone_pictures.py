"""The phone-like pictures of tests: each shows the whole subject after a centre crop, and none is like another."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nullbooth_cli.settings.images import read_image, read_image_folder
from nullbooth_cli.toy import subject, world
from tests.support.phone_pictures import draw_large, png_of_16_bits, write_phone_pictures


def test_every_picture_shows_the_whole_subject_after_a_centre_crop(tmp_path: Path) -> None:
    backgrounds = write_phone_pictures(tmp_path)
    assert sorted(backgrounds) == list(read_image_folder(tmp_path).images)
    assert len(backgrounds) == 10
    assert set(backgrounds.values()) == set(subject.TAUGHT_ON)
    for path, background in backgrounds.items():
        cropped = ImageOps.fit(read_image(path), (world.SIZE, world.SIZE), Image.Resampling.LANCZOS)
        assert subject.is_drawn(np.asarray(cropped) / 255, background), path.name


def test_they_differ_as_those_of_phones_do(tmp_path: Path) -> None:
    sizes, modes, turned = set(), set(), set()
    for path in write_phone_pictures(tmp_path):
        with Image.open(path) as image:
            sizes.add(image.size)
            modes.add(image.mode)
            turned.add(image.getexif().get(0x0112, 1))
    assert len(sizes) == 10
    assert modes >= {"RGB", "RGBA", "P", "CMYK"}
    assert turned == {1, 2, 3, 6, 8}


@pytest.mark.parametrize("place", [(0.0, 0.0, 10.0), (2.0, -1.5, 9.0)])
def test_the_large_drawing_is_the_subject(place: tuple[float, float, float]) -> None:
    large = Image.fromarray(draw_large("gray", 320, 320, *place)).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(large) / 255 - subject.draw("gray", *place)).mean() < 0.005


def test_16_bits_are_read_as_the_8_that_they_are_made_of(tmp_path: Path) -> None:
    pixels = draw_large("purple", 40, 30)
    (tmp_path / "x.png").write_bytes(content := png_of_16_bits(pixels))
    assert content[24:26] == b"\x10\x02"  # 16 bits, RGB
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.png")), pixels)
