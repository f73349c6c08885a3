"""Prompts: a file, or a list in the config. A repeated prompt is an error. The ending of a file decides how it is read:

    .csv     a table with a header, a prompt a row, in its column `prompt`, `caption` or `text`
    .jsonl   an object a line, with such a key, or a bare string
    .json    COCO captions: {"annotations": [{"caption": ...}, ...]}; captions that many images share are taken once
    other    text, a prompt a line; blank lines do not count

`captions.csv#title` reads the column, or the key, `title`. All files are UTF-8. `captions` reads prompts that belong to images.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError

COLUMNS = ("prompt", "caption", "text")


def load_prompts(source: str | list[str], key: str = "original_knowledge_prompts") -> tuple[Prompt, ...]:
    """Read the prompts of a file, or take those of a list; `key` is the setting that names them.

    Raises ConfigError with the file and the line if there is no prompt, if one is repeated, or if the file does not have the
    format that its ending names.
    """
    if isinstance(source, list):
        return _check([(f"prompt {i + 1}", text) for i, text in enumerate(source)], "the list of prompts in the config")
    named = re.fullmatch(r"(.+\.(?:csv|jsonl|json))#(.+)", source, re.IGNORECASE)
    path, column = (Path(named[1]), named[2]) if named else (Path(source), None)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        hint = f"set {key}; relative paths start at the current folder"
        raise ConfigError(f"no prompt file at {path} (in {Path.cwd()})", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompt file {path}: {error}", "save it as a text file in UTF-8") from error
    reader = {".csv": _rows, ".jsonl": _objects, ".json": _annotations}.get(path.suffix.lower())
    if reader is None:
        return _check([(f"line {i + 1}", line) for i, line in enumerate(text.splitlines())], str(path))
    return _check(_filled(reader(text, path, column), path), str(path))


def _rows(text: str, path: Path, column: str | None) -> Iterator[tuple[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            return
        chosen = header.index(_column(header, column, path, "the header"))
        for row in reader:
            place = f"line {reader.line_num}"
            if row and len(row) != len(header):
                raise ConfigError(
                    f"{path}: {place} has {len(row)} cells, the header has {len(header)}",
                    'put quotes around a prompt with a comma: "a dog, running"',
                )
            if row:
                yield place, row[chosen]
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num} is not CSV: {error}", "check the quotes up to that line") from error


def _objects(text: str, path: Path, column: str | None) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines would also split inside JSON strings
        if line.strip():
            place = f"line {number}"
            value = _json(line, f"{path}: {place}", "write one JSON object or string a line")
            yield place, value if isinstance(value, str) else _of_object(value, column, path, place)


def _annotations(text: str, path: Path, column: str | None) -> Iterator[tuple[str, object]]:
    hint = 'write COCO captions, {"annotations": [{"caption": "..."}, ...]}, or use a .jsonl file for objects of another form'
    document = _json(text, str(path), hint)
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list):
        raise ConfigError(f"{path} has no list of annotations", hint)
    seen = set()
    for number, annotation in enumerate(annotations, start=1):
        place = f"annotation {number}"
        caption = _of_object(annotation, column, path, place)
        line = _one_line(caption) if isinstance(caption, str) else ""
        if not line or line not in seen:
            seen.add(line)
            yield place, caption


def _json(text: str, place: str, hint: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}", hint) from error


def _of_object(value: object, column: str | None, path: Path, place: str) -> object:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {place} is neither an object nor a string", 'write {"prompt": "a dog"} or "a dog"')
    return value[_column(list(value), column, path, place)]


def _column(names: Sequence[str], column: str | None, path: Path, place: str) -> str:
    """The name of the prompts' column or key: `column`, or the only one called prompt, caption or text, in any case."""
    found = [name for name in names if (name == column if column else name.lower() in COLUMNS)]
    if len(found) != 1:
        wanted = f"'{column}'" if column else f"{', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        number = "more than one" if found else "no"
        listed = ", ".join(names) or "nothing"
        raise ConfigError(
            f"{path}: {place} has {number} {wanted}; it has: {listed}", f"name the column or key of the prompts: {path}#NAME"
        )
    return found[0]


def _filled(places: Iterable[tuple[str, object]], path: Path) -> Iterator[tuple[str, str]]:
    """The same, refusing values that are not text and rows without a prompt (a blank line is fine, an empty cell is not)."""
    for place, text in places:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path}: the prompt of {place} is {text!r}", "write a text there, or remove it")
        yield place, text


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()).strip()


def _check(places: Iterable[tuple[str, str]], source: str) -> tuple[Prompt, ...]:
    seen: dict[str, str] = {}
    for place, line in places:
        text = _one_line(line)
        if not text:
            continue
        if text in seen:
            raise ConfigError(f"{source}: {place} repeats {seen[text]}: '{text}'", "remove one: each prompt counts once")
        seen[text] = place
    if not seen:
        raise ConfigError(f"{source} has no prompt", "write one prompt a line")
    return tuple(Prompt(text) for text in seen)
