"""Keeps diffusers, transformers and huggingface_hub off stderr for the time of a call.

Errors and progress belong on stderr; these libraries also write warnings and bars there. Their loggers and bars are settings of
the whole process, so calls are counted under a lock: the first `quiet_libraries()` changes the settings, the last one puts them
back. Nested calls and calls in several threads therefore leave the program's settings as they were. A setting that the program
changes in the meantime stays as the program set it.
"""

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Protocol

LIBRARIES = ("diffusers", "transformers", "huggingface_hub")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


class _LogCollector(logging.Handler):
    """Replaces the libraries' own handlers: collects the texts of the threads in `texts`, and drops all others."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[int | None, list[str]] = {}  # by thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread in self.texts:
            self.texts[record.thread].append(_COLOURS.sub("", record.getMessage()))


_COLLECTOR = _LogCollector()
_lock = threading.Lock()
_calls = 0
_put_back = contextlib.ExitStack()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let the libraries log nothing and draw no bars. Cost: microseconds, once the libraries are imported."""
    global _calls, _put_back
    # Imported first, so that their loggers have their own handlers before these are put aside.
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    with _lock:
        if _calls == 0:
            with contextlib.ExitStack() as changes:
                _replace_handlers(changes)
                _hide_bars(changes, (of_diffusers, of_transformers))
                _put_back = changes.pop_all()
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _put_back.close()


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """`quiet_libraries()`, with the texts of the warnings that the libraries log in this thread meanwhile."""
    thread, heard = threading.get_ident(), list[str]()
    with quiet_libraries():
        before = _COLLECTOR.texts.get(thread)
        _COLLECTOR.texts[thread] = heard
        try:
            yield heard
        finally:
            del _COLLECTOR.texts[thread]
            if before is not None:
                _COLLECTOR.texts[thread] = before


@contextlib.contextmanager
def without_future_warnings() -> Iterator[None]:
    """Let diffusers deprecate nothing through `warnings`; not for several threads at once.

    Pipelines warn on loading that an old scheduler's settings are replaced, with the whole scheduler in the text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _replace_handlers(changes: contextlib.ExitStack) -> None:
    for logger in map(logging.getLogger, LIBRARIES):
        changes.callback(_restore_logger, logger, logger.level, logger.handlers, logger.propagate)
        logger.handlers, logger.propagate = [_COLLECTOR], False
        _set_level(logger, logging.WARNING)


def _restore_logger(logger: logging.Logger, level: int, handlers: list[logging.Handler], propagate: bool) -> None:
    added = [handler for handler in logger.handlers if handler is not _COLLECTOR]
    logger.handlers = [*handlers, *added] if added else handlers
    if not logger.propagate:
        logger.propagate = propagate
    if logger.level == logging.WARNING:
        _set_level(logger, level)


def _set_level(logger: logging.Logger, level: int) -> None:
    if logger.level != level:  # setLevel empties the cache of every logger in the process: milliseconds, with torch imported
        logger.setLevel(level)


class _Bars(Protocol):
    """The switch of a library's progress bars."""

    def is_progress_bar_enabled(self) -> bool: ...
    def enable_progress_bar(self) -> None: ...
    def disable_progress_bar(self) -> None: ...


def _hide_bars(changes: contextlib.ExitStack, libraries: Iterable[_Bars]) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, progress_bar_states

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        return  # the environment asks for bars, and has priority over a program
    states = dict(progress_bar_states)

    def restore_states() -> None:
        progress_bar_states.clear()
        progress_bar_states.update(states)

    # Put back last: the switch of transformers sets the hub's as well, and forgets the hub's groups.
    changes.callback(restore_states)
    for library in libraries:
        if library.is_progress_bar_enabled():
            library.disable_progress_bar()
            changes.callback(library.enable_progress_bar)
    disable_progress_bars()
