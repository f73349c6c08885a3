"""Writes and reads in threads: in order, with bounded memory, and each failure with its own error."""

import threading

import pytest

from nullbooth_cli.store import background
from nullbooth_cli.store.background import Writer, read_ahead


def test_the_writer_bounds_the_bytes_that_wait() -> None:
    gate, written = threading.Event(), []

    def write(item: int) -> None:
        gate.wait(10)
        written.append(item)

    half = background.MAX_PENDING_BYTES // 2
    with Writer() as writing:
        for item in range(2):
            writing.submit(half, write, item)
        third = threading.Thread(target=writing.submit, args=(half, write, 2))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        gate.set()
        third.join(10)
        assert not third.is_alive()
        writing.submit(10 * background.MAX_PENDING_BYTES, write, 3)
        writing.drain()
    assert sorted(written) == [0, 1, 2, 3]


def test_a_failed_write_is_raised_by_the_next_call() -> None:
    def fail(why: str) -> None:
        raise OSError(why)

    with Writer() as writing:
        writing.submit(1, fail, why="torn")
        with pytest.raises(OSError, match="torn"):
            writing.drain()
        writing.submit(1, list)
        writing.drain()


class TestReadAhead:
    def test_order_and_depth(self) -> None:
        running, most, lock = 0, 0, threading.Lock()

        def read(item: int) -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            return item * item

        assert list(read_ahead(read, range(50), depth=3)) == [i * i for i in range(50)]
        assert most <= 2

    def test_it_reads_before_it_is_asked(self) -> None:
        started = [threading.Event() for _ in range(4)]

        def read(item: int) -> int:
            started[item].set()
            return item

        reader = read_ahead(read, range(4), depth=3)
        assert next(reader) == 0
        assert started[1].wait(5)
        reader.close()

    def test_a_failure_comes_in_its_turn(self) -> None:
        def read(item: int) -> int:
            if item == 2:
                raise OSError("torn")
            return item

        reader = read_ahead(read, range(5))
        assert [next(reader), next(reader)] == [0, 1]
        with pytest.raises(OSError, match="torn"):
            next(reader)
