"""Prompts: a file, or a list in the config. A repeated prompt is an error. The ending of a file decides how it is read:

    .csv .tsv       a table with a header, a prompt a row, in its column `prompt`, `caption` or `text`; .tsv has tabs
    .jsonl .ndjson  an object a line, with such a key, or a bare string
    .json           a list of strings, or of objects with such a key; or COCO captions: {"annotations": [{"caption": ...}, ...]},
                    where captions that many images share are taken once
    other           text, a prompt a line; blank lines do not count

`captions.csv#title` reads the column, or the key, `title`. `nullbooth:toy.txt` is the prompt file of that name that nullbooth
ships. All files are UTF-8. `captions` reads prompts that belong to images.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.shipped import prompt_file
from nullbooth_cli.settings.strict_json import parse_json
from nullbooth_cli.settings.texts import cut, flaw, lines_of, paired, quoted, read_text

COLUMNS = ("prompt", "caption", "text")
NOT_TEXT = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".parquet", ".xlsx", ".xls", ".ods")


def load_prompts(source: str | list[str], key: str = "original_knowledge_prompts") -> tuple[Prompt, ...]:
    """Read the prompts of a file, or take those of a list; `key` is the setting that names them.

    Raises ConfigError with the file and the line if there is no prompt, if one is repeated, or if the file does not have the
    format that its ending names.
    """
    if isinstance(source, list):
        return _check([(f"prompt {i + 1}", text) for i, text in enumerate(source)], "the list of prompts in the config")
    named = re.fullmatch(r"(.+\.(?:csv|tsv|jsonl|ndjson|json))#(.+)", source, re.IGNORECASE | re.DOTALL)
    path, column = (Path(named[1]), named[2]) if named else (prompt_file(source, key), None)
    ending = path.suffix.lower()
    if ending in NOT_TEXT:
        hint = "write .txt (a prompt a line), .csv, .tsv, .jsonl or .json"
        raise ConfigError(f"prompts are not read from a {ending} file: {path}", hint)
    text = read_text(path, "prompt file", missing=f"set {key}; relative paths start at the current folder")
    reader = _READERS.get(ending)
    if reader is None:
        return _check([(f"line {i + 1}", line) for i, line in enumerate(lines_of(text))], str(path))
    return _check(_filled(reader(text, path, column), path), str(path))


def _rows(text: str, path: Path, column: str | None, separator: str = ",") -> Iterator[tuple[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            return
        chosen = header.index(_column(header, column, path, "the header"))
        for row in reader:
            place = f"line {reader.line_num}"
            if row and len(row) != len(header):
                hint = 'put quotes around a prompt with a comma: "a dog, running"'
                raise ConfigError(
                    f"{path}: {place} has {len(row)} cells, the header has {len(header)}",
                    hint if separator == "," else "write one tab between two cells, and none in a prompt",
                )
            if row:
                yield place, row[chosen]
    except csv.Error as error:
        raise ConfigError(
            f"{path}: line {reader.line_num} is not {path.suffix[1:].upper()}: {error}", "check the quotes up to that line"
        ) from error


def _objects(text: str, path: Path, column: str | None) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            place = f"line {number}"
            yield (
                place,
                _prompt_of(parse_json(line, f"{path}: {place}", "write one JSON object or string a line"), column, path, place),
            )


def _document(text: str, path: Path, column: str | None) -> Iterator[tuple[str, object]]:
    hint = 'write a list, ["a dog", {"prompt": "a cat"}], or COCO captions, {"annotations": [{"caption": "..."}, ...]}'
    document = parse_json(text, str(path), hint)
    if isinstance(document, list):
        for number, value in enumerate(document, start=1):
            yield f"entry {number}", _prompt_of(value, column, path, f"entry {number}")
        return
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list):
        raise ConfigError(f"{path} has neither a list nor annotations", hint)
    seen = set()
    for number, annotation in enumerate(annotations, start=1):
        place = f"annotation {number}"
        caption = _of_object(annotation, column, path, place)
        line = _one_line(caption) if isinstance(caption, str) else ""
        if not line or line not in seen:
            seen.add(line)
            yield place, caption


def _prompt_of(value: object, column: str | None, path: Path, place: str) -> object:
    return value if isinstance(value, str) else _of_object(value, column, path, place)


def _of_object(value: object, column: str | None, path: Path, place: str) -> object:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {place} is neither an object nor a string", 'write {"prompt": "a dog"} or "a dog"')
    return value[_column(list(value), column, path, place)]


def _column(names: Sequence[str], column: str | None, path: Path, place: str) -> str:
    """The name of the prompts' column or key: `column`, or the only one called prompt, caption or text, in any case."""
    found = [name for name in names if (name == column if column else name.lower() in COLUMNS)]
    if len(found) != 1:
        wanted = quoted(column) if column else f"{', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        number = "more than one" if found else "no"
        listed = cut(", ".join(names)) or "nothing"
        raise ConfigError(
            f"{path}: {place} has {number} {wanted}; it has: {listed}", f"name the column or key of the prompts: {path}#NAME"
        )
    return found[0]


def _filled(places: Iterable[tuple[str, object]], path: Path) -> Iterator[tuple[str, str]]:
    """The same, refusing values that are not text and rows without a prompt (a blank line is fine, an empty cell is not)."""
    for place, text in places:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path}: the prompt of {place} is {quoted(text)}", "write a text there, or remove it")
        yield place, text


def _one_line(text: str) -> str:
    return " ".join(lines_of(text)).strip()


def _check(places: Iterable[tuple[str, str]], source: str) -> tuple[Prompt, ...]:
    seen: dict[str, str] = {}
    for place, line in places:
        text = _one_line(paired(line))
        if not text:
            continue
        if problem := flaw(text):
            raise ConfigError(f"{source}: the prompt of {place} {problem}", "correct or remove it")
        if text in seen:
            raise ConfigError(f"{source}: {place} repeats {seen[text]}: {quoted(text)}", "remove one: each prompt counts once")
        seen[text] = place
    if not seen:
        raise ConfigError(f"{source} has no prompt", "write one prompt a line")
    return tuple(Prompt(text) for text in seen)


Reader = Callable[[str, Path, str | None], Iterator[tuple[str, object]]]
_READERS: dict[str, Reader] = {
    ".csv": _rows,
    ".tsv": partial(_rows, separator="\t"),
    ".jsonl": _objects,
    ".ndjson": _objects,
    ".json": _document,
}
