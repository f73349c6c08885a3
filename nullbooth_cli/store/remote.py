"""A store at a URL (S3, Google Cloud Storage, Azure), through obstore.

A put is atomic and durable once it returns, so there is nothing to flush. Object stores have no file locks. A lease replaces
them: an object beside the store that its holder renews, and that another process may take over once the holder is dead or was
silent for too long.

    s3://bucket/run.zarr        the store
    s3://bucket/run.zarr.lock   a lease for the whole store (`all`), or one for each shard at work; removed when it is released
"""

import contextlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from nullbooth_cli.datatypes import HELDOUT, TASKS
from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.store.backing import Backing, Bytes
from nullbooth_cli.store.lease import LEASES, Lease
from nullbooth_cli.store.locks import in_use
from nullbooth_cli.store.object_store import LeasedObjectStore, buffer_of

CONCURRENT_READS = 32
WHOLE = "all"
# Values of these options may be shown; every other value in storage_options counts as secret.
PLAIN_OPTIONS = {"endpoint", "endpoint_url", "region", "aws_region", "aws_endpoint"}
# The names that s3fs, the fsspec client of S3, has for options of obstore.
RENAMED = {"endpoint_url": "endpoint", "key": "access_key_id", "secret": "secret_access_key", "token": "session_token"}


