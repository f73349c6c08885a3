"""Text that a user writes, before it means anything: files, lines, and texts that no file or terminal could hold."""

import os
import re
import reprlib
import stat
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SURROGATE = re.compile("[\ud800-\udfff]")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def read_text(path: Path, what: str, *, missing: str = "name a file that exists", most: int = limits.TEXT_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark. An error says `what` it is; `missing` is the hint if it is not there.

    Raises ConfigError for a file that is missing, unreadable, larger than `most` bytes, not text, or no file (a folder, a pipe, a
    device).
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise ConfigError(f"cannot read the {what} {path}: it is {kind}", "name a text file in UTF-8")
        if status.st_size > most:
            reason = f"it has {status.st_size:,} bytes, more than {most:,}"
            raise ConfigError(f"cannot read the {what} {path}: {reason}", "divide it, or remove what is not needed")
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no {what} at {path} (in {Path.cwd()})", missing) from error
    except UnicodeDecodeError as error:
        reason = "it is UTF-16" if data.startswith(_UTF_16) else str(error)
        raise ConfigError(f"cannot read the {what} {path}: {reason}", "save it as a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror or error}", "name a text file in UTF-8") from error
    except ValueError as error:  # the path has a NUL or half a surrogate pair
        raise ConfigError(f"cannot read the {what} {quoted(str(path))}: {error}", "name a text file in UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"cannot read the {what} {path}: it has NUL bytes", "save it as a text file in UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    r"""The lines of a text. Only \n, \r\n and \r end one, not what `str.splitlines` also knows (\v, \f, U+0085, U+2028)."""
    return re.split(r"\r\n|\n|\r", text)


def paired(text: str) -> str:
    r"""A text with the surrogate pairs of JSON (`\ud83d\ude00`) joined; half a pair stays."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass") if _SURROGATE.search(text) else text


def flaw(text: str) -> str | None:
    """What makes a text impossible to store or to pass on: a NUL, or half a surrogate pair. None for any other."""
    if "\0" in text:
        return "has a NUL character"
    return "has half a surrogate pair, which is not a character" if _SURROGATE.search(text) else None


def cut(text: str, most: int = 200) -> str:
    """A text for an error: its beginning, if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(value: object) -> str:
    """A value as Python writes it, cut to about 80 characters, for an error."""
    return _short.repr(value)
