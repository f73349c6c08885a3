"""Places that a user names, and that cannot be written."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.report.files import require_writable, writing


def test_a_folder_that_takes_files_is_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_folder_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(ResourceError, match=f"cannot write into {tmp_path}/a/b: .*Not a directory") as caught:
        require_writable(tmp_path / "a/b")
    assert caught.value.hint == "check the folder and its permissions"


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match="not about files"), writing("x.png"):
        raise ValueError("not about files")
