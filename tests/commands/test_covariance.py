"""`nullbooth covariance`: it mends damaged moments."""

from pathlib import Path

from tests.support.cli import nullbooth, refused


def test_a_damaged_chunk_and_the_command_that_mends_it(done: str) -> None:
    chunk = next((Path(done) / "moments").rglob("sum_xxT/c.0.0.0"))
    data = bytearray(chunk.read_bytes())
    data[20] ^= 255
    chunk.write_bytes(data)
    refused(nullbooth("project", "-s", done, "--force", "--yes"), 4, "is damaged", "nullbooth covariance")
    assert nullbooth("covariance", "-s", done, "--force").exit_code == 0
    assert nullbooth("project", "-s", done, "--force").exit_code == 0
    assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0
