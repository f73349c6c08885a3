"""`nullbooth run`: every stage in order, and nothing twice."""

from pathlib import Path

from tests.support.cli import nullbooth


def test_run_then_everything_is_complete(small: Path) -> None:
    result = nullbooth("run", "-c", str(small), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "dimensions are null" in result.stdout
    assert "next: nullbooth inspect" in result.stderr
    assert "collect 2/2" in result.stderr
    again = nullbooth("run", "-c", str(small))
    assert again.exit_code == 0
    assert again.stderr.count("is complete") == 4
