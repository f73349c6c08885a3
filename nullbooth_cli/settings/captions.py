"""Images with captions: pictures to train on, or (`collect.latents: images`) to preserve instead of prompts.

A folder has images and their captions, each in one of three ways; the three can be mixed:

    photos/                              photos/                          photos/
    ├── metadata.jsonl (or .csv)         ├── a.png                        └── 10_sks dog/     as kohya's trainers read it: the
    ├── a.png                            ├── a.txt  (or a.caption)            ├── a.png       caption "sks dog", 10 times
    └── more/b.jpg                       └── ...                              └── ...
    {"file_name": "more/b.jpg", "text": "a red bird"}    as the datasets library's imagefolder reads it

- A metadata file names images of its own folder and of folders inside it. Its columns: `file_name`, and `text`, `caption` or
  `prompt`.
- Of a file beside an image only the first line is the caption, as for kohya's trainers.
- The name of a folder like `10_sks dog` is the caption of its images if none of them has another. In training they are drawn 10
  times as often as images elsewhere; a collection counts each once.

A caption and its image are one prompt, identified by the caption and the digest of the file. The names of other folders and of
files do not matter.
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.settings.images import ImageFolder, digest, read_image_folder
from nullbooth_cli.settings.prompts import COLUMNS
from nullbooth_cli.settings.shipped import picture_folder
from nullbooth_cli.settings.strict_json import parse_json
from nullbooth_cli.settings.texts import cut, flaw, lines_of, paired, read_text

NUMBERED = re.compile(r"([1-9]\d{0,3})_(.*\S.*)")
SHAPES = {
    ".jsonl": 'write lines such as {"file_name": "a.png", "text": "a red bird"}',
    ".csv": "write a header such as file_name,text and a line such as a.png,a red bird",
}
FOR_ALL = {"instance_images": "instance_prompt", "pictures": "caption"}  # the setting beside that of a folder: one for all
Captions = dict[Path, list[tuple[str, str]]]  # of each image: the place and the text of its captions


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """An image file with its prompt (caption and digest); `repeats` weighs it in training."""

    path: Path
    prompt: Prompt
    repeats: int


def load_captions(source: str) -> tuple[Prompt, ...]:
    """The captions of a folder, each with the digest of its image, sorted by file name."""
    return tuple(image.prompt for image in captioned_images(source))


def has_captions(source: str, key: str = "instance_images") -> bool:
    """Whether a folder has captions, of all of its images or of some. Raises ConfigError as `read_image_folder` does."""
    return bool(caption_places(source, key))


def caption_places(source: str, key: str = "instance_images") -> list[str]:
    """The names of the files and numbered folders that captions come from. Raises ConfigError as `read_image_folder` does."""
    folder = picture_folder(source, key)
    found = read_image_folder(folder, key)
    numbered = {numbered[0].name for path in found.images if (numbered := _numbered(path, folder))}
    return [*sorted(numbered), *(path.name for path in (*found.beside, *found.tables))]


def captioned_images(source: str, key: str = "collect.images", caption: str | None = None) -> tuple[CaptionedImage, ...]:
    """The images of a folder, sorted by file name, with their captions, or with one `caption` for all; `key` names the folder.

    Raises ConfigError as `read_image_folder` does, for an image without a caption or with two, a caption without an image, and an
    image that appears twice with one caption. Cost: one read of every file.
    """
    folder = picture_folder(source, key)
    found = read_image_folder(folder, key)
    captions = _captions(folder, found, key) if caption is None else dict.fromkeys(found.images, caption)
    seen: dict[Prompt, Path] = {}
    images, twice = [], []
    for path, text in captions.items():
        prompt = Prompt(text, digest(path))
        if prompt in seen:
            twice.append(f"{path} is the same image as {seen[prompt]}")
            continue
        seen[prompt] = path
        numbered = _numbered(path, folder)
        images.append(CaptionedImage(path=path, prompt=prompt, repeats=numbered[1] if numbered else 1))
    if twice:
        raise ConfigError(f"{listed(twice)}, with the same caption", "remove one of them" if len(twice) == 1 else "remove copies")
    return tuple(images)


def _captions(folder: Path, files: ImageFolder, key: str) -> dict[Path, str]:
    """The caption of every image."""
    found: Captions = {path: [] for path in files.images}
    _read_beside(found, files)
    for table in files.tables:
        for row, where in _rows(table):
            path = _image_of(row, where, table, found)
            found[path].append((where, _caption(row, where, table)))
    for path, captions in found.items():
        if len(captions) > 1:
            places = " and ".join(place for place, _ in captions)
            raise ConfigError(f"{path} has more than one caption: {places}", "keep one caption for each image")
    named = _names(folder, found)
    if missing := [path for path, captions in found.items() if not captions and path not in named]:
        for_all = f", or set {FOR_ALL[key]}, one caption for all images" if key in FOR_ALL else ""
        raise ConfigError(
            f"no caption for {listed(missing)}",
            f"write it into {missing[0].with_suffix('.txt')}, or write all captions into {folder / 'metadata.jsonl'}{for_all}",
        )
    return {path: captions[0][1] if captions else named[path] for path, captions in found.items()}


def _read_beside(found: Captions, files: ImageFolder) -> None:
    """Add the captions in files that have the name of an image. Raises ConfigError for those that have not."""
    by_name: dict[Path, list[Path]] = defaultdict(list)
    for path in files.images:
        by_name[path.with_suffix("")].append(path)
    if alone := [file for file in files.beside if file.with_suffix("") not in by_name]:
        raise ConfigError(
            f"no image for the caption {listed(alone)}", "put an image of the same name beside it, or move a note elsewhere"
        )
    for file in files.beside:
        caption = lines_of(read_text(file, "captions").strip())[0].rstrip()
        if not caption:
            raise ConfigError(f"{file} is an empty caption", "write one line of text")
        for path in by_name[file.with_suffix("")]:
            found[path].append((str(file), caption))


def _numbered(path: Path, folder: Path) -> tuple[Path, int, str] | None:
    """The nearest folder of an image that is called like `10_sks dog`, with its number and its name."""
    for place in path.parents:
        if match := NUMBERED.fullmatch(place.name):
            return place, int(match[1]), match[2].strip()
        if place == folder:
            return None
    return None


def _names(folder: Path, found: Captions) -> dict[Path, str]:
    """The captions that the names of numbered folders are, where no image has another."""
    groups: dict[tuple[Path, int, str], list[Path]] = defaultdict(list)
    for path in found:
        if numbered := _numbered(path, folder):
            groups[numbered].append(path)
    return {path: name for (_, _, name), paths in groups.items() if not any(found[path] for path in paths) for path in paths}


def _rows(table: Path) -> Iterator[tuple[Mapping[object, object], str]]:
    """The rows of a metadata file, each with its place."""
    text, shape = read_text(table, "captions"), SHAPES[table.suffix]
    if table.suffix == ".jsonl":
        for number, line in enumerate(lines_of(text), start=1):
            if line.strip():
                where = f"{table}: line {number}"
                row = parse_json(line, where, shape)
                if not isinstance(row, dict):
                    raise ConfigError(f"{where} has no file_name", shape)
                yield row, where
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{table}: line {reader.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where} does not have as many cells as the header", "put quotes around a text with a comma")
            yield row, where
    except csv.Error as error:
        raise ConfigError(
            f"{table}: line {reader.reader.line_num} is not CSV: {error}", "check the quotes up to that line"
        ) from error


def _image_of(row: Mapping[object, object], where: str, table: Path, images: Captions) -> Path:
    name = row.get("file_name")
    if not isinstance(name, str):
        raise ConfigError(f"{where} has no file_name", SHAPES[table.suffix])
    path = Path(os.path.normpath(table.parent / name))
    if path not in images:
        what = "is not an image in this folder" if os.path.lexists(path) else "does not exist"
        raise ConfigError(f"{where} names {path}, which {what}", "correct or remove the line")
    return path


def _caption(row: Mapping[object, object], where: str, table: Path) -> str:
    keys = [key for key in COLUMNS if key in row]
    text = row[keys[0]] if len(keys) == 1 else None
    if not isinstance(text, str):
        has = cut(", ".join(map(str, row)))
        raise ConfigError(f"{where} needs exactly one caption ({', '.join(COLUMNS)}), it has: {has}", SHAPES[table.suffix])
    caption = paired(text).strip()
    if problem := flaw(caption):
        raise ConfigError(f"the caption of {where} {problem}", "correct it")
    if not caption or len(lines_of(caption)) > 1:
        raise ConfigError(f"{where} is {'several lines' if caption else 'an empty caption'}", "write one line of text")
    return caption
