"""Folders of images with captions, and everything that can be wrong in one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.captions import caption_places, captioned_images, load_captions
from nullbooth_cli.settings.images import image_files, read_image
from nullbooth_cli.toy import world
from tests.support.pictures import TOY, photos, picture


class TestFolder:
    def test_captions_beside_the_images_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        photos(tmp_path, ["a dog", "\ufeffa cat\n"])
        (tmp_path / "more").mkdir()
        picture(7).save(tmp_path / "more" / "x.JPG", format="jpeg")
        (tmp_path / "more" / "x.txt").write_text("  a fox ")
        (tmp_path / "more" / "._x.JPG").write_bytes(b"what macOS leaves")
        (tmp_path / "README.txt").write_text("not a caption")
        picture(8).save(tmp_path / "more" / "y.bmp")
        (tmp_path / "more" / "y.CAPTION").write_text("a hare")
        found = load_captions(str(tmp_path))
        assert [prompt.text for prompt in found] == ["a dog", "a cat", "a fox", "a hare"]
        assert list(image_files(str(tmp_path))) == [prompt.image for prompt in found]

    @pytest.mark.parametrize("key", ["text", "caption", "prompt"])
    def test_captions_in_metadata(self, tmp_path: Path, key: str) -> None:
        (tmp_path / "train").mkdir()
        for i, name in enumerate(("b.png", "train/a.webp")):
            picture(i).save(tmp_path / name)
        entries = [{"file_name": "train/a.webp", key: "a\u2028line", "n": 3}, {"file_name": "b.png", key: "a dog"}]
        (tmp_path / "metadata.jsonl").write_text("\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
        assert [prompt.text for prompt in load_captions(str(tmp_path))] == ["a dog", "a\u2028line"]

    def test_tables_in_each_folder_beside_captions_of_their_own(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        for i, name in enumerate(("b.png", "c.png", "train/a.png")):
            picture(i).save(tmp_path / name)
        (tmp_path / "metadata.csv").write_text('\ufefffile_name,text,n\nb.png,"a dog, running",3\n\n')
        (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
        (tmp_path / "c.txt").write_text("a fox")
        assert [prompt.text for prompt in load_captions(str(tmp_path))] == ["a dog, running", "a fox", "a cat"]

    def test_of_a_file_beside_an_image_the_first_line_is_the_caption(self, tmp_path: Path) -> None:
        folder = photos(tmp_path, ["a dog\r\nanother\n", "\n a cat\u2028 asleep \n\nanother"])
        assert [prompt.text for prompt in load_captions(str(folder))] == ["a dog", "a cat\u2028 asleep"]

    def test_folders_with_a_number_and_a_name(self, tmp_path: Path) -> None:
        """As kohya's trainers read them; a table or a file beside an image has precedence over the name."""
        for name, captions in (("10_sks dog", []), ("3_sks cat", ["a sks cat", "a sks cat asleep"]), ("plain", ["a fox"])):
            photos(tmp_path / name, captions)
        picture(7).save(tmp_path / "10_sks dog/x.png")
        found = captioned_images(str(tmp_path))
        assert [(image.prompt.text, image.repeats) for image in found] == [
            ("sks dog", 10),
            ("a sks cat", 3),
            ("a sks cat asleep", 3),
            ("a fox", 1),
        ]
        assert captioned_images(str(tmp_path / "10_sks dog")) == found[:1]
        assert caption_places(str(tmp_path)) == ["10_sks dog", "3_sks cat", "0.txt", "1.txt", "0.txt"]
        (tmp_path / "3_sks cat/1.txt").unlink()
        with pytest.raises(ConfigError, match=r"no caption for .*3_sks cat/1\.png"):
            captioned_images(str(tmp_path))
        (tmp_path / "10_sks dog").rename(tmp_path / "sks dog")
        with pytest.raises(ConfigError, match=r"no caption for .*3_sks cat/1\.png, .*sks dog/x\.png"):
            captioned_images(str(tmp_path))

    def test_one_caption_for_all(self, tmp_path: Path) -> None:
        for i in range(2):
            picture(i).save(tmp_path / f"{i}.png")
        with pytest.raises(ConfigError, match=r"no caption for .*0\.png, .*1\.png") as caught:
            captioned_images(str(tmp_path), "instance_images")
        assert "set instance_prompt" in caught.value.hint
        with pytest.raises(ConfigError) as caught:
            captioned_images(str(tmp_path))
        assert "instance_prompt" not in caught.value.hint
        (tmp_path / "0.txt").write_text("not read")
        assert [image.prompt.text for image in captioned_images(str(tmp_path), "instance_images", "a sks dog")] == [
            "a sks dog"
        ] * 2

    def test_the_identity_of_an_image(self, tmp_path: Path) -> None:
        """Its caption and its content: not its name, not its folder."""
        (first,) = load_captions(str(photos(tmp_path / "one", ["a dog"])))
        (tmp_path / "one/0.png").rename(tmp_path / "one/z.png")
        (tmp_path / "one/0.txt").rename(tmp_path / "one/z.txt")
        (moved,) = load_captions(str((tmp_path / "one").rename(tmp_path / "two")))
        assert moved == first
        picture(9).save(tmp_path / "two/z.png")
        (edited,) = load_captions(str(tmp_path / "two"))
        assert len({first.id, edited.id, Prompt("a dog").id, replace(first, text="a cat").id}) == 4

    @pytest.mark.parametrize(
        ("entries", "message", "hint"),
        [
            (["{"], r"metadata\.jsonl: line 1 is not JSON", "file_name"),
            (['["a.png"]'], r"metadata\.jsonl: line 1 has no file_name", "file_name"),
            (['{"text": "a dog"}'], r"metadata\.jsonl: line 1 has no file_name", "file_name"),
            (['{"file_name": "c.png", "text": "x"}'], r"line 1 names .*c\.png, which does not exist", "correct or remove"),
            (['{"file_name": "README.md", "text": "x"}'], r"line 1 names .*README\.md, which is not an image", "correct"),
            (['{"file_name": "../up.png", "text": "x"}'], r"names .*up\.png, which is not an image in this folder", "remove"),
            (['{"file_name": "a.png"}'], r"line 1 needs exactly one caption.*it has: file_name", '"text"'),
            (['{"file_name": "a.png", "text": "x", "caption": "y"}'], "line 1 needs exactly one caption", '"text"'),
            (['{"file_name": "a.png", "text": null}'], "line 1 needs exactly one caption", '"text"'),
            (['{"file_name": "a.png", "text": "x"}', '{"file_name": "a.png", "text": " "}'], "line 2 is an empty caption", "one"),
            (['{"file_name": "a.png", "text": "x\\ny"}'], "line 1 is several lines", "one line"),
            (
                ['{"file_name": "a.png", "text": "x"}', '{"file_name": "./a.png", "text": "y"}'],
                r"a\.png has more than one caption: .*line 1 and .*line 2",
                "one",
            ),
            (['{"file_name": "a.png", "text": "x"}'], r"no caption for .*b\.png", r"metadata\.jsonl"),
        ],
        ids=lambda value: None,
    )
    def test_wrong_metadata(self, tmp_path: Path, entries: list[str], message: str, hint: str) -> None:
        folder = tmp_path / "photos"
        folder.mkdir()
        for i, place in enumerate((folder / "a.png", folder / "b.png", tmp_path / "up.png")):
            picture(i).save(place)
        (folder / "README.md").write_text("pictures")
        (folder / "metadata.jsonl").write_text("\n".join(entries))
        with pytest.raises(ConfigError, match=message) as caught:
            load_captions(str(folder))
        assert hint.replace("\\", "") in caught.value.hint

    def test_captions_that_are_missing_empty_doubled_or_not_text(self, tmp_path: Path) -> None:
        folder = photos(tmp_path / "photos", ["a dog", "a cat"])

        def refuses(message: str) -> None:
            with pytest.raises(ConfigError, match=message):
                load_captions(str(folder))

        (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a dog"}')
        refuses(r"0\.png has more than one caption: .*0\.txt and .*metadata\.jsonl: line 1")
        (folder / "metadata.jsonl").unlink()
        (folder / "2.txt").write_text("a fox")
        (folder / "3.caption").write_text("a fox")
        refuses(r"no image for the caption .*2\.txt, .*3\.caption")
        (folder / "2.txt").unlink()
        (folder / "3.caption").unlink()
        (folder / "0.txt").write_text(" \n")
        refuses(r"0\.txt is an empty caption")
        (folder / "0.txt").write_bytes(b"\xff\xfe\x00")
        refuses(r"cannot read the captions .*0\.txt")
        (folder / "0.txt").unlink()
        refuses(r"no caption for .*0\.png")
        shutil.copy(folder / "1.png", folder / "0.png")
        (folder / "0.txt").write_text("a cat")
        refuses(r"1\.png is the same image as .*0\.png, with the same caption")
        (folder / "0.txt").write_text("a kitten")
        assert len(load_captions(str(folder))) == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file_name,text\na.png,a dog,running\n", r"line 2 does not have as many cells"),
            ("file_name,text\na.png\n", r"line 2 does not have as many cells"),
            ('file_name,text\na.png,"a dog\n', r"line 2 is not CSV"),
            ("name,text\na.png,a dog\n", r"line 2 has no file_name"),
            ("file_name,title\na.png,a dog\n", r"line 2 needs exactly one caption"),
            ("file_name,text\na.png,\n", r"line 2 is an empty caption"),
        ],
    )
    def test_a_wrong_table(self, tmp_path: Path, text: str, message: str) -> None:
        picture(0).save(tmp_path / "a.png")
        (tmp_path / "metadata.csv").write_text(text)
        with pytest.raises(ConfigError, match=r"metadata\.csv: " + message):
            load_captions(str(tmp_path))

    def test_the_toy_images_are_those_of_their_script(self) -> None:
        from dataset.make.toy_images import drawings

        drawn = drawings()
        files = image_files(str(TOY))
        for prompt, drawing in zip(load_captions(str(TOY)), drawn, strict=True):
            assert prompt.text == world.caption(drawing)
            np.testing.assert_array_equal(read_image(files[prompt.image or ""]), (world.draw(drawing) * 255).round())
