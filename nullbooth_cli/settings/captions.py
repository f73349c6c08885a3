"""Images with captions, which `collect.latents: images` preserves instead of prompts.

A folder has images (.png, .jpg, .jpeg, .webp, also in folders inside it) and their captions, in one of two ways:

    photos/                              photos/
    ├── metadata.jsonl                   ├── a.png
    ├── a.png                            ├── a.txt      the caption of a.png
    └── b.jpg                            └── ...
    {"file_name": "a.png", "text": "a red bird"}    as the datasets library's imagefolder reads it

A caption and its image are one prompt, identified by the caption and the digest of the file. The names of folder and file do
not matter.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import SUFFIXES, digest, find_images
from nullbooth_cli.settings.prompts import COLUMNS

METADATA = "metadata.jsonl"


def load_captions(source: str) -> tuple[Prompt, ...]:
    """The captions of a folder, each with the digest of its image, sorted by file name."""
    return tuple(captioned_files(source))


def captioned_files(source: str) -> dict[Prompt, Path]:
    """The captions of a folder with their image files. Cost: one read of every file.

    Raises ConfigError for a folder without images, an image without a caption, and an image that appears twice with one caption.
    """
    seen: dict[Prompt, Path] = {}
    for path, caption in _captions(Path(source)):
        prompt = Prompt(caption, digest(path))
        if prompt in seen:
            raise ConfigError(f"{path} is the same image as {seen[prompt]}, with the same caption", "remove one of them")
        seen[prompt] = path
    return seen


def _captions(folder: Path) -> Iterator[tuple[Path, str]]:
    images, metadata = find_images(folder), folder / METADATA
    beside = {path: path.with_suffix(".txt") for path in images}
    if not metadata.is_file():
        for path, file in beside.items():
            if not file.is_file():
                raise ConfigError(f"{path} has no caption", f"write it into {file}, or write all captions into {metadata}")
            yield path, _checked(_text(file), str(file))
        return
    if twice := next((file for file in beside.values() if file.is_file()), None):
        raise ConfigError(f"{folder} has captions in {METADATA} and in {twice}", "keep one of the two")
    captions = _metadata(metadata, set(images))
    for path in images:
        if path not in captions:
            raise ConfigError(f"{path} has no caption", f"add a line for it to {metadata}, or remove the image")
        yield path, captions[path]


def _metadata(file: Path, images: set[Path]) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            where = f"{file}: line {number}"
            path, caption = _entry(line, where, file.parent, images)
            if path in captions:
                raise ConfigError(f"{where} names {path} a second time", "keep one caption for each image")
            captions[path] = caption
    return captions


def _entry(line: str, where: str, folder: Path, images: set[Path]) -> tuple[Path, str]:
    shape = 'write lines such as {"file_name": "a.png", "text": "a red bird"}'
    try:
        entry: object = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}", shape) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ConfigError(f"{where} has no file_name", shape)
    path = Path(os.path.normpath(folder / entry["file_name"]))
    if path not in images:
        what = "is not an image in this folder" if path.exists() else "does not exist"
        hint = f"correct or remove the line; names of images end in {', '.join(SUFFIXES)}"
        raise ConfigError(f"{where} names {path}, which {what}", hint)
    keys = [key for key in COLUMNS if key in entry]
    if len(keys) != 1 or not isinstance(entry[keys[0]], str):
        raise ConfigError(f"{where} needs exactly one caption ({', '.join(COLUMNS)}), it has: {', '.join(entry)}", shape)
    return path, _checked(entry[keys[0]], where)


def _checked(text: str, where: str) -> str:
    caption = text.strip()
    if not caption or "\n" in caption:
        raise ConfigError(f"{where} is {'several lines' if caption else 'an empty caption'}", "write one line of text")
    return caption


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the captions {file}: {error}", "save it as a text file in UTF-8") from error
