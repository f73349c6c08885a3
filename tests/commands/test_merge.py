"""`nullbooth merge`: stores whose features were released, and what it refuses."""

import json
import re
from pathlib import Path

from tests.support.builders import PROMPTS
from tests.support.cli import nullbooth, refused


def test_release_and_merge(small: Path, tmp_path: Path) -> None:
    half = ("--set", f"original_knowledge_prompts=[{PROMPTS[0]}, {PROMPTS[1]}]", "-s", str(tmp_path / "half.zarr"))
    for arguments in (("-c", str(small), "--set", f"original_knowledge_prompts=[{PROMPTS[2]}]"), ("-c", str(small), *half)):
        assert nullbooth("collect", *arguments).exit_code == 0
        released = nullbooth("covariance", *arguments, "--release")
        assert re.search(r"released \d+\.\d MB of features", released.stderr)
    status = json.loads(nullbooth("status", "-s", str(tmp_path / "half.zarr"), "--json").stdout)
    assert status["stages"]["collect"]["state"] == "released"
    sources = (str(tmp_path / "run.zarr"), str(tmp_path / "half.zarr"))
    merged = nullbooth("merge", *sources, "-s", str(tmp_path / "all.zarr"), "--json")
    assert merged.exit_code == 0, merged.stderr
    assert json.loads(merged.stdout)["state"] == "complete"
    assert nullbooth("project", "-s", str(tmp_path / "all.zarr")).exit_code == 0
    refused(nullbooth("merge", *sources, "-s", str(tmp_path / "all.zarr")), 4, "has a collection already")
    refused(nullbooth("merge", sources[0], sources[0], "-s", str(tmp_path / "x.zarr")), 2, "two or more different stores")
