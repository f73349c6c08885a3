"""A place is a folder or a URL."""

from pathlib import Path

import pytest

from nullbooth_cli.store import is_url, open_backing
from nullbooth_cli.store.local import LocalBacking
from nullbooth_cli.store.remote import RemoteBacking


@pytest.mark.parametrize(("place", "url"), [("runs/a.zarr", False), (Path("s3/a.zarr"), False), ("s3://bucket/a.zarr", True)])
def test_a_url_has_a_scheme(place: str | Path, url: bool) -> None:
    assert is_url(place) == url
    backing = open_backing(place, {"region": "us-east-1"}, read_only=True)
    assert isinstance(backing, RemoteBacking if url else LocalBacking)
    assert backing.url == str(place)
