"""Other libraries are silent for the time of a call, and afterwards as the program had set them, however many threads call."""

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from diffusers.utils import logging as of_diffusers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.tqdm import progress_bar_states
from transformers.utils import logging as of_transformers

from nullbooth_cli.model import quiet as quiet_module
from nullbooth_cli.model.load import load_pipeline, load_scheduler
from nullbooth_cli.model.quiet import LIBRARIES, collected_warnings, quiet_libraries
from nullbooth_cli.model.sources import Source


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def settings() -> dict[str, Any]:
    """All that `quiet` changes."""
    return {
        "loggers": {
            name: (logger.level, list(logger.handlers), logger.propagate)
            for name in LIBRARIES
            if (logger := logging.getLogger(name))
        },
        "bars": (of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled(), dict(progress_bar_states)),
        "environment": dict(os.environ),
    }


@pytest.fixture
def program() -> Iterator[Heard]:
    """A program that hears what diffusers logs, wants only errors of transformers, and hides one group of the hub's bars."""
    handler, diffusers, transformers = Heard(), logging.getLogger("diffusers"), logging.getLogger("transformers")
    level, states = transformers.level, dict(progress_bar_states)
    diffusers.addHandler(handler)
    transformers.setLevel(logging.ERROR)
    enable_progress_bars()
    of_diffusers.disable_progress_bar()
    of_transformers.enable_progress_bar()
    disable_progress_bars("huggingface_hub.mine")
    yield handler
    diffusers.removeHandler(handler)
    transformers.setLevel(level)
    of_diffusers.enable_progress_bar()
    progress_bar_states.clear()
    progress_bar_states.update(states)


def test_nothing_is_logged_or_drawn_meanwhile(program: Heard) -> None:
    with quiet_libraries():
        logging.getLogger("diffusers.pipelines").error("loud")
        assert not of_transformers.is_progress_bar_enabled()
        assert not of_diffusers.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    assert program.texts == []
    logging.getLogger("diffusers.pipelines").warning("again")
    assert program.texts == ["again"]


def test_a_level_that_is_right_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting one empties the caches of all loggers of the process: milliseconds a call."""
    for name in LIBRARIES:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)
    monkeypatch.setattr(logging.Logger, "setLevel", lambda *_: pytest.fail("a level was set"))
    with quiet_libraries():
        pass


def test_settings_are_put_back_after_nested_calls_and_errors(program: Heard) -> None:
    before = settings()
    with quiet_libraries(), quiet_libraries():
        pass
    assert settings() == before
    with pytest.raises(ZeroDivisionError), quiet_libraries(), collected_warnings():
        1 / 0  # noqa: B018
    assert settings() == before


def test_loading_leaves_the_settings_and_the_environment_alone(program: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before = settings()
    import torch

    load_scheduler(Source("toy", local_files_only=True))
    load_pipeline("toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu"))
    assert settings() == before


def test_what_the_program_sets_meanwhile_stays(program: Heard) -> None:
    added, logger = Heard(), logging.getLogger("diffusers")
    level, handlers = logger.level, list(logger.handlers)
    try:
        with quiet_libraries():
            logger.setLevel(logging.INFO)
            logger.addHandler(added)
        assert logger.level == logging.INFO
        assert logger.handlers == [*handlers, added]
    finally:
        logger.setLevel(level)
        logger.removeHandler(added)


def test_overlapping_threads_leave_the_settings_of_before(program: Heard) -> None:
    """The first thread to come in is the first to leave, so the last one must not put back what it found."""
    before, both, first_left = settings(), threading.Barrier(2), threading.Event()
    loud_between = []

    def first() -> None:
        with quiet_libraries():
            both.wait(10)
        first_left.set()

    def second() -> None:
        both.wait(10)
        with quiet_libraries():
            first_left.wait(10)
            logging.getLogger("diffusers").error("still silent")
            loud_between.append(of_transformers.is_progress_bar_enabled())

    with quiet_libraries():  # both threads find settings that are changed already
        threads = [threading.Thread(target=work) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert loud_between == [False]
    assert program.texts == []
    assert settings() == before


def test_many_threads_leave_the_settings_of_before(program: Heard) -> None:
    before = settings()

    def work() -> None:
        for _ in range(200):
            with quiet_libraries():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings() == before
    assert quiet_module._calls == 0


def test_each_thread_hears_its_own_warnings(program: Heard) -> None:
    together, heard = threading.Barrier(4), {}

    def work(name: str) -> None:
        with collected_warnings() as texts:
            together.wait(10)
            logging.getLogger("transformers.modeling_utils").warning(f"\x1b[33mof {name}\x1b[0m")
            together.wait(10)
            heard[name] = list(texts)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {name: [f"of {name}"] for name in "abcd"}
    assert not quiet_module._COLLECTOR.texts


def test_bars_that_the_environment_asks_for_are_drawn(program: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    with quiet_libraries():
        assert of_transformers.is_progress_bar_enabled()
