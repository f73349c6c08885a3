"""The files and folders that a user names for pages, pictures and sheets, where they cannot be written."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nullbooth_cli.errors import ResourceError


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn what Python raises when a place cannot be written into a ResourceError; `where` is `FILE`, or `into FOLDER`."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot write {where}: {error}", "check the folder and its permissions") from error


def require_writable(folder: Path) -> None:
    """Make a folder. Raises ResourceError if it cannot take a file: what is to be written into it takes minutes to draw."""
    with writing(f"into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
