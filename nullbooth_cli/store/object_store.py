"""The objects below a URL, through obstore, as Zarr and the backing see them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore, WrapperStore

from nullbooth_cli.errors import NullboothError, ResourceError, StoreError
from nullbooth_cli.store.lease import LEASE_SECONDS, Sign, Version, leases_on

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

# obstore alone retries for 3 minutes: too long to learn of a wrong endpoint, and longer than a lease lasts.
RETRIES = {"max_retries": 10, "retry_timeout": 15.0}


class LeasedObjectStore(WrapperStore[ObjectStore[Any]]):
    """Every failure is a ResourceError, and nothing is written once a lease on the place, or around it, is lost."""

    def __init__(self, store: ObjectStore[Any], url: str, failure: Callable[[Exception], ResourceError]) -> None:
        super().__init__(store)
        self._url, self._failure = url, failure

    @classmethod
    def connect(
        cls, url: str, options: Mapping[str, Any], failure: Callable[[Exception], ResourceError], *, read_only: bool = False
    ) -> "LeasedObjectStore":
        """Prepare access to a URL; nothing is sent yet. `options` are obstore's, `failure` turns its errors into ours.

        Raises ImportError without obstore, and obstore's own errors for options that it does not take.
        """
        from obstore.store import from_url

        retries = {**RETRIES, **options.get("retry_config", {})}
        retry_config = {**retries, "retry_timeout": timedelta(seconds=retries["retry_timeout"])}
        store = from_url(url, **{**options, "retry_config": retry_config})
        return cls(ObjectStore(store, read_only=read_only), url, failure)

    @property
    def place(self) -> str:
        """The bucket and the key: the same for every URL of a place."""
        found: Any = self._store.store
        return f"{found.config.get('bucket') or found.config.get('container_name')}/{found.prefix}"

    def _with_store(self, store: ObjectStore[Any]) -> "LeasedObjectStore":
        return type(self)(store, self._url, self._failure)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except NullboothError:
            raise
        except Exception as error:  # obstore, and what it uses, have many errors of their own
            raise self._failure(error) from None

    async def _check_leases(self) -> None:
        for lease in leases_on(self.place):
            if lease.is_overdue():
                await asyncio.to_thread(lease.renew)
            if lease.lost:
                raise StoreError(
                    f"another process took over {self._url}, because this one gave no sign for {LEASE_SECONDS:.0f} s",
                    "wait until it has ended, and run this again; finished units stay",
                )

    async def read_lease(self, key: str) -> tuple[Sign | None, Version]:
        """The last sign of a lease's holder, and the version of the object that it was read from."""
        import obstore

        with self._failing():
            try:
                found = await obstore.get_async(self._store.store, key)
            except FileNotFoundError:
                return None, None
            version = {name: str(found.meta[name]) for name in ("e_tag", "version") if found.meta[name] is not None}
            return Sign.from_json(bytes(await found.bytes_async())), version

    async def replace_lease(self, key: str, sign: Sign, version: Version) -> None:
        """Write a sign by a conditional put, unless the object is no longer of this version (None: is there)."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = "create" if version is None else cast("UpdateVersion", version)
        with self._failing(), contextlib.suppress(AlreadyExistsError, PreconditionError):
            await obstore.put_async(self._store.store, key, sign.as_json(), mode=mode)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Zarr's, with our errors."""
        with self._failing():
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Zarr's, with our errors."""
        with self._failing():
            return await super().exists(key)

    async def list(self) -> AsyncIterator[str]:
        """Zarr's, with our errors."""
        with self._failing():
            async for key in super().list():
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Zarr's, with our errors."""
        with self._failing():
            async for key in super().list_dir(prefix):
                yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Zarr's, with our errors."""
        with self._failing():
            async for key in super().list_prefix(prefix):
                yield key

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all objects below a group: a list request for every thousand of them."""
        with self._failing():
            return int(await self._store.getsize_prefix(prefix))

    async def set(self, key: str, value: Buffer) -> None:
        """Zarr's, while the leases hold."""
        await self._check_leases()
        with self._failing():
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Zarr's, while the leases hold."""
        await self._check_leases()
        with self._failing():
            await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        """Zarr's, while the leases hold."""
        await self._check_leases()
        with self._failing():
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Zarr's, while the leases hold."""
        await self._check_leases()
        with self._failing():
            await super().delete_dir(prefix)


def buffer_of(data: bytes) -> Buffer:
    """Bytes as Zarr passes them on."""
    return default_buffer_prototype().buffer.from_bytes(data)
