"""Reading text files, and the texts that nothing could store."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.strict_json import parse_json
from nullbooth_cli.settings.texts import flaw, lines_of, paired, quoted, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea\0", "it is UTF-16"),
        (b"a\xff", "can't decode byte 0xff"),
        (b"a\0b", "it has NUL bytes"),
        (b"12345678901", "it has 11 bytes, more than 10"),
        (None, "no caption file at"),
    ],
)
def test_what_is_not_read(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_text(tmp_path / "a.txt", "caption file", missing="write it", most=10)
    assert "a.txt" in caught.value.message
    assert (caught.value.hint == "write it") == (content is None)


def test_folders_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, kind in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
    ):
        with pytest.raises(ConfigError, match=f"it is {kind}$"):
            read_text(place, "file")
    for name in ("a" * 300, "a\0b", "a\ud800"):
        with pytest.raises(ConfigError, match="cannot read the file"):
            read_text(tmp_path / name, "file")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xc2\x85b")
    assert read_text(tmp_path / "a.txt", "file") == "a\x85b"


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)))), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_only_newlines_end_a_line(lines: list[str], end: str) -> None:
    assert lines_of(end.join(lines)) == (lines or [""])


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_surrogates_are_joined_and_halves_are_a_flaw(text: str) -> None:
    units = text.encode("utf-16-be")
    split = "".join(chr(int.from_bytes(units[i : i + 2])) for i in range(0, len(units), 2))
    assert paired(split) == text
    assert flaw(text) is None or "\0" in text
    assert flaw(text + "\ud83d") is not None


def test_an_error_shows_the_beginning_of_a_value() -> None:
    assert quoted("a dog") == "'a dog'"
    assert len(quoted("x" * 10_000)) < 100
    assert len(quoted({"a": ["x" * 500] * 500})) < 1000


def test_json_with_a_key_twice_or_too_deep() -> None:
    with pytest.raises(ConfigError, match=r"^f is not JSON: the key 'a' appears twice$"):
        parse_json('{"a": 1, "b": 2, "a": 3}', "f", "hint")
    with pytest.raises(ConfigError, match="nested too deep"):
        parse_json("[" * 100_000, "f", "hint")
    assert parse_json('{"a": {"a": 1}}', "f", "hint") == {"a": {"a": 1}}
