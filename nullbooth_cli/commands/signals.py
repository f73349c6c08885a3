"""Ctrl-C and SIGTERM: work that is not on disk yet is written first, and the exit code tells which of them it was."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from nullbooth_cli.progress import Event, Interrupts

if TYPE_CHECKING:
    from nullbooth_cli.commands.console import Terminal

SAME_SECONDS = 1.0
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as a shell reports a program that the signal ended


class Interrupted(KeyboardInterrupt):
    """Raised by a signal.

    A class of its own, because `python -m` remembers a plain KeyboardInterrupt that leaves an `exec` (dataclasses use it while
    modules are imported), and then ends itself with SIGINT whatever exit code it is given.
    """


def follow(terminal: "Terminal", events: Callable[[Interrupts], Iterator[Event]]) -> None:
    """Draw events until they end; Ctrl-C and SIGTERM let the unit that runs be written first."""
    interrupts = Interrupts()
    with (
        interruptible(interrupts, terminal.note, "the unit that runs"),
        contextlib.closing(events(interrupts)) as running,  # type: ignore[type-var]  # they are generators
    ):
        terminal.follow(running)


@contextlib.contextmanager
def interruptible(interrupts: Interrupts, say: Callable[[str], None], what_is_finished: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the body at once, or after its unit if that saves unwritten work. A second one ends it at once.

    Signals within `SAME_SECONDS` count as one: torchrun passes on the Ctrl-C of a terminal, which its processes received already.
    A signal that this process inherited as ignored stays ignored: Ctrl-C is not meant for a background job of a script.
    `what_is_finished` completes the note that `say` gets while the work is written.
    """
    received, code = -SAME_SECONDS, EXIT_CODES[signal.SIGINT]

    def receive(number: int, _: Any) -> None:
        nonlocal received, code
        now = time.monotonic()
        if now - received < SAME_SECONDS:
            return
        received, code = now, EXIT_CODES[signal.Signals(number)]
        if not interrupts.unwritten or interrupts.requested:
            raise Interrupted
        interrupts.requested = True
        say(f"interrupted: finishing and writing {what_is_finished}; Ctrl-C again stops at once and loses it")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in EXIT_CODES if signal.getsignal(number) != signal.SIG_IGN]
    before: dict[int, Any] = {}
    try:  # around the first handler too: a signal may come before the second is there
        for each in handled:
            before[each] = signal.signal(each, receive)
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(code) from error
    finally:
        # After an interrupt this process ends: the second signal of a pair must not kill it on the way.
        if time.monotonic() - received >= SAME_SECONDS:
            for number, handler in before.items():
                signal.signal(number, handler)
