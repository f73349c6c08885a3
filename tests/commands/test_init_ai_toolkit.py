"""`nullbooth init --ai-toolkit FOLDER`."""

import json
from pathlib import Path

from nullbooth_cli.integrations.ai_toolkit import EXTENSION
from tests.support.cli import nullbooth, refused


def test_extension_is_written_once(tmp_path: Path) -> None:
    refused(nullbooth("init", "--ai-toolkit", str(tmp_path)), 2, "is not ai-toolkit: it has no toolkit/extension.py", "run.py")
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit/extension.py").write_text("")
    file = tmp_path / "extensions/nullbooth/__init__.py"
    result = nullbooth("init", "--ai-toolkit", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    assert "type: nullbooth_trainer" in result.stderr
    assert file.read_text() == EXTENSION
    refused(nullbooth("init", "--ai-toolkit", str(tmp_path)), 2, f"this file exists: {file}", "--force")
    again = nullbooth("init", "--ai-toolkit", str(tmp_path), "--force", "--json")
    assert json.loads(again.stdout)["files"] == [str(file)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extensions", "toolkit"]
