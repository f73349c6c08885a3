"""obstore behind Zarr's interface: conditional puts, and errors that are ours."""

from typing import Any

import pytest
from zarr.core.sync import sync

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.store.lease import Sign
from nullbooth_cli.store.object_store import LeasedObjectStore, buffer_of
from tests.support.bucket import Place


def sign(nonce: str) -> Sign:
    return Sign(nonce=nonce, text="", machine="here", pid=1, time=0.0)


@pytest.fixture
def objects(place: Place) -> LeasedObjectStore:
    return LeasedObjectStore.connect(place.url, place.bucket.options, lambda error: ResourceError(str(error), "look"))


def test_only_the_first_of_two_creates_a_lease(objects: LeasedObjectStore) -> None:
    assert sync(objects.read_lease("all")) == (None, None)
    sync(objects.replace_lease("all", sign("first"), None))
    sync(objects.replace_lease("all", sign("second"), None))
    assert sync(objects.read_lease("all"))[0] == sign("first")


def test_a_lease_is_replaced_only_in_the_version_that_was_read(objects: LeasedObjectStore) -> None:
    sync(objects.replace_lease("all", sign("first"), None))
    _, version = sync(objects.read_lease("all"))
    sync(objects.replace_lease("all", sign("second"), version))
    sync(objects.replace_lease("all", sign("third"), version))
    assert sync(objects.read_lease("all"))[0] == sign("second")


def test_every_failure_is_a_resource_error(objects: LeasedObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("zarr.storage.ObjectStore.set", broken)
    with pytest.raises(ResourceError, match="no route"):
        sync(objects.set("key", buffer_of(b"1")))


def test_an_object_that_is_no_lease_is_a_resource_error(place: Place, objects: LeasedObjectStore) -> None:
    place.bucket.put(f"{place.prefix}/all", b"{}")
    with pytest.raises(ResourceError, match="nonce"):
        sync(objects.read_lease("all"))
