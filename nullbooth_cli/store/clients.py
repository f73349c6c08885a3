"""The two clients of object stores, obstore and fsspec, as Zarr and the backing see them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import FsspecStore, ObjectStore, WrapperStore

from nullbooth_cli.errors import NullboothError, ResourceError, StoreError
from nullbooth_cli.store.lease import LEASE_SECONDS, LEASES

# obstore alone tries for 3 minutes. That is long to learn of a wrong endpoint, and longer than a lease bears.
RETRIES = {"max_retries": 10, "retry_timeout": 15.0}


class Client(WrapperStore[Any]):
    """A client's store, as Zarr sees it too: what fails is a ResourceError, and nothing is written after a lease was lost."""

    def __init__(self, store: ZarrStore, url: str, failure: Callable[[Exception], ResourceError]) -> None:
        super().__init__(store)
        self._url, self._failure = url, failure

    @staticmethod
    def connect(url: str, options: dict[str, Any], read_only: bool) -> ZarrStore:
        raise NotImplementedError

    async def read_lease(self, key: str) -> tuple[dict[str, Any] | None, Any]:
        """(a lease, the tag that this version of it has)."""
        raise NotImplementedError

    async def replace_lease(self, key: str, data: bytes, tag: Any) -> None:
        """Write a lease, unless it is not the version of the tag any more."""
        raise NotImplementedError

    def _with_store(self, store: ZarrStore) -> "Client":
        return type(self)(store, self._url, self._failure)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except NullboothError:
            raise
        except Exception as error:  # each client has errors of its own
            raise self._failure(error) from None

    async def _may_write(self) -> None:
        for lease in tuple(LEASES[self._url]):
            if lease.is_overdue():
                await asyncio.to_thread(lease.renew)
            if lease.lost:
                raise StoreError(
                    f"another process took over {self._url}, because this one gave no sign for {LEASE_SECONDS:.0f} s",
                    "wait for it, and run this again; finished units are kept",
                )

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with self._failing():
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        with self._failing():
            return await super().exists(key)

    async def list(self) -> AsyncIterator[str]:
        with self._failing():
            async for key in super().list():
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with self._failing():
            async for key in super().list_dir(prefix):
                yield key

    async def getsize_prefix(self, prefix: str) -> int:
        with self._failing():
            return int(await self._store.getsize_prefix(prefix))

    async def set(self, key: str, value: Buffer) -> None:
        await self._may_write()
        with self._failing():
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._may_write()
        with self._failing():
            await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        await self._may_write()
        with self._failing():
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        await self._may_write()
        with self._failing():
            await super().delete_dir(prefix)


class _Obstore(Client):
    """s3, gs, az: leases change hands by conditional puts."""

    @staticmethod
    def connect(url: str, options: dict[str, Any], read_only: bool) -> ZarrStore:
        from obstore.store import from_url

        retries = {**RETRIES, **options.get("retry_config", {})}
        options["retry_config"] = {**retries, "retry_timeout": timedelta(seconds=retries["retry_timeout"])}
        return ObjectStore(from_url(url, **options), read_only=read_only)

    async def read_lease(self, key: str) -> tuple[dict[str, Any] | None, Any]:
        import obstore

        with self._failing():
            try:
                found = await obstore.get_async(self._store.store, key)
            except FileNotFoundError:
                return None, "create"
            tag = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
            return json.loads(bytes(await found.bytes_async())), tag

    async def replace_lease(self, key: str, data: bytes, tag: Any) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._failing(), contextlib.suppress(AlreadyExistsError, PreconditionError):
            await obstore.put_async(self._store.store, key, data, mode=tag)


class _Fsspec(Client):
    """Whatever fsspec opens. Its protocols share no conditional put, so leases are racy: two processes that take one at the same
    moment may both believe that they have it, until one of them renews it."""

    @staticmethod
    def connect(url: str, options: dict[str, Any], read_only: bool) -> ZarrStore:
        # A cached listing would not show what other processes wrote.
        return FsspecStore.from_url(url, storage_options={"use_listings_cache": False, **options}, read_only=read_only)

    async def getsize_prefix(self, prefix: str) -> int:
        with self._failing():
            found = await self._store.fs._find(f"{self._store.path}/{prefix}", detail=True)  # Zarr asks for each object
            return sum(int(info["size"]) for info in found.values())

    async def read_lease(self, key: str) -> tuple[dict[str, Any] | None, Any]:
        data = await self.get(key, default_buffer_prototype())
        lease = None if data is None else json.loads(data.to_bytes())
        return lease, lease

    async def replace_lease(self, key: str, data: bytes, tag: Any) -> None:
        if (await self.read_lease(key))[0] == tag:
            await self.set(key, buffer_of(data))


CLIENTS: dict[str, type[Client]] = {"obstore": _Obstore, "fsspec": _Fsspec}


def buffer_of(data: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(data)
