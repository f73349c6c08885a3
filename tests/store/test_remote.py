"""The backing of a URL: what it refuses before the network is used, what it never shows, and its objects."""

from typing import Any

import numpy as np
import pytest

from nullbooth_cli.errors import ConfigError, ResourceError, StoreError
from nullbooth_cli.store.remote import RemoteBacking
from tests.support.bucket import SECRET, Place


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:hidden@bucket/run.zarr", "carries credentials"),
        ("s3://hidden@bucket/run.zarr", "carries credentials"),
        ("https://account.blob.core.windows.net/c/run.zarr?sig=hidden", "carries credentials"),
        ("s3://bucket", "not a place in it"),
        ("s3://bucket/run.zarr/.", r"has \. or \.\. in its path"),
        ("s3://bucket/other/%2e%2E/run.zarr", r"has \. or \.\. in its path"),
    ],
)
def test_a_url_with_credentials_or_without_a_place_is_refused_and_not_shown(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RemoteBacking(url, {})
    assert "hidden" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"client": "obstore"}, "remove client from storage_options"),
        (
            {"client": "fsspec", "endpoint_url": "http://x", "key": "public", "secret": "hidden"},
            "remove client from storage_options, and write endpoint for endpoint_url, access_key_id for key, "
            "secret_access_key for secret",
        ),
    ],
)
def test_the_client_option_is_gone_and_the_hint_names_the_options_of_obstore(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match="client is gone: obstore is the only client") as caught:
        RemoteBacking("s3://bucket/run.zarr", options)
    assert caught.value.hint == hint


def test_options_that_obstore_does_not_take_are_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="cannot open s3://") as caught:
        RemoteBacking(place.url, {"key": "AKIA", "secret": SECRET})
    assert SECRET not in caught.value.message
    assert "access_key_id" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [{f"secret:{SECRET}": None}, {SECRET.title(): "x"}, {"client_options": {SECRET: 1}}, {"secret_access_key": 12345678}],
)
def test_a_secret_in_the_place_of_a_key_is_not_repeated(options: dict[str, Any], place: Place) -> None:
    with pytest.raises(ConfigError, match="cannot open s3://") as caught:
        RemoteBacking(place.url, options)
    shown = f"{caught.value.message} {caught.value.hint}".lower()
    assert SECRET.lower() not in shown
    assert "12345678" not in shown
    assert caught.value.__cause__ is None


def test_a_failure_shows_no_secret(place: Place) -> None:
    backing = RemoteBacking(
        place.url, {**place.bucket.options, "client_options": {"allow_http": True, "user_agent": "nested-secret"}}
    )
    error = backing.failure(OSError(f"denied: {SECRET} and nested-secret at http://host/key?X-Amz-Signature=abc"))
    assert isinstance(error, ResourceError)
    assert error.message == f"cannot reach {place.url}: denied: *** and *** at http://host/key?..."


def test_objects_come_back_are_listed_and_removed(place: Place) -> None:
    backing = RemoteBacking(place.url, place.bucket.options)
    assert not backing.is_foreign()
    assert backing.get("features/a") is None
    backing.put("features/a", [b"one", memoryview(b"two")])
    backing.put("features/b", [b"three"])
    found = backing.get_many(["features/a", "features/missing", "features/b"])
    assert [None if data is None else data.tobytes() for data in found] == [b"onetwo", None, b"three"]
    assert found[0] is not None
    found[0][:] = np.frombuffer(b"xxxxxx", np.uint8)  # a copy that may be written to
    assert backing.nbytes("features") == 11
    assert backing.is_foreign()
    backing.delete("features/a")
    backing.delete("features/b")
    assert not backing.is_foreign()


def test_a_shard_that_is_held_is_named(place: Place) -> None:
    backing = RemoteBacking(place.url, place.bucket.options)
    backing.check_free()
    with backing.lock("3-of-16"):
        assert backing.other_locks() == ["3-of-16"]
        with pytest.raises(StoreError, match="is in use by process"):
            backing.check_free()
    assert backing.other_locks() == []


def test_a_probe_leaves_nothing(place: Place) -> None:
    RemoteBacking(place.url, place.bucket.options).check_writable()
    assert not place.bucket.keys(place.prefix)
