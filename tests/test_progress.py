"""The pace of a stage, from the times at which its units were finished, and the result of work that yields events."""

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.progress import FEWEST_MARKS, WINDOW_SECONDS, Event, Note, Pace, result_of


class TestPace:
    @given(st.floats(0.2, 30.0), st.integers(1, 200))
    def test_a_steady_pace_is_found(self, seconds: float, units: int) -> None:
        pace = Pace(100.0)
        for unit in range(1, units + 1):
            pace.mark(100.0 + unit * seconds, unit)
        assert pace.seconds_per_unit == pytest.approx(seconds)
        assert pace.seconds_left(7) == pytest.approx(7 * seconds)

    def test_no_pace_before_the_first_unit(self) -> None:
        assert Pace(0.0, 5).seconds_per_unit is None
        assert Pace(0.0, 5).seconds_left(3) is None

    def test_only_recent_units_count(self) -> None:
        pace, now = Pace(0.0), 0.0
        for unit in range(100):
            now += 10.0 if unit < 20 else 1.0
            pace.mark(now, unit + 1)
        assert now - 100 > WINDOW_SECONDS
        assert pace.seconds_per_unit == pytest.approx(1.0)

    @given(st.integers(2, 40), st.floats(61.0, 600.0))
    def test_units_that_are_made_durable_together_have_the_pace_of_their_work(self, burst: int, seconds: float) -> None:
        """Sums are written every so often, and then many units are reported at once."""
        pace = Pace(0.0)
        for checkpoint in range(1, FEWEST_MARKS + 5):
            for i in range(burst):
                pace.mark(checkpoint * seconds + i * 1e-4, (checkpoint - 1) * burst + i + 1)
        assert pace.seconds_per_unit == pytest.approx(seconds / burst, rel=1e-3)


def test_the_result_of_work_comes_after_its_events() -> None:
    def work() -> Generator[Event, None, int]:
        yield Note("one")
        yield Note("two")
        return 7

    seen = list[Event]()
    assert result_of(work(), seen.append) == 7
    assert seen == [Note("one"), Note("two")]


def test_an_error_of_the_listener_is_not_swallowed() -> None:
    def work() -> Generator[Event, None, int]:
        yield Note("one")
        return 7

    def listen(event: Event) -> None:
        raise StopIteration(event)

    with pytest.raises(StopIteration, match="one"):
        result_of(work(), listen)
