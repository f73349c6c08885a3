"""Which process does which units, and what the processes of a launch tell each other through their rendezvous."""

import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline import workers as workers_module
from nullbooth_cli.pipeline.workers import ENVIRONMENT, Launched, OtherProcessFailed, Shard, Workers, start_workers


def member(rank: int, size: int, shard: Shard | None = None) -> Workers:
    """A process of a launch as far as it needs no other."""
    found = Workers(shard)
    found.rank, found.size = rank, size
    return found


class TestShares:
    @given(st.integers(1, 5), st.integers(1, 5), st.sets(st.integers(0, 60)))
    def test_every_unit_is_done_by_one_process(self, num_shards: int, size: int, left: set[int]) -> None:
        done = []
        for number in range(1, num_shards + 1):
            for rank in range(size):
                worker = member(rank, size, Shard(number, num_shards))
                todo = worker.mine(sorted(left))
                done += [todo[i] for i in worker.share(len(todo))]
        assert sorted(done) == sorted(left)

    @given(st.integers(1, 9), st.integers(0, 100))
    def test_the_processes_of_a_launch_do_as_many_units_each(self, size: int, num_units: int) -> None:
        counts = [len(list(member(rank, size).share(num_units))) for rank in range(size)]
        assert max(counts) - min(counts) <= 1

    @given(st.integers(1, 5), st.integers(1, 5))
    def test_no_two_processes_have_a_name_or_a_lock_in_common(self, num_shards: int, size: int) -> None:
        every = [member(rank, size, Shard(k + 1, num_shards)) for k in range(num_shards) for rank in range(size)]
        assert len({worker.name for worker in every}) == len({worker.lock for worker in every}) == len(every)

    def test_the_first_process_of_a_launch_has_the_lock_of_the_store(self) -> None:
        assert (member(0, 2).lock, member(1, 2).lock) == ("", "1.1-of-1")
        assert (member(0, 2, Shard(3, 4)).lock, member(1, 2, Shard(3, 4)).lock) == ("3-of-4", "3.1-of-4")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a shard"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse("3/16") == Shard(3, 16)
    assert str(Shard(3, 16)) == "3-of-16"


def test_one_process_needs_no_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (None, "1"):
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        with start_workers() as alone:
            assert type(alone) is Workers
            assert alone.agree(lambda: [1, "x"]) == [1, "x"]
            assert list(alone.share(3)) == [0, 1, 2]
            assert (alone.count(2), alone.count(1)) == (2, 3)
            assert list(alone.finish()) == []
            assert alone.count(1) == 1, "the next stage begins at nothing"


class Launch:
    """Processes of a launch in this one, on a rendezvous in memory; `held` are the locks that somebody holds."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: set[str] = set()
        keys = HashStore()
        ranks = iter(range(size))
        for name in ("WORLD_SIZE", *ENVIRONMENT):
            monkeypatch.setenv(name, "1")
        module = sys.modules["torch.distributed.rendezvous"]  # a function of this name stands in its place in the package
        monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(keys, next(ranks), size)]))
        monkeypatch.setattr(workers_module, "POLL_SECONDS", 0.001)
        monkeypatch.setattr(workers_module, "PROBE_SECONDS", 0.0)
        self.processes = [Launched(is_held=self.held.__contains__) for _ in range(size)]

    def lock(self, *ranks: int) -> None:
        """These processes take their locks."""
        for rank in ranks:
            self.held.add(self.processes[rank].lock)
            self.processes[rank].has_lock()

    def finish(self, *ranks: int) -> None:
        """These processes are done with the stage, and do not wait for the others here."""
        for rank in ranks:
            self.processes[rank]._set(f"0/finished/{rank}")

    def kill(self, rank: int) -> None:
        """The system gives back the lock of a process that is gone; nothing else is heard of it."""
        self.held.remove(self.processes[rank].lock)


class TestLaunched:
    @pytest.fixture
    def three(self, monkeypatch: pytest.MonkeyPatch) -> Launch:
        return Launch(3, monkeypatch)

    def test_process_0_decides_for_all(self, three: Launch) -> None:
        first, *others = three.processes
        assert first.agree(lambda: {"todo": [1, 2]}) == {"todo": [1, 2]}
        for other in others:
            assert other.agree(lambda: pytest.fail("only process 0 decides")) == {"todo": [1, 2]}
        assert [first.agree(lambda: 1), *(other.agree(lambda: 2) for other in others)] == [1, 1, 1], "each time anew"

    def test_a_stage_ends_when_all_have_finished(self, three: Launch) -> None:
        three.lock(0, 1, 2)
        first, second, third = three.processes
        ends: dict[int, float] = {}

        def finish(process: Launched) -> None:
            list(process.finish())
            ends[process.rank] = time.monotonic()

        threads = [threading.Thread(target=finish, args=(process,)) for process in (first, second)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert ends == {}
        last = time.monotonic()
        assert list(third.finish()) == []
        for thread in threads:
            thread.join(10)
        assert min(ends.values()) >= last

    def test_process_0_counts_the_units_of_all(self, three: Launch) -> None:
        first, second, _ = three.processes
        assert (first.count(1), second.count(2), first.count(0)) == (1, 3, 3)
        three.finish(1, 2)
        assert list(first.finish()) == [3]

    def test_a_process_that_is_gone_is_not_waited_for(self, three: Launch) -> None:
        three.lock(0, 1, 2)
        three.kill(2)
        for process in three.processes[:2]:
            with pytest.raises(OtherProcessFailed, match="process 2 of this launch"):
                list(process.finish())

    def test_a_process_that_has_finished_may_go(self, three: Launch) -> None:
        three.lock(0, 1, 2)
        three.finish(1, 2)
        three.kill(1)
        three.kill(2)
        assert list(three.processes[0].finish()) == [0]

    def test_a_process_that_fails_says_so(self, three: Launch) -> None:
        three.lock(0, 1, 2)
        three.processes[0].close(failed=True)
        with pytest.raises(OtherProcessFailed, match="process 0 of this launch"):
            three.processes[1].agree(lambda: None)

    def test_a_process_that_never_starts(self, three: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
        three.lock(0, 1)
        monkeypatch.setattr(workers_module, "START_SECONDS", 0.05)
        with pytest.raises(OtherProcessFailed, match="process 2 of this launch"):
            list(three.processes[0].finish())

    def test_units_are_done_after_the_rendezvous_is_gone(self, three: Launch) -> None:
        """A process counts its own units then; only where it would wait it fails."""
        lonely = three.processes[1]
        lonely.count(1)

        class Gone:
            def __getattr__(self, name: str) -> Any:
                def refuse(*_: Any) -> None:
                    raise RuntimeError("connection reset by peer")

                return refuse

        lonely._keys = Gone()
        assert (lonely.count(1), lonely.count(1)) == (2, 3)
        with pytest.raises(OtherProcessFailed, match="process 0"):
            list(lonely.finish())
        lonely.close(failed=False)

    def test_process_0_leaves_last(self, three: Launch) -> None:
        first, *others = three.processes
        leaving = threading.Thread(target=lambda: first.close(failed=False))
        leaving.start()
        time.sleep(0.1)
        assert leaving.is_alive()
        for other in others:
            other.close(failed=False)
        leaving.join(10)
        assert not leaving.is_alive()
