"""Image files: which files of a folder are images; reading them whole, upright, as they are seen, in 8 bits, of one size."""

import contextlib
import io
import random
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import read_image, read_image_folder, require_readable
from tests.support.pictures import picture


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in read_image_folder(folder).images]


class TestFolder:
    def test_whatever_pillow_opens_is_an_image(self, tmp_path: Path) -> None:
        """By content: the ending of a name and its case do not matter."""
        kinds = {"a.BMP": "bmp", "b.gif": "gif", "c.tiff": "tiff", "d.JPG": "jpeg", "e.avif": "avif", "f": "png", "g.webp": "png"}
        for name, kind in kinds.items():
            picture(0).save(tmp_path / name, format=kind)
        assert names(tmp_path) == list(kinds)
        assert {read_image(path).size for path in read_image_folder(tmp_path).images} == {(32, 32)}

    def test_what_is_no_image_is_named(self, tmp_path: Path) -> None:
        picture(0).save(tmp_path / "a.png")
        heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
        wrong = {"b.heic": heic, "c.png": b"", "d.mp4": b"film", "e.JPG": b"<html>", "f.json": b"{}", "g": b""}
        for name, content in wrong.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"b\.heic, .*c\.png, .*d\.mp4, .*e\.JPG, .*f\.json and 1 more in .*") as caught:
            read_image_folder(tmp_path)
        assert "neither images that can be read nor captions" in caught.value.message
        assert caught.value.hint.startswith("export b.heic as JPEG")
        assert "save damaged images as .png" in caught.value.hint
        (tmp_path / "b.heic").unlink()
        with pytest.raises(ConfigError, match=r"c\.png, .*d\.mp4") as caught:
            read_image_folder(tmp_path)
        assert "export" not in caught.value.hint

    def test_what_systems_and_trainers_leave_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / ".cache").mkdir()
        left = (".DS_Store", "._a.png", ".cache/x", "Thumbs.db", "desktop.ini", "a_sd.npz", "a.AAE", "a.xmp", "README.md")
        for name in (*left, "license.txt"):
            (tmp_path / name).write_bytes(b"?")
        picture(0).save(tmp_path / "a.png")
        assert names(tmp_path) == ["a.png"]

    def test_links(self, tmp_path: Path) -> None:
        folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
        (elsewhere / "deep").mkdir(parents=True)
        folder.mkdir()
        picture(0).save(elsewhere / "deep/a.png")
        (folder / "more").symlink_to(elsewhere)
        (folder / "b.png").symlink_to(elsewhere / "deep/a.png")
        assert names(folder) == ["b.png", "more/deep/a.png"]
        (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
        with pytest.raises(ConfigError, match=r"cannot read the image .*gone\.png"):
            read_image_folder(folder)
        (folder / "gone.png").unlink()
        (elsewhere / "back").symlink_to(folder)
        with pytest.raises(ConfigError, match=r"more/back and .*photos are one folder") as caught:
            read_image_folder(folder)
        assert caught.value.hint == "remove the link"

    def test_a_folder_that_cannot_be_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(place: str) -> None:
            raise PermissionError(13, "Permission denied", place)

        monkeypatch.setattr("os.scandir", refuse)
        with pytest.raises(ConfigError, match=f"cannot list {tmp_path}: Permission denied"):
            read_image_folder(tmp_path)

    @pytest.mark.parametrize("key", ["collect.images", "instance_images"])
    def test_no_folder_and_no_image(self, tmp_path: Path, key: str) -> None:
        """The hint names the setting of the file at hand."""
        with pytest.raises(ConfigError, match=r"no folder of images at .*gone") as caught:
            read_image_folder(tmp_path / "gone", key)
        assert caught.value.hint.startswith(f"set {key} to a folder")
        with pytest.raises(ConfigError, match="has no image") as caught:
            read_image_folder(tmp_path, key)
        assert key in caught.value.hint


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

    def test_whatever_a_decoder_raises_is_one_error(self, tmp_path: Path) -> None:
        """A hundred damages of each kind of file: RuntimeError, TypeError and others from Pillow's decoders."""
        rng, path = random.Random(0), tmp_path / "x"
        for kind in ("avif", "bmp", "gif", "ico", "jpeg", "png", "ppm", "tga", "tiff", "webp"):
            whole = io.BytesIO()
            picture(0).save(whole, format=kind)
            for _ in range(100):
                damaged = bytearray(whole.getvalue())
                for _ in range(rng.choice((1, 8))):
                    damaged[rng.randrange(min(300, len(damaged)))] = rng.randrange(256)
                path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
                with contextlib.suppress(ConfigError), warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of tags beside the image
                    read_image(path)

    def test_an_animation_is_refused_and_a_photo_with_its_preview_is_not(self, tmp_path: Path) -> None:
        frames = [picture(seed) for seed in range(3)]
        for name in ("x.gif", "x.webp", "x.png", "x.tiff"):
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
            with pytest.raises(ConfigError, match=rf"{name} has 3 frames, not one") as caught:
                read_image(tmp_path / name)
            assert caught.value.hint == "save the frame that you mean as .png"
        plain = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black")]
        plain[0].save(tmp_path / "x.jpg", format="mpo", save_all=True, append_images=plain[1:])
        np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), plain[0])

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_white(self, tmp_path: Path, mode: str) -> None:
        """Not the colour below, which nobody sees: here black."""
        image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 16, 32))
        image.convert(mode).save(tmp_path / "x.png")
        found = np.array(read_image(tmp_path / "x.png"))
        assert (found[:, :16] == 0).all()
        assert (found[:, 16:] == 255).all()

    def test_too_many_pixels_are_not_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture(0).save(tmp_path / "x.png")
        for limit in (1000, 100):  # Pillow warns of the first, and refuses the second
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(
                ConfigError, match=r"cannot read the image .*x\.png: Image size \(1024 pixels\) exceeds"
            ) as caught:
                read_image(tmp_path / "x.png")
            assert caught.value.hint == "put a smaller copy in its place"

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
        picture(0).convert(mode).save(path)
        assert read_image(path).mode == "RGB"

    @pytest.mark.parametrize("kind", ["png", "tiff", "ppm", "jpeg2000"])
    def test_the_upper_8_of_16_bits_of_gray_remain(self, tmp_path: Path, kind: str) -> None:
        """Not the lower ones, and not 255 for all that is above: Pillow's own conversions do that."""
        values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
        Image.fromarray(values).save(tmp_path / "x", format=kind)
        found = read_image(tmp_path / "x")
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), np.repeat((values // 256)[..., None], 3, axis=-1))

    def test_gray_of_12_bits_fills_the_range_as_well(self, tmp_path: Path) -> None:
        """Two values in three bytes, as scanners write TIFF: 0xFFF and 0x800."""
        entries = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
        strip = b"\xff\xf8\x00" + b"\0"
        tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
        (tmp_path / "x.tif").write_bytes(
            b"II*\0" + struct.pack("<I", 12) + strip + struct.pack("<H", len(entries)) + tags + bytes(4)
        )
        assert np.asarray(read_image(tmp_path / "x.tif"))[0, :, 0].tolist() == [255, 128]

    def test_gray_of_16_bits_is_transparent_and_upright_like_the_rest(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        values = np.full((24, 40), 600, dtype=np.uint16)
        values[:, :20] = 601
        Image.fromarray(values).save(tmp_path / "x.png", exif=exif, transparency=600)
        found = np.asarray(read_image(tmp_path / "x.png"))
        assert found.shape == (40, 24, 3)
        assert (found[:20] == 2).all()
        assert (found[20:] == 255).all()

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_values_without_a_range_are_refused(self, tmp_path: Path, dtype: str) -> None:
        Image.fromarray(np.ones((32, 32), dtype)).save(tmp_path / "x.tiff")
        with pytest.raises(ConfigError, match=r"x\.tiff has 32 bits a channel .*range is not known") as caught:
            read_image(tmp_path / "x.tiff")
        assert caught.value.hint == "save it with 8 or 16 bits a channel"

    @pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}], ids=["DNG", "a preview"])
    def test_the_preview_of_a_raw_photo_is_not_the_photo(self, tmp_path: Path, tags: dict[int, Any]) -> None:
        picture(0).save(tmp_path / "x.dng", format="tiff", tiffinfo=tags)
        with pytest.raises(ConfigError, match=r"x\.dng is a raw photo") as caught:
            read_image(tmp_path / "x.dng")
        assert caught.value.hint == "export it as JPEG"

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
