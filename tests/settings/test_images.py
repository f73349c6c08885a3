"""Reading image files: whole, upright, 8 bits, one size."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import read_image, require_readable
from tests.support.pictures import picture


class TestPictures:
    @given(kind=st.sampled_from(["png", "jpeg", "webp"]), share=st.floats(0, 0.999))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_file_that_is_cut_off_is_refused_or_whole(self, tmp_path: Path, kind: str, share: float) -> None:
        """Only end marks may be missing without a word: then every pixel is there."""
        whole = io.BytesIO()
        picture(0).save(whole, format=kind)
        expected = np.array(Image.open(whole))
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
        found = None
        with contextlib.suppress(ConfigError):
            found = read_image(path)
        if found is not None:
            np.testing.assert_array_equal(found, expected)
            return
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_image(path)

    def test_one_damaged_byte_does_not_pass_as_another_error(self, tmp_path: Path) -> None:
        whole = io.BytesIO()
        picture(0).save(whole, format="png")
        for place in range(0, len(whole.getvalue()), 97):
            damaged = bytearray(whole.getvalue())
            damaged[place] ^= 0xFF
            (tmp_path / "x.png").write_bytes(damaged)
            with pytest.raises(ConfigError, match=r"cannot read the image .*x\.png"):
                read_image(tmp_path / "x.png")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
        picture(0).convert(mode).save(path)
        assert read_image(path).mode == "RGB"

    def test_sixteen_bits_are_not_cut_to_eight(self, tmp_path: Path) -> None:
        Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60).save(tmp_path / "x.png")
        with pytest.raises(ConfigError, match=r"x\.png has more than 8 bits a channel"):
            read_image(tmp_path / "x.png")

    def test_a_camera_that_was_held_upright(self, tmp_path: Path) -> None:
        """Orientation 6: what is stored is to be turned a quarter clockwise."""
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(0, 40, 24).save(tmp_path / "x.png", exif=exif)
        found = read_image(tmp_path / "x.png")
        assert found.size == (24, 40)
        np.testing.assert_array_equal(found, np.rot90(np.array(picture(0, 40, 24)), -1))

    def test_all_of_one_size(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for path, width in zip(paths, (32, 32, 48), strict=True):
            picture(0, width).save(path)
        assert require_readable(paths[:2]) == (32, 32)
        with pytest.raises(ConfigError, match=r"2\.png is 48 x 32 pixels, .*0\.png is 32 x 32"):
            require_readable(paths)
