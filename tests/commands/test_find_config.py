"""Where a config is looked for."""

from pathlib import Path

import pytest

from nullbooth_cli.commands.find_config import find_config
from nullbooth_cli.errors import ConfigError


def test_where_a_config_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NULLBOOTH_CONFIG", raising=False)
    assert find_config(None) is None
    (tmp_path / "configs").mkdir()
    for name in ("configs/nullbooth.yaml", "nullbooth.yaml", "env.yaml", "given.yaml"):
        (tmp_path / name).write_text("model: toy")
        if name == "env.yaml":
            monkeypatch.setenv("NULLBOOTH_CONFIG", name)
        assert str(find_config(name if name == "given.yaml" else None)) == name
    with pytest.raises(ConfigError, match=r"no config file at gone\.yaml"):
        find_config("gone.yaml")
