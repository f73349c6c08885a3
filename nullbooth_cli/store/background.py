"""Writes that run beside the work which makes them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

WRITERS = 2
MAX_PENDING_BYTES = 512 << 20


class Writer:
    """Runs writes in threads, at most `MAX_PENDING_BYTES` of them waiting. `drain()` before a commit.

    A failed write is raised by the next `submit` or `drain`, as its own error.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=WRITERS)
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._pending: list[Future[object]] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, nbytes: int, write: Callable[..., object], *arguments: Any) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()
        with self._room:
            self._room.wait_for(lambda: not self._waiting_bytes or self._waiting_bytes + nbytes <= MAX_PENDING_BYTES)
            self._waiting_bytes += nbytes
        future = self._pool.submit(write, *arguments)
        future.add_done_callback(lambda _: self._release(nbytes))
        self._pending.append(future)

    def _release(self, nbytes: int) -> None:
        with self._room:
            self._waiting_bytes -= nbytes
            self._room.notify()

    def drain(self) -> None:
        """Return when everything submitted is written."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()


T = TypeVar("T")
U = TypeVar("U")
READ_AHEAD = 4


def read_ahead(read: Callable[[U], T], items: Iterable[U], depth: int = READ_AHEAD) -> Iterator[T]:
    """`read(item)` for each item in order, up to `depth` of them running in threads before they are asked for.

    The first failure is raised in its turn; what was started is waited for, never left running.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) >= depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
