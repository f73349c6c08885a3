"""Writes and reads that run in threads, beside the work that needs them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

WRITERS = 2
MAX_PENDING_BYTES = 512 << 20
READ_AHEAD = 4
P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class Writer:
    """Runs writes in threads, with at most `max_pending` bytes waiting; a context manager. Call `drain()` before a commit.

    The next `submit` or `drain` raises the error of a write that failed.
    """

    def __init__(self, num_threads: int = WRITERS, max_pending: int = MAX_PENDING_BYTES) -> None:
        self._pool, self._max_pending = ThreadPoolExecutor(max_workers=num_threads), max_pending
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._pending: list[Future[object]] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, nbytes: int, write: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> None:
        """Start `write(*arguments, **options)`, which needs `nbytes` of memory until it is done; first waits for room."""
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()
        with self._room:
            self._room.wait_for(lambda: not self._waiting_bytes or self._waiting_bytes + nbytes <= self._max_pending)
            self._waiting_bytes += nbytes
        future = self._pool.submit(write, *arguments, **options)
        future.add_done_callback(lambda _: self._release(nbytes))
        self._pending.append(future)

    def _release(self, nbytes: int) -> None:
        with self._room:
            self._waiting_bytes -= nbytes
            self._room.notify()

    def drain(self) -> None:
        """Wait until everything submitted is written."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()


def read_ahead(read: Callable[[U], T], items: Iterable[U], depth: int = READ_AHEAD) -> Iterator[T]:
    """`read(item)` of each item in order; up to `depth` reads run in threads ahead of the caller.

    A read that failed raises its error in its turn. No read is left running at the end.
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