class RemoteBacking(Backing):
    """Objects below a URL."""

    def __init__(self, url: str, options: Mapping[str, object], *, read_only: bool = False) -> None:
        _check_url(url)
        _check_options(options)
        self.url = url.rstrip("/")
        self._options = options
        self.zarr: LeasedObjectStore = self._open(self.url, read_only=read_only)

    def _open(self, url: str, *, read_only: bool = False) -> LeasedObjectStore:
        try:
            return LeasedObjectStore.connect(url, self._options, self._failure, read_only=read_only)
        except ImportError as error:
            raise ConfigError(
                f"{url} needs a package that is not installed: {error.name or error}", "pip install 'nullbooth[remote]'"
            ) from None
        except Exception as error:  # obstore has many errors of its own; it has not used the network yet
            raise ConfigError(
                f"cannot open {url}: {self._without_secrets(error)}",
                "give obstore's own option names in storage_options: endpoint, region, access_key_id, secret_access_key",
            ) from None

    def inside(self, name: str, *, read_only: bool = False) -> "RemoteBacking":
        """The objects below a name at this URL."""
        return RemoteBacking(f"{self.url}/{name}", self._options, read_only=read_only)

    def exists(self) -> bool:
        """Whether any object is there. Cost: one request for a store, a list request otherwise."""
        return self.get("zarr.json") is not None or self.is_foreign()

    def is_foreign(self) -> bool:
        """Whether any object is there. Cost: a list request."""

        async def _any_key() -> bool:
            async for _ in self.zarr.list():
                return True
            return False

        return sync(_any_key())

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """All bytes of an object, `[bytes]`, or None if there is none."""
        return self.get_many([key])[0]

    def get_many(self, keys: list[str]) -> list[NDArray[np.uint8] | None]:
        """`get` of each key, with up to `CONCURRENT_READS` requests at once."""
        found = sync(concurrent_map([(key, default_buffer_prototype()) for key in keys], self.zarr.get, CONCURRENT_READS))
        return [None if data is None else np.array(data.as_numpy_array()) for data in found]  # a copy that may be written to

    def put(self, key: str, parts: list[Bytes]) -> None:
        """Write an object by one put, which is durable when it returns."""
        sync(self.zarr.set(key, buffer_of(b"".join(parts))))

    def sync(self) -> None:
        """Nothing to do: every put was durable."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        sync(self.zarr.delete(key))

    def keys(self, prefix: str) -> set[str]:
        """The keys of all objects below a group. Cost: a list request for every thousand of them."""

        async def _keys() -> set[str]:
            return {key async for key in self.zarr.list_prefix(f"{prefix}/")}

        return sync(_keys())

    def nbytes(self, prefix: str) -> int:
        """Bytes of all objects below a group. Cost: a list request for every thousand of them."""
        return sync(self.zarr.getsize_prefix(prefix))

    def free_nbytes(self) -> int | None:
        """None: object stores do not report it."""
        return None

    def sweep(self) -> None:
        """Nothing to do: a put that was killed leaves no object."""

    @contextlib.contextmanager
    def lock(self, name: str = "", wait: float = 0) -> Iterator[None]:
        """Hold the lease `all`, or one of this name, and renew it until the block ends."""
        lease, place = Lease(self._leases(), name or WHOLE), self._locked_place().zarr.place
        deadline = time.monotonic() + wait
        while holder := lease.acquire():
            if time.monotonic() > deadline:
                raise in_use(self.url, holder)
            time.sleep(1)
        LEASES[place].append(lease)
        try:
            with lease.renewing():
                yield
        finally:
            LEASES[place].remove(lease)

    def other_locks(self) -> list[str]:
        """The names of all leases of shards. Cost: a list request."""
        leases = self._leases()

        async def _names() -> list[str]:
            return [key async for key in leases.list() if key != WHOLE]

        return sync(_names())

    def check_writable(self) -> None:
        """Put an object and remove it."""
        key = f".nullbooth-{uuid.uuid4().hex}"
        self.put(key, [b"nullbooth"])
        self.delete(key)

    def check_free(self) -> None:
        """Read every lease. Cost: a list request and one for each."""
        for name in (WHOLE, *self.other_locks()):
            if holder := Lease(self._leases(), name).holder():
                raise in_use(self.url, holder)

    def _locked_place(self) -> "RemoteBacking":
        """The place that the lock belongs to: held-out prompts and tasks belong to the store around them."""
        around = _outer_place(unquote(self.url))
        if around == unquote(self.url) or around.count("/") < 3:  # only a bucket is around it
            return self
        around = self.url.rsplit("/", unquote(self.url).count("/") - around.count("/"))[0]
        outer = RemoteBacking(around, self._options)
        return self if outer.get("zarr.json") is None else outer

    def _leases(self) -> LeasedObjectStore:
        # Beside the store: inside, Zarr would find an unknown object.
        return self._open(f"{self._locked_place().url}.lock")

    def failure(self, error: OSError) -> ResourceError:
        """ResourceError with the first line of the message, without secrets."""
        return self._failure(error)

    def _failure(self, error: Exception) -> ResourceError:
        return ResourceError(
            f"cannot reach {self.url}: {self._without_secrets(error)}",
            "check the URL, storage_options and the network; finished units stay",
        )

    def _without_secrets(self, error: Exception) -> str:
        """The first line of obstore's message, with the server's code."""
        text = str(error).strip() or type(error).__name__
        code = re.search(r"<Code>(\w+)</Code>", text)
        # The part of a URL after `?` may be a signature, even one that came from the environment.
        line = re.sub(r"\?[^\s\"')]+", "?...", text.splitlines()[0].partition(": <?xml")[0])
        for secret in _secrets(self._options):
            line = re.sub(re.escape(secret), "***", line, flags=re.IGNORECASE)  # obstore writes keys in lower case
        return line[:400] + (f" ({code[1]})" if code else "")


def _outer_place(place: str) -> str:
    """The place of the store around one of held-out prompts or of a task; any other place as it is."""
    around, _, name = place.rpartition("/")
    if name == HELDOUT:
        return around
    return around.removesuffix(f"/{TASKS}") if around.endswith(f"/{TASKS}") else place


def _check_url(url: str) -> None:
    """Raise ConfigError for a URL that carries credentials, without showing it: a URL is written into the store and messages."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    user = host.rpartition("@")[0]
    if "?" in url or ":" in user or (user and not scheme.startswith("abfs")):  # abfs://container@account/path
        raise ConfigError("the store's URL carries credentials", "put them into storage_options, or into the environment")
    if any(part in (".", "..") for part in unquote(path).split("/")):
        raise ConfigError(f"{url} has . or .. in its path", "write the URL without them: a store has one name")
    if not path.strip("/"):
        raise ConfigError(f"{url} names a bucket, not a place in it", f"name the store too, such as {url.rstrip('/')}/run.zarr")


def _check_options(options: Mapping[str, object]) -> None:
    """Raise ConfigError for `client`, which chose between obstore and fsspec; values are not shown."""
    if "client" not in options:
        return
    renamed = ", ".join(f"{RENAMED[key]} for {key}" for key in options if key in RENAMED)
    raise ConfigError(
        "storage_options.client is gone: obstore is the only client, because fsspec could not keep a second writer out",
        f"remove client from storage_options{renamed and f', and write {renamed}'}",
    )


def _secrets(options: Mapping[str, object]) -> Iterator[str]:
    """Every value, and every key that is not spelled like an option: `secret:abc` without a blank is one key in YAML."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif key not in PLAIN_OPTIONS and len(str(value)) > 3 and not isinstance(value, bool):
            yield str(value)
        if not re.fullmatch("[a-z_]+", key):
            yield key
