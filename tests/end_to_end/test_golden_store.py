"""The bytes of a store stay what they are: a digest that changes only with the format.

Everything stored here is a whole number (or a half), so that sums are exact and the digest is the same on every machine. Ids,
which are drawn at random, are numbers here.
"""

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from nullbooth_cli.store import arrays, format
from tests.support.whole_store import whole_store

GOLDEN = "917361e0c9f70a75"


def digest_of(folder: Path) -> str:
    """SHA-256 of every file by its name; the versions of packages, and so the seal that covers them, are left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path == folder / "zarr.json":
            document = json.loads(data)
            del document["attributes"]["packages"], document["attributes"]["seal"]
            data = json.dumps(document, sort_keys=True).encode()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def test_the_bytes_of_a_store_are_those_of_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = map(str, itertools.count())
    for module in (arrays, format):
        monkeypatch.setattr(module, "new_id", lambda: next(ids))
    found = []
    for keep, dtype in (("features", "float16"), ("both", "float32"), ("moments", "float32")):
        store = whole_store(tmp_path / f"{keep}.zarr", keep, dtype)
        found.append(digest_of(store.path))
    assert hashlib.sha256("".join(found).encode()).hexdigest()[:16] == GOLDEN
