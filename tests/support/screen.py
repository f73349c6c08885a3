"""A stream that says it is a terminal, and keeps what is drawn on it."""

import io
import re

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def plain(self) -> list[str]:
        """All lines that were ever drawn, without the control sequences."""
        return ESCAPE.sub("", self.getvalue()).replace("\r", "\n").split("\n")
