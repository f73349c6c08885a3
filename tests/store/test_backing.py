"""What every backing has from its base: many objects read and written at once."""

import threading
from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.store.backing import CONCURRENT_WRITES, Backing
from nullbooth_cli.store.local import LocalBacking


def test_many_objects_are_written_and_read_in_the_order_of_their_keys(tmp_path: Path) -> None:
    backing = LocalBacking(tmp_path / "run.zarr")
    Backing.put_many(backing, [(f"a/{i}", [bytes([i]), b"!"]) for i in range(20)])
    found = Backing.get_many(backing, [f"a/{i}" for i in (7, 99, 3)])
    assert [None if each is None else each.tobytes() for each in found] == [b"\x07!", None, b"\x03!"]
    assert found[0] is not None
    assert found[0].dtype == np.uint8


def test_writes_wait_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write returns only when all of a group have started, so that writes one after the other would never end."""
    together = threading.Barrier(CONCURRENT_WRITES, timeout=60)
    monkeypatch.setattr(LocalBacking, "put", lambda *_: together.wait())
    Backing.put_many(LocalBacking(tmp_path / "run.zarr"), [(str(i), [b""]) for i in range(CONCURRENT_WRITES)])


def test_a_refused_write_of_many_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(_: Backing, key: str, parts: list[bytes]) -> None:
        if key == "2":
            raise ResourceError("no room left", "free some space")

    monkeypatch.setattr(LocalBacking, "put", put)
    with pytest.raises(ResourceError, match="no room left"):
        Backing.put_many(LocalBacking(tmp_path / "run.zarr"), [(str(i), [b""]) for i in range(4)])
